# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The controller's half of throughline_release: find the bundle, hash it once, copy if needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.throughline.fleet.plugins.module_utils.release import file_sha256

PATTERN = "throughline-*-linux-*.tar.gz"


def find_bundle(path: Path) -> Path:
    """The bundle itself, or the newest in a directory. Raises FileNotFoundError with the remedy."""
    if path.is_file():
        return path
    bundles = sorted(path.glob(PATTERN), key=lambda bundle: bundle.stat().st_mtime)
    if not bundles:
        raise FileNotFoundError(
            f"Found no bundle at {path}, required a file or a directory with {PATTERN}."
            " Remedy: run `make bundle`, or set throughline_bundle."
        )
    return bundles[-1]


def hash_once(bundle: Path) -> str:
    """SHA-256 of the bundle, computed once per ansible-playbook run and not once per host.

    Hosts are served by forked workers; they share the run's own temporary directory.
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
            directory = self._make_tmp_path()
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
