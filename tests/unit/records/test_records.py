"""Records from the ring buffer are named and handed over, with times of the right clock."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from throughline.bpf import abi
from throughline.host import clock
from throughline.records import events, records
from throughline.records.records import Records
from throughline.services.naming import Services
from throughline.telemetry.spans import span


def raw(cgroup_id: int, **texts: bytes) -> bytes:
    """A record as the kernel writes it: struct tl_span."""
    values = dict.fromkeys(abi.Span._fields, 0) | {
        "kind": abi.Kind.SERVER,
        "cgroup_id": cgroup_id,
        "trace_id": bytes(range(16)),
        "span_id": bytes(range(8)),
        "parent_span_id": bytes(8),
        "local_addr": bytes(16),
        "peer_addr": bytes(16),
        "method": b"GET",
        "method_len": 3,
        "host": b"",
        "target": b"/",
        "target_len": 1,
        "tracestate": b"",
        "status": 200,
    }
    for name, text in texts.items():
        values[name] = text
        values[f"{name}_len"] = len(text)
    return abi.SPAN.pack(*(values[name] for name in abi.Span._fields))


def attributes(data: bytes) -> dict[str, object]:
    from tests.fixtures.records import SHOP

    found = span(events.decode_span(data, unix_offset_ns=0), SHOP)
    for value in (found.attributes or {}).values():
        str(value).encode("utf-8")
    return dict(found.attributes or {})


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/café".encode(), "/café"),
        ("/日本/語".encode(), "/日本/語"),
        (b"/caf\xe9", "/caf\ufffd"),
        (b"/\xff\xfe/x", "/\ufffd\ufffd/x"),
        (b"/\xc3", "/\ufffd"),  # the end of the target, not of what was kept
        (("/" + "é" * 200).encode(), "/" + "é" * 127),
        (("/x" + "語" * 100).encode(), "/x" + "語" * 84),
        (b"/" + b"\xff" * 300, "/" + "\ufffd" * 255),
    ],
)
def test_a_target_is_utf8(target: bytes, path: str) -> None:
    """A character that the kernel has cut is left out."""
    at = abi.Span._fields.index("target_len")
    values = list(abi.SPAN.unpack(raw(1, target=target[:256])))
    values[at] = len(target)
    assert attributes(abi.SPAN.pack(*values))["url.path"] == path


def test_other_texts_are_utf8() -> None:
    found = attributes(raw(1, method="GÉT".encode(), host="café.example ".encode()))
    assert found["http.request.method_original"] == "GÉT"
    assert found["server.address"] == "café.example"
    found = attributes(raw(1, method=b"G\xffT", host=b"\xff.example", tracestate=b"a=\xff"))
    assert found["http.request.method_original"] == "G\ufffdT"
    assert found["server.address"] == "\ufffd.example"
    host = attributes(raw(1, host=b"x" * 127 + "é".encode()[:1]))["server.address"]
    assert host == "x" * 127


@pytest.fixture
def cgroup2(tmp_path: Path) -> Path:
    (tmp_path / "system.slice").mkdir()
    return tmp_path


def services(cgroup2: Path) -> Services:
    return Services((), cgroup2=cgroup2, host={}, resource_attributes={})


def test_a_record_waits_until_its_cgroup_is_met(
    cgroup2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MAX_WAITING", 5)
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
    for data in (b"", b"x" * 10, b"\xff" * abi.SPAN.size):
        taken.receive(data)
    assert taken.undecodable == 3
    assert len(caplog.records) == 1


def test_counts_of_services_are_bounded(cgroup2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MAX_NAMES", 10)
    taken = Records(
        services(cgroup2), lambda _: None, sampled={(f"s{n}", "server"): n for n in range(20)}
    )
    taken.forget_names({"s3", "s7"})
    assert taken.sampled == {("s3", "server"): 3, ("s7", "server"): 7}


def test_the_tightest_reading_of_the_clocks_counts() -> None:
    """Two of five readings are interrupted, for 30 and 5 ms."""
    monotonic = iter(
        [0, 100, 200, 30_000_200, 30_000_300, 30_000_310, 40_000_000, 45_000_000, 7, 107]
    )
    unix = iter([1050, 29_001_200, 30_001_305, 40_901_000, 1057])
    found = clock.unix_offset_ns(monotonic=lambda: next(monotonic), unix=lambda: next(unix))
    assert found == 1000
    assert next(unix, None) is None


def test_a_step_of_the_clock_is_followed() -> None:
    now = clock.unix_offset_ns()
    stepped = clock.unix_offset_ns(unix=lambda: time.time_ns() + 3600 * 10**9)
    assert abs(stepped - now - 3600 * 10**9) < 10**9
