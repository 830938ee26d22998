"""Removes entries of maps whose end no BPF program has seen, by a walk over the map.

BPF iterators could do this in the kernel, but some kernels refuse them. A walk reads a map in a few
system calls (bpf/maps.py). Entries that must change together are changed by a BPF program, which
user space runs once for up to eight requests.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from throughline.bpf import abi, libbpf, maps
from throughline.bpf.maps import Hash

log = logging.getLogger(__name__)

TOO_OLD_SECONDS = 300.0  # TL_AGE_MAX_NS of bpf/trace/request.h: an older request is no parent
UNPARSED = 1 << 63  # TL_UNPARSED, in the start of a request


@dataclass(frozen=True, slots=True)
class Others:
    """Descriptors of the maps that hold other parts of a request."""

    tracestates: int
    opened: int  # tl_open, whose key is the request and the thread that has read it


def requests(
    table: int,
    others: Others,
    program: int | None,
    *,
    only_probed: bool,
    older_than: float,
) -> int:
    """Ends requests of the map `tl_requests` that are older (in seconds); returns their number.

    `program` is tl_end_requests, which also updates the state of the thread that has read the
    request. Without it the entries are only removed: the thread then seems to serve one request
    more than it does, and its calls may have no parent. `only_probed` limits this to requests whose
    end only a probe sees.
    """
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int(older_than * 1e9)
    stale: list[tuple[int, int]] = []  # key, reader
    for key, value in _entries(table, maps.U64.size, abi.REQUEST.size):
        request = abi.Request(*abi.REQUEST.unpack(value))
        probed = bool(request.flags & abi.RequestFlags.REQUEST_PROBED)
        # A start of 0 is an entry that is not complete yet.
        if 0 < request.start_ns & ~UNPARSED <= before and (probed or not only_probed):
            stale.append((maps.U64.unpack(key)[0], request.reader))
    at_once = abi.Abi.ENDED_AT_ONCE
    for start in range(0, len(stale), at_once):
        some = stale[start : start + at_once]
        if program is not None:
            try:
                libbpf.run(program, [key for key, _ in some])
                continue
            except OSError as error:
                log.warning("requests are removed, but not from their threads: %s", error.strerror)
                program = None
        for number, reader in some:
            key = maps.U64.pack(number)
            maps.delete(others.tracestates, key)
            maps.delete(others.opened, key + maps.U64.pack(reader))
            maps.delete(table, key)
    return len(stale)


def members(table: int, sockhash: int, learned: int) -> int:
    """Removes the sockets of processes in `tl_fionread` from the sockhash; returns their number."""
    count = 0
    # process id and start time
    processes = {pid + born for pid, born in _entries(learned, 4, 4)}
    for key, process in _entries(table, 8, 8):
        if process in processes:
            # In this order: tl_egress reads the traffic of a socket that is no member any more.
            if maps.delete(sockhash, key):
                count += 1
            maps.delete(table, key)
    return count


def _entries(fd: int, key_size: int, value_size: int) -> list[tuple[bytes, bytes]]:
    return [
        (key, bytes(value))
        for batch in Hash(fd, key_size, value_size).entries()
        for key, value in batch
    ]
