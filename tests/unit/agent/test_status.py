"""The content of the status file: its keys, and when the agent is healthy."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter

import pytest

from tests.fixtures.paths import CHECKOUT
from throughline.agent.parents import ParentCounts
from throughline.agent.status import (
    FilesStatus,
    KindCounts,
    PacketsStatus,
    ServiceCounts,
    Status,
)
from throughline.bpf.tc import Place
from throughline.export.outcome import ExportStatus
from throughline.features.programs import Attached
from throughline.features.state import LeftOut, failed, off, on
from throughline.text import to_json

PLACE = Place("eth0", 2, "tcx", None)
REFUSED = LeftOut("tl_tick", "parent by threads", "no")
STATUS = Status(
    version="0.1.0",
    pid=7,
    started_unix=1.5,
    counting_since_unix_ns=2,
    updated_unix=3.5,
    missing=(),
    absent_cgroups=("/a",),
    fionread_broken=True,
    legacy_programs=False,
    uprobes="process",
    groups={"observe": on((REFUSED,)), "packets": off("nobody asked", "ask")},
    attached=(Attached("tl_egress", "cgroup_skb", "/system.slice", 5, "tl_egress@system+2eslice"),),
    packets=PacketsStatus(("10.1.0.0/16",), ("/a",), (PLACE,), {"tun0": "no"}),
    files={
        "tls": FilesStatus(({"path": "/a"},)),
        "go": None,
        "java": None,
        "ruby": None,
        "node": None,
    },
    counters={"pipelined": 1},
    services={
        "shop": ServiceCounts(
            "shop.service",
            {"server": KindCounts(5, 1, 2)},
            ParentCounts(
                "shop.service",
                Counter(proven=7, likely=0, not_proven=2, nothing=0),
                Counter(answer=3, read=0),
            ),
        ),
        "quiet": ServiceCounts("quiet.service", {}),
    },
    export=ExportStatus("idle", 1, 0, 0, 0, 0, {}, ""),
)


def test_the_file_has_the_keys_that_users_and_roles_read() -> None:
    assert json.loads(to_json(STATUS.as_json())) == {
        "version": "0.1.0",
        "pid": 7,
        "started_unix": 1.5,
        "counting_since_unix_ns": 2,
        "updated_unix": 3.5,
        "healthy": True,
        "missing": [],
        "absent_cgroups": ["/a"],
        "fionread_broken": True,
        "legacy_programs": False,
        "uprobes": "process",
        "groups": {
            "observe": {
                "state": "on",
                "wanted": True,
                "reason": "",
                "fix": "",
                "without": [
                    {"program": "tl_tick", "gives": "parent by threads", "reason": "no"},
                ],
            },
            "packets": {
                "state": "off",
                "wanted": False,
                "reason": "nobody asked",
                "fix": "ask",
                "without": [],
            },
        },
        "attached": {
            "programs": [
                {"name": "tl_egress", "type": "cgroup_skb", "where": "/system.slice", "id": 5}
            ]
        },
        "packets": {
            "peers": ["10.1.0.0/16"],
            "new_connections": ["/a"],
            "older_connections": [{"interface": "eth0", "by": "tcx", "priority": None}],
            "refused": {"tun0": "no"},
        },
        "tls": {"files": [{"path": "/a"}]},
        "go": None,
        "java": None,
        "ruby": None,
        "node": None,
        "counters": {"pipelined": 1},
        "services": {
            "shop": {
                "unit": "shop.service",
                "server": {"requests": 5, "errors": 1, "sampled": 2},
                "parents": {
                    "proven": 7,
                    "likely": 0,
                    "none": {"not_proven": 2},
                    "contradicted": {"answer": 3},
                },
            },
            "quiet": {"unit": "quiet.service"},
        },
        "export": STATUS.export.as_json(),
    }


def test_the_page_has_the_same_keys() -> None:
    page = (CHECKOUT / "docs/reference/json.md").read_text(encoding="utf-8")
    section = page.partition("## throughline status --json")[2].partition("\n## ")[0]
    section, _, of_parents = section.partition("| of `parents` |")
    of_parents, _, of_units = of_parents.partition("| of `units` |")
    unit = ["processes", "preloaded", "preload", "reason"]  # see runtimes/node/provider.py
    assert (
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", of_units, re.MULTILINE))) == unit
    )
    assert set(re.findall(r"^\| `(\w+)`", of_parents, re.MULTILINE)) == set(
        ParentCounts("").as_json()
    )
    cells = re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)
    assert {key for cell in cells for key in re.findall(r"`(\w+)`", cell)} == set(STATUS.as_json())


@pytest.mark.parametrize(
    ("changed", "healthy"),
    [
        ({}, True),
        ({"missing": ("tl_egress",)}, False),
        ({"groups": {"observe": on(), "tls": failed("why", "how")}}, False),
        ({"groups": {"observe": on(), "tls": off("why", "how")}}, True),
    ],
)
def test_what_is_wanted_and_off_makes_it_degraded(
    changed: dict[str, object], healthy: bool
) -> None:
    status = dataclasses.replace(STATUS, **changed)  # type: ignore[arg-type]
    assert status.healthy == healthy and status.as_json()["healthy"] == healthy
