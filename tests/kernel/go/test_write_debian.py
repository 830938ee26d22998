"""Group `go_write` in programs of Debian's packages, unmodified and stripped.

Skipped where the kernel refuses it; `test_write_in_vm.py` runs this in a VM.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.fixtures.certificate import make_certificate
from tests.fixtures.go import debian
from tests.fixtures.go.build import build
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced

REQUESTS = 256
SCRAPES = 4
SCRAPE_SECONDS = 5  # an emulated processor takes more than one for a scrape


def joined(traced: Traced, server: str, client: str, count: int, since: int = 0) -> list[Span]:
    """The server spans of a service. Their parents are the client spans of the caller."""
    spans = traced.wait_spans(
        count,
        where=lambda s: (s.service, s.kind) == (server, "SERVER") and s.start_ns > since,
    )
    calls = {span.span_id: span for span in traced.receiver.spans if span.kind == "CLIENT"}
    for span in spans:
        call = calls[span.parent_span_id]
        assert (call.service, call.trace_id, span.evidence) == (client, span.trace_id, "header")
    return spans


def test_prometheus_scrapes_node_exporter(writing: Traced) -> None:
    """By HTTPS, which it does with HTTP/2."""
    prometheus = debian.start_prometheus(
        writing, certificate=make_certificate(writing.directory), seconds=SCRAPE_SECONDS
    )
    writing.wait_followed(Path(debian.program("prometheus")))
    writing.wait_followed(Path(debian.program("prometheus-node-exporter")))
    since, before = time.time_ns(), prometheus.wait_scrapes(1)
    assert prometheus.wait_scrapes(before + SCRAPES, seconds=90) >= before + SCRAPES
    assert prometheus.query('min_over_time(up{job="node"}[5m])')[0]["value"][1] == "1"
    spans = joined(writing, "node-exporter", "prometheus", SCRAPES, since)
    assert {span.path for span in spans} == {"/metrics"}


def test_caddy_passes_requests_on(writing: Traced) -> None:
    """By HTTPS, which it does with HTTP/2 where it is offered."""
    certificate, back = make_certificate(writing.directory), free_port()
    command = [str(build("chain/server")), f"-listen=127.0.0.1:{back}", "-http2"]
    writing.spawn("back", [*command, f"-certificate={certificate}", f"-ca={certificate}"])
    wait_port(back)
    caddy = debian.start_caddy(writing, onward=back, certificate=certificate)
    record = writing.directory / "answers"
    done = subprocess.run(
        [
            *(str(build("chain/client")), f"-url=http://127.0.0.1:{caddy.port}", "-path=/answer"),
            *(f"-requests={REQUESTS}", "-concurrent=64", f"-record={record}"),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    result = json.loads(done.stdout)
    assert (result["ok"], result["failed"]) == (REQUESTS, 0), result
    answers = [json.loads(line) for line in record.read_text().splitlines()]
    assert Counter(len(answer["traceparents"]) for answer in answers) == {1: REQUESTS}
    assert len(joined(writing, "back", "caddy", REQUESTS)) == REQUESTS
    assert writing.counters()["go_written"] == REQUESTS


def test_etcdctl_asks_etcd(writing: Traced) -> None:
    """By gRPC with TLS. One `etcdctl` stays, so that the agent knows those that are short."""
    etcd = debian.start_etcd(writing, certificate=make_certificate(writing.directory))
    program = Path(debian.program("etcdctl"))
    with etcd.watching("other"):
        writing.wait_followed(Path(debian.program("etcd")))
        writing.wait_followed(program)
        for turn in range(SCRAPES):
            assert etcd.ctl("put", f"key{turn}", "value").strip() == "OK"
        spans = joined(writing, "etcd", "etcdctl", SCRAPES)
    names = [span.path or f"/{span.name}" for span in spans]
    assert Counter(names) == {"/etcdserverpb.KV/Put": SCRAPES}
