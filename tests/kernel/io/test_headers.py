"""Which outgoing requests get a `traceparent`, once, before the empty line, and with which context.

The far side is a plain socket outside of the traced cgroup, which compares bytes.
"""

from __future__ import annotations

import socket
import threading

import pytest

from tests.fixtures.counting import Counting
from tests.fixtures.outside import Outside
from tests.fixtures.service import World
from tests.fixtures.sockets import accept, pair, read_all, read_block, read_exactly
from tests.fixtures.wire import (
    DECOY,
    OK,
    PARENT,
    TRACE,
    Context,
    chunked,
    context,
    head,
    inserted,
    send_alone,
)

COUNT = 23
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]
OTHER_METHODS = ["PROPFIND", "PURGE", "QUERY", "M-SEARCH", "X", "get", "VERSION-CONTROL"]


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


def test_ipv4_mapped(world: World) -> None:
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


def test_keep_alive_once_each(world: World) -> None:
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
    world: World, far_listener: socket.socket
) -> None:
    """Which one is meant cannot be known: nothing is written, and neither is the span's parent."""
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


def test_existing_traceparent_is_adopted(world: World) -> None:
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


# -- what is left alone ----------------------------------------------------------------------------


def test_pipelined_requests_are_untouched(world: World, far_listener: socket.socket) -> None:
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


def test_contradictory_requests_are_untouched(world: World, far_listener: socket.socket) -> None:
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
def test_flags_are_kept(world: World, flags: str) -> None:
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


def test_long_tracestate_is_inherited(world: World) -> None:
    for size in (1, 100, 511, 512):
        state = ",".join(f"k{i}=".ljust(100, "v") for i in range(6))[:size] if size > 3 else "a=1"
        text = head(f"traceparent: 00-{TRACE}-{PARENT}-01", f"tracestate: {state}")
        assert world[1].serve([text], "/state").tracestate == state


def test_bytes_of_the_agent_s_own_choice_only(far_listener: socket.socket) -> None:
    """Bare LF lines: the insertion has CR LF, the rest is as it was."""
    text = b"GET / HTTP/1.1\nHost: far.example\n\n"
    assert send_alone(far_listener, [text]).trace_id
    assert context(b"x") == Context()
