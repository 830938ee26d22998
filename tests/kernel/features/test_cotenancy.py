"""Another agent on the same sockets and cgroups works on, no request fails, status names it."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fixtures import paths
from tests.fixtures.load import Load, start_chain
from tests.fixtures.operated import Operated
from tests.fixtures.paths import CHECKOUT
from throughline.bpf import libbpf, maps

SOURCE = paths.BPF / "foreign.bpf.c"
PACKETS_IN, PACKETS_OUT, ENROLLED, REFUSED, SENDS = range(5)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bpf") / "foreign.bpf.o"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"]
    headers = ["-isystem", str(CHECKOUT / "build")]
    command = ["clang", *flags, *headers, "-c", str(SOURCE), "-o", str(found)]
    subprocess.run(command, check=True, timeout=60)
    return found


class Foreign:
    """The other agent's programs, held by this process."""

    def __init__(self, compiled: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._object = libbpf.Object(compiled, pin_root=Path("/nowhere"))
        stack.callback(self._object.close)
        self._object.load()
        self.sockets = self._object.map_fd("foreign_socks")

    def attach(self, cgroup: Path, *names: str) -> None:
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        self._stack.callback(os.close, descriptor)
        for name in names:
            link = self._object.program(name).attach_cgroup(descriptor)
            self._stack.callback(link.destroy)

    def own_sockets(self, cgroup: Path) -> None:
        send = self._object.program("foreign_send")
        libbpf.attach_map(send.fd, self.sockets, libbpf.SK_MSG_VERDICT)
        self.attach(cgroup, "foreign_sockops")

    def counts(self) -> list[int]:
        table = self._object.map_fd("foreign_counts")
        found = []
        for index in range(5):
            value = maps.lookup(table, struct.pack("<I", index), 8)
            assert value is not None
            found.append(struct.unpack("<Q", value)[0])
        return found

    def enrolled(self) -> int:
        return sum(1 for _ in maps.keys(self.sockets, 8))


@pytest.fixture
def foreign(compiled: Path) -> Iterator[Foreign]:
    with ExitStack() as stack:
        yield Foreign(compiled, stack)


def test_sockets_of_another_sockmap_are_left_alone(host: Operated, foreign: Foreign) -> None:
    # attached before ours: it runs first, and its sockhash owns every socket
    foreign.own_sockets(host.cgroup)
    host.start_agent()
    chain = start_chain(host)
    with Load(chain) as load:
        load.wait(1.0)
        counters = host.counters()
        status = host.status()
        assert host.stop_agent() == 0
        before = foreign.counts()
        load.wait(0.5)
    assert not load.failures
    assert counters["enrol_busy"] > 20 and "enrolled" not in counters
    assert not any(a.traceparents for a in load.answers), "not ours to write to"
    # still observed: two server spans and a client span for each request
    assert counters["skip_not_enrolled"] > 20
    assert status is not None and status["healthy"]
    after = foreign.counts()
    assert after[REFUSED] == 0
    assert before[ENROLLED] > 20 and after[ENROLLED] > before[ENROLLED]
    assert before[SENDS] > 20 and after[SENDS] > before[SENDS], "it works on after our end"
    assert host.pins() == []


def test_sockets_that_we_own_are_refused_to_the_other(host: Operated, foreign: Foreign) -> None:
    host.start_agent()
    foreign.own_sockets(host.cgroup)
    chain = start_chain(host)
    with Load(chain) as load:
        load.wait(0.7)
    assert not load.failures and not load.untraced()
    assert foreign.counts()[REFUSED] > 20
    assert host.counters().get("enrol_busy", 0) == 0


def test_packet_programs_of_others_run_beside_ours(host: Operated, foreign: Foreign) -> None:
    foreign.attach(host.cgroup, "foreign_in")
    host.start_agent()
    foreign.attach(host.cgroup, "foreign_out")
    chain = start_chain(host)
    with Load(chain) as load:
        load.wait(0.7)
    assert not load.failures and not load.untraced()
    assert len(host.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
    counts = foreign.counts()
    assert counts[PACKETS_IN] > 3 * len(load.answers)
    assert counts[PACKETS_OUT] > 3 * len(load.answers)
    assert host.stop_agent() == 0
    with Load(chain) as load:
        load.wait(0.3)
    assert not load.failures
    assert foreign.counts()[PACKETS_IN] > counts[PACKETS_IN], "ours took only its own away"


def test_packet_filters_that_systemd_swaps_under_load(host: Operated, compiled: Path) -> None:
    """IPAddressDeny= of a unit and of its slice: filters come and go by BPF_F_ALLOW_MULTI.

    systemd attaches the new one and detaches the old one whenever the unit is loaded anew.
    """
    host.start_agent()
    chain = start_chain(host)
    kept = host.bpffs / "filters"
    subprocess.run(["bpftool", "prog", "loadall", str(compiled), str(kept)], check=True)
    filters = {"ingress": kept / "foreign_in", "egress": kept / "foreign_out"}
    below = [host.cgroup, *(host.cgroup / service for service in ("front", "back"))]

    def change(what: str, cgroup: Path, way: str, *flags: str) -> None:
        command = ["bpftool", "cgroup", what, str(cgroup), way, "pinned", str(filters[way]), *flags]
        subprocess.run(command, check=True, timeout=20)

    try:
        with Load(chain) as load:
            load.wait(0.3)
            for _ in range(5):
                for what, flags in (("attach", ("multi",)), ("detach", ())):
                    for cgroup in below:
                        for way in filters:
                            change(what, cgroup, way, *flags)
            load.wait(0.3)
    finally:
        for pin in kept.iterdir():
            pin.unlink()
        kept.rmdir()
    assert not load.failures and not load.untraced()
    assert len(host.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
    status = host.status()
    assert status is not None and status["healthy"] and not status["missing"]


def test_a_cgroup_that_allows_no_second_program(host: Operated) -> None:
    """bpf_prog_attach without BPF_F_ALLOW_MULTI, as old tools do: the kernel refuses others."""
    pin = host.bpffs / "exclusive"
    subprocess.run(["bpftool", "prog", "load", str(_alone(host)), str(pin)], check=True)
    subprocess.run(
        ["bpftool", "cgroup", "attach", str(host.cgroup), "ingress", "pinned", str(pin)], check=True
    )
    run = host.command("run")
    assert run.returncode == 3
    assert "tl_ingress" in run.stderr and "multi" in run.stderr, run.stderr
    doctor = host.command("doctor")
    assert doctor.returncode == 1 and "multi" in doctor.stdout
    detach = ["bpftool", "cgroup", "detach", str(host.cgroup), "ingress", "pinned", str(pin)]
    subprocess.run(detach, check=True)
    pin.unlink()
    assert host.pins() == []


def _alone(host: Operated) -> Path:
    """An object with one program only, since bpftool loads the first."""
    source = host.directory / "alone.bpf.c"
    source.write_text(
        "#define SEC(name) __attribute__((section(name), used))\n"
        'char LICENSE[] SEC("license") = "GPL";\n'
        'SEC("cgroup_skb/ingress") int alone(void *skb) { return 1; }\n'
    )
    found = source.with_suffix(".o")
    subprocess.run(
        ["clang", "-O2", "-target", "bpf", "-c", str(source), "-o", str(found)], check=True
    )
    return found
