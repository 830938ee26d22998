"""A kernel without BTF, built from the source that Debian's 6.1 is built from (nobtf.config).

Its directory holds `vmlinuz` and `initrd`; nothing of it is in a box.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fixtures import cache
from tests.vms import kernels

LINE = "nobtf"
SOURCE = "linux-source-6.1"
CONFIG = Path(__file__).with_name("nobtf.config")
# Words that kconfig drops when something they depend on is missing, and what must not be there.
FORBIDDEN = ("CONFIG_DEBUG_INFO_BTF=y", "CONFIG_CGROUP_BPF=y", "CONFIG_MODULES=y")


def recipe_hash() -> str:
    """Twelve hex digits that change when the configuration or this code does."""
    text = CONFIG.read_text() + "".join(
        inspect.getsource(module) for module in (sys.modules[__name__], kernels)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def path() -> Path:
    """The finished directory, whether it exists or not."""
    return cache.directory() / "boxes" / f"{LINE}-{recipe_hash()}"


def missing(wanted: str, config: str) -> list[str]:
    """The lines of the wanted configuration that kconfig has not taken over."""
    lines = {line for line in config.splitlines() if line.startswith("CONFIG_")}
    asked = [line for line in wanted.splitlines() if line.startswith("CONFIG_")]
    return [
        line
        for line in asked
        if (line not in lines if not line.endswith("=n") else f"{line[:-1]}y" in lines)
    ]


def _configure(tree: Path) -> None:
    merge = f"scripts/kconfig/merge_config.sh -m .config {shlex.quote(str(CONFIG))} >/dev/null"
    steps = ("make -s tinyconfig >/dev/null", merge, "make -s olddefconfig")
    subprocess.run(" && ".join(steps), shell=True, check=True, cwd=tree, stdin=subprocess.DEVNULL)
    config = (tree / ".config").read_text()
    wrong = missing(CONFIG.read_text(), config)
    wrong += [line for line in FORBIDDEN if line in config.splitlines()]
    if wrong:
        raise ValueError(f"{CONFIG.name} does not hold for {SOURCE}: {', '.join(wrong)}")


def _build(directory: Path) -> None:
    subprocess.run(
        ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", SOURCE],
        check=True,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, directory / "package"], check=True)
    archive = directory / f"package/usr/src/{SOURCE}.tar.xz"
    subprocess.run(
        ["tar", "--extract", f"--file={archive}", f"--directory={directory}"], check=True
    )
    tree = directory / SOURCE
    _configure(tree)
    jobs = len(os.sched_getaffinity(0))
    with (directory / "build.log").open("wb") as log:
        subprocess.run(
            ["make", "-s", f"-j{jobs}", "bzImage"], cwd=tree, check=True, stdout=log, stderr=log
        )
    shutil.copy(tree / "arch/x86/boot/bzImage", directory / "vmlinuz")
    (directory / "modules").mkdir()
    (directory / "modules/modules.dep").write_text("")
    kernels.write_initrd(directory / "initrd", modules=directory / "modules")
    for folder in (tree, directory / "package", directory / "modules"):
        shutil.rmtree(folder)
    package.unlink()


def build() -> Path:
    """Returns the kernel's directory, building it first where it is missing (minutes).

    Raises CalledProcessError when a step fails, ValueError for a configuration that does not fit.
    """
    return cache.make(path(), _build)
