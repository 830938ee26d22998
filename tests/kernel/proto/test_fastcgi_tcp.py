"""FastCGI by TCP: what is inserted into requests, and what the spans say.

The seed is printed; THROUGHLINE_FUZZ_SEED sets another.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fixtures.counting import Counting
from tests.fixtures.fastcgi import (
    ABORT,
    END,
    PARAMS,
    STDERR,
    STDIN,
    STDOUT,
    answer,
    begin,
    inserted,
    pair,
    record,
    simple,
    stream,
)
from tests.fixtures.service import World
from tests.fixtures.sockets import accept, connect, listen, read_exactly
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from tests.fixtures.wire import PARENT, TRACE

SEED = int(os.environ.get("THROUGHLINE_FUZZ_SEED", "20250607"))
REQUESTS = 211
FEW = 23
OURS = 81  # bytes of our record without tracestate
TOO_LONG = 16384  # TL_HEADER_BYTES_MAX
NAMES = [b"QUERY_STRING", b"HTTP_ACCEPT", b"X" * 200, b"HTTP_HOSTS", b"HTTP_TRACEPARENTS"]


@pytest.fixture(autouse=True)
def _needed(world: World) -> None:
    if (world[0].status() or {})["legacy_programs"]:
        pytest.skip("the programs for kernels before 5.15 do not follow FastCGI by TCP")


@contextmanager
def connected(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    with connect(listener, nodelay=True) as near, accept(listener) as far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield near, far


def receive(far: socket.socket, size: int) -> bytes:
    """What has come, at least `size` bytes, and what comes with them."""
    found = read_exactly(far, size)
    far.settimeout(0.02)
    try:
        while more := far.recv(1 << 20):
            found += more
    except TimeoutError:
        pass
    finally:
        far.settimeout(10)
    return found


def ask(near: socket.socket, far: socket.socket, sent: bytes, *, added: int = OURS) -> bytes:
    near.sendall(sent)
    return read_exactly(far, len(sent) + added)


def reply(near: socket.socket, far: socket.socket, got: bytes) -> None:
    far.sendall(got)
    assert read_exactly(near, len(got)) == got


def by_kind(spans: list[Span]) -> tuple[list[Span], list[Span]]:
    clients, servers = ([s for s in spans if s.kind == kind] for kind in ("CLIENT", "SERVER"))
    return clients, servers


# -- one request -----------------------------------------------------------------------------------


def test_requests_on_a_kept_connection(world: World, far_listener: socket.socket) -> None:
    parents = set()
    with connected(far_listener) as (near, far):
        for number in range(FEW):
            body = b"x" * (number % 3)
            sent = simple(f"/kept/{number}", body=body, request=number + 1)
            parents.add(inserted(sent, ask(near, far, sent)).parent_id)
            reply(near, far, answer(404 if number % 2 else 200, request=number + 1))
    spans = world[0].wait_spans(FEW, where=lambda s: s.path.startswith("/kept/"))
    assert {span.span_id for span in spans} == parents
    for span in spans:
        number = int(span.path.rpartition("/")[2])
        assert span.status == (404 if number % 2 else 200)
        assert span.method == ("POST" if number % 3 else "GET")
        assert span.attributes["network.peer.port"] == far_listener.getsockname()[1]


def test_a_context_of_the_application_is_left_alone(
    world: World, far_listener: socket.socket
) -> None:
    named = pair(b"HTTP_TRACEPARENT", f"00-{TRACE}-{PARENT}-01".encode())
    with connected(far_listener) as (near, far):
        for value in (named, pair(b"HTTP_TRACEPARENT", b""), pair(b"HTTP_TRACESTATE", b"a=1")):
            sent = simple("/own", value)
            assert ask(near, far, sent, added=0) == sent
            reply(near, far, answer())
    spans = world[0].wait_spans(3, where=lambda s: s.path == "/own")
    assert [span.parent_span_id for span in spans if span.trace_id == TRACE] == [PARENT]


def test_the_server_reads_what_the_client_wrote(world: World) -> None:
    """With a tracestate, which goes on in the same record."""
    traced, service, outside = world
    named = [
        pair(b"HTTP_TRACEPARENT", f"00-{TRACE}-{PARENT}-01".encode()),
        pair(b"HTTP_TRACESTATE", b"a=1,b=" + b"x" * 200),
    ]
    for number in range(FEW):
        more = named if number % 2 else []
        with outside.connect(service.front) as client, accept(service.front) as server:
            sent = simple(f"/served/{number}", *more)
            client.sendall(sent)
            assert read_exactly(server, len(sent)) == sent
            with connected(service.front) as (near, far):
                onward = simple(f"/onward/{number}")
                size = OURS + (20 + 206 if more else 0)
                found = inserted(onward, ask(near, far, onward, added=size))
                reply(near, far, answer())
            assert found.tracestate == ("a=1,b=" + "x" * 200 if more else "")
            server.sendall(answer(500))
            assert read_exactly(client, len(answer(500))) == answer(500)
            traced.forget()
    spans = traced.wait_spans(3 * FEW, where=lambda s: s.path.startswith(("/served", "/onward")))
    at = {(s.path, s.kind): s for s in spans}
    for number in range(FEW):
        first = at[f"/served/{number}", "SERVER"]
        call = at[f"/onward/{number}", "CLIENT"]
        last = at[f"/onward/{number}", "SERVER"]
        assert first.status == 500 and last.status == 200
        assert (first.trace_id == TRACE) == bool(number % 2)
        assert first.trace_id == call.trace_id == last.trace_id
        assert call.parent_span_id == first.span_id
        assert last.parent_span_id == call.span_id
        assert last.evidence == "header"


# -- what is not touched ---------------------------------------------------------------------------


def test_the_empty_record_in_two_sends(world: World, far_listener: socket.socket) -> None:
    """Its first byte has left: there is no place for ours. The next request has one."""
    count = Counting(world[0])
    with connected(far_listener) as (near, far):
        for cut in range(1, 8):
            sent = simple(f"/split/{cut}")
            at = sent.index(record(PARAMS, b"")) + cut
            near.sendall(sent[:at])
            near.sendall(sent[at:])
            assert receive(far, len(sent)) == sent
            reply(near, far, answer())
        sent = simple("/split/0")
        assert inserted(sent, ask(near, far, sent)).trace_id
        reply(near, far, answer())
    assert count("skip_split_blank", 7) == 7
    assert len(world[0].wait_spans(8, where=lambda s: s.path.startswith("/split/"))) == 8


OTHERS = {
    "another version": begin() + b"\2" + simple("/x")[17:],
    "an unknown type": begin() + record(12, b"x") + simple("/x")[16:],
    "type 0": begin() + bytes(64),
    "HTTP behind it": begin() + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "half a parameter": begin() + record(PARAMS, pair(b"REQUEST_METHOD", b"GET") + b"\x20\x20a")
    + record(PARAMS, b"") + record(STDIN, b""),
    "half a length": begin() + record(PARAMS, pair(b"REQUEST_METHOD", b"GET") + b"\x80\0")
    + record(PARAMS, b"") + record(STDIN, b""),
    "no method": begin() + record(PARAMS, pair(b"REQUEST_URI", b"/x"))
    + record(PARAMS, b"") + record(STDIN, b""),
    "another role": record(1, struct.pack(">HB5x", 2, 1)) + simple("/x")[16:],
    "other flags": record(1, struct.pack(">HB5x", 1, 2)) + simple("/x")[16:],
    "other reserved bytes": record(1, struct.pack(">HB5s", 1, 1, b"12345")) + simple("/x")[16:],
    "request 0": simple("/x", request=0),
    "less than a record": begin()[:15],
    "only a record": begin(),
}  # fmt: skip


@pytest.mark.parametrize("sent", OTHERS.values(), ids=list(OTHERS))
def test_what_only_begins_like_a_request(
    world: World, far_listener: socket.socket, sent: bytes
) -> None:
    """Each of the two sides may send anything then: it arrives, and no request is seen."""
    before = len(world[0].receiver.spans)
    with connected(far_listener) as (near, far):
        near.sendall(sent)
        assert receive(far, len(sent)) == sent
        reply(near, far, b"anything")
        near.sendall(simple("/later"))
        assert receive(far, len(simple("/later"))) == simple("/later")
    assert not world[0].receiver.spans[before:]


def test_multiplexed_requests(world: World, far_listener: socket.socket) -> None:
    """The second has begun before the first is answered: nothing is written from there on."""
    count = Counting(world[0])
    with connected(far_listener) as (near, far):
        first = simple("/multiplexed/1")
        assert inserted(first, ask(near, far, first)).trace_id
        second = simple("/multiplexed/2", request=2)
        near.sendall(second)
        assert receive(far, len(second)) == second
        reply(near, far, answer(request=1))
    with connected(far_listener) as (near, far):
        one, two = (simple(f"/mixed/{n}", request=n) for n in (1, 2))
        mixed = one[:16] + two[:16] + one[16:] + two[16:]
        near.sendall(mixed)
        assert receive(far, len(mixed)) == mixed
    assert count("skip_pipelined", 2) == 2
    assert [s.path for s in world[0].wait_spans(1, where=lambda s: "/m" in s.path)] == [
        "/multiplexed/1"
    ]


def test_parameters_that_are_near_a_limit(world: World, far_listener: socket.socket) -> None:
    """uWSGI takes 4096 bytes, or 8192 or 16384 where it is told so. We look at 16 KB."""
    count = Counting(world[0])
    seen = []
    with connected(far_listener) as (near, far):
        for size in (3900, 3990, 4020, 4040, 4100, 8140, 9000, 16200, 16300, 16400, 40000):
            sent = simple("/limit", pair(b"HTTP_COOKIE", b"x" * size))
            near.sendall(sent)
            seen.append((size, bool(inserted(sent, receive(far, len(sent))).trace_id)))
            reply(near, far, answer())
    assert [size for size, was_inserted in seen if was_inserted] == [3900, 4100, 9000, 16200]
    assert count("skip_near_limit", 5) == 5
    assert count("skip_headers_too_long", 2) == 2


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["client", "server"])
def test_connections_that_close_in_the_middle(world: World, by: str) -> None:
    """The spans end; the next connection is not affected."""
    traced, service, _ = world
    for number in range(FEW):
        path = f"/closed-{by}/{number}"
        with connected(service.front) as (near, far):
            ask(near, far, simple(path))
            far.sendall(record(STDOUT, b"Content-Type: text/plain\r\n\r\nhalf"))
            near.recv(10)
            (near if by == "client" else far).close()
    spans = traced.wait_spans(2 * FEW, where=lambda s: s.path.startswith(f"/closed-{by}"))
    clients, servers = by_kind(spans)
    assert len(clients) == len(servers) == FEW
    assert {s.parent_span_id for s in servers} == {s.span_id for s in clients}
    assert all(span.error for span in spans)


def test_a_request_that_is_aborted(world: World) -> None:
    traced, service, _ = world
    with connected(service.front) as (near, far):
        for number in range(3):
            ask(near, far, simple(f"/aborted/{number}"))
            near.sendall(record(ABORT, b""))
            assert read_exactly(far, 8) == record(ABORT, b"")
            reply(near, far, record(END, bytes(8)))
    spans = traced.wait_spans(6, where=lambda s: s.path.startswith("/aborted"))
    assert [span.status for span in spans] == [500] * 6, "it has written nothing"


# -- pieces ----------------------------------------------------------------------------------------


def test_any_pieces() -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    expected = {}
    with (
        Traced({"propagation": {"limits": "ignore"}}) as traced,
        traced.inside("web"),
        listen() as listener,
    ):
        near, far = connect(listener, nodelay=True), accept(listener)
        for number in range(REQUESTS):
            if chance.random() < 0.2:
                near.close()
                far.close()
                near, far = connect(listener, nodelay=True), accept(listener)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            path = f"/{number}" + "x" * chance.choice([0, 0, 200])
            method = chance.choice([b"GET", b"POST", b"OPTIONS"])
            status = chance.choice([200, 200, 404, 500, 302])
            sent = pieces_of(chance, path, method)
            pieces = sent[1]
            at, inside, length = 0, False, 0
            for piece in pieces:
                near.sendall(piece)
                left = sent[0] - at
                if 0 <= left < len(piece):
                    inside = left + 8 <= len(piece) and left <= TOO_LONG
                at += len(piece)
            written = not sent[2] and inside and sent[3] <= TOO_LONG
            whole = b"".join(pieces)
            length = len(whole) + (OURS if written else 0)
            found = inserted(whole, read_exactly(far, length))
            assert bool(found.trace_id) == written, (number, sent[0], list(map(len, pieces)))
            lines = [b"Content-Type: text/plain\r\n", b"X-Status: 999\r\n"]
            if status != 200:
                lines.append(b"Status: %d Whatever\r\n" % status)
            chance.shuffle(lines)
            body = b"".join(lines) + b"\r\n" + chance.randbytes(chance.choice([0, 9, 40000]))
            got = record(STDERR, b"a warning") if chance.random() < 0.2 else b""
            got += stream(STDOUT, body, chance)
            got += record(END, bytes(8), padding=chance.choice([0, 0, 8]))
            for piece in cut(got, chance):
                far.sendall(piece)
                assert read_exactly(near, len(piece)) == piece
            expected[path] = (method.decode(), status, sent[2], found.parent_id)
        near.close()
        far.close()
        spans = traced.wait_spans(2 * REQUESTS)
        counters = traced.counters()
    clients, servers = by_kind(spans)
    for found_spans in (clients, servers):
        found_all = {s.path: (s.method, s.status, s.trace_id == TRACE) for s in found_spans}
        assert found_all == {path: one[:3] for path, one in expected.items()}, counters
    assert sum(bool(one[3]) for one in expected.values()) > REQUESTS // 3
    client_of = {span.path: span for span in clients}
    for span in servers:
        adopted, parent = expected[span.path][2:]
        if parent:
            assert span.parent_span_id == client_of[span.path].span_id == parent
        else:
            assert span.parent_span_id == (PARENT if adopted else "")


def pieces_of(
    chance: random.Random, path: str, method: bytes
) -> tuple[int, list[bytes], bool, int]:
    """Where the empty record is, the pieces, whether there is a context, bytes of parameters."""
    named = [
        (b"REQUEST_METHOD", method),
        (b"REQUEST_URI", path.encode()),
        (b"HTTP_HOST", b"shop.example"),
        (b"SERVER_PROTOCOL", b"HTTP/1.1"),
    ]
    adopted = chance.random() < 0.2
    if adopted:
        named.append((b"HTTP_TRACEPARENT", f"00-{TRACE}-{PARENT}-01".encode()))
        named.append((b"HTTP_TRACESTATE", b"a=1,b=2"))
    for _ in range(chance.randrange(30)):
        size = chance.choice([0, 1, 30, 130, 1500])
        named.append((chance.choice(NAMES), b"v" * size))
    chance.shuffle(named)
    params = b"".join(pair(*one) for one in named)
    head = begin() + stream(PARAMS, params, chance)
    body = stream(STDIN, chance.randbytes(chance.choice([0, 0, 1, 5000, 90000])), chance)
    return len(head) - 8, list(cut(head + body, chance, first=16)), adopted, len(params)


def cut(data: bytes, chance: random.Random, *, first: int = 0) -> Iterator[bytes]:
    """The pieces in which the bytes are written; the first has at least `first`."""
    if chance.random() < 0.4:
        yield data
        return
    size = chance.choice([1, 3, 8, 9, 17, 128, 129, 2000, 50000])
    while data:
        now = max(size, first)
        yield data[:now]
        data, first = data[now:], 0
        if chance.random() < 0.2:
            size = chance.choice([9, 17, 128, 129, 2000, 50000])


def test_sends_that_are_taken_in_part(world: World) -> None:
    """A socket that does not block, whose buffer is full: no byte is lost, or comes twice."""
    traced, service, _ = world
    chance = random.Random(SEED)
    parts = 0
    with connected(service.front) as (near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
        near.setblocking(False)
        for number in range(FEW):
            body = simple(f"/decoy/{number}") * 2000
            request = begin() + record(PARAMS, pair(b"REQUEST_METHOD", b"POST") + pair(
                b"REQUEST_URI", f"/part/{number}".encode()))  # fmt: skip
            request += record(PARAMS, b"") + stream(STDIN, body, chance)
            view = memoryview(request)
            found = b""
            while view:
                try:
                    size = near.send(view)
                    parts += size < len(view)
                    view = view[size:]
                except BlockingIOError:
                    found += far.recv(1 << 20)
            found += receive(far, len(request) - len(found))
            inserted(request, found)
            near.setblocking(True)
            reply(near, far, answer())
            near.setblocking(False)
    assert parts > FEW
    spans = traced.wait_spans(2 * FEW, where=lambda s: s.path.startswith("/part/"))
    clients, servers = by_kind(spans)
    print(len(clients), len(servers), parts, traced.counters())
    assert len(servers) == FEW
    assert not [span for span in traced.receiver.spans if "/decoy" in span.path]
    known = {span.span_id: span.path for span in clients}
    for span in servers:
        assert known.get(span.parent_span_id, span.path) == span.path
