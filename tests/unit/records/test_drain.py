"""Spans from the ring buffer get the service of their cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.records.tlspan import raw
from throughline.bpf import abi
from throughline.records import drain, spanrecord
from throughline.records.drain import Records
from throughline.services.naming import Services


@pytest.fixture
def cgroup2(tmp_path: Path) -> Path:
    (tmp_path / "system.slice").mkdir()
    return tmp_path


def services(cgroup2: Path) -> Services:
    return Services((), cgroup2=cgroup2, host={}, resource_attributes={})


def test_a_record_waits_until_its_cgroup_is_met(
    cgroup2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "_MAX_WAITING", 5)
    sent: list[str] = []
    known = services(cgroup2)
    taken = Records(known, lambda batch: sent.extend(s.name for _, s in batch), sampled={})
    (cgroup2 / "system.slice/new.service").mkdir()
    new = (cgroup2 / "system.slice/new.service").stat().st_ino
    taken.receive(raw(new))
    taken.receive(raw(4711))
    assert taken.waiting and sent == []
    waiting = taken.take_waiting()
    taken.receive(raw(4712))  # while a walk is under way: it waits for the next one
    known.refresh()
    taken.name(waiting)
    assert sent == ["new", "unknown_service"] and taken.waiting
    for _ in range(10):
        taken.receive(raw(4713))
    taken.flush()
    assert len(sent) == 8, "more than there is room for are not kept waiting"
    assert known.unresolved == 7
    assert taken.sampled["new", "server"] == 1


def test_a_record_that_cannot_be_decoded_is_counted(
    cgroup2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = Records(services(cgroup2), lambda _: None, sampled={})
    short = raw(1)[: spanrecord.SPAN_HEAD.size - 1]
    for data in (b"", b"x" * 10, b"\xff" * abi.SPAN.size, short):
        taken.receive(data)
    assert taken.undecodable == 4
    assert len(caplog.records) == 1


def test_counts_of_services_are_bounded(cgroup2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_MAX_NAMES", 10)
    taken = Records(
        services(cgroup2), lambda _: None, sampled={(f"s{n}", "server"): n for n in range(20)}
    )
    taken.forget_names({"s3", "s7"})
    assert taken.sampled == {("s3", "server"): 3, ("s7", "server"): 7}
