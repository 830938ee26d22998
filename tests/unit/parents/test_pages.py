"""docs/parents.md and its picture are what docs/parents.json says."""

from __future__ import annotations

import json
from typing import Any

from tests.parents import pages, picture
from tests.parents.app import Behaviour
from tests.parents.apps import APPS
from tests.parents.judge import Result


def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pages.DOCS / pages.DATA).read_text())
    return found


def test_the_pages_are_generated() -> None:
    for file, content in pages.rendered(data()).items():
        assert (pages.DOCS / file).read_text() == content, "run: python -m tests.parents.pages"


def test_the_rows_are_applications_in_their_order() -> None:
    order = [app.name for app in APPS]
    names = [row["name"] for row in data()["rows"]]
    assert names == [name for name in order if name in names]
    assert len(set(order)) == len(order)


def test_a_result_adds_up() -> None:
    for row in data()["rows"]:
        for cell in row["cells"].values():
            for one in cell:
                assert one["right"] + one["wrong"] + one["none"] == one["calls"] > 0
                assert "failures" not in one, row["name"]


def row_of(*, calls: int, right: int, wrong: int = 0) -> dict[str, Any]:
    result = Result(32, calls, calls, right, wrong, evidence={"wrong by thread": wrong}).json()
    cells = {Behaviour.AT_ONCE.value: [result]}
    return {"name": "one", "runtime": "R", "title": "One", "measured": "2026-01-01", "cells": cells}


def test_one_wrong_parent_is_on_the_page_and_in_the_picture() -> None:
    wrong = row_of(calls=1009, right=1008, wrong=1)
    page = pages.rendered({"kernel": "6", "processors": 2, "rows": [wrong]})[pages.PAGE]
    assert "**99.9 / 0.1 / 0**" in page
    assert "Of 1,009 calls 1 had a wrong parent" in " ".join(page.split())
    drawn = picture.svg([wrong], title="")
    assert '<path class="wrong" d="M' in drawn
    assert '<path class="wrong" d=""/>' in picture.svg([row_of(calls=9, right=9)], title="")


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    assert [picture.percent(part, 100_000) for part in (0, 1, 50_000, 99_999, 100_000)] == [
        *("0", "0.1", "50.0", "99.9", "100")
    ]
