"""The programs of this run: loaded, attached, pinned, and adopted after a crash.

Everything that must outlive the agent is pinned below `<bpffs>/abi<N>`: the maps by libbpf (by
name), the links by `Attachments`. Pins of another ABI are removed once the programs of this one are
attached. Groups with uprobes are not pinned: only the process knows which files it probes.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from throughline.bpf import abi, fionread, libbpf, maps, peers, runtimes, sweep, tc, traced
from throughline.bpf.settings import Settings
from throughline.features import pins, table
from throughline.features.attachments import Attached, Attachments, Reattached
from throughline.features.objects import Objects
from throughline.features.state import LeftOut
from throughline.features.table import BASE, GROUPS, Group, Place
from throughline.probes import uprobes

log = logging.getLogger(__name__)

__all__ = ["Attached", "Programs", "Settings"]

_TAKING_OVER_NS = 10_000_000_000  # after the start: attaching takes a second or two


class Programs:
    """What this agent has loaded and attached. `attach_*` and `load_*` raise the kernel's error."""

    def __init__(
        self,
        *,
        bpffs: Path,
        cgroup2: Path,
        roots: Sequence[str],
        settings: Settings,
        map_sizes: Mapping[str, int] | None = None,  # other than the objects' own
        recall: Callable[[libbpf.Object], None] | None = None,  # fills maps of `observe`
    ) -> None:
        self._bpffs = bpffs
        self._recall = recall
        self._settings = settings
        self.adopting = any(bpffs.glob(f"{pins.NAME}*"))  # there are pins of an earlier run
        self.objects = Objects(bpffs=bpffs, map_sizes=map_sizes or {})
        self._attachments = Attachments(self.objects, cgroup2=cgroup2, roots=roots)
        self.interfaces: tc.Interfaces | None = None  # of the group `packets`

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees what this process holds. Pinned programs go on."""
        self._attachments.close()
        if self.interfaces is not None:
            self.interfaces.close()
            self.interfaces = None
        self.objects.close()

    @property
    def attached(self) -> tuple[Attached, ...]:
        """The programs that are attached now; those of uprobes are not among them."""
        return tuple(self._attachments)

    # -- attaching -------------------------------------------------------------------------------

    def attach_observe(self) -> None:
        """Group `observe`: packets of the cgroups, reads of threads, ends of ticks.

        The first variant of its objects that this kernel accepts is the one of all other groups.
        """
        self.objects.fionread_broken = fionread.is_broken()
        loaded = self.objects.load_first(BASE)
        if self.adopting:
            complete = time.monotonic_ns() + _TAKING_OVER_NS
            self._settings = replace(self._settings, complete_ns=complete)
        self._tell_settings()
        if self._recall is not None:
            self._recall(loaded)
        self._attach_all(loaded)
        if self.is_off("tl_tick"):
            self._tell_settings(ticks=False)
        for name in ("restore", "unix"):
            self._attach_optional(name)
        self._tell_settings(sends=not (self.is_off("tl_sent") or self.is_off("tl_sent_6")))
        self._tell_roots()
        self._remove_other_pins()

    def _attach_optional(self, name: str) -> None:
        """An object of its own, which some kernels refuse: decision 31."""
        try:
            if not self.objects.has(name):
                raise OSError(errno.ENOENT, "the programs for kernels before 5.15 do not have it")
            self._attach_all(self.objects.load(name))
        except OSError as error:
            for program in GROUPS[BASE].programs:
                if program.object == name and not program.fexit_only:
                    self._leave_out(program.name, error)

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
        self._attachments.note(program, "tl_socks")
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
        if self.is_off("tl_packets_out"):
            if self.is_off("tl_packets_ops"):
                raise self.objects.refused["tl_packets_ops"]
            return
        program = loaded.program("tl_packets_out")
        self.interfaces = tc.Interfaces(
            program.fd,
            name=program.name,
            bpffs=self._bpffs,
            pins=self._attachments.directory,
            priority=priority,
        )
        self.interfaces.follow(only=only_interface)
        self._attachments.note(program, "egress of interfaces")

    def load_probing(self, group: Group, kind: uprobes.Kind) -> libbpf.Object:
        """A group with uprobes: loads it, and attaches those of its programs that are no uprobes.

        After the group that it needs, whose maps it shares.
        """
        (name,) = group.objects
        loaded = self.objects.load(name, prepare=lambda opened: uprobes.prepare(opened, kind))
        self._attach_all(loaded, pin=False)
        return loaded

    def _attach_all(self, loaded: libbpf.Object, *, pin: bool = True) -> None:
        """Attaches the programs whose place is their section, without optional refused ones."""
        legacy = self.objects.variant != ""
        for program in loaded.programs():
            if table.PROGRAMS[program.name].place is not Place.SECTION:
                continue
            try:
                self._attachments.attach(program, pin=pin)
            except OSError as error:
                if table.is_required(program.name, legacy=legacy):
                    raise
                self._leave_out(program.name, error)
        for name in self.objects.refused:
            pins.withdraw_links(self._bpffs, name)

    def _tell_settings(
        self,
        *,
        packets: bool | None = None,
        ticks: bool | None = None,
        node: bool | None = None,
        sends: bool | None = None,
    ) -> None:
        if sends is not None:
            self._settings = replace(self._settings, sends=sends)
        if node is not None:
            self._settings = replace(self._settings, node=node)
        if packets is not None:
            self._settings = replace(self._settings, packets=packets)
        if ticks is not None:
            self._settings = replace(self._settings, ticks=ticks)
        maps.update(self.map_fd("tl_settings"), bytes(4), self._settings.pack())

    def _tell_roots(self) -> None:
        """Says below which cgroups Unix sockets are followed: their tracepoints see the host."""
        unix = self.objects.get("unix")
        if unix is None:
            return
        wanted = dict.fromkeys(self._attachments.cgroups, abi.CgroupFlags.CGROUP_TRACED)
        full = traced.TracedCgroups(unix.map_fd("tl_roots")).tell(wanted)
        if full:
            log.warning("tl_roots is full: Unix sockets of %d cgroups are not followed", full)

    def _remove_other_pins(self) -> None:
        for other in self._bpffs.glob("abi*"):
            if other != self.objects.pins:
                pins.remove_tree(other)

    # -- what is refused ---------------------------------------------------------------------------

    def is_off(self, program: str) -> bool:
        """Returns whether the kernel refuses this optional program."""
        return program in self.objects.refused

    def left_out(self, group: str) -> tuple[LeftOut, ...]:
        """The programs of a group that the kernel refuses, and that the group does without."""
        refused = self.objects.refused
        return tuple(
            LeftOut(p.name, p.gives, refused[p.name].strerror or str(refused[p.name]))
            for p in GROUPS[group].programs
            if p.name in refused
        )

    def _leave_out(self, program: str, error: OSError) -> None:
        """Goes on without an optional program, and takes away the one of an earlier run."""
        self.objects.refused[program] = error
        self._attachments.drop(program)
        pins.withdraw_links(self._bpffs, program)

    def withdraw(self, group: str) -> None:
        """Takes away what this run or an earlier one has of a group that is off."""
        for program in GROUPS[group].programs:
            self._attachments.drop(program.name)
        for name in GROUPS[group].objects:
            self.objects.drop(name)
        if group == "packets":
            if self.interfaces is not None:
                self.interfaces.close()
                self.interfaces = None
            # `observe` reads what peers send: it stops, and nobody is a peer
            self._tell_settings(packets=False)
            peers.tell(self.map_fd("tl_peers"), ())
        if group == "node":
            self._tell_settings(node=False)
        if group in runtimes.KINDS:
            for kind in runtimes.KINDS[group]:
                runtimes.Runtimes(self.map_fd("tl_runtimes")).clear(kind)
        pins.withdraw(self._bpffs, group)

    # -- while it runs -----------------------------------------------------------------------------

    def base(self) -> libbpf.Object:
        """The object of the group `observe`, while it is loaded. Raises KeyError."""
        observe = self.objects.get(BASE)
        if observe is None:
            raise KeyError(BASE)
        return observe

    def map_fd(self, name: str) -> int:
        """A map of the group `observe`. Raises KeyError."""
        return self.base().map_fd(name)

    def reattach(self, roots: Sequence[str]) -> Reattached:
        """Attaches to cgroups that have come since, or were removed and made again."""
        programs = [
            program
            for loaded in self.objects
            for program in loaded.programs()
            if not self.is_off(program.name)
        ]
        done = self._attachments.reattach(roots, programs)
        if done.fresh:
            self._tell_roots()
        return done

    def missing(self) -> list[str]:
        """Names of links that somebody detached, or whose pin has gone."""
        return self._attachments.missing()

    def sweep(self, *, earlier: bool = False) -> int:
        """Ends requests whose end no program has seen and that are too old to be a parent.

        With `earlier` it ends those whose end only probes of an earlier run could have seen,
        however old; that is called before this run probes anything. Returns how many it ended.
        """
        observe = self.objects.get(BASE)
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
