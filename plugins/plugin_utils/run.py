# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""This run of ansible-playbook, as the lock of a host names it."""

from __future__ import annotations

import getpass
import os
import platform
from pathlib import Path
from typing import Any

from ansible import constants


def this_run() -> dict[str, Any]:
    """The claim of this run: its id, its holder for people, and its process.

    Ansible forks a worker for each task of a host. They share their parent and the run's temporary
    directory, whose name no other run of this controller has.
    """
    pid = os.getppid()
    return {
        "run": f"{platform.node()} {Path(constants.DEFAULT_LOCAL_TMP).name}",
        "holder": f"{user()} on {platform.node()} (process {pid})",
        "controller": controller(),
        "pid": pid,
        "started": start_time(pid),
    }


def user() -> str:
    """Who runs Ansible, for people. In a container it may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def controller() -> str | None:
    """The name of this boot and of this namespace of processes, or None outside of Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def has_ended(claim: dict[str, Any]) -> bool:
    """Returns whether a run has certainly ended: it was one of this machine, and is not there.

    Of a run of another controller that cannot be known.
    """
    if claim["controller"] is None or claim["controller"] != controller():
        return False
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # a process of another user
        pass
    return start_time(claim["pid"]) not in (None, claim["started"])
