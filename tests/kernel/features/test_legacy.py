"""The programs for kernels before 5.15: loaded where the kernel refuses the others, and right.

They load on any kernel, so that this one can judge them. molecule/kernels has older kernels.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import paths
from tests.fixtures.operated import Operated
from tests.fixtures.paths import CHECKOUT, SERVICES
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.waiting import poll
from throughline.bpf import abi, libbpf, maps
from throughline.features.objects import directory as objects_directory

COUNT = 23
REFUSED = paths.BPF / "refused.bpf.c"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("refused") / "observe.bpf.o"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", "-std=gnu11"]
    include = ["-isystem", str(CHECKOUT / "build"), f"-I{CHECKOUT / 'bpf'}"]
    target = ["-c", str(REFUSED), "-o", str(found)]
    subprocess.run(["clang", *flags, *include, *target], check=True, timeout=60)
    return found


@pytest.fixture
def legacy(refused: Path, tmp_path: Path) -> Iterator[Operated]:
    """An agent with the objects of a release, but the verifier refuses the ordinary `observe`."""
    with Operated(start=False) as host:
        host.objects = tmp_path / "bpf"
        shutil.copytree(objects_directory(), host.objects)
        shutil.copy(refused, host.objects)
        host.start_agent()
        yield host


def _serve(host: Operated, name: str, *arguments: str) -> int:
    port = free_port()
    host.spawn(name, [sys.executable, str(SERVICES / f"{name}.py"), str(port), *arguments])
    wait_port(port)
    return port


def _kept(host: Operated) -> tuple[int, int]:
    """How many connections and texts the programs' maps hold."""
    found = []
    for name in ("tl_flows", "tl_texts"):
        table = libbpf.get_pinned(next(host.bpffs.glob(f"abi*-legacy/{name}")))
        found.append(sum(1 for _ in maps.keys(table, 8)))
        os.close(table)
    return found[0], found[1]


def test_they_serve_where_the_others_are_refused(legacy: Operated) -> None:
    status = legacy.status()
    assert status is not None and status["healthy"] and status["legacy_programs"]
    assert {g["state"] for n, g in status["groups"].items() if n in ("observe", "headers")} == {
        "on"
    }
    said = legacy.command("doctor").stdout
    assert "programs for kernels before 5.15" in said
    assert [path.name.endswith("-legacy") for path in legacy.bpffs.glob("abi*")] == [True]
    assert legacy.stop_agent() == 0
    assert not legacy.pins()


def test_doctor_tries_them_too(legacy: Operated) -> None:
    legacy.stop_agent()
    found = json.loads(legacy.command("doctor", "--json").stdout)
    assert {found["groups"][name]["state"] for name in ("observe", "headers")} == {"on"}
    assert not legacy.pins()


def test_what_a_killed_trial_has_left_is_no_hindrance(legacy: Operated) -> None:
    """Maps are pinned before the verifier ends: an agent that is killed then leaves their pins."""
    legacy.stop_agent()
    left = legacy.bpffs / f"abi{abi.Abi.ABI_VERSION}" / "tl_flows"
    left.parent.mkdir()
    create = ["type", "array", "key", "4", "value", "8", "entries", "1", "name", "tl_flows"]
    subprocess.run(["bpftool", "map", "create", str(left), *create], check=True)
    legacy.start_agent()
    status = legacy.status()
    assert status is not None and status["healthy"] and status["legacy_programs"]
    assert [path.name for path in legacy.bpffs.glob("abi*")] == [f"{left.parent.name}-legacy"]


def test_ordinary_programs_take_over(legacy: Operated) -> None:
    """The kernel accepts the programs of the next release."""
    assert legacy.objects is not None
    shutil.copy(objects_directory() / "observe.bpf.o", legacy.objects)
    status = legacy.reload()
    assert status["healthy"] and not status["legacy_programs"]
    assert [path.name.endswith("-legacy") for path in legacy.bpffs.glob("abi*")] == [False]


def test_a_chain_is_one_trace(legacy: Operated) -> None:
    last = _serve(legacy, "threaded")
    first = free_port()
    legacy.spawn("first", [sys.executable, str(SERVICES / "threaded.py"), str(first), str(last)])
    wait_port(first)
    for number in range(COUNT):
        connection = http.client.HTTPConnection("127.0.0.1", first, timeout=10)
        connection.request("GET", f"/item/{number}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert len(answer["next"]["headers"]["traceparent"]) == 1
    spans = legacy.wait_spans(COUNT * 3)
    assert len(spans) == COUNT * 3
    by_id = {span.span_id: span for span in spans}
    assert len({span.trace_id for span in spans}) == COUNT
    for span in spans:
        if span.parent_span_id:
            assert by_id[span.parent_span_id].trace_id == span.trace_id
    assert sum(not span.parent_span_id for span in spans) == COUNT
    # the end of a connection removes its entries: nothing else would
    kept = poll(lambda: _kept(legacy), enough=lambda found: found == (0, 0), seconds=5, every=0.1)
    assert kept == (0, 0)


def test_requests_in_any_pieces(legacy: Operated) -> None:
    """Requests of one connection, cut at random places, each have a span and its parent."""
    port = _serve(legacy, "threaded")
    chance = random.Random(5)
    parents = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(COUNT):
            parents.append(f"{number + 1:016x}")
            text = (
                f"GET /{'x' * chance.randrange(300)} HTTP/1.1\r\nHost: test\r\n"
                f"traceparent: 00-{number + 1:032x}-{parents[-1]}-01\r\n\r\n"
            ).encode()
            cuts = sorted(chance.sample(range(1, len(text)), 5))
            for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                client.sendall(text[begin:end])
                time.sleep(0.002)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == 200 and answer.read()
    spans = legacy.wait_spans(COUNT)
    assert sorted(span.parent_span_id for span in spans) == parents


def test_a_request_that_makes_its_connection_is_counted(legacy: Operated) -> None:
    """The socket cookie is not known before the connection stands."""
    port = _serve(legacy, "deferred")
    for _ in range(COUNT):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET /deferred HTTP/1.1\r\nHost: test\r\n\r\n")
            while client.recv(4096):
                pass
    assert legacy.wait_counter("lost_early", COUNT) == COUNT
