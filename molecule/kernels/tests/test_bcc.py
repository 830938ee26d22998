"""BCC watches the same requests: its connections, processes and counts are those of the spans."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from machine import Machine
from test_chain import REQUESTS, SPANS, check_spans

pytestmark = pytest.mark.usefixtures("accepted", "also")

# client.py: one for the first half, one each for the second, one for the last request
CLIENT_CONNECTIONS = 1 + REQUESTS // 2 + 1
COMMANDS = {
    "shop-web": "nginx",
    "shop-orders": "python3",
    "shop-stock": "python3",
    "shop-prices": "python3",
}
MILLISECONDS = 1.0  # tcplife prints two digits, and the clocks are not read at the same moment

Row = Mapping[str, str]


@pytest.mark.timeout(1200)
@pytest.mark.proves("observe")
def test_bcc_sees_the_connections_of_the_spans(machine: Machine, seen: dict[str, Any]) -> None:
    played = machine.play("site", throughline_bcc_tools=True)
    assert played.code == 0, played.output[-3000:]
    found = json.loads(machine.run(f"python3 /opt/shop/watch.py bcc {SPANS}", seconds=350))
    sent = machine.received(found["client"])
    check_spans(sent)
    units = found["units"]

    def of_shop(rows: list[Row]) -> list[Row]:
        return [row for row in rows if units[row["PID"]] in COMMANDS]

    traced = of_shop(found["tcptracer"])
    assert {(units[row["PID"]], row["COMM"]) for row in traced} == set(COMMANDS.items())
    made = Counter(
        (units[row["PID"]], row["DADDR"], int(row["DPORT"])) for row in traced if row["T"] == "C"
    )
    called = Counter(
        (span.service, *(span.attributes[f"network.peer.{key}"] for key in ("address", "port")))
        for span in sent.spans
        if span.kind == "CLIENT"
    )
    accepted = Counter(units[row["PID"]] for row in traced if row["T"] == "A")
    served = Counter(span.service for span in sent.spans if span.kind == "SERVER")
    lived = [row for row in of_shop(found["tcplife"]) if int(row["RPORT"]) in (8001, 8002, 8003)]
    seen["seconds to compile"] = found["ready"]
    seen["second opinion"] = {
        **{
            f"connections from {one[0]} to {one[1]}:{one[2]}": [made[one], called[one]]
            for one in sorted(made | called)
        },
        **{
            f"connections accepted by {name}, its requests": [accepted[name], served[name]]
            for name in COMMANDS
        },
        "connections that ended": [len(lived), sum(called.values())],
    }
    assert made == called
    assert sum(made.values()) == 3 * REQUESTS
    assert accepted.pop("shop-web") == CLIENT_CONNECTIONS
    assert served.pop("shop-web") == REQUESTS
    assert accepted == served
    assert Counter((units[row["PID"]], int(row["RPORT"])) for row in lived) == Counter(
        {(name, port): count for (name, _, port), count in made.items()}
    )
    for name, port in Counter((units[row["PID"]], row["RPORT"]) for row in lived):
        check_durations(
            [float(row["MS"]) for row in lived if row["RPORT"] == port],
            [span.milliseconds for span in sent.spans if hop(span) == (name, "CLIENT")],
        )


def hop(span: Any) -> tuple[str, str]:
    """Service and kind."""
    return span.service, span.kind


def check_durations(connections: list[float], calls: list[float]) -> None:
    """No call lasts longer than the connection that it was made on, in any order of them."""
    pairs = zip(sorted(connections), sorted(calls), strict=True)
    assert [pair for pair in pairs if pair[1] > pair[0] + MILLISECONDS] == []
