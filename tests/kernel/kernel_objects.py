"""Which BPF objects exist: by id, so that other agents on the same kernel do not count."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from throughline.bpf import libbpf
from throughline.bpf.prototypes import library

KINDS = ("prog", "map", "link")
Ids = dict[str, set[int]]


def bpftool(*arguments: str) -> list[dict[str, Any]]:
    """What it says, as JSON."""
    run = subprocess.run(["bpftool", "-j", *arguments], capture_output=True, text=True, timeout=20)
    found = json.loads(run.stdout or "[]")
    return found if isinstance(found, list) else []


def existing() -> Ids:
    """Ids of all programs, maps and links of this kernel."""
    return {kind: {int(str(item["id"])) for item in bpftool(kind, "show")} for kind in KINDS}


def held_by(pid: int) -> Ids:
    """Ids of what a process has open, from /proc/PID/fdinfo."""
    found: Ids = {kind: set() for kind in KINDS}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = info.read_text()
        except OSError:
            continue
        # a link shows the id of its program, too, and an iterator the one of its link
        for kind in KINDS:
            found[kind] |= {
                int(number) for number in re.findall(rf"^{kind}_id:\t(\d+)", text, re.M)
            }
    return found


def make_all_give_way(pid: int, map_name: str) -> int:
    """Removes every entry of a map that a process has, as others would; returns how many."""
    ids = {str(number) for number in held_by(pid)["map"]}
    (found,) = [m for m in bpftool("map", "show") if str(m["id"]) in ids and m["name"] == map_name]
    table, gone = library().bpf_map_get_fd_by_id(int(str(found["id"]))), 0
    try:
        for key in list(libbpf.keys(table, found["bytes_key"])):
            gone += libbpf.lookup(table, key, found["bytes_value"]) is not None
            libbpf.delete(table, key)
    finally:
        os.close(table)
    return gone


def pinned_links(bpffs: Path) -> dict[str, int]:
    """Name of the pin -> id of the link."""
    found = {}
    for pin in sorted(bpffs.glob("abi*/links/*")):
        run = subprocess.run(
            ["bpftool", "-j", "link", "show", "pinned", str(pin)], capture_output=True, text=True
        )
        found[pin.name] = int(json.loads(run.stdout)["id"])
    return found


def left(ids: Ids, *, seconds: float = 5.0) -> Ids:
    """What of `ids` still exists once the kernel had time to free it."""
    deadline = time.monotonic() + seconds
    while True:
        now = existing()
        found = {kind: ids[kind] & now[kind] for kind in KINDS}
        if not any(found.values()) or time.monotonic() > deadline:
            return {kind: number for kind, number in found.items() if number}
        time.sleep(0.1)
