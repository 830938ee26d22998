"""Requests that come to Node.js by HTTP/2 have no spans, and their calls no parent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fixtures import needs
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.secure import Secure, get
from tests.fixtures.spans import Span, number
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import until
from tests.parents.node.apps import PRELOAD

HTTP1, HTTP2 = range(1, 108), range(1000, 1211)


class Service:
    """tests/services/http2.js with the preload, and what it calls."""

    def __init__(self, traced: Traced, *, streams: bool) -> None:
        self.traced, self.secure = traced, Secure(traced)
        self.plain, self.h2c, self.late, self.tls, back = (free_port() for _ in range(5))
        path = {"PATH": os.environ["PATH"]}
        traced.spawn("back", [sys.executable, str(SERVICES / "threaded.py"), str(back)], env=path)
        wait_port(back)
        ports = {"PORT": self.plain, "PORT_H2C": self.h2c, "PORT_LATE": self.late}
        ports |= {"PORT_TLS": self.tls, "BACK": back}
        environment = {**path, **{name: str(port) for name, port in ports.items()}}
        environment["CERTIFICATE"] = str(self.secure.certificate)
        environment["NODE_OPTIONS"] = f"--require={PRELOAD}"
        if streams:
            environment["STREAMS"] = "1"
        traced.spawn("front", ["node", str(SERVICES / "http2.js")], env=environment)
        for port in (self.plain, self.h2c, self.tls):
            wait_port(port)
        self.secure.wait_found("node")

    def over_http1(self, target: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.plain}{target}", timeout=30) as answer:
            answer.read()

    def over_tls(self, target: str) -> None:
        get(self.tls, self.secure.trust(), target, {})

    def over_http2(self, url: str) -> None:
        """One connection, 32 streams at a time."""
        client = ["node", str(SERVICES / "http2_client.js"), url]
        numbers = [str(HTTP2.start), str(HTTP2.stop)]
        done = subprocess.run([*client, *numbers], capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == (f"{len(HTTP2)}\n", "")

    def counter(self) -> int:
        found: int = (self.traced.status() or {})["counters"]["root_node_http2"]
        return found

    def parents(self, send: Callable[[str], None], url: str) -> dict[str, Counter[str]]:
        """The parents of calls, where HTTP/1 comes by `send` while HTTP/2 comes to `url`."""
        send("/call?id=0")  # the process has told
        self.traced.receiver.forget_spans()
        before = self.counter()
        with ThreadPoolExecutor(16) as pool:
            streams = pool.submit(self.over_http2, url)
            list(pool.map(send, [f"/call?id={one}" for one in HTTP1]))
            streams.result()
        found = self.judged(2 * len(HTTP1) + len(HTTP2))
        until(lambda: self.counter() - before, enough=len(HTTP2).__eq__, seconds=10, every=0.2)
        return found

    def judged(self, count: int) -> dict[str, Counter[str]]:
        """The parents of calls by the protocol of their requests. `count`: of spans."""
        spans = self.traced.wait_spans(count, where=is_asked)
        servers = {span.span_id: span for span in spans if span.kind == "SERVER"}
        assert len(servers) == len(HTTP1)  # by HTTP/2 there is none
        found: dict[str, Counter[str]] = {"http/1": Counter(), "http/2": Counter()}
        for call in (span for span in spans if span.kind == "CLIENT"):
            kind = "http/2" if int(number(call)) in HTTP2 else "http/1"
            found[kind][judge(call, servers)] += 1
        return found


def is_asked(span: Span) -> bool:
    """Whether it is a span of the service, of a request or call with one of the numbers."""
    if span.service != "front" or not re.search(r"/(call|ask)\b", str(span.attributes)):
        return False
    return int(number(span)) in {*HTTP1, *HTTP2}


def judge(call: Span, servers: dict[str, Span]) -> str:
    parent = servers.get(call.parent_span_id)
    if parent is None:
        return "unknown" if call.parent_span_id else "none"
    return "right" if number(parent) == number(call) else "wrong"


@pytest.fixture(scope="module", params=[False, True], ids=["requests", "streams"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    needs.any_uprobes()
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        yield Service(traced, streams=request.param)


EXPECTED = {"http/1": {"right": len(HTTP1)}, "http/2": {"none": len(HTTP2)}}


def test_plaintext(service: Service) -> None:
    assert service.parents(service.over_http1, f"http://127.0.0.1:{service.h2c}") == EXPECTED


def test_both_on_a_port_with_tls(service: Service) -> None:
    """By ALPN, and `allowHTTP1` of Node.js."""
    assert service.parents(service.over_tls, f"https://127.0.0.1:{service.tls}") == EXPECTED


def test_calls_after_an_answer_by_http2(service: Service) -> None:
    """Over a session that requests share, which has been made for the first of them."""
    service.traced.receiver.forget_spans()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(service.over_http1, [f"/ask?id={one}" for one in HTTP1]))
    assert service.judged(2 * len(HTTP1))["http/1"] == EXPECTED["http/1"]


def test_a_server_that_listens_since_a_request(service: Service) -> None:
    """What it serves is not for that request, which is open still."""
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(service.over_http1, "/listen?id=7")
        wait_port(service.late)
        found = service.parents(service.over_http1, f"http://127.0.0.1:{service.late}")
        service.over_http1("/close?id=8")
        opened.result()
    assert found == EXPECTED
