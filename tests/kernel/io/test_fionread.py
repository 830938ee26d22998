"""Programs that ask FIONREAD (nginx as a proxy, Java) answer every request whole while traced.

On some kernels FIONREAD says 0 for sockets in a sockhash, on which these programs wait for ever.
Every answer is compared byte for byte, and the trace that a call carries with the trace of the
request that caused it: right, none (a new one), wrong. No call carries two; one that carries none
is a later request of a connection that has left the sockhash (decision 0002).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import pytest

from tests.fixtures import java as java_service
from tests.fixtures import nginx as nginx_service
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced
from tests.services.origin import payload
from throughline.bpf import fionread

SIZES = (100, 1_000, 4_095, 16_384, 70_001, 300_000, 1_000_003, 5_000_000)
REQUESTS = 200
AT_ONCE = 16
SUSTAINED_SECONDS = 15.0
ANSWER_SECONDS = 15.0  # a stalled answer fails after this time
_numbers = count(1)

NGINX = """
  client_max_body_size 10m;
  upstream kept {{ server 127.0.0.1:{origin}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} backlog=256;
    location /fresh/ {{ proxy_pass http://127.0.0.1:{origin}; }}
    location /fresh-small/ {{
      proxy_pass http://127.0.0.1:{origin};
      proxy_buffer_size 1k; proxy_buffers 4 1k; proxy_busy_buffers_size 2k;
    }}
    location /fresh-unbuffered/ {{ proxy_pass http://127.0.0.1:{origin}; proxy_buffering off; }}
    location /kept/ {{
      proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
    location /kept-small/ {{
      proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffer_size 1k; proxy_buffers 4 1k; proxy_busy_buffers_size 2k;
    }}
    location /kept-unbuffered/ {{
      proxy_pass http://kept; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and the trace that it belongs to."""

    prefix: str
    size: int
    number: int
    trace_id: str
    query: str = ""
    upload: int = 0  # bytes of a request body


@dataclass(frozen=True, slots=True)
class Front:
    """A traced service that calls the origin."""

    traced: Traced
    port: int


def _calls(prefix: str, total: int = REQUESTS, **options: object) -> list[Call]:
    return [
        Call(
            prefix,
            SIZES[index % len(SIZES)],
            next(_numbers),
            secrets.token_hex(16),
            **options,  # type: ignore[arg-type]
        )
        for index in range(total)
    ]


def _ask(connection: http.client.HTTPConnection, call: Call) -> list[str]:
    """Sends one request, compares the answer, returns the traceparent values of the onward call."""
    upload = payload(call.upload, call.number + 1)
    connection.request(
        "POST" if call.upload else "GET",
        f"/{call.prefix}/{call.size}/{call.number}{call.query}",
        body=upload or None,
        headers={"traceparent": f"00-{call.trace_id}-{secrets.token_hex(8)}-01"},
    )
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, f"{call}: HTTP {answer.status}"
    assert len(body) == call.size, f"{call}: {len(body)} bytes came"
    assert body == payload(call.size, call.number), f"{call}: other bytes came"
    if call.upload:
        digest = hashlib.sha256(upload).hexdigest()
        assert answer.headers["X-Body-Sha256"] == digest, f"{call}: other bytes arrived"
    values = json.loads(answer.headers["X-Traceparents"])
    assert isinstance(values, list)
    return values


def _ask_all(port: int, calls: Sequence[Call]) -> Counter[str]:
    """All calls, AT_ONCE at a time over kept-alive connections; counts right, none and wrong."""
    known = {call.trace_id for call in calls}
    found: Counter[str] = Counter()

    def some(mine: Sequence[Call]) -> list[tuple[Call, list[str]]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        try:
            return [(call, _ask(connection, call)) for call in mine]
        finally:
            connection.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for answers in pool.map(some, (calls[start::AT_ONCE] for start in range(AT_ONCE))):
            for call, values in answers:
                if not values:
                    # decision 0002: after the first request the connection is left alone
                    assert fionread.is_broken(), f"{call}: no traceparent"
                    found["untouched"] += 1
                    continue
                assert len(values) == 1, f"{call}: traceparent {values}"
                trace_id = values[0].split("-")[1]
                if trace_id == call.trace_id:
                    found["right"] += 1
                else:
                    found["wrong" if trace_id in known else "none"] += 1
    assert found.total() == len(calls)
    return found


def _say(capsys: pytest.CaptureFixture[str], name: str, found: Counter[str]) -> None:
    total = found.total()
    with capsys.disabled():
        print(
            f"\n  {name}: {total} requests, right {100 * found['right'] / total:.1f} %,"
            f" none {found['none']}, wrong {found['wrong']}, untouched {found['untouched']}",
            end="",
        )


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as traced:
        yield traced


@pytest.fixture(autouse=True)
def running(traced: Traced) -> None:
    """An agent for each test, also after one that has ended it."""
    if traced.agent is None or traced.agent.poll() is not None:
        traced.start_agent()


@pytest.fixture(scope="module")
def origin(traced: Traced) -> int:
    port = free_port()
    traced.spawn("origin", [sys.executable, str(SERVICES / "origin.py"), str(port)])
    wait_port(port)
    return port


@pytest.fixture(scope="module")
def nginx(traced: Traced, origin: int) -> Front:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    nginx_service.start(traced, "nginx", NGINX.format(origin=origin, port=port), port=port)
    return Front(traced, port)


@pytest.fixture(scope="module")
def java(traced: Traced, origin: int) -> Front:
    if shutil.which("javac") is None:
        pytest.skip("no Java compiler is installed")
    port = free_port()
    flags = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    source = str(SERVICES / "Front.java")
    traced.spawn("java", ["java", *flags, source, str(port), str(origin)])
    wait_port(port, seconds=30)
    java_service.wait_followed(traced)
    return Front(traced, port)


@pytest.mark.parametrize("buffers", ["", "-small", "-unbuffered"])
@pytest.mark.parametrize("upstream", ["fresh", "kept"])
def test_nginx_proxy_answers_whole(
    nginx: Front, upstream: str, buffers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = upstream + buffers
    total = REQUESTS // 2
    calls = _calls(prefix, total)
    calls += _calls(prefix, total // 2, query="?chunked")
    calls += _calls(prefix, total // 2, upload=200_003)
    found = _ask_all(nginx.port, calls)
    _say(capsys, f"nginx, {prefix}", found)
    assert found["wrong"] == 0
    assert found["right"] == len(calls)


def test_bodies_stay_whole_for_a_while(nginx: Front) -> None:
    """Large answers for seconds, since a kernel hands over a segment twice only now and then."""
    until = time.monotonic() + SUSTAINED_SECONDS

    def some(_: int) -> Counter[str]:
        found: Counter[str] = Counter()
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=ANSWER_SECONDS)
        while time.monotonic() < until:
            number = next(_numbers)
            size = SIZES[-1 - number % 4]
            connection.request("GET", f"/kept/{size}/{number}")
            body = connection.getresponse().read()
            found["whole" if body == payload(size, number) else "other bytes"] += 1
        connection.close()
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = sum(pool.map(some, range(AT_ONCE)), Counter[str]())
    assert found["whole"] > 0
    assert found["other bytes"] == 0, found


@pytest.mark.parametrize("library", ["url", "client", "async"])
def test_java_answers_whole(java: Front, library: str, capsys: pytest.CaptureFixture[str]) -> None:
    calls = _calls(library)
    found = _ask_all(java.port, calls)
    _say(capsys, f"java, {library}", found)
    assert found["wrong"] == 0
    if library == "url":
        assert java.traced.counters().get("java_contradicted", 0) == 0
        assert found["none"] == 0


def test_one_after_the_other(nginx: Front, java: Front) -> None:
    """Without concurrency every parent is certain, and no other request hides a stall."""
    for port, prefix in ((nginx.port, "kept"), (nginx.port, "fresh"), (java.port, "url")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        for call in _calls(prefix, 23):
            values = _ask(connection, call)
            assert len(values) == 1 or fionread.is_broken()
            assert {value.split("-")[1] for value in values} <= {call.trace_id}
        connection.close()


def test_killed_agent_changes_nothing(nginx: Front, java: Front) -> None:
    """Before, during and after the agent's absence, answers are whole and no parent is wrong."""
    traced = nginx.traced
    fronts = [
        (nginx.port, "fresh"),
        (nginx.port, "kept"),
        (java.port, "url"),
        (java.port, "client"),
    ]

    def under_load(number: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(_ask_all, *_load(fronts[1]))
            time.sleep(0.2)
            assert traced.stop_agent(number) == -number
            load.result()

    under_load(signal.SIGKILL)
    for front in fronts:
        found = _ask_all(*_load(front))
        assert found["wrong"] == 0, front
        # whether threads of Java are evidence depends on what this one has done before
        assert found["none"] == 0 or front[0] == java.port, front
    traced.start_agent()
    for front in fronts:
        assert _ask_all(*_load(front))["wrong"] == 0, front


def _load(front: tuple[int, str]) -> tuple[int, list[Call]]:
    port, prefix = front
    return port, _calls(prefix, 96)


def test_waiting_bytes_are_not_lost_at_the_end(nginx: Front, java: Front) -> None:
    """A stop under load takes sockets out of the sockhash: no answer loses a byte."""
    traced = nginx.traced
    with ThreadPoolExecutor(2) as pool:
        loads = [
            pool.submit(_whole, nginx.port, "kept"),
            pool.submit(_whole, java.port, "url"),
        ]
        time.sleep(0.2)
        assert traced.stop_agent() == 0, traced.log()
        for load in loads:
            load.result()


def _whole(port: int, prefix: str) -> None:
    """Compares answers only, since the agent may have ended before a call."""
    connections = [
        http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        for _ in range(AT_ONCE)
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        calls = _calls(prefix, REQUESTS)
        list(
            pool.map(
                lambda index: [_ask(connections[index], call) for call in calls[index::AT_ONCE]],
                range(AT_ONCE),
            )
        )
    for connection in connections:
        connection.close()
