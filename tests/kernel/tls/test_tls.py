"""Group `tls`: HTTPS requests of unmodified services are spans like any other."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider

from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.secure import LIBRARY, Secure, get
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced

COUNT = 23
SERVERS = {"nginx": LIBRARY, "python": LIBRARY, "asyncio": LIBRARY, "node": "node"}


def start(secure: Secure, kind: str, traced: Traced) -> int:
    """Starts a server of a kind that answers GET /files/23. Returns its port."""
    port: int = getattr(secure, kind)("server")
    if kind == "nginx":
        (traced.directory / "server" / "files" / "23").write_text("twenty-three\n")
    secure.wait_found(SERVERS[kind])
    return port


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_request_of_a_server_is_a_span(
    traced: Traced, secure: Secure, kind: str, version: ssl.TLSVersion
) -> None:
    port = start(secure, kind, traced)
    trust = secure.trust()
    trust.maximum_version = version
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=trust)
    for number in range(COUNT):
        connection.request("GET", f"/files/23?number={number}")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    assert connection.sock.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    local = connection.sock.getsockname()[1]
    connection.close()
    spans = traced.wait_spans(COUNT, where=lambda span: span.kind == "SERVER")
    assert len(spans) == COUNT
    assert sorted(span.path for span in spans) == sorted(
        f"/files/23?number={number}" for number in range(COUNT)
    )
    for span in spans:
        assert span.attributes["url.scheme"] == "https"
        assert span.attributes["server.port"] == port
        assert span.attributes["client.address"] == "127.0.0.1"
        assert span.attributes["http.response.status_code"] == 200
        assert not span.parent_span_id
    assert local, "the client was connected"


@pytest.mark.parametrize("kind", SERVERS)
def test_the_parent_that_an_sdk_sent_is_taken(traced: Traced, secure: Secure, kind: str) -> None:
    port = start(secure, kind, traced)
    tracer = TracerProvider().get_tracer("client")
    sent = []
    for _ in range(COUNT):
        with tracer.start_as_current_span("call") as span:
            headers: dict[str, str] = {}
            propagate.inject(headers)
            get(port, secure.trust(), "/files/23", headers)
            sent.append(
                (
                    trace.format_trace_id(span.get_span_context().trace_id),
                    trace.format_span_id(span.get_span_context().span_id),
                )
            )
    spans = traced.wait_spans(COUNT, where=lambda span: span.kind == "SERVER")
    assert sorted((span.trace_id, span.parent_span_id) for span in spans) == sorted(sent)


@pytest.mark.parametrize("kind", ["python", "node", "nginx"])
def test_a_call_over_tls_belongs_to_the_request_that_made_it(
    traced: Traced, secure: Secure, kind: str
) -> None:
    back = secure.python("back")
    front = getattr(secure, kind)("front", onward=back)
    secure.wait_found(SERVERS["python"])
    secure.wait_found(SERVERS[kind])
    for number in range(COUNT):
        get(front, secure.trust(), f"/order/{number}", {})
    mine = [
        span
        for span in traced.wait_spans(3 * COUNT, seconds=20)
        if span.service in ("front", "back")
    ]
    assert len(mine) == 3 * COUNT
    servers = {span.span_id: span for span in mine if span.kind == "SERVER"}
    calls = [span for span in mine if span.kind == "CLIENT"]
    assert len(calls) == COUNT
    right = [call for call in calls if call.parent_span_id]
    # never a wrong parent; the first call on a new connection of an event loop may have none
    for call in right:
        parent = servers[call.parent_span_id]
        assert (parent.service, parent.path) == ("front", call.path)
        assert call.trace_id == parent.trace_id
    assert len(right) == COUNT
    for call in calls:
        assert str(call.attributes["url.full"]).startswith(f"https://127.0.0.1:{back}/order/")


def test_what_was_open_when_the_agent_died_does_not_stand_in_the_way(
    traced: Traced, secure: Secure
) -> None:
    """No program saw its answer: the event loop's thread must not have it open for ever."""
    back = secure.python("back")
    front = secure.node("front", onward=back)
    secure.wait_found("node")
    with socket.create_connection(("127.0.0.1", front), timeout=20) as raw:
        opened = secure.trust().wrap_socket(raw, server_hostname="127.0.0.1")
        opened.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        traced.stop_agent(signal.SIGKILL)
        response = http.client.HTTPResponse(opened)
        response.begin()
        assert response.read() == b"slow"
        traced.start_agent()
        secure.wait_found("node")
        for number in range(COUNT):
            get(front, secure.trust(), f"/after/{number}", {})
        opened.close()
    spans = traced.wait_spans(3 * COUNT, where=lambda span: span.path.startswith("/after/"))
    calls = [span for span in spans if span.kind == "CLIENT"]
    assert len(calls) == COUNT
    assert [call.path for call in calls if not call.parent_span_id] == []


def test_curl_is_a_client(traced: Traced, secure: Secure) -> None:
    port = start(secure, "python", traced)
    urls = [f"https://127.0.0.1:{port}/curl/{number}" for number in range(COUNT)]
    run = ["curl", "-sS", "--http1.1", "--cacert", str(secure.certificate), *urls]
    curl = traced.spawn("curl", run, stdout=subprocess.DEVNULL)
    assert curl.wait(20) == 0
    spans = traced.wait_spans(2 * COUNT)
    calls = [span for span in spans if span.service == "curl"]
    assert sorted(str(span.attributes["url.full"]) for span in calls) == sorted(urls)
    assert {span.attributes["http.response.status_code"] for span in calls} == {200}
    assert {span.attributes["network.peer.port"] for span in calls} == {port}


def test_what_is_not_http_1_is_left_alone(traced: Traced, secure: Secure) -> None:
    port = secure.nginx("server", http2=True)
    (traced.directory / "server" / "files" / "23").write_text("twenty-three\n")
    secure.wait_found(LIBRARY)
    run = ["curl", "-sS", "--http2", "--cacert", str(secure.certificate), "-w", "%{http_version}"]
    done = subprocess.run(
        [*run, f"https://127.0.0.1:{port}/files/23"], capture_output=True, check=True, timeout=20
    )
    assert done.stdout == b"twenty-three\n2"
    assert traced.wait_counter("tls_not_http", 1) == 1
    assert traced.receiver.spans == []


def test_ten_thousand_requests_arrive_as_they_were_sent(traced: Traced, secure: Secure) -> None:
    """TLS 1.2 and 1.3, full and resumed handshakes, kept connections: every body is compared."""
    port = start(secure, "nginx", traced)
    files = traced.directory / "server" / "files"
    rng = random.Random(23)
    bodies = {str(size): rng.randbytes(size) for size in (1, 1000, 16_384, 70_001)}
    for name, body in bodies.items():
        (files / name).write_bytes(body)
    digests = {name: hashlib.sha256(body).digest() for name, body in bodies.items()}
    names = sorted(bodies)
    failures: list[str] = []
    resumed: list[bool] = []

    def client(number: int) -> None:
        context = secure.trust()
        context.maximum_version = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)[number % 2]
        session = None
        for turn in range(25):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
                secured = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
                resumed.append(bool(secured.session_reused))
                for request in range(50):
                    name = names[(number + turn + request) % len(names)]
                    secured.sendall(
                        f"GET /files/{name}?{number}.{turn}.{request} HTTP/1.1\r\n"
                        "Host: test\r\n\r\n".encode()
                    )
                    response = http.client.HTTPResponse(secured)
                    response.begin()
                    if hashlib.sha256(response.read()).digest() != digests[name]:
                        failures.append(f"{number}.{turn}.{request}")
                session = secured.session
                secured.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not failures
    assert len(resumed) == 200
    assert sum(resumed) > 100, "sessions are resumed"
    assert traced.wait_counter("requests_server", 10_000, seconds=20) == 10_000
    log = (traced.directory / "server" / "nginx.log").read_text()
    assert "bad record mac" not in log
    spans = traced.wait_spans(10_000, seconds=60)
    assert len({span.path for span in spans}) == 10_000


@pytest.mark.parametrize("kind", ["python", "asyncio", "node"])
def test_large_bodies_in_both_directions(traced: Traced, secure: Secure, kind: str) -> None:
    """A slow reader makes writes fail, repeat, and leave in parts."""
    port = start(secure, kind, traced)
    body, answer = traced.directory / "body", traced.directory / "answer"
    body.write_bytes(random.Random(5).randbytes(3_000_017))
    slow = ["--limit-rate", "6M", "--data-binary", f"@{body}", "-H", "Expect:", "-o", str(answer)]
    for number in range(3):
        run = ["curl", "-sS", "--http1.1", "--cacert", str(secure.certificate), *slow]
        url = f"https://127.0.0.1:{port}/echo/{number}"
        subprocess.run([*run, url], check=True, timeout=60)
        if kind == "python":
            assert json.loads(answer.read_bytes())["length"] == body.stat().st_size
        else:
            assert answer.read_bytes() == body.read_bytes()
    spans = traced.wait_spans(3)
    assert sorted(span.path for span in spans) == [f"/echo/{number}" for number in range(3)]
    assert {span.attributes["http.response.status_code"] for span in spans} == {200}


def test_nothing_is_attached_where_tls_is_off() -> None:
    with Traced({"instrumentation": {"tls": "off"}}) as traced:
        secure = Secure(traced)
        port = secure.python("server")
        get(port, secure.trust(), "/", {})
        status = traced.status()
        assert status is not None
        assert status["groups"]["tls"]["reason"] == "instrumentation.tls is off"
        assert not status["tls"]
        assert traced.wait_spans(1, seconds=2) == []


def test_a_library_that_is_loaded_later_is_found(traced: Traced, secure: Secure) -> None:
    """When the process begins to listen, and not by its next reading: that is after 6 seconds."""
    later = (
        "import sys, time, runpy; time.sleep(2.5); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    port = free_port()
    command = [sys.executable, "-c", later, str(SERVICES / "threaded.py"), str(port)]
    traced.spawn("later", command, env={"CERTIFICATE": str(secure.certificate)})
    wait_port(port, seconds=20)
    secure.wait_found(LIBRARY, seconds=2.5)
    get(port, secure.trust(), "/later", {})
    spans: list[Span] = traced.wait_spans(1)
    assert [span.path for span in spans] == ["/later"]
