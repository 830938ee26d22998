"""Decoding of struct tl_span."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.records.tlspan import raw
from throughline.bpf import abi
from throughline.records import spanrecord
from throughline.telemetry import spans


def attributes(data: bytes) -> dict[str, object]:
    found = spans.describe(spanrecord.decode_span(data, unix_offset_ns=0)).attributes
    for value in found.values():
        str(value).encode("utf-8")
    return dict(found)


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
    """`/café` was C3 83 C2 A9. A character that the kernel has cut is left out."""
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


def test_owner_and_kind_are_those_of_the_whole_record() -> None:
    values: list[Any] = list(range(1, len(abi.Span._fields) + 1))
    for name, value in (("kind", abi.Kind.CLIENT), ("evidence", 7), ("end", 2)):
        values[abi.Span._fields.index(name)] = value
    for at, name in enumerate(abi.Span._fields):
        sample = getattr(abi.Span(*abi.SPAN.unpack(raw(1))), name)
        values[at] = bytes(len(sample)) if isinstance(sample, bytes) else values[at]
    values[abi.Span._fields.index("cgroup_id")] = (1 << 64) - 2
    data = abi.SPAN.pack(*values)
    assert spanrecord.RawSpan(data, 0).owner() == ((1 << 64) - 2, "client")
    whole = spanrecord.decode_span(data, unix_offset_ns=0)
    assert (whole.cgroup_id, whole.kind) == ((1 << 64) - 2, "client")


@pytest.mark.parametrize("name", ["kind", "evidence", "end"])
def test_a_value_that_is_not_known_is_found_at_once(name: str) -> None:
    """What `owner` takes, `decode` takes."""
    values = abi.Span(*abi.SPAN.unpack(raw(1)))
    for value in range(256):
        changed: dict[str, Any] = {name: value}
        data = abi.SPAN.pack(*values._replace(**changed))
        taken = []
        for read in (spanrecord.RawSpan(data, 0).owner, spanrecord.RawSpan(data, 0).decode):
            try:
                read()
                taken.append(True)
            except KeyError:
                taken.append(False)
        assert taken in ([True, True], [False, False])
