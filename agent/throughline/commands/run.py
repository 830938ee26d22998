"""`throughline run`: the agent, until a signal stops it."""

from __future__ import annotations

import argparse
import logging
import sys

from throughline.config.model import load
from throughline.text import Formatter

log = logging.getLogger(__name__)

FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Runs the agent with its log on standard error."""
    from throughline.agent import agent

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    config = load(options.config)
    try:
        return agent.run(config)
    except Exception as error:
        # Exit code 3 keeps the unit down (RestartPreventExitStatus). It is for what `agent.run`
        # returns, not for an error that somebody else on this host may cause at any moment.
        log.exception("the agent failed: %s", error)
        return FAILED
