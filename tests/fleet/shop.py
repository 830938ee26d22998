"""The client of the demo's shop: real requests by curl, from the fleet's bridge."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fleet import joined
from tests.fleet.hosts import Fleet
from tests.fleet.joined import Request

REQUESTS = 113
AT_ONCE = 32  # of those that are not sent one after the other
AGENT = "/opt/throughline/current/bin/throughline"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACESTATE = "demo=1"
STOCK = 2  # the host of shop-stock
# Variables of playbooks/site.yml. Only shop-orders needs likely parents: a thread for each request
# in a program of its own, which nothing tells from one that hands its work over.
VARIABLES: Mapping[str, object] = {
    "throughline_node_services": (
        "{{ ['shop-stock.service']"
        f" if inventory_hostname == groups['fleet'][{STOCK}] else [] }}}}"
    )
}
CONFIG: Mapping[str, object] = {
    "services": [
        {"match": {"systemd_unit": "shop-orders.service"}, "parents": "likely"},
        {"match": {"cgroup": "system.slice/*"}},  # what is traced without rules
    ]
}
_RESTART = """
systemctl restart shop-stock.service
listens() { ss -Hltn "( sport = :8443 or sport = :8002 )" | grep -q .; }
for turn in $(seq 200); do listens && break; sleep 0.1; done
listens && sleep 3  # the agent looks each second for processes that have come
"""


class RequestError(Exception):
    """A request got no answer, or a wrong one."""


def restart_stock(running: Fleet) -> None:
    """As operators do after the rollout: Node.js loads the preload when it starts."""
    running.run(running.hosts[STOCK], _RESTART)


def curl(
    running: Fleet, carts: Sequence[str], *options: str, past_fastapi: bool = False
) -> list[dict[str, Any]]:
    """Sends one request for each cart from the fleet's bridge and returns the answers' JSON.

    `past_fastapi`: to shop-orders, with nginx and FastAPI left out. Raises RequestError when a
    request fails.
    """
    address = f"{running.hosts[0].address}/cart"
    if past_fastapi:
        address = f"{running.hosts[1].address}:8001/orders"
    url = f"http://{address}/{{{','.join(carts)}}}"
    with tempfile.TemporaryDirectory() as directory:
        answer = subprocess.run(
            [
                *(*running.inside, "curl", "-sS", "--fail", "--max-time", "10", *options),
                *("--output", f"{directory}/#1", url),
            ],
            capture_output=True,
            text=True,
        )
        if answer.returncode:
            raise RequestError(f"curl: {answer.stderr.strip() or f'exit code {answer.returncode}'}")
        return [json.loads((Path(directory) / cart).read_text()) for cart in carts]


def received(answer: Any) -> dict[str, list[str]]:
    """The headers with which a request arrived at the last hop, which each hop hands back."""
    while "received" not in answer:
        (answer,) = (value for value in answer.values() if isinstance(value, dict))
    found: dict[str, list[str]] = answer["received"]
    return found


def traces(running: Fleet) -> tuple[tuple[joined.Hops, ...], str]:
    """The traces of a request, and the kernel's reason why they are two, or "".

    Some kernels do not show the hop that is a Unix socket.
    """
    answer = running.run(running.hosts[-1], f"{AGENT} status --json", check=False)
    for missing in json.loads(answer.stdout)["groups"]["observe"]["without"]:
        if missing["program"] == "tl_unix_sends":
            return joined.SHOP_WITHOUT_UNIX, missing["reason"]
    return joined.SHOP, ""


def send(running: Fleet) -> list[Request]:
    """Sends the demo's requests.

    Some on one connection, most of them AT_ONCE at a time, and one with a context of its own.
    """
    plain = [f"{number:03d}" for number in range(1, REQUESTS)]
    traced = f"{REQUESTS:03d}"
    alone = len(plain) % AT_ONCE
    answers = curl(running, plain[:alone])
    parallel = ("--parallel", "--parallel-immediate", "--parallel-max", str(AT_ONCE))
    answers += curl(running, plain[alone:], *parallel)
    own = ("-H", f"traceparent: {TRACEPARENT}", "-H", f"tracestate: {TRACESTATE}")
    answers += curl(running, [traced], *own)
    return [
        Request(
            cart=order["cart"],
            traceparent=TRACEPARENT if order["cart"] == traced else "",
            tracestate=TRACESTATE if order["cart"] == traced else "",
            received=received(order),
        )
        for order in answers
    ]
