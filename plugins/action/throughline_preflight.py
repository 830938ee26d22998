# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The action of throughline_preflight: it copies the bundle to hosts that try it."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import BundleAction
from ansible_collections.throughline.fleet.plugins.plugin_utils.source import (
    OPTIONS,
    SourceError,
    find_source,
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
        options = {name: arguments.pop(name, None) for name in OPTIONS}
        if not options["bundle"] and not options["bundle_url"]:
            return self.run_module(arguments, task_vars)
        result = self.run_module({**arguments, "ask": True}, task_vars)
        if not result.pop("missing", False):
            return result
        host = result["ansible_facts"]["throughline_preflight"]["host"]
        try:
            source = find_source(options, host["arch"])
        except (OSError, SourceError) as error:
            return self._untried(arguments, task_vars, str(error))
        wanted = {"bundle": source.name, "sha256": source.sha256, "url": source.url}
        try:
            return self.run_with_bundle(source.path, {**arguments, **wanted}, task_vars)
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            return self._untried(arguments, task_vars, f"the bundle could not be copied: {error}")

    def _untried(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None, reason: str
    ) -> dict[str, Any]:
        """The module's result without a bundle, with the reason why nothing was tried."""
        result = self.run_module(arguments, task_vars)
        verdict = result.get("ansible_facts", {}).get("throughline_preflight", {})
        if "untried" in verdict and "doctor_error" not in verdict:
            verdict["untried"] = reason
        return result
