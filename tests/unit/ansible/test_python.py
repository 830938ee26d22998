"""What a host says whose Python is too old for a module, by ansible-core 2.16, 2.19 and 2.21."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.plugins import plugin

ERROR = 'File "/usr/lib/python{}/runpy.py", line 182\nSyntaxError: {}'
FEATURE = "future feature annotations is not defined"
MINIMUM = "ansible-core requires a minimum of Python version 3.8. Current version: 3.6.8 (default)"


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({"module_stderr": ERROR.format("2.7", "invalid syntax"), "msg": "MODULE FAILURE"}, "2.7"),
        ({"module_stderr": ERROR.format("3.6", FEATURE)}, "3.6"),
        ({"module_stderr": "SyntaxError: invalid syntax", "msg": "No start of json"}, "before 3.8"),
        ({"msg": MINIMUM}, "3.6"),
    ],
)
def test_an_old_python_is_named_with_a_remedy(result: dict[str, Any], found: str) -> None:
    message = plugin("plugin_utils.python").too_old({"failed": True, **result})
    assert message.startswith(f"Found Python {found} on the host, required 3.8 or later")
    assert "Remedy: install a newer Python" in message and "ansible_python_interpreter" in message


@pytest.mark.parametrize(
    "result", [{"failed": True, "msg": "No space left on device"}, {"msg": "SyntaxError"}]
)
def test_other_results_stay_as_they_are(result: dict[str, Any]) -> None:
    assert plugin("plugin_utils.python").too_old(result) is None
