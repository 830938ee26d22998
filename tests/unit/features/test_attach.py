"""Attaching: in which order groups are tried, and what becomes of those that need another."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.fixtures.facts import FACTS
from throughline.config.model import load
from throughline.features.attach import attach
from throughline.features.objects import Objects
from throughline.features.programs import Programs
from throughline.features.table import BASE, GROUPS, Group, Uprobes
from throughline.probes import trials, uprobes

FOLLOWING = [name for name in GROUPS if name != BASE]
PROBING = [name for name, g in GROUPS.items() if g.uprobes is not Uprobes.NONE or g.reads]
EVERYTHING = "propagation: {peers: [10.1.0.0/16]}\ninstrumentation: {go_write: auto}"
UNKNOWN_HELPER = "(program of this type cannot use helper bpf_probe_write_user#36)"


class Refusing:
    """Programs of a kernel that has none of it."""

    adopting = False

    def attach_observe(self) -> None:
        raise OSError(errno.ENOENT, "no")

    attach_headers = attach_observe


def test_time_is_asked_for_ahead_of_each_group(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("")
    asked: list[bool] = []
    programs = cast(Programs, Refusing())
    found = attach(
        programs,
        load(path, environment={}),
        FACTS,
        before=lambda: asked.append(True),
    )
    assert found.groups["observe"].state == "off"
    assert asked == [True]  # the others follow observe and were not tried


class Giving:
    """Programs of a kernel that gives what it is asked for, but for `refused`."""

    adopting = False

    def __init__(self, objects: Objects, refused: dict[str, OSError]) -> None:
        self.objects = objects
        self.withdrawn: list[str] = []
        self._refused = refused

    def __getattr__(self, name: str) -> Callable[..., object]:
        group = name.removeprefix("attach_")

        def attach(*_: object, **__: object) -> object:
            if group in self._refused:
                raise self._refused[group]
            return group

        return attach

    def load_probing(self, group: Group, kind: uprobes.Kind) -> object:
        return getattr(self, f"attach_{group.name}")()

    def withdraw(self, name: str) -> None:
        self.withdrawn.append(name)


@pytest.mark.parametrize(
    ("refused", "states", "reason"),
    [
        ({}, ("on", "on"), ""),
        ({"go": OSError(errno.E2BIG, "bpf_object__load")}, ("off", "off"), "go is off"),
        (
            {"go_write": OSError(errno.EINVAL, f"bpf_object__load {UNKNOWN_HELPER}")},
            ("on", "off"),
            "the kernel refuses bpf_probe_write_user",
        ),
    ],
)
def test_go_write_is_tried_after_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: dict[str, OSError],
    states: tuple[str, str],
    reason: str,
) -> None:
    monkeypatch.setenv("THROUGHLINE_BPF_OBJECTS", str(tmp_path))
    monkeypatch.setattr(trials, "find_kind", lambda: uprobes.Kind.MULTI)
    for name in FOLLOWING:
        (tmp_path / f"{name}.bpf.o").touch()
    path = tmp_path / "config.yaml"
    path.write_text(EVERYTHING)
    programs = Giving(Objects(bpffs=tmp_path, map_sizes={}), refused)
    found = attach(cast(Programs, programs), load(path, environment={}), FACTS)
    assert list(found.groups) == list(GROUPS)
    assert (found.groups["go"].state, found.groups["go_write"].state) == states
    assert found.groups["go_write"].reason.startswith(reason)
    assert not found.groups["go_write"].wanted or states == ("on", "on")
    probing = [name for name in PROBING if found.groups[name].state == "on"]
    assert list(found.probing) == probing
    off = [name for name, group in found.groups.items() if group.state == "off"]
    assert [name for name in programs.withdrawn if name in FOLLOWING] == off
