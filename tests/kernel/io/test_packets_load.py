"""Many connections at once with options on what they send: every byte arrives, no segment too big.

Each connection writes messages of all sizes, with a context of its own or without one, and gets
each back. tcpdump says which context left with which bytes.
"""

from __future__ import annotations

import bisect
import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fixtures.capture import read
from tests.fixtures.link import Link
from tests.fixtures.lossy import Loss
from tests.fixtures.packets import Context, Packets, connect, listening
from tests.fixtures.sockets import read_exactly

pytestmark = pytest.mark.timeout(90)

CONNECTIONS = 64
SIZES = (1, 100, 1392, 1419, 1420, 1421, 1448, 1449, 2897, 5000, 8948, 20_000, 60_000)


@dataclass(slots=True)
class Written:
    """What one connection has written: where each message starts, and its context if it had one."""

    port: int
    starts: list[int] = field(default_factory=list)
    contexts: list[Context | None] = field(default_factory=list)

    def context_at(self, seq: int) -> Context | None:
        return self.contexts[bisect.bisect_right(self.starts, seq) - 1]


@contextlib.contextmanager
def echoing(link: Link, version: int) -> Iterator[None]:
    """Sends everything back that comes to the right end."""
    with listening(link, version) as listener:

        def echo(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=echo, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def converse(
    link: Link, packets: Packets | None, *, version: int, seed: int, messages: int, largest: int
) -> Written:
    """One connection with so many messages; raises when a byte is wrong or missing."""
    plan = random.Random(seed)
    sizes = [size for size in SIZES if size <= largest]
    with connect(link, version) as client:
        written = Written(port=client.getsockname()[1])
        place = 1
        for _ in range(messages):
            data = plan.randbytes(plan.choice(sizes))
            context = Context.fresh() if plan.random() < 0.8 else None
            written.starts.append(place)
            written.contexts.append(context)
            place += len(data)
            with packets.request(context) if packets and context else contextlib.nullcontext():
                client.sendall(data)
            assert read_exactly(client, len(data)) == data
        return written


def load(
    link: Link,
    packets: Packets | None,
    *,
    version: int,
    messages: int = 8,
    largest: int = SIZES[-1],
) -> list[Written]:
    with echoing(link, version), ThreadPoolExecutor(CONNECTIONS) as pool:
        runs = [
            pool.submit(
                converse,
                link,
                packets,
                version=version,
                seed=seed,
                messages=messages,
                largest=largest,
            )
            for seed in range(CONNECTIONS)
        ]
        return [run.result() for run in runs]


def check_contexts(frames: Path, written: list[Written]) -> None:
    """Whatever left with an option left with that of the message it belongs to."""
    by_port = {one.port: one for one in written}
    seen = 0
    for segment in read(frames):
        port = int(segment.source.rpartition(".")[2])
        if segment.option is None:
            continue
        assert port in by_port, f"an answer with an option: {segment}"
        context = by_port[port].context_at(segment.seq)
        assert context is not None and context.option == segment.option, segment
        seen += 1
    assert seen


@pytest.mark.parametrize(
    ("by", "offloads", "mtu", "version"),
    [
        ("ops", True, 1500, 4),
        ("ops", False, 1500, 6),
        ("ops", False, 1280, 4),
        ("ops", True, 1280, 6),
        ("ops", False, 9000, 4),
        ("tc", True, 1500, 6),
        ("tc", False, 1500, 4),
        ("tc", False, 1280, 6),
        ("tc", False, 9000, 6),
    ],
)
def test_every_byte_arrives(by: str, offloads: bool, mtu: int, version: int) -> None:
    with Link(mtu=mtu, offloads=offloads) as link, Packets(link, by=by) as packets:
        before = link.left.statistics()
        with link.captured() as frames:
            written = load(link, packets, version=version)
            after = link.left.statistics()
            check_contexts(frames, written)
            if not offloads:
                assert max(segment.size for segment in read(frames)) <= mtu
        counters = packets.counters
    wanted = sum(context is not None for one in written for context in one.contexts)
    if by == "ops":
        assert counters["option_written"] >= wanted
    else:
        assert counters["option_written"] + counters.get("option_too_big", 0) >= wanted
    for name in ("EstabResets", "OutRsts", "InCsumErrors", "TCPAbortOnTimeout"):
        assert after[name] == before[name], name


def test_attached_and_detached_under_load() -> None:
    """Connections go on as if nothing had been, also with room for what nobody writes any more."""
    done = threading.Event()
    with Link(offloads=False) as link, Packets(link, by="later") as packets:

        def change() -> None:
            while not done.wait(0.01):
                with ExitStack() as stack:
                    packets.attach_ops(stack)
                    packets.attach_tc("left", stack)
                    done.wait(0.01)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            with link.captured() as frames:
                written = load(link, packets, version=4)
                check_contexts(frames, written)
                assert max(segment.size for segment in read(frames)) <= 1500
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("by", ["ops", "tc"])
def test_threads_that_share_a_connection(by: str) -> None:
    """They write one after the other, with a context or without, and nobody waits for an answer."""
    lock = threading.Lock()
    with Link() as link, Packets(link, by=by) as packets, link.captured() as frames:
        with packets.connected() as (client, server):
            written = Written(port=client.getsockname()[1])
            place = 1

            def write(seed: int) -> None:
                nonlocal place
                plan = random.Random(seed)
                for _ in range(100):
                    context = Context.fresh() if plan.random() < 0.7 else None
                    data = bytes(plan.choice([1, 50, 700, 1420, 3000]))
                    request = packets.request(context) if context else contextlib.nullcontext()
                    with request, lock:
                        written.starts.append(place)
                        written.contexts.append(context)
                        place += len(data)
                        client.sendall(data)

            with ThreadPoolExecutor(8) as pool:
                runs = [pool.submit(write, seed) for seed in range(8)]
                server.settimeout(0.05)
                while not all(run.done() for run in runs):
                    # answers come in between, and acknowledge
                    server.sendall(b"x")
                    with contextlib.suppress(TimeoutError):
                        server.recv(65536)
                for run in runs:
                    run.result()
        check_contexts(frames, [written])


@dataclass(frozen=True, slots=True)
class Repeated:
    segments: int
    again: int

    @property
    def share(self) -> float:
        return self.again / self.segments


def lossy(by: str | None, *, sack: bool, version: int, first: int = 0) -> tuple[Repeated, int]:
    """Retransmissions of the left end under one plan of losses, and the options that it wrote."""
    plan = Loss(drop=0.02, repeat=0.01, reorder=0.02)
    with Link(loss=plan, sack=sack) as link, Packets(link, by=by) as packets:
        before = link.left.statistics()
        with link.captured() as frames:
            written = load(link, packets, version=version, messages=12, largest=20_000)
            if by:
                check_contexts(frames, written)
        after = link.left.statistics()
        assert after["EstabResets"] == before["EstabResets"]
        assert after["OutRsts"] == before["OutRsts"]
        assert after["InCsumErrors"] == before["InCsumErrors"]
        difference = {name: after[name] - before[name] for name in ("OutSegs", "RetransSegs")}
        repeated = Repeated(difference["OutSegs"], difference["RetransSegs"])
        return repeated, packets.counters.get("option_written", 0)


@pytest.mark.parametrize(("sack", "version"), [(True, 4), (False, 6)])
def test_no_storm_on_a_lossy_link(sack: bool, version: int) -> None:
    """Segments lost, repeated and out of order: as many are sent again as without us."""
    without, none = lossy(None, sack=sack, version=version)
    assert not none
    print(f"without: {without} {without.share:.3f}")
    for by in ("ops", "tc"):
        with_ours, options = lossy(by, sack=sack, version=version)
        print(f"{by}: {with_ours} {with_ours.share:.3f}, {options} options")
        assert options
        assert with_ours.share < 1.5 * without.share + 0.01
