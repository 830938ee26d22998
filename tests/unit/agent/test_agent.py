"""The agent handles probed files in the right order, and lets go of all at its end."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fixtures.facts import FACTS
from tests.fixtures.records import batch
from throughline.agent import agent as agent_module
from throughline.agent.agent import Agent
from throughline.bpf import libbpf, ringbuffer, traced
from throughline.config.model import load
from throughline.export.spool import Spool
from throughline.features import providers
from throughline.probes import uprobes

DONE: list[str] = []


class Files:
    """In the place of the providers and of the probed files: notes its end."""

    def __init__(self, name: str) -> None:
        self._name = name

    def close(self) -> None:
        DONE.append(f"{self._name} closed")


class Anything:
    """Has any attribute, and does nothing."""

    adopting = False

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: []


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def agent(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Agent:
    """An agent that has attached nothing, and probes files for `tls` and `go`."""
    DONE.clear()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(agent_module, "Programs", lambda **_: Anything())
    monkeypatch.setattr(ringbuffer, "RingBuffer", lambda *_: Anything())
    monkeypatch.setattr(providers, "make", lambda *_: {"tls": [Files("tls")], "go": [Files("go")]})
    monkeypatch.setattr(agent_module, "Files", lambda *_: Files("files"))
    (tmp_path / "config.yaml").write_text("export: {otlp: {enabled: false}}\n")
    settings = load(tmp_path / "config.yaml", environment={})
    made = Agent(settings, FACTS, stack, os.dup(0))
    loaded = cast(libbpf.Object, Anything())
    made._probe({"tls": loaded, "go": loaded}, uprobes.Kind.MULTI)
    return made


def test_files_are_let_go_after_an_exception(
    agent: Agent, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(traced, "TracedCgroups", fail)
    with pytest.raises(RuntimeError, match="a fault"), stack:
        agent.loop()
    assert DONE == ["files closed", "go closed", "tls closed"]


def test_spans_that_are_queued_survive_an_exception(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the pipeline, on their way to it, and waiting for the name of their cgroup."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(agent_module, "Programs", lambda **_: Anything())
    monkeypatch.setattr(ringbuffer, "RingBuffer", lambda *_: Anything())

    def fail(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(traced, "TracedCgroups", fail)
    (tmp_path / "config.yaml").write_text("export: {otlp: {endpoint: 'http://127.0.0.1:1'}}\n")
    spool = tmp_path / "spool"
    settings = load(
        tmp_path / "config.yaml", environment={"THROUGHLINE_SPOOL_DIRECTORY": str(spool)}
    )
    with pytest.raises(RuntimeError, match="a fault"), ExitStack() as stack:
        made = Agent(settings, FACTS, stack, os.dup(0))
        made._parts.pipeline.submit(batch(1000))
        made._parts.records._pending = batch(3)
        made._parts.records._waiting = [span for span, _ in batch(2)]
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


def test_probes_are_gone_before_another_release_is_executed(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(*_: object) -> None:
        DONE.append("executed")
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "execve", execute)
    monkeypatch.setenv("THROUGHLINE_LAUNCHER", sys.executable)
    with pytest.raises(OSError, match="No such file"):
        agent._reload(cast(ringbuffer.RingBuffer, Anything()))
    assert DONE == ["files closed", "go closed", "tls closed", "executed"]
