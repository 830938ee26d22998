"""Other users name cgroups, forbid to read them, and restart units: the agent goes on."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.fixtures.load import SERVICE
from tests.fixtures.operated import Operated
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.privileges import NETWORK, give, only
from tests.fixtures.waiting import until
from throughline.bpf import abi, libbpf, maps, prototypes
from throughline.features import pins

COUNT = 23
ODD = os.fsdecode(b"caf\xc3\xa9 \xff\x1b[2J.scope")


@pytest.fixture
def host() -> Iterator[Operated]:
    """A corner without an agent; its metrics come each second."""
    metrics = {"enabled": True, "interval": 1}
    with Operated(start=False) as found:
        otlp = {"endpoint": found.receiver.endpoint}
        found.configure(export={"otlp": otlp, "metrics": metrics})
        yield found


def ask(port: int, path: str = "/", *, count: int = COUNT) -> None:
    for _ in range(count):
        # not by curl, which would escape the path
        target = ["--request-target", path, f"http://127.0.0.1:{port}"]
        command = ["curl", "-sSf", "-o", "/dev/null", *target]
        subprocess.run(command, check=True, timeout=10)


def serve(host: Operated, service: str) -> tuple[int, subprocess.Popen[bytes]]:
    port = free_port()
    process = host.spawn(service, [sys.executable, str(SERVICE), str(port)])
    wait_port(port)
    return port, process


def test_a_cgroup_whose_owner_forbids_to_look_into_it(host: Operated) -> None:
    """It must not end the agent: systemd does not restart an agent that ends with status 3."""
    give(host)
    mine = host.cgroup / "mine.service"
    (mine / "below").mkdir(parents=True)
    host.start_agent(prefix=only(*NETWORK))
    port, _ = serve(host, "web.service")
    try:
        mine.chmod(0o000)
        assert host.wait_counter("cgroup_unreadable", 1) == 1
        ask(port)
        assert len(host.wait_spans(COUNT)) == COUNT
        assert host.agent is not None and host.agent.poll() is None
        assert host.stop_agent(signal.SIGKILL) == -9
        host.start_agent(prefix=only(*NETWORK))
        ask(port)
        assert len(host.wait_spans(2 * COUNT)) == 2 * COUNT
        assert "cannot be read" in host.log()
    finally:
        mine.chmod(0o755)
        (mine / "below").rmdir()


def test_a_cgroup_that_cannot_be_attached_to_holds_up_no_other(host: Operated) -> None:
    """Neither at the start nor later: the agent attaches to all others."""
    give(host)
    tops = [host.cgroup / name for name in ("a.slice", "b.slice", "c.slice")]
    tops[0].mkdir()
    tops[1].mkdir(0)
    rules = [{"match": {"cgroup": f"{host.name}/{top.name}/*"}} for top in tops]
    host.configure(services=rules)
    host.start_agent(prefix=only(*NETWORK))

    def attached() -> set[str]:
        programs = (host.status() or {})["attached"]["programs"]
        return {p["where"].rpartition("/")[2] for p in programs if p["where"].endswith(".slice")}

    def wait_attached(*names: str) -> None:
        until(
            attached,
            enough=lambda found: found == set(names),
            seconds=10,
            every=0.1,
            otherwise=host.log,
        )

    try:
        wait_attached("a.slice")
        tops[1].chmod(0o755)
        wait_attached("a.slice", "b.slice")
        tops[1].rmdir()
        tops[1].mkdir(0)
        assert host.wait_counter("attach_failed", 2) >= 2
        tops[2].mkdir()
        host.wait_log(f"attached to /{host.name}/c.slice")
        assert host.log().count("not attached") == 1
        port, _ = serve(host, "c.slice/web.service")
        ask(port)
        assert len(host.wait_spans(COUNT)) == COUNT
        assert host.agent is not None and host.agent.poll() is None
    finally:
        host.end_services()
        (tops[2] / "web.service").rmdir()
        for top in tops:
            top.rmdir()


def test_names_and_targets_of_any_bytes(host: Operated) -> None:
    host.start_agent()
    port, _ = serve(host, "web.service")
    odd = host.cgroup / ODD
    odd.mkdir()
    try:
        time.sleep(2)
        own = free_port()
        script = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
        shell = ["sh", "-c", script, "sh", os.fsencode(odd)]
        process = subprocess.Popen([*shell, sys.executable, str(SERVICE), str(own)])
        try:
            wait_port(own)
            ask(own, "/café")
            found = host.wait_spans(COUNT)
        finally:
            process.terminate()
            process.wait(10)
        assert len(found) == COUNT
        assert {span.service for span in found} == {"café \ufffd\x1b[2J"}
        assert {span.attributes["url.path"] for span in found} == {"/café"}
        ask(port)
        assert len(host.wait_spans(2 * COUNT)) == 2 * COUNT
        shown = host.command("status")
        assert shown.returncode == 0, shown.stderr
        assert "café" in shown.stdout and "\\x1b[2J" in shown.stdout
        assert "\x1b" not in shown.stdout + host.log()
        assert host.command("status", "--json").returncode == 0
    finally:
        odd.rmdir()


def totals(host: Operated, service: str) -> list[tuple[int, int]]:
    """Start time and count of each report of a service's only series, one after the other."""
    found = []
    for resource in host.receiver.metrics:
        names = {a.key: a.value.string_value for a in resource.resource.attributes}
        if names["service.name"] == service:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "http.server.request.duration":
                        (point,) = metric.histogram.data_points
                        found.append((point.start_time_unix_nano, point.count))
    return found


def wait_total(host: Operated, service: str, total: int, *, seconds: float = 15) -> None:
    until(
        lambda: totals(host, service),
        enough=lambda found: any(count >= total for _, count in found),
        seconds=seconds,
        every=0.1,
        otherwise=f"no total of {service} is {total}",
    )


def test_totals_of_a_unit_that_restarts_do_not_go_back(host: Operated) -> None:
    """Also after a kill or a reload of the agent, and when the old cgroup is gone for long."""
    host.start_agent()
    expected = 0
    for turn in range(4):
        port, process = serve(host, "web.service")
        ask(port)
        expected += COUNT
        wait_total(host, "web", expected)
        process.terminate()
        process.wait(10)
        time.sleep(0.3)
        (host.cgroup / "web.service").rmdir()
        if turn == 0:
            time.sleep(8)  # the agent removes its row from the kernel's map
            table = libbpf.get_pinned(host.bpffs / pins.NAME / "tl_durations")
            assert list(maps.keys(table, abi.DURATION_KEY.size)) == []
            os.close(table)
        elif turn == 1:
            assert host.stop_agent(signal.SIGKILL) == -9
            host.start_agent()
        elif turn == 2:
            time.sleep(8)
            host.reload()
    found = totals(host, "web")
    assert len({start for start, _ in found}) == 1, "one series from the beginning to the end"
    counts = [count for _, count in found]
    assert counts == sorted(counts) and counts[-1] == expected == 4 * COUNT
    status = host.status()
    assert status is not None
    assert status["services"]["web"]["server"]["requests"] == 4 * COUNT
    assert host.stop_agent() == 0
    assert not (host.directory / "series.json").exists()


@pytest.mark.parametrize("entries", [1, 700])
def test_a_hash_is_read_in_batches(entries: int) -> None:
    """Batches give the same as a read of each key, for any size of a bucket."""
    kind, value_size = 5, 16  # BPF_MAP_TYPE_PERCPU_HASH
    size = value_size * maps.possible_cpus()
    fd = prototypes.check(
        prototypes.library().bpf_map_create(kind, b"tl_test", 8, value_size, 1024, None),
        "bpf_map_create",
    )
    try:
        assert list(maps.Hash(fd, 8, size).entries()) in ([], [[]])
        known = {}
        for number in range(entries):
            key, value = struct.pack("<Q", number), random.randbytes(size)
            maps.update(fd, key, value)
            known[key] = value
        found = {
            key: bytes(value) for batch in maps.Hash(fd, 8, size).entries() for key, value in batch
        }
        assert found == known
        one_by_one = maps.Hash(fd, 8, size)._one_by_one()
        assert {key: bytes(value) for batch in one_by_one for key, value in batch} == known
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("capabilities", "name"), [((*NETWORK, "sys_ptrace"), "edge"), (NETWORK, "web")]
)
def test_a_service_is_called_as_its_environment_says(
    host: Operated, capabilities: tuple[str, ...], name: str
) -> None:
    """Of another user's process; as its cgroup where the agent may not read processes."""
    give(host)
    host.start_agent(prefix=only(*capabilities))
    port = free_port()
    variables = {**os.environ, "OTEL_SERVICE_NAME": "edge"}
    host.spawn("web.service", [sys.executable, str(SERVICE), str(port)], env=variables)
    wait_port(port)
    until(
        lambda: _names(host, port),
        enough=lambda names: name in names,
        seconds=10,
        otherwise=host.log,
    )
    assert _names(host, port) == {name}, "it stays"


def _names(host: Operated, port: int) -> set[str]:
    """How the service is called in the spans of one more request."""
    path = f"/{time.monotonic_ns()}"
    ask(port, path, count=1)
    assert host.receiver.wait(lambda spans: any(span.path == path for span in spans), seconds=10)
    return {span.service for span in host.receiver.spans if span.path == path}
