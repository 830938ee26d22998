"""Random requests and framings, valid and not, through sk_msg and through the ingress.

The far side compares bytes; a reference parser (reference.py) says where a header line may have
been inserted and which context a request carries. The seed is printed; THROUGHLINE_FUZZ_SEED sets
another.
"""

from __future__ import annotations

import os
import random
import re
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

import pytest

from tests.fixtures import reference
from tests.fixtures.outside import Outside
from tests.fixtures.reference import Insertion
from tests.fixtures.service import Service
from tests.fixtures.sockets import accept, connect, read_exactly
from tests.fixtures.traced import Traced
from tests.fixtures.wire import inserted

SEED = int(os.environ.get("THROUGHLINE_FUZZ_SEED", "20250607"))
INSERTED = 70
DECOY = b"GET /decoy HTTP/1.1\r\nHost: decoy.example\r\n\r\n"
PARENT = "00f067aa0ba902b7"
TOKENS = b"!#$%&'*+.^_`|~0123456789ABCXYZabcxyz-"
KNOWN = [
    b"GET",
    b"GET",
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
]
NAMES = [b"Accept", b"X-Trace", b"Cookie", b"Traceparen", b"Traceparentt", b"Tracestat", b"T", b"C"]
NAMES += [
    b"Content-Lengt",
    b"Transfer-Encodin",
    b"Content-Type",
    b"Hos",
    b"Te",
    b"Trailer",
    b"x" * 99,
]
ANSWERS = [
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 304 Not Modified\r\nContent-Length: 17\r\n\r\n",
]
WITH_BODY = [
    b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\nX: y\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
]


class Generator:
    """Random requests of one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def odds(self, percent: float) -> bool:
        return self.dice.random() * 100 < percent

    def word(self, alphabet: bytes, most: int) -> bytes:
        return bytes(self.dice.choices(alphabet, k=self.dice.randint(1, most)))

    def case(self, name: bytes) -> bytes:
        pick = self.dice.random()
        if pick < 0.6:
            return name
        return name.upper() if pick < 0.8 else name.swapcase()

    def traceparent(self) -> bytes:
        dice = self.dice
        value = b"00-%032x-%016x-%02x" % (
            dice.getrandbits(128) | 1 << 100,
            dice.getrandbits(64) | 1,
            dice.getrandbits(2),
        )
        if self.odds(25):
            pick = dice.randrange(6)
            at = dice.randrange(len(value))
            if pick == 0:
                value = value[:at] + bytes([dice.randrange(256)]) + value[at + 1 :]
                value = value.replace(b"\n", b"n").replace(b"\r", b"r")
            elif pick == 1:
                value = value[:at] + value[at + 1 :]
            elif pick == 2:
                value = value[:at] + b"0" + value[at:]
            elif pick == 3:
                value = b"%02x" % dice.randrange(256) + value[2:]
            elif pick == 4:
                value = b"%02x" % dice.randrange(1, 256) + value[2:] + b"-" + self.word(TOKENS, 80)
            else:
                value = value.upper()
        return value

    def tracestate(self) -> bytes:
        dice = self.dice
        members = []
        for _ in range(dice.choice((0, 1, 1, 2, 3, 8, 32, 33))):
            key = self.word(b"abcz019_-*/@", 12)
            value = self.word(bytes(range(0x20, 0x7F)), 14).replace(b",", b"").replace(b"=", b"")
            members.append(key + b"=" + value)
            if self.odds(2):
                members.append(self.word(b"abc =\t,\x01\x80A.", 6))
        return dice.choice((b",", b",", b" , ", b"\t,")).join(members)

    def headers(self) -> list[bytes]:
        dice = self.dice
        lines = [b"Host: far.example"] if not self.odds(5) else []
        for _ in range(dice.choice((0, 1, 1, 2, 3, 5, 9))):
            name = dice.choice(NAMES) if self.odds(70) else self.word(TOKENS, 30)
            most = dice.choice((8, 30, 30, 120, 700))
            value = self.word(bytes(range(0x20, 0x7F)) + b"\x80\xff\t", most)
            lines.append(self.case(name) + b":" + b" " * dice.randrange(3) + value)
        if self.odds(25):
            for _ in range(1 if not self.odds(8) else 2):
                space = dice.choice((b" ", b"", b"\t ", b"  "))
                name = self.case(b"traceparent")
                lines.append(name + b":" + space + self.traceparent() + dice.choice((b"", b" ")))
            for _ in range(dice.choice((0, 1, 1, 2))):
                lines.append(self.case(b"tracestate") + b": " + self.tracestate())
        elif self.odds(2):
            lines.append(b"tracestate: a=1")
        if self.odds(3):
            lines.append(
                dice.choice(
                    (
                        b" folded",
                        b"\tfolded",
                        b"no colon",
                        b"traceparent",
                        b"traceparent : x",
                        b"Transfer-Encoding : chunked",
                        b"Content-Length\t: 5",
                        b"X\x00: y",
                        b": empty",
                        b"X: bare\rtraceparent: y",
                        b"Transfer-Encoding: identity",
                        b"Content-Length: 5",
                        b"Content-Length: 99999999999999999999",
                        b"Content-Length: 0x5",
                        b"Content-Length: ",
                    )
                )
            )
        dice.shuffle(lines)
        return lines

    def body(self) -> tuple[list[bytes], bytes]:
        """Header lines and the body that they frame."""
        dice = self.dice
        pick = dice.random()
        if pick < 0.45:
            return ([], b"") if pick < 0.4 else ([b"Content-Length: 0"], b"")
        size = dice.choice((1, 5, 44, 200, 1500, 1500, 9000))
        data = (DECOY * (size // len(DECOY) + 1))[:size] if self.odds(60) else dice.randbytes(size)
        if pick < 0.75:
            name = self.case(b"Content-Length")
            lines = [name + b":" + b" " * dice.randrange(3) + b"%d" % size]
            if self.odds(3):
                lines *= 2
            return lines, data
        parts, at = [], 0
        while at < size:
            step = dice.randint(1, size)
            part = data[at : at + step]
            at += step
            ext = dice.choice((b"", b"", b"", b";a=b", b' ; q="x\tz"', b";" + b"e" * 200))
            parts.append(dice.choice((b"%x", b"%X", b"0%x")) % len(part) + ext + b"\r\n")
            parts.append(part + b"\r\n")
        parts.append(
            dice.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"000;x\r\nTrailer: GET / HTTP/1.1\r\n\r\n"))
        )
        coding = dice.choice((b"chunked", b"Chunked", b"gzip, chunked", b"gzip ,\tchunked "))
        return [self.case(b"Transfer-Encoding") + b": " + coding], b"".join(parts)

    def request(self) -> bytes:
        dice = self.dice
        if self.odds(0.6):
            return dice.randbytes(dice.randint(1, 300))
        method = dice.choice(KNOWN) if not self.odds(10) else self.word(TOKENS, 18)
        if self.odds(1):
            method = b"CONNECT"
        target = b"/" + self.word(bytes(range(0x21, 0x7F)), dice.choice((9, 40, 40, 300, 1400)))
        if self.odds(10):
            target = b"http://far.example" + target
        version = dice.choice((b"HTTP/1.1",) * 9 + (b"HTTP/1.0",))
        line = method + b" " + target + b" " + version
        if self.odds(1.5):
            line = dice.choice(
                (
                    line.replace(b" ", b"  ", 1),
                    line.lower(),
                    line + b" ",
                    line[:-1] + b"2",
                    line.replace(b"/", b"\x01"),
                    line[:-9],
                    b" " + line,
                    line.replace(b" ", b"\t"),
                )
            )
        framing, body = self.body()
        lines = self.headers()
        for one in framing:
            lines.insert(dice.randint(0, len(lines)), one)
        if self.odds(0.3):
            lines += [b"X: " + b"y" * 98] * dice.randint(150, 200)
        eol = b"\r\n" if not self.odds(4) else b"\n"
        text = eol.join([line, *lines, b"", b""])
        if self.odds(1):
            text = dice.choice((b"\r\n", b"\n", b"\r\n\r\n")) + text
        if self.odds(0.5):
            at = dice.randrange(len(text))
            text = text[:at] + bytes([dice.randrange(256)]) + text[at + 1 :]
        return text + body

    def pieces(self, text: bytes) -> list[bytes]:
        """The text in one to many pieces."""
        dice = self.dice
        if self.odds(55) or len(text) < 2:
            return [text]
        if self.odds(1):
            return [text[i : i + 1] for i in range(min(400, len(text)))] + [text[400:]]
        cuts = sorted({dice.randrange(1, len(text)) for _ in range(dice.choice((1, 1, 2, 3, 7)))})
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def send(generator: Generator, near: socket.socket, pieces: list[bytes]) -> bool:
    """Sends pieces one by one or gathered. Returns whether every piece was a send of its own."""
    if len(pieces) > 1 and generator.odds(15):
        if near.sendmsg(pieces[:500]) != sum(map(len, pieces[:500])):
            raise AssertionError("partial send of a small request")
        return False
    for piece in pieces:
        if piece:
            more = socket.MSG_MORE if generator.odds(4) else 0
            near.sendall(piece, more)
            if more:
                near.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                )  # sends what MSG_MORE holds back
    return True


def split_blank(pieces: list[bytes], at: int, text: bytes) -> bool:
    """Whether the empty line at `at` is cut between CR and LF."""
    edge = 0
    for piece in pieces:
        edge += len(piece)
        if edge == at + 1 and text[at : at + 1] == b"\r":
            return True
    return False


def outgoing(seed: int, count: int, listener: socket.socket) -> Counter[str]:
    """Sends `count` requests through sk_msg, several per connection."""
    generator, seen = Generator(seed), Counter[str]()
    while seen["requests"] < count:
        with connect(listener, nodelay=True) as near, accept(listener) as far:
            seen["connections"] += 1
            sure = True  # the program must have followed all of the connection so far
            for _ in range(generator.dice.randint(1, 40)):
                text = generator.request()
                verdict = reference.request(text)
                pieces = generator.pieces(text)
                alone = send(generator, near, pieces)
                received = read_exactly(far, len(text))
                seen["requests"] += 1
                if received != text:
                    received += read_exactly(far, INSERTED)
                    found = inserted(text, received)
                    assert verdict.insertion is not Insertion.MUST_NOT, text
                    assert received.find(found.parent_id.encode()) - 49 == verdict.at, text
                    seen["inserted"] += 1
                elif verdict.insertion is Insertion.MUST and sure:
                    assert alone and split_blank(pieces, verdict.at, text), (pieces, text)
                    seen["split blank"] += 1
                else:
                    seen[verdict.insertion.value if sure else "after doubt"] += 1
                sure = sure and verdict.in_step
                if not sure and generator.odds(50):
                    break
                answers = ANSWERS
                if verdict.method not in ("HEAD", "CONNECT"):
                    answers = ANSWERS + WITH_BODY
                answer = generator.dice.choice(answers)
                far.sendall(answer)
                assert read_exactly(near, len(answer)) == answer
    return seen


def incoming(seed: int, count: int, service: Service) -> Counter[str]:
    """Sends `count` requests to a service, and judges each by the context of its call."""
    generator, seen = Generator(seed), Counter[str]()
    foreign: set[str] = set()
    while seen["requests"] < count:
        with service.outside.connect(service.front) as client, accept(service.front) as server:
            seen["connections"] += 1
            sure = fresh = True
            for _ in range(generator.dice.randint(1, 40)):
                text = generator.request()
                verdict = reference.request(text)
                pieces = generator.pieces(text)
                send(generator, client, pieces)
                assert read_exactly(server, len(text)) == text
                found = service.call("/call")
                seen["requests"] += 1
                # a connection counts as HTTP from a first segment in capital letters on
                known = not fresh or bool(re.match(rb"[A-Z]{3}[A-Z ]", text))
                fresh = False
                expected = verdict.traceparent
                joined = expected is not None and found.trace_id == expected[0]
                assert joined or found.trace_id not in foreign, "the trace of another request"
                if joined and expected is not None:
                    assert int(found.flags, 16) == expected[2], text
                    if not verdict.doubtful:
                        assert found.tracestate == verdict.tracestate, text
                    seen["joined"] += 1
                else:
                    # the body of a message without certain framing may be taken for a request
                    must = sure and known and verdict.in_step
                    assert not (must and expected), text
                    assert not found.tracestate, text
                    seen["fresh" if must else "doubtful"] += 1
                if expected:
                    foreign.add(expected[0])
                sure = sure and verdict.in_step and known
                if not sure:
                    break
                answer = generator.dice.choice(ANSWERS)
                server.sendall(answer)
                assert read_exactly(client, len(answer)) == answer
    return seen


def in_process(work: Callable[[], Counter[str]], name: str) -> int:
    """Runs work in a child, which prints what it finds. It exits with 1 when it failed."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        begin = time.monotonic()
        seen = work()
        print(f"{name}: {dict(seen)} in {time.monotonic() - begin:.1f} s", flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.mark.parametrize("requests", [21_000, pytest.param(102_000, marks=pytest.mark.long)])
def test_random_requests_and_framings(requests: int) -> None:
    print(f"fuzz: seed {SEED}, {requests} requests")
    with Outside() as first, Outside() as second, Traced() as traced, traced.inside("fuzz"):
        service = Service.make(second, forget=traced.forget)
        with first.listen() as one, first.listen() as two:
            children = [
                in_process(lambda: outgoing(SEED, requests // 3, one), "sk_msg 1"),
                in_process(lambda: outgoing(SEED + 1, requests // 3, two), "sk_msg 2"),
                in_process(lambda: incoming(SEED + 2, requests // 3, service), "ingress"),
            ]
            failed = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        service.close()
        counters = traced.counters()
        print(f"counters: {counters}")
        assert failed == [0, 0, 0]
        assert not counters.get("forced_drop", 0)
        assert not counters.get("skip_no_memory", 0)
        assert counters["injected"] > requests // 4
