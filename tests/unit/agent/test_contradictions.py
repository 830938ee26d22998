"""The file of what contradicts the evidence of programs."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from throughline.agent.contradictions import KEEP_SECONDS, Contradictions
from throughline.bpf import abi, contradicted, maps
from throughline.bpf.contradicted import MAX_ENTRIES, Contradicted
from throughline.steps import finish

ONE = Contradicted(4711, 7, 100, 0x800001, 3, ("answer", "late"))
OTHER = Contradicted((1 << 64) - 1, (1 << 64) - 1, 0, 0, 0, ("idle",))
GOOD = {"cgroup": 1, "inode": 1, "size": 1, "device": 1, "generation": 1, "seen": []}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}

    class Hash:
        def __init__(self, *_: int) -> None: ...

        def entries(self) -> list[list[tuple[bytes, memoryview]]]:
            return [[(key, memoryview(value))] for key, value in found.items()]

    monkeypatch.setattr(maps, "Hash", Hash)
    monkeypatch.setattr(maps, "lookup", lambda _fd, key, _size: found.get(key))
    monkeypatch.setattr(maps, "update", lambda _fd, key, value: found.update({key: value}))
    return found


def test_they_are_kept_and_recalled(tmp_path: Path, table: dict[bytes, bytes]) -> None:
    path = tmp_path / "state/contradictions.json"
    contradicted.add(0, [ONE, OTHER])
    before = dict(table)
    finish(Contradictions(path).keeping(0))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    table.clear()
    Contradictions(path).recall(0)
    assert table == before
    # what the kernel has seen meanwhile stays
    key = abi.LASTING.pack(4711, 7, 100, 0x800001, 3)
    table[key] = maps.U64.pack(1 << abi.Seen.READ)
    Contradictions(path).recall(0)
    (seen,) = maps.U64.unpack(table[key])
    assert seen == 1 << abi.Seen.READ | 1 << abi.Seen.ANSWER | 1 << abi.Seen.LATE


def test_the_file_is_written_when_something_has_changed(
    tmp_path: Path, table: dict[bytes, bytes]
) -> None:
    path = tmp_path / "contradictions.json"
    now = [0.0]
    kept = Contradictions(path, clock=lambda: now[0])
    finish(kept.keeping(0))
    assert not path.exists()
    contradicted.add(0, [ONE])
    finish(kept.keeping(0))
    assert not path.exists()
    now[0] = KEEP_SECONDS
    finish(kept.keeping(0))
    first = path.stat().st_ino
    finish(kept.keeping(0, now=True))
    assert path.stat().st_ino == first
    contradicted.add(0, [OTHER])
    finish(kept.keeping(0, now=True))
    assert len(json.loads(path.read_text())["programs"]) == 2


def damaged() -> list[bytes]:
    def of(*programs: Any, version: Any = 1) -> bytes:
        return json.dumps({"version": version, "programs": list(programs)}).encode()

    return [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b"{}",
        of(version=2),
        b'{"version": 1, "programs": 7}',
        of(7),
        of({}),
        of(*[GOOD] * (MAX_ENTRIES + 1)),
        of({**GOOD, "cgroup": "shop.service"}),
        of({**GOOD, "inode": -1}),
        of({**GOOD, "inode": 1 << 64}),
        of({**GOOD, "inode": True}),
        of({**GOOD, "size": 1.5}),
        of({**GOOD, "device": 1 << 32}),
        of({**GOOD, "seen": ["waits"]}),
        of({**GOOD, "seen": [[]]}),
        of({**GOOD, "seen": "answer"}),
        b" " * (5 << 20),
    ]


@pytest.mark.parametrize("content", damaged(), ids=range(len(damaged())))
def test_a_damaged_file_is_ignored(
    tmp_path: Path,
    table: dict[bytes, bytes],
    caplog: pytest.LogCaptureFixture,
    content: bytes,
) -> None:
    path = tmp_path / "contradictions.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        Contradictions(path).recall(0)
    assert not table
    assert "is ignored" in caplog.text


def test_no_file_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Contradictions(tmp_path / "none.json").recall(0)
    assert not caplog.records
