"""Contexts that leave in TCP options: which segment, which bytes, to whom. Judged by tcpdump."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import ExitStack

import pytest

from tests.fixtures.capture import Segment, read
from tests.fixtures.forger import Forger
from tests.fixtures.link import Link
from tests.fixtures.lossy import Loss
from tests.fixtures.packets import PORT, Context, Packets, connect, listening
from tests.fixtures.sockets import read_exactly

pytestmark = pytest.mark.timeout(60)

LEFT = {4: "198.51.100.1.", 6: "2001:db8:5::1."}
WAYS = ("ops", "tc")
by_both = pytest.mark.parametrize("by", WAYS)


def exchange(client: socket.socket, server: socket.socket, data: bytes) -> None:
    """One request and its answer, byte for byte."""
    client.sendall(data)
    assert read_exactly(server, len(data)) == data
    server.sendall(data[::-1])
    assert read_exactly(client, len(data)) == data[::-1]


def options(segments: list[Segment]) -> dict[int, str]:
    """What was written, by the place in the stream."""
    return {segment.seq: segment.option for segment in segments if segment.option}


@by_both
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("variant", ["", "-legacy"])
def test_the_layout_is_that_of_the_peers(by: str, version: int, variant: str) -> None:
    """Of a sampled trace; of another there is one byte more, so that peers leave it alone."""
    sampled, unsampled = Context.fresh(), Context.fresh(flags=0)
    with (
        Link(loss=Loss()) as link,
        Packets(link, by=by, variant=variant) as packets,
        link.captured(link.right) as frames,
    ):
        with packets.connected(version) as (client, server):
            for context in (sampled, unsampled):
                with packets.request(context):
                    exchange(client, server, b"23 bytes, whole in here")
        segments = [s for s in read(frames) if s.source.startswith(LEFT[version])]
        assert packets.counters == {"option_written": 2}
    shown = {s.seq: s.options.partition("unknown-25 ")[2] for s in segments if s.option}
    assert shown == {1: f"0x{sampled.option},nop,nop", 24: f"0x{unsampled.option},nop"}
    assert len(sampled.option) == 2 * 24 and len(unsampled.option) == 2 * 25
    assert {s.checksum for s in segments} == {"correct"}
    # never with a SYN, an acknowledgement, a FIN
    assert all(s.length for s in segments if s.option)


@by_both
def test_each_write_has_its_own_context(by: str) -> None:
    first, second = Context.fresh(), Context.fresh()
    with Link() as link, Packets(link, by=by) as packets, link.captured() as frames:
        with packets.connected() as (client, server):
            with packets.request(first):
                exchange(client, server, bytes(100))
            with packets.request(second):
                exchange(client, server, bytes(100))
            exchange(client, server, bytes(100))
            # the same request again, after an answer
            with packets.request(first):
                exchange(client, server, bytes(100))
                exchange(client, server, bytes(100))
            # none waits for the other
            for context in (first, second):
                with packets.request(context):
                    client.sendall(bytes(100))
            client.sendall(bytes(100))
            assert len(read_exactly(server, 300)) == 300
        segments = read(frames)
    assert options(segments) == {
        1: first.option,
        101: second.option,
        301: first.option,
        401: first.option,
        501: first.option,
        601: second.option,
    }


@by_both
def test_bytes_that_wait_for_others_are_not_given_their_context(by: str) -> None:
    first, second = Context.fresh(), Context.fresh()
    with Link() as link, Packets(link, by=by) as packets, link.captured() as frames:
        with packets.connected() as (client, server):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            client.sendall(b"nobody's, ")
            with packets.request(first):
                client.sendall(b"the first's, ")
            with packets.request(second):
                client.sendall(b"the second's")
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            assert read_exactly(server, 35) == b"nobody's, the first's, the second's"
        assert options(read(frames)) == {}


@by_both
def test_a_connection_shared_by_threads(by: str) -> None:
    contexts = [Context.fresh() for _ in range(23)]
    lock = threading.Lock()
    expected: dict[int, str] = {}

    with Link() as link, Packets(link, by=by) as packets, link.captured() as frames:
        with packets.connected() as (client, server):

            def write(context: Context) -> None:
                with packets.request(context), lock:
                    expected[1 + 50 * len(expected)] = context.option
                    exchange(client, server, os.urandom(50))

            threads = [threading.Thread(target=write, args=(c,)) for c in contexts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert options(read(frames)) == expected
        assert packets.counters == {"option_written": 23}


@pytest.mark.parametrize("by", ["ops", "tc", "both"])
def test_only_towards_peers(by: str) -> None:
    context = Context.fresh()
    with (
        Link() as link,
        Packets(link, by=by, networks=("203.0.113.0/24",)) as packets,
        link.captured() as frames,
    ):
        with packets.connected() as (client, server), packets.request(context):
            exchange(client, server, bytes(100))
            assert packets.counters == {}
            # they become peers while the connection stands: it is an older one then
            packets.tell("198.51.100.2/32")
            exchange(client, server, bytes(100))
            assert packets.counters.get("option_written", 0) == (by != "ops")
            packets.tell()
            exchange(client, server, bytes(100))
        with packets.connected(6, port=PORT + 1) as (client, server), packets.request(context):
            exchange(client, server, bytes(100))
        assert options(read(frames)) == ({} if by == "ops" else {101: context.option})


@pytest.mark.parametrize("by", ["ops", "tc"])
def test_the_ids_of_another_request_are_not_sent(by: str) -> None:
    """A request may end, and its element hold another one, between the look-up and the copy."""
    with Link() as link, Packets(link, by=by) as packets, packets.connected() as (client, server):
        with packets.request(Context.fresh(), holds=os.urandom(8)):
            exchange(client, server, bytes(100))
        assert packets.counters == {}
        with packets.request(Context.fresh()):
            exchange(client, server, bytes(100))
        assert packets.counters == {"option_written": 1}


def test_a_host_that_is_no_peer_any_more() -> None:
    with Link() as link, Packets(link) as packets, packets.connected() as (client, server):
        with packets.request(Context.fresh()):
            exchange(client, server, bytes(100))
        packets.tell()
        with packets.request(Context.fresh()):
            exchange(client, server, bytes(100))
        assert packets.counters == {"option_written": 1}


@pytest.mark.parametrize(("backlog", "closed"), [(0, False), (128, False), (128, True)])
def test_an_answer_carries_none(backlog: int, closed: bool) -> None:
    """What was accepted is not a client's end, whether or not its listener is still there."""
    with Link() as link, Packets(link, by="both") as packets, ExitStack() as stack:
        with link.left:
            listener = stack.enter_context(
                socket.create_server((link.addresses(4)[0], PORT), backlog=backlog)
            )
        with link.right:
            client = stack.enter_context(socket.create_connection((link.addresses(4)[0], PORT)))
        server, _ = listener.accept()
        stack.enter_context(server)
        if closed:
            listener.close()
        client.sendall(bytes(100))
        assert read_exactly(server, 100) == bytes(100)
        with packets.request(Context.fresh()):
            server.sendall(bytes(100))
        assert read_exactly(client, 100) == bytes(100)
        assert packets.counters == {}


def test_a_request_with_a_header_has_no_option() -> None:
    request = b"GET / HTTP/1.1\r\nHost: there\r\n\r\n"
    observe = ("tl_ingress", "tl_egress")
    with Link() as link, Packets(link, by="both", headers=True, observe=observe) as packets:
        with link.captured() as frames, packets.connected() as (client, server):
            with packets.request(Context.fresh()):
                client.sendall(request[:9])  # what it is cannot be said yet
                client.sendall(request[9:])
                assert len(read_exactly(server, len(request) + 70)) == len(request) + 70
                server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert read_exactly(client, 27)
                client.sendall(request)
                assert len(read_exactly(server, len(request) + 70)) == len(request) + 70
            assert options(read(frames)) == {}
        counters = packets.counters
    assert counters["injected"] == 2
    assert "option_written" not in counters


def test_what_is_not_http_has_an_option_next_to_headers() -> None:
    context = Context.fresh()
    with Link() as link, Packets(link, by="both", headers=True) as packets:
        with packets.connected() as (client, server), packets.request(context):
            exchange(client, server, b"\x16\x03\x01" + bytes(200))
            exchange(client, server, b"\x17\x03\x03" + bytes(200))
        counters = packets.counters
    assert counters["option_written"] == 2
    assert counters["skip_not_http"] == 1


def test_one_way_for_each_connection() -> None:
    """TC for the one that was there, sock_ops for the new one; never both."""
    context = Context.fresh()
    with Link() as link, listening(link, 4) as listener, connect(link, 4) as older:
        behind, _ = listener.accept()
        with behind, Packets(link, by="both") as packets, link.captured() as frames:
            with packets.request(context):
                exchange(older, behind, bytes(100))
                assert packets.counters == {"option_written": 1}
                with packets.connected(port=PORT + 1) as (client, server):
                    exchange(client, server, bytes(100))
            segments = [s for s in read(frames) if s.option]
            assert packets.counters == {"option_written": 2}
    assert [s.option for s in segments] == [context.option] * 2
    assert all(s.options.count("unknown-25") == 1 for s in segments)


@by_both
@pytest.mark.parametrize("version", [4, 6])
def test_a_lost_segment_takes_it_along_again(by: str, version: int) -> None:
    context, data = Context.fresh(), os.urandom(300)
    with (
        Link(loss=Loss(first=2)) as link,
        Packets(link, by=by) as packets,
        link.captured() as left,
        link.captured(link.right) as right,
    ):
        with packets.connected(version) as (client, server):
            with packets.request(context):
                client.sendall(data)
            assert read_exactly(server, 300) == data  # sent again long after the request has ended
        sent, arrived = read(left), read(right)
    assert len([s for s in sent if s.option]) >= 3
    assert options(arrived) == {1: context.option}


@by_both
@pytest.mark.parametrize("length", [1420, 1421, 5000])
@pytest.mark.parametrize("offloads", [False, True])
def test_no_segment_becomes_too_big(by: str, length: int, offloads: bool) -> None:
    """1448 bytes fit beside time stamps, 1420 beside the option, too."""
    context, data = Context.fresh(), os.urandom(length)
    with (
        Link(offloads=offloads) as link,
        Packets(link, by=by) as packets,
        link.captured() as frames,
    ):
        with packets.connected() as (client, server), packets.request(context):
            exchange(client, server, data)
            counters = packets.counters
        segments = read(frames)
    if not offloads:
        assert max(s.size for s in segments) <= 1500
    if by == "ops" or length <= 1420:
        # each piece of what was cut up late has a copy of the header
        assert options(segments)[1] == context.option
        assert set(options(segments).values()) == {context.option}
        assert counters == {"option_written": 1}
    else:
        assert options(segments) == {}
        assert counters == {"option_too_big": 1}


@by_both
@pytest.mark.parametrize("timestamps", [False, True])
def test_options_of_tcp_take_the_space(by: str, timestamps: bool) -> None:
    """40 bytes: SACK of one block takes 12 and time stamps take 12, ours 28."""
    context, data = Context.fresh(), os.urandom(100)
    with Link() as link, Packets(link, by=by) as packets:
        link.left.sysctl("ipv4/tcp_timestamps", str(int(timestamps)))
        with link.captured() as frames:
            with packets.connected() as (client, server), packets.request(context):
                with link.right:
                    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
                with raw:
                    Forger(server, raw).send(b"later", ahead=500)
                client.sendall(data)
                assert read_exactly(server, 100) == data
            (segment,) = [s for s in read(frames) if s.length == 100]
        counters = packets.counters
    assert "sack 1" in segment.options
    assert segment.option == (None if timestamps else context.option)
    assert counters == ({"option_no_room": 1} if timestamps else {"option_written": 1})


@pytest.mark.parametrize("routed", [False, True])
def test_links_of_other_kinds(routed: bool) -> None:
    """A bridge, where each packet passes two interfaces, and packets without Ethernet header."""
    context = Context.fresh()
    with Link(routed=routed) as link:
        if not routed:
            link.left.run("ip", "address", "flush", "dev", "left")
            link.left.run("ip", "link", "add", "upper", "type", "bridge")
            link.left.run("ip", "link", "set", "left", "master", "upper")
            link.left.run("ip", "address", "add", "198.51.100.1/24", "dev", "upper")
            link.left.run("ip", "link", "set", "upper", "up")
            link.right.run("ip", "neighbour", "flush", "all", "nud", "permanent")
        with Packets(link, by="tc") as packets, link.captured() as frames:
            if not routed:
                packets.attach_tc("upper")
            with packets.connected() as (client, server), packets.request(context):
                exchange(client, server, os.urandom(100))
                exchange(client, server, os.urandom(1300))
            segments = [s for s in read(frames) if s.option]
            assert packets.counters == {"option_written": 2}
    assert [s.option for s in segments] == [context.option] * 2
    assert all(s.options.count("unknown-25") == 1 for s in segments)


@by_both
def test_how_a_send_may_be_made(by: str) -> None:
    """Not only by send(2)."""
    context, data = Context.fresh(), os.urandom(100)
    with (
        Link() as link,
        Packets(link, by=by) as packets,
        packets.connected() as (client, server),
        packets.request(context),
    ):
        handle = client.fileno()
        ways = [
            lambda: os.write(handle, data),
            lambda: os.writev(handle, [data[:1], data[1:40], data[40:]]),
            lambda: client.sendmsg([data[:50], data[50:]]),
        ]
        for count, way in enumerate(ways, start=1):
            assert way() == 100
            assert read_exactly(server, 100) == data
            server.sendall(b"answer")
            assert read_exactly(client, 6) == b"answer"
            assert packets.counters == {"option_written": count}


@by_both
def test_what_a_thread_hands_to_its_tls_library(by: str) -> None:
    """That tells more than what the thread works for, once it is known of a connection."""
    thread, first, second = Context.fresh(), Context.fresh(), Context.fresh()
    with Link() as link, Packets(link, by=by) as packets, link.captured() as frames:
        with (
            packets.connected() as (client, server),
            packets.connected(port=PORT + 1) as (other, behind),
            packets.request(thread),
        ):
            exchange(client, server, bytes(100))  # the handshake
            packets.hand_to_tls(first, client)
            exchange(client, server, bytes(100))
            exchange(client, server, bytes(100))
            packets.hand_to_tls(second, client)
            exchange(other, behind, bytes(100))  # meanwhile, elsewhere
            exchange(client, server, bytes(100))
            packets.hand_to_tls(second, None)
            exchange(client, server, bytes(100))
            ports = client.getsockname()[1], other.getsockname()[1]
        segments = read(frames)
        counters = packets.counters
    by_port = [options([s for s in segments if s.source.endswith(f".{p}")]) for p in ports]
    assert by_port[0] == {1: thread.option, 101: first.option, 301: second.option}
    assert by_port[1] == {1: thread.option}
    assert counters["tls_no_socket"] == 1


def test_an_event_loop_proves_nothing_on_a_new_connection() -> None:
    """It may write what it decided to write ticks ago."""
    with Link() as link, Packets(link) as packets, packets.connected() as (client, server):
        with packets.request(Context.fresh(), loop=True):
            exchange(client, server, bytes(100))
        assert packets.counters == {}
