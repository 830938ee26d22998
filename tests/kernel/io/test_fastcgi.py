"""PHP-FPM by TCP, behind nginx and Apache: the whole chain, on one host and across two."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import php, process, unix
from tests.fixtures.link import Link
from tests.fixtures.numbered import load
from tests.fixtures.paths import SERVICES
from tests.fixtures.php import post
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced
from tests.parents import apache

CONCURRENT = 32
REQUESTS = 809
FEW = 23
HOPS = (("front", "SERVER"), ("front", "CLIENT"), ("app", "SERVER"), ("app", "CLIENT"))
RECORDER = (sys.executable, str(SERVICES / "recorder.py"))
KEEP = "fastcgi_keep_conn on;"
# one process of Apache, which keeps fewer connections than PHP-FPM has children
_PROCESSES = "ServerLimit 1\nStartServers 1\nThreadsPerChild 40\nMaxRequestWorkers 40\n"


@pytest.fixture(scope="module")
def onward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    record = tmp_path_factory.mktemp("fastcgi") / "record"
    with process.running([*RECORDER, str(port), str(record)]):
        wait_port(port)
        yield port


@pytest.fixture
def traced() -> Iterator[Traced]:
    with Traced() as found:
        if (found.status() or {})["legacy_programs"]:
            pytest.skip("the programs for kernels before 5.15 do not follow FastCGI by TCP")
        yield found


def check(found: Counter[str], requests: int, *, none: str = "") -> None:
    """`none`: the hop that may have no parent."""
    print(dict(found))
    assert sum(found.values()) == requests
    assert not [verdict for verdict in found if verdict.startswith("wrong")], found
    assert found["right"] + found[none] >= 0.999 * requests, found


@pytest.mark.parametrize("concurrent", [1, CONCURRENT])
@pytest.mark.parametrize("more", ["", KEEP], ids=["closed", "kept"])
def test_nginx(traced: Traced, onward: int, more: str, concurrent: int) -> None:
    """Where FIONREAD is broken, nginx's kept connections carry a context in the first request."""
    requests = REQUESTS if concurrent > 1 else FEW
    broken = (traced.status() or {})["fionread_broken"]
    port = php.start(traced, onward, more, tcp=True)
    asyncio.run(load(port, "x", requests=requests, concurrent=concurrent))
    spans = traced.wait_spans(len(HOPS) * requests, seconds=20)
    found = unix.judge(spans, HOPS)
    check(found, requests, none="none app SERVER" if broken and more else "")
    assert found["right"]
    check(unix.judge(spans, HOPS[:2]), requests)
    check(unix.judge(spans, HOPS[2:]), requests)
    servers = [span for span in spans if (span.service, span.kind) == HOPS[2]]
    assert {(span.method, span.status, span.error) for span in servers} == {("GET", 200, False)}


@pytest.mark.parametrize("concurrent", [1, CONCURRENT])
@pytest.mark.parametrize("keeps", [False, True], ids=["closed", "kept"])
def test_apache(traced: Traced, onward: int, keeps: bool, concurrent: int) -> None:
    requests = REQUESTS if concurrent > 1 else FEW
    port, behind, directory = free_port(), free_port(), traced.directory
    php.fpm(traced, onward, listen=f"127.0.0.1:{behind}", children=CONCURRENT + 16)
    wait_port(behind)
    to = f"fcgi://127.0.0.1:{behind}{directory}/index.php"
    text = apache.configuration(
        directory,
        port,
        ("mpm_event", "proxy", "proxy_fcgi"),
        _PROCESSES + f"ProxyPassMatch ^/ {to} {'enablereuse=on' if keeps else ''}\n",
    )
    file = directory / "apache.conf"
    file.write_text(text)
    directory.chmod(0o755)
    traced.spawn("front", ["apache2", "-D", "FOREGROUND", "-f", str(file)], start_new_session=True)
    wait_port(port)
    fields = "Connection: close\r\n"  # Apache closes kept ones when it is busy
    asyncio.run(load(port, "x", requests=requests, concurrent=concurrent, fields=fields))
    spans = traced.wait_spans(len(HOPS) * requests, seconds=20)
    check(unix.judge(spans, HOPS), requests)


@pytest.mark.parametrize("size", [0, 5000, 300_000])
def test_bodies_and_contexts_of_the_client(traced: Traced, onward: int, size: int) -> None:
    """nginx passes on the context that it was sent, which names its own span then."""
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "tracestate": "a=1"}
    port = php.start(traced, onward, tcp=True)
    for number in range(2 * FEW):
        path = f"/missing/{number}" if number % 2 else f"/x/{number}"
        status, body = post(port, path, bytes(size), headers if number < FEW else {})
        assert (status, body) == (404 if number % 2 else 200, f"ok{size}".encode())
    spans = traced.wait_spans(len(HOPS) * 2 * FEW)
    check(unix.judge(spans, HOPS), 2 * FEW)
    for span in spans:
        number = int(span.path.split("/")[2])
        assert (span.trace_id == trace) == (number < FEW), span
        if span.service == "app" and span.kind == "SERVER":
            assert (span.status, span.method) == (404 if "missing" in span.path else 200, "POST")


@pytest.mark.parametrize("more", ["", KEEP], ids=["closed", "kept"])
def test_two_hosts(traced: Traced, tmp_path: Path, more: str) -> None:
    broken = (traced.status() or {})["fionread_broken"]
    with Link() as link:
        onward, behind = free_port(), free_port()
        listen = f"{link.addresses(4)[1]}:{behind}"
        right = ("nsenter", f"--net={link.right.path}")
        left = ("nsenter", f"--net={link.left.path}")
        record = str(tmp_path / "record")
        with process.running([*right, *RECORDER, str(onward), record]):
            php.fpm(traced, onward, listen=listen, children=CONCURRENT + 16, prefix=right)
            with link.right:
                wait_port(onward)
                wait_port(behind)
            port = php.front(traced, more, to=listen, prefix=left, wait=False)
            with link.left:
                wait_port(port)
                asyncio.run(load(port, "x", requests=REQUESTS, concurrent=CONCURRENT))
                for number in range(FEW):
                    status, body = post(port, f"/body/{number}", bytes(300_000), {})
                    assert (status, body) == (200, b"ok300000")
            spans = traced.wait_spans(len(HOPS) * (REQUESTS + FEW), seconds=20)
            traced.end_services()
    check(
        unix.judge(spans, HOPS),
        REQUESTS + FEW,
        none="none app SERVER" if broken and more else "",
    )
