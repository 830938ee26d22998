# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""A module is run on a host; a host whose Python is too old for it gets a clear word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase

# What Python says of a newer syntax, and ansible-core of a version that it does not take.
TOO_OLD = re.compile(r"SyntaxError|minimum of Python|future feature annotations")
VERSION = re.compile(r"python(\d+\.\d+)/|Current version: (\d+\.\d+)")


def too_old(result: Mapping[str, Any]) -> str | None:
    """Found, required and remedy where a module has failed since the host's Python is too old."""
    if not result.get("failed"):
        return None
    said = " ".join(str(result.get(key, "")) for key in ("msg", "module_stderr", "module_stdout"))
    if not TOO_OLD.search(said):
        return None
    found = VERSION.search(said)
    version = next(filter(None, found.groups())) if found else "before 3.8"
    return (
        f"Found Python {version} on the host, required 3.8 or later, and one that ansible-core on"
        " the controller accepts. Nothing was changed. Remedy: install a newer Python beside it"
        " (such as python3.12 on RHEL 8, python311 on SLES 15) and set ansible_python_interpreter"
        " of the host to it; or install the .deb or .rpm of the agent, which needs no Python."
    )


def run_module(
    action: ActionBase, name: str, arguments: dict[str, Any], task_vars: dict[str, Any] | None
) -> dict[str, Any]:
    """Runs a module on the host once."""
    result: dict[str, Any] = action._execute_module(
        module_name=name, module_args=arguments, task_vars=task_vars
    )
    message = too_old(result)
    return {"failed": True, "changed": False, "msg": message} if message else result
