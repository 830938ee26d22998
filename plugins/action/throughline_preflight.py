# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The controller's half of throughline_preflight: bring the bundle to hosts that are to try it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import (
    find_bundle,
    hash_once,
)


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module; where there is something to try, copies the bundle and runs it again.

    It does the same in check mode, since nothing stays on the host. Where the bundle cannot be had
    or copied, what the facts say is the answer, with the reason why nothing was tried.
    """

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        """See throughline_preflight."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        wanted = arguments.pop("bundle", None)
        if not wanted:
            return self._run(arguments, task_vars)
        try:
            bundle = find_bundle(Path(wanted).expanduser())
            arguments.update(bundle=str(bundle), sha256=hash_once(bundle))
        except OSError as error:
            return _untried(self._run(arguments, task_vars), str(error))
        result = self._run(arguments, task_vars)
        if not result.pop("missing", False):
            return result
        try:
            # without pipelining the first execution has made one, which a second would orphan
            directory = self._connection._shell.tmpdir or self._make_tmp_path()
            src = self._connection._shell.join_path(directory, "bundle.tar.gz")
            self._transfer_file(str(bundle), src)
            return self._run({**arguments, "src": src}, task_vars)
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            del arguments["sha256"]
            reason = f"the bundle could not be copied: {error}"
            return _untried(self._run(arguments, task_vars), reason)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _run(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """One execution of the module on the host."""
        result: dict[str, Any] = self._execute_module(
            module_name="throughline.fleet.throughline_preflight",
            module_args=arguments,
            task_vars=task_vars,
        )
        return result


def _untried(result: dict[str, Any], reason: str) -> dict[str, Any]:
    """The module's result with the reason why nothing was tried, where it says that nothing was."""
    verdict = result.get("ansible_facts", {}).get("throughline_preflight", {})
    if "untried" in verdict and "doctor_error" not in verdict:
        verdict["untried"] = reason
    return result
