"""The systemd unit of a cgroup, from the cgroup's path below the cgroup2 mount.

A cgroup's owner chooses the names below it: any bytes except a slash, a line feed and zero.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

UNIT_SUFFIXES = (".service", ".scope")
_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")


def unescape(name: str) -> str:
    r"""A unit name with `\x2d` and the like resolved, see systemd-escape(1).

    The escapes are bytes of UTF-8. A name that would not be printable stays as it is.
    """
    if "\\" not in name:
        return name
    data = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(name))
    found = os.fsdecode(data)
    return found if found.isprintable() else name


def unit_path(path: str) -> str:
    """The part of a cgroup's path that ends with its innermost .service or .scope, else ""."""
    parts = PurePosixPath(path).parts
    for end in range(len(parts), 0, -1):
        if parts[end - 1].endswith(UNIT_SUFFIXES):
            return "/".join(parts[:end])
    return ""


def unit_name(path: str) -> str:
    """The escaped name of the unit that the cgroup at `path` belongs to, "" outside of any unit."""
    return unit_path(path).rpartition("/")[2]
