"""Attaching the feature groups: each that is wanted is tried, whatever the kernel's version.

The agent and `throughline doctor` call the same function, so that doctor says what the agent does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from throughline.bpf import libbpf
from throughline.config.model import Config
from throughline.features import obstacles, reasons
from throughline.features.programs import Programs
from throughline.features.state import GroupState, failed, on
from throughline.features.table import BASE, GROUPS, MODES, Group, Uprobes
from throughline.host.facts import Facts
from throughline.probes import trials, uprobes

log = logging.getLogger(__name__)

LOOPBACK = 1  # its interface index in every network namespace


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of each group after the attempt to attach it."""

    groups: dict[str, GroupState]
    # the loaded objects of groups with providers, and how to attach their uprobes (None: there are
    # none)
    probing: dict[str, libbpf.Object]
    kind: uprobes.Kind | None


class _Attempt:
    """One attempt to attach the groups, one after the other."""

    def __init__(self, programs: Programs, config: Config, *, trial: bool) -> None:
        self.programs = programs
        self.config = config
        self.trial = trial
        self.probing: dict[str, libbpf.Object] = {}
        self.kind: uprobes.Kind | None = None  # known once the first group with uprobes is tried

    def attach(self, group: Group) -> None:
        """Attaches a group, or loads one whose uprobes are attached later. Raises OSError."""
        if group.uprobes is not Uprobes.NONE:
            self._load(group)
        elif group.reads:
            self.probing[group.name] = self.programs.base()
        elif group.name == "observe":
            self.programs.attach_observe()
        elif group.name == "headers":
            self.programs.attach_headers()
        elif group.name == "packets":
            propagation = self.config.propagation
            self.programs.attach_packets(
                propagation.peers,
                priority=propagation.tc_priority,
                only_interface=LOOPBACK if self.trial else None,
            )
        else:
            raise KeyError(group.name)

    def _load(self, group: Group) -> None:
        if self.kind is None:
            self.kind = trials.find_kind()
            self._sweep()
        if group.uprobes is Uprobes.RETURNS:
            trials.try_returns(self.kind)
        self.probing[group.name] = self.programs.load_probing(group, self.kind)

    def _sweep(self) -> None:
        """Ends requests that only probes of an earlier run could have ended.

        Without that the parents of their threads would be ambiguous for minutes.
        """
        try:
            self.programs.sweep(earlier=True)
        except OSError as error:
            log.warning("requests of an earlier run: %s", error.strerror)


def attach(
    programs: Programs,
    config: Config,
    found: Facts,
    *,
    trial: bool = False,
    before: Callable[[], None] | None = None,
) -> Outcome:
    """Attaches every group that is wanted and possible; withdraws what earlier runs left of others.

    A trial puts its programs on one interface only. `before` is called ahead of each group: the
    kernel's verifier takes a tenth of a second for one, or many seconds on a slow machine.
    """
    attempt = _Attempt(programs, config, trial=trial)
    states: dict[str, GroupState] = {}
    uprobes.expect()
    for group in GROUPS.values():
        state = _obstacle(group, config, found, programs, states)
        if state is None:
            if before is not None:
                before()
            state = _try(attempt, group, found)
        states[group.name] = state
        if states[BASE].is_on and not state.is_on:
            _withdraw(programs, group)
    return Outcome(states, attempt.probing, attempt.kind)


def _obstacle(
    group: Group,
    config: Config,
    found: Facts,
    programs: Programs,
    states: Mapping[str, GroupState],
) -> GroupState | None:
    """Why a group need not be tried, or None."""
    obstacle = obstacles.of_group(group, config, found)
    if obstacle is not None or group.name == BASE:
        return obstacle
    if not states[BASE].is_on:
        return failed(f"{BASE} is off", f"see {BASE}")
    if not states[group.needs].is_on:
        return obstacles.without_needed(group)
    if group.name in MODES["network"]:
        return None  # its object is part of every installation: the load says what is wrong
    return obstacles.of_objects(group, programs.objects)


def _try(attempt: _Attempt, group: Group, found: Facts) -> GroupState:
    try:
        attempt.attach(group)
    except OSError as error:
        refused = reasons.of_host(group, error, found)
        if refused is None:
            fault = reasons.of_fault(error, found, adopting=attempt.programs.adopting)
            refused = failed(fault.reason, fault.fix)
        return refused
    log.info("group %s is on", group.name)
    return on(attempt.programs.left_out(group.name))


def _withdraw(programs: Programs, group: Group) -> None:
    """Takes away what an earlier run may have left of a group that is off now."""
    try:
        programs.withdraw(group.name)
    except OSError as error:
        log.warning("%s of an earlier run: %s", group.name, error.strerror)


def tell(groups: Mapping[str, GroupState]) -> None:
    """Logs which groups are off, and which programs others are without."""
    for name, group in groups.items():
        if group.wanted and not group.is_on:
            log.error("group %s is off: %s; fix: %s", name, group.reason, group.fix)
        for program in group.without:
            log.warning(
                "group %s is without %s: no %s (%s)",
                *(name, program.program, program.gives, program.reason),
            )
