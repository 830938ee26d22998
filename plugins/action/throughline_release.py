# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The action of throughline_release: it finds the bundle and copies it where it is needed."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import BundleAction
from ansible_collections.throughline.fleet.plugins.plugin_utils.run import this_run
from ansible_collections.throughline.fleet.plugins.plugin_utils.source import (
    OPTIONS,
    SourceError,
    find_source,
)


class ActionModule(BundleAction):
    """Runs the module. Where the release is missing, copies the bundle and runs it again."""

    MODULE = "throughline.fleet.throughline_release"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        """See throughline_release."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        options = {name: arguments.pop(name, None) for name in OPTIONS}
        facts = (task_vars or {}).get("ansible_facts", {}).get("throughline_preflight", {})
        try:
            source = find_source(options, facts.get("host", {}).get("arch"))
        except (OSError, SourceError) as error:
            raise AnsibleActionFail(str(error)) from error
        arguments.update(
            bundle=source.name, sha256=source.sha256, url=source.url, run=this_run()["run"]
        )
        result = self.run_module(arguments, task_vars)
        if result.get("failed") or not result.pop("missing", False) or self._task.check_mode:
            return result
        return self.run_with_bundle(source.path, arguments, task_vars)
