"""Attaches a program to TC egress of every interface: by tcx links (Linux 6.6), else by clsact.

With tcx our program is at the head of the chain, so it sees each packet even if a later program
ends the chain, as Cilium's do. With clsact it has the configured priority. Our program never ends
the chain. The kernel runs tcx before clsact.

Links are pinned and filters belong to the interface, so both outlive the agent. The next run
replaces their program in place.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.bpf import clsact, links
from throughline.bpf.clsact import Filters

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0  # between two attempts to attach to one interface


@dataclass(frozen=True, slots=True)
class Place:
    """An interface that has the program. `priority` is that of a clsact filter, None for tcx."""

    interface: str
    index: int
    by: str  # "tcx" | "clsact"
    priority: int | None

    def as_json(self) -> dict[str, Any]:
        return {"interface": self.interface, "by": self.by, "priority": self.priority}


class Interfaces:
    """One program on the egress of each interface of this network namespace.

    `follow` attaches the program to the interfaces that there are; the agent calls it every second,
    for interfaces that come later. Links are pinned in `pins`, and `bpffs` remembers the filters of
    clsact. `refused` has the interfaces that cannot have the program, with the reason; they are
    tried again every 10 seconds.
    """

    def __init__(
        self,
        program_fd: int,
        *,
        name: str,
        bpffs: Path,
        pins: Path,
        priority: int,
        tcx: bool | None = None,  # None: a trial decides
    ) -> None:
        self._program = program_fd
        self._name = name
        self._bpffs = bpffs
        self._pins = pins
        self._priority = priority
        self._tcx = tcx
        self._filters: Filters | None = None
        self._links: dict[int, links.Link] = {}
        self._places: dict[int, Place] = {}
        self._not_before: dict[int, float] = {}
        self._next_look = 0.0
        self.refused: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    @property
    def attached(self) -> list[Place]:
        """Ordered by interface index."""
        return [self._places[index] for index in sorted(self._places)]

    def follow(self, *, only: int | None = None) -> None:
        """Attaches to new interfaces and forgets those that have gone; `only` limits it to one."""
        now = time.monotonic()
        present = {i: n for i, n in socket.if_nameindex() if only in (None, i)}
        for index in self._places.keys() - present.keys():
            self._forget(index)
        for index in self._not_before.keys() - present.keys():
            del self._not_before[index]
        self._find_lost(now)
        self.refused = {n: r for n, r in self.refused.items() if n in present.values()}
        for index, interface in present.items():
            place = self._places.get(index)
            if place is not None:
                if place.interface != interface:  # renamed
                    self._places[index] = self._place(index, interface)
            elif now >= self._not_before.get(index, 0.0):
                self._attach(index, interface, now)
        self._drop_pins(present)

    def close(self) -> None:
        """Closes the links of this process; the program stays on the interfaces."""
        for link in self._links.values():
            link.destroy()
        self._links.clear()
        self._places.clear()
        self._filters = None

    # -- one interface -----------------------------------------------------------------------------

    def _attach(self, index: int, interface: str, now: float) -> None:
        try:
            if self._tcx is not False and self._attach_tcx(index, interface):
                self._tcx = True
            else:
                self._clsact().put(index, self._program)
        except OSError as error:
            if error.errno == errno.ENODEV or not _is_there(index):
                return  # the interface has gone meanwhile
            self._not_before[index] = now + RETRY_SECONDS
            reason = error.strerror or str(error)
            if self.refused.get(interface) != reason:
                log.warning("egress of %s: %s", interface, reason)
            self.refused[interface] = reason
            self.counts["tc_refused"] += 1
            return
        self.refused.pop(interface, None)
        # If another program removes ours again and again, ours comes back every 10 seconds only.
        self._not_before[index] = now + RETRY_SECONDS
        self._places[index] = self._place(index, interface)

    def _place(self, index: int, interface: str) -> Place:
        if index in self._links:
            return Place(interface, index, "tcx", None)
        return Place(interface, index, "clsact", self._priority)

    def _attach_tcx(self, index: int, interface: str) -> bool:
        """Returns False when this kernel has no tcx."""
        pin = self._pin(index)
        link = self._adopt(pin, index)
        if link is None:
            try:
                link = links.attach_tcx(self._program, index, flags=links.BEFORE)
            except OSError as error:
                if self._tcx is None and error.errno == errno.EINVAL and _is_there(index):
                    log.info("%s: this kernel has no tcx, so clsact is used", interface)
                    self._tcx = False
                    return False
                raise
            try:
                pin.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                link.pin(pin)
            except OSError:
                link.destroy()
                raise
        self._links[index] = link
        return True

    def _adopt(self, pin: Path, index: int) -> links.Link | None:
        """The link of an earlier run, with our program in it; None when it is not attached here."""
        if not pin.exists():
            return None
        link = links.Link.open(pin)
        try:
            if links.tcx_interface(link.fd) == index:
                link.update(self._program)
                return link
        except OSError as error:
            log.info("%s is attached again: %s", pin.name, error)
        link.destroy()
        pin.unlink(missing_ok=True)
        return None

    def _clsact(self) -> Filters:
        if self._filters is None:
            self._filters = Filters(name=self._name, bpffs=self._bpffs, priority=self._priority)
            for index in self._filters.remembered() - {i for i, _ in socket.if_nameindex()}:
                self._filters.take(index)  # the interface went while no agent ran
        return self._filters

    # -- what goes away ----------------------------------------------------------------------------

    def _find_lost(self, now: float) -> None:
        """Forgets interfaces that have lost our program, so that it is attached again.

        That happens when someone detaches the link or removes the qdisc, and when an interface is
        removed and another one gets its number.
        """
        lost = [i for i, link in self._links.items() if links.tcx_interface(link.fd) != i]
        if self._filters is not None and now >= self._next_look:
            self._next_look = now + RETRY_SECONDS
            filtered = self._places.keys() - self._links.keys()
            lost += [i for i in filtered if not self._filters.has(i)]
        for index in lost:
            interface = self._places[index].interface
            self._forget(index)
            if _is_there(index):
                self.counts["tc_reattached"] += 1
                log.warning("egress of %s: our program was removed", interface)

    def _forget(self, index: int) -> None:
        self._places.pop(index, None)
        link = self._links.pop(index, None)
        if link is not None:
            link.destroy()
            self._pin(index).unlink(missing_ok=True)
        elif self._filters is not None:
            self._filters.take(index)

    def _drop_pins(self, present: dict[int, str]) -> None:
        """Removes the pins of interfaces that went while no agent ran."""
        for pin in self._pins.glob(f"{self._name}#*"):
            index = int(pin.name.rpartition("#")[2])
            if index not in self._links and index not in present:
                pin.unlink(missing_ok=True)

    def _pin(self, index: int) -> Path:
        return self._pins / f"{self._name}#{index}"


def _is_there(index: int) -> bool:
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


def remove_all(bpffs: Path, *, name: str) -> None:
    """Removes the program called `name` from every interface; a link ends with its pin."""
    for pin in bpffs.glob(f"abi*/links/{name}#*"):
        pin.unlink(missing_ok=True)
    if (bpffs / "clsact").is_dir():
        clsact.remove_all(bpffs, name=name)
