"""Steps of the agent's loop: an error of one is counted, logged once, and ends nothing."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from throughline.steps import Steps, Work


def test_a_step_that_fails_is_counted_logged_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = Steps()
    results = iter([OSError(errno.EPERM, "bpf: Operation not permitted"), None, KeyError("x")])
    done: list[str] = []

    def step() -> None:
        error = next(results)
        if error is not None:
            raise error
        done.append("done")

    with caplog.at_level(logging.WARNING):
        assert [steps.run("sweep", step) for _ in range(3)] == [False, True, False]
    assert done == ["done"] and steps.failures == {"step_failed_sweep": 2}
    (record,) = caplog.records
    assert "sweep failed" in record.message and "not permitted" in record.message
    assert not record.exc_info, "what the system refuses needs no place in our code"


def test_a_fault_of_ours_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    steps.run("status", lambda: {}["missing"])  # type: ignore[index]
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[0] is KeyError


def test_what_ends_the_agent_on_purpose_is_not_held_up() -> None:
    def leave() -> None:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        Steps().run("drain", leave)


def test_work_does_not_hold_up_what_runs_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand turns of a millisecond: 20 of them between two drains."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    done = []

    def turns() -> Iterator[None]:
        for number in range(1000):
            now[0] += 0.001
            done.append(number)
            yield

    work = Work()
    work.begin(cast(Any, turns()))
    drains = 0
    while not work.is_done:
        began = now[0]
        work.go_on(seconds=0.02)
        assert now[0] - began < 0.022
        drains += 1
    assert len(done) == 1000 and 48 <= drains <= 52


def test_work_that_is_abandoned_ends_where_it_is() -> None:
    done: list[str] = []

    def turns() -> Iterator[None]:
        try:
            while True:
                yield
        finally:
            done.append("ended")

    work = Work()
    work.begin(cast(Any, turns()))
    work.go_on(seconds=0.0)
    assert not work.is_done and done == []
    work.abandon()
    assert work.is_done and done == ["ended"]
    work.abandon()
