"""Obstacles: which groups are not even tried, and what is said of them."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from tests.fixtures.facts import FACTS
from throughline.config.model import load
from throughline.features import obstacles
from throughline.features.objects import Objects
from throughline.features.state import GroupState, off
from throughline.features.table import GROUPS
from throughline.probes import trials, uprobes

PEERS = "propagation: {peers: [10.1.0.0/16]}"
WRITE = "instrumentation: {go_write: auto}"
EVERYTHING = f"{PEERS}\n{WRITE}"


def unwanted(tmp_path: Path, name: str, text: str, *, without: str = "") -> GroupState | None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    capabilities = tuple(c for c in FACTS.capabilities if c != without)
    found = dataclasses.replace(FACTS, capabilities=capabilities)
    return obstacles.of_group(GROUPS[name], load(path, environment={}), found)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("headers", "propagation: {headers: off}", "propagation.headers is off"),
        ("packets", "propagation: {packets: off}", "propagation.packets is off"),
        ("packets", "", "propagation.peers is empty"),
        ("packets", "propagation: {peers: []}", "propagation.peers is empty"),
        ("tls", "instrumentation: {tls: off}", "instrumentation.tls is off"),
        ("go", "instrumentation: {go: off}", "instrumentation.go is off"),
        ("go_write", "", "instrumentation.go_write is off"),
        ("go_write", "instrumentation: {go: off}", "instrumentation.go_write is off"),
        ("go_write", "instrumentation: {go: off, go_write: auto}", "go is off"),
    ],
)
def test_what_nobody_asked_for_is_off_and_no_fault(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    found = unwanted(tmp_path, name, text)
    assert found is not None
    assert (found.state, found.wanted, found.reason) == ("off", False, reason)


@pytest.mark.parametrize("name", list(GROUPS))
def test_what_is_asked_for_is_tried(tmp_path: Path, name: str) -> None:
    assert unwanted(tmp_path, name, EVERYTHING) is None


@pytest.mark.parametrize("name", ["tls", "go"])
def test_what_probes_needs_to_see_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trials, "find_kind", lambda: uprobes.Kind.MULTI)
    found = unwanted(tmp_path, name, "", without="CAP_SYS_PTRACE")
    assert found is not None and not found.wanted
    assert "CAP_SYS_PTRACE" in found.reason and "throughline_groups" in found.fix
    assert unwanted(tmp_path, "packets", PEERS, without="CAP_SYS_PTRACE") is None
    write = unwanted(tmp_path, "go_write", WRITE, without="CAP_SYS_PTRACE")
    assert write == off("go is off", "see go")


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("", ""),
        ("-legacy", "the programs for kernels before 5.15 do not have it"),
    ],
)
def test_a_group_that_older_kernels_do_not_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, reason: str
) -> None:
    monkeypatch.setenv("THROUGHLINE_BPF_OBJECTS", str(tmp_path))
    loaded = Objects(bpffs=tmp_path, map_sizes={})
    loaded.variant = variant
    lost = obstacles.of_objects(GROUPS["go"], loaded)
    assert lost is not None and lost.reason == "go is not among the BPF objects"
    (tmp_path / "go.bpf.o").touch()
    found = obstacles.of_objects(GROUPS["go"], loaded)
    assert (found.reason if found else "") == reason
    assert not (found and found.wanted)


def test_where_the_kernel_gives_no_uprobes_that_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EACCES, "perf_event_open: Permission denied")

    monkeypatch.setattr(trials, "find_kind", refuse)
    found = unwanted(tmp_path, "tls", "", without="CAP_SYS_PTRACE")
    assert found is not None and not found.wanted
    assert "CAP_SYS_ADMIN" in found.reason and "throughline_allow_sys_admin" in found.fix
