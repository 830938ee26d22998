"""Archives whose bytes depend only on their content: order, time, owner and mode are fixed."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping

# 1980-01-01 00:00 UTC: the same for every build, and a valid time in every archive format.
MTIME = 315532800


def tar(files: Mapping[str, bytes], *, executable: frozenset[str] = frozenset()) -> bytes:
    """A POSIX tar of `files` (path to content), with an entry for every folder, sorted."""
    folders = {
        path[:position] for path in files for position, char in enumerate(path) if char == "/"
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folders | files.keys()):
            entry = tarfile.TarInfo(path)
            entry.mtime = MTIME
            entry.uname = entry.gname = "root"
            if path in folders:
                entry.type = tarfile.DIRTYPE
                entry.mode = 0o755
                archive.addfile(entry)
            else:
                entry.size = len(files[path])
                entry.mode = 0o755 if path in executable else 0o644
                archive.addfile(entry, io.BytesIO(files[path]))
    return buffer.getvalue()


def compress_gzip(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=9, mtime=0)
