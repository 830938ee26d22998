"""The PROXY protocol in front of a connection's first request, on both sides.

HAProxy's specification (proxy-protocol.txt) has two versions: 1 is a line, 2 is binary.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from tests.fixtures import nginx as nginx_service
from tests.fixtures.counting import Counting
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.service import World
from tests.fixtures.sockets import accept, pair, read_block, read_exactly
from tests.fixtures.traced import Traced
from tests.fixtures.wire import OK, PARENT, TRACE, Context, head, inserted, send_alone

COUNT = 23
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def binary(addresses: bytes, *, command: int = 1, family: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(addresses)) + addresses


IPV4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack("!HH", 5, 80)
#: PP2_TYPE_UNIQUE_ID with bytes that look like the end of a header block
UNIQUE_ID = b"\x05\x00\x0c" + b"\r\n\r\nGET / H\r\n"[:12]
PREAMBLES = {
    "tcp4": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 80\r\n",
    "tcp6": b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 80\r\n",
    "longest": b"PROXY UNKNOWN ffff:f...f:ffff ".ljust(105, b"f") + b"\r\n",
    "unknown": b"PROXY UNKNOWN\r\n",
    "binary": binary(IPV4),
    "binary-ipv6": binary(bytes(36), family=0x21),
    "binary-local": binary(b"", command=0, family=0),
    "binary-more": binary(IPV4 + UNIQUE_ID * 40),
}


def exchange(near: socket.socket, far: socket.socket, pieces: list[bytes]) -> Context:
    """Sends a request in pieces, and its answer. Returns what was inserted."""
    sent = b"".join(pieces)
    for piece in pieces:
        near.sendall(piece)
    received = read_exactly(far, len(sent) + 70)
    far.sendall(OK)
    read_exactly(near, len(OK))
    return inserted(sent, received)


@pytest.mark.parametrize("name", PREAMBLES)
def test_client_in_front_of_its_first_request(
    world: World, far_listener: socket.socket, name: str
) -> None:
    preamble, request = PREAMBLES[name], head("Content-Length: 5", method="PUT") + b"hello"
    count = Counting(world[0])
    seen = set()
    for pieces in (
        [preamble + request],
        [preamble, request],
        [preamble, request[:30], request[30:]],
        [preamble + request[:30], request[30:]],
    ):
        with pair(far_listener) as (near, far):
            seen.add(exchange(near, far, pieces).parent_id)
            seen.add(exchange(near, far, [head()]).parent_id)
    assert len(seen) == 8 and "" not in seen
    assert count("injected", 8) == 8
    assert count("evicted", 0) == 0


@pytest.mark.parametrize("name", ["tcp4", "unknown", "binary"])
def test_client_split_at_every_byte(far_listener: socket.socket, name: str) -> None:
    whole = PREAMBLES[name] + head()
    for at in range(1, len(PREAMBLES[name]) + 4):
        assert send_alone(far_listener, [whole[:at], whole[at:]]).trace_id, at


@pytest.mark.parametrize("name", PREAMBLES)
def test_server_in_front_of_its_first_request(world: World, name: str) -> None:
    """The parent of the request is taken, and that of the next one."""
    traced, service, outside = world
    preamble = PREAMBLES[name]
    request = head(f"traceparent: 00-{TRACE}-{PARENT}-01", target=f"/{name}")
    for pieces in (
        [preamble + request],
        [preamble, request],
        [preamble + request[:9], request[9:]],
    ):
        with outside.connect(service.front) as client, accept(service.front) as server:
            for sent in (pieces, [request]):
                found = service.exchange(client, server, sent, f"/{name}/call")
                assert found.trace_id == TRACE
    spans = traced.wait_spans(12, where=lambda s: s.path.startswith(f"/{name}"))
    assert len(spans) == 12
    assert {s.parent_span_id for s in spans if s.kind == "SERVER"} == {PARENT}


@pytest.mark.parametrize("name", ["tcp4", "unknown", "binary"])
def test_server_split_at_every_byte(world: World, name: str) -> None:
    request = head(f"traceparent: 00-{TRACE}-{PARENT}-01", target=f"/split/{name}")
    whole = PREAMBLES[name] + request
    for at in range(1, len(PREAMBLES[name]) + 4):
        found = world[1].serve([whole[:at], whole[at:]], "/call")
        assert found.trace_id == TRACE, at


@pytest.mark.parametrize(
    "first",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 80\r\n\x16\x03\x01\x02\x00\x01\x00",
        b"PROXY TCP4 ".ljust(120, b"1") + b"\r\n" + head(),
        SIGNATURE[:-1] + b"X" + head(),
        SIGNATURE + b"\x11\x11\x00\x00" + head(),
        binary(IPV4)[:-3],
    ],
    ids=["tls", "line-too-long", "no-signature", "version-1", "cut-off"],
)
def test_what_is_no_request_behind_it_is_untouched(
    world: World, far_listener: socket.socket, first: bytes
) -> None:
    assert send_alone(far_listener, [first]) == Context()
    assert send_alone(far_listener, [first[:20], first[20:], head()[:-2]]) == Context()


def test_only_the_first_message_may_have_it(world: World, far_listener: socket.socket) -> None:
    """Later the same bytes are no preamble: the connection is left alone."""
    count = Counting(world[0])
    with pair(far_listener) as (near, far):
        exchange(near, far, [head()])
        near.sendall(late := PREAMBLES["tcp4"] + head())
        assert read_exactly(far, len(late)) == late
    assert count("skip_malformed", 1) == 1


def test_a_method_of_that_name(far_listener: socket.socket) -> None:
    for target in ("/", "http://far.example/TCP4", "*"):
        assert send_alone(far_listener, [head(method="PROXY", target=target)]).trace_id


# -- real peers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nginx(world: World) -> int:
    """A server that expects the PROXY protocol. It answers the address and the header."""
    port = free_port()
    server = f"""
        server {{
            listen 127.0.0.1:{port} proxy_protocol;
            location / {{ return 200 "$proxy_protocol_addr $http_traceparent"; }}
        }}"""
    nginx_service.start(world[0], "nginx", server, port=port, workers=1)
    return port


def joined(traced: Traced, path: str, client: str) -> None:
    """COUNT requests of a service are each two spans of one trace."""
    spans = traced.wait_spans(2 * COUNT, where=lambda s: s.path == path)
    kinds = sorted((s.service.rpartition("/")[2], s.kind) for s in spans)
    assert [kind for kind in kinds if kind[0] in (client, "nginx")] == sorted(
        [(client, "CLIENT"), ("nginx", "SERVER")] * COUNT
    )
    calls = {s.span_id: s.trace_id for s in spans if s.kind == "CLIENT"}
    for span in spans:
        if span.service.endswith("nginx"):
            assert calls[span.parent_span_id] == span.trace_id


def test_curl_to_nginx(world: World, nginx: int) -> None:
    url = f"http://127.0.0.1:{nginx}/curl"
    for _ in range(COUNT):
        command = ["curl", "-sS", "--fail", "--haproxy-protocol", url]
        said = subprocess.run(command, check=True, capture_output=True, timeout=20, text=True)
        assert said.stdout.startswith("127.0.0.1 00-"), said.stdout
    joined(world[0], "/curl", "service")


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_haproxy_to_nginx(world: World, nginx: int, tmp_path: Path, version: str) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    traced, _, outside = world
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"""
        defaults
            mode http
            timeout client 10s
            timeout server 10s
            timeout connect 10s
        listen front
            bind 127.0.0.1:{port}
            server back 127.0.0.1:{nginx} {version}
""")
    traced.spawn(version, ["haproxy", "-db", "-q", "-f", str(config)])
    wait_port(port)
    for _ in range(COUNT):
        with outside.make() as client:
            client.connect(("127.0.0.1", port))
            client.sendall(
                f"GET /{version} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            )
            answer = read_block(client)
            while more := client.recv(65536):
                answer += more
        assert answer.startswith(b"HTTP/1.1 200") and b"\r\n\r\n127.0.0.1 00-" in answer, answer
    spans = traced.wait_spans(3 * COUNT, where=lambda s: s.path == f"/{version}")
    assert sorted((s.service.rpartition("/")[2], s.kind) for s in spans) == sorted(
        [(version, "SERVER"), (version, "CLIENT"), ("nginx", "SERVER")] * COUNT
    )
    calls = {s.span_id: s.trace_id for s in spans if s.kind == "CLIENT"}
    assert {calls.get(s.parent_span_id) for s in spans if s.service.endswith("nginx")} == set(
        calls.values()
    )
