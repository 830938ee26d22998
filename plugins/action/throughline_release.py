# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The action of throughline_release: it finds the bundle and copies it where it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import (
    BundleAction,
    find_bundle,
    hash_once,
)
from ansible_collections.throughline.fleet.plugins.plugin_utils.run import this_run


class ActionModule(BundleAction):
    """Runs the module. Where the release is missing, copies the bundle and runs it again."""

    MODULE = "throughline.fleet.throughline_release"

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
        arguments.update(bundle=str(bundle), sha256=hash_once(bundle), run=this_run()["run"])
        result = self.run_module(arguments, task_vars)
        if result.get("failed") or not result.pop("missing", False) or self._task.check_mode:
            return result
        return self.run_with_bundle(bundle, arguments, task_vars)
