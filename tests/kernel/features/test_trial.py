"""Programs that a kernel refuses: what each takes away, what stays on; no request fails.

The loader refuses by a setting for tests (features/objects.py), in the way that a kernel does: the
whole object at its load, for one program of it.
"""

from __future__ import annotations

import http.client
import json
import signal
import struct
import sys
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.operated import Operated
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from throughline.bpf import abi, fionread, libbpf, maps, sweep
from throughline.features.objects import FEXIT, REFUSE, directory
from throughline.features.programs import Programs, Settings
from throughline.features.table import GROUPS, PROGRAMS
from throughline.host import facts

COUNT = 3
SERVICE = SERVICES / "threaded.py"
EVERYTHING = {
    "propagation": {"peers": ["127.0.0.0/8"]},
    "instrumentation": {"go_write": "auto"},
}
BROKEN = fionread.is_broken()


class Refusing(Operated):
    """An agent to which the kernel refuses some programs."""

    refuse = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, REFUSE: self.refuse}


@pytest.fixture(scope="module")
def host() -> Iterator[Refusing]:
    """A service that calls itself, and an agent for each test."""
    with Refusing(EVERYTHING, start=False) as found:
        found.port = port = free_port()  # type: ignore[attr-defined]
        found.spawn("web", [sys.executable, str(SERVICE), str(port)])
        wait_port(port)
        yield found


def _groups(host: Refusing, refuse: str) -> dict[str, Any]:
    """Starts an agent to which these are refused. Returns its groups, {} when it does not run."""
    host.refuse = refuse
    host.start_agent(wait=False)
    try:
        status = host.wait_running()
    except TimeoutError:
        assert host.agent is not None and host.agent.wait(20) == 3
        return {}
    groups: dict[str, Any] = status["groups"]
    assert status["healthy"] == all(g["state"] == "on" or not g["wanted"] for g in groups.values())
    return groups


def _send(host: Refusing, *, spans: bool) -> None:
    """Sends requests. All are answered, and each is a span where `observe` is on."""
    before = len(host.receiver.spans)
    paths = {f"/{time.monotonic_ns()}" for _ in range(COUNT)}
    for path in paths:
        connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=10)  # type: ignore[attr-defined]
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["path"]) == (200, path)
        connection.close()
    if spans:
        host.receiver.wait(lambda all_of: len(all_of) >= before + COUNT, seconds=10)
        found = [span for span in host.receiver.spans[before:] if span.path in paths]
        assert sorted(span.path for span in found) == sorted(paths)


def _without(groups: dict[str, Any]) -> set[str]:
    return {p["program"] for group in groups.values() for p in group["without"]}


def _on(groups: dict[str, Any]) -> set[str]:
    return {name for name, group in groups.items() if group["state"] == "on"}


@pytest.fixture(scope="module")
def usual(host: Refusing) -> dict[str, Any]:
    """The groups without any refusal but those of this kernel."""
    groups = _groups(host, "")
    _send(host, spans=True)
    host.stop_agent()
    return groups


def _batches() -> list[list[str]]:
    """All programs, one of each group at a time: a group says what it lacks, whatever others lack.

    Alone: what nothing works without, and `tl_tick`, which some kernels need for another group.
    """
    alone = {"tl_tick"} | {p.name for p in GROUPS["observe"].programs if p.required}
    queues = [
        [p.name for p in g.programs if p.name not in alone and not p.fexit_only]
        for g in GROUPS.values()
    ]
    return [[name] for name in sorted(alone)] + [
        [name for name in batch if name is not None] for batch in zip_longest(*queues)
    ]


def test_each_program_is_refused_once() -> None:
    tried = sorted(name for batch in _batches() for name in batch)
    # those that only kernels before 6.3 load: molecule/kernels/tests/test_chain.py
    assert tried == sorted(name for name, program in PROGRAMS.items() if not program.fexit_only)


@pytest.mark.parametrize("names", _batches(), ids=",".join)
def test_a_refused_program_takes_away_what_it_gives(
    host: Refusing, usual: dict[str, Any], names: list[str]
) -> None:
    groups = _groups(host, ",".join(names))
    owners = {
        name: group.name
        for name in names
        for group in GROUPS.values()
        if PROGRAMS[name] in group.programs
    }
    if any(PROGRAMS[name].required and owners[name] == "observe" for name in names):
        assert groups == {}, "nothing works without what sees requests"
        host.wait_log(f"group observe is off: .*{names[0]}: Operation not permitted")
        _send(host, spans=False)
        assert host.pins() == []
        return
    gone = {owners[name] for name in names if PROGRAMS[name].required}
    if "tl_tick" in names and BROKEN:
        gone.add("headers")  # no other program finds the processes for which FIONREAD is wrong
    assert _on(groups) == _on(usual) - gone
    without = _without({name: usual[name] for name in _on(usual) - gone})
    status = host.command("status").stdout
    for name in names:
        program, group = PROGRAMS[name], owners[name]
        if group in gone:
            assert f"{name}: Operation not permitted" in groups[group]["reason"]
            assert groups[group]["fix"]
        elif group in _on(usual):
            without |= {p for p, other in PROGRAMS.items() if other.needs == name} | {name}
            (row,) = [p for p in groups[group]["without"] if p["program"] == name]
            assert row["gives"] == program.gives and "Operation not permitted" in row["reason"]
            assert f"without {name}: no {program.gives}" in status
            host.wait_log(f"group {group} is without {name}: no ")
    assert _without({name: groups[name] for name in _on(groups)}) == without
    attached = {p["name"] for p in (host.status() or {})["attached"]["programs"]}
    assert not attached & set(names)
    _send(host, spans=True)
    assert host.stop_agent() == 0 and host.pins() == []


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("cgroup_skb", None),
        ("tp_btf", {"headers", "python", "proxies"} if BROKEN else {"python", "proxies"}),
        ("raw_tp", set()),
        ("sk_msg", {"headers"}),
        ("sockops", {"headers"}),
        ("tc", set()),
        ("sockops,tc", {"headers", "packets"}),
        ("uprobe", {"tls", "go", "go_write", "python"}),
        ("uretprobe", {"tls", "python"}),
        ("iter,fentry,lsm", set()),
    ],
)
def test_one_refused_type_of_programs(
    host: Refusing, usual: dict[str, Any], kind: str, gone: set[str] | None
) -> None:
    groups = _groups(host, kind)
    assert _on(groups) == (set() if gone is None else _on(usual) - gone)
    _send(host, spans=gone is not None)
    if gone is not None:
        doctor = json.loads(host.command("doctor", "--json").stdout)
        assert _on(doctor["groups"]) == _on(groups) and doctor["agent"]["running"]
        assert host.stop_agent() == 0
    assert host.pins() == []
    # without an agent doctor tries by itself
    doctor = json.loads(host.command("doctor", "--json").stdout)
    assert _on(doctor["groups"]) == _on(groups) and not doctor["agent"]["running"]


@pytest.mark.parametrize("name", ["tl_tick", "tl_read", "tl_state", "tl_sent", "tl_unix_sends"])
def test_what_cannot_be_attached_is_left_out_too(
    host: Refusing, usual: dict[str, Any], name: str
) -> None:
    groups = _groups(host, f"attach:{name}")
    assert name in _without(groups)
    _send(host, spans=True)
    assert host.stop_agent() == 0 and host.pins() == []


def test_a_program_that_is_refused_later_does_not_stay_from_an_earlier_run(host: Refusing) -> None:
    _groups(host, "")
    assert any("tl_tick" in pin for pin in host.pins())
    host.stop_agent(signal.SIGKILL)
    assert "tl_tick" in _without(_groups(host, "tl_tick"))
    assert not any("tl_tick" in pin for pin in host.pins())
    _send(host, spans=True)
    assert host.stop_agent() == 0


def test_the_table_is_that_of_the_objects(tmp_path: Path) -> None:
    """Also: a group that needs a newer kernel has no object for older ones, all others have."""
    for path in sorted(directory().glob("*.bpf.o")):
        opened = libbpf.Object(path, pin_root=tmp_path)
        try:
            found = {program.name for program in opened.programs()}
        finally:
            opened.close()
        whole = path.name.removesuffix(".bpf.o").removesuffix("-legacy")
        name = whole.removesuffix(FEXIT)
        expected = {p.name for p in PROGRAMS.values() if p.object == name}
        if name == whole:
            expected -= {p.name for p in PROGRAMS.values() if p.fexit_only}
        assert found == expected, path.name
    for group in GROUPS.values():
        assert all((directory() / f"{name}.bpf.o").exists() for name in group.objects), group.name
        for name in group.objects[:1]:  # a group may have none: the agent alone does its work
            legacy = (directory() / f"{name}-legacy.bpf.o").exists()
            assert legacy == (group.kernel < (5, 15)), group.name


# -- housekeeping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refuse", ["", "tl_end_requests"])
def test_requests_that_nobody_ends_are_swept(monkeypatch: pytest.MonkeyPatch, refuse: str) -> None:
    """Those that are too old to be a parent, and after a crash those of probes, at any age."""
    monkeypatch.setenv(REFUSE, refuse)
    monkeypatch.setattr(sweep, "TOO_OLD_SECONDS", 30.0)  # the machine may have just booted
    cgroup2 = facts.gather().cgroup2
    assert cgroup2 is not None
    probed = abi.RequestFlags.REQUEST_PROBED
    ages = {1: (1, 0), 2: (10, 0), 3: (31, 0), 4: (60, probed), 5: (1, probed), 6: (0, 0)}
    with (
        Operated(start=False) as corner,
        Programs(
            bpffs=corner.bpffs,
            cgroup2=cgroup2,
            roots=[corner.name],
            settings=Settings(abi.Sampler.ALWAYS_ON, 1.0, True, False),
        ) as programs,
    ):
        programs.attach_observe()
        table, states = programs.map_fd("tl_requests"), programs.map_fd("tl_tracestates")

        def fill() -> None:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            for key, (age, flags) in ages.items():
                start = now - age * 10**9 if age else 0  # 0: the entry is being made
                request = abi.Request(
                    start_ns=start,
                    trace_id=bytes(16),
                    span_id=struct.pack("<Q", key),
                    parent_span_id=bytes(8),
                    reader=0,
                    answering=0,
                    fanout=0,
                    trace_flags=1,
                    flags=flags,
                    tracestate_len=3,
                    sock=0,
                    socket=0,
                    java=0,
                    answer_end=0,
                    keeps=0,
                )
                maps.update(table, struct.pack("<Q", key), abi.REQUEST.pack(*request))
                state = struct.pack("<Q512s", key, b"a=b")
                maps.update(states, struct.pack("<Q", key), state)

        def left() -> tuple[set[int], set[int]]:
            return tuple(  # type: ignore[return-value]
                {struct.unpack("<Q", key)[0] for key in maps.keys(fd, 8)} for fd in (table, states)
            )

        fill()
        assert programs.sweep() == 2
        assert left() == ({1, 2, 5, 6}, {1, 2, 5, 6})
        fill()
        assert programs.sweep(earlier=True) == 2
        assert left() == ({1, 2, 3, 6}, {1, 2, 3, 6})
        assert programs.sweep() == 1 and programs.sweep() == 0
        programs.detach()
