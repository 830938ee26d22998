# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The controller's half of throughline_release: find the bundle, hash it once, copy if needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import (
    find_bundle,
    hash_once,
)


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module; where the release is missing, copies the bundle and runs it again."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        """See throughline_release."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            bundle = find_bundle(Path(arguments["bundle"]).expanduser())
        except KeyError as error:
            raise AnsibleActionFail("missing required arguments: bundle") from error
        except FileNotFoundError as error:
            raise AnsibleActionFail(str(error)) from error
        arguments.update(bundle=str(bundle), sha256=hash_once(bundle))
        result = self._run(arguments, task_vars)
        if result.get("failed") or not result.pop("missing", False) or self._task.check_mode:
            return result
        try:
            # without pipelining the first execution has made one, which a second would orphan
            directory = self._connection._shell.tmpdir or self._make_tmp_path()
            src = self._connection._shell.join_path(directory, "bundle.tar.gz")
            self._transfer_file(str(bundle), src)
            return self._run({**arguments, "src": src}, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _run(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """One execution of the module on the host."""
        result: dict[str, Any] = self._execute_module(
            module_name="throughline.fleet.throughline_release",
            module_args=arguments,
            task_vars=task_vars,
        )
        return result
