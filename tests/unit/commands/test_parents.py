"""What `throughline status` says about the parents of calls, and its advice."""

from __future__ import annotations

from typing import Any

import pytest

from throughline.commands.parents import parents_of_calls


def of(*, proven: int = 0, likely: int = 0, **more: dict[str, int]) -> dict[str, Any]:
    counts = {"none": {}, "contradicted": {}, **more}
    return {"shop": {"unit": "", "parents": {"proven": proven, "likely": likely, **counts}}}


def test_a_line_for_each_service_with_calls() -> None:
    services = of(proven=97, likely=3, none={"ended": 2, "nothing": 5})
    assert parents_of_calls({"b": services["shop"], "a": {"unit": "a"}, **of()}) == [
        ("b", "97 proven, 3 likely, 7 none (nothing 5, ended 2)")
    ]


@pytest.mark.parametrize(
    ("none", "contradicted", "starts"),
    [
        ({"not_proven": 9}, {}, ["set `parents: likely` in its rule only if"]),
        ({"contradicted": 9, "not_proven": 9}, {"idle": 1}, ["its threads do other"]),
        ({"not_proven": 9}, {"answer": 1}, ["its threads do other"]),
        ({"ambiguous": 9}, {}, ["its threads serve several"]),
        ({"ambiguous": 9, "not_proven": 9}, {}, ["set `parents: likely`", "its threads serve"]),
        ({"ended": 9, "nothing": 900}, {}, []),
        ({"not_proven": 1, "ambiguous": 1, "nothing": 900}, {}, []),
        ({"nothing": 9}, {"answer": 3}, []),
    ],
)
def test_advice(none: dict[str, int], contradicted: dict[str, int], starts: list[str]) -> None:
    _, *advice = parents_of_calls(of(none=none, contradicted=contradicted))
    assert len(advice) == len(starts)
    for (name, text), start in zip(advice, starts, strict=True):
        assert not name and text.startswith(start)


def test_contradictions_are_named() -> None:
    services = of(none={"contradicted": 4}, contradicted={"answer": 2, "late": 3})
    shown = "0 proven, 0 likely, 4 none (contradicted 4); contradicted: late 3, answer 2"
    assert parents_of_calls(services)[0] == ("shop", shown)
