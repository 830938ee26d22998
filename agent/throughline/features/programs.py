"""The feature groups as programs of this kernel: attach, pin, adopt after a crash, detach.

Everything that must outlive the agent is pinned below `<bpffs>/abi<N>`: the maps by libbpf (by
name), the links here. An agent that starts finds pinned links and replaces their programs in
place, so that no packet passes unobserved; one of another ABI is removed once the new is attached.
The groups `tls`, `go` and `go_write` are not pinned: which files to probe is known to the process.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from throughline.bpf import fionread, libbpf, maps, peers, sweep, tc
from throughline.bpf.settings import Settings
from throughline.features import objects, pins
from throughline.features import table as features
from throughline.features.objects import Objects
from throughline.features.table import Attached
from throughline.probes import uprobes
from throughline.services import cgroups

__all__ = ["Attached", "Programs", "Settings"]

log = logging.getLogger(__name__)

_CGROUP_TYPES = {"cgroup_skb/ingress", "cgroup_skb/egress", "sockops"}


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
        self._attach_all(loaded)
        if self.is_off("tl_tick"):
            self._tell_settings(ticks=False)
        self._attach_restore()
        self._remove_other_pins()

    def _attach_restore(self) -> None:
        """An object of its own, since Linux before 6.3 does not have the tracepoint."""
        try:
            if not self.objects.has("restore"):
                raise OSError(errno.ENOENT, "the programs for kernels before 5.15 do not have it")
            self._attach_all(self.objects.load("restore"))
        except OSError as error:
            self._leave_out("tl_sent", error)

    def attach_headers(self) -> None:
        """Group `headers`: insertion into plaintext requests. After `attach_observe`."""
        if self.objects.fionread_broken and self.is_off("tl_tick"):
            raise OSError(
                errno.EOPNOTSUPP,
                "FIONREAD of a socket in a sockhash says 0 on this kernel, and tl_tick is off, "
                "which finds the processes that call it",
            )
        loaded = self.objects.load("headers")
        program = loaded.program("tl_send")
        libbpf.attach_map(program.fd, loaded.map_fd("tl_socks"), libbpf.SK_MSG_VERDICT)
        self._note(program, "tl_socks", program.fd)
        self._attach_all(loaded)

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
        self._attach_all(loaded)
        if self.is_off(pins.TC_PROGRAM):
            if self.is_off("tl_packets_ops"):
                raise self.objects.refused["tl_packets_ops"]
            return
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

    # -- what is refused ---------------------------------------------------------------------------

    def is_off(self, program: str) -> bool:
        """Does the kernel refuse this optional program?"""
        return program in self.objects.refused

    def left_out(self, group: str) -> tuple[features.LeftOut, ...]:
        """The programs of a group that the kernel refuses, and that the group does without."""
        refused = self.objects.refused
        return tuple(
            features.LeftOut(p.name, p.gives, refused[p.name].strerror or str(refused[p.name]))
            for p in features.programs_of(group)
            if p.name in refused
        )

    def _leave_out(self, program: str, error: OSError) -> None:
        """Goes on without an optional program; one of an earlier run goes, too."""
        self.objects.refused[program] = error
        self._links = _destroy(self._links, program)
        self.attached = [a for a in self.attached if a.name != program]
        pins.withdraw_links(self._bpffs, program)

    # -- housekeeping ------------------------------------------------------------------------------

    def sweep(self, *, earlier: bool = False) -> int:
        """Ends requests whose end nobody has seen and that are too old to be a parent; counts them.

        With `earlier` those whose end only probes of an earlier run could have seen, however old:
        before the first probe of this one.
        """
        observe = self.objects.get("observe")
        if observe is None:
            return 0
        program = None if self.is_off("tl_end_requests") else observe.program("tl_end_requests").fd
        return sweep.requests(
            observe.map_fd("tl_requests"),
            sweep.Others(observe.map_fd("tl_tracestates"), observe.map_fd("tl_open")),
            program,
            only_probed=earlier,
            older_than=0.0 if earlier else sweep.TOO_OLD_SECONDS,
        )

    def attach_tls(self, kind: uprobes.Kind) -> libbpf.Object:
        """Group `tls`, apart from its uprobes: whoever finds files to probe attaches them.

        After `attach_observe`.
        """
        loaded = self.objects.load("tls", prepare=lambda opened: uprobes.prepare(opened, kind))
        self._attach_all(loaded, pin=False)
        return loaded

    def attach_go(self, kind: uprobes.Kind) -> libbpf.Object:
        """Group `go`, which is uprobes only. After `attach_observe`."""
        return self.objects.load("go", prepare=lambda opened: uprobes.prepare(opened, kind))

    def attach_go_write(self, kind: uprobes.Kind) -> libbpf.Object:
        """Group `go_write`, which is uprobes only. After `attach_go`, whose maps it shares."""
        return self.objects.load("go_write", prepare=lambda opened: uprobes.prepare(opened, kind))

    def _tell_settings(self, *, packets: bool | None = None, ticks: bool | None = None) -> None:
        if packets is not None:
            self._settings = replace(self._settings, packets=packets)
        if ticks is not None:
            self._settings = replace(self._settings, ticks=ticks)
        maps.update(self.map_fd("tl_settings"), bytes(4), self._settings.pack())

    def withdraw(self, group: str) -> None:
        """Takes away what this run or an earlier one has of a group that is off."""
        loaded = self.objects.get(group)
        if loaded is not None:
            for program in features.programs_of(group):
                self._links = _destroy(self._links, program.name)
                self.attached = [a for a in self.attached if a.name != program.name]
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

    def _attach_all(self, loaded: libbpf.Object, *, pin: bool = True) -> None:
        """Attaches what the table says is attached here, without optional ones that are refused."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        legacy = self.objects.variant != ""
        for program in loaded.programs():
            entry = features.PROGRAMS[program.name]
            if not entry.attached:
                continue
            try:
                self._attach(program, pin=pin)
            except OSError as error:
                if features.is_required(program.name, legacy=legacy):
                    raise
                self._leave_out(program.name, error)
        for name in self.objects.refused:
            pins.withdraw_links(self._bpffs, name)

    def _attach(self, program: libbpf.Program, *, pin: bool) -> None:
        if objects.refuses(f"attach:{program.name}"):
            raise OSError(errno.EPERM, f"attach {program.name}: {os.strerror(errno.EPERM)}")
        if program.section in _CGROUP_TYPES:
            for root in self._roots:
                try:
                    self._attach_cgroup(
                        program, root, self._directory / pins.of_cgroup(program.name, root)
                    )
                except cgroups.ClosedError as error:  # `reattach` tries again
                    log.warning("not attached: %s", error.strerror)
            self._drop_links(program.name, keep=self._roots)
            return
        link = program.attach()
        self._links.append(link)
        where = program.section.partition("/")[2]
        if pin:
            path = self._directory / program.name
            # both run for a moment: seeing an event twice does no harm, missing one would
            path.unlink(missing_ok=True)
            link.pin(path)
        self._note(program, where, program.fd, pin=program.name if pin else None)

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
        self._inodes.pop(root, None)
        with cgroups.opened(self._cgroup2, root) as directory:
            if link is None:
                link = program.attach_cgroup(directory)
                link.name = pin.name
                link.pin(pin)
            self._inodes[root] = os.fstat(directory).st_ino
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

    def reattach(self, roots: Sequence[str]) -> tuple[list[str], list[OSError]]:
        """Attaches to cgroups that have come since, or were removed and made again.

        Returns their names, and why others could not be attached to: these do not hold it up.
        """
        fresh, failures = [], []
        for root in roots:
            if cgroups.inode(self._cgroup2, root) in (0, self._inodes.get(root)):
                continue
            try:
                self._reattach(root)
            except OSError as error:  # it vanished again, or is closed, or the kernel refuses
                failures.append(error)
            else:
                fresh.append(root)
        return fresh, failures

    def _reattach(self, root: str) -> None:
        for loaded in self.objects:
            for program in loaded.programs():
                if program.section not in _CGROUP_TYPES or self.is_off(program.name):
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
            link_name.endswith(pins.of_cgroup("", root)) and cgroups.inode(self._cgroup2, root)
            for root in self._roots
        )

    def _without_pin(self) -> list[str]:
        expected = {a.pin for a in self.attached if a.pin}
        try:
            present = {pin.name for pin in self._directory.iterdir()}
        except OSError:
            return sorted(expected)
        return sorted(expected - present)

    def release_sockets(self) -> int:
        """Takes sockets of processes that call FIONREAD out of the sockhash: decision 2."""
        headers = self.objects.get("headers")
        if headers is None:
            return 0
        return sweep.members(
            headers.map_fd("tl_members"), headers.map_fd("tl_socks"), headers.map_fd("tl_fionread")
        )

    # -- detaching ---------------------------------------------------------------------------------

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
