"""What is reported as metrics at one time. No module of OpenTelemetry is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from throughline.services.naming import Service
from throughline.telemetry.series import Point


@dataclass(frozen=True, slots=True)
class Totals:
    """Durations of requests, and the agent's own counters.

    The kernel's counters go on from an earlier run of the agent, the others begin with this run.
    """

    points: tuple[Point, ...]
    counters: Mapping[str, int]  # by reason
    agent: Service
    kernel_since_unix_ns: int
    agent_since_unix_ns: int
    now_unix_ns: int
