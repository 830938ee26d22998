"""Requests through three Go services, each on a host of its own: plaintext, HTTPS, gRPC with TLS.

    curl → go-front ⇒ go-middle ⇒ go-back

The first ⇒ is HTTPS with HTTP/2 or HTTP/1.1, the second is gRPC. Where `go_write` is on, every
request is one whole trace. Where go_write is off and `go` is on, all spans and the parents within
a service are there, and the services are not joined over HTTP/2 and gRPC. Where `go` is off too,
there are no such spans, and the services answer as before.

One request comes before those that count: the first call of a gRPC connection may have no room for
the header (docs/operator/go.md). A counter says so.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from machine import Machine, SentToGo
from tests.fixtures.spans import Span
from tests.vms.expected import Platform

pytestmark = [pytest.mark.usefixtures("accepted"), pytest.mark.timeout(600)]

REQUESTS = 23
GO = pytest.mark.proves("go", "go_write")
# SERVER front, CLIENT front, SERVER middle, CLIENT middle, SERVER back
CHAIN = (
    ("go-front", "SERVER"),
    ("go-front", "CLIENT"),
    ("go-middle", "SERVER"),
    ("go-middle", "CLIENT"),
    ("go-back", "SERVER"),
)
WARNING = "is installing a program with bpf_probe_write_user helper"


def hops(front: str, platform: Platform) -> list[tuple[str, str]]:
    """The spans of a request."""
    chain = CHAIN if "go" in platform.on else CHAIN[:1]
    return [(front if service == "go-front" else service, kind) for service, kind in chain]


def send(machine: Machine, http: str) -> SentToGo:
    """Requests, and their spans."""
    each = len(CHAIN) if "go" in machine.platform.on else 1
    return machine.send_to_go(http, spans=REQUESTS * each)


def joined(sent: SentToGo) -> dict[str, str]:
    """How many requests each service has joined to its caller's, by each kind of evidence."""
    found = {}
    for service in ("go-middle", "go-back"):
        served = [span for span in sent.found.spans if hop(span) == (service, "SERVER")]
        ways = Counter(span.evidence for span in served if span.parent_span_id)
        said = [f"{count} by {way}" for way, count in sorted(ways.items())]
        found[service] = ", ".join(said) or ("none" if served else "no spans")
    return found


def hop(span: Span) -> tuple[str, str]:
    """Service and kind."""
    return span.service, span.kind


def check(platform: Platform, sent: SentToGo, seen: dict[str, Any]) -> None:
    """The spans and joins that a platform has to give for these requests, and no others."""
    found, joins = sent.found, platform.joins(sent.http)
    traces = len({span.trace_id for span in found.spans})
    seen.update(
        requests=len(sent.answers),
        spans=len(found.spans),
        traces=traces,
        joined=joined(sent),
        **{name: dict(getattr(found, name)) for name in ("calls", "hops", "wire")},
        evidence=dict(Counter(f"{one.service} {one.kind} {one.evidence}" for one in found.spans)),
        counters=dict(sent.counters),
        opened=dict(sent.opened_counters),
        **{"traces of the first": len({span.trace_id for span in sent.opened})},
    )
    check_answers(sent)
    each = hops(sent.front, platform)
    assert Counter(map(hop, found.spans)) == dict.fromkeys(each, REQUESTS)
    assert sent.others == [], [span.name for span in sent.others]
    assert found.wrong == 0
    left = [count for name, count in sent.opened_counters.items() if name.startswith("go_write_")]
    assert seen["traces of the first"] == traces // REQUESTS + sum(left)
    assert Counter(map(hop, sent.opened)) == dict.fromkeys(each, 1)
    if "go" not in platform.on:
        assert (traces, found.wire) == (REQUESTS, {"none": 2 * REQUESTS})
        return
    assert found.calls == {"right": 2 * REQUESTS}, "a call belongs to the request that makes it"
    ways = list(joins.values())
    assert traces == REQUESTS * (1 + ways.count("")), "a trace ends where a hop is not joined"
    assert found.hops == Counter(["right" if way else "none" for way in ways] * REQUESTS)
    assert found.wire == Counter(
        ["right" if way == "header" else "none" for way in ways] * REQUESTS
    )
    assert seen["joined"] == {
        service: f"{REQUESTS} by {way}" if way else "none" for service, way in joins.items()
    }
    assert sent.counters.get("go_written", 0) == ways.count("header") * REQUESTS
    assert [name for name in sent.counters if name.startswith("go_write_")] == []


def check_answers(sent: SentToGo) -> None:
    """Each service answered every request, over the expected protocol."""
    assert len(sent.answers) == REQUESTS
    for answer in sent.answers:
        (middle,) = answer["upstream"]
        (back,) = middle["upstream"]
        assert answer["id"] == middle["id"] == back["id"]
        protocol = {"1.1": "HTTP/1.1", "2": "HTTP/2.0"}[sent.http]
        assert (middle["protocol"], back["protocol"]) == (protocol, "gRPC")


@GO
def test_go_over_http2_and_grpc(machine: Machine, seen: dict[str, Any]) -> None:
    check(machine.platform, send(machine, "2"), seen)


@GO
@pytest.mark.proves("packets")
def test_go_over_http1_and_grpc(machine: Machine, seen: dict[str, Any]) -> None:
    check(machine.platform, send(machine, "1.1"), seen)


@pytest.mark.proves("go_write")
def test_the_kernel_says_what_is_installed(machine: Machine, seen: dict[str, Any]) -> None:
    """The kernel's own warning, where it has one: only where go_write is on."""
    log = machine.run("journalctl --boot --dmesg --no-pager --output=cat")
    lines = [line for line in log.splitlines() if WARNING in line]
    seen["lines"] = lines[:3]
    assert bool(lines) == ("go_write" in machine.platform.on and not machine.platform.silent)
