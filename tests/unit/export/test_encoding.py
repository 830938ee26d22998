"""Our encoder says what the exporters' own says, for every kind of span that we make."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as standard

from tests.fixtures.records import SHOP, record, service
from throughline.export import encoding
from throughline.telemetry.spans import span

CHANGES: list[dict[str, Any]] = [
    {},
    {"kind": "client", "evidence": "thread"},
    {"parent_span_id": None, "evidence": "none"},
    {"tracestate": "a=1,b=2", "trace_flags": 3},
    {"status": 500},
    {"status": 0, "end": "closed"},
    {"kind": "client", "status": 404},
    {"target": "/" + 300 * "x", "target_length": 300},
    {"target": "/\udce9\xff", "method": "BREW", "host": ""},
    {"target": "http://shop.example/cart?Signature=1", "end": "close_delimited"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_same_as_standard(changes: dict[str, Any]) -> None:
    spans = [span(record(**changes), SHOP)]
    assert encoding.encode_spans(spans, standard=standard) == standard(spans)


def test_same_for_several_services() -> None:
    other = service("other")
    spans = [
        span(record(**changes), SHOP if number % 3 else other)
        for number, changes in enumerate(CHANGES * 2)
    ]
    assert encoding.encode_spans(spans, standard=standard) == standard(spans)
    assert encoding.encode_spans([], standard=standard) == standard([])


def test_installed_once_and_only_where_it_fits() -> None:
    module = ModuleType("exporter")
    encoding.install(module)
    assert not hasattr(module, "encode_spans"), "an exporter that encodes in another way"
    module.encode_spans = standard  # type: ignore[attr-defined]
    encoding.install(module)
    encoding.install(module)
    spans = [span(record(), SHOP)]
    assert module.encode_spans(spans) == standard(spans)
