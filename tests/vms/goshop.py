"""The Go services of the shop on the VMs: `python -m tests.vms.goshop FOLDER` puts them there."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.fixtures.go.build import STRIPPED, build

PROGRAMS = {"go-front": "chain/server", "go-middle": "grpc/gateway", "go-back": "grpc/server"}


def put(folder: Path) -> None:
    """Copies the programs, built first where they are missing: static, since there is no cgo."""
    for name, program in PROGRAMS.items():
        shutil.copy(build(program, flags=STRIPPED), folder / name)


if __name__ == "__main__":
    put(Path(sys.argv[1]))
