"""Sets of dependencies with one release of a module, for `build(modules=…)`.

    build("grpc/server", modules=releases.modules("grpc", GRPC, (1, 60)))

A set begins from that of services/MODULE/*.mod which is next below, and is written where programs
are kept; the newest patch release is what the Go module proxy has.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from functools import cache as remember
from pathlib import Path

from tests.golang import toolchains
from tests.golang.build import SERVICES
from tests.vms import cache


@remember
def versions(module: str) -> dict[tuple[int, int], str]:
    """Minor release -> its newest patch release: (1, 60) -> "v1.60.1"."""
    done = _go("list", "-m", "-json", "-versions", module, folder=SERVICES / "chain")
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for version in json.loads(done)["Versions"]:
        numbers = re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)", version)
        if numbers is not None:  # no pre-release
            major, minor, patch = map(int, numbers.groups())
            found[major, minor] = max(found.get((major, minor), (0, "")), (patch, version))
    return {minor: version for minor, (_, version) in found.items()}


def modules(service: str, module: str, minor: tuple[int, int]) -> str:
    """Raises OSError with Go's words where there is no such set."""
    version = versions(module)[minor]
    base = _base(SERVICES / service, minor)
    said = json.dumps([service, module, version, base.read_text(), toolchains.NEWEST])
    digest = hashlib.sha256(said.encode()).hexdigest()[:12]

    def get(partial: Path) -> None:
        for kind in (".mod", ".sum"):
            shutil.copyfile(base.with_suffix(kind), partial / f"set{kind}")
        _go(
            *("get", f"-modfile={partial / 'set.mod'}", f"{module}@{version}", "./..."),
            folder=SERVICES / service,
        )

    name = f"set.{service}.{version.removeprefix('v')}"
    folder = cache.make(cache.directory() / "golang" / f"{name}-{digest}", get, topic="golang")
    return str(folder / "set")


def _base(service: Path, minor: tuple[int, int]) -> Path:
    """The set that is next below a release, else the oldest."""
    sets = sorted(
        (tuple(map(int, file.stem.split("."))), file)
        for file in service.glob("*.mod")
        if file.stem != "go"
    )
    below = [file for release, file in sets if release <= minor]
    return below[-1] if below else sets[0][1]


def _go(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [str(toolchains.toolchain(toolchains.NEWEST)), *words],
        check=False,
        cwd=folder,
        env=toolchains.environment(toolchains.NEWEST),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(f"go {' '.join(words)}:\n{done.stderr}")
    return done.stdout
