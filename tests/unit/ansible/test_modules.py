"""The documentation of each module has exactly the options that the module reads."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import plugin

MODULES = sorted(path.stem for path in (CHECKOUT / "plugins/modules").glob("*.py"))


class Specified(Exception):  # noqa: N818 (it ends the module, and is no error)
    """The argument_spec that a module gives to AnsibleModule."""


def specified(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def stop(*, argument_spec: dict[str, Any], **_: Any) -> None:
        raise Specified(argument_spec)

    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(Specified) as found:
        module.main()
    return dict(found.value.args[0])


def documented(module: Any) -> dict[str, Any]:
    """The options in DOCUMENTATION, and in the fragments that it names."""
    page = yaml.safe_load(module.DOCUMENTATION)
    options = dict(page["options"])
    for name in page.get("extends_documentation_fragment", []):
        fragment = plugin(f"doc_fragments.{name.rpartition('.')[2]}").ModuleDocFragment
        options.update(yaml.safe_load(fragment.DOCUMENTATION)["options"])
    return options


@pytest.mark.parametrize("name", MODULES)
def test_documentation_has_the_options_of_the_module(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plugin(f"modules.{name}")
    options = documented(module)
    assert all(option.pop("description") for option in options.values())
    for option in (spec := specified(module, monkeypatch)).values():
        option.pop("no_log", None)  # the documentation has no such key
    assert options == spec


@pytest.mark.parametrize("name", MODULES)
def test_examples_and_return_values_are_yaml(name: str) -> None:
    module = plugin(f"modules.{name}")
    assert yaml.safe_load(module.DOCUMENTATION)["module"] == name
    assert yaml.safe_load(module.EXAMPLES)
    assert all(value["description"] for value in yaml.safe_load(module.RETURN).values())
