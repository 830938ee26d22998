"""Lists of qdiscs and filters. The filters of clsact are in tests/kernel/io/test_tc.py."""

from __future__ import annotations

import socket

import pytest

from throughline.host import rtnetlink


def test_any_user_may_ask() -> None:
    loopback = socket.if_nametoindex("lo")
    assert all(rtnetlink.qdiscs(loopback))
    for parent in (rtnetlink.INGRESS, rtnetlink.EGRESS):
        assert all(found.kind for found in rtnetlink.filters(loopback, parent))


def test_an_interface_that_is_not_there_has_none() -> None:
    assert rtnetlink.qdiscs(1 << 30) == []
    assert rtnetlink.filters(1 << 30, rtnetlink.EGRESS) == []


def test_messages_and_attributes() -> None:
    """Lengths are padded to four bytes; flags of an attribute's type are no part of it."""
    name = bytes.fromhex("0e00 0700") + b"tl_x:[17]\0" + bytes(2)
    options = bytes.fromhex("1400 0280") + name  # NLA_F_NESTED
    kind = bytes.fromhex("0800 0100") + b"bpf\0"
    found = rtnetlink._filter(
        0x12345678, 49152 << 16 | 0x0300, rtnetlink._attributes(kind + options)
    )
    assert found == rtnetlink.Filter(0x12345678, 49152, "bpf", "tl_x:[17]")
    message = bytes.fromhex("12000000 2c00 0200 01000000 00000000") + b"ab" + bytes(2)
    assert list(rtnetlink._messages(message * 2)) == [(44, b"ab")] * 2


def test_a_refusal_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnetlink, "_GETQDISC", 0x7FF0)
    with pytest.raises(OSError, match="rtnetlink dump"):
        rtnetlink.qdiscs(1)
