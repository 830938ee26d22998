"""The agent handles probed files in the right order, and lets go of all at its end."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fixtures.facts import FACTS
from tests.fixtures.records import batch, record
from throughline.agent import agent as agent_module
from throughline.agent.agent import Agent
from throughline.bpf import libbpf
from throughline.config import model as config
from throughline.export.spool import Spool
from throughline.features import programs as kernel
from throughline.probes import uprobes
from throughline.records import readings
from throughline.tls import openssl

DONE: list[str] = []
FINDERS: list[Callable[[int], tuple[uprobes.Site, ...]]] = []


class Files:
    """Stands in for Libraries and GoPrograms, and notes the calls."""

    def __init__(self, name: str) -> None:
        self._name = name

    def close(self) -> None:
        DONE.append(f"{self._name} closed")

    def find(self, fd: int) -> tuple[uprobes.Site, ...]:
        DONE.append(f"{self._name} asked")
        return ()


class Anything:
    """Has any attribute, and does nothing."""

    adopting = False

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: []


def libraries(_: object, find: Callable[[int], tuple[uprobes.Site, ...]], __: object) -> Files:
    FINDERS.append(find)
    return Files("libraries")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def agent(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    """An agent that has attached nothing, and probes files for `tls` and `go`."""
    DONE.clear()
    FINDERS.clear()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(kernel, "Programs", lambda **_: Anything())
    monkeypatch.setattr(libbpf, "RingBuffer", lambda *_: Anything())
    monkeypatch.setattr(agent_module, "GoPrograms", lambda *_, **__: Files("go"))
    monkeypatch.setattr(agent_module, "Libraries", libraries)
    monkeypatch.setattr(openssl, "sites_of", Files("openssl").find)
    (tmp_path / "config.yaml").write_text("export: {otlp: {enabled: false}}\n")
    settings = config.load(tmp_path / "config.yaml", environment={})
    made = Agent(settings, FACTS, stack, os.dup(0))
    loaded = cast(libbpf.Object, Anything())
    made._probe({"tls": loaded, "go": loaded}, uprobes.Kind.MULTI)
    return made


def test_a_program_of_go_is_looked_into_before_openssl_is_searched_for(agent: Agent) -> None:
    assert FINDERS[0](-1) == ()
    assert DONE == ["go asked", "openssl asked"]


def test_files_are_let_go_after_an_exception(
    agent: Agent, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(readings, "TracedCgroups", fail)
    with pytest.raises(RuntimeError, match="a fault"), stack:
        agent.loop()
    assert DONE == ["libraries closed", "go closed"]


def test_spans_that_are_queued_survive_an_exception(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the pipeline, on their way to it, and waiting for the name of their cgroup."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(kernel, "Programs", lambda **_: Anything())
    monkeypatch.setattr(libbpf, "RingBuffer", lambda *_: Anything())

    def fail(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(readings, "TracedCgroups", fail)
    (tmp_path / "config.yaml").write_text("export: {otlp: {endpoint: 'http://127.0.0.1:1'}}\n")
    spool = tmp_path / "spool"
    settings = config.load(
        tmp_path / "config.yaml", environment={"THROUGHLINE_SPOOL_DIRECTORY": str(spool)}
    )
    with pytest.raises(RuntimeError, match="a fault"), ExitStack() as stack:
        made = Agent(settings, FACTS, stack, os.dup(0))
        made._pipeline.submit(batch(1000))
        made._records._pending = batch(3)
        made._records._waiting = [record(), record()]
        made.loop()
    kept = Spool(spool, max_bytes=1 << 20)
    count = 0
    while True:
        name, found = kept.oldest()
        if not found:
            break
        count += len(found)
        kept.remove(name)
    assert count == 1005


def test_housekeeping_does_not_hold_up_the_drain(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand steps of a millisecond: 20 of them between two drains."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    done = []

    def steps() -> Iterator[None]:
        for number in range(1000):
            now[0] += 0.001
            done.append(number)
            yield

    agent._work = cast(Any, steps())
    drains = 0
    while agent._work is not None:
        began = now[0]
        agent._go_on()
        assert now[0] - began < 0.022
        drains += 1
    assert len(done) == 1000 and 48 <= drains <= 52


def test_probes_are_gone_before_another_release_is_executed(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(*_: object) -> None:
        DONE.append("executed")
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "execve", execute)
    monkeypatch.setenv("THROUGHLINE_LAUNCHER", sys.executable)
    with pytest.raises(OSError, match="No such file"):
        agent._reload(cast(libbpf.RingBuffer, Anything()))
    assert DONE == ["libraries closed", "go closed", "executed"]
