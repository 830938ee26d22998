"""The headers of `go_write` as nginx and gRPC's C-core read them.

Skipped where the kernel refuses it; `test_write_in_vm.py` runs this in a VM.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.go.build import STRIPPED, build
from tests.fixtures.paths import CHECKOUT
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import START_SECONDS, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01")
# around the places where the integer in front of a value takes one byte more (RFC 7541, 5.1)
STATES = (0, 3, 126, 127, 128, 254, 255, 256, 300, 511, 512)

_SERVER = """
    log_format seen escape=json '{{"traceparent":"$http_traceparent",'
        '"tracestate":"$http_tracestate","uri":"$uri","agent":"$http_user_agent",'
        '"accept":"$http_accept_encoding","host":"$http_host"}}';
    large_client_header_buffers 8 32k;
    server {{
        listen 127.0.0.1:{port} ssl{http2};
        access_log seen.log seen;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        location ~ ^/answer/(?<id>[0-9]+)$ {{
            default_type application/json;
            return 200 '{{"id":"$id","kind":"answer","traceparents":["$http_traceparent"]}}';
        }}
    }}
"""


class Nginx:
    """nginx behind a Go service; it logs and answers the headers that came."""

    def __init__(self, traced: Traced, *, http2: bool) -> None:
        self._read = 0
        certificate = make_certificate(traced.directory)
        port, self._front = free_port(), free_port()
        for name in ("nginx", "front"):
            (traced.cgroup / name).mkdir()
        http = _SERVER.format(port=port, http2=" http2" if http2 else "", certificate=certificate)
        self._log = nginx.start(traced, "nginx", http, port=port, workers=1) / "seen.log"
        server = build("chain/server", version="1.22", flags=STRIPPED)
        upstream = [f"-upstream=https://127.0.0.1:{port}", f"-ca={certificate}"]
        upstream += ["-upstream-http2"] if http2 else []
        traced.spawn("front", [str(server), f"-listen=127.0.0.1:{self._front}", *upstream])
        wait_port(self._front)
        traced.wait_followed(server)

    def ask(self, number: str, *, plan: str = "context", state: str = "") -> list[str]:
        """Sends a request. Returns the traceparents that nginx answers to have seen."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._front}/{plan}/answer/{number}")
        request.add_header("traceparent", f"00-{TRACE}-{PARENT}-01")
        if state:
            request.add_header("tracestate", state)
        with urllib.request.urlopen(request, timeout=60) as answer:
            [behind] = json.load(answer)["upstream"]
        assert behind["id"] == number
        seen: list[str] = behind["traceparents"]
        return seen

    def seen(self) -> dict[str, str]:
        """The headers of the next request: nginx logs them once it has answered."""
        lines = until(
            lambda: self._log.read_text().splitlines(),
            enough=lambda found: len(found) > self._read,
            every=0.01,
            otherwise="nginx has logged no request",
        )
        self._read += 1
        found: dict[str, str] = json.loads(lines[self._read - 1])
        return found


def state_of(length: int) -> str:
    """A tracestate of so many bytes, in members of at most 256."""
    members: list[str] = []
    while length:
        size = min(length, 200)
        if 0 < length - size < 4:
            size -= 4
        members.append(f"{chr(97 + len(members))}=" + "x" * (size - 2))
        length -= size + 1
        if length < 0:
            break
    return ",".join(members)


@pytest.mark.parametrize("length", STATES)
def test_states_are_as_long_as_they_should(length: int) -> None:
    assert len(state_of(length)) == length


@pytest.fixture(params=[False, True], ids=["https/1.1", "https/2"])
def nginx(writing: Traced, request: pytest.FixtureRequest) -> Nginx:
    return Nginx(writing, http2=request.param)


def test_nginx_reads_what_was_written(nginx: Nginx, writing: Traced) -> None:
    """No other byte of the header changes, and tracestate is passed on."""
    for number, length in enumerate(STATES * 2):
        state = state_of(length)
        [said] = nginx.ask(str(number), state=state)
        seen = nginx.seen()
        match = TRACEPARENT.fullmatch(seen["traceparent"])
        assert match is not None, seen
        assert match[1] == TRACE
        assert said == seen["traceparent"]
        assert seen["tracestate"] == state
        assert seen["uri"] == f"/answer/{number}"
        assert (seen["agent"], seen["accept"]) in {
            ("Go-http-client/1.1", "gzip"),
            ("Go-http-client/2.0", "gzip"),
        }
    calls = writing.wait_spans(len(STATES), where=lambda span: span.kind == "CLIENT")
    assert {span.trace_id for span in calls} == {TRACE}
    counters = writing.counters()
    assert counters["go_written"] == 2 * len(STATES)
    assert counters["injected_tracestate"] == 2 * len(STATES) - 2


def test_a_header_of_the_application_wins(nginx: Nginx, writing: Traced) -> None:
    for number in range(23):
        [said] = nginx.ask(str(number), plan="own")
        assert said == f"00-0af7651916cd43dd{number + 1:016x}-{number + 1:016x}-01"
    counters = writing.counters()
    assert "go_written" not in counters
    assert counters["adopted_header"] == 23


def test_requests_of_every_length(nginx: Nginx, writing: Traced) -> None:
    """Where a buffer has no room nothing is written, and the request leaves unchanged."""
    written = 0
    lengths = [*range(1, 4400, 61), *range(3900, 4110, 7)]
    for length in lengths:
        number = "1".zfill(length)
        [said] = nginx.ask(number)
        seen = nginx.seen()
        assert seen["uri"] == f"/answer/{number}"
        assert said == seen["traceparent"]
        if said:
            match = TRACEPARENT.fullmatch(said)
            assert match is not None
            assert match[1] == TRACE
            written += 1
    counters = writing.counters()
    assert counters["go_written"] == written
    assert counters.get("go_write_no_room", 0) == len(lengths) - written
    assert written > len(lengths) * 0.4


def test_c_core_reads_what_was_written(writing: Traced) -> None:
    """A gRPC server that is not Go's finds the field once, and all other fields."""
    record = writing.directory / "metadata"
    port, front = free_port(), free_port()
    for name in ("core", "front"):
        (writing.cgroup / name).mkdir()
    peer = [sys.executable, "-m", "tests.fixtures.go.grpc_peer", str(port), str(record)]
    writing.spawn("core", peer, cwd=CHECKOUT)
    wait_port(port, seconds=max(60.0, START_SECONDS))
    server = build("grpc/server", version="1.22", modules="1.64")
    writing.spawn(
        "front",
        [str(server), f"-listen=127.0.0.1:{front}", f"-upstream=127.0.0.1:{port}", "-numbered=100"],
    )
    wait_port(front)
    writing.wait_followed(server)
    client = build("grpc/client")
    done = subprocess.run(
        [
            *(str(client), f"-target=127.0.0.1:{front}", "-method=unary", "-path=/unary/answer"),
            *("-requests=23", "-concurrent=4", "-numbered", "-own"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["failed"] == 0, done.stdout
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(calls) == 23
    for call in calls:
        names = [name for name, _ in call]
        assert names.count("traceparent") == 1
        assert "user-agent" in names
        match = TRACEPARENT.fullmatch(dict(call)["traceparent"])
        assert match is not None
        assert match[1].startswith("0af7651916cd43dd")
    assert len({dict(call)["traceparent"][3:35] for call in calls}) == 23
    assert writing.counters()["go_written"] == 23
