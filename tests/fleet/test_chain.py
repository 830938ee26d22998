"""The agent on a fleet: one playbook run, unmodified services, events that must not break them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.waiting import until
from tests.fleet import playbook, releases, shop
from tests.fleet.joined import Request
from tests.fleet.rollout import Shop, answers, load, rolled_out, wait_healthy

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "chain"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A copy of the bundle: a build during the tests does not change it."""
    bundle = Path(shutil.copy(releases.newest(), tmp_path_factory.mktemp("dist")))
    with rolled_out(NAME, bundle) as rolled:
        yield rolled


def test_every_hop_of_every_request_is_joined(running: Shop) -> None:
    requests = shop.send(running.fleet)
    assert len(requests) == shop.REQUESTS
    assert running.problems(requests) == []


def test_context_can_travel_beside_the_bytes(running: Shop) -> None:
    """Groups packets, tls and go, with no variable set: peers are those of the inventory."""
    seen = [running.status(number) for number in range(3)]
    for status in seen:
        for name in ("packets", "tls", "go"):
            assert status["groups"][name]["state"] == "on", status["groups"][name]
        addresses = [(one.address, one.address6) for one in running.fleet.hosts]
        expected = {"127.0.0.0/8", "::1/128"}
        expected |= {f"{four}/32" for four, _ in addresses} | {f"{six}/128" for _, six in addresses}
        assert set(status["packets"]["peers"]) == expected
        assert status["packets"]["new_connections"] == ["/system.slice"]
        interfaces = {place["interface"] for place in status["packets"]["older_connections"]}
        assert {"lo", "host0"} <= interfaces and not status["packets"]["refused"]
    # nginx, Python and Node.js have OpenSSL in them
    for status in seen:
        used = [file for file in status["tls"]["files"] if file["processes"]]
        assert used and not any(file["refused"] for file in used), used


def test_a_request_has_a_header_or_an_option_and_never_both(running: Shop) -> None:
    """HAProxy, nginx and FastAPI ask by HTTP, Python by HTTPS, Node.js and PHP by HTTP again."""
    names = ("injected", "updated_header", "option_written", "option_read", "option_taken")
    since = time.time() + 0.2  # the counters are read before a status is written
    before = [running.status(number, since=since)["counters"] for number in range(3)]
    count = 23
    requests = running.order(*(f"way{number}" for number in range(count)))
    assert running.problems(requests) == []
    since = time.time() + 0.2
    edge_and_web, cart_and_orders, stock_and_offers = (
        {
            name: running.status(number, since=since)["counters"][name] - earlier[name]
            for name in names
        }
        for number, earlier in enumerate(before)
    )
    nothing = dict.fromkeys(names, 0)
    # nginx passes on what HAProxy has sent: its span takes the place of HAProxy's there
    assert edge_and_web == nothing | {"injected": count, "updated_header": count}
    # TCP sends the option until it is acknowledged, so that a request may have several.
    written = max(count, cart_and_orders["option_written"])
    assert cart_and_orders == nothing | {"injected": count, "option_written": written}
    read = max(count, stock_and_offers["option_read"])
    expected = {"injected": 2 * count, "option_taken": count, "option_read": read}
    assert stock_and_offers == nothing | expected


def outlive_connections() -> None:
    """Waits until nothing is left of the time before the agent.

    FastAPI lets go of older connections after 1 s: no header can be written into those. Node.js
    tells each 5 s where it shows its requests.
    """
    time.sleep(5.5)


@pytest.mark.parametrize("number", [1, 2], ids=["client", "server"])
def test_agents_are_restarted_between_requests(running: Shop, number: int) -> None:
    """The hosts at the ends of the HTTPS hop. Their probes are not pinned."""
    for turn in range(3):
        running.fleet.run(running.fleet.hosts[number], "systemctl restart throughline")
        wait_healthy(running)
        outlive_connections()
        requests = running.order(*(f"restart{number}turn{turn}n{one}" for one in range(7)))
        assert running.problems(requests) == []


def test_ipv6(running: Shop) -> None:
    url = f"http://[{running.fleet.hosts[0].address6}]/cart/six"
    command = [*running.fleet.inside, "curl", "-sS", "--fail", "--max-time", "10", url]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    requests = [Request("six", "", "", shop.received(answer))]
    assert running.problems(requests) == []


def test_an_unsampled_request_propagates_and_sends_no_span(running: Shop) -> None:
    unsampled = shop.TRACEPARENT[:-2] + "00"
    (request,) = running.order("unsampled", options=("-H", f"traceparent: {unsampled}"))
    (arrived,) = request.received["traceparent"]
    assert arrived.startswith(shop.TRACEPARENT[:36])
    assert arrived.endswith("-00")
    witness = running.order("sampled")
    assert running.problems(witness) == []
    assert running.spans_of([request], seconds=0) == []


def test_metrics_of_all_requests_arrive(running: Shop) -> None:
    wanted = {
        ("shop-web", "http.server.request.duration"),
        ("shop-web", "http.client.request.duration"),
        ("shop-prices", "http.server.request.duration"),
    }

    def seen() -> set[tuple[str, str]]:
        return {
            (pair.value.string_value, metric.name)
            for resource in running.receiver.metrics
            for pair in resource.resource.attributes
            if pair.key == "service.name"
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    until(seen, enough=lambda found: wanted <= found, seconds=30, every=0.2)


def test_a_killed_agent_breaks_no_request_and_comes_back(running: Shop) -> None:
    before = running.pid(1)
    with load(running.fleet) as client:
        time.sleep(0.5)
        running.fleet.run(
            running.fleet.hosts[1], "systemctl kill --kill-whom=main -s KILL throughline"
        )
        (meanwhile,) = running.order("meanwhile")
        assert len(meanwhile.received.get("traceparent", ())) == 1, "propagation stopped"
        # the kernel needs time to detach the probes of the killed agent
        until(
            lambda: running.pid(1),
            enough=lambda pid: pid not in ("0", before),
            seconds=30,
            every=0.1,
        )
        wait_healthy(running)
        time.sleep(0.5)
        statuses = answers(client)
    assert running.pid(1) not in ("0", before)
    assert len(statuses) > 23
    assert set(statuses) == {"200"}
    outlive_connections()
    requests = running.order(*(f"afterkill{number}" for number in range(7)))
    assert running.problems(requests) == []


def test_a_second_rollout_changes_nothing(running: Shop) -> None:
    before = [running.pid(number) for number in range(3)]
    recap = running.rollout().rpartition("PLAY RECAP")[2].splitlines()[1:4]
    assert len(recap) == 3
    assert all("changed=0 " in line for line in recap), recap
    assert [running.pid(number) for number in range(3)] == before


def test_spans_wait_for_a_collector_that_is_away(running: Shop) -> None:
    running.receiver.refuse_with = 503
    try:
        requests = running.order(*(f"away{number}" for number in range(7)))
        time.sleep(3)
        assert running.spans_of(requests, seconds=0) == []
    finally:
        running.receiver.refuse_with = 0
    assert running.problems(requests, seconds=45) == []


def test_a_rebooted_host_is_traced_again(running: Shop) -> None:
    host = running.fleet.hosts[2]
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = running.fleet.run(host, boot_id).stdout
    running.fleet.run(host, "systemctl reboot", check=False)
    until(
        lambda: running.fleet.run(host, boot_id, check=False).stdout,
        enough=lambda found: found not in ("", before),
        seconds=30,
        every=0.2,
        otherwise="the host did not come back",
    )
    wait_healthy(running)
    running.fleet.run(host, "systemctl is-system-running --wait")
    requests = running.order(*(f"rebooted{number}" for number in range(7)))
    assert running.problems(requests) == []


def test_uninstall_leaves_nothing_and_no_request_fails(running: Shop) -> None:
    with load(running.fleet) as client:
        playbook.run(running.fleet, playbook.UNINSTALL, quiet=True)
        statuses = answers(client)
    assert set(statuses) == {"200"}
    for host in running.fleet.hosts:
        attached = subprocess.run(
            ["bpftool", "cgroup", "tree", str(host.cgroup)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert "tl_" not in attached
        left = running.fleet.run(
            host,
            "ls -d /opt/throughline /etc/throughline /var/lib/throughline /run/throughline*"
            " /etc/systemd/system/*throughline* 2>/dev/null; getent passwd throughline;"
            ' grep " /run/throughline" /proc/mounts; systemctl is-system-running',
            check=False,
        )
        assert left.stdout.split() == ["running"]
    (request,) = running.order("untraced")
    assert "traceparent" not in request.received
