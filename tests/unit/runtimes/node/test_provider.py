"""Which files are Node.js, and how many processes were started with the preload."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.runtimes.node.provider import NodeProvider
from throughline.steps import finish

OPTION = b"NODE_OPTIONS=--a --require=/run/credentials/a.service/throughline-context.cjs"


def test_node_is_found() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    for path, answer in ((node, Found()), (sys.executable, Answer.NOT_MINE)):
        file = os.open(path, os.O_RDONLY)
        try:
            assert NodeProvider().find(file) == answer, path
        finally:
            os.close(file)


def write(directory: Path, environment: bytes) -> None:
    """A process whose environment is at 100 in its memory."""
    directory.mkdir(exist_ok=True)
    numbers = " ".join(["0"] * 46 + ["100", str(100 + len(environment)), "0"])
    (directory / "stat").write_text(f"1 (a) b) S {numbers}\n")
    (directory / "mem").write_bytes(bytes(100) + environment)


def test_processes_with_the_preload_are_counted(tmp_path: Path) -> None:
    environments = {
        1: b"A=1\0" + OPTION + b"\0B=2\0",
        2: OPTION,
        3: b"NODE_OPTIONS=--require=/srv/context.cjs\0",
        4: b"OTHER_" + OPTION,
        5: b"",
    }
    for pid, environment in environments.items():
        write(tmp_path / str(pid), environment)
    provider = NodeProvider(tmp_path)
    probed = Probed(0, (), tuple(Process(pid, 7, 0, 0) for pid in range(1, 8)))
    assert provider.describe(probed) == {"preloaded": 0}
    finish(provider.tick([probed]))
    assert provider.describe(probed) == {"preloaded": 2}
    assert provider.failures == {}  # processes 6 and 7 have ended
    # another process of that id has another environment
    write(tmp_path / "1", b"")
    finish(provider.tick([probed]))
    assert provider.describe(probed) == {"preloaded": 2}
    again = Probed(0, (), (Process(1, 8, 0, 0), Process(2, 7, 0, 0)))
    finish(provider.tick([again]))
    assert provider.describe(again) == {"preloaded": 1}


def test_a_process_that_cannot_be_read_is_counted_and_looked_at_again(tmp_path: Path) -> None:
    write(tmp_path / "1", OPTION)
    (tmp_path / "1" / "mem").rename(tmp_path / "away")
    provider = NodeProvider(tmp_path)
    probed = Probed(0, (), (Process(1, 7, 0, 0),))
    for _ in range(3):
        finish(provider.tick([probed]))
    assert provider.failures == {"process_unreadable": 1}
    assert provider.describe(probed) == {"preloaded": 0}
    (tmp_path / "away").rename(tmp_path / "1" / "mem")
    finish(provider.tick([probed]))
    assert provider.describe(probed) == {"preloaded": 1}
    assert provider.failures == {"process_unreadable": 1}
