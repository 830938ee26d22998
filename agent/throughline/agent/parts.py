"""The parts of one run of the agent, which its loop, its housekeeping and its report share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from throughline.config.model import Config
from throughline.export.pipeline import Pipeline
from throughline.features.programs import Programs
from throughline.features.state import GroupState
from throughline.probes import uprobes
from throughline.probes.files import Files
from throughline.probes.processes import Processes
from throughline.probes.provider import Provider
from throughline.records.drain import Records
from throughline.services.naming import Services
from throughline.steps import Steps


@dataclass(slots=True)
class Parts:
    """See the module. What follows `counts` changes while the agent runs."""

    config: Config
    cgroup2: Path
    host: Mapping[str, str]  # resource attributes of this host
    steps: Steps
    services: Services
    programs: Programs
    pipeline: Pipeline
    records: Records
    started_unix: float
    counting_since_unix_ns: int  # before `started_unix` when an earlier run's counts go on
    counts: Counter[str] = field(default_factory=Counter)  # of the agent's own events, by counter
    counters: dict[str, int] = field(default_factory=dict)  # all counters as they were read last
    roots: list[str] = field(default_factory=list)  # cgroups to which programs are attached
    groups: dict[str, GroupState] = field(default_factory=dict)
    providers: dict[str, list[Provider]] = field(default_factory=dict)  # by group, where that is on
    uprobes: uprobes.Kind | None = None  # how they are attached; None: no group has any
    files: Files | None = None  # the probed files, while a group with uprobes is on
    processes: Processes | None = None  # the processes that map these files
