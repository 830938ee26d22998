# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The record of each release that was healthy on this host, and of the files it ran with.

BASE/served.json, which only root can read:

{"serving": RELEASE or null, "releases": {RELEASE: ENTRY}}, where RELEASE was healthy last, and
ENTRY {"previous": RELEASE or null,          target of the link `previous`
       "rolled_back_from": TEXT or null,     the release that an operator went back from
       "groups": [NAME],                     the groups that were on
       "files": {PATH: TEXT or null},        unit and drop-in; null: there was no such file
       "config": CONFIG or null}             null: not known
CONFIG {"path": PATH, "sha256": HEX or null, "text": TEXT or null}: the configuration without its
credentials. "sha256" is null where there was no configuration. "text" is null where the credentials
cannot be told from the rest.

A rotated credential must not stay on the host. So the complete configuration that was healthy last
is kept only while another one replaces it: in BASE/config.replaced, which only root can read, from
the replacement until the next configuration is healthy or the old one is restored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .credentials import put_back, take_out
from .files import read_file, write_file
from .release import linked_release

RECORD = "served.json"
REPLACED = "config.replaced"


def read_served(base):
    """The record; an empty one where there is none or it cannot be read."""
    try:
        record = json.loads((Path(base) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"serving": None, "releases": {}}
    for entry in record["releases"].values():
        if "config" not in entry:  # an earlier version wrote it, with all credentials
            files = entry.get("files", {})
            paths = [path for path in files if Path(path).suffix in (".yaml", ".yml")]
            entry["config"] = described(paths[0], files.pop(paths[0])) if paths else None
    return record


def described(path, text):
    """CONFIG of an entry, for a configuration with this text (None: there is none)."""
    return {
        "path": str(path),
        "sha256": None if text is None else text_sha256(text),
        "text": None if text is None else take_out(text),
    }


def text_sha256(text):
    """Hexadecimal SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_config_in_place(entry):
    """Returns whether the configuration is the one of the entry, or the entry does not know it."""
    config = entry.get("config")
    if config is None:
        return True
    present = read_file(config["path"])
    return config["sha256"] == (None if present is None else text_sha256(present))


def keep_replaced(base, record):
    """Keeps the complete configuration that was healthy last. Call it before replacing that."""
    entry = serving_entry(record)
    config = entry.get("config") if entry else None
    if config and config["sha256"] and is_config_in_place(entry):
        write_file(Path(base) / REPLACED, read_file(config["path"]), mode=0o600)


def drop_replaced(base):
    """Removes the replaced configuration. Call it once the present one is healthy or restored."""
    write_file(Path(base) / REPLACED, None)


def config_text(base, entry):
    """The configuration that an entry was healthy with: (text, None), or (None, why it is lost).

    The text is None where there was no configuration. A configuration that is kept only without
    credentials gets those of the present one.
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
            f"the present one has no {', '.join(lacking)}, and replaced credentials are not kept"
        )
    return text, None


def serving_entry(record):
    """The entry of the release that was healthy last, or None."""
    return record["releases"].get(record["serving"])


def wanted_previous(base, record, release, *, going_back=False):
    """The target of the link `previous` once `release` is current, or None for no link.

    It is the release that was healthy last: the link `current` may be of an unfinished run.
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
    """Records that a release is healthy, and drops the entries of releases without a link."""
    kept = {linked_release(base, "current"), linked_release(base, "previous")}
    entries = {**read_served(base)["releases"], release: entry}
    entries = {name: entries[name] for name in sorted(entries) if name in kept}
    text = json.dumps({"serving": release, "releases": entries}, indent=1) + "\n"
    path = Path(base) / RECORD
    if read_file(path) != text:
        write_file(path, text, mode=0o600)
