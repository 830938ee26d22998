"""Contexts that come in TCP options: whose are taken, and what is left alone.

Segments are made by hand and sent through a raw socket into a connection that stands; its client
does not know of them, and its server answers what it has read.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.fixtures.forging import ANSWER, OBSERVE, REQUEST, forging, server_spans, span_of
from tests.fixtures.link import Link
from tests.fixtures.packets import Context, Packets
from tests.fixtures.sockets import read_exactly
from throughline.bpf import abi

pytestmark = pytest.mark.timeout(60)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def option(trace: str = TRACE, span: str = SPAN, flags: str = "") -> bytes:
    content = bytes.fromhex(trace + span + flags)
    return bytes([25, 2 + len(content)]) + content


def padded(options: bytes) -> bytes:
    return options + b"\1" * (-len(options) % 4)


# As the wire has it: what other agents write, and what comes of it (flags; None: nothing).
PEERS = {
    # OBI and Beyla, behind the time stamps of Linux: `[nop,nop,TS …,unknown-25 0x4bf9…,nop,nop]`
    "0101080a a1b2c3d4 e5f60718 191a 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 0101": 1,
    "191a 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 0101": 1,
    # with flags behind, of a trace that is not sampled
    "0101080a a1b2c3d4 e5f60718 191b 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 00 01": 0,
    "191b 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 02 01": 2,
    "191b 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 01 00": 1,
    # in front of others
    "191a 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 fd04beef 01010101 0101": 1,
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("variant", ["", "-legacy"])
def test_the_layouts_of_others_are_understood(version: int, variant: str) -> None:
    with Link() as link, Packets(link, by=None, observe=OBSERVE, variant=variant) as packets:
        for count, (text, flags) in enumerate(PEERS.items(), start=1):
            with forging(link, packets, version) as (forger, server):
                forger.send(REQUEST, options=bytes.fromhex(text))
                assert read_exactly(server, len(REQUEST)) == REQUEST
                server.sendall(ANSWER)
                spans = server_spans(packets)
                assert packets.counters["option_taken"] == count
                if flags & 1:
                    (span,) = spans
                    assert span.evidence == abi.Evidence.PACKET
                    assert span.trace_id.hex() == TRACE
                    assert span.parent_span_id.hex() == SPAN
                    assert span.trace_flags == flags
                else:
                    assert spans == []


MALFORMED = {
    "cut off by the end of the header": b"\1\1\1\1\1\1" + option()[:22],
    "nothing behind the kind": b"\1" * 31 + b"\x19",
    "length 0": b"\x19\x00" + option()[2:],
    "length 1": b"\x19\x01" + option()[2:],
    "length 2": b"\x19\x02\1\1" + b"\1" * 24,
    "another layout": padded(b"\x19\x08foreign"),
    "one byte short": padded(b"\x19\x19" + option()[2:]),
    "two bytes more": b"\x19\x1c" + option()[2:] + b"\0\0",
    "longer than the header": b"\x19\xff" + option()[2:] + b"\1\1",
    "no trace id": padded(option(trace="0" * 32)),
    "no span id": padded(option(span="0" * 16)),
}
# The rest does not end where its header does; Linux drops that from 6.7 on, before we see it.
WHOLE = {"length 2", "one byte short", "two bytes more", "no trace id", "no span id"}
HIDDEN = {
    "behind the end of the list": b"\0\0\0\0" + padded(option()),
    "inside of another option": padded(b"\xfd\x1e\xbe\xef" + option()),
    "behind an option without length": b"\xfd\x00" + option(),
    "behind one that is longer than the header": b"\xfd\x28" + option(),
}


def test_what_is_not_an_option_of_ours_is_ignored() -> None:
    """And counted, when it is of the kind."""
    malformed = 0
    with Link() as link, Packets(link, by=None, observe=OBSERVE) as packets:
        for name, options in {**MALFORMED, **HIDDEN}.items():
            with forging(link, packets) as (forger, server):
                forger.send(REQUEST, options=padded(options), again=True)
                forger.send(REQUEST)
                span = span_of(packets, server)
                assert span.evidence == abi.Evidence.NONE, name
                assert span.trace_id.hex() != TRACE, name
            counted = packets.counters.get("option_malformed", 0) - malformed
            malformed += counted
            assert counted <= (name in MALFORMED), name
            if name in WHOLE:
                assert counted == 1, name
        counters = packets.counters
    assert "option_read" not in counters
    assert "option_taken" not in counters


def test_strangers_are_not_heard() -> None:
    with (
        Link() as link,
        Packets(link, by=None, observe=OBSERVE, networks=("198.51.100.2/32",)) as packets,
        forging(link, packets) as (forger, server),
    ):
        forger.send(REQUEST, options=padded(option()))
        assert span_of(packets, server).evidence == abi.Evidence.NONE
        assert packets.counters["option_stranger"] == 1
        assert "option_read" not in packets.counters
        # nor does it tell when it becomes a peer what it said before
        packets.tell("198.51.100.0/24")
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE
        forger.send(REQUEST, options=padded(option()))
        assert span_of(packets, server).evidence == abi.Evidence.PACKET


@pytest.mark.parametrize("ahead", [-len(REQUEST), -1000, 20 << 20, 1 << 31])
def test_a_segment_that_cannot_be_next_plants_nothing(ahead: int) -> None:
    """One that came before, and one that somebody who does not see the connection makes up."""
    with (
        Link() as link,
        Packets(link, by=None, observe=OBSERVE) as packets,
        forging(link, packets) as (forger, server),
    ):
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE
        forger.send(REQUEST, options=padded(option()), ahead=ahead)
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE
        assert packets.counters["option_stale"] == 1


def test_a_context_is_for_one_request() -> None:
    """Also when each segment of that request carries it, and when the request has a header."""
    first, rest = REQUEST[:20], REQUEST[20:]
    with (
        Link() as link,
        Packets(link, by=None, observe=OBSERVE) as packets,
        forging(link, packets) as (forger, server),
    ):
        forger.send(REQUEST, options=padded(option()))
        assert span_of(packets, server).evidence == abi.Evidence.PACKET
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE

        for part in (first, rest):
            forger.send(part, options=padded(option()))
        assert span_of(packets, server).evidence == abi.Evidence.PACKET
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE

        long = REQUEST[:-2] + b"Content-Length: 100\r\n\r\n"
        for part in (long, bytes(50), bytes(50)):
            forger.send(part, options=padded(option()))
        assert span_of(packets, server, long + bytes(100)).evidence == abi.Evidence.PACKET
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE

        own = Context.fresh()
        header = f"traceparent: 00-{own.trace_id.hex()}-{own.span_id.hex()}-01\r\n\r\n".encode()
        forger.send(REQUEST[:-2] + header, options=padded(option()))
        span = span_of(packets, server, REQUEST[:-2] + header)
        assert (span.evidence, span.trace_id) == (abi.Evidence.HEADER, own.trace_id)
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE


@pytest.mark.parametrize("by", ["ops", "tc"])
@pytest.mark.parametrize("version", [4, 6])
def test_from_one_end_to_the_other(by: str, version: int) -> None:
    """What we write is what we read: each request has the parent that its thread worked for."""
    with (
        Link() as link,
        Packets(link, by=by, observe=OBSERVE) as packets,
        packets.connected(version) as (client, server),
    ):
        for _ in range(23):
            context = Context.fresh()
            with packets.request(context):
                client.sendall(REQUEST)
            assert read_exactly(server, len(REQUEST)) == REQUEST
            server.sendall(ANSWER)
            assert read_exactly(client, len(ANSWER)) == ANSWER
            spans = {span.kind: span for span in packets.spans()}
            assert spans[abi.Kind.SERVER].evidence == abi.Evidence.PACKET
            assert spans[abi.Kind.SERVER].trace_id == context.trace_id
            assert spans[abi.Kind.SERVER].parent_span_id == context.span_id
            client.sendall(REQUEST)
            assert read_exactly(server, len(REQUEST)) == REQUEST
            server.sendall(ANSWER)
            assert read_exactly(client, len(ANSWER)) == ANSWER
            spans = {span.kind: span for span in packets.spans()}
            assert spans[abi.Kind.SERVER].evidence == abi.Evidence.NONE


def test_options_are_not_read_where_the_group_is_off() -> None:
    with (
        Link() as link,
        Packets(link, by=None, observe=OBSERVE, reads=False) as packets,
        forging(link, packets) as (forger, server),
    ):
        forger.send(REQUEST, options=padded(option()))
        assert span_of(packets, server).evidence == abi.Evidence.NONE
        assert not [name for name in packets.counters if name.startswith("option_")]


def test_random_options_do_no_harm() -> None:
    """A thousand of our kind with any length and content."""
    read = 0
    with Link() as link, Packets(link, by=None, observe=OBSERVE) as packets:
        with forging(link, packets) as (forger, server):
            for place in range(1, 1001):
                content = os.urandom(secrets.randbelow(39))
                read += len(content) + 2 in (26, 27)
                options = bytes([25, 2 + len(content)]) + content
                forger.send(b"x", options=options.ljust(40, b"\1"), ahead=place)
            forger.send(b"x")
            assert read_exactly(server, 1001) == b"x" * 1001
        counters = packets.counters
    assert counters["option_read"] == read
    assert counters["option_malformed"] == 1000 - read
