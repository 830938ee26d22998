"""Checks that every hop of a request is in one trace, with the right parents.

The demo's shop is a chain, and every request carries its own id in its path, through all hops:

    curl → shop-web (nginx) → shop-orders (Python) ⇒ shop-stock (Node.js) → shop-prices (Ruby)

The hop ⇒ is HTTPS, unless a shop was opened without. There the context travels in a TCP option, and
`tracestate`, for which an option has no room, ends.

A request that arrives without `traceparent` starts a trace at shop-web's SERVER span, and every
span is the parent of the next. One that arrives with a `traceparent` continues that trace. nginx
then hands the client's header to its upstream as it is, and a header that the application sends
wins over one that could be injected: so shop-orders' SERVER span is a child of the client's span,
beside shop-web's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.fixtures.spans import Span

Hop = tuple[str, str]

CHAIN: tuple[Hop, ...] = (
    ("shop-web", "SERVER"),
    ("shop-web", "CLIENT"),
    ("shop-orders", "SERVER"),
    ("shop-orders", "CLIENT"),
    ("shop-stock", "SERVER"),
    ("shop-stock", "CLIENT"),
    ("shop-prices", "SERVER"),
)
SECURE: tuple[Hop, Hop] = (("shop-orders", "CLIENT"), ("shop-stock", "SERVER"))


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the shop, and the headers with which it arrived at the last hop."""

    cart: str
    traceparent: str  # what the client sent, "" for none
    tracestate: str
    received: Mapping[str, Sequence[str]]


def cart(span: Span) -> str:
    """The request's id: the last part of its path."""
    return span.path.partition("?")[0].rpartition("/")[2]


def complete(requests: Iterable[Request], spans: Iterable[Span]) -> bool:
    """True when there are as many spans as the requests need."""
    wanted = {request.cart for request in requests}
    return sum(cart(span) in wanted for span in spans) >= len(wanted) * len(CHAIN)


def _name(hop: Hop) -> str:
    return f"{hop[0]} {hop[1]}"


def _one_each(spans: Iterable[Span]) -> tuple[dict[Hop, Span], list[str]]:
    found: dict[Hop, list[Span]] = {hop: [] for hop in CHAIN}
    problems = []
    for span in spans:
        hop = (span.service, span.kind)
        if hop in found:
            found[hop].append(span)
        else:
            problems.append(f"unexpected span {_name(hop)}")
    for hop, several in found.items():
        if len(several) != 1:
            problems.append(
                f"{len(several) or 'no'} span{'s' * (len(several) > 1)} of {_name(hop)}"
            )
    return {hop: several[0] for hop, several in found.items() if several}, problems


def _parents(request: Request, spans: dict[Hop, Span]) -> list[str]:
    """What is wrong with the parents of a complete chain."""
    client_trace, client_span = [*request.traceparent.split("-"), "", "", ""][1:3]
    trace_id = client_trace or spans[CHAIN[0]].trace_id
    problems = [
        f"{_name(hop)} is in another trace ({span.trace_id})"
        for hop, span in spans.items()
        if span.trace_id != trace_id
    ]
    allowed = {CHAIN[0]: {client_span}}
    for hop, after in pairwise(CHAIN):
        allowed[after] = {spans[hop].span_id}
    if client_span:
        allowed["shop-web", "CLIENT"].add(client_span)
        allowed["shop-orders", "SERVER"] = {client_span}
    ids = {span.span_id: _name(hop) for hop, span in spans.items()} | {"": "nobody"}
    for hop, right in allowed.items():
        parent = spans[hop].parent_span_id
        if parent not in right:
            wanted = " or ".join(ids.get(one, one) for one in sorted(right))
            problems.append(
                f"{_name(hop)} is a child of {ids.get(parent, parent)}, not of {wanted}"
            )
    return problems


def _schemes(spans: dict[Hop, Span], *, secure: bool) -> list[str]:
    """What is wrong with how each hop was made, and with how its context came."""
    problems = []
    for hop, span in spans.items():
        wanted = "https" if secure and hop in SECURE else "http"
        if span.scheme != wanted:
            problems.append(f"{_name(hop)} is {span.scheme}, not {wanted}")
        if hop[1] != "SERVER" or not span.parent_span_id:
            continue
        way = "packet" if wanted == "https" else "header"
        if span.evidence != way:
            problems.append(f"the parent of {_name(hop)} is known by {span.evidence}, not by {way}")
    return problems


def _wire(request: Request, last: Span, *, secure: bool) -> list[str]:
    """What is wrong with the headers that arrived at the last hop."""
    sent = f"00-{last.trace_id}-{last.parent_span_id}-"
    arrived = list(request.received.get("traceparent", ()))
    problems = []
    if len(arrived) != 1 or not arrived[0].startswith(sent):
        problems.append(f"traceparent at the last hop is {arrived}, its span says {sent}…")
    state = ",".join(request.received.get("tracestate", ()))
    wanted = "" if secure else request.tracestate
    if state != wanted:
        problems.append(f"tracestate at the last hop is {state!r}, not {wanted!r}")
    return problems


def check(requests: Iterable[Request], spans: Iterable[Span], *, secure: bool = True) -> list[str]:
    """What is wrong, one line each; empty when every request is joined as it should be.

    `secure`: shop-orders asks shop-stock by HTTPS.
    """
    by_cart: dict[str, list[Span]] = {}
    for span in spans:
        by_cart.setdefault(cart(span), []).append(span)
    problems = []
    for request in requests:
        found, wrong = _one_each(by_cart.get(request.cart, []))
        if len(found) == len(CHAIN):
            wrong += _parents(request, found)
            wrong += _schemes(found, secure=secure)
            wrong += _wire(request, found[CHAIN[-1]], secure=secure)
        problems += [f"request {request.cart}: {line}" for line in wrong]
    return problems
