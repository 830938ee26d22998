"""When the mappings of processes are read."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.unit.probes.host import (
    OTHER,
    Host,
)
from throughline.probes import mappings


def test_many_processes_attach_once(host: Host) -> None:
    path = host.file("libssl.so")
    for pid in range(10, 33):
        host.process(pid, path)
    host.follow()
    assert [found.processes for found in host.files.attached] == [23]
    assert len(host.links) == 5


def test_a_library_loaded_later(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10)
    host.follow()
    host.process(10, path)
    host.follow()
    assert host.paths == []
    host.follow()  # 2 s after the first look
    assert host.paths == [str(path)]


def test_a_library_loaded_much_later(host: Host) -> None:
    host.process(10)
    host.follow()
    host.follow(2)
    host.process(10, host.file("libssl.so"))
    host.follow(3)
    assert host.paths == []
    host.follow(1)
    assert len(host.paths) == 1


def test_a_library_that_a_process_has_loaded_when_it_begins_to_serve(host: Host) -> None:
    host.process(10)
    host.follow()
    host.follow(2)
    host.process(10, host.file("libssl.so"))
    host.processes.look_again({10, 11})
    host.follow(0.3)
    assert len(host.paths) == 1


def test_another_program_in_the_same_process_is_looked_at_at_once(host: Host) -> None:
    host.process(10, exe="/bin/sh")
    for _ in range(5):
        host.follow()
    host.process(10, host.file("node"), exe="/usr/bin/node")
    host.follow()
    assert len(host.paths) == 1


def test_processes_and_cgroups_that_end_meanwhile(host: Host) -> None:
    (host.cgroup / "cgroup.procs").write_text("0\n10\n11\n12\n")
    host.follow()
    for name in ("root", "maps", "exe"):
        host.process(10, host.file("libssl.so"))
        target = host.proc / "10" / name
        target.unlink()
        host.follow(30)
    assert host.files.failures["unreachable"] <= 1
    shutil.rmtree(host.cgroup)
    host.follow()
    assert [found.processes for found in host.files.attached] == [0]


def test_work_is_spread_over_calls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes 15 ms here: two fit into a call, who waited longest comes first."""
    path = host.file("libssl.so")
    really = mappings.executed

    def slow(*arguments: Any) -> Any:
        host.now += 0.015
        return really(*arguments)

    host.follow()  # nothing is there when the agent starts
    monkeypatch.setattr(mappings, "executed", slow)
    for pid in range(10, 17):
        host.process(pid, path)
    seen = []
    for _ in range(4):
        host.follow(0.1)
        seen.append(host.files.attached[0].processes)
    assert seen == [2, 4, 6, 7]


def test_the_files_of_a_process_are_spread_over_calls(host: Host) -> None:
    """Each takes 0.3 s to look at here: two fit into a call. What is known stays known."""
    host.follow()
    host.find_takes = 0.3
    host.process(10, *(host.file(f"{number}.so") for number in range(5)))
    seen = []
    for _ in range(3):
        host.follow(0.1)
        seen.append([found.processes for found in host.files.attached])
    assert seen == [[1] * 2, [1] * 4, [1] * 5]
    host.find_takes = 1.0
    host.process(11, *(host.file(f"again/{number}.so") for number in range(2)))
    host.follow(0.1)
    host.follow(0.1)
    assert len(host.paths) == 7, "one in each call at least"


def test_all_is_found_at_the_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the agent says that it is ready, unless that takes seconds."""
    path = host.file("libssl.so")
    for pid in range(1000, 1200):
        host.process(pid, path)
    really = mappings.executed

    def slow(*arguments: Any) -> Any:
        host.now += 0.015
        return really(*arguments)

    monkeypatch.setattr(mappings, "executed", slow)
    host.follow()
    assert host.files.attached[0].processes == 134


def test_a_process_whose_number_is_used_again_is_another(host: Host) -> None:
    """It ended and its number was given away between two looks."""
    host.process(10)
    for _ in range(5):
        host.follow()
    host.process(10, host.file("libssl.so"), started=100)
    host.follow()
    assert len(host.paths) == 1


def test_the_files_of_a_process_are_looked_at_in_turns(host: Host) -> None:
    """Spans waited for half a second where a process had many new files, or large ones."""
    host.process(10, *(host.file(f"{number}.so", OTHER) for number in range(50)))
    host.find_takes = 0.005
    longest, before = 0.0, host.now
    for _ in host.processes.following([str(host.cgroup)]):
        longest, before = max(longest, host.now - before), host.now
    assert host.now > 1000.2 and longest < 0.006


def test_processes_are_looked_for_in_small_steps(host: Host) -> None:
    path = host.file("libssl.so")
    for pid in range(1000, 1200):
        host.process(pid, path)
    steps = sum(1 for _ in host.processes.following([str(host.cgroup)] * 320))
    assert steps >= 320 / 32 + 200 / 32
    assert host.files.attached[0].processes == 200
