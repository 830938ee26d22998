"""What an agent leaves in its bpffs, so that it outlives the process: names, and taking it away.

Below the bpffs are `abi<N>` (maps), `abi<N>/links`, `clsact` (what `clsact.py` remembers), and
`doctor…` while `throughline doctor` tries.
"""

from __future__ import annotations

from pathlib import Path

from throughline.bpf import abi, tc
from throughline.features import table as features

NAME = f"abi{abi.Abi.ABI_VERSION}"
TC_PROGRAM = "tl_packets_out"

# Maps that only one group uses. tl_members says which sockets are in tl_socks.
_MAPS = {"headers": ("tl_socks", "tl_members")}


def of_cgroup(program: str, root: str) -> str:
    """The pin's name of a program's link to a cgroup.

    bpffs refuses dots, so they and slashes are escaped.
    """
    escaped = "".join(c if c.isalnum() or c in "-_" else f"+{ord(c):x}" for c in root) or "root"
    return f"{program}@{escaped}"


def withdraw(bpffs: Path, group: str) -> None:
    """Takes away a group that an earlier run left, when it is not wanted any more or cannot be."""
    for program in features.programs_of(group):
        withdraw_links(bpffs, program.name)
    for directory in bpffs.glob(f"{NAME}*"):
        for name in _MAPS.get(group, ()):
            (directory / name).unlink(missing_ok=True)
    if group == "packets":
        tc.remove_all(bpffs, name=TC_PROGRAM)


def withdraw_links(bpffs: Path, program: str) -> None:
    """Takes away the links of one program, wherever it is attached."""
    for links in bpffs.glob(f"{NAME}*/links"):
        (links / program).unlink(missing_ok=True)
        for pin in links.glob(f"{program}@*"):
            pin.unlink(missing_ok=True)


def detach_all(bpffs: Path) -> None:
    """Removes every pin of ours below `bpffs`, which detaches what nobody holds open."""
    for place in (bpffs, *bpffs.glob("doctor*")):
        tc.remove_all(place, name=TC_PROGRAM)
    for directory in [*bpffs.glob("abi*"), *bpffs.glob("doctor*")]:
        remove_tree(directory)


def remove_tree(directory: Path) -> None:
    """bpffs: files are objects, directories may hold nothing but them."""
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if entry.is_dir():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    if directory.is_dir():
        directory.rmdir()
