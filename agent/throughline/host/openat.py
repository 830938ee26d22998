"""Opens a path as another process would, with that process's root directory.

An absolute symlink in a container refers to the container's root. When the agent opens it below
/proc/PID/root, the kernel takes the root of the agent, and the agent would probe a library of the
host. openat2(2) can do this in one call, but `RestrictSUIDSGID=` of the unit refuses that call
(ENOSYS: a seccomp filter cannot read its argument). So this module opens one name at a time.
"""

from __future__ import annotations

import errno
import os
import stat

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_SYMLINKS = 40  # the kernel's limit, see path_resolution(7)
_MAX_PARTS = 256


def below(root: int, name: str) -> int:
    """Opens `name` (O_PATH) with `root` as the root directory: `..` does not leave it."""
    return _walk(os.dup(root), name, symlinks=_MAX_SYMLINKS)


def without_symlinks(name: str) -> int:
    """Opens an absolute path (O_PATH). Raises ELOOP when a part of it is a symlink."""
    return _walk(os.open("/", _FLAGS), name, symlinks=0)


def _walk(root: int, name: str, *, symlinks: int) -> int:
    """Opens one name after the other, and closes `root`. `..` returns to the directory before."""
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
