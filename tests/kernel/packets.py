"""The group `packets` on a link of a test's own, and what tcpdump says of the link.

    with Link() as link, Packets(link) as packets, packets.connected() as (client, server):
        with link.captured() as frames, packets.request(trace_id=…, span_id=…):
            client.sendall(b"…")
        read(frames)  # the segments

Contexts are put into the maps in which observe keeps what a thread works for, so that a test says
exactly when a thread has which. Nothing but what a test asks for is attached.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from tests.fleet import cgroups
from tests.kernel.link import Link
from throughline.bpf import abi, libbpf, links, peers, readings
from throughline.features.objects import Objects
from throughline.features.programs import Settings
from throughline.host import facts

SAMPLED = 1
THREAD = struct.Struct("<QQQQiIBBB5x")
_TLS_OUT = struct.Struct("<QQ16s8sBB6x")
_SO_COOKIE = 57
PORT = 7000


@dataclass(frozen=True, slots=True)
class Context:
    trace_id: bytes
    span_id: bytes
    flags: int = SAMPLED

    @classmethod
    def fresh(cls, *, flags: int = SAMPLED) -> Context:
        return cls(os.urandom(16), os.urandom(8), flags)

    @property
    def option(self) -> str:
        """As tcpdump shows the content of the option."""
        tail = b"" if self.flags & SAMPLED else bytes([self.flags])
        return (self.trace_id + self.span_id + tail).hex()


@dataclass(frozen=True, slots=True)
class Segment:
    """One frame, as tcpdump has read it; `seq` counts from the connection's first byte."""

    source: str  # address.port
    flags: str
    seq: int
    length: int
    size: int  # of the packet with its IP header
    option: str | None  # what kind 25 holds, in hexadecimal
    options: str
    checksum: str  # "correct", "incorrect" or "": not said


_PACKET = re.compile(
    r"(?P<source>\S+) > \S+: Flags \[(?P<flags>[^\]]*)\],(?: cksum 0x\w+ \((?P<sum>\w+))?[^\[]*?"
    r"(?:seq (?P<seq>\d+)[^\[]*?)?(?:options \[(?P<options>[^\]]*)\], )?length (?P<length>\d+)"
)
_SIZE = re.compile(r"proto TCP \(6\), length (\d+)\)|payload length: (\d+)\)")


def read(frames: Path, *arguments: str) -> list[Segment]:
    """What tcpdump makes of a capture, in the order of the link."""
    time.sleep(0.2)  # what the other tcpdump has not written yet
    run = subprocess.run(
        ["tcpdump", "-r", str(frames), "-nnvv", "-t", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = []
    text = run.stdout.replace("\n    ", " ").replace("\n\t", " ")
    for line in text.splitlines():
        size, packet = _SIZE.search(line), _PACKET.search(line)
        if size is None or packet is None:
            continue
        options = packet["options"] or ""
        ours = re.search(r"unknown-25 0x([0-9a-f]+)", options)
        found.append(
            Segment(
                source=packet["source"],
                flags=packet["flags"],
                seq=int(packet["seq"] or 0),
                length=int(packet["length"]),
                size=int(size[1]) if size[1] else 40 + int(size[2]),
                option=ours[1] if ours else None,
                options=options,
                checksum=packet["sum"] or "",
            )
        )
    return found


def _born(tid: int) -> int:
    """When a thread of this process began, in hundredths of a second since boot."""
    return int(Path(f"/proc/self/task/{tid}/stat").read_text().rpartition(")")[2].split()[19])


class Packets:
    """See the module. `by` is what writes: "ops", "tc" or "both".

    With "later" neither is attached yet, with None they are not even loaded.
    """

    def __init__(
        self,
        link: Link,
        *,
        by: str | None = "ops",
        networks: tuple[str, ...] = ("198.51.100.0/24", "2001:db8:5::/64"),
        variant: str = "",
        observe: tuple[str, ...] = (),  # programs of observe to attach
        headers: bool = False,
        reads: bool = True,
    ) -> None:
        self._link = link
        self._by = by
        self._networks = networks
        self._variant = variant
        self._observe = observe
        self._headers = headers
        self._reads = reads
        self._stack = ExitStack()

    def __enter__(self) -> Packets:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tl-")))
            subprocess.run(["mount", "-t", "bpf", "bpf", str(directory)], check=True)
            stack.callback(subprocess.run, ["umount", str(directory)], check=True)
            self.cgroup = self._cgroup(directory.name, stack)
            self.objects = Objects(bpffs=directory, map_sizes={})
            self.objects.variant = self._variant
            self.objects.pins.mkdir()
            stack.callback(self.objects.close)
            observe = self.objects.load("observe")
            settings = Settings(
                sampler=abi.Sampler.ALWAYS_ON,
                ratio=1.0,
                parent_based=True,
                trace_unlisted=True,
                packets=self._reads,
            )
            libbpf.update(observe.map_fd("tl_settings"), bytes(4), settings.pack())
            self._maps = {
                name: observe.map_fd(name)
                for name in ("tl_threads", "tl_requests", "tl_counters", "tl_peers", "tl_spans")
            }
            self.tell(*self._networks)
            self._attach(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _cgroup(self, name: str, stack: ExitStack) -> Path:
        cgroup2 = facts.gather().cgroup2
        assert cgroup2 is not None, "no cgroup2 on this machine"
        home = cgroup2
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                home = cgroup2 / line[4:].lstrip("/")
        cgroup = cgroup2 / name
        cgroup.mkdir()
        stack.callback(cgroups.remove, cgroup)
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        stack.callback((home / "cgroup.procs").write_text, str(os.getpid()))
        return cgroup

    def _attach(self, stack: ExitStack) -> None:
        self._root = root = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, root)
        for name in self._observe:
            program = self.objects.get("observe").program(name)
            link = program.attach() if "tp_btf" in program.section else program.attach_cgroup(root)
            stack.callback(link.destroy)
        if self._headers:
            headers = self.objects.load("headers")
            libbpf.attach_map(
                headers.program("tl_send").fd, headers.map_fd("tl_socks"), libbpf.SK_MSG_VERDICT
            )
            stack.callback(headers.program("tl_sockops").attach_cgroup(root).destroy)
        if self._by is None:
            return
        self.loaded = self.objects.load("packets")
        if self._by in ("ops", "both"):
            self.attach_ops(stack)
        if self._by in ("tc", "both"):
            self.attach_tc(self._link.left.interface, stack)
            self.attach_tc("lo", stack)

    def attach_ops(self, stack: ExitStack) -> None:
        """To the cgroup, until the stack is closed."""
        program = self.loaded.program("tl_packets_ops")
        stack.callback(program.attach_cgroup(self._root).destroy)

    def attach_tc(self, interface: str, stack: ExitStack | None = None) -> None:
        """On the egress of an interface of the left end."""
        with self._link.left:
            index = socket.if_nametoindex(interface)
            link = links.attach_tcx(self.loaded.program("tl_packets_out").fd, index)
        (stack or self._stack).callback(link.destroy)

    def tell(self, *networks: str) -> None:
        """Who the peers are."""
        peers.tell(self._maps["tl_peers"], [ip_network(network) for network in networks])

    @property
    def counters(self) -> dict[str, int]:
        """Those that are not 0."""
        found = readings.counters(self._maps["tl_counters"])
        return {name: count for name, count in found.items() if count}

    def spans(self) -> list[abi.Span]:
        """Those that have ended since the last call."""
        records: list[bytes] = []
        ring = libbpf.RingBuffer(self._maps["tl_spans"], records.append)
        ring.consume()
        ring.close()
        whole = abi.SPAN.size
        return [abi.Span(*abi.SPAN.unpack(record.ljust(whole, b"\0"))) for record in records]

    @contextlib.contextmanager
    def request(
        self, context: Context, *, loop: bool = False, holds: bytes | None = None
    ) -> Iterator[None]:
        """The calling thread works for a request meanwhile, and for none afterwards.

        `holds`: the id of another request that its element holds now.
        """
        key = context.span_id
        tid = struct.pack("<I", threading.get_native_id())
        request = abi.Request(
            start_ns=time.monotonic_ns(),
            trace_id=context.trace_id,
            span_id=holds or context.span_id,
            parent_span_id=bytes(8),
            reader=0,
            answering=0,
            fanout=0,
            trace_flags=context.flags,
            flags=0,
            tracestate_len=0,
        )
        libbpf.update(self._maps["tl_requests"], key, abi.REQUEST.pack(*request))
        (number,) = struct.unpack("<Q", key)
        born = _born(threading.get_native_id())
        thread = THREAD.pack(23, number, 0, 0, 0, born, loop, abi.Evidence.THREAD, 0)
        libbpf.update(self._maps["tl_threads"], tid, thread)
        try:
            yield
        finally:
            libbpf.delete(self._maps["tl_threads"], tid)
            libbpf.delete(self._maps["tl_requests"], key)

    def hand_to_tls(self, context: Context, connection: socket.socket | None) -> None:
        """The calling thread has handed a request to its TLS library, for that connection."""
        cookie = bytes(8)
        if connection is not None:
            cookie = connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        out = _TLS_OUT.pack(
            *(23, int.from_bytes(cookie, "little")),
            *(context.trace_id, context.span_id, context.flags, True),
        )
        tid = struct.pack("<I", threading.get_native_id())
        libbpf.update(self.loaded.map_fd("tl_tls_outs"), tid, out)

    @contextlib.contextmanager
    def connected(
        self, version: int = 4, *, port: int = PORT
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A connection from the left end to the right one: both of its sockets."""
        with listening(self._link, version, port=port) as listener:
            client = connect(self._link, version, port=port)
            server, _ = listener.accept()
            server.settimeout(8)
            with client, server:
                yield client, server


def listening(link: Link, version: int, *, port: int = PORT) -> socket.socket:
    """A listener at the right end."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with link.right:
        return socket.create_server((link.addresses(version)[1], port), family=family, backlog=128)


def connect(link: Link, version: int, *, port: int = PORT) -> socket.socket:
    """A connection from the left end."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with link.left:
        client = socket.socket(family)
    client.settimeout(20)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect((link.addresses(version)[1], port))
    return client


def receive(connection: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes, or fewer when the other end closes."""
    received = bytearray()
    while len(received) < count:
        data = connection.recv(count - len(received))
        if not data:
            break
        received += data
    return bytes(received)
