"""Builds kernels and boxes where they are missing: `python -m tests.vms.stock [NAME …]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.vms import boxes, nobtf
from tests.vms.platforms import Platform


def kernel(platform: Platform) -> tuple[Path, Path]:
    """Kernel and initrd that a platform boots, built first where they are missing."""
    boxes.build(platform.box)
    if platform.line == nobtf.LINE:
        own = nobtf.build()
        return own / "vmlinuz", own / "initrd"
    return boxes.kernel(platform.box, platform.line)


def main() -> int:
    """Builds what is named, or all boxes, and prints where it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.vms.stock", description=__doc__)
    known = [*boxes.RECIPES, nobtf.LINE]
    parser.add_argument("name", nargs="*", help=f"of {', '.join(known)} (all boxes)")
    names = parser.parse_args().name or list(boxes.RECIPES)
    if unknown := set(names) - set(known):
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    try:
        for name in names:
            print(f"{name}: {nobtf.build() if name == nobtf.LINE else boxes.build(name)}")
    except (OSError, LookupError, ValueError, subprocess.CalledProcessError) as error:
        print(f"boxes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
