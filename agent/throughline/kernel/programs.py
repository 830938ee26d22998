"""The feature groups as programs of this kernel: attach, pin, adopt after a crash, detach.

Everything that must outlive the agent is pinned below `<bpffs>/abi<N>`: the maps by libbpf (by
name), the links here. An agent that starts finds pinned links and replaces their programs in
place, so that no packet passes unobserved; one of another ABI is removed once the new is attached.
The groups `tls`, `go` and `go_write` are not pinned: which files to probe is known to the process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from throughline.kernel import abi, fionread, libbpf, peers, pins, tc, uprobes
from throughline.kernel.objects import Objects

log = logging.getLogger(__name__)

_CGROUP_TYPES = {"cgroup_skb/ingress", "cgroup_skb/egress", "sockops"}
_UPROBE_TYPES = {"uprobe", "uretprobe"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the programs are told; see struct tl_settings in bpf/abi.h."""

    sampler: abi.Sampler
    ratio: float
    parent_based: bool
    trace_unlisted: bool
    packets: bool = False  # read contexts from TCP options of peers

    def pack(self) -> bytes:
        bound = round(self.ratio * 2**64)
        settings = abi.Settings(
            ratio_bound=min(bound, 2**64 - 1),
            sampler=self.sampler,
            parent_based=self.parent_based,
            trace_unlisted=self.trace_unlisted,
            packets=self.packets,
        )
        return abi.SETTINGS.pack(*settings)


@dataclass(frozen=True, slots=True)
class Attached:
    """One attached program, for status and doctor."""

    name: str
    type: str
    where: str
    id: int
    pin: str | None = field(default=None)  # the name of its link's, if it has one

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "where": self.where, "id": self.id}


class Programs:
    """What this agent has loaded and attached. `attach_*` raise OSError as the kernel does."""

    def __init__(
        self,
        *,
        bpffs: Path,
        cgroup2: Path,
        roots: Sequence[str],
        settings: Settings,
        map_sizes: Mapping[str, int] | None = None,  # other than the objects' own
    ) -> None:
        self._inodes: dict[str, int] = {}  # what the roots were when we attached to them
        self._bpffs = bpffs
        self.adopting = any(bpffs.glob(f"{pins.NAME}*"))  # pins of an earlier run
        self._cgroup2 = cgroup2
        self._roots = list(roots)
        self._settings = settings
        self.objects = Objects(bpffs=bpffs, map_sizes=map_sizes or {})
        self._links: list[libbpf.Link] = []
        self.attached: list[Attached] = []
        self.interfaces: tc.Interfaces | None = None  # of the group `packets`

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees what this process holds. Pinned programs go on."""
        for link in self._links:
            link.destroy()
        self._links.clear()
        if self.interfaces is not None:
            self.interfaces.close()
            self.interfaces = None
        self.objects.close()

    # -- attaching -------------------------------------------------------------------------------

    def attach_observe(self) -> None:
        """Group `observe`: packets of the cgroups, reads of threads, ends of ticks.

        Its first variant that this kernel accepts decides that of the other groups.
        """
        self.objects.fionread_broken = fionread.is_broken()
        loaded = self.objects.load_first("observe")
        self._tell_settings()
        self._attach_all(loaded, skip=("tl_sweep", "tl_sweep_old"))
        # before Linux 6.3: answers of databases do not tell whose request goes on
        if self.objects.has("restore"):
            try:
                self._attach_all(self.objects.load("restore"), skip=())
            except OSError as error:
                log.info("without the tracepoint sock_send_length: %s", error)
        self._remove_other_pins()

    def attach_headers(self) -> None:
        """Group `headers`: insertion into plaintext requests. After `attach_observe`."""
        loaded = self.objects.load("headers")
        program = loaded.program("tl_send")
        libbpf.attach_map(program.fd, loaded.map_fd("tl_socks"), libbpf.SK_MSG_VERDICT)
        self._note(program, "tl_socks", program.fd)
        self._attach_all(loaded, skip=("tl_send", "tl_release"))

    def attach_packets(
        self,
        networks: Iterable[IPv4Network | IPv6Network],
        *,
        priority: int,
        only_interface: int | None = None,  # for a trial
    ) -> None:
        """Group `packets`: the context in a TCP option, to and from peers. After `attach_observe`.

        New connections by cgroup, older ones on the egress of every interface. An interface that
        refuses is no error: see `interfaces`.
        """
        loaded = self.objects.load("packets")
        peers.tell(loaded.map_fd("tl_peers"), networks)
        self._tell_settings(packets=True)
        self._attach_all(loaded, skip=(pins.TC_PROGRAM,))
        program = loaded.program(pins.TC_PROGRAM)
        self.interfaces = tc.Interfaces(
            program.fd,
            name=program.name,
            bpffs=self._bpffs,
            pins=self._directory,
            priority=priority,
        )
        self.interfaces.follow(only=only_interface)
        self._note(program, "egress of interfaces", program.fd)

    def sweep(self, *, old: bool = True) -> None:
        """Ends requests whose end no probe has seen: those that are too old to be a parent, or all.

        All of an earlier run, that is, before the first probe of this one.
        """
        observe = self.objects.get("observe")
        if observe is None:
            return
        program = observe.program("tl_sweep_old" if old else "tl_sweep")
        for _ in range(2):  # one that is removed may hide the next from the iterator
            link = program.attach_map_iterator(observe.map_fd("tl_requests"))
            try:
                libbpf.run_iterator(link)
            finally:
                link.destroy()

    def attach_tls(self, kind: uprobes.Kind) -> libbpf.Object:
        """Group `tls`, apart from its uprobes: whoever finds files to probe attaches them.

        After `attach_observe`.
        """
        loaded = self.objects.load("tls", prepare=lambda opened: uprobes.prepare(opened, kind))
        for program in loaded.programs():
            if program.section.partition("/")[0] not in _UPROBE_TYPES:
                self._links.append(program.attach())
                self._note(program, program.section.partition("/")[2], program.fd)
        return loaded

    def attach_go(self, kind: uprobes.Kind) -> libbpf.Object:
        """Group `go`, which is uprobes only. After `attach_observe`."""
        return self.objects.load("go", prepare=lambda opened: uprobes.prepare(opened, kind))

    def attach_go_write(self, kind: uprobes.Kind) -> libbpf.Object:
        """Group `go_write`, which is uprobes only. After `attach_go`, whose maps it shares."""
        return self.objects.load("go_write", prepare=lambda opened: uprobes.prepare(opened, kind))

    def _tell_settings(self, *, packets: bool | None = None) -> None:
        if packets is not None:
            self._settings = replace(self._settings, packets=packets)
        libbpf.update(self.map_fd("tl_settings"), bytes(4), self._settings.pack())

    def withdraw(self, group: str) -> None:
        """Takes away what this run or an earlier one has of a group that is off."""
        loaded = self.objects.get(group)
        if loaded is not None:
            for name in {program.name for program in loaded.programs()}:
                self._links = _destroy(self._links, name)
                self.attached = [a for a in self.attached if a.name != name]
            self.objects.drop(group)
        if group == "packets":
            if self.interfaces is not None:
                self.interfaces.close()
                self.interfaces = None
            # `observe` reads what peers send: no more, and nobody is one
            self._tell_settings(packets=False)
            peers.tell(self.map_fd("tl_peers"), ())
        pins.withdraw(self._bpffs, group)

    @property
    def _directory(self) -> Path:
        """Where links are pinned."""
        return self.objects.pins / "links"

    def _attach_all(self, loaded: libbpf.Object, *, skip: Sequence[str]) -> None:
        directory = self._directory
        directory.mkdir(mode=0o700, exist_ok=True)
        for program in loaded.programs():
            if program.name in skip:
                continue
            if program.section in _CGROUP_TYPES:
                for root in self._roots:
                    self._attach_cgroup(
                        program, root, directory / pins.of_cgroup(program.name, root)
                    )
                self._drop_links(program.name, keep=self._roots)
            else:
                pin = directory / program.name
                link = program.attach()
                # both run for a moment: seeing an event twice does no harm, missing one would
                pin.unlink(missing_ok=True)
                link.pin(pin)
                self._links.append(link)
                where = program.section.partition("/")[2]
                self._note(program, where, program.fd, pin=program.name)

    def _attach_cgroup(self, program: libbpf.Program, root: str, pin: Path) -> None:
        link: libbpf.Link | None = None
        if pin.exists():
            try:
                link = libbpf.Link.open(pin)
                link.update(program.fd)
            except OSError as error:
                # the cgroup was removed and made again, or another kind of link stands there
                log.info("%s is attached anew: %s", program.name, error)
                if link is not None:
                    link.destroy()
                link = None
                pin.unlink(missing_ok=True)
        cgroup = os.open(self._cgroup2 / root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._inodes[root] = os.fstat(cgroup).st_ino
            if link is None:
                link = program.attach_cgroup(cgroup)
                link.name = pin.name
                link.pin(pin)
        finally:
            os.close(cgroup)
        self._links.append(link)
        self._note(program, f"/{root}", program.fd, pin=pin.name)

    def _drop_links(self, name: str, *, keep: Sequence[str]) -> None:
        wanted = {pins.of_cgroup(name, root) for root in keep}
        for pin in self._directory.glob(f"{name}@*"):
            if pin.name not in wanted:
                pin.unlink()

    def _remove_other_pins(self) -> None:
        for other in self._bpffs.glob("abi*"):
            if other != self.objects.pins:
                pins.remove_tree(other)

    def _note(
        self, program: libbpf.Program, where: str, fd: int, *, pin: str | None = None
    ) -> None:
        kind = program.section.partition("/")[0]
        self.attached.append(Attached(program.name, kind, where, libbpf.object_id(fd), pin))

    # -- while it runs -----------------------------------------------------------------------------

    def map_fd(self, name: str) -> int:
        observe = self.objects.get("observe")
        if observe is None:
            raise KeyError(name)
        return observe.map_fd(name)

    def reattach(self, roots: Sequence[str]) -> list[str]:
        """Attaches to cgroups that have come since, or were removed and made again; names them."""
        fresh = [r for r in roots if self._inode(r) not in (0, self._inodes.get(r))]
        for root in fresh:
            for loaded in self.objects:
                for program in loaded.programs():
                    if program.section not in _CGROUP_TYPES:
                        continue
                    pin = self._directory / pins.of_cgroup(program.name, root)
                    # what was attached to the cgroup of this name went with it
                    self._links = _destroy(self._links, pin.name)
                    self.attached = [
                        a for a in self.attached if (a.name, a.where) != (program.name, f"/{root}")
                    ]
                    self._attach_cgroup(program, root, pin)
            if root not in self._roots:
                self._roots.append(root)
        return fresh

    def _inode(self, root: str) -> int:
        """0: there is no such cgroup now."""
        try:
            return os.stat(self._cgroup2 / root).st_ino  # noqa: PTH116
        except OSError:
            return 0

    def missing(self) -> list[str]:
        """Names of links that somebody detached, or whose pin has gone.

        One that went together with its cgroup is not missing: there is nothing to trace.
        """
        gone = [
            link.name
            for link in self._links
            if "@" in link.name and not libbpf.link_cgroup(link.fd) and self._is_there(link.name)
        ]
        return sorted({*self._without_pin(), *gone})

    def _is_there(self, link_name: str) -> bool:
        return any(
            link_name.endswith(pins.of_cgroup("", root)) and self._inode(root)
            for root in self._roots
        )

    def _without_pin(self) -> list[str]:
        expected = {a.pin for a in self.attached if a.pin}
        try:
            present = {pin.name for pin in self._directory.iterdir()}
        except OSError:
            return sorted(expected)
        return sorted(expected - present)

    # -- detaching ---------------------------------------------------------------------------------

    def release_sockets(self) -> None:
        """Takes sockets out of the sockhash whose process calls FIONREAD: decision 0002."""
        headers = self.objects.get("headers")
        if headers is None:
            return
        link = headers.program("tl_release").attach_map_iterator(headers.map_fd("tl_socks"))
        try:
            libbpf.run_iterator(link)
        finally:
            link.destroy()

    def give_up(self) -> None:
        """Removes what this run has pinned. What it found, of whatever ABI, serves on."""
        self.close()
        if not self.adopting:
            pins.withdraw(self._bpffs, "packets")
            for directory in self._bpffs.glob(f"{pins.NAME}*"):
                pins.remove_tree(directory)

    def detach(self) -> None:
        """Detaches everything and removes the pins; connections go on as if nothing had been."""
        self.close()
        pins.detach_all(self._bpffs)


def _destroy(links: list[libbpf.Link], name: str) -> list[libbpf.Link]:
    for link in links:
        if link.name == name or link.name.startswith(f"{name}@"):
            link.destroy()
    return [link for link in links if link.name != name and not link.name.startswith(f"{name}@")]
