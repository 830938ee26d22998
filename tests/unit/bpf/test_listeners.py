"""The processes that have begun to serve, as the agent takes them."""

from __future__ import annotations

import errno

import pytest

from throughline.bpf import listeners, maps


def test_listeners_are_taken_until_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [maps.U32.pack(pid) for pid in (7, 9, 7)]
    monkeypatch.setattr(maps, "take", lambda _fd, _size: waiting.pop(0) if waiting else None)
    assert listeners.take(1) == {7, 9}
    assert listeners.take(1) == set()


def test_a_queue_that_others_fill_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "take", lambda _fd, _size: maps.U32.pack(7))
    assert listeners.take(1) == {7}


def test_what_the_kernel_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def bpf_map_lookup_and_delete_elem(self, *_: object) -> int:
            return -errno.EBADF

    monkeypatch.setattr(maps, "library", Library)
    with pytest.raises(OSError, match="bpf_map_lookup_and_delete_elem"):
        listeners.take(1)
