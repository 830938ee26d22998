"""Calls without a header that an event loop writes after it has read another request."""

from __future__ import annotations

import http.client
import sys
import time

import pytest

from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced

PAIRS = 23


@pytest.mark.timeout(60)
@pytest.mark.parametrize("packets", ["auto", "off"])
def test_the_parent_is_who_connected(packets: str) -> None:
    """The parent is the request that made the connection, or none: never the one read last."""
    propagation = {"headers": "off", "packets": packets, "peers": ["127.0.0.0/8"]}
    with Traced({"propagation": propagation}) as traced:
        port, upstream = free_port(), free_port()
        traced.spawn("upstream", [sys.executable, "-m", "http.server", str(upstream)])
        traced.spawn("late", [sys.executable, str(SERVICES / "late.py"), str(port), str(upstream)])
        wait_port(upstream)
        time.sleep(1.0)
        first, second = (http.client.HTTPConnection("127.0.0.1", port) for _ in range(2))
        first.connect()
        second.connect()
        for number in range(PAIRS):
            first.request("GET", f"/a/{number}")
            time.sleep(0.02)
            second.request("GET", f"/b/{number}")
            for connection in (first, second):
                assert connection.getresponse().read() == b""
        first.close()
        second.close()
        spans = traced.wait_spans(4 * PAIRS, where=lambda span: span.service == "late")
    served = {span.span_id: span for span in spans if span.kind == "SERVER"}
    called = [span for span in spans if span.kind == "CLIENT"]
    assert (len(served), len(called)) == (2 * PAIRS, 2 * PAIRS)
    parents = [served.get(span.parent_span_id) for span in called]
    wrong = [
        span.path
        for span, parent in zip(called, parents, strict=True)
        if parent is not None and parent.path != span.path
    ]
    assert wrong == []
    if packets == "auto":
        assert None not in parents
        assert {span.evidence for span in called} == {"connect"}
