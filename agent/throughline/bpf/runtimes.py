"""tl_runtimes: the processes whose runtime keeps the current unit of work in its memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from throughline.bpf import abi, maps

_BORN_MAX = (1 << 32) - 1
NOWHERE = (0, 0, 0, 0)  # for Entry.others
# Feature group -> the kinds of the processes that it tells the programs of.
KINDS = {
    "java": (abi.RuntimeKind.RUNTIME_JAVA,),
    "python": (abi.RuntimeKind.RUNTIME_PYTHON,),
    "proxies": (
        abi.RuntimeKind.RUNTIME_HAPROXY,
        abi.RuntimeKind.RUNTIME_NGINX,
        abi.RuntimeKind.RUNTIME_VARNISH,
    ),
    "ruby": (abi.RuntimeKind.RUNTIME_RUBY,),
    "node": (abi.RuntimeKind.RUNTIME_NODE,),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """struct tl_runtime of a process. `born` is in clock ticks since boot, as in /proc/PID/stat."""

    kind: abi.RuntimeKind
    binary: int
    base: int
    born: int
    check_at: int
    check: int
    flags: int = 0  # enum tl_runtime_flags
    jobs: int = abi.Jobs.NONE
    pool: bool = False
    acceptor: int = 0  # the programs note what follows
    port: int = 0
    since_ns: int = 0
    others: tuple[int, ...] = NOWHERE


class Runtimes:
    """The map."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, pid: int, entry: Entry) -> None:
        """Writes the entry of a process."""
        value = abi.RUNTIME.pack(
            *abi.Runtime(
                base=entry.base,
                check_at=entry.check_at,
                check=entry.check,
                born=entry.born & _BORN_MAX,
                binary=entry.binary,
                kind=entry.kind,
                flags=entry.flags,
                executed=0,  # the programs look at the word
                jobs=entry.jobs,
                pool=entry.pool,
                acceptor=entry.acceptor,
                port=entry.port,
                since_ns=entry.since_ns,
                others_0=entry.others[0],
                others_1=entry.others[1],
                others_2=entry.others[2],
                others_3=entry.others[3],
            )
        )
        maps.update(self._fd, maps.U32.pack(pid), value)

    def find(self, pid: int) -> Entry | None:
        """The entry of a process, or None. The programs may change it at any time."""
        value = maps.lookup(self._fd, maps.U32.pack(pid), abi.RUNTIME.size)
        return _entry(value) if value else None

    def of_kind(self, kind: abi.RuntimeKind) -> Iterator[tuple[int, Entry]]:
        """Process ids and entries of a kind."""
        for key in list(maps.keys(self._fd, maps.U32.size)):
            value = maps.lookup(self._fd, key, abi.RUNTIME.size)
            if value and abi.Runtime(*abi.RUNTIME.unpack(value)).kind == kind:
                yield maps.U32.unpack(key)[0], _entry(value)

    def forget(self, pid: int) -> None:
        """Removes the entry of a process, where there is one."""
        maps.delete(self._fd, maps.U32.pack(pid))

    def forget_own(self, pid: int, born: int, kinds: Collection[abi.RuntimeKind]) -> None:
        """Removes the entry of a process that began then, if it is of one of these kinds.

        Another provider, or a probe, may have told of a process that has got the same id since.
        """
        entry = self.find(pid)
        if entry is not None and entry.kind in kinds and entry.born == born & _BORN_MAX:
            self.forget(pid)

    def clear(self, kind: abi.RuntimeKind) -> None:
        """Removes all entries of a kind."""
        for pid, _ in self.of_kind(kind):
            self.forget(pid)


def _entry(value: bytes) -> Entry:
    packed = abi.Runtime(*abi.RUNTIME.unpack(value))
    return Entry(
        kind=abi.RuntimeKind(packed.kind),
        binary=packed.binary,
        base=packed.base,
        born=packed.born,
        check_at=packed.check_at,
        check=packed.check,
        flags=packed.flags,
        jobs=packed.jobs,
        pool=bool(packed.pool),
        acceptor=packed.acceptor,
        port=packed.port,
        since_ns=packed.since_ns,
        others=(packed.others_0, packed.others_1, packed.others_2, packed.others_3),
    )
