"""What an agent leaves in its bpffs, so that it outlives the process: names, and taking it away.

Below the bpffs are `abi<N>` (maps), `abi<N>/links`, `clsact` (what `clsact.py` remembers), and
`doctor…` while `throughline doctor` tries.
"""

from __future__ import annotations

from pathlib import Path

from throughline.kernel import abi, tc

NAME = f"abi{abi.Abi.ABI_VERSION}"
TC_PROGRAM = "tl_packets_out"

# What a group pins, apart from maps that others use, too: prefixes of its links, and its own maps.
_OF_GROUP: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "headers": (("tl_sockops",), ("tl_socks",)),
    "packets": (("tl_packets_",), ()),
    "tls": ((), ()),
    "go": ((), ()),
    "go_write": ((), ()),
}


def of_cgroup(program: str, root: str) -> str:
    """The pin's name of a program's link to a cgroup.

    bpffs refuses dots, so they and slashes are escaped.
    """
    escaped = "".join(c if c.isalnum() or c in "-_" else f"+{ord(c):x}" for c in root) or "root"
    return f"{program}@{escaped}"


def withdraw(bpffs: Path, group: str) -> None:
    """Takes away a group that an earlier run left, when it is not wanted any more or cannot be."""
    links, maps = _OF_GROUP[group]
    for pins in bpffs.glob(f"{NAME}*"):
        for prefix in links:
            for pin in (pins / "links").glob(f"{prefix}*"):
                pin.unlink(missing_ok=True)
        for name in maps:
            (pins / name).unlink(missing_ok=True)
    if group == "packets":
        tc.remove_all(bpffs, name=TC_PROGRAM)


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
