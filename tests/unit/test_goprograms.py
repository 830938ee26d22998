"""What go.bpf.o is told of a Go program, from a binary made by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import gofile
from throughline.goprograms import GoPrograms
from throughline.kernel import abi, libbpf
from throughline.kernel.uprobes import Site
from throughline.libraries import LaterError


class Maps:
    """Of an object that is not loaded."""

    def map_fd(self, name: str) -> int:
        return {"tl_go_binaries": 1001, "tl_go_starts": 1002, "tl_go_processes": 1003}[name]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, bytes], bytes]:
    """What the maps were told: descriptor and key -> value."""
    found: dict[tuple[int, bytes], bytes] = {}
    monkeypatch.setattr(libbpf, "keys", lambda fd, size: iter(()))
    monkeypatch.setattr(
        libbpf, "update", lambda fd, key, value: found.__setitem__((fd, key), value)
    )
    return found


@pytest.fixture
def programs(told: dict[tuple[int, bytes], bytes]) -> Iterator[GoPrograms]:
    made = GoPrograms(Maps(), write=True)  # type: ignore[arg-type]
    yield made
    made.close()


def find(programs: GoPrograms, path: Path) -> tuple[Site, ...]:
    """What is found when the analysis is done, for which the spans of others do not wait."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(1000):
            try:
                return programs.find(fd)
            except LaterError:
                time.sleep(0.01)
    finally:
        os.close(fd)
    raise AssertionError("the analysis does not end")


def test_a_program_has_an_index(
    programs: GoPrograms, told: dict[tuple[int, bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "shop"
    path.write_bytes(gofile.build())
    (site,) = find(programs, path)
    assert (site.program, site.offset) == ("tl_go_starts_another", gofile.TEXT_AT + 4)
    assert site.cookie == 1 | abi.Go.RESTARTS
    assert set(told) == {(1001, (1).to_bytes(4, "little"))}
    assert programs.describe([site])["version"].startswith("go1.")
    assert find(programs, path) == (site,), "the same program has the same index"
    assert not programs.failures


def test_what_cannot_be_followed_is_counted(programs: GoPrograms, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(gofile.build(version="go1.17.13"))
    assert find(programs, tmp_path / "old") == ()
    assert programs.failures == {"unsupported": 1}
    (tmp_path / "sh").write_bytes(b"#!/bin/sh\n")
    assert find(programs, tmp_path / "sh") == ()
    assert programs.failures == {"unsupported": 1}
