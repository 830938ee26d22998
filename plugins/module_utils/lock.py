# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The lock of a host, so that one run of a playbook works on it at a time.

LOCK, which only root can read, is {"run": ID, "holder": TEXT, "controller": TEXT or null,
"pid": NUMBER, "started": NUMBER or null, "boot": ID, "taken": SECONDS, "until": SECONDS}.
What "run" to "started" mean is in plugin_utils/run.py: the controller says it of itself. Seconds
are those of the host's boot clock, which no administrator sets. A lock of another boot, or whose
time is over, counts as free.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

LOCK = "/run/throughline.lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_time():
    """Seconds since the host has booted, with those that it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id():
    """The name of this boot."""
    return BOOT_ID.read_text(encoding="ascii").strip()


@contextlib.contextmanager
def opened(path):
    """The lock's file, which no other process changes meanwhile. Makes it where it is missing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    is_there = False
    while not is_there:
        with os.fdopen(os.open(path, flags, 0o600), "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_there = is_at(file, path)  # else its holder has removed it meanwhile
            if is_there:
                yield file


def is_at(file, path):
    """Returns whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), Path(path).stat())
    except FileNotFoundError:
        return False


def holder(text, *, run):
    """The record of another run that holds the lock, or None where this run may have it."""
    try:
        record = json.loads(text)
    except ValueError:  # a new file, or one that was not completed
        return None
    ended = record["boot"] != boot_id() or record["until"] <= boot_time()
    return None if ended or record["run"] == run else record


def other_run(run, *, path=LOCK):
    """The record of another run that holds the lock, or None. Changes nothing."""
    try:
        return holder(Path(path).read_text(encoding="utf-8"), run=run)
    except FileNotFoundError:
        return None


def take(claim, *, seconds, instead_of=None, path=LOCK):
    """Takes the lock, or keeps it for so many seconds from now on.

    `claim` is what the controller says of itself. A lock of the run `instead_of` counts as free.
    Returns None, or the record of the run that holds the lock.
    """
    with opened(path) as file:
        text = file.read()
        found = holder(text, run=claim["run"])
        if found and found["run"] != instead_of:
            return found
        now = boot_time()
        record = {**claim, "boot": boot_id(), "taken": now, "until": now + seconds}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(record) + "\n")
    return None


def free(run, *, path=LOCK):
    """Frees the lock where this run holds it, or nobody does. Returns whether it was there."""
    if not Path(path).exists():
        return False
    with opened(path) as file:
        if holder(file.read(), run=run):
            return False
        Path(path).unlink()
    return True


def describe(record, *, path=LOCK):
    """The message for a host that another run works on."""
    now = boot_time()
    minutes = int(now - record["taken"]) // 60
    left = int(record["until"] - now) // 60 + 1
    return (
        f"Found another run at work on this host: {record['holder']}, for {minutes} min. Required:"
        " one run at a time. Remedy: wait until it has ended. If it was killed, remove"
        f" {path} on the host, which counts for {left} min more."
    )
