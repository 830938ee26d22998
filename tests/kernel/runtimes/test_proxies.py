"""Proxies: each forwarded request is the child of the request that came in, 64 at a time."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fixtures import debian_root, needs, nginx
from tests.parents import apps
from tests.parents.app import PROXY, App, Behaviour, MissingError, Place, Process
from tests.parents.cell import Bench, bench
from tests.parents.debian import installs
from tests.parents.judge import Result

MANY = {1: 23, 64: 503}
SOME = {32: 211}
KEPT = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://kept;'
PLAIN = "proxy_pass http://127.0.0.1:{backend};"
HAPROXY = """\
global
    nbthread {threads}
    maxconn 512
    {more}
defaults
    mode http
    timeout connect 500ms
    timeout client 30s
    timeout server 30s
    timeout queue 30s
    retries 3
    {option}
frontend front
    bind {bind}
    default_backend back
backend back
    {servers}
"""
BACKEND = "server only 127.0.0.1:{backend}"


def haproxy(
    name: str,
    option: str = "",
    servers: str = BACKEND,
    *,
    bind: str = "127.0.0.1:{port}",
    threads: int = 2,
    more: str = "",
    root: Path | None = None,
) -> App:
    def start(place: Place) -> Sequence[Process]:
        words = {"backend": place.backend, "port": place.port, "folder": place.folder}
        file = (root / "tmp" if root else place.folder) / f"{name}.cfg"
        file.write_text(
            HAPROXY.format(
                threads=threads,
                more=more,
                option=option,
                bind=bind.format(**words),
                servers=servers.format(**words),
            )
        )
        if root is None:
            return [Process(["haproxy", "-db", "-f", str(file)])]
        command = ["/usr/sbin/haproxy", "-db", "-f", f"/tmp/{file.name}"]
        return [Process(debian_root.inside(root, command))]

    return App(
        f"haproxy-{name}",
        "Proxies",
        name,
        start,
        PROXY,
        installs("haproxy", "haproxy"),
        follows="proxies",
    )


def in_nginx(name: str, location: str, *, http: str = "", upstream: str = "") -> App:
    def start(place: Place) -> Sequence[Process]:
        words = {"backend": place.backend, "port": place.port, "folder": place.folder}
        text = (
            "limit_req_zone $server_port zone=slow:1m rate=150r/s;"
            f"{http.format(**words)}"
            f"upstream kept {{ {upstream.format(**words)}"
            f" server 127.0.0.1:{place.backend} max_fails=0; keepalive 16; }}"
            f"server {{ listen 127.0.0.1:{place.port} backlog=512;"
            f" {location.format(**words)} }}"
        )
        return [Process(nginx.prepare(place.folder, text))]

    return App(
        f"nginx-{name}",
        "Proxies",
        name,
        start,
        PROXY,
        installs("nginx", "nginx-light"),
        follows="proxies",
    )


def results(
    running: Bench,
    app: App,
    *,
    behaviours: Sequence[Behaviour] = PROXY,
    requests: dict[int, int] = MANY,
    may_fail: bool = False,
) -> list[tuple[Behaviour, Result]]:
    try:
        found = list(running.run(app, behaviours, requests))
    except MissingError as error:
        pytest.skip(str(error))
    for behaviour, result in found:
        assert result.calls, (app.name, behaviour, result.failures)
        assert result.wrong == 0, (app.name, behaviour, result.examples)
        assert may_fail or not result.failures, (app.name, behaviour, result.failures)
    return found


def all_right(
    running: Bench,
    app: App,
    *,
    behaviours: Sequence[Behaviour] = PROXY,
    requests: dict[int, int] = MANY,
    may_fail: bool = False,
) -> None:
    found = results(running, app, behaviours=behaviours, requests=requests, may_fail=may_fail)
    for behaviour, result in found:
        assert result.right == result.calls, (app.name, behaviour, result)
        assert result.evidence == {"right by proxy": result.calls}, (app.name, result)
        assert may_fail or result.calls >= result.requests, (app.name, result)


def none(running: Bench, app: App) -> None:
    for behaviour, result in results(running, app, requests=SOME):
        assert result.none == result.calls, (app.name, behaviour, result)


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        yield listener.getsockname()[1]


@contextlib.contextmanager
def resolver() -> Iterator[int]:
    """A port where each name is 127.0.0.1, said some milliseconds later."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer(question: bytes, client: tuple[str, int]) -> None:
            end = question.index(b"\0", 12) + 5
            if question[end - 4 : end - 2] != b"\0\1":  # AAAA
                server.sendto(question[:2] + b"\x81\x80\0\1" + bytes(6) + question[12:end], client)
                return
            head = question[:2] + b"\x81\x80\0\1\0\1" + bytes(4) + question[12:end]
            server.sendto(head + b"\xc0\x0c\0\1\0\1" + b"\0\0\0\1\0\4\x7f\0\0\1", client)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while question := server.recvfrom(512):
                    threading.Timer(0.005, answer, question).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


# -- HAProxy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["never", "safe", "aggressive", "always"])
def test_connections_that_haproxy_reuses(running: Bench, mode: str) -> None:
    all_right(running, haproxy(mode, f"http-reuse {mode}"))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("server-close", "option http-server-close"),
        ("close", "option httpclose"),
        ("buffered", "option http-buffer-request"),
    ],
)
def test_connections_that_haproxy_closes(running: Bench, name: str, option: str) -> None:
    all_right(running, haproxy(name, option), requests=SOME)


def test_requests_that_wait_for_a_connection(running: Bench) -> None:
    all_right(running, haproxy("queue", "http-reuse always", BACKEND + " maxconn 3"))


def test_one_thread(running: Bench) -> None:
    all_right(running, haproxy("one-thread", threads=1), requests=SOME)


def test_haproxy_tries_again(running: Bench) -> None:
    """A server that refuses, and one that is silent: each attempt is for the same request."""
    option = "option redispatch 1\n    retry-on all-retryable-errors\n    timeout server 200ms"
    with silent() as port:
        servers = "\n    ".join(
            ("server refuses 127.0.0.1:1", f"server silent 127.0.0.1:{port}", BACKEND)
        )
        app = haproxy("retries", option, servers)
        all_right(running, app, behaviours=(Behaviour.AT_ONCE,), requests=SOME, may_fail=True)


def test_health_checks_have_no_parent(running: Bench) -> None:
    """They are asked at /check?id=K, as a poller's calls: a parent would be wrong."""
    option = "option httpchk GET /poll?id=1"
    found = results(
        running,
        haproxy("checks", option, BACKEND + " check inter 20ms"),
        behaviours=(Behaviour.AT_ONCE,),
        requests=SOME,
    )
    for _, result in found:
        assert result.calls > result.requests, result
        assert result.right == result.calls, result


def test_connections_of_tcp_are_left_alone(running: Bench) -> None:
    none(running, haproxy("tcp", "mode tcp"))


@pytest.mark.parametrize(
    "root", [debian_root.HAPROXY_30, debian_root.HAPROXY_32], ids=lambda root: root.name
)
def test_other_versions_of_haproxy(running: Bench, root: debian_root.Root) -> None:
    try:
        folder = root.make()
    except debian_root.MissingError as error:
        pytest.skip(str(error))
    for mode in ("safe", "always"):
        app = haproxy(f"{root.name}-{mode}", f"http-reuse {mode}", root=folder)
        all_right(running, app, requests=SOME)


def test_the_agent_of_haproxy_is_killed(running: Bench) -> None:
    """Streams that began before the next agent's probes have no parent, and never a wrong one."""
    found = list(
        running.run_across(
            haproxy("killed", "http-reuse always"),
            Behaviour.AT_ONCE,
            {31: 211, 32: 503, 33: 503},
            number=signal.SIGKILL,
        )
    )
    assert [result.wrong for result in found] == [0, 0, 0]
    assert found[0].right == found[0].calls
    assert found[2].right == found[2].calls, found[2]


# -- nginx --------------------------------------------------------------------------------------


def location(text: str) -> str:
    return "location / {{ " + text + " }}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", PLAIN),
        ("kept", KEPT),
        ("limit", "limit_req zone=slow burst=1000;" + KEPT),
        ("limit-plain", "limit_req zone=slow burst=1000;" + PLAIN),
        ("unbuffered", "proxy_request_buffering off;" + KEPT),
        ("unbuffered-plain", "proxy_request_buffering off;" + PLAIN),
    ],
)
def test_nginx(running: Bench, name: str, text: str) -> None:
    all_right(running, in_nginx(name, location(text)))


def test_subrequests_of_nginx(running: Bench) -> None:
    """auth_request and mirror: each subrequest is for the same request.

    A copy may be sent when the request has been answered: then it has no parent.
    """
    text = (
        "location / {{ set $number $arg_id; auth_request /auth; mirror /copy; " + KEPT + " }}"
        "location = /auth {{ internal; proxy_pass http://127.0.0.1:{backend}/auth?id=$number; }}"
        "location = /copy {{ internal; proxy_pass http://127.0.0.1:{backend}/copy?id=$arg_id; }}"
    )
    app = in_nginx("subrequests", text)
    for behaviour, result in results(running, app, behaviours=(Behaviour.AT_ONCE,)):
        assert result.calls == 3 * result.requests, (behaviour, result)
        assert result.right >= 2 * result.requests, (behaviour, result)
        assert result.none == result.reasons.get("root_parent_ended", 0), (behaviour, result)


def test_nginx_tries_again(running: Bench) -> None:
    retry = "proxy_next_upstream error timeout non_idempotent; proxy_read_timeout 200ms;"
    with silent() as port:
        app = in_nginx(
            "retries",
            location(retry + KEPT),
            upstream=f"server 127.0.0.1:1 max_fails=0; server 127.0.0.1:{port} max_fails=0;",
        )
        all_right(running, app, behaviours=(Behaviour.AT_ONCE,), requests=SOME, may_fail=True)


def test_names_that_nginx_looks_up(running: Bench) -> None:
    """The connection is made when the answer has come, in a turn of its own."""
    with resolver() as port:
        text = (
            f"resolver 127.0.0.1:{port} ipv6=off; set $name n$arg_id.test;"
            " proxy_pass http://$name:{backend};"
        )
        all_right(running, in_nginx("names", location(text)), requests={1: 23, 32: 211})


def test_the_agent_of_nginx_is_killed(running: Bench) -> None:
    """While there are no probes the turns of the event loop tell."""
    found = list(
        running.run_across(
            in_nginx("killed", location("limit_req zone=slow burst=1000;" + KEPT)),
            Behaviour.AT_ONCE,
            {31: 211, 32: 211, 33: 211},
            number=signal.SIGKILL,
        )
    )
    assert [result.wrong for result in found] == [0, 0, 0]
    assert found[0].right == found[0].calls
    assert found[2].right == found[2].calls, found[2]


def test_nginx_with_symbols_removed(running: Bench, tmp_path: Path) -> None:
    """A copy that exports nothing is followed by its turns, as before."""
    copy = tmp_path / "nginx"
    content = bytearray(Path(shutil.which("nginx") or "").read_bytes())
    name = b"ngx_event_connect_peer\0"
    content[content.index(name)] = ord("x")
    copy.write_bytes(content)
    copy.chmod(0o755)
    tmp_path.chmod(0o755)

    def start(place: Place) -> Sequence[Process]:
        listen = f"listen 127.0.0.1:{place.port} backlog=512;"
        inner = PLAIN.format(backend=place.backend)
        text = f"server {{ {listen} location / {{ {inner} }} }}"
        return [Process([str(copy), *nginx.prepare(place.folder, text)[1:]])]

    app = App("nginx-stripped", "Proxies", "stripped", start, PROXY)
    for behaviour, result in results(running, app, requests=SOME):
        assert result.right == result.calls, (behaviour, result)
        assert "right by proxy" not in result.evidence


# -- Varnish --------------------------------------------------------------------------------------


def test_varnish(running: Bench) -> None:
    all_right(running, apps.named("varnish"), requests=SOME)


@pytest.mark.parametrize("name", ["unix-haproxy", "unix-fastapi-kept"])
def test_servers_behind_unix_sockets(running: Bench, name: str) -> None:
    """HAProxy, and nginx with kept connections: each hop is right."""
    for _, result in results(running, apps.named(name), requests=SOME):
        assert result.right == result.calls, result


# -- headers that are passed on -------------------------------------------------------------------


def passed_on(running: Bench, app: App, *, count: int = 23) -> None:
    """The proxy's spans stand between the caller and the header that the backend gets."""
    app.install()
    traced = running.traced
    numbers = range(9_000_000, 9_000_000 + count)
    with running.instance(app, Behaviour.AT_ONCE) as instance:
        traced.receiver.forget_spans()
        for number in numbers:
            ask(instance.place.port, number)
        taken = dict(running.take())
        spans = traced.wait_spans(2 * count, where=lambda span: span.path in taken)
    assert len(taken) == count
    client = {span.path: span for span in spans if span.kind == "CLIENT"}
    server = {span.path: span for span in spans if span.kind == "SERVER"}
    for number in numbers:
        path = f"/at-once?id={number}"
        trace, caller = ids(number)
        assert (server[path].trace_id, server[path].parent_span_id) == (trace, caller)
        assert client[path].parent_span_id == server[path].span_id
        assert taken[path] == f"00-{trace}-{client[path].span_id}-01"


def ids(number: int) -> tuple[str, str]:
    return f"{number:032x}", f"{number:016x}"


def ask(port: int, number: int) -> None:
    trace, caller = ids(number)
    url = f"http://127.0.0.1:{port}/at-once?id={number}"
    request = urllib.request.Request(url, headers={"traceparent": f"00-{trace}-{caller}-01"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_nginx_passes_a_header_on(running: Bench) -> None:
    passed_on(running, in_nginx("passed-on", location(PLAIN)))


def test_haproxy_passes_a_header_on(running: Bench) -> None:
    passed_on(running, haproxy("passed-on", "option http-server-close"))


def test_a_header_that_is_kept() -> None:
    needs.any_uprobes()
    with bench(propagation={"passed_on": "keep"}) as running:
        app = in_nginx("kept-header", location(PLAIN))
        app.install()
        with running.instance(app, Behaviour.AT_ONCE) as instance:
            for number in range(23):
                ask(instance.place.port, number + 1)
            taken = dict(running.take())
            counters = running.traced.counters()
    for number in range(1, 24):
        trace, caller = ids(number)
        assert taken[f"/at-once?id={number}"] == f"00-{trace}-{caller}-01"
    assert "updated_header" not in counters
    assert counters["adopted_header"] >= 23
