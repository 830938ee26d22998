"""The pins by which programs and maps outlive the agent: their names, and how to remove them.

Below the bpffs are `abi<N>` (maps), `abi<N>/links`, `clsact` (the qdiscs that bpf/clsact.py has
made), and `doctor…` while `throughline doctor` tries.
"""

from __future__ import annotations

from pathlib import Path

from throughline.bpf import abi, tc
from throughline.features.table import GROUPS, PROGRAMS, Place

NAME = f"abi{abi.Abi.ABI_VERSION}"


def of_cgroup(program: str, root: str) -> str:
    """The name of the pin of a program's link to a cgroup.

    bpffs refuses dots, so they and slashes are escaped.
    """
    escaped = "".join(c if c.isalnum() or c in "-_" else f"+{ord(c):x}" for c in root) or "root"
    return f"{program}@{escaped}"


def withdraw(bpffs: Path, group: str) -> None:
    """Takes away what an earlier run left of a group that is off now."""
    for program in GROUPS[group].programs:
        withdraw_links(bpffs, program.name)
        if program.place is Place.INTERFACES:
            tc.remove_all(bpffs, name=program.name)
    for directory in bpffs.glob(f"{NAME}*"):
        for name in GROUPS[group].maps:
            (directory / name).unlink(missing_ok=True)


def withdraw_links(bpffs: Path, program: str) -> None:
    """Takes away the links of one program, wherever it is attached."""
    for links in bpffs.glob(f"{NAME}*/links"):
        (links / program).unlink(missing_ok=True)
        for pin in links.glob(f"{program}@*"):
            pin.unlink(missing_ok=True)


def detach_all(bpffs: Path) -> None:
    """Removes every pin of ours below `bpffs`: that detaches all programs but an open process's."""
    for place in (bpffs, *bpffs.glob("doctor*")):
        for program in PROGRAMS.values():
            if program.place is Place.INTERFACES:
                tc.remove_all(place, name=program.name)
    for directory in [*bpffs.glob("abi*"), *bpffs.glob("doctor*")]:
        remove_tree(directory)


def remove_tree(directory: Path) -> None:
    """Removes a directory of a bpffs, in which files are objects of the kernel."""
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if entry.is_dir():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    if directory.is_dir():
        directory.rmdir()
