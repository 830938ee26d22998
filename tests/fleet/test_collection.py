"""The built collection, by its full names, outside of a checkout; its bundle from an address."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.receiver import Receiver
from tests.fixtures.waiting import until
from tests.fleet import hosts, network, playbook, releases, twohops
from tests.fleet.hosts import Fleet
from tests.fleet.playbook import PlaybookError

pytestmark = [
    pytest.mark.timeout(900),  # where others use the processors, too
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(
        not sorted(releases.DIST.glob(releases.PATTERN)),
        reason="no agent bundle in dist/: run make bundle",
    ),
]

NAME = "coll"
GALAXY_BYTES = 20_000_000
COUNT = 7
# What of a host the project may change.
SNAPSHOT = (
    "ls -AR /opt /etc/throughline /etc/systemd/system /var/lib/throughline 2>/dev/null;"
    " cat /etc/passwd /etc/group; cat /proc/mounts"
)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the installed collection in `collections`, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
    build = [galaxy, "collection", "build", "--output-path", str(folder), str(playbook.REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    (archive,) = folder.glob("throughline-fleet-*.tar.gz")
    assert archive.stat().st_size < GALAXY_BYTES
    install = [galaxy, "collection", "install", "--offline", "-p", "collections", str(archive)]
    subprocess.run(install, check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with hosts.fleet(NAME, count=1) as running:
        running.run(running.hosts[0], twohops.START)
        yield running


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder on the fleet's bridge, which the controller does not reach."""
    listening = network.listen(NAME)
    address = listening.getsockname()
    server = ThreadingHTTPServer(address, partial(Files, directory=str(folder)), False)
    server.socket.close()
    server.socket = listening
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://{address[0]}:{address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_host_fetches_the_bundle_is_traced_and_left(
    fleet: Fleet, elsewhere: Path, bundle: Path
) -> None:
    (host,) = fleet.hosts
    play = partial(playbook.run_installed, fleet, elsewhere)
    before = fleet.run(host, SNAPSHOT).stdout
    web = elsewhere / "web"
    web.mkdir()
    shutil.copy(bundle, web)
    (web / "page.tar.gz").write_text("<!doctype html><title>Please log in</title>")
    with served(web) as address, Receiver(network.listen(NAME, port=4318)) as receiver:
        from_address = {
            "throughline_bundle_url": f"{address}/{bundle.name.replace('x86_64', '{arch}')}",
            "throughline_bundle_sha256": hashlib.sha256(bundle.read_bytes()).hexdigest(),
            "throughline_bundle_fetched_by": "host",
            "throughline_config": {"export": {"otlp": {"endpoint": receiver.endpoint}}},
        }
        for wrong, says in (
            ({"throughline_bundle_url": f"{address}/page.tar.gz"}, "a proxy or a login page"),
            ({"throughline_bundle_sha256": "0" * 64}, "required 00000000"),
        ):
            with pytest.raises(PlaybookError) as raised:
                play("site", **{**from_address, **wrong})
            assert says in " ".join(raised.value.output.split())
            assert fleet.run(host, SNAPSHOT).stdout == before
        assert "works" in play("check", **from_address)
        assert fleet.run(host, SNAPSHOT).stdout == before
        play("site", **from_address)
        command = f"for i in $(seq {COUNT}); do curl -sS --fail http://127.0.0.1:8080/; done"
        answers = fleet.run(host, command).stdout.split()
        spans = until(
            lambda: receiver.spans, enough=lambda found: len(found) >= 3 * COUNT, seconds=15
        )
        calls = {span.trace_id: span.span_id for span in spans if span.kind == "CLIENT"}
        assert calls == {words[1]: words[2] for words in (line.split("-") for line in answers)}
        assert len(calls) == COUNT
        assert "changed=0" in play("site", **from_address)
    play("uninstall")
    assert fleet.run(host, SNAPSHOT).stdout == before
