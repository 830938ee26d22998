"""The Go services of the shop on the VMs: `python -m tests.vms.goshop FOLDER ARCH` puts them there.

ARCH is Go's name of the processor's architecture.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.fixtures.go.build import STRIPPED, build

PROGRAMS = {"go-front": "chain/server", "go-middle": "grpc/gateway", "go-back": "grpc/server"}


def put(folder: Path, arch: str) -> None:
    """Copies the programs, built first where they are missing: static, since there is no cgo."""
    for name, program in PROGRAMS.items():
        shutil.copy(build(program, flags=STRIPPED, arch=arch), folder / name)


if __name__ == "__main__":
    put(Path(sys.argv[1]), sys.argv[2])
