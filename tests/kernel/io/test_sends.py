"""Requests sent in any number of pieces and with any body: one header line, no other byte moves.

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
from contextlib import ExitStack

import pytest

from tests.fixtures.counting import Counting
from tests.fixtures.outside import Outside
from tests.fixtures.service import World
from tests.fixtures.sockets import accept, pair, read_all, read_block, read_exactly
from tests.fixtures.wire import DECOY, OK, Context, chunked, head, inserted, send_alone

COUNT = 23


# -- how they are sent -----------------------------------------------------------------------------


def test_header_block_in_two_sends_at_every_byte(world: World, far_listener: socket.socket) -> None:
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


def test_header_block_over_16_kb_is_untouched(world: World, far_listener: socket.socket) -> None:
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


def test_no_stall_of_a_client_with_nagle(world: World, far_listener: socket.socket) -> None:
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
