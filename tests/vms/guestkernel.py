"""A Debian cloud kernel without a box: `vmlinuz`, `initrd` and the modules, for tests.vms.guest.

Kept outside the checkout, in a directory for each release line, below that of the boxes.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures import archive, cache
from tests.vms import boxes, kernels

INIT = Path(__file__).with_name("guest-init.sh")
LINES = tuple(line for recipe in boxes.RECIPES.values() for line in recipe.lines)
# What it takes to reach this machine's files and to answer, besides what these depend on.
WANTED = ("virtio_pci", "virtio_console", "virtiofs", "overlay")

FOLDERS = (
    "etc/apt/apt.conf.d",
    "etc/apt/preferences.d",
    "var/lib/apt/lists/partial",
    "var/cache/apt/archives/partial",
)
APT = """Dir "{apt}";
Dir::Bin::Methods "/usr/lib/apt/methods";
Dir::State::status "/dev/null";
Dir::Etc::main "-";
Acquire::Languages "none";
Acquire::Retries "3";
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a guest boots. `modules` is what it is to see as /lib/modules."""

    image: Path
    initrd: Path
    modules: Path


def recipe_hash() -> str:
    """Twelve hex digits that change when what is made, or the code that makes it, does."""
    modules = (sys.modules[__name__], archive, kernels)
    text = "\0".join([INIT.read_text(), *(inspect.getsource(module) for module in modules)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def path(line: str) -> Path:
    """The finished directory of a release line, whether it exists or not."""
    return cache.directory() / "kernels" / f"{line}-{recipe_hash()}"


def _archive(directory: Path) -> kernels.Archive:
    """This machine's apt, with lists of its own of all suites that boxes are built from."""
    suites = {suite for recipe in boxes.RECIPES.values() for suite in recipe.suites}
    for folder in FOLDERS:
        (directory / folder).mkdir(parents=True)
    sources = archive.sources(tuple(sorted(suites)))
    (directory / "etc/apt/sources.list").write_text("\n".join([*sources, ""]))
    (directory / "apt.conf").write_text(APT.format(apt=directory))
    found = kernels.Archive(("env", f"APT_CONFIG={directory / 'apt.conf'}"), Path("/"))
    subprocess.run(
        [*found.words, "apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "update"],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return found


def _build(line: str, directory: Path) -> None:
    root = directory / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "boot").mkdir()
    release = kernels.install(root, line, archive=_archive(directory / "apt"))
    (root / "boot" / f"vmlinuz-{release}").rename(directory / "vmlinuz")
    (root / "usr/lib/modules").rename(directory / "modules")
    kernels.write_initrd(
        directory / "initrd",
        modules=directory / "modules" / release,
        wanted=WANTED,
        init=INIT.read_text(),
    )
    for folder in (root, directory / "apt"):
        shutil.rmtree(folder)
    cache.say(f"kernel {line} is {release}", topic="guest")


def build(line: str) -> Kernel:
    """Returns the kernel of a release line, fetched first where it is missing (some seconds).

    Raises CalledProcessError when a step fails, LookupError when the archive has no such kernel.
    """
    made = cache.make(path(line), lambda directory: _build(line, directory), topic="guest")
    return Kernel(made / "vmlinuz", made / "initrd", made / "modules")
