"""The platforms of the kernel matrix: what each VM boots (platforms.yml), and its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.vms import boxes, expected, nobtf
from tests.vms.architecture import ARCHITECTURES, Architecture

FILE = Path(__file__).with_name("platforms.yml")
STATE = Path("/run/throughline-vms")
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}")

# What every platform gets, besides the console. It leaves out what is slow under emulation and
# changes nothing that is tested here.
WORDS = (
    "panic=-1",
    "net.ifnames=0",
    "mitigations=off",
    "random.trust_cpu=on",
    "tsc=reliable",
    "no_timer_check",
)


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine of the matrix. `memory` is in MiB."""

    name: str
    box: str
    line: str
    words: str
    memory: int
    expect: dict[str, Any]

    @property
    def hostname(self) -> str:
        """A dot would make it a domain."""
        return self.name.replace(".", "-")

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        console = f"console={self.architecture.console}"
        words = [console, *WORDS, f"systemd.hostname={self.hostname}", *self.words.split()]
        return " ".join(words)

    @property
    def arch(self) -> str:
        """The kernel's name for the processor's architecture."""
        return boxes.RECIPES[self.box].arch

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.arch]

    @property
    def state(self) -> Path:
        """The directory with what belongs to the running VM."""
        return STATE / self.name

    @property
    def inventory(self) -> Path:
        """An Ansible inventory with the VM, for Molecule and testinfra."""
        return self.state / "inventory.yml"

    @property
    def ssh_config(self) -> Path:
        """An ssh_config that reaches the VM from any shell of root."""
        return self.state / "ssh_config"

    @property
    def console(self) -> Path:
        """What the VM printed on its serial console."""
        return self.state / "console.log"


def load(file: Path = FILE) -> dict[str, Platform]:
    """All platforms by name, in the table's order. Raises ValueError for one that is not valid."""
    wanted = yaml.safe_load(expected.TABLE.read_text(encoding="utf-8"))
    platforms = {}
    for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        if not NAME.fullmatch(name):
            raise ValueError(f"{file.name}: {name!r} is no name for a platform")
        recipe = boxes.RECIPES.get(entry["box"])
        if recipe is None or entry["line"] not in (*recipe.lines, nobtf.LINE):
            raise ValueError(f"{file.name}: {name}: no box has kernel {entry['line']}")
        platforms[name] = Platform(name=name, expect=wanted.get(name, {}), **entry)
    return platforms


def get(name: str) -> Platform:
    """One platform. Raises LookupError with the names that exist."""
    platforms = load()
    if name not in platforms:
        raise LookupError(f"no platform {name!r}; there are {', '.join(platforms)}")
    return platforms[name]
