"""Without headers every context travels in a TCP option, also on what is older than the agent.

For this the agent is restarted with another configuration, and with its own again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from machine import Look, Machine
from test_chain import SPANS, check_spans
from tests.fleet import joined

pytestmark = [
    pytest.mark.usefixtures("accepted"),
    pytest.mark.timeout(600),
    pytest.mark.proves("packets"),
]

CONFIG = "/etc/throughline/config.yaml"
WITHOUT_HEADERS = (
    f"cp --preserve {CONFIG} /run/config.kept && "
    rf"""sed --in-place '/^propagation:$/a\  headers: "off"' {CONFIG} && """
    f"""grep -q '^  headers: "off"' {CONFIG}"""
)
# The connection of shop-held, at both ends, is older than the agent that runs then.
HELD = ("shop-held", "SERVER"), ("shop-held", "CLIENT"), ("shop-prices", "SERVER")


@pytest.fixture(scope="module")
def options_only(machine: Machine) -> Iterator[Look]:
    """The host while an agent without headers runs."""
    machine.run("systemctl start shop-held && sleep 2")
    machine.run(f"{WITHOUT_HEADERS} && systemctl restart throughline")
    yield machine.look(healthy=60)
    machine.run("systemctl stop shop-held")
    machine.run(f"mv /run/config.kept {CONFIG} && systemctl restart throughline")
    assert machine.look(healthy=60)["agent"]["status"]["healthy"] is True


def test_options_are_written_on_every_interface(
    machine: Machine, options_only: Look, seen: dict[str, Any]
) -> None:
    status = options_only["agent"]["status"]
    seen.update(groups=status["groups"], packets=status["packets"])
    states = {name: group["state"] for name, group in status["groups"].items()}
    assert (states["headers"], states["packets"]) == ("off", "on")
    interfaces = machine.run("ls /sys/class/net").split()
    by = "tcx" if machine.has_tcx else "clsact"
    places = {(place["interface"], place["by"]) for place in status["packets"]["older_connections"]}
    assert places == {(interface, by) for interface in interfaces}
    assert status["packets"]["refused"] == {}


@pytest.mark.usefixtures("options_only")
def test_every_request_is_one_trace_by_options(machine: Machine, seen: dict[str, Any]) -> None:
    sent = machine.send("options", spans=SPANS)
    seen["evidence"] = Counter(span.evidence for span in sent.spans)
    check_spans(sent)
    assert joined.check(sent.requests, sent.spans, secure=sent.secure, headers=False) == []


@pytest.mark.usefixtures("options_only")
def test_a_connection_older_than_the_agent_carries_them_too(
    machine: Machine, seen: dict[str, Any]
) -> None:
    sent = machine.send("older", spans=23 * len(HELD), through="held")
    seen["evidence"] = Counter(span.evidence for span in sent.spans)
    seen["counters"] = machine.look()["agent"]["status"]["counters"]
    assert len(sent.requests) == 23
    for request in sent.requests:
        assert "traceparent" not in request.received
        found = {
            (one.service, one.kind): one for one in sent.spans if joined.cart(one) == request.cart
        }
        assert sorted(found) == sorted(HELD)
        server, client, prices = (found[hop] for hop in HELD)
        assert client.parent_span_id == server.span_id
        assert (prices.parent_span_id, prices.evidence) == (client.span_id, "packet")
        assert {one.trace_id for one in found.values()} == {server.trace_id}
