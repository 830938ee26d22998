"""The namespaces that the agent is in."""

from __future__ import annotations

from pathlib import Path

_FIRST = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h


def pid_namespace(proc: Path = Path("/proc")) -> int:
    """The inode of the agent's pid namespace; 0 if it is the host's first one. Raises OSError."""
    inode = (proc / "self/ns/pid").stat().st_ino
    return 0 if inode == _FIRST else inode
