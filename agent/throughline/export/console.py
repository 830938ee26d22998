"""Spans as lines for people, one each: time, kind, service, request, result, duration, ids."""

from __future__ import annotations

import time
from typing import TextIO

from throughline.export.spool import Batch
from throughline.records.spanrecord import RawSpan, SpanRecord
from throughline.services.naming import Service
from throughline.text import printable


def write(batch: Batch, stream: TextIO) -> None:
    """Print a batch; raises OSError when the stream is gone."""
    lines = []
    for span, service in batch:
        record = span.decode() if isinstance(span, RawSpan) else span
        lines.append(f"{line(record, service)}\n")
    stream.write("".join(lines))
    stream.flush()


def line(record: SpanRecord, service: Service) -> str:
    """One span. Bytes of the request which could move a terminal's cursor are escaped."""
    seconds, fraction = divmod(record.start_unix_ns, 10**9)
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    target = printable(record.target)
    if record.kind == "client":
        target = f"{printable(record.host) or record.peer_address}{target}"
    parent = record.parent_span_id.hex() if record.parent_span_id else "-"
    result = record.end if record.kind == "job" else record.status or record.end
    method = printable(record.method) or ("gRPC" if record.grpc else "-")
    if record.grpc and record.end == "complete":
        result = record.status
    milliseconds = (record.end_unix_ns - record.start_unix_ns) / 1e6
    return (
        f"{at}.{fraction // 10**6:03d}Z {record.kind.upper()} {printable(service.name)} "
        f"{method} {target} {result} "
        f"{milliseconds:.1f}ms trace={record.trace_id.hex()} span={record.span_id.hex()} "
        f"parent={parent} evidence={record.evidence}"
    )
