"""Takes away what an agent has left that was killed."""

from __future__ import annotations

import os
from pathlib import Path

from throughline.features import pins
from throughline.host import facts, lock


def detach(bpffs: Path) -> None:
    """Removes programs, links and pins. Raises LockedError while an agent serves."""
    if facts.is_bpffs(bpffs) is None:
        return
    held = lock.acquire(bpffs)
    try:
        pins.detach_all(bpffs)
    finally:
        os.close(held)
