# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The action of throughline_lock: it says which run this is, and whether another one has ended."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.throughline.fleet.plugins.plugin_utils.python import run_module
from ansible_collections.throughline.fleet.plugins.plugin_utils.run import has_ended, this_run


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module. Where a run of this controller holds the lock that has ended, takes it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        """See throughline_lock."""
        super().run(tmp, task_vars)
        arguments = {**self._task.args, "claim": this_run()}
        result = self._run_module(arguments, task_vars)
        other = result.pop("other", None)
        if other and has_ended(other):
            result = self._run_module({**arguments, "instead_of": other["run"]}, task_vars)
            result.pop("other", None)
        return result

    def _run_module(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        return run_module(self, "throughline.fleet.throughline_lock", arguments, task_vars)
