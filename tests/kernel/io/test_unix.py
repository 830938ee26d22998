"""Requests over Unix sockets: spans at both ends, and the whole chain under concurrent load."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fixtures import needs, nginx, php, process, unix
from tests.fixtures.numbered import load
from tests.fixtures.paths import CHECKOUT, SERVICES
from tests.fixtures.php import post, wait_socket
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from throughline.bpf import abi, libbpf, maps
from throughline.bpf.counters import read_counters
from throughline.features.programs import Programs, Settings
from throughline.host import facts

CONCURRENT = 32
REQUESTS = 1607
FEW = 23
MANY = 401
APPLICATION = SERVICES / "wsgi.py"
HOPS = (("front", "SERVER"), ("front", "CLIENT"), ("app", "SERVER"), ("app", "CLIENT"))
PROXY = """
    upstream app {{ server unix:{path}; keepalive 64; }}
    server {{ listen 127.0.0.1:{port} backlog=512; location / {{ proxy_pass http://app; {more} }} }}
"""
KEEP = 'proxy_http_version 1.1; proxy_set_header Connection "";'
# Runs a command like a container does that has a directory of the host under a name of its own.
CONTAINER = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--ipc", "--uts"),
    *("--mount-proc", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"'),
)


@pytest.fixture(autouse=True)
def _needed() -> None:
    needs.program("tl_unix_sends")


@pytest.fixture(scope="module")
def onward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    record = tmp_path_factory.mktemp("unix") / "record"
    with process.running([sys.executable, str(SERVICES / "recorder.py"), str(port), str(record)]):
        wait_port(port)
        yield port


def gunicorn(
    traced: Traced, path: Path, onward: int, *more: str, prefix: Sequence[str] = ()
) -> None:
    """Starts gunicorn, which has to be told in `more` when it binds another name of `path`."""
    bind = () if "--bind" in more else ("--bind", f"unix:{path}")
    where = ["--chdir", str(APPLICATION.parent), "--no-control-socket", *bind]
    command = [*prefix, sys.executable, "-m", "gunicorn", "--log-level", "error", *where, *more]
    environment = {**os.environ, "NEXT_PORT": str(onward)}
    traced.spawn("app", [*command, f"{APPLICATION.stem}:application"], env=environment)
    wait_socket(path)


def sent(
    traced: Traced,
    port: int,
    *,
    prefix: str = "x",
    requests: int = REQUESTS,
    concurrent: int = CONCURRENT,
) -> list[Span]:
    """Sends requests to the front end; returns all spans."""
    asyncio.run(load(port, prefix, requests=requests, concurrent=concurrent))
    return traced.wait_spans(len(HOPS) * requests, seconds=20)


def check(found: Counter[str], requests: int = REQUESTS) -> None:
    print(dict(found))
    assert sum(found.values()) == requests
    assert not [verdict for verdict in found if verdict.startswith("wrong")], found
    assert found["right"] >= 0.999 * requests, found


@pytest.mark.parametrize("concurrent", [1, CONCURRENT])
@pytest.mark.parametrize("more", ["", KEEP], ids=["http10", "kept"])
@pytest.mark.parametrize(
    "workers", [("--workers=4",), ("--workers=2", "--threads=16")], ids=["sync", "threads"]
)
def test_nginx_and_gunicorn(
    onward: int, workers: Sequence[str], more: str, concurrent: int
) -> None:
    requests = REQUESTS if concurrent > 1 else FEW
    with Traced() as traced:
        path = traced.directory / "app.sock"
        gunicorn(traced, path, onward, *workers)
        port = free_port()
        nginx.start(traced, "front", PROXY.format(path=path, port=port, more=more), port=port)
        spans = sent(traced, port, requests=requests, concurrent=concurrent)
        check(unix.judge(spans, HOPS), requests)
        assert {s.evidence for s in spans if (s.service, s.kind) == HOPS[2]} == {"unix"}
        counters = traced.counters()
    assert counters["parent_unix"] >= 0.999 * requests


@pytest.mark.parametrize("concurrent", [1, CONCURRENT])
@pytest.mark.parametrize("more", ["", "fastcgi_keep_conn on;"], ids=["closed", "kept"])
def test_nginx_and_php_fpm(onward: int, more: str, concurrent: int) -> None:
    requests = REQUESTS if concurrent > 1 else FEW
    with Traced() as traced:
        spans = sent(
            traced, php.start(traced, onward, more), requests=requests, concurrent=concurrent
        )
        check(unix.judge(spans, HOPS), requests)


def slow_objects(objects: Path, pauses: int, what: str = "SLOW") -> Path:
    """The BPF objects, but requests are parsed late: 600 `pauses` are half a millisecond.

    `what`: "LATE": requests are not, but the send of an answer returns late.
    """
    for file in (CHECKOUT / "build" / "bpf").glob("*.bpf.o"):
        (objects / file.name).symlink_to(file)
    slow = objects / "unix.bpf.o"
    slow.unlink()
    flags = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", "-std=gnu11")
    where = ("-isystem", "build", "-Ibpf", "-c", "bpf/io/unix.bpf.c", "-o", str(slow))
    subprocess.run(
        ["clang", *flags, f"-DTL_TEST_{what}={pauses}", *where], cwd=CHECKOUT, check=True
    )
    return objects


def test_requests_that_are_read_before_they_are_parsed(onward: int, tmp_path: Path) -> None:
    """PHP-FPM reads at once, and calls when the request has been parsed on the other processor."""
    with Traced(objects=slow_objects(tmp_path, 600)) as traced:
        port = php.start(traced, onward, "fastcgi_keep_conn on;", apart=True)
        spans = sent(traced, port, prefix="slow")
        counters = traced.counters()
    check(unix.judge(spans, HOPS))
    assert counters["unix_raced"] >= FEW, counters
    assert not counters.get("unix_unread"), counters


def test_requests_that_are_answered_before_they_are_parsed(onward: int, tmp_path: Path) -> None:
    """The next request on the connection is not taken for the one that was answered."""
    with Traced(objects=slow_objects(tmp_path, 6000)) as traced:
        port = php.start(traced, onward, "fastcgi_keep_conn on;", apart=True)
        asyncio.run(load(port, "quick", requests=REQUESTS, concurrent=CONCURRENT))
        spans = traced.wait_spans(2 * REQUESTS, settle=1, seconds=20)
        counters = traced.counters()
    path_of = {span.span_id: span.path for span in spans}
    calls = [span for span in spans if (span.service, span.kind) == ("app", "CLIENT")]
    known = [span for span in calls if span.parent_span_id in path_of]
    print(len(calls), len(known), counters)
    assert not [span for span in known if path_of[span.parent_span_id] != span.path]
    assert known
    assert counters["unix_unread"] >= FEW, counters


def test_sends_of_answers_that_return_after_the_next_request(onward: int, tmp_path: Path) -> None:
    """What an answer has told is not taken for unseen when the next request has come meanwhile."""
    with Traced(objects=slow_objects(tmp_path, 3000, "LATE")) as traced:
        port = php.start(traced, onward, "fastcgi_keep_conn on;", apart=True)
        spans = sent(traced, port, requests=MANY, concurrent=1)
        counters = traced.counters()
    check(unix.judge(spans, HOPS), MANY)
    assert not counters.get("unix_unseen"), counters
    assert all(span.status for span in spans)


def test_what_looks_like_a_request_takes_no_room(tmp_path: Path) -> None:
    """Other protocols begin with capitals, too: a D-Bus client begins with AUTH."""
    path = tmp_path / "other.sock"
    connections = 101
    code = (
        "import os, socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1] + '.new')\n"
        "listener.listen(); os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
        f"for n in range({connections}):\n"
        "    peer, _ = listener.accept()\n"
        "    assert peer.recv(100) == b'AUTH EXTERNAL 3030\\r\\n'; peer.sendall(b'OK 12\\r\\n')\n"
        "    assert peer.recv(100) == b'BEGIN\\r\\n'\n"
    )
    with Traced() as traced:
        server = traced.spawn("server", [sys.executable, "-c", code, str(path)])
        wait_socket(path)
        for _ in range(connections):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"AUTH EXTERNAL 3030\r\n")
                assert client.recv(100) == b"OK 12\r\n"
                client.sendall(b"BEGIN\r\n")
        assert server.wait(20) == 0
        table = libbpf.get_pinned(next(traced.bpffs.glob("abi*/tl_requests")))
        try:
            left = sum(1 for _ in maps.keys(table, 8))
        finally:
            os.close(table)
    # Beside other load one of some thousand connections leaves an entry, until it is swept after
    # five minutes: the server reads its last message ahead of the parser, and never answers.
    assert left <= 1


def test_nothing_is_counted_of_processes_that_are_not_traced(tmp_path: Path) -> None:
    """The programs see all Unix sockets of the host, as those of D-Bus and of ssh's ControlPath."""

    def speak() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"AUTH EXTERNAL 3030\r\n")
            client.sendall(b"BEGIN\r\n")

    path = str(tmp_path / "other.sock")
    with Traced() as traced, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(2 * FEW)
        for _ in range(FEW):
            speak()
        with traced.inside("client"):
            speak()
        assert traced.counters().get("skip_not_http") == 1


@pytest.mark.parametrize("size", [0, 5000, 300_000])
def test_uploads_to_php_and_contexts_of_the_client(onward: int, size: int) -> None:
    """nginx sends what it has put into a file by sendfile: the programs do not see these bytes."""
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "tracestate": "a=1"}
    with Traced() as traced:
        port = php.start(traced, onward, "fastcgi_keep_conn on;")
        for number in range(FEW):
            path = f"/missing/{number}" if number % 2 else f"/x/{number}"
            status, body = post(port, path, bytes(size), headers)
            assert (status, body) == (404 if number % 2 else 200, f"ok{size}".encode())
        spans = traced.wait_spans(len(HOPS) * FEW)
    check(unix.judge(spans, HOPS), FEW)
    assert {span.trace_id for span in spans} == {trace}
    for span in spans:
        if span.service == "app" and span.kind == "SERVER":
            assert (span.status, span.method) == (404 if "missing" in span.path else 200, "POST")
            assert span.error is False


def test_uploads_to_gunicorn(onward: int) -> None:
    with Traced() as traced:
        path, port = traced.directory / "app.sock", free_port()
        gunicorn(traced, path, onward, "--workers=2", "--threads=4")
        more = KEEP + " client_max_body_size 10m; sendfile on;"
        nginx.start(traced, "front", PROXY.format(path=path, port=port, more=more), port=port)
        for number in range(FEW):
            assert post(port, f"/x/{number}", bytes(300_000), {})[0] == 200
        check(unix.judge(traced.wait_spans(len(HOPS) * FEW), HOPS), FEW)


def test_nginx_that_listens_on_both(onward: int) -> None:
    """Requests come by TCP and by a Unix socket, and go on by TCP."""
    http_block = """
        upstream onward {{ server 127.0.0.1:{onward}; keepalive 64; }}
        server {{
            listen 127.0.0.1:{port} backlog=512;
            listen unix:{path} backlog=512;
            location / {{ proxy_pass http://onward; {more} }}
        }}
    """
    with Traced() as traced:
        path, port = traced.directory / "front.sock", free_port()
        block = http_block.format(onward=onward, port=port, path=path, more=KEEP)
        nginx.start(traced, "front", block, port=port)

        async def both() -> None:
            await asyncio.gather(
                load(port, "tcp", requests=REQUESTS, concurrent=CONCURRENT // 2),
                load(path, "unix", requests=REQUESTS, concurrent=CONCURRENT // 2),
            )

        asyncio.run(both())
        spans = traced.wait_spans(4 * REQUESTS)
    check(unix.judge(spans, HOPS[:2]), 2 * REQUESTS)


def test_containers_that_share_a_directory(onward: int) -> None:
    """Each has its own names of files, of processes and of cgroups."""
    with Traced() as traced:
        shared, front, app = (traced.directory / name for name in ("shared", "left", "right"))
        for directory in (shared, front, app):
            directory.mkdir()
        traced.directory.chmod(0o755)
        within = [*CONTAINER, str(shared), str(app)]
        bind = ["--bind", f"unix:{app}/app.sock", "--workers=2", "--threads=16"]
        gunicorn(traced, shared / "app.sock", onward, *bind, prefix=within)
        port = free_port()
        block = PROXY.format(path=front / "app.sock", port=port, more=KEEP)
        within = [*CONTAINER, str(shared), str(front)]
        nginx.start(traced, "front", block, port=port, prefix=within)
        spans = sent(traced, port)
    check(unix.judge(spans, HOPS))


def test_haproxy_and_gunicorn(onward: int) -> None:
    """HAProxy's own calls have the right parent or none; what follows them is right."""
    config = """
        defaults
            mode http
            timeout connect 10s
            timeout client 20s
            timeout server 20s
        frontend front
            bind 127.0.0.1:{port}
            default_backend app
        backend app
            server app unix@{path}

    """
    with Traced() as traced:
        path, port = traced.directory / "app.sock", free_port()
        gunicorn(traced, path, onward, "--workers=2", "--threads=16")
        file = traced.directory / "haproxy.cfg"
        file.write_text(textwrap.dedent(config.format(port=port, path=path)))
        traced.spawn("front", ["haproxy", "-db", "-f", str(file)])
        wait_port(port)
        spans = sent(traced, port)
    check(unix.judge(spans, HOPS[1:]))
    found = unix.judge(spans, HOPS[:2])
    print("HAProxy's own calls", dict(found))
    assert not [verdict for verdict in found if verdict.startswith("wrong")], found


@pytest.mark.parametrize("mode", ["accept", "read"])
def test_connections_that_are_passed_to_other_processes(onward: int, mode: str) -> None:
    """The process that reads a request calls for it, or nothing says who does."""
    program = str(SERVICES / "passed.py")
    with Traced({"propagation": {"parents": "proven"}}) as traced:
        path, port = traced.directory / "app.sock", free_port()
        traced.spawn("app", [sys.executable, program, str(path), str(onward), mode])
        wait_socket(path)
        nginx.start(traced, "front", PROXY.format(path=path, port=port, more=""), port=port)
        spans = sent(traced, port)
        found = unix.judge(spans, HOPS)
        print(dict(found), traced.counters())
    check(unix.judge(spans, HOPS[:3]))
    assert not [verdict for verdict in found if verdict.startswith("wrong")], found
    assert found["right"] + found["none app CLIENT"] >= 0.999 * REQUESTS, found
    if mode == "accept":
        assert found["right"] >= 0.8 * REQUESTS, "after 16 requests of each worker it is proven"


def test_what_the_spans_say(onward: int) -> None:
    with Traced() as traced:
        path = traced.directory / "app.sock"
        gunicorn(traced, path, onward)
        port = free_port()
        nginx.start(traced, "front", PROXY.format(path=path, port=port, more=""), port=port)
        spans = sent(traced, port, requests=1, concurrent=1)
    server, client = (
        next(s for s in spans if (s.service, s.kind) == hop) for hop in (HOPS[2], HOPS[1])
    )
    assert client.attributes["network.transport"] == "unix"
    assert client.attributes["network.peer.address"] == str(path)
    assert client.attributes["url.full"] == "http://app/x/0"
    assert server.attributes["network.local.address"] == str(path)
    assert server.attributes["server.address"] == "app", "the Host header"
    assert "client.address" not in server.attributes
    assert client.start_ns == server.start_ns and server.end_ns <= client.end_ns


def test_other_protocols_are_left_alone(tmp_path: Path) -> None:
    """A peer that speaks no HTTP, over and over: no span, and its bytes arrive."""
    path = tmp_path / "other.sock"
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "for n in range(23):\n"
        "    s.sendall(b'*1\\r\\n$4\\r\\nPING\\r\\n'); assert s.recv(9) == b'+PONG\\r\\n'\n"
    )
    with Traced() as traced, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = traced.spawn("client", [sys.executable, "-c", code, str(path)])
        peer, _ = listener.accept()
        with peer:
            for _ in range(23):
                assert peer.recv(100) == b"*1\r\n$4\r\nPING\r\n"
                peer.sendall(b"+PONG\r\n")
        assert client.wait(20) == 0
        assert not traced.wait_spans(0, settle=0.5)
        assert not traced.counters().get("requests_client")


def test_processes_of_other_cgroups_are_left_alone(tmp_path: Path) -> None:
    """The tracepoints see all of the host, an agent what is below the cgroups of its services."""
    code = """
        import socket, sys
        path, name = sys.argv[1:]
        listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(path), listener.listen(), client.connect(path)
        server, _ = listener.accept()
        for n in range(23):
            client.sendall(f"GET /{name}/{n} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
            server.recv(1000)
            server.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
            client.recv(1000)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    cgroup2 = facts.gather().cgroup2
    assert cgroup2 is not None
    with (
        Traced(start=False) as corner,
        Programs(
            bpffs=corner.bpffs,
            cgroup2=cgroup2,
            roots=[corner.name],
            settings=Settings(abi.Sampler.ALWAYS_ON, 1.0, True, trace_unlisted=True),
        ) as programs,
    ):
        programs.attach_observe()
        with process.running([*command, str(tmp_path / "other.sock"), "other"]) as other:
            assert other.wait(20) == 0
        before = read_counters(programs.map_fd("tl_counters"))
        both = corner.spawn("both", [*command, str(tmp_path / "both.sock"), "both"])
        assert both.wait(20) == 0
        after = read_counters(programs.map_fd("tl_counters"))
    for name in ("requests_client", "requests_server"):
        assert (before[name], after[name]) == (0, FEW), name
