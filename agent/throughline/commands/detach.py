"""`throughline detach`: removes what a killed agent has left."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from throughline.config.model import load
from throughline.features import pins
from throughline.host import facts, lock


def run(options: argparse.Namespace) -> int:
    """Removes everything below the bpffs of the configuration."""
    detach(load(options.config).agent.bpffs)
    return 0


def detach(bpffs: Path) -> None:
    """Removes programs, links and pins. Raises LockedError while an agent serves."""
    if facts.is_bpffs(bpffs) is None:
        return
    held = lock.acquire(bpffs)
    try:
        pins.detach_all(bpffs)
    finally:
        os.close(held)
