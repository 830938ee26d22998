"""Incoming `traceparent` and `tracestate`: any split, any form, judged by what a call carries."""

from __future__ import annotations

import random
import socket

import pytest

from tests.fixtures.service import Service, World
from tests.fixtures.sockets import accept, listen
from tests.fixtures.wire import Context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
VALUE = f"00-{TRACE}-{PARENT}-01"
COUNT = 23


@pytest.fixture
def service(world: World) -> Service:
    return world[1]


def request(*lines: str, path: str = "/", method: str = "GET", eol: str = "\r\n") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: service.example", *lines, "", ""]
    return eol.join(head).encode("latin-1")


def joined(found: Context) -> bool:
    return found.trace_id == TRACE


# -- segments --------------------------------------------------------------------------------------

SPLIT = request(
    "Accept: */*", f"TraceParent: {VALUE}", "tracestate: a=1,b=2", "tracestate: c=3", path="/split"
)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_two_segments_split_at_every_byte(world: World, family: socket.AddressFamily) -> None:
    service = Service.make(world[2], family, forget=world[0].forget)
    try:
        for at in range(1, len(SPLIT)):
            found = service.serve([SPLIT[:at], SPLIT[at:]], f"/split/{at}")
            assert joined(found), f"split at {at}: {SPLIT[:at]!r}"
            assert (found.flags, found.tracestate) == ("01", "a=1,b=2,c=3"), at
    finally:
        service.close()


def test_one_byte_at_a_time(service: Service) -> None:
    pieces = [SPLIT[i : i + 1] for i in range(len(SPLIT))]
    for _ in range(COUNT):
        assert service.serve(pieces, "/byte").tracestate == "a=1,b=2,c=3"


def test_random_splits_of_long_headers(service: Service) -> None:
    dice = random.Random(41)
    for _ in range(COUNT):
        filler = [f"X-{i}: {'y' * dice.randrange(600)}" for i in range(dice.randrange(20))]
        dice.shuffle(lines := [*filler, f"traceparent: {VALUE}", "tracestate: a=1"])
        text = request(*lines, path="/random")
        cuts = sorted({*(dice.randrange(1, len(text)) for _ in range(9)), len(text)})
        pieces = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
        found = service.serve(pieces, "/random")
        assert (found.trace_id, found.tracestate) == (TRACE, "a=1"), cuts


# -- connections -----------------------------------------------------------------------------------


def test_ipv4_mapped(world: World) -> None:
    traced, service, outside = world
    with socket.socket(socket.AF_INET6) as dual:
        dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        dual.bind(("::", 0))
        dual.listen()
        dual.settimeout(10)
        with outside.make() as client:
            client.connect(("127.0.0.1", dual.getsockname()[1]))
            with accept(dual) as server:
                text = request(f"traceparent: {VALUE}", path="/mapped")
                assert joined(service.exchange(client, server, [text], "/mapped/call"))
    (span,) = traced.wait_spans(1, where=lambda s: s.path == "/mapped")
    assert span.attributes["client.address"] == "127.0.0.1"


def test_keep_alive(service: Service) -> None:
    """Each request of a connection has a context of its own."""
    with service.outside.connect(service.front) as client, accept(service.front) as server:
        for number in range(1, 212):
            trace = f"{number:032x}"
            text = request(f"traceparent: 00-{trace}-{PARENT}-01")
            assert service.exchange(client, server, [text], "/keep").trace_id == trace
            fresh = service.exchange(client, server, [request()], "/keep")
            assert fresh.trace_id not in (trace, TRACE)
            assert fresh.tracestate == ""


# -- names, white space, line ends -----------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"traceparent: {VALUE}",
        f"TRACEPARENT: {VALUE}",
        f"TrAcEpArEnT: {VALUE}",
        f"traceparent:{VALUE}",
        f"traceparent: \t  {VALUE}",
        f"traceparent: {VALUE} \t ",
        f"traceparent:\t{VALUE}",
    ],
)
def test_name_and_white_space(service: Service, line: str) -> None:
    assert joined(service.serve([request(line)], "/form"))


def test_bare_lf(service: Service) -> None:
    text = request("A: b", f"traceparent: {VALUE}", "tracestate: a=1", eol="\n")
    found = service.serve([text], "/lf")
    assert (found.trace_id, found.tracestate) == (TRACE, "a=1")


@pytest.mark.parametrize(
    "line",
    [
        f"x-traceparent: {VALUE}",
        f"traceparentx: {VALUE}",
        f"traceparen: {VALUE}",
        f"traceparent-{'x' * 30}: {VALUE}",
        f"X: y traceparent: {VALUE}",
        f"traceparent\x0b: {VALUE}",
    ],
)
def test_other_names(service: Service, line: str) -> None:
    assert not joined(service.serve([request(line)], "/other"))


def test_traceparent_in_a_body_is_not_one(service: Service) -> None:
    body = f"traceparent: {VALUE}\r\n\r\n"
    text = request(f"Content-Length: {len(body)}", method="POST") + body.encode()
    assert not joined(service.serve([text], "/body"))
    chunked = f"{len(body):x}\r\n{body}\r\n0\r\ntraceparent: {VALUE}\r\n\r\n"
    text = request("Transfer-Encoding: chunked", method="POST") + chunked.encode()
    assert not joined(service.serve([text], "/body"))


@pytest.mark.parametrize("size", [1000, 4000, 8000, 15500, 16100])
def test_long_header_block(service: Service, size: int) -> None:
    for line in ("X: " + "y" * size, "\r\n".join(["X: " + "y" * 90] * (size // 95))):
        found = service.serve([request(line, f"traceparent: {VALUE}")], "/long")
        assert joined(found), size


def test_header_block_over_16_kb_is_not_followed(service: Service) -> None:
    text = request("\r\n".join(["X: " + "y" * 90] * 180), f"traceparent: {VALUE}")
    assert len(text) > 16384
    assert not joined(service.serve([text], "/toolong"))


# -- values of traceparent -------------------------------------------------------------------------

ACCEPTED = {
    "flags 00": (f"00-{TRACE}-{PARENT}-00", "00"),
    "flags 01": (f"00-{TRACE}-{PARENT}-01", "01"),
    "random flag": (f"00-{TRACE}-{PARENT}-02", "02"),
    "sampled and random": (f"00-{TRACE}-{PARENT}-03", "03"),
    "reserved flags are cleared": (f"00-{TRACE}-{PARENT}-ff", "03"),
    "reserved flags alone": (f"00-{TRACE}-{PARENT}-f8", "00"),
    "later version": (f"01-{TRACE}-{PARENT}-01", "01"),
    "later version, longer": (f"01-{TRACE}-{PARENT}-01-what-the-future-will-be-like", "01"),
    "later version, much longer": (f"cc-{TRACE}-{PARENT}-01-{'x' * 900}", "01"),
    "later version, ends with a dash": (f"cc-{TRACE}-{PARENT}-00-", "00"),
    "version fe": (f"fe-{TRACE}-{PARENT}-01", "01"),
}

REFUSED = {
    "empty": "",
    "only spaces": "   ",
    "version ff": f"ff-{TRACE}-{PARENT}-01",
    "version 00, longer": f"00-{TRACE}-{PARENT}-01-extra",
    "version 00, one dash longer": f"00-{TRACE}-{PARENT}-01-",
    "later version, no dash": f"01-{TRACE}-{PARENT}-01.what",
    "later version, three digits of flags": f"cc-{TRACE}-{PARENT}-012",
    "later version, too short": f"01-{TRACE}-{PARENT}-0",
    "zero trace id": f"00-{'0' * 32}-{PARENT}-01",
    "zero parent id": f"00-{TRACE}-{'0' * 16}-01",
    "zero trace id, later version": f"01-{'0' * 32}-{PARENT}-01",
    "upper-case trace id": f"00-{TRACE.upper()}-{PARENT}-01",
    "upper-case parent id": f"00-{TRACE}-{PARENT.upper()}-01",
    "upper-case flags": f"00-{TRACE}-{PARENT}-0A",
    "upper-case version": f"0A-{TRACE}-{PARENT}-01",
    "no hexadecimal digit in the trace id": f"00-{TRACE[:-1]}g-{PARENT}-01",
    "no hexadecimal digit in the parent id": f"00-{TRACE}-{PARENT[:-1]}.-01",
    "no hexadecimal digit in the flags": f"00-{TRACE}-{PARENT}-0.",
    "no hexadecimal digit in the version": f"0.-{TRACE}-{PARENT}-01",
    "short trace id": f"00-{TRACE[1:]}-{PARENT}-01",
    "long trace id": f"00-{TRACE}a-{PARENT}-01",
    "short parent id": f"00-{TRACE}-{PARENT[1:]}-01",
    "long parent id": f"00-{TRACE}-{PARENT}a-01",
    "one digit of version": f"0-{TRACE}-{PARENT}-01",
    "three digits of version": f"000-{TRACE}-{PARENT}-01",
    "no flags": f"00-{TRACE}-{PARENT}",
    "empty flags": f"00-{TRACE}-{PARENT}-",
    "one digit of flags": f"00-{TRACE}-{PARENT}-1",
    "other separators": f"00_{TRACE}_{PARENT}_01",
    "space inside": f"00-{TRACE} -{PARENT}-01",
    "text behind": f"00-{TRACE}-{PARENT}-01 x",
    "tab behind, then text": f"00-{TRACE}-{PARENT}-01\tx",
    "quoted": f'"00-{TRACE}-{PARENT}-01"',
    "two in a list": f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01",
    "NUL inside": f"00-{TRACE}-{PARENT}-0\x00",
    "high bytes": f"00-{TRACE}-{PARENT}-0\xb9",
    "bare CR inside": f"00-{TRACE}\r-{PARENT}-01",
    "bare CR in front": f"\r00-{TRACE}-{PARENT}-01",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(service: Service, case: str) -> None:
    value, flags = ACCEPTED[case]
    found = service.serve([request(f"traceparent: {value}", "tracestate: a=1")], "/accepted")
    assert (found.trace_id, found.flags, found.tracestate) == (TRACE, flags, "a=1")
    assert found.parent_id != PARENT


@pytest.mark.parametrize("case", REFUSED)
def test_refused(service: Service, case: str) -> None:
    """The trace starts anew, and the state of the refused one is not carried on."""
    text = request(f"traceparent: {REFUSED[case]}", "tracestate: a=1")
    found = service.serve([text], "/refused")
    assert found.trace_id
    assert not joined(found)
    assert found.tracestate == ""


@pytest.mark.parametrize(
    "lines",
    [
        (f"traceparent: {VALUE}", f"traceparent: {VALUE}"),
        (f"traceparent: {VALUE}", f"TRACEPARENT: 00-{TRACE}-{PARENT[::-1]}-01"),
        (f"traceparent: {VALUE}", "A: b", "traceparent:"),
        ("traceparent: nonsense", f"traceparent: {VALUE}"),
        (f"traceparent: {VALUE}", *["A: b"] * 40, f"traceparent: {VALUE}"),
    ],
)
def test_duplicates_restart(service: Service, lines: tuple[str, ...]) -> None:
    found = service.serve([request(*lines, "tracestate: a=1")], "/twice")
    assert not joined(found)
    assert found.tracestate == ""


def test_folded_value_is_refused(service: Service) -> None:
    """RFC 9112: obsolete line folding is refused or replaced; it never completes a context."""
    for text in (
        request(f"traceparent:\r\n {VALUE}"),
        request(f"traceparent: 00-{TRACE}\r\n -{PARENT}-01"),
        request(f"traceparent: {VALUE}\r\n extra"),
    ):
        assert not joined(service.serve([text], "/folded")), text


# -- tracestate ------------------------------------------------------------------------------------


def members(count: int) -> list[str]:
    return [f"k{i}=v{i}" for i in range(count)]


def sized(size: int) -> str:
    """A valid tracestate of exactly `size` characters, members of at most 256."""
    parts = []
    while size:
        one = min(size, 200)
        if 0 < size - one < 6:
            one -= 6
        parts.append(f"k{len(parts)}=".ljust(one - (1 if size > one else 0), "v"))
        size -= one
    return ",".join(parts)


#: what comes in (one string per header line), and what is carried on
CARRIED: dict[str, tuple[list[str], str]] = {
    "one": (["rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7"),
    "two": (["rojo=1,congo=2"], "rojo=1,congo=2"),
    "white space around members": (["  a=1 , b=2\t,\tc=3  "], "a=1,b=2,c=3"),
    "space inside a value": (["a=x y,b=2"], "a=x y,b=2"),
    "several spaces inside": (["a=x   y"], "a=x   y"),
    "several lines, in order": (["a=1", "b=2,c=3", "d=4"], "a=1,b=2,c=3,d=4"),
    "an empty line": (["a=1", "", "b=2"], "a=1,b=2"),
    "empty members": (["a=1,,b=2", ",c=3,", " , "], "a=1,b=2,c=3"),
    "nothing": ([""], ""),
    "only white space": ([" \t "], ""),
    "tenant": (["fw529a3039@dt=FfAAAAAA,a_b-c*d/e=1"], "fw529a3039@dt=FfAAAAAA,a_b-c*d/e=1"),
    "key begins with a digit": (["1a=2"], "1a=2"),
    "two systems": (["foo@@bar=1"], "foo@@bar=1"),
    "all value characters": (
        ["a=" + "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in ",=")],
        "a=" + "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in ",="),
    ),
    "32 members": ([",".join(members(32))], ",".join(members(32))),
    "32 members in 32 lines": (members(32), ",".join(members(32))),
    "33 members": ([",".join(members(33))], ""),
    "33 members in two lines": ([",".join(members(30)), ",".join(members(3))], ""),
    "511 bytes": ([sized(511)], sized(511)),
    "512 bytes": ([sized(512)], sized(512)),
    "512 bytes in two lines": ([sized(300), sized(211)], f"{sized(300)},{sized(211)}"),
    "513 bytes": ([sized(513)], ""),
    "513 bytes in two lines": ([sized(300), sized(212)], ""),
    "512 bytes without the white space": ([sized(512).replace(",", " , ")], sized(512)),
    "key of 256": ([f"{'z' * 256}=1"], f"{'z' * 256}=1"),
    "key of 257": ([f"{'z' * 257}=1"], ""),
    "value of 256": ([f"a={'z' * 256}"], f"a={'z' * 256}"),
    "value of 257": ([f"a={'z' * 257}"], ""),
    "value ends with white space": (["a=1   "], "a=1"),
    "no value": (["a=1,b"], ""),
    "empty value": (["a=1,b="], ""),
    "empty value, then another": (["b=,a=1"], ""),
    "value of spaces": (["a=   ,b=2"], ""),
    "empty key": (["=1,a=2"], ""),
    "two equal signs": (["a=b=c"], ""),
    "upper-case key": (["A=1"], ""),
    "upper-case letter in a key": (["aB=1"], ""),
    "dot in a key": (["a.b=1"], ""),
    "space in front of the equal sign": (["a =1"], ""),
    "space inside a key": (["a b=1"], ""),
    "key begins with @": (["@a=1"], ""),
    "key begins with _": (["_a=1"], ""),
    "tab inside a value": (["a=x\ty"], ""),
    "control character": (["a=x\x01y"], ""),
    "high byte": (["a=x\xe9y"], ""),
    "semicolon instead of comma is a value": (["a=1;b"], "a=1;b"),
}


@pytest.mark.parametrize("case", CARRIED)
def test_tracestate(service: Service, case: str) -> None:
    """An invalid tracestate is dropped whole, and the trace goes on."""
    lines, wanted = CARRIED[case]
    states = [f"tracestate: {line}" for line in lines]
    for text in (
        request(f"traceparent: {VALUE}", *states),
        request(*states, f"traceparent: {VALUE}"),
        request(states[0], "A: b", f"TraceParent: {VALUE}", *states[1:]),
    ):
        found = service.serve([text], "/state")
        assert joined(found)
        assert found.tracestate == wanted


def test_tracestate_alone_is_dropped(service: Service) -> None:
    assert service.serve([request("tracestate: a=1")], "/alone").tracestate == ""


def test_tracestate_split_at_every_byte(service: Service) -> None:
    state = "a=x  y , bb=2\t,c=3"
    text = request(f"traceparent: {VALUE}", f"tracestate: {state}", "tracestate: d=4")
    start = text.index(b"tracestate")
    for at in range(start, len(text)):
        found = service.serve([text[:at], text[at:]], f"/state/{at}")
        assert found.tracestate == "a=x  y,bb=2,c=3,d=4", at


# -- spans -----------------------------------------------------------------------------------------


def test_spans_tell_the_request(world: World) -> None:
    """Each request has exactly one server and one client span, with its own text."""
    traced, service, _ = world
    for number in range(COUNT):
        text = request(f"traceparent: {VALUE}", path=f"/tell/{number}?q={number}")
        service.serve([text[:40], text[40:]], f"/told/{number}")
    spans = traced.wait_spans(2 * COUNT, where=lambda s: s.path.startswith(("/tell/", "/told/")))
    servers = {s.path: s for s in spans if s.kind == "SERVER"}
    clients = {s.path: s for s in spans if s.kind == "CLIENT"}
    assert len(spans) == 2 * COUNT
    assert len(servers) == len(clients) == COUNT
    for number in range(COUNT):
        server = servers[f"/tell/{number}?q={number}"]
        client = clients[f"/told/{number}"]
        assert (server.trace_id, server.parent_span_id) == (TRACE, PARENT)
        assert (client.trace_id, client.parent_span_id) == (TRACE, server.span_id)
        assert server.attributes["server.address"] == "service.example"
        assert client.attributes["server.address"] == "far.example"
        assert server.status == client.status == 200


def test_text_of_a_response_is_not_the_request_s(
    world: World,
) -> None:
    """Servers may answer with such headers: they do not change the request's span."""
    traced, _, outside = world
    with listen() as front, outside.connect(front) as client, accept(front) as server:
        client.sendall(request(f"traceparent: {VALUE}", path="/answer"))
        server.recv(65536)
        server.sendall(
            b"HTTP/1.1 200 OK\r\nHost: liar.example\r\ntraceparent: 00-11\r\n"
            b"tracestate: x=1\r\nContent-Length: 0\r\n\r\n"
        )
        client.recv(65536)
    (span,) = traced.wait_spans(1, where=lambda s: s.path == "/answer")
    assert span.trace_id == TRACE
    assert span.attributes["server.address"] == "service.example"
