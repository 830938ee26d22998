"""Chains of gRPC services of our own: spans with status codes, and no parent is wrong.

No `traceparent` is written into calls of gRPC yet, so that the far side of a call is a trace of its
own; what is judged are the parents of calls within a service.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.fixtures.go.build import PIE, STRIPPED
from tests.fixtures.go.hops import Hops
from tests.fixtures.go.judge import Found, id_of, own
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

# Go and the module: the oldest and the newest, and those between that keep things elsewhere.
VERSIONS = {"1.50": "1.19", "1.64": "1.22", "1.72": "1.26", "": "1.27"}
READY_SECONDS = 20.0
CODES = 17  # of gRPC; services/grpc/server/service.go fails with what an id leaves of it
UNKNOWN, UNAVAILABLE = 2, 14  # after the latter there is a second attempt
# The agent queues 8192 spans, and a slow machine sends them later.
REQUESTS, FAN = 2003, 701
SERVER_ERRORS = {UNKNOWN, 4, 12, 13, UNAVAILABLE, 15}


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda modules: modules or "newest")
def hops(request: pytest.FixtureRequest, traced: Traced) -> Hops:
    return chain(traced, "grpc", request.param)


@pytest.fixture(scope="module", params=("1.50", ""), ids=("1.50", "newest"))
def tls_hops(request: pytest.FixtureRequest, traced: Traced) -> Hops:
    return chain(traced, "grpc tls", request.param)


def chain(
    traced: Traced,
    protocol: str,
    modules: str,
    *,
    flags: tuple[str, ...] = STRIPPED,
    options: tuple[str, ...] = (),
) -> Hops:
    """front → back, once the agent has probed the program."""
    kind = re.sub(r"[^a-z0-9]+", "-", "".join((protocol, modules, *flags, *options)))
    hops = Hops(
        traced,
        protocol,
        version=VERSIONS[modules],
        flags=flags,
        modules=modules,
        names=(f"front-{kind}", f"back-{kind}"),
        ids=50_000,
        options=options,
    )
    until(
        lambda: hops.load("fan-2-1/answer", requests=2, concurrent=1, seconds=2),
        enough=lambda found: len(found.spans) == found.expected,
        seconds=READY_SECONDS,
        otherwise=lambda: f"no spans of {protocol} {modules}:\n{traced.log()}",
    )
    return hops


def assert_right(found: Found, *, evidence: str) -> None:
    """Every call has its parent, found by this evidence, and all went well."""
    assert found.result["ok"] and not found.result["failed"], found.result
    assert len(found.spans) == found.expected
    assert set(found.calls) == {"right"}
    assert set(found.hops) == {"none"}
    assert {s.evidence for s in found.spans if s.kind == "CLIENT"} == {evidence}
    assert {s.attributes["rpc.grpc.status_code"] for s in found.spans} == {0}
    assert not any(s.error for s in found.spans)


@pytest.mark.parametrize(
    ("plan", "evidence"),
    [
        ("context/answer", "context"),
        ("get/answer", "goroutine"),
        ("fan-2-2/answer", "context"),
        ("pool/answer", "context"),
        ("lazy/answer", "context"),
        ("timer/answer", "context"),
        ("watch/answer", "context"),
        ("collect/answer", "context"),
        ("talk/answer", "context"),
    ],
)
def test_no_parent_is_wrong(hops: Hops, plan: str, evidence: str) -> None:
    requests = FAN if plan.startswith("fan") else REQUESTS
    assert_right(hops.load(plan, requests=requests), evidence=evidence)


@pytest.mark.parametrize("method", ["watch", "collect", "talk"])
def test_handlers_of_streams(hops: Hops, method: str) -> None:
    found = hops.load("get/answer", method=method, requests=REQUESTS)
    assert_right(found, evidence="goroutine")
    first = [s for s in found.spans if (s.service, s.kind) == (hops.names[0], "SERVER")]
    assert {s.name.rpartition(".")[0] for s in first} == {
        f"throughline.test.Hops/{method.capitalize()}"
    }


def test_inside_tls(tls_hops: Hops) -> None:
    assert_right(tls_hops.load("context/answer", requests=REQUESTS), evidence="context")
    assert_right(
        tls_hops.load("get/answer", method="talk", requests=REQUESTS), evidence="goroutine"
    )


def test_a_program_that_is_loaded_anywhere(traced: Traced) -> None:
    assert_right(
        chain(traced, "grpc", "", flags=PIE).load("get/answer", requests=REQUESTS),
        evidence="goroutine",
    )


def test_workers_that_handle_one_call_after_another(traced: Traced) -> None:
    hops = chain(traced, "grpc", "1.64", options=("-workers=8",))
    assert_right(hops.load("get/answer", requests=REQUESTS), evidence="goroutine")
    assert_right(hops.load("fan-2-2/answer", requests=FAN), evidence="context")


def test_status_codes(hops: Hops) -> None:
    each = 10
    requests = each * CODES
    # one call more of the load and so of the front, and two attempts of each
    found = hops.load("context/fail", requests=requests, more=5 * each)
    assert (found.result["ok"], found.result["failed"]) == (0, requests)
    assert len(found.spans) == found.expected
    assert found.calls == {"right": requests + each}
    assert found.hops == {"none": requests + 3 * each}
    for span in found.spans:
        code = id_of(span) % CODES or UNKNOWN
        assert span.attributes["rpc.grpc.status_code"] == code, span
        assert span.error == (span.kind == "CLIENT" or code in SERVER_ERRORS), span


def test_a_traceparent_that_came_is_the_parent(hops: Hops) -> None:
    found = hops.load("context/answer", own=True, requests=REQUESTS)
    assert set(found.calls) == {"right"}
    first = [s for s in found.spans if (s.service, s.kind) == (hops.names[0], "SERVER")]
    assert len(first) == REQUESTS
    for span in first:
        assert (span.trace_id, span.parent_span_id) == own(id_of(span))
        assert span.evidence == "header"


def test_a_traceparent_that_the_application_sends_wins(hops: Hops) -> None:
    found = hops.load("own/answer", requests=REQUESTS)
    assert found.calls == found.hops == found.wire == {"own": REQUESTS}


def test_addresses(hops: Hops) -> None:
    spans = hops.load("context/answer", requests=1).spans
    [client] = [s for s in spans if s.kind == "CLIENT"]
    [server] = [s for s in spans if (s.service, s.kind) == (hops.names[1], "SERVER")]
    where = ("server.address", "server.port")
    assert [client.attributes[n] for n in where] == [server.attributes[n] for n in where]
    assert client.attributes["network.peer.port"] == server.attributes["server.port"]
    assert server.attributes["client.address"] == "127.0.0.1"
    assert client.name == server.name
