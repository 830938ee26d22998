# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Text files that are complete at any time: a reader sees the old text or the new one."""

from __future__ import annotations

import os
from pathlib import Path

DIRECTORY_MODE = 0o755


def read_file(path):
    """A file's text, or None where there is no such file. Bytes that are not UTF-8 are kept."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def make_directory(path):
    """Makes a directory and its missing parents. Returns whether anything changed.

    All can pass through the new directories and the last one, whatever umask root has.
    """
    path = Path(path)
    changed = not path.is_dir()
    if changed:
        if not path.parent.is_dir():
            make_directory(path.parent)
        path.mkdir(exist_ok=True)
    if path.stat().st_mode & 0o7777 != DIRECTORY_MODE:
        path.chmod(DIRECTORY_MODE)
        changed = True
    return changed


def write_file(path, text, *, mode=0o644):
    """Writes a file, or removes it where the text is None. Returns whether anything changed.

    An existing file keeps its owner and mode.
    """
    path = Path(path)
    if read_file(path) == text:
        return False
    if text is None:
        path.unlink()
        return True
    if not path.parent.is_dir():
        make_directory(path.parent)
    uid, gid = -1, -1
    if path.exists():
        found = path.stat()
        uid, gid, mode = found.st_uid, found.st_gid, found.st_mode & 0o7777
    write_draft(path, text, uid=uid, gid=gid, mode=mode).rename(path)
    return True


def write_draft(path, text, *, uid, gid, mode):
    """Writes the text to a file beside `path` and returns its path; -1 leaves uid or gid alone.

    The draft may hold credentials. So only root can read it while it is written, and it is removed
    where it cannot be completed.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    if draft.exists():  # a killed run with the same process id left it
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        draft.unlink()
        raise
    return draft
