"""How the calls of each service came by their parents, and what to do about those without one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHARE = 0.01  # of the calls of a service; a reason that is rarer needs no advice

_CONTRADICTED = (
    "its threads do other requests' work and prove nothing, whatever `parents` says: the "
    "application has to send traceparent itself (OpenTelemetry SDK)"
)
_NOT_PROVEN = (
    "set `parents: likely` in its rule only if the thread that reads a request makes its calls, "
    "and meanwhile those of no other request: else some parents will be wrong"
)
_AMBIGUOUS = (
    "its threads serve several requests at a time, and which one a call is for cannot be told: the "
    "application has to send traceparent itself (OpenTelemetry SDK)"
)


def parents_of_calls(services: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each service that has calls, and one for each piece of advice."""
    rows: list[tuple[str, str]] = []
    for name, service in sorted(services.items()):
        parents = service.get("parents")
        if not isinstance(parents, Mapping):
            continue
        none, contradicted = parents.get("none", {}), parents.get("contradicted", {})
        proven, likely, without = parents["proven"], parents["likely"], sum(none.values())
        calls = proven + likely + without
        if not calls and not contradicted:
            continue
        text = f"{proven} proven, {likely} likely, {without} none{_listed(none, ' ({})')}"
        rows.append((name, text + _listed(contradicted, "; contradicted: {}")))
        rows += [("", advice) for advice in _advice(none, contradicted, calls * _SHARE)]
    return rows


def _listed(numbers: Mapping[str, int], form: str) -> str:
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return form.format(", ".join(f"{name} {number}" for name, number in ordered)) if ordered else ""


def _advice(
    none: Mapping[str, int], contradicted: Mapping[str, int], least: float
) -> Iterator[str]:
    """What to do about the reasons of more than `least` calls."""
    refused = none.get("contradicted", 0)
    not_proven = none.get("not_proven", 0)
    if contradicted and refused + not_proven > least:
        yield _CONTRADICTED
    elif not_proven > least:
        yield _NOT_PROVEN
    if none.get("ambiguous", 0) > least:
        yield _AMBIGUOUS
