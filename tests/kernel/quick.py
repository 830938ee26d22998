"""The agent at the pace of the tests: `python -m tests.kernel.quick run …` is `throughline run …`.

Only its waits are shorter: for the next look at cgroups and processes with the next status, and for
more spans in a batch. A reload executes the ordinary agent, at its ordinary pace.
"""

from __future__ import annotations

import sys
from types import ModuleType

from throughline.agent import agent
from throughline.commands import cli
from throughline.export import pipeline

# module, constant, seconds
PACE: tuple[tuple[ModuleType, str, float], ...] = (
    (agent, "TICK_SECONDS", 0.2),  # else 1
    (pipeline, "LINGER_SECONDS", 0.1),  # else 1
)


def main() -> int:
    for module, name, seconds in PACE:
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name}: its pace is kept elsewhere")
        setattr(module, name, seconds)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
