# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""What has served: each release that was healthy, with the files it was healthy with.

BASE/served.json, which only root may read:

{"serving": RELEASE or null, "releases": {RELEASE: ENTRY}}, the one that was healthy last, and
ENTRY {"previous": RELEASE or null,          where link `previous` led
       "rolled_back_from": TEXT or null,     the release that an operator went back from
       "groups": [NAME],                     groups that were on
       "files": {PATH: TEXT or null},        unit and drop-in; null: it was missing
       "config": CONFIG or null}             null: not known
CONFIG {"path": PATH, "sha256": HEX or null, "text": TEXT or null}: the configuration without its
credentials; null in "sha256": it was missing, in "text": they cannot be told from the rest.

A credential that was rotated must not stay on the host. So the configuration that was healthy last
is only there as a whole while another one takes its place: BASE/config.replaced, for root only,
from when it is replaced until the next is healthy or it is back.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from .credentials import put_back, take_out
from .release import linked_release

RECORD = "served.json"
REPLACED = "config.replaced"


def read_served(base):
    """The record; empty where nothing has been healthy yet or it cannot be read."""
    try:
        record = json.loads((Path(base) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"serving": None, "releases": {}}
    for entry in record["releases"].values():
        if "config" not in entry:  # written by an earlier version, with all credentials
            files = entry.get("files", {})
            paths = [path for path in files if Path(path).suffix in (".yaml", ".yml")]
            entry["config"] = described(paths[0], files.pop(paths[0])) if paths else None
    return record


def described(path, text):
    """A configuration as an entry has it."""
    return {
        "path": str(path),
        "sha256": None if text is None else text_sha256(text),
        "text": None if text is None else take_out(text),
    }


def text_sha256(text):
    """Hexadecimal SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_config_in_place(entry):
    """Is the configuration the one that an entry was healthy with, as far as that is known?"""
    config = entry.get("config")
    if config is None:
        return True
    present = read_file(config["path"])
    return config["sha256"] == (None if present is None else text_sha256(present))


def keep_replaced(base, record):
    """Before the configuration is replaced: keeps the one that was healthy last as a whole."""
    entry = serving_entry(record)
    config = entry.get("config") if entry else None
    if config and config["sha256"] and is_config_in_place(entry):
        write_file(Path(base) / REPLACED, read_file(config["path"]), mode=0o600)


def drop_replaced(base):
    """Once a configuration is healthy, or back: the one that it replaced is not needed."""
    write_file(Path(base) / REPLACED, None)


def config_text(base, entry):
    """The configuration that an entry was healthy with: (text, None), or (None, why it is lost).

    The text is None where there was none. What is not kept as a whole has the present credentials.
    """
    config = entry["config"]
    if config["sha256"] is None:
        return None, None
    for path in (Path(config["path"]), Path(base) / REPLACED):
        text = read_file(path)
        if text is not None and text_sha256(text) == config["sha256"]:
            return text, None
    if config["text"] is None:
        return None, "it was not in the form that the roles write, and is not kept"
    text, lacking = put_back(config["text"], read_file(config["path"]) or "")
    if lacking:
        return None, (
            f"the present one has no {', '.join(lacking)}, and credentials that were replaced are"
            " not kept"
        )
    return text, None


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
    """A file's text, or None where there is no such file. Bytes that are no UTF-8 survive."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
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
    try:
        write_new(work, text, path, mode)
        work.rename(path)
    except BaseException:
        if work.exists():
            work.unlink()  # it may hold credentials
        raise
    return True


def write_new(work, text, path, mode):
    """The file that is to take the place of `path`, with its owner and mode where it is there."""
    if work.exists():  # of a run that was killed, in a directory that only root may write to
        work.unlink()
    descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        if path.exists():
            found = path.stat()
            os.fchown(descriptor, found.st_uid, found.st_gid)
            mode = found.st_mode & 0o7777
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
