"""Outgoing requests: `traceparent` goes in once, before the empty line, and nothing else moves.

The far side is a plain socket outside of the traced cgroup, which compares bytes.
"""

from __future__ import annotations

import os
import random
import select
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.fixtures.counting import Counting
from tests.fixtures.outside import Outside
from tests.fixtures.service import Service
from tests.fixtures.sockets import accept, pair, read_all, read_block, read_exactly
from tests.fixtures.traced import Traced
from tests.fixtures.wire import OK, PARENT, TRACE, Context, context, head, inserted, send_alone

COUNT = 23
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]
OTHER_METHODS = ["PROPFIND", "PURGE", "QUERY", "M-SEARCH", "X", "get", "VERSION-CONTROL"]
#: looks like a request, and like the end of a header block, wherever one begins to read
DECOY = b"GET /decoy HTTP/1.1\r\nHost: decoy.example\r\n\r\n"


@pytest.fixture
def outside(world: tuple[Traced, Service, Outside]) -> Outside:
    return world[2]


@pytest.fixture
def far_listener(outside: Outside) -> Iterator[socket.socket]:
    with outside.listen() as found:
        yield found


# -- which requests --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/", "/a/b?c=d", "http://far.example/a", "http://[::1]:80/"])
def test_methods_and_targets_on_one_connection(far_listener: socket.socket, target: str) -> None:
    seen = set()
    with pair(far_listener) as (near, far):
        for method in METHODS + OTHER_METHODS:
            for version in ("HTTP/1.1", "HTTP/1.0"):
                text = head("Accept: */*", method=method, target=target, version=version)
                near.sendall(text)
                found = inserted(text, read_block(far))
                assert found.trace_id, method
                seen.add(found.parent_id)
                far.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                near.recv(4096)
    assert len(seen) == 2 * len(METHODS + OTHER_METHODS)


def test_options_of_the_server(far_listener: socket.socket) -> None:
    assert send_alone(far_listener, [head(method="OPTIONS", target="*")]).trace_id


@pytest.mark.parametrize("family", [socket.AF_INET6], ids=["ipv6"])
def test_ipv6(outside: Outside, family: socket.AddressFamily) -> None:
    with outside.listen(family) as listener:
        for _ in range(COUNT):
            assert send_alone(listener, [head()]).trace_id


def test_ipv4_mapped(world: tuple[Traced, Service, Outside]) -> None:
    traced, _, outside = world
    with outside.listen() as listener, socket.socket(socket.AF_INET6) as near:
        near.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        with accept(listener) as far:
            near.sendall(text := head(target="/mapped"))
            assert inserted(text, read_block(far)).trace_id
            far.sendall(OK)
            near.recv(4096)
    (span,) = traced.wait_spans(1, where=lambda s: s.path == "/mapped")
    assert span.attributes["network.peer.address"] == "127.0.0.1"


def test_keep_alive_once_each(world: tuple[Traced, Service, Outside]) -> None:
    traced, _, outside = world
    with outside.listen() as listener, pair(listener) as (near, far):
        parents = set()
        for number in range(211):
            text = head(f"X-Number: {number}", target=f"/keep/{number}")
            near.sendall(text)
            parents.add(inserted(text, read_block(far)).parent_id)
            far.sendall(OK)
            assert read_exactly(near, len(OK)) == OK
    spans = traced.wait_spans(211, where=lambda s: s.path.startswith("/keep/"))
    assert len(spans) == 211
    assert {span.span_id for span in spans} == parents, "the wire names the client's span"


@pytest.mark.parametrize(
    "line",
    [
        f"traceparent: 00-{TRACE}-{PARENT}-01",
        f"TraceParent:00-{TRACE}-{PARENT}-00",
        "traceparent: nonsense",
        "traceparent:",
        "traceparent : spaced",
    ],
)
def test_existing_traceparent_is_left_alone(far_listener: socket.socket, line: str) -> None:
    for lines in ((line,), ("A: b", line, "C: d"), (*["A: b"] * 30, line)):
        assert send_alone(far_listener, [head(*lines)]) == Context()


def test_two_different_traceparents_are_left_alone(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    """Whose they are cannot be told: nothing is written, and neither is taken for the span."""
    traced = world[0]
    count = Counting(traced)
    other = PARENT[::-1]
    for flags in ("00", "01"):
        lines = [f"traceparent: 00-{TRACE}-{PARENT}-01", f"Traceparent: 00-{TRACE}-{other}-{flags}"]
        with pair(far_listener) as (near, far):
            near.sendall(text := head(*lines, "tracestate: a=1", target=f"/two-different/{flags}"))
            assert read_block(far) == text
            far.sendall(OK)
            read_exactly(near, len(OK))
    assert count("restarted_traceparent", 2) == 2
    for name in ("adopted_header", "injected"):
        assert count(name, 0) == 0, name
    spans = traced.wait_spans(2, where=lambda s: s.path.startswith("/two-different/"))
    assert len(spans) == 2
    assert TRACE not in {span.trace_id for span in spans}


def test_existing_traceparent_is_adopted(world: tuple[Traced, Service, Outside]) -> None:
    traced, _, outside = world
    with outside.listen() as listener, pair(listener) as (near, far):
        for number in range(COUNT):
            line = f"traceparent: 00-{TRACE}-{PARENT}-01"
            near.sendall(text := head(line, "tracestate: a=1", target=f"/adopt/{number}"))
            assert read_block(far) == text
            far.sendall(OK)
            read_exactly(near, len(OK))
    spans = traced.wait_spans(COUNT, where=lambda s: s.path.startswith("/adopt/"))
    assert len(spans) == COUNT
    assert {(s.trace_id, s.parent_span_id) for s in spans} == {(TRACE, PARENT)}


# -- how they are sent -----------------------------------------------------------------------------


def test_header_block_in_two_sends_at_every_byte(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    text = head("Accept: */*", "Content-Length: 5", method="POST", target="/two") + b"hello"
    end = text.index(b"\r\n\r\n") + 2
    count = Counting(world[0])
    for at in range(1, len(text)):
        found = send_alone(far_listener, [text[:at], text[at:]])
        if at == end + 1:
            assert found == Context(), "the empty line itself is split"
        else:
            assert found.trace_id, at
    assert count("skip_split_blank", 1) == 1


def test_header_block_in_many_sends(far_listener: socket.socket) -> None:
    text = head("Accept: */*", "Content-Length: 0", method="POST")
    lines = text.splitlines(keepends=True)
    assert send_alone(far_listener, lines).trace_id, "a send per line"
    single = [text[i : i + 1] for i in range(len(text))]
    assert send_alone(far_listener, single) == Context(), "a send per byte splits the empty line"
    assert send_alone(far_listener, [*single[:-2], b"\r\n"]).trace_id


def test_random_splits(far_listener: socket.socket) -> None:
    dice = random.Random(43)
    for _ in range(200):
        lines = [f"X-{i}: {'y' * dice.randrange(700)}" for i in range(dice.randrange(12))]
        body = dice.randbytes(dice.randrange(3000))
        text = head(*lines, f"Content-Length: {len(body)}", method="PUT") + body
        end = text.index(b"\r\n\r\n") + 3
        cuts = {dice.randrange(1, len(text)) for _ in range(dice.randrange(8))} - {end}
        cuts = sorted(cuts | {len(text)})
        pieces = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
        assert send_alone(far_listener, pieces).trace_id, cuts


def test_writev_with_many_buffers(far_listener: socket.socket) -> None:
    body = DECOY * 5
    text = head(f"Content-Length: {len(body)}", method="POST") + body
    for size in (1, 2, 7, 64):
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        with pair(far_listener) as (near, far):
            assert near.sendmsg(parts) == len(text)
            near.shutdown(socket.SHUT_WR)
            assert inserted(text, read_all(far)).trace_id, size


def test_msg_more(far_listener: socket.socket) -> None:
    body = DECOY
    text = head(f"Content-Length: {len(body)}", method="POST")
    for cut in (10, len(text) - 2, len(text)):
        with pair(far_listener) as (near, far):
            near.send(text[:cut], socket.MSG_MORE)
            near.send(text[cut:], socket.MSG_MORE)
            near.send(body)
            near.shutdown(socket.SHUT_WR)
            assert inserted(text + body, read_all(far)).trace_id


def test_cork(far_listener: socket.socket) -> None:
    text = head("Accept: */*")
    with pair(far_listener) as (near, far):
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        for line in text.splitlines(keepends=True):
            near.sendall(line)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        near.shutdown(socket.SHUT_WR)
        assert inserted(text, read_all(far)).trace_id


def test_sendfile_bodies(far_listener: socket.socket) -> None:
    body = DECOY * 30_000
    with tempfile.TemporaryFile() as file, pair(far_listener) as (near, far):
        file.write(body)
        file.flush()
        text = head(f"Content-Length: {len(body)}", method="PUT")

        def send() -> None:
            near.sendall(text)
            at = 0
            while at < len(body):
                at += os.sendfile(near.fileno(), file.fileno(), at, len(body) - at)
            near.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        received = read_all(far)
        thread.join()
    assert inserted(text + body, received).trace_id


@pytest.mark.parametrize("size", [1, 90, 4000])
def test_writev_of_forty_pieces(far_listener: socket.socket, size: int) -> None:
    """More pieces than a message of the kernel has places (17); the connection stays in step."""
    lines = [f"X-{number}: ".ljust(size, "y") for number in range(20)]
    first = head(f"Content-Length: {19 * size}", method="POST")
    pieces = [first[:-2], *(f"{line}\r\n".encode() for line in lines), b"\r\n"]
    pieces = [*pieces[:20], b"".join(pieces[20:]), *[b"z" * size] * 19]
    assert len(pieces) == 40
    text = b"".join(pieces)
    with pair(far_listener) as (near, far):
        for _ in range(3):
            sender = threading.Thread(target=send_pieces, args=(near, pieces))
            sender.start()
            over = sum(map(len, pieces[:21])) > 16384  # of headers: untouched
            received = read_exactly(far, len(text) + (0 if over else 70))
            sender.join()
            assert bool(inserted(text, received).trace_id) != over
            far.sendall(OK)
            read_exactly(near, len(OK))
            if over:
                break  # what is so long is not followed


def send_pieces(near: socket.socket, pieces: list[bytes]) -> None:
    """One writev, and what it did not take."""
    sent = os.writev(near.fileno(), pieces)
    near.sendall(b"".join(pieces)[sent:])


@pytest.mark.parametrize("cork", [True, False], ids=["cork", "plain"])
@pytest.mark.parametrize("what", ["body", "all", "head-and-body"])
def test_sendfile_under_cork(far_listener: socket.socket, what: str, cork: bool) -> None:
    """As nginx and Apache upload: the header, then a file; or all of it from a file."""
    with tempfile.TemporaryFile() as file, pair(far_listener) as (near, far):
        for size in (10, 3000, 60_000):
            body = (DECOY * (size // len(DECOY) + 1))[:size]
            text = head(f"Content-Length: {size}", method="PUT")
            from_file = {"body": body, "all": text + body, "head-and-body": text[-40:] + body}[what]
            file.seek(0)
            file.truncate()
            file.write(from_file)
            file.flush()
            before = (text + body)[: -len(from_file)]
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, cork)
            if before:
                near.sendall(before)
            sender = threading.Thread(target=send_file, args=(near, file.fileno(), len(from_file)))
            sender.start()
            received = read_exactly(far, len(text + body) + 70)
            sender.join()
            assert inserted(text + body, received).trace_id, size
            far.sendall(OK)
            read_exactly(near, len(OK))


def send_file(near: socket.socket, file: int, size: int) -> None:
    at = 0
    while at < size:
        at += os.sendfile(near.fileno(), file, at, size - at)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


@pytest.mark.parametrize("size", [1000, 1100, 4000, 4200, 8000, 16000])
def test_long_request_line(far_listener: socket.socket, size: int) -> None:
    for text in (head(target="/" + "x" * size), head("X: " + "x" * size)):
        for pieces in ([text], [text[:900], text[900:]]):
            assert send_alone(far_listener, pieces).trace_id


def test_many_header_lines(far_listener: socket.socket) -> None:
    for lines in (50, 100, 140):
        text = head(*[f"X-{i}: {'y' * 90}" for i in range(lines)])
        assert len(text) <= 16384
        assert send_alone(far_listener, [text]).trace_id, lines


def test_header_block_over_16_kb_is_untouched(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    count = Counting(world[0])
    cases = [
        head(*["X: " + "y" * 90] * 200),
        head("X: " + "y" * 16400),
        head("X: " + "y" * 30000),
        head(target="/" + "y" * 17000),
        head(*["X: " + "y" * 90] * 2000),
    ]
    for text in cases:
        assert send_alone(far_listener, [text]) == Context(), len(text)
        cut = len(text) // 2
        assert send_alone(far_listener, [text[:cut], text[cut:]]) == Context(), len(text)
    assert count("skip_headers_too_long", 2 * len(cases)) == 2 * len(cases)


def test_small_request_arrives_in_one_piece(far_listener: socket.socket) -> None:
    """A receiver that looks at one recv only sees the header as well."""
    for size in (0, 500, 3000, 12000):
        body = b"x" * 200
        text = head(f"X: {'y' * size}", f"Content-Length: {len(body)}", method="POST") + body
        for _ in range(COUNT):
            with pair(far_listener) as (near, far):
                near.sendall(text)
                assert inserted(text, far.recv(65536)).trace_id, size


def test_no_stall_of_a_client_with_nagle(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    """What was inserted does not wait for the acknowledgement of what stands in front."""

    def p50(near: socket.socket, far: socket.socket, text: bytes) -> float:
        times = []
        for _ in range(101):
            begin = time.perf_counter()
            near.sendall(text)
            got = b""
            while len(got) < len(text):
                got += far.recv(65536)
            times.append(time.perf_counter() - begin)
            far.sendall(OK)
            read_exactly(near, len(OK))
        return statistics.median(times)

    for text in (
        head(),
        head(f"X: {'y' * 6000}"),
        head("Content-Length: 9", method="PUT") + b"9" * 9,
    ):
        with pair(far_listener) as (near, far):
            traced_p50 = p50(near, far, text)
        with ExitStack() as stack:
            near = stack.enter_context(world[2].make())
            near.connect(far_listener.getsockname())
            plain_p50 = p50(near, stack.enter_context(accept(far_listener)), text)
        assert traced_p50 < plain_p50 + 0.005, (traced_p50, plain_p50)


# -- bodies ----------------------------------------------------------------------------------------


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_bodies_that_look_like_requests(far_listener: socket.socket) -> None:
    """On one connection, so that the framing is followed exactly."""
    with pair(far_listener) as (near, far):
        for copies in (1, 2, 9, 100):
            body = DECOY * copies
            for text in (
                head(f"Content-Length: {len(body)}", method="POST") + body,
                head("Transfer-Encoding: chunked", method="POST") + chunked(body, 997),
                head("Transfer-Encoding: gzip, Chunked", method="POST") + chunked(body, len(body)),
                head("Content-Length:  0 ", method="POST"),
                head("Transfer-Encoding: chunked", method="POST")
                + b"5;ext=1\r\nhello\r\n0\r\nTrailer: x\r\nGET / HTTP/1.1\r\n\r\n",
            ):
                for size in (len(text), 1000):
                    received = b""
                    for at in range(0, len(text), size):
                        near.sendall(text[at : at + size])
                        received += read_exactly(far, len(text[at : at + size]))
                    received += read_exactly(far, 70)
                    assert inserted(text, received).trace_id
                    far.sendall(OK)
                    read_exactly(near, len(OK))


def test_body_split_at_every_byte(far_listener: socket.socket) -> None:
    tail = chunked(DECOY, 20)
    text = head("Transfer-Encoding: chunked", method="POST")
    with pair(far_listener) as (near, far):
        for at in range(1, len(tail)):
            near.sendall(text)
            near.sendall(tail[:at])
            near.sendall(tail[at:])
            assert inserted(text + tail, read_exactly(far, len(text + tail) + 70)).trace_id
            far.sendall(OK)
            read_exactly(near, len(OK))


def test_big_bodies(far_listener: socket.socket) -> None:
    """20 MB, in one send and in many; the next request of the connection is traced as well."""
    body = (DECOY * (20_000_000 // len(DECOY) + 1))[:20_000_000]
    with pair(far_listener) as (near, far):
        for size in (len(body), 65536):
            text = head(f"Content-Length: {len(body)}", method="PUT")

            def send(size: int = size, text: bytes = text) -> None:
                view = memoryview(text + body)
                for at in range(0, len(view), size):
                    near.sendall(view[at : at + size])

            thread = threading.Thread(target=send)
            thread.start()
            received = read_exactly(far, len(text) + 70 + len(body))
            thread.join()
            assert inserted(text, received[: len(text) + 70]).trace_id
            assert received[len(text) + 70 :] == body
            far.sendall(OK)
            read_exactly(near, len(OK))
        near.sendall(text := head())
        assert inserted(text, read_block(far)).trace_id


def send_nonblocking(near: socket.socket, text: bytes) -> int:
    """Sends all, as an event loop does; returns how often a part only was taken."""
    view, partial = memoryview(text), 0
    while view:
        select.select([], [near], [])
        try:
            sent = near.send(view)
        except BlockingIOError:
            continue
        partial += sent < len(view)
        view = view[sent:]
    return partial


@pytest.mark.parametrize("framing", ["length", "chunk-per-send", "chunks-at-once"])
@pytest.mark.parametrize("buffer", [8192, 100_000])
def test_partial_sends_of_a_nonblocking_client(outside: Outside, framing: str, buffer: int) -> None:
    """A full send buffer takes a part of a send only: the rest comes again, and is still a body."""
    body = DECOY * 100_000
    if framing == "length":
        sends = [head(f"Content-Length: {len(body)}", method="PUT") + body]
    else:
        sends = [head("Transfer-Encoding: chunked", method="PUT")]
        for at in range(0, len(body), 150_001):
            part = body[at : at + 150_001]
            sends.append(b"%x\r\n%s\r\n" % (len(part), part))
        sends.append(b"0\r\n\r\n")
        if framing == "chunks-at-once":
            sends = [b"".join(sends)]
    text = b"".join(sends)
    partial = 0
    with outside.listen() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        with pair(listener) as (near, far):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            near.setblocking(False)

            def send() -> None:
                nonlocal partial
                for one in sends:
                    partial += send_nonblocking(near, one)

            thread = threading.Thread(target=send)
            thread.start()
            time.sleep(0.1)  # the buffers fill up
            received = read_exactly(far, len(text) + 70)
            thread.join()
            assert partial > 1, "nothing was sent in part: the test is none"
            assert inserted(text, received).trace_id
            far.sendall(OK)
            near.settimeout(10)
            read_exactly(near, len(OK))
            near.sendall(text := head())
            found = inserted(text, read_block(far))
            if framing != "chunks-at-once":
                assert found.trace_id, "the connection is still in step"


def test_request_that_finds_the_send_buffer_full(far_listener: socket.socket) -> None:
    """An early answer, then the next request while the last body still waits to be sent."""
    dice = random.Random(47)
    for _ in range(40):
        body = DECOY * dice.randrange(40, 4000)
        first = head(f"Content-Length: {len(body)}", method="PUT") + body
        second = head("X: " + "y" * dice.randrange(9000))
        with pair(far_listener) as (near, far):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, dice.randrange(4608, 60000))
            near.setblocking(False)
            block = b""
            stuck = 0
            for text in (first, second):
                view = memoryview(text)
                if text is second:
                    far.sendall(OK)
                    select.select([near], [], [])
                    near.recv(4096)
                while view:
                    try:
                        view = view[near.send(view) :]
                        stuck = 0
                    except BlockingIOError:
                        stuck += 1
                        # as little as makes room
                        if text is second or stuck > 3:
                            block += far.recv(dice.randrange(1, 30000))
                        else:
                            select.select([], [near], [], 0.002)
            near.shutdown(socket.SHUT_WR)
            block += read_all(far)
        at = len(first) + 70
        assert inserted(first, block[:at]).trace_id
        inserted(second, block[at:])


# -- what is left alone ----------------------------------------------------------------------------


def test_pipelined_requests_are_untouched(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    count = Counting(world[0])
    texts = [head(target=f"/pipe/{i}") for i in range(5)]
    with pair(far_listener) as (near, far):
        near.sendall(b"".join(texts))
        near.shutdown(socket.SHUT_WR)
        received = read_all(far)
    first = len(texts[0]) + 70
    assert inserted(texts[0], received[:first]).trace_id
    assert received[first:] == b"".join(texts[1:])
    with pair(far_listener) as (near, far):
        for text in texts:
            near.sendall(text)
        near.shutdown(socket.SHUT_WR)
        assert read_all(far)[first:] == b"".join(texts[1:])
    assert count("skip_pipelined", 2) == 2


MALFORMED = [
    ("Content-Length: 3", "Content-Length: 4"),
    ("Content-Length: 3, 3",),
    ("Content-Length: +3",),
    ("Content-Length: 3x",),
    ("Content-Length: 3 3",),
    ("Content-Length:",),
    ("Content-Length : 3",),
    ("Content-Length: 3", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked, gzip",),
    ("Transfer-Encoding: chunked\r\n gzip",),
    ("Transfer-Encoding: xchunked",),
    ("Transfer-Encoding: chun\rked",),
    ("A: b\r\n folded",),
]


def test_contradictory_requests_are_untouched(
    world: tuple[Traced, Service, Outside], far_listener: socket.socket
) -> None:
    count = Counting(world[0])
    for lines in MALFORMED:
        text = head(*lines, method="POST") + b"abc" + DECOY
        assert send_alone(far_listener, [text]) == Context(), lines
    old = head("Transfer-Encoding: chunked", method="POST", version="HTTP/1.0")
    assert send_alone(far_listener, [old + chunked(DECOY, 9)]) == Context()
    assert send_alone(far_listener, [head("tracestate: a=1")]) == Context()
    assert count("skip_malformed", len(MALFORMED) + 1) == len(MALFORMED) + 1
    assert count("skip_own_tracestate", 1) == 1


def test_bytes_that_went_by_unseen(far_listener: socket.socket) -> None:
    """TCP Fast Open sends before the connection is enrolled: what follows is no first request."""
    for first in (head("Content-Length: 200", method="POST"), head()):
        with socket.socket() as near:
            near.sendto(first, socket.MSG_FASTOPEN, far_listener.getsockname())
            near.sendall(DECOY)
            near.sendall(DECOY)
            near.shutdown(socket.SHUT_WR)
            with accept(far_listener) as far:
                assert read_all(far) == first + DECOY + DECOY


# -- context ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_flags_are_kept(world: tuple[Traced, Service, Outside], flags: str) -> None:
    text = head(f"traceparent: 00-{TRACE}-{PARENT}-{flags}", "tracestate: a=1")
    found = world[1].serve([text], "/flags")
    assert (found.trace_id, found.flags, found.tracestate) == (TRACE, flags, "a=1")


def test_root_is_random_and_sampled(far_listener: socket.socket) -> None:
    found = []
    # a thread that serves nothing has no context to inherit
    thread = threading.Thread(
        target=lambda: found.extend(send_alone(far_listener, [head()]) for _ in range(COUNT))
    )
    thread.start()
    thread.join()
    assert {one.flags for one in found} == {"03"}
    assert len({one.trace_id for one in found}) == COUNT


def test_long_tracestate_is_inherited(world: tuple[Traced, Service, Outside]) -> None:
    for size in (1, 100, 511, 512):
        state = ",".join(f"k{i}=".ljust(100, "v") for i in range(6))[:size] if size > 3 else "a=1"
        text = head(f"traceparent: 00-{TRACE}-{PARENT}-01", f"tracestate: {state}")
        assert world[1].serve([text], "/state").tracestate == state


def test_bytes_of_the_agent_s_own_choice_only(far_listener: socket.socket) -> None:
    """Bare LF lines: the insertion has CR LF, the rest is as it was."""
    text = b"GET / HTTP/1.1\nHost: far.example\n\n"
    assert send_alone(far_listener, [text]).trace_id
    assert context(b"x") == Context()
