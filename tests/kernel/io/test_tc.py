"""Our place on the egress of interfaces, by tcx and by clsact, next to programs of others.

Each test has a network namespace with a veth pair of its own. Frames are sent into one end through
a packet socket and read at the other; every program writes a letter at a place of its own, so that
what arrives says who ran.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from throughline.bpf import libbpf, links, tc
from throughline.bpf.prototypes import check, library

pytestmark = pytest.mark.timeout(60)

NAME = "tl_packets_out"
PRIORITY = 49152
ETHERTYPE = 0x88B5  # IEEE 802: for local experiments
SCHED_CLS, SK_SKB_STORE_BYTES, REDIRECT = 3, 9, 23
UNSPEC, OK, SHOT = -1, 0, 2
OURS, THEIRS = 0, 1  # places in the frame

_libc = ctypes.CDLL(None, use_errno=True)


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, immediate)


def _load(*instructions: bytes) -> int:
    code = b"".join(instructions)
    loaded = library().bpf_prog_load(SCHED_CLS, NAME.encode(), b"GPL", code, len(code) // 8, None)
    return check(loaded, "bpf_prog_load")


def writes(letter: str, *, at: int, returns: int = UNSPEC) -> int:
    """A classifier that writes one byte into the frame's payload and returns a verdict."""
    return _load(
        _instruction(0xB7, 0x06, 0, ord(letter)),  # r6 = letter
        _instruction(0x73, 0x6A, -1),  # *(u8 *)(r10 - 1) = r6
        _instruction(0xB7, 0x02, 0, 14 + at),  # r2 = offset
        _instruction(0xBF, 0xA3),  # r3 = r10
        _instruction(0x07, 0x03, 0, -1),  # r3 -= 1
        _instruction(0xB7, 0x04, 0, 1),
        _instruction(0xB7, 0x05, 0, 0),
        _instruction(0x85, 0, 0, SK_SKB_STORE_BYTES),
        _instruction(0xB7, 0x00, 0, returns),
        _instruction(0x95),
    )


def redirects(index: int) -> int:
    """A classifier that sends every frame out of another interface."""
    return _load(
        _instruction(0xB7, 0x01, 0, index),
        _instruction(0xB7, 0x02, 0, 0),
        _instruction(0x85, 0, 0, REDIRECT),
        _instruction(0x95),
    )


class Wire:
    """Two veth pairs in a namespace of their own, and an agent's bpffs."""

    def __init__(self, bpffs: Path, stack: ExitStack) -> None:
        self.bpffs = bpffs
        self._stack = stack
        self.pins = bpffs / "abi0" / "links"
        self.pins.mkdir(parents=True)
        run("ip link set lo up")
        for first, second in (("a0", "b0"), ("a1", "b1")):
            run(f"ip link add {first} type veth peer name {second}")
            for name in (first, second):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
                run(f"ip link set {name} up")

    def program(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def needs_tcx(self) -> None:
        try:
            links.attach_tcx(self.program(writes("T", at=OURS)), index("a0")).destroy()
        except OSError as error:
            assert error.errno == errno.EINVAL, error
            pytest.skip("the kernel has no tcx: Linux 6.6 is the first that has")

    def interfaces(self, fd: int, *, tcx: bool, priority: int = PRIORITY) -> tc.Interfaces:
        if tcx:
            self.needs_tcx()
        found = tc.Interfaces(
            fd,
            name=NAME,
            bpffs=self.bpffs,
            pins=self.pins,
            priority=priority,
            tcx=None if tcx else False,
        )
        self._stack.callback(found.close)
        return found

    def sent(self, *, into: str = "a0", out: str = "b0") -> str | None:
        """What arrives of a frame `..`; None when nothing does."""
        with ExitStack() as stack:
            ends = [
                stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol))
                for protocol in (socket.htons(ETHERTYPE), 0)
            ]
            ends[0].bind((out, ETHERTYPE))
            ends[0].settimeout(0.3)
            ends[1].bind((into, 0))
            frame = b"\xff" * 6 + b"\x02" * 6 + struct.pack("!H", ETHERTYPE) + b".." + bytes(46)
            try:
                ends[1].send(frame)
                return ends[0].recv(64)[14:16].decode()
            except TimeoutError:
                return None
            except OSError as error:  # a packet socket is told of a drop
                assert error.errno == errno.ENOBUFS, error
                return None

    def wait_sent(self, expected: str) -> None:
        """A link whose pin is removed is detached a moment later."""
        deadline = time.monotonic() + 5
        while (found := self.sent()) != expected:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def filters(self, interface: str) -> str:
        return run(f"tc filter show dev {interface} egress")

    def has_clsact(self, interface: str) -> bool:
        return "clsact" in run(f"tc qdisc show dev {interface}")


def run(command: str) -> str:
    return subprocess.run(
        command.split(), check=True, capture_output=True, text=True, timeout=20
    ).stdout


@pytest.fixture
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        stack.callback(os.close, home)
        assert _libc.unshare(0x40000000) == 0, os.strerror(ctypes.get_errno())
        stack.callback(_libc.setns, home, 0)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tl-tc-")))
        subprocess.run(["mount", "-t", "bpf", "bpf", str(directory)], check=True)
        stack.callback(subprocess.run, ["umount", str(directory)], check=True)
        yield Wire(directory, stack)


by = pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])


def index(interface: str) -> int:
    return socket.if_nametoindex(interface)


@by
def test_every_interface_loopback_too(wire: Wire, tcx: bool) -> None:
    interfaces = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=tcx)
    assert (interfaces.attached, wire.sent()) == ([], "..")
    interfaces.follow()
    assert {place.interface for place in interfaces.attached} == {"lo", "a0", "b0", "a1", "b1"}
    assert {place.by for place in interfaces.attached} == {"tcx" if tcx else "clsact"}
    assert {place.priority for place in interfaces.attached} == {None if tcx else PRIORITY}
    assert wire.sent() == "T." and not interfaces.refused
    assert ("pref 49152" in wire.filters("a0")) is not tcx
    interfaces.close()
    tc.remove_all(wire.bpffs, name=NAME)
    wire.wait_sent("..")
    assert not wire.has_clsact("a0")
    assert [p for p in wire.bpffs.rglob("*") if p.is_file() and "debug" not in p.name] == []
    assert not (wire.bpffs / "clsact").exists()


@by
def test_interfaces_come_and_go(wire: Wire, tcx: bool) -> None:
    interfaces = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=tcx)
    interfaces.follow()
    run("ip link add late0 type veth peer name late1")
    run("ip link set late0 up")
    run("ip link set late1 up")
    interfaces.follow()
    assert wire.sent(into="late0", out="late1") == "T."
    run("ip link set late1 down")
    run("ip link set late1 name renamed")
    run("ip link del a1")
    interfaces.follow()
    names = {"lo", "a0", "b0", "late0", "renamed"}
    assert {place.interface for place in interfaces.attached} == names
    remembered = wire.pins.iterdir() if tcx else (wire.bpffs / "clsact").iterdir()
    assert len(list(remembered)) == len(names)
    assert not interfaces.refused and not interfaces.counts
    for _ in range(20):
        run("ip link add quick type veth peer name quick1")
        run("ip link del quick")
        interfaces.follow()
    assert wire.sent() == "T." and not interfaces.refused


@by
def test_a_killed_agent_leaves_its_program_and_the_next_adopts_it(wire: Wire, tcx: bool) -> None:
    if tcx:
        wire.needs_tcx()
    pid = os.fork()
    if pid == 0:
        try:
            wire.interfaces(writes("T", at=OURS), tcx=tcx).follow()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert wire.sent() == "T."
    run("ip link del a1")  # while no agent runs
    interfaces = wire.interfaces(wire.program(writes("U", at=OURS)), tcx=tcx)
    interfaces.follow()
    assert wire.sent() == "U."
    assert wire.filters("a0").count(" handle ") == (0 if tcx else 1)
    remembered = wire.pins.iterdir() if tcx else (wire.bpffs / "clsact").iterdir()
    assert len(list(remembered)) == len(interfaces.attached) == 3
    interfaces.close()
    tc.remove_all(wire.bpffs, name=NAME)
    wire.wait_sent("..")
    assert not wire.has_clsact("a0"), "also the qdisc of the killed one"


@by
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_foreign_tcx_programs_work_on(wire: Wire, tcx: bool, before: bool) -> None:
    wire.needs_tcx()
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=tcx)

    def attach(fd: int) -> links.Link:
        if not before:
            ours.follow()
        link = links.attach_tcx(wire.program(fd), index("a0"))
        ours.follow()
        return link

    rewrites = attach(writes("F", at=THEIRS))
    assert wire.sent() == "TF"
    rewrites.destroy()
    assert wire.sent() == "T."
    # one that ends the chain hides nothing from us with tcx, and clsact comes behind it
    ends = attach(writes("F", at=THEIRS, returns=OK))
    assert wire.sent() == ("TF" if tcx else ".F")
    ends.destroy()
    drops = attach(libbpf.load_constant(SHOT, kind=SCHED_CLS, name="foreign"))
    assert wire.sent() is None
    drops.destroy()
    elsewhere = attach(redirects(index("a1")))
    # ours is on the other interface, too
    assert (wire.sent(), wire.sent(out="b1")) == (None, "T.")
    elsewhere.destroy()
    assert wire.sent() == "T." and not ours.counts


def _foreign_filter(wire: Wire, fd: int, *, priority: int) -> None:
    """A filter as another tool adds it, with its own name and handle."""
    pin = wire.bpffs / "foreign"
    check(library().bpf_obj_pin(wire.program(fd), bytes(pin)), "bpf_obj_pin")
    run(
        f"tc filter add dev a0 egress pref {priority} handle 1 protocol all "
        f"bpf direct-action object-pinned {pin}"
    )
    pin.unlink()


@by
@pytest.mark.parametrize("priority", [1, 49152, 50000])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_foreign_clsact_filters_work_on(wire: Wire, tcx: bool, before: bool, priority: int) -> None:
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=tcx)
    if not before:
        ours.follow()
    if before or tcx:
        run("tc qdisc add dev a0 clsact")
    _foreign_filter(wire, writes("F", at=THEIRS), priority=priority)
    ours.follow()
    assert wire.sent() == "TF"
    ours.close()
    tc.remove_all(wire.bpffs, name=NAME)
    wire.wait_sent(".F")  # their filter stays, and the qdisc that it is in
    run(f"tc filter del dev a0 egress pref {priority}")
    assert wire.sent() == ".." and wire.has_clsact("a0")


def test_filters_that_end_the_chain_decide_by_priority(wire: Wire) -> None:
    run("tc qdisc add dev a0 clsact")
    _foreign_filter(wire, writes("F", at=THEIRS, returns=OK), priority=100)
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False)
    ours.follow()
    assert wire.sent() == ".F", "behind it"
    ours.close()
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False, priority=99)
    ours.follow()
    assert wire.sent() == "TF", "before it"
    assert "pref 49152" not in wire.filters("a0"), "the place of the earlier run is free again"


def test_an_empty_qdisc_that_was_there_stays(wire: Wire) -> None:
    run("tc qdisc add dev a0 clsact")
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False)
    ours.follow()
    ours.close()
    tc.remove_all(wire.bpffs, name=NAME)
    assert wire.has_clsact("a0") and not wire.has_clsact("b0")


def test_a_qdisc_taken_away_comes_back(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tc, "RETRY_SECONDS", 0.0)
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False)
    ours.follow()
    run("tc qdisc del dev a0 clsact")
    assert wire.sent() == ".."
    ours.follow()
    assert wire.sent() == "T." and ours.counts == {"tc_reattached": 1}


def test_a_detached_link_comes_back_but_not_at_once(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=True)
    ours.follow()
    pin = wire.pins / f"{NAME}#{index('a0')}"
    run(f"bpftool link detach pinned {pin}")
    ours.follow()
    assert wire.sent() == ".." and not pin.exists()
    clock: Callable[[], float] = tc.time.monotonic
    monkeypatch.setattr(tc.time, "monotonic", lambda: clock() + tc.RETRY_SECONDS)
    ours.follow()
    assert wire.sent() == "T." and ours.counts == {"tc_reattached": 1}


def test_a_priority_that_is_taken_by_another_kind_is_told(wire: Wire) -> None:
    run("tc qdisc add dev a0 clsact")
    run("tc filter add dev a0 egress pref 49152 protocol all u32 match u8 0 0")
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False)
    ours.follow()
    assert "a0" not in {place.interface for place in ours.attached}
    assert list(ours.refused) == ["a0"] and "propagation.tc.priority" in ours.refused["a0"]
    assert ours.counts == {"tc_refused": 1}
    ours.follow()
    assert ours.counts == {"tc_refused": 1}, "not each second"
    run("ip link del a0")
    ours.follow()
    assert not ours.refused
    assert "b0" not in {place.interface for place in ours.attached}


def test_an_interface_with_the_qdisc_ingress_is_left_alone(wire: Wire) -> None:
    """The kernel would run a filter for the egress of that qdisc on ingress."""
    run("tc qdisc add dev b0 ingress")
    ours = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False)
    ours.follow(only=index("b0"))
    assert wire.sent() == ".." and not ours.attached
    assert "`ingress`" in ours.refused["b0"]
    assert "bpf" not in run("tc filter show dev b0 ingress")
    run("tc qdisc del dev b0 ingress")


def test_two_agents_do_not_share_a_filter(wire: Wire) -> None:
    trial = wire.bpffs / "doctor"
    trial.mkdir()
    first = wire.interfaces(wire.program(writes("T", at=OURS)), tcx=False)
    first.follow()
    second = tc.Interfaces(
        wire.program(writes("U", at=THEIRS)),
        name=NAME,
        bpffs=trial,
        pins=trial,
        priority=PRIORITY,
        tcx=False,
    )
    second.follow(only=index("a0"))
    assert wire.sent() == "TU" and len(second.attached) == 1
    second.close()
    tc.remove_all(trial, name=NAME)
    assert wire.sent() == "T."
