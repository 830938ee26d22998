"""Texts that others choose are escaped before they reach a terminal, the journal or a backend."""

from __future__ import annotations

import json
import logging
import os

import pytest

from throughline.commands import doctor, status
from throughline.commands.output import text as printed
from throughline.text import Formatter, printable, to_json, utf8

ODD = os.fsdecode(b"a\xff\x1b[2J\n\xc2\x9b31m\xe2\x80\xae\xc3\xa9 b")


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert utf8("/café") == "/café"
    assert utf8(os.fsdecode(b"a\xffb\xc3")) == "a\ufffdb\ufffd"
    assert utf8("\ud800x") == "\ufffdx"


def test_a_terminal_gets_what_it_can_show() -> None:
    assert printable("/café 日本 x") == "/café 日本 x"
    assert printable(ODD) == r"a\xff\x1b[2J\n\x9b31m\u202eé b"
    assert printable("\ud800\x7f") == r"\ud800\x7f"


def test_json_is_what_every_parser_takes() -> None:
    text = to_json({ODD: [ODD, "𝄞", '\\udcff"', 3]})
    assert text.isascii() and "\x1b" not in text
    found = json.loads(text)
    clean = ODD.replace("\udcff", "\ufffd")
    assert found == {clean: [clean, "𝄞", '\\udcff"', 3]}
    json.dumps(found, ensure_ascii=False).encode("utf-8")


def test_a_log_record_is_one_line() -> None:
    formatter = Formatter("%(levelname)s %(message)s")
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "probed %s", "args": (ODD,)})
    assert formatter.format(record) == r"INFO probed a\xff\x1b[2J\n\x9b31m\u202eé b"
    try:
        raise ValueError("one\nERROR forged \x1b[2J")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    lines = formatter.format(record).split("\n")
    assert lines[0].startswith("INFO ") and all(line.startswith("  ") for line in lines[1:])
    assert lines[-1] == r"  ERROR forged \x1b[2J"


@pytest.mark.parametrize("forbidden", ["\x1b", "\u202e", "\x9b", "\udcff"])
def test_reports_for_people_escape_names(forbidden: str) -> None:
    file = {"path": ODD, "programs": ["x"], "processes": 1, "single_stepped": False, "refused": ""}
    shown = {
        "version": "0.1.0",
        "pid": 1,
        "updated_unix": 1.0,
        "missing": [ODD],
        "absent_cgroups": [ODD],
        "groups": {"observe": {"state": "off", "wanted": True, "reason": ODD, "fix": ODD}},
        "attached": {"programs": [{"name": "tl_x", "type": "tc", "where": ODD}]},
        "packets": {
            "peers": [],
            "new_connections": [ODD],
            "older_connections": [{"interface": ODD, "by": "tcx", "priority": None}],
            "refused": {ODD: ODD},
        },
        "tls": {"files": [file]},
        "go": {"files": [{**file, "version": ODD}]},
        "services": {ODD: {"unit": ODD, "server": {"requests": 1}}},
        "export": {"last_error": ODD, "dropped": {}},
        "counters": {},
    }
    text = printed(status.lines(shown))
    assert forbidden not in text
    assert text.count("a\\xff\\x1b[2J\\n") > 10
    host = dict.fromkeys(
        ("kernel", "arch", "btf", "cgroup_layout", "cgroup2", "bpffs", "python", "lockdown"), ODD
    )
    report = {
        "version": "0",
        "host": {**host, "capabilities": [ODD], "securityfs": True},
        "agent": {"running": False},
        "groups": shown["groups"],
        "mode": "none",
        "notes": [ODD],
    }
    text = printed(doctor.lines(report))
    assert forbidden not in text
