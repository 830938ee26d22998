# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The bundle on the controller: its SHA-256, and its copy to a host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.throughline.fleet.plugins.module_utils.release import file_sha256
from ansible_collections.throughline.fleet.plugins.plugin_utils.python import run_module


def hash_once(bundle: Path) -> str:
    """SHA-256 of the bundle, computed once for each run of ansible-playbook, not for each host.

    Ansible forks a worker for each task of a host. The workers share the run's temporary directory.
    """
    status = bundle.stat()
    key = f"{bundle}:{status.st_size}:{status.st_mtime_ns}"
    cache = Path(constants.DEFAULT_LOCAL_TMP) / "throughline-bundle.json"
    if cache.is_file():
        known: dict[str, str] = json.loads(cache.read_text(encoding="utf-8"))
        if key in known:
            return known[key]
    sha256 = str(file_sha256(bundle))
    work = cache.with_suffix(f".{os.getpid()}")
    work.write_text(json.dumps({key: sha256}), encoding="utf-8")
    work.rename(cache)
    return sha256


class BundleAction(ActionBase):  # type: ignore[misc]
    """Base of actions whose module runs without the bundle, and again with it where it needs it."""

    TRANSFERS_FILES = True
    MODULE = ""  # the full name of the module

    def run_module(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Runs the module on the host once."""
        return run_module(self, self.MODULE, arguments, task_vars)

    def run_with_bundle(
        self, bundle: Path | None, arguments: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Copies the bundle to the host, and runs the module with its path there as `src`.

        Without a file on the controller the module fetches it from its `url`.
        """
        if bundle is None:
            return self.run_module({**arguments, "fetch": True}, task_vars)
        try:
            # Without pipelining the first run has made a directory. A second one would orphan it.
            directory = self._connection._shell.tmpdir or self._make_tmp_path()
            src = self._connection._shell.join_path(directory, "bundle.tar.gz")
            self._transfer_file(str(bundle), src)
            return self.run_module({**arguments, "src": src}, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
