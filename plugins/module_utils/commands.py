# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The commands of a unit, and which of them may run Node.js where systemd gives no credential."""

from __future__ import annotations

import re
from pathlib import Path

MAX_BYTES = 1 << 20
START = "ExecStart"
SETTINGS = (
    "ExecCondition",
    "ExecStartPre",
    START,
    "ExecStartPost",
    "ExecReload",
    "ExecStop",
    "ExecStopPost",
)
# The release of systemd that gives credentials to all commands of a setting: to the second command
# of ExecStartPre= and ExecStart=, too, since 254 (systemd's pull request 27279), to ExecStartPost=
# since 256 (31197). It means not to give them to the other settings.
SURE_SINCE = {"ExecStartPre": 254, START: 254, "ExecStartPost": 256}
# 247 cannot start a unit with credentials, a mount namespace and a command before ExecStart= (issue
# 18116 of systemd).
STARTS_SINCE = 248
NODE = re.compile(r"node(js)?([-.\d]+)?")
# Programs that start others, which their arguments need not name.
RUNNER = re.compile(
    r"(ba|da|z|k|mk|a|c|tc|fi)?sh|busybox|make|npm|npx|yarn|yarnpkg|pnpm|pnpx|pm2|corepack"
    r"|(python|perl|ruby|php|lua|tclsh|deno|bun)[-.\d]*|env|xargs|find|timeout|nohup|nice|flock"
    r"|setsid"
)
# What systemctl shows of a command. The first argument need not be the program's name.
COMMAND = re.compile(r"path=(.*?) ; argv\[\]=\S*(.*?) ; ignore_errors=")
BETWEEN_WORDS = re.compile(r"[\s'\"`;|&()]+")


def read_text(path):
    """The text of a file, "" where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""


def commands(properties, setting):
    """The words of each command of a setting, also those inside of quotes, as shells have them.

    The first one is the program's path. Raises ValueError for a command that cannot be read.
    """
    found = []
    for value in filter(None, properties.get(setting, [])):
        match = COMMAND.search(value)
        if match is None:  # such as one with a line break
            raise ValueError(f"{setting}= has a command that cannot be read")
        path, rest = match.groups()
        found.append([path, *filter(None, BETWEEN_WORDS.split(rest))])
    return found


def names(words):
    """The names of the programs that words may be."""
    return {Path(word).name for word in words}


def is_node(words):
    """Returns whether a command begins with Node.js: itself, or a program that it interprets."""
    rest = [word for word in words if word != "/usr/bin/env"]
    if not rest:
        return False
    if NODE.fullmatch(Path(rest[0]).name):
        return True
    begin = read_text(rest[0])[:256].splitlines()
    shebang = begin[0] if begin and begin[0].startswith("#!") else ""
    return any(NODE.fullmatch(Path(word).name) for word in shebang[2:].split())


def may_run_node(words):
    """Returns whether a command may run Node.js: all may that are no program known by its name."""
    if any(NODE.fullmatch(name) or RUNNER.fullmatch(name) for name in names(words)):
        return True
    if any(read_text(word).startswith("#!") for word in words[1:] if word.startswith("/")):
        return True
    return not read_text(words[0]).startswith("\x7fELF")


def without_credential(properties, *, version):
    """(setting, words) of the commands that this release of systemd may start without it."""
    found = []
    for setting in SETTINGS:
        listed = commands(properties, setting)
        if setting == START:
            listed = listed[1:]  # the first one has it in each release
        if version < SURE_SINCE.get(setting, version + 1):
            found += [(setting, words) for words in listed]
    return found
