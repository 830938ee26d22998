# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The action of throughline_preflight: it copies the bundle to hosts that try it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import (
    BundleAction,
    find_bundle,
    hash_once,
)


class ActionModule(BundleAction):
    """Runs the module. Where it asks for the bundle, copies it and runs the module again.

    It does the same in check mode, because nothing stays on the host. Where the bundle is missing
    or cannot be copied, the verdict follows from facts, with the reason why nothing was tried.
    """

    MODULE = "throughline.fleet.throughline_preflight"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        """See throughline_preflight."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        wanted = arguments.pop("bundle", None)
        if not wanted:
            return self.run_module(arguments, task_vars)
        try:
            bundle = find_bundle(Path(wanted).expanduser())
            arguments.update(bundle=str(bundle), sha256=hash_once(bundle))
        except OSError as error:
            return _untried(self.run_module(arguments, task_vars), str(error))
        result = self.run_module(arguments, task_vars)
        if not result.pop("missing", False):
            return result
        try:
            return self.run_with_bundle(bundle, arguments, task_vars)
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            del arguments["sha256"]
            reason = f"the bundle could not be copied: {error}"
            return _untried(self.run_module(arguments, task_vars), reason)


def _untried(result: dict[str, Any], reason: str) -> dict[str, Any]:
    """The module's result; where nothing was tried, with this reason."""
    verdict = result.get("ansible_facts", {}).get("throughline_preflight", {})
    if "untried" in verdict and "doctor_error" not in verdict:
        verdict["untried"] = reason
    return result
