"""Without headers the context travels in a TCP option, also on a connection older than the agent.

For this the agent is restarted with another configuration, and with its own again. The connection
of shop-held is there before: what it carries is written by TC, all else by sock_ops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from machine import Machine, Sent
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


@pytest.fixture(scope="module")
def options_only(machine: Machine) -> Iterator[None]:
    """An agent without headers, while it runs."""
    if "options" not in machine.platform.also:  # the fixture of the module runs before `also`
        pytest.skip("options: run once for each kernel")
    # The sock_ops of another agent would still know its connections.
    held = "systemctl stop throughline && systemctl start shop-held && sleep 2"
    machine.run(f"{WITHOUT_HEADERS} && {held} && systemctl start throughline", seconds=300)
    before = machine.look(healthy=60)
    groups = before["agent"]["status"]["groups"]
    assert (groups["headers"]["state"], groups["packets"]["state"]) == ("off", "on")
    yield
    machine.run("systemctl stop shop-held")
    machine.run(f"mv /run/config.kept {CONFIG} && systemctl restart throughline", seconds=300)
    assert machine.look(healthy=60)["agent"]["status"]["healthy"] is True


def wrong(sent: Sent, caller: str) -> list[str]:
    """What is wrong: `caller`'s requests to shop-prices belong to those that it serves, by options.

    Which of the caller's two spans is the parent is not said: the option names the request that the
    thread serves, and without `headers` a client's span has no parent on kernels before 6.3. But no
    span is a child of another request's.
    """
    ids = {span.span_id: span for span in sent.spans}
    problems = [
        f"{span.service} {span.kind} of {joined.cart(span)} is a child of {joined.cart(parent)}"
        for span in sent.spans
        if (parent := ids.get(span.parent_span_id)) and joined.cart(parent) != joined.cart(span)
    ]
    for request in sent.requests:
        hops = {
            (one.service, one.kind): one for one in sent.spans if joined.cart(one) == request.cart
        }
        served, called = hops[caller, "SERVER"], hops[caller, "CLIENT"]
        prices = hops["shop-prices", "SERVER"]
        if "traceparent" in request.received:
            problems.append(f"{request.cart} came with a header")
        if (prices.trace_id, prices.evidence) != (served.trace_id, "packet"):
            evidence = {f"{one.service} {one.kind}": one.evidence for one in hops.values()}
            problems.append(f"{request.cart} is not joined: {evidence}")
        elif prices.parent_span_id not in (served.span_id, called.span_id):
            problems.append(f"{request.cart}: shop-prices has another parent")
    return problems


@pytest.mark.usefixtures("options_only")
def test_a_new_connection_carries_them(machine: Machine, seen: dict[str, Any]) -> None:
    sent = machine.send("options", spans=SPANS)
    seen["evidence"] = Counter(span.evidence for span in sent.spans)
    check_spans(sent)
    seen["problems"] = wrong(sent, "shop-stock")
    assert seen["problems"] == []


@pytest.mark.usefixtures("options_only")
def test_one_older_than_the_agent_carries_them_too(machine: Machine, seen: dict[str, Any]) -> None:
    sent = machine.send("older", spans=23 * 3, through="held")
    seen["evidence"] = Counter(span.evidence for span in sent.spans)
    assert (len(sent.requests), len(sent.spans), sent.others) == (23, 23 * 3, [])
    seen["problems"] = wrong(sent, "shop-held")
    assert seen["problems"] == []
