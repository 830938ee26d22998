"""The state of a feature group: on, or off with the reason and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class State(str, enum.Enum):
    """The words that `status --json` and `doctor --json` print."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An optional program that the kernel refuses."""

    program: str
    gives: str  # completes the sentence "without it there is no …"
    reason: str

    def as_json(self) -> dict[str, Any]:
        """One entry of "without" in `status --json`."""
        return {"program": self.program, "gives": self.gives, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class GroupState:
    """The state of one feature group. `reason` and `fix` are "" when it is on.

    A group that is wanted and off makes the agent degraded. A group is not wanted when its
    configuration key is off, and when its key is `auto` and this host cannot give it.
    """

    state: State
    wanted: bool
    reason: str
    fix: str
    without: tuple[LeftOut, ...] = ()  # no fault, whatever it has

    @property
    def is_on(self) -> bool:
        return self.state is State.ON

    def as_json(self) -> dict[str, Any]:
        """One entry of "groups" in `status --json` and `doctor --json`."""
        return {
            "state": self.state.value,
            "wanted": self.wanted,
            "reason": self.reason,
            "fix": self.fix,
            "without": [program.as_json() for program in self.without],
        }


def on(without: tuple[LeftOut, ...] = ()) -> GroupState:
    """A group that works, without the programs that the kernel refuses."""
    return GroupState(State.ON, True, "", "", without)


def off(reason: str, fix: str) -> GroupState:
    """A group that is off, and nothing is wrong."""
    return GroupState(State.OFF, False, reason, fix)


def failed(reason: str, fix: str) -> GroupState:
    """A group that is wanted and off: somebody has to act."""
    return GroupState(State.OFF, True, reason, fix)
