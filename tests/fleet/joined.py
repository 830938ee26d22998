"""Checks that every hop of a request is in one trace, with the right parents.

The demo's shop is a chain, and every request carries its own id in its path, through all hops:

    curl → shop-edge (HAProxy) → shop-web (nginx) → shop-cart (FastAPI) → shop-orders (Python)
         ⇒ shop-stock (Node.js) → shop-offers-web (nginx) ⇢ shop-offers (PHP-FPM)
         → shop-prices (Ruby)

The hop ⇒ is HTTPS, unless a shop was opened without. There the context travels in a TCP option, and
`tracestate`, for which an option has no room, ends. The hop ⇢ is FastCGI on a Unix socket. Some
kernels do not show it: two traces meet there.

The VMs of the kernel matrix have a shorter chain: CHAIN.

A request that arrives without `traceparent` starts a trace at the first SERVER span, and every
span is the parent of the next. One that arrives with a `traceparent` continues that trace. HAProxy
and nginx then hand the client's header to their upstream. Where `headers` writes to that
connection, the header names the proxy's own span by then; else the SERVER span behind each of these
proxies in front is a child of the client's span, beside the proxy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.fixtures.spans import Span

Hop = tuple[str, str]
Hops = tuple[Hop, ...]

CHAIN: Hops = (
    ("shop-web", "SERVER"),
    ("shop-web", "CLIENT"),
    ("shop-orders", "SERVER"),
    ("shop-orders", "CLIENT"),
    ("shop-stock", "SERVER"),
    ("shop-stock", "CLIENT"),
    ("shop-prices", "SERVER"),
)
SECURE: tuple[Hop, Hop] = (("shop-orders", "CLIENT"), ("shop-stock", "SERVER"))
FRONT = ("shop-edge", "shop-web")  # proxies that pass on the client's headers
UNIX: tuple[Hop, Hop] = (("shop-offers-web", "CLIENT"), ("shop-offers", "SERVER"))

_TO_ORDERS: Hops = (
    ("shop-edge", "SERVER"),
    ("shop-edge", "CLIENT"),
    ("shop-web", "SERVER"),
    ("shop-web", "CLIENT"),
    ("shop-cart", "SERVER"),
    ("shop-cart", "CLIENT"),
    ("shop-orders", "SERVER"),
)
_TO_OFFERS: Hops = (*_TO_ORDERS, *SECURE, ("shop-stock", "CLIENT"), ("shop-offers-web", "SERVER"))
_FROM_OFFERS: Hops = (("shop-offers", "CLIENT"), ("shop-prices", "SERVER"))
SHOP: tuple[Hops, ...] = ((*_TO_OFFERS, *UNIX, *_FROM_OFFERS),)
SHOP_WITHOUT_UNIX: tuple[Hops, ...] = (_TO_OFFERS, _FROM_OFFERS)  # a trace for each


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the shop, and the headers with which it arrived at the last hop."""

    cart: str
    traceparent: str  # of the client's request, "" for none
    tracestate: str
    received: Mapping[str, Sequence[str]]


def cart(span: Span) -> str:
    """The request's id: the last part of its path."""
    return span.path.partition("?")[0].rpartition("/")[2]


def complete(
    requests: Iterable[Request], spans: Iterable[Span], *, traces: Sequence[Hops] = (CHAIN,)
) -> bool:
    """Returns whether there are as many spans as the requests have hops."""
    wanted = {request.cart for request in requests}
    hops = sum(map(len, traces))
    return sum(cart(span) in wanted for span in spans) >= len(wanted) * hops


def _name(hop: Hop) -> str:
    return f"{hop[0]} {hop[1]}"


def _one_each(spans: Iterable[Span], traces: Sequence[Hops]) -> tuple[dict[Hop, Span], list[str]]:
    found: dict[Hop, list[Span]] = {hop: [] for hops in traces for hop in hops}
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


def _parents(request: Request, spans: dict[Hop, Span], traces: Sequence[Hops]) -> list[str]:
    """The errors in the parents of a complete chain."""
    client_trace, client_span = [*request.traceparent.split("-"), "", "", ""][1:3]
    problems = []
    allowed: dict[Hop, set[str]] = {}
    for hops in traces:
        trace_id = client_trace if hops is traces[0] else ""
        trace_id = trace_id or spans[hops[0]].trace_id
        problems += [
            f"{_name(hop)} is in another trace ({spans[hop].trace_id})"
            for hop in hops
            if spans[hop].trace_id != trace_id
        ]
        allowed[hops[0]] = {""}
        for hop, after in pairwise(hops):
            allowed[after] = {spans[hop].span_id}
    if client_span:
        allowed[traces[0][0]] = {client_span}
        for hop, after in pairwise(traces[0]):
            if hop[0] in FRONT and hop[1] == "CLIENT":
                allowed[hop].add(client_span)
                allowed[after].add(client_span)
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
    """The errors in the evidence of each hop, and in the way by which its context came."""
    problems = []
    for hop, span in spans.items():
        wanted = "https" if secure and hop in SECURE else "http"
        if span.scheme != wanted:
            problems.append(f"{_name(hop)} is {span.scheme}, not {wanted}")
        if hop[1] != "SERVER" or not span.parent_span_id:
            continue
        way = "unix" if hop in UNIX else "packet" if wanted == "https" else "header"
        if span.evidence != way:
            problems.append(f"the parent of {_name(hop)} is known by {span.evidence}, not by {way}")
    return problems


def _wire(request: Request, last: Span, *, state: str) -> list[str]:
    """The errors in the headers that arrived at the last hop. `state`: the right tracestate."""
    sent = f"00-{last.trace_id}-{last.parent_span_id}-"
    arrived = list(request.received.get("traceparent", ()))
    problems = []
    if len(arrived) != 1 or not arrived[0].startswith(sent):
        problems.append(f"traceparent at the last hop is {arrived}, its span says {sent}…")
    came = ",".join(request.received.get("tracestate", ()))
    if came != state:
        problems.append(f"tracestate at the last hop is {came!r}, not {state!r}")
    return problems


def check(
    requests: Iterable[Request],
    spans: Iterable[Span],
    *,
    traces: Sequence[Hops] = (CHAIN,),
    secure: bool = True,
) -> list[str]:
    """The errors, one on each line; none when every request is joined correctly.

    `traces`: the hops that each request has, those of one trace together. `secure`: shop-orders
    asks shop-stock by HTTPS.
    """
    by_cart: dict[str, list[Span]] = {}
    for span in spans:
        by_cart.setdefault(cart(span), []).append(span)
    problems = []
    for request in requests:
        found, wrong = _one_each(by_cart.get(request.cart, []), traces)
        if len(found) == sum(map(len, traces)):
            wrong += _parents(request, found, traces)
            wrong += _schemes(found, secure=secure)
            state = request.tracestate if not secure and len(traces) == 1 else ""
            wrong += _wire(request, found[traces[-1][-1]], state=state)
        problems += [f"request {request.cart}: {line}" for line in wrong]
    return problems
