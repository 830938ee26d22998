"""The very bytes that OpenTelemetry eBPF Instrumentation wrote, and those of ours that it read.

They were captured where both ran against each other: captured/obi.yml says how. Here OBI does not
run; what it wrote is sent again, and what it read is compared with what is written today.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.fixtures import paths
from tests.fixtures.capture import read
from tests.fixtures.forging import ANSWER, OBSERVE, REQUEST, forging, span_of
from tests.fixtures.link import Link
from tests.fixtures.packets import Context, Packets
from tests.fixtures.sockets import read_exactly
from throughline.bpf import abi

pytestmark = pytest.mark.timeout(60)

CAPTURED = yaml.safe_load(paths.CAPTURED.joinpath("obi.yml").read_text())
FIXED = 20  # bytes of a TCP header in front of its options
PUSH_ACK = 0x18


def entries(direction: str) -> Any:
    return pytest.mark.parametrize(
        "entry", [pytest.param(entry, id=entry["name"]) for entry in CAPTURED[direction]]
    )


def header(entry: dict[str, Any]) -> bytes:
    return bytes.fromhex(re.sub(r"\s", "", entry["header"]))


def payload(entry: dict[str, Any]) -> bytes:
    """Of HTTPS there is none: any request in its place will do."""
    return bytes.fromhex(re.sub(r"\s", "", entry.get("payload", ""))) or REQUEST


@entries("written_by_obi")
def test_it_is_written_on_the_segment_of_the_request(entry: dict[str, Any]) -> None:
    """Behind the time stamps, 26 bytes, filled up to 40."""
    segment = header(entry)
    assert segment[13] == PUSH_ACK
    assert len(segment) == (segment[12] >> 4) * 4 == FIXED + 40
    content = bytes.fromhex(entry["trace_id"] + entry["span_id"])
    assert segment[FIXED:].startswith(b"\1\1\x08\x0a")
    assert segment[FIXED + 12 :] == b"\x19\x1a" + content + b"\1\1"


@entries("written_by_obi")
@pytest.mark.parametrize("variant", ["", "-legacy"])
def test_what_obi_wrote_is_the_parent(entry: dict[str, Any], variant: str) -> None:
    with (
        Link() as link,
        Packets(link, by=None, observe=OBSERVE, variant=variant) as packets,
        forging(link, packets) as (forger, server),
    ):
        request = payload(entry)
        forger.send(request, options=header(entry)[FIXED:])
        span = span_of(packets, server, request)
        brought = b"traceparent:" in request.lower()
        assert span.evidence == (abi.Evidence.HEADER if brought else abi.Evidence.PACKET)
        assert span.trace_id.hex() == entry["trace_id"]
        assert span.parent_span_id.hex() == entry["span_id"]
        assert span.trace_flags == 1
        assert packets.counters["option_read"] == 1
        # and of no other request
        forger.send(REQUEST)
        assert span_of(packets, server).evidence == abi.Evidence.NONE


@entries("read_by_obi")
@pytest.mark.parametrize("by", ["ops", "tc"])
def test_what_obi_read_is_what_is_written(entry: dict[str, Any], by: str) -> None:
    options = header(entry)[FIXED:]
    length = options[13]
    assert (length == 26) == entry["taken"]
    context = Context(
        bytes.fromhex(entry["trace_id"]), bytes.fromhex(entry["span_id"]), entry["trace_flags"]
    )
    with Link() as link, Packets(link, by=by) as packets, link.captured() as frames:
        with packets.connected() as (client, server):
            with packets.request(context):
                client.sendall(REQUEST)
            assert read_exactly(server, len(REQUEST)) == REQUEST
            server.sendall(ANSWER)
            assert read_exactly(client, len(ANSWER)) == ANSWER
        (written,) = [segment.options for segment in read(frames) if segment.option]
    padding = ",nop" * (len(options) - 12 - length)
    assert written.endswith(f",unknown-25 0x{options[14 : 12 + length].hex()}{padding}")
