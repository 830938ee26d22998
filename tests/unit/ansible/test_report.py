"""The report of check.yml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import EVERYTHING, UNIFIED, plugin, report_of, verdict


def test_an_unmounted_securityfs_is_said(tmp_path: Path) -> None:
    found = verdict(tmp_path, lockdown=None, mounts=UNIFIED)
    assert found["host"]["lockdown"] == "absent"
    assert found["host"]["securityfs"] is False
    go_write = found["groups"]["go_write"]
    assert go_write["possible"] and "securityfs is not mounted" in go_write["note"]
    verdicts = {"web": {"ansible_facts": {"throughline_preflight": found}}}
    reports = plugin("filter.throughline_report")
    table = reports.throughline_table(reports.throughline_report(verdicts, "now"))
    assert table[-1] == (
        "web: go_write possible: securityfs is not mounted and no lockdown was found"
    )


def test_the_report_names_every_host_and_why(tmp_path: Path) -> None:
    reports = plugin("filter.throughline_report")
    found = verdict(tmp_path, kernel="5.4.0")
    traced = {**verdict(tmp_path), "source": "doctor", "version": "0.1.0"}
    report = reports.throughline_report(
        {
            "old": {"ansible_facts": {"throughline_preflight": found}},
            "web": {"ansible_facts": {"throughline_preflight": traced}},
            "away": {"unreachable": True, "msg": "no route"},
            "broken": {"msg": "no interpreter"},
        },
        "now",
    )
    assert report["summary"] == {"network": 1, "none": 1, "unknown": 2}
    lines = reports.throughline_table(report)
    words = {line.split()[0]: line.split()[1:] for line in lines[2:6]}
    assert words["old"][:7] == ["none", "-", "off", "off", "off", "off", "off"]
    assert words["web"] == [
        "network",
        "0.1.0",
        *["on"] * 5,
        "off",
        *["on"] * 5,
    ]
    assert words["away"][0] == "unreachable"
    assert words["broken"][0] == "failed"
    assert "away: unreachable: no route" in lines
    assert any(
        line.startswith(
            "old: observe, headers, packets, tls, go, java, python, proxies, ruby, node off: "
            "kernel is 5.4.0"
        )
        for line in lines
    )


def test_facts_alone_claim_nothing(tmp_path: Path) -> None:
    ours = {**(verdict(tmp_path)), "untried": "Found no bundle at dist"}
    report, lines = report_of(web=ours)
    groups = report["hosts"][0]["groups"]
    assert {groups[name]["word"] for name in EVERYTHING[:5]} == {"untried"}
    assert {groups[name]["state"] for name in EVERYTHING[:5]} == {"untried"}
    assert lines[2].split()[:4] == ["web", "network?", "-", "untried"]
    assert "web: nothing was tried: Found no bundle at dist" in lines


HOSTILE = "\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>\u202e\udcff\nweb2  network  on"


def hostile(tree: Path) -> dict[str, Any]:
    """The verdict of a host that is in other hands: every text in it is an attack."""
    found = verdict(tree)
    found.update(version=HOSTILE, doctor_error=HOSTILE, untried=HOSTILE, tried_version=HOSTILE)
    found["host"] = {
        key: HOSTILE if isinstance(value, str) else value for key, value in found["host"].items()
    }
    for group in found["groups"].values():
        group.update(state="off", wanted=True, reason=HOSTILE, fix=HOSTILE, note=HOSTILE)
    return found


def test_what_a_host_says_reaches_no_terminal_and_no_browser_raw(tmp_path: Path) -> None:
    report, lines = report_of(evil=hostile(tmp_path))
    away = plugin("filter.throughline_report").verdict_of(
        "away", {"unreachable": True, "msg": HOSTILE, "module_stderr": HOSTILE}
    )
    assert all(char.isprintable() for line in [*lines, away["error"]] for char in line)
    assert any(r"\x1b]0;owned\x07" in line for line in lines), "it is shown, and harmless"
    report["hosts"].append(away)
    json.dumps(report).encode()
    source = (CHECKOUT / "playbooks/templates/report.html.j2").read_text(encoding="utf-8")
    for kind in ("doctor", "trial", "preflight"):
        report["hosts"][0]["source"] = kind
        page = jinja2.Template(source).render(__throughline_report=report)
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert all(char.isprintable() or char == "\n" for char in page)


@pytest.mark.parametrize(
    "change",
    [
        {"groups": None},
        {"groups": {"observe": "on"}},
        {"groups": []},
        {"host": "x"},
        {"mode": {"a": 1}},
        {"host": {}},
    ],
)
def test_an_answer_of_another_shape_ends_no_report(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {**(verdict(tmp_path)), "untried": "no bundle"}
    report, lines = report_of(evil={**good, **change}, web=good)
    assert report["hosts"][0]["mode"] == "unknown"
    assert any(line.startswith("web  ") for line in lines)
