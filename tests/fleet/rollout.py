"""The demo's shop on a fleet, with the agent rolled out: requests, spans and status for tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.fixtures.receiver import Receiver
from tests.fixtures.spans import Span
from tests.fixtures.waiting import until
from tests.fleet import hosts, joined, network, playbook, shop
from tests.fleet.hosts import Fleet
from tests.fleet.joined import Request

AGENT = shop.AGENT


@dataclass(frozen=True, slots=True)
class Shop:
    """A fleet with the agent rolled out and the shop's services on it."""

    fleet: Fleet
    receiver: Receiver
    bundle: Path
    secure: bool = True  # one hop is HTTPS
    traces: tuple[joined.Hops, ...] = joined.SHOP  # the hops of a request, by trace

    def rollout(self, *, interval: int = 1, **variables: object) -> str:
        """Runs playbooks/site.yml, by default on all hosts at once, and returns its output."""
        otlp = {"endpoint": self.receiver.endpoint, "protocol": "http/protobuf"}
        defaults = {
            "throughline_bundle": str(self.bundle),
            "throughline_config": {
                "export": {"otlp": otlp, "metrics": {"interval": interval}},
                **shop.CONFIG,
            },
            **shop.VARIABLES,
            "throughline_serial": ["100%"],
        }
        return playbook.run(self.fleet, playbook.SITE, quiet=True, **{**defaults, **variables})

    def order(self, *carts: str, options: tuple[str, ...] = ()) -> list[Request]:
        """Sends one request for each cart, all at once."""
        answers = shop.curl(self.fleet, carts, "--parallel", "--parallel-immediate", *options)
        return [Request(order["cart"], "", "", shop.received(order)) for order in answers]

    def problems(self, requests: list[Request], *, seconds: float = 15.0) -> list[str]:
        """What is not joined of these requests, once their spans are here or time is up."""
        spans = self.spans_of(requests, seconds=seconds)
        return joined.check(requests, spans, traces=self.traces, secure=self.secure)

    def spans_of(self, requests: list[Request], *, seconds: float = 15.0) -> list[Span]:
        """The spans of these requests, once they are complete or time is up."""
        self.receiver.wait(
            lambda spans: joined.complete(requests, spans, traces=self.traces), seconds=seconds
        )
        carts = {request.cart for request in requests}
        return [span for span in self.receiver.spans if joined.cart(span) in carts]

    def status(self, number: int, *, since: float = 0.0) -> dict[str, Any]:
        """The status of the agent on a host (0, 1 or 2), written after the time `since`."""

        def read() -> dict[str, Any]:
            text = self.fleet.run(self.fleet.hosts[number], f"{AGENT} status --json").stdout
            found: dict[str, Any] = json.loads(text)
            return found

        return until(
            read,
            enough=lambda found: found["updated_unix"] >= since,
            seconds=20,
            every=0.1,
            otherwise="no status is written",
        )

    def pid(self, number: int) -> str:
        """The agent's process id on a host (0, 1 or 2), "0" when it does not run."""
        show = "systemctl show --property=MainPID --value throughline.service"
        return self.fleet.run(self.fleet.hosts[number], show).stdout.strip()


@contextmanager
def rolled_out(name: str, bundle: Path, *, secure: bool = True) -> Iterator[Shop]:
    """Three hosts with the services, one hop of which is HTTPS when `secure`, and the agent."""
    with (
        hosts.fleet(name, count=3) as fleet,
        Receiver(network.listen(name, port=4318)) as receiver,
    ):
        playbook.run(fleet, playbook.SERVICES, quiet=True, shop_secure=secure)
        running = Shop(fleet, receiver, bundle, secure)
        running.rollout()
        shop.restart_stock(fleet)
        yield replace(running, traces=shop.traces(fleet)[0])


@contextmanager
def load(fleet: Fleet) -> Iterator[subprocess.Popen[str]]:
    """A client that sends one request after the other, and prints the status of each answer."""
    # 50 lines a second for up to five minutes: no more than a pipe holds.
    url = f"http://{fleet.hosts[0].address}/cart/load[1-15000]"
    curl = ["stdbuf", "-oL", "curl", "-sS", "--max-time", "10", "--rate", "50/s"]
    with subprocess.Popen(
        [*fleet.inside, *curl, "-o", "/dev/null", "-w", "%{http_code}\n", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as client:
        try:
            yield client
        finally:
            client.terminate()


def answers(client: subprocess.Popen[str]) -> list[str]:
    """Ends a client and returns the status of each of its requests."""
    assert client.poll() is None, "it ended before the test did"
    client.terminate()
    output, _ = client.communicate(timeout=15)
    return output.split()


def wait_healthy(running: Shop, *, seconds: float = 30.0) -> None:
    """Waits until every agent says that it is healthy."""
    for host in running.fleet.hosts:
        until(
            lambda host=host: running.fleet.run(host, f"{AGENT} status", check=False).returncode,
            enough=lambda code: code == 0,
            seconds=seconds,
            every=0.2,
            otherwise=f"the agent on {host.name} is not healthy",
        )
