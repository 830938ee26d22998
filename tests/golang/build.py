"""Builds the programs in `services/` with a release of Go, and keeps them.

    build("chain/server", version="1.22", flags=STRIPPED)  # → Path of the program

A program is named MODULE/PACKAGE. It is built once for each release, set of flags and state of the
sources of its module and of `chain`, on which the others depend.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.golang import toolchains
from tests.vms import cache

SERVICES = Path(__file__).with_name("services")

STRIPPED = ("-ldflags=-s -w",)
PIE = ("-buildmode=pie",)
TRIMMED = ("-trimpath",)
RACE = ("-race",)


def build(
    program: str, *, version: str = toolchains.NEWEST, flags: Sequence[str] = (), modules: str = ""
) -> Path:
    """Returns the built program. Raises OSError with the compiler's words where it does not build.

    `modules` names another set of dependencies than go.mod: "old" is old.mod and old.sum.
    """
    module, _, package = program.partition("/")
    words = [*flags, *([f"-modfile={modules}.mod"] if modules else [])]
    full = toolchains.release(version)
    digest = _digest(module, [full, program, *words])
    folder = cache.directory() / "golang"

    def compile_into(partial: Path) -> None:
        cgo = "1" if "-race" in words else "0"
        command = [str(toolchains.toolchain(full)), "build", *words]
        done = subprocess.run(
            [*command, "-o", str(partial / Path(package).name), f"./{package}"],
            check=False,
            cwd=SERVICES / module,
            env=toolchains.environment(full, CGO_ENABLED=cgo),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise OSError(f"Go {full} does not build {program} {words}:\n{done.stderr}")

    # one name, and so one lock, for each program of each release
    finished = folder / f"{module}.{package}.{full}-{digest}"
    return cache.make(finished, compile_into, topic="golang") / Path(package).name


def _digest(module: str, words: Sequence[str]) -> str:
    """Of what the program is made from."""
    digest = hashlib.sha256(json.dumps(words).encode())
    files = {file for name in {module, "chain"} for file in (SERVICES / name).rglob("*")}
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"{file.relative_to(SERVICES)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    print(build(sys.argv[1], version=sys.argv[2], flags=sys.argv[3:]))
