"""The main path: requests through unmodified services are one trace, judged by their own peers."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time

import pytest

from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced

COUNT = 23
SERVICE = SERVICES / "threaded.py"


def test_three_python_services_are_one_trace(traced: Traced) -> None:
    ports = [free_port() for _ in range(3)]
    for index, port in enumerate(ports):
        onward = [str(ports[index + 1])] if index < 2 else []
        traced.spawn(f"s{index}", [sys.executable, str(SERVICE), str(port), *onward])
    for port in ports:
        wait_port(port)
    for number in range(COUNT):
        connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=10)
        connection.request("GET", f"/item/{number}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["headers"].get("traceparent") is None, "the test itself is not traced"
        assert len(answer["next"]["headers"]["traceparent"]) == 1
    spans = traced.wait_spans(COUNT * 5)
    assert len(spans) == COUNT * 5
    by_id = {span.span_id: span for span in spans}
    traces: dict[str, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    assert len(traces) == COUNT
    for mine in traces.values():
        chain = [span for span in mine if not span.parent_span_id]
        assert [span.service for span in chain] == ["s0"]
        while len(chain) < 5:
            chain += [span for span in mine if span.parent_span_id == chain[-1].span_id]
        assert [(span.service, span.kind.lower()) for span in chain] == [
            ("s0", "server"),
            ("s0", "client"),
            ("s1", "server"),
            ("s1", "client"),
            ("s2", "server"),
        ]
        assert len({_target(span) for span in mine}) == 1, "spans of different requests"
    assert len(by_id) == len(spans)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("split", [400, 40])
def test_a_request_that_makes_its_connection_is_seen(traced: Traced, host: str, split: int) -> None:
    """The segment that completes the handshake carries the request, and comes to the listener."""
    port = free_port()
    traced.spawn("deferred", [sys.executable, str(SERVICES / "deferred.py"), str(port)])
    wait_port(port)
    parents = []
    for number in range(COUNT):
        parents.append(f"{number + 1:016x}")
        request = (
            f"GET /deferred/{number} HTTP/1.1\r\nHost: test\r\n"
            f"traceparent: 00-{number + 1:032x}-{parents[-1]}-01\r\n\r\n"
        ).encode()
        with socket.create_connection((host, port), timeout=10) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(request[:split])
            if request[split:]:
                time.sleep(0.01)
                client.sendall(request[split:])
            while client.recv(4096):
                pass
    spans = traced.wait_spans(COUNT)
    assert sorted(span.parent_span_id for span in spans) == parents
    assert {span.attributes["client.address"] for span in spans} == {host}


def _target(span: Span) -> str:
    """The path, which is different for each request of the test."""
    found = span.attributes.get("url.path") or span.attributes.get("url.full", "")
    return "/" + str(found).rpartition("/")[2]
