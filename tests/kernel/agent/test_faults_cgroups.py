"""Cgroups that come and go, links that somebody detaches, other network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.fixtures import cgroup
from tests.fixtures.load import SERVICE, Chain, Load, start_chain, start_nginx
from tests.fixtures.operated import Operated
from tests.fixtures.ports import free_port, wait_port
from throughline.bpf import libbpf, maps
from throughline.features import pins

COUNT = 23


def _all_traced(traced: Operated, chain: Chain) -> None:
    before = len(traced.receiver.spans)
    with Load(chain) as load:
        load.wait(0.4)
    assert not load.failures and not load.untraced()
    found = traced.wait_spans(before + 3 * len(load.answers))
    assert len(found) == before + 3 * len(load.answers)


def test_a_slice_that_comes_goes_and_comes_again() -> None:
    """Programs attach to the cgroup of a slice, which ends with its last unit."""
    with Operated({"services": []}, start=False) as host:
        top = f"{host.name}/shop.slice"
        host.configure(services=[{"match": {"cgroup": f"{top}/*"}}])
        home, host.cgroup = host.cgroup, host.cgroup / "shop.slice"
        host.start_agent()
        status = host.status()
        assert status is not None and status["attached"]["programs"]
        assert not any(p["where"] == f"/{top}" for p in status["attached"]["programs"])
        for _ in range(2):
            host.cgroup.mkdir()
            host.wait_log(f"attached to /{top}")
            host.wait_status("absent_cgroups", [])
            chain = start_chain(host)
            _all_traced(host, chain)
            status = host.status()
            assert status is not None and status["healthy"] and not status["missing"]
            assert sum(p["where"] == f"/{top}" for p in status["attached"]["programs"]) == 3
            host.end_services()
            cgroup.remove(host.cgroup)
            host.wait_status("absent_cgroups", [f"/{top}"])
            assert host.command("status").returncode == 0, "nothing to trace is no fault"
            (host.directory / "agent.log").write_text("")
        host.cgroup = home
        assert host.stop_agent() == 0
        assert host.pins() == []


def test_nested_cgroups_belong_to_their_service(traced: Operated) -> None:
    """A unit with Delegate=yes has cgroups of its own, in which its processes are."""
    port, onward = free_port(), free_port()
    nested = [traced.cgroup / "web.service", traced.cgroup / "web.service" / "worker"]
    for directory in nested:
        directory.mkdir()
    try:
        traced.spawn("web.service/worker", [sys.executable, str(SERVICE), str(port), str(onward)])
        traced.spawn("back.service", [sys.executable, str(SERVICE), str(onward)])
        wait_port(port)
        wait_port(onward)
        for number in range(COUNT):
            url = f"http://127.0.0.1:{port}/{number}"
            subprocess.run(["curl", "-sSf", url], check=True, stdout=subprocess.DEVNULL)
        spans = traced.wait_spans(3 * COUNT)
        assert len(spans) == 3 * COUNT
        assert {span.service for span in spans} == {"web", "back"}
        assert {str(span.resource["systemd.unit"]) for span in spans} == {
            "web.service",
            "back.service",
        }
    finally:
        traced.end_services()
        for directory in reversed(nested):
            directory.rmdir()


def test_cgroups_come_and_go_by_the_hundred(traced: Operated) -> None:
    chain = start_chain(traced)
    assert traced.agent is not None
    with Load(chain) as load:
        for turn in range(3):
            made = [traced.cgroup / f"churn-{turn}-{number}" for number in range(150)]
            for directory in made:
                directory.mkdir()
            load.wait(0.6)
            for directory in made:
                directory.rmdir()
            load.wait(0.6)
    assert not load.failures and not load.untraced()
    assert len(traced.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
    time.sleep(1.2)
    status = traced.status()
    assert status is not None and status["healthy"]
    table = libbpf.get_pinned(traced.bpffs / pins.NAME / "tl_cgroups")
    known = sum(1 for _ in maps.keys(table, 8))
    os.close(table)
    assert known <= 4, "the corner, its two services, and the agent's own: the rest is forgotten"


def test_a_link_that_somebody_detached_is_missed(traced: Operated) -> None:
    pin = next(traced.bpffs.glob("abi*/links/tl_egress@*"))
    subprocess.run(["bpftool", "link", "detach", "pinned", str(pin)], check=True)
    traced.wait_status("healthy", False)
    assert (traced.status() or {})["missing"] == [pin.name]
    assert traced.command("status").returncode == 1
    # a restart attaches it again
    assert traced.stop_agent(9) == -9
    traced.start_agent()
    traced.wait_status("healthy", True)
    assert traced.command("status").returncode == 0
    _all_traced(traced, start_chain(traced))


@pytest.mark.parametrize(
    ("program", "kind"),
    [("tl_ingress", "ingress"), ("tl_egress", "egress"), ("tl_sockops", "sock_ops")],
)
def test_a_program_that_somebody_detaches_under_load(
    traced: Operated, program: str, kind: str
) -> None:
    """The kernel refuses `bpftool cgroup detach` for a link. No request fails after a detach."""
    pin = next(traced.bpffs.glob(f"abi*/links/{program}@*"))
    attached = (traced.status() or {})["attached"]["programs"]
    number = next(str(one["id"]) for one in attached if one["name"] == program)
    chain = start_chain(traced)
    with Load(chain) as load:
        load.wait(0.5)
        detach = ["bpftool", "cgroup", "detach", str(traced.cgroup), kind, "id", number]
        refused = subprocess.run(detach, capture_output=True, text=True, timeout=20)
        if refused.returncode:
            load.wait(1.5)
            status = traced.status()
            assert status is not None and status["healthy"], refused.stderr
            assert not load.untraced()
            subprocess.run(["bpftool", "link", "detach", "pinned", str(pin)], check=True)
        traced.wait_status("healthy", False)
        load.wait(0.5)
        assert (traced.status() or {})["missing"] == [pin.name]
        assert traced.stop_agent() == 0
        load.wait(0.3)
    assert not load.failures
    assert traced.pins() == []


def test_a_pin_that_somebody_removed_is_missed(traced: Operated) -> None:
    pin = next(traced.bpffs.glob("abi*/links/tl_ingress@*"))
    pin.unlink()
    traced.wait_status("healthy", False)
    assert (traced.status() or {})["missing"] == [pin.name]
    assert traced.stop_agent() == 0
    assert traced.pins() == []


# Calls a URL again and again over IPv6, one connection each; prints how often it worked.
_CALLER = """
import http.client, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(count):
    for attempt in range(100):
        try:
            connection = http.client.HTTPConnection(host, port, timeout=10)
            connection.connect()
            break
        except ConnectionRefusedError:
            __import__("time").sleep(0.05)
    connection.request("GET", f"/{number}")
    answer = connection.getresponse()
    assert answer.status == 200
    sys.stdout.write(answer.read().decode() + "\\n")
    connection.close()
"""


def test_another_network_namespace_and_ipv6(traced: Operated) -> None:
    """client -> [::1] nginx -> 127.0.0.1 service, all in a network namespace without the agent."""
    name = traced.name
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = ["ip", "netns", "exec", name]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        port, back = free_port(), free_port()
        traced.spawn("back", [*inside, sys.executable, str(SERVICE), str(back)])
        start_nginx(traced, "front", onward=back, port=port, prefix=inside)
        client = traced.spawn(
            "client",
            [*inside, sys.executable, "-c", _CALLER, "::1", str(port), str(COUNT)],
            stdout=subprocess.PIPE,
        )
        answers = [json.loads(line) for line in client.communicate(timeout=60)[0].splitlines()]
        assert client.returncode == 0
        assert [len(answer["headers"]["traceparent"]) for answer in answers] == [1] * COUNT
        spans = traced.wait_spans(4 * COUNT)
        assert len(spans) == 4 * COUNT
        traces: dict[str, list[str]] = {}
        for span in spans:
            traces.setdefault(span.trace_id, []).append(f"{span.service} {span.kind}")
        chain = ["back SERVER", "client CLIENT", "front CLIENT", "front SERVER"]
        assert [sorted(found) for found in traces.values()] == [chain] * COUNT
        over_ipv6 = [span for span in spans if span.service == "client"]
        assert {span.attributes["server.address"] for span in over_ipv6} <= {"::1", "[::1]"}
        servers = [s for s in spans if (s.service, s.kind) == ("front", "SERVER")]
        assert {span.attributes["client.address"] for span in servers} == {"::1"}
    finally:
        traced.end_services()
        subprocess.run(["ip", "netns", "delete", name], check=True)
