"""Parents under load: each request carries an id, and the far side compares id and trace.

For every runtime 64 requests are under way at a time. The server span of the service says which
trace a request belongs to, the far side which trace the call made for it said:
*right* the same, *none* a trace that no request of the service has, *wrong* that of another one.
*wrong* must be 0 everywhere.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import needs, nginx, process
from tests.fixtures.measured import measure
from tests.fixtures.paths import SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found


NGINX = """
  upstream onward {{ server 127.0.0.1:{next}; keepalive 64; }}
  server {{ listen 127.0.0.1:{port} backlog=512; location / {{ {location} }} }}
"""

PYTHON = sys.executable
DECIDES = {
    "threaded": [PYTHON, str(SERVICES / "threaded.py"), "{port}", "{next}"],
    "prefork": [PYTHON, str(SERVICES / "prefork.py"), "{port}", "{next}"],
    "node-new": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "new"],
    "node-keep": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "keep"],
    "split-keep": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "keep"],
    "split-twice": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "twice"],
    "node-twice": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "twice"],
}
UNDECIDED = {
    "node-timer": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "timer"],
    "node-mixed": ["node", str(SERVICES / "onward.js"), "{port}", "{next}", "mixed"],
    "asyncio-now": [PYTHON, str(SERVICES / "aio.py"), "{port}", "{next}", "now"],
    "asyncio-later": [PYTHON, str(SERVICES / "aio.py"), "{port}", "{next}", "later"],
}


@pytest.mark.parametrize("name", DECIDES)
def test_right_where_the_evidence_decides(traced: Traced, name: str, tmp_path: Path) -> None:
    result = measure(traced, name, DECIDES[name], tmp_path)
    assert result["wrong"] == 0
    assert result["right"] >= 0.999 * sum(result.values())


@pytest.mark.parametrize("location", ["close", "keepalive"])
def test_right_through_nginx(traced: Traced, location: str, tmp_path: Path) -> None:
    proxied = {
        "close": "proxy_pass http://127.0.0.1:{next};",
        "keepalive": 'proxy_http_version 1.1; proxy_set_header Connection "";'
        " proxy_pass http://onward;",
    }
    name = f"nginx-{location}"

    def command(port: int, onward: int) -> list[str]:
        found = proxied[location].format(next=onward)
        http = NGINX.format(port=port, next=onward, location=found)
        traced.directory.chmod(0o755)
        return nginx.prepare(traced.directory / name, http)

    assert shutil.which("nginx"), "nginx is missing: run make setup"
    result = measure(traced, name, command, tmp_path)
    assert result["wrong"] == 0
    status = traced.status()
    assert status is not None
    if location == "keepalive" and status["fionread_broken"]:
        # decision 0002: only the first request of a connection carries a header
        assert 0 < result["right"] + result["no header"] == sum(result.values())
    else:
        assert result["right"] >= 0.999 * sum(result.values())


@pytest.mark.parametrize("name", UNDECIDED)
def test_never_wrong_where_it_does_not(traced: Traced, name: str, tmp_path: Path) -> None:
    result = measure(traced, name, UNDECIDED[name], tmp_path)
    assert result["wrong"] == 0
    assert result["no header"] == 0


@pytest.mark.parametrize("mode", ["timer", "mixed"])
def test_never_wrong_after_an_interim_answer(traced: Traced, mode: str, tmp_path: Path) -> None:
    """A request whose client was told to go on may still make a call."""
    command = ["node", str(SERVICES / "onward.js"), "{port}", "{next}", mode]
    fields = "Expect: 100-continue\r\n"
    result = measure(traced, f"interim-{mode}", command, tmp_path, fields=fields)
    assert result["wrong"] == 0
    assert result["no header"] == 0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    directory = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with process.running([*command, "--dir", str(directory)], stdout=subprocess.DEVNULL):
        wait_port(port)
        yield port


def test_the_answer_of_a_cache_restores_the_request(
    traced: Traced, redis: int, tmp_path: Path
) -> None:
    needs.program("tl_sent")
    command = ["node", str(SERVICES / "cached.js"), "{port}", "{next}", str(redis), "pool"]
    result = measure(traced, "redis-alone", command, tmp_path, requests=300, concurrent=1)
    assert result["wrong"] == 0
    assert result["right"] >= 0.99 * sum(result.values())  # the first call opens the connection


@pytest.mark.parametrize("mode", ["pool", "shared"])
def test_never_wrong_behind_a_cache(traced: Traced, redis: int, mode: str, tmp_path: Path) -> None:
    command = ["node", str(SERVICES / "cached.js"), "{port}", "{next}", str(redis), mode]
    result = measure(traced, f"redis-{mode}", command, tmp_path)
    assert result["wrong"] == 0
    assert result["no header"] == 0
