"""docs/reference/go-versions.md, and whether the agent follows only what it says was run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fixtures.go import tested
from throughline.runtimes.go.releases import GRPC, MODULES, NEWEST_MINOR, OLDEST_MINOR, X_NET

GRPC_SERVER = {"what": "grpc", "go": "go1.22.10", "modules": {GRPC: "v1.64.1"}, "flags": []}
WEB = {"what": "https/2", "go": "go1.27.3", "modules": {}, "flags": ["-ldflags=-s -w"]}


def entry(*programs: object, writes: bool = False) -> dict[str, object]:
    return {"day": "2026-11-26", "kernel": "6.12", "writes": writes, "programs": programs}


def test_a_page() -> None:
    analysed = {**WEB, "what": tested.ANALYSED, "flags": ["-trimpath", "-ldflags=-s -w"]}
    page = tested.markdown(
        {
            "one": entry(GRPC_SERVER, WEB),
            "two": entry({**WEB, "flags": []}, writes=True),
            "three": entry(analysed, {**analysed, "flags": []}),
        }
    )
    lines = page.splitlines()
    assert "| 1.22.10 |  | grpc (plain) |  |" in lines
    row = "| 1.27.3 | plain, `-trimpath` stripped | https/2 (stripped) | https/2 (plain) |"
    assert row in lines
    assert "| 1.64.1 |  | grpc (plain) |  |" in lines
    assert tested.bounds() in lines


def test_a_test_that_has_failed_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "build" / "tested.json"
    tested.merge({"one": entry(WEB), "two": entry(WEB)}, file)
    tested.merge({"two": entry()}, file)
    assert list(json.loads(file.read_text())) == ["one"]


@pytest.mark.parametrize(
    ("name", "releases"),
    [
        ("Go", [(1, minor) for minor in range(OLDEST_MINOR, NEWEST_MINOR + 1)]),
        (
            f"`{GRPC}`",
            [(1, minor) for minor in range(MODULES[GRPC].oldest[1], MODULES[GRPC].newest[1] + 1)],
        ),
        (f"`{X_NET}`", [(0, minor) for minor in range(1, MODULES[X_NET].newest[1] + 1)]),
    ],
)
def test_what_is_followed_was_analysed_and_run(name: str, releases: list[tuple[int, int]]) -> None:
    """Whoever raises a bound has to run that release."""
    page = tested.PAGE.read_text()
    assert tested.bounds() in page.splitlines()
    table = page[page.index(f"| {name} |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| (\d+)\.(\d+)\.\S+ \| (.*) \| (.*) \| .* \|$", table, re.MULTILINE)
    seen = {(int(major), int(minor)) for major, minor, analysed, run in rows if analysed and run}
    assert sorted(set(releases) - seen) == []
