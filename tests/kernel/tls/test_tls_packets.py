"""HTTPS hops with the context in TCP options: every parent is right, or there is none."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.fixtures import needs
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.secure import Secure
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced

THREADS, EACH = 64, 23
LIBRARY = "libssl.so"
RELAY = SERVICES / "relay.py"


@pytest.fixture
def traced() -> Iterator[Traced]:
    with Traced({"propagation": {"peers": ["127.0.0.0/8", "::1/128"]}}) as found:
        yield found


def load(port: int, secure: Secure, *, clients: int = THREADS) -> None:
    """Starts clients that are not traced, each with 23 requests on a connection of its own."""
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=60, context=secure.trust()
            )
            for turn in range(EACH):
                connection.request("GET", f"/{number}/{turn}")
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
            connection.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures, failures[0]


def judge(spans: list[Span], *, hops: list[str]) -> dict[str, int]:
    """Counts server spans behind the first: with the right parent, none, or a wrong one."""
    by_id = {span.span_id: span for span in spans}
    found = {"right": 0, "none": 0, "wrong": 0}
    for span in spans:
        if span.kind != "SERVER" or span.service == hops[0]:
            continue
        caller = hops[hops.index(span.service) - 1]
        parent = by_id.get(span.parent_span_id)
        if not span.parent_span_id:
            found["none"] += 1
        elif (
            parent is not None
            and (parent.service, parent.kind, parent.path) == (caller, "CLIENT", span.path)
            and parent.trace_id == span.trace_id
        ):
            found["right"] += 1
        else:
            found["wrong"] += 1
    return found


@pytest.mark.parametrize("front", ["python", "nginx", "node"])
def test_two_https_hops_at_64_concurrent_requests(
    traced: Traced, secure: Secure, front: str
) -> None:
    last = secure.python("last")
    middle = secure.python("middle", onward=last)
    first = getattr(secure, front)("first", onward=middle)
    secure.wait_found("node" if front == "node" else LIBRARY)
    load(first, secure)
    requests = THREADS * EACH
    spans = traced.wait_spans(5 * requests, seconds=60)
    assert len(spans) == 5 * requests
    found = judge(spans, hops=["first", "middle", "last"])
    print(f"{front}: {found}")
    assert found["wrong"] == 0
    # an option that is lost is counted, and rare
    assert found["right"] >= 0.99 * 2 * requests, (found, traced.counters())
    calls = [span for span in spans if span.kind == "CLIENT"]
    parents = {span.span_id: span for span in spans if span.kind == "SERVER"}
    for call in calls:
        if call.parent_span_id:
            assert parents[call.parent_span_id].path == call.path


def test_what_an_event_loop_read_before_is_no_evidence(traced: Traced, secure: Secure) -> None:
    """Each request asks a cache on a shared connection, then makes a connection of its own."""
    cache = free_port()
    traced.spawn("cache", [sys.executable, str(SERVICES / "lines.py"), str(cache)])
    wait_port(cache)
    last = secure.python("last")
    first = secure.node("first", onward=last, cache=cache)
    secure.wait_found("node")
    found = {}
    for clients in (1, THREADS):
        before = len(traced.receiver.spans)
        load(first, secure, clients=clients)
        spans = traced.wait_spans(before + 3 * clients * EACH, seconds=60)[before:]
        assert len(spans) == 3 * clients * EACH
        servers = {span.span_id: span for span in spans if span.kind == "SERVER"}
        calls = [span for span in spans if span.kind == "CLIENT" and span.parent_span_id]
        wrong = [call for call in calls if servers[call.parent_span_id].path != call.path]
        assert wrong == []
        assert judge(spans, hops=["first", "last"])["wrong"] == 0
        found[clients] = len(calls)
    print(f"behind a cache: calls with a parent, by clients: {found}")
    # one at a time: it is known which request asked, where the kernel shows which thread writes
    assert found[1] >= EACH - 1 or "tl_sent" in needs.refused()


def test_behind_a_proxy_that_ends_tcp_a_trace_begins_anew(traced: Traced, secure: Secure) -> None:
    last = secure.python("last")
    relay = free_port()
    traced.spawn("relay", [sys.executable, str(RELAY), str(relay), str(last)])
    wait_port(relay)
    first = secure.python("first", onward=relay)
    secure.wait_found(LIBRARY, 2)
    load(first, secure)
    spans = traced.wait_spans(3 * THREADS * EACH, seconds=60)
    assert judge(spans, hops=["first", "last"]) == {"right": 0, "none": THREADS * EACH, "wrong": 0}


def test_no_context_travels_to_or_from_who_is_no_peer() -> None:
    with Traced({"propagation": {"peers": ["192.0.2.0/24"]}}) as traced:
        secure = Secure(traced)
        last = secure.python("last")
        first = secure.python("first", onward=last)
        secure.wait_found(LIBRARY, 2)
        load(first, secure)
        spans = traced.wait_spans(3 * THREADS * EACH, seconds=60)
        assert judge(spans, hops=["first", "last"])["none"] == THREADS * EACH
        counted = traced.counters()
        assert "option_written" not in counted
        assert "option_read" not in counted
