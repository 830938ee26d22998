"""The client of the demo's shop: real requests by curl, from the fleet's bridge."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fleet.hosts import Fleet
from tests.fleet.joined import Request

REQUESTS = 23
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACESTATE = "demo=1"


class RequestError(Exception):
    """A request got no answer, or a wrong one."""


def curl(running: Fleet, carts: Sequence[str], *options: str) -> list[dict[str, Any]]:
    """Sends one request for each cart from the fleet's bridge and returns the answers' JSON.

    Raises RequestError when a request fails.
    """
    url = f"http://{running.hosts[0].address}/cart/{{{','.join(carts)}}}"
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


def send(running: Fleet) -> list[Request]:
    """Sends the demo's requests: on one connection, all at once, and one with its own context."""
    half = REQUESTS // 2
    plain = [f"{number:03d}" for number in range(1, 2 * half + 1)]
    traced = f"{2 * half + 1:03d}"
    answers = curl(running, plain[:half])
    answers += curl(running, plain[half:], "--parallel", "--parallel-immediate")
    own = ("-H", f"traceparent: {TRACEPARENT}", "-H", f"tracestate: {TRACESTATE}")
    answers += curl(running, [traced], *own)
    return [
        Request(
            cart=order["cart"],
            traceparent=TRACEPARENT if order["cart"] == traced else "",
            tracestate=TRACESTATE if order["cart"] == traced else "",
            received=order["stock"]["prices"]["received"],
        )
        for order in answers
    ]
