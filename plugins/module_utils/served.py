# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""What has served: each release that was healthy, with the files it was healthy with.

BASE/served.json, which only root may read since a configuration can hold credentials:

{"serving": RELEASE or null, "releases": {RELEASE: ENTRY}}, the one that was healthy last, and
ENTRY {"previous": RELEASE or null,          where link `previous` led
       "rolled_back_from": TEXT or null,     the release that an operator went back from
       "groups": [NAME],                     groups that were on
       "files": {PATH: TEXT or null}}        unit, drop-in and configuration; null: it was missing
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .release import linked_release

RECORD = "served.json"


def read_served(base):
    """The record; empty where nothing has been healthy yet or it cannot be read."""
    try:
        record = json.loads((Path(base) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"serving": None, "releases": {}}
    return record


def serving_entry(record):
    """The entry of what was healthy last, or None."""
    return record["releases"].get(record["serving"])


def wanted_previous(base, record, release, *, going_back=False):
    """Where link `previous` leads once `release` is current, or None for nowhere.

    To what was healthy last: an unfinished run may have left link `current` at something else.
    """
    serving, current = record["serving"], linked_release(base, "current")
    if serving == release:
        previous = serving_entry(record)["previous"]
    elif going_back:
        previous = None
    elif serving:
        previous = serving
    else:
        previous = linked_release(base, "previous") if current == release else current
    return previous if previous and (Path(base) / "releases" / previous).is_dir() else None


def note_served(base, release, entry):
    """Writes down that a release is healthy; forgets the releases that no link leads to."""
    kept = {linked_release(base, "current"), linked_release(base, "previous")}
    entries = {**read_served(base)["releases"], release: entry}
    entries = {name: entries[name] for name in sorted(entries) if name in kept}
    text = json.dumps({"serving": release, "releases": entries}, indent=1) + "\n"
    path = Path(base) / RECORD
    if read_file(path) != text:
        write_file(path, text, mode=0o600)


def read_file(path):
    """A file's text, or None where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def write_file(path, text, *, mode=0o644):
    """Write a file that is whole at any time, or with None remove it; True if it was different.

    Owner and mode of a file that is there stay.
    """
    path = Path(path)
    if read_file(path) == text:
        return False
    if text is None:
        path.unlink()
        return True
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if path.exists():
            found = path.stat()
            os.fchown(descriptor, found.st_uid, found.st_gid)
            mode = found.st_mode & 0o7777
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
    work.rename(path)
    return True
