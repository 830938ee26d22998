"""Opens a path of a process as that process would, not as the agent would.

A symlink in a container that begins with a slash means the container's root. Looked up through
/proc/PID/root the kernel takes ours, and the agent would probe a library of the host. openat2(2)
can do this in one call, but `RestrictSUIDSGID=` of the unit refuses it (ENOSYS: a seccomp filter
cannot look into its argument). So the path is walked here, one name at a time.
"""

from __future__ import annotations

import errno
import os
import stat

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_SYMLINKS = 40  # as the kernel: path_resolution(7)
_MAX_PARTS = 256


def below(root: int, name: str) -> int:
    """Opens `name` (O_PATH) with the directory `root` as the root: `..` does not leave it."""
    return _walk(os.dup(root), name, symlinks=_MAX_SYMLINKS)


def without_symlinks(name: str) -> int:
    """Opens an absolute path (O_PATH) in which no part is a symlink, else ELOOP."""
    return _walk(os.open("/", _FLAGS), name, symlinks=0)


def _walk(root: int, name: str, *, symlinks: int) -> int:
    """Takes `root` over. What has been opened on the way down is what `..` leads back to."""
    opened = [root]
    rest = name.split("/")[::-1]
    try:
        while rest:
            part = rest.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(opened) > 1:
                    os.close(opened.pop())
                continue
            opened.append(os.open(part, _FLAGS, dir_fd=opened[-1]))
            if not stat.S_ISLNK(os.fstat(opened[-1]).st_mode):
                if len(opened) > _MAX_PARTS:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
                continue
            if not symlinks:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            symlinks -= 1
            link = opened.pop()
            try:
                target = os.readlink("", dir_fd=link)
            finally:
                os.close(link)
            if target.startswith("/"):
                while len(opened) > 1:
                    os.close(opened.pop())
            rest += target.split("/")[::-1]
        return opened.pop()
    finally:
        for fd in opened:
            os.close(fd)
