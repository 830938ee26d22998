"""Counts of an earlier run: what goes on, and that a file of any shape is harmless."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from throughline.agent import earlier


def test_counts_go_on_where_the_programs_serve_on(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    shop = {"unit": "shop.service", "server": {"sampled": 5}, "client": {"sampled": "x"}}
    path.write_text(json.dumps({"counting_since_unix_ns": 7, "services": {"shop": shop}}))
    found = earlier.read(path, adopting=True)
    assert found == earlier.Earlier(7, {("shop", "server"): 5})
    anew = earlier.read(path, adopting=False)
    assert anew.sampled == {} and anew.counting_since_unix_ns > 1 << 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"services": []}',
        '{"services": {"a": 1}}',
        '{"services": {"a": {}}}',
    ],
)
def test_a_file_of_another_shape_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    before = time.time_ns()
    for path in (tmp_path / "status.json", tmp_path / "none"):
        found = earlier.read(path, adopting=True)
        assert found.sampled == {} and found.counting_since_unix_ns >= before
