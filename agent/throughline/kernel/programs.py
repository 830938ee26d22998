"""The feature groups as loaded objects: load, attach, pin, adopt after a crash, detach.

Everything that must outlive the agent is pinned below `<bpffs>/abi<N>`: the maps by libbpf (by
name), the links here. An agent that starts finds pinned links and replaces their programs in
place, so that no packet passes unobserved; one of another ABI is removed once the new is attached.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.kernel import abi, fionread, libbpf

log = logging.getLogger(__name__)

_CGROUP_TYPES = {"cgroup_skb/ingress", "cgroup_skb/egress", "sockops"}
_DRAIN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the programs are told; see struct tl_config in bpf/abi.h."""

    sampler: abi.Sampler
    ratio: float
    parent_based: bool
    trace_unlisted: bool

    def pack(self, *, fionread_broken: bool) -> bytes:
        bound = round(self.ratio * 2**64)
        config = abi.Config(
            ratio_bound=min(bound, 2**64 - 1),
            sampler=self.sampler,
            parent_based=self.parent_based,
            trace_unlisted=self.trace_unlisted,
            fionread_broken=fionread_broken,
            abi_version=abi.Abi.ABI_VERSION,
        )
        return abi.CONFIG.pack(*config)


@dataclass(frozen=True, slots=True)
class Attached:
    """One attached program, for status and doctor."""

    name: str
    type: str
    where: str
    id: int

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "where": self.where, "id": self.id}


def objects_directory() -> Path:
    """Where the compiled objects are: the bundle's, else those of the checkout."""
    named = os.environ.get("THROUGHLINE_BPF_OBJECTS")
    return Path(named) if named else Path(__file__).parents[3] / "build" / "bpf"


class Programs:
    """What this agent has loaded and attached. `attach_*` raise OSError with the kernel's reason."""

    def __init__(
        self, *, bpffs: Path, cgroup2: Path, roots: Sequence[str], settings: Settings
    ) -> None:
        self._bpffs = bpffs
        self._pins = bpffs / f"abi{abi.Abi.ABI_VERSION}"
        self._cgroup2 = cgroup2
        self._roots = list(roots)
        self._settings = settings
        self._stack = ExitStack()
        self._objects: dict[str, libbpf.Object] = {}
        self._links: list[libbpf.Link] = []
        self.attached: list[Attached] = []
        self.fionread_broken = False

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees what this process holds. Pinned programs go on."""
        for link in self._links:
            link.destroy()
        self._links.clear()
        self._stack.close()
        self._objects.clear()

    # -- attaching -------------------------------------------------------------------------------

    def attach_observe(self) -> None:
        """Group `observe`: packets of the cgroups, reads of threads, ends of ticks."""
        self._pins.mkdir(mode=0o700, parents=True, exist_ok=True)
        loaded = self._load("observe")
        self._attach_all(loaded, skip=())
        self._remove_other_abis()

    def attach_headers(self) -> None:
        """Group `headers`: insertion into plaintext requests. After `attach_observe`."""
        probe = self._open("headers")
        with ExitStack() as stack:
            stack.callback(probe.close)
            for program in probe.programs():
                program.set_autoload(program.name == "tl_send")
            probe.load()
            self.fionread_broken = fionread.is_broken(probe.program("tl_send").fd)
        loaded = self._load("headers")
        sockets = loaded.map_fd("tl_socks")
        kinds = {"tl_send": libbpf.SK_MSG_VERDICT}
        if self.fionread_broken:
            kinds["tl_verdict"] = libbpf.SK_SKB_STREAM_VERDICT
        for name, kind in kinds.items():
            program = loaded.program(name)
            libbpf.attach_map(program.fd, sockets, kind)
            self._note(program, "tl_socks", program.fd)
        self._attach_all(loaded, skip=("tl_send", "tl_verdict", "tl_drain"))

    def _open(self, name: str) -> libbpf.Object:
        opened = libbpf.Object(objects_directory() / f"{name}.bpf.o", pin_root=self._pins)
        found = abi.Config(*abi.CONFIG.unpack(opened.rodata(".rodata.config")))
        if found.abi_version != abi.Abi.ABI_VERSION:
            opened.close()
            raise OSError(
                errno.ENOEXEC,
                f"{name}.bpf.o has ABI {found.abi_version}, this agent {abi.Abi.ABI_VERSION}",
            )
        packed = self._settings.pack(fionread_broken=self.fionread_broken)
        opened.set_rodata(".rodata.config", packed)
        return opened

    def _load(self, name: str) -> libbpf.Object:
        opened = self._stack.enter_context(_closing(self._open(name)))
        opened.load()
        self._objects[name] = opened
        return opened

    def _attach_all(self, loaded: libbpf.Object, *, skip: Sequence[str]) -> None:
        directory = self._pins / "links"
        directory.mkdir(mode=0o700, exist_ok=True)
        for program in loaded.programs():
            if program.name in skip:
                continue
            if program.section in _CGROUP_TYPES:
                for root in self._roots:
                    pin = directory / f"{program.name}@{_pin_name(root)}"
                    self._attach_cgroup(program, root, pin)
                self._drop_links(program.name, keep=self._roots)
            else:
                pin = directory / program.name
                link = program.attach()
                # both run for a moment: seeing an event twice does no harm, missing one would
                pin.unlink(missing_ok=True)
                link.pin(pin)
                self._links.append(link)
                self._note(program, program.section.partition("/")[2], program.fd)

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
        if link is None:
            cgroup = os.open(self._cgroup2 / root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                link = program.attach_cgroup(cgroup)
            finally:
                os.close(cgroup)
            link.pin(pin)
        self._links.append(link)
        self._note(program, f"/{root}", program.fd)

    def _drop_links(self, name: str, *, keep: Sequence[str]) -> None:
        wanted = {f"{name}@{_pin_name(root)}" for root in keep}
        for pin in (self._pins / "links").glob(f"{name}@*"):
            if pin.name not in wanted:
                pin.unlink()

    def _remove_other_abis(self) -> None:
        for other in self._bpffs.glob("abi*"):
            if other != self._pins:
                _remove_tree(other)

    def _note(self, program: libbpf.Program, where: str, fd: int) -> None:
        kind = program.section.partition("/")[0]
        self.attached.append(Attached(program.name, kind, where, libbpf.object_id(fd)))

    # -- while it runs -----------------------------------------------------------------------------

    def map_fd(self, name: str) -> int:
        return self._objects["observe"].map_fd(name)

    def missing(self) -> list[str]:
        """Names of links whose pin has gone: somebody detached us."""
        directory = self._pins / "links"
        expected = {
            f"{a.name}@{_pin_name(a.where[1:])}" if a.where.startswith("/") else a.name
            for a in self.attached
            if a.where != "tl_socks"
        }
        try:
            present = set(os.listdir(directory))
        except OSError:
            return sorted(expected)
        return sorted(expected - present)

    # -- detaching ---------------------------------------------------------------------------------

    def detach(self) -> None:
        """Detaches everything and removes the pins; no connection loses a byte by it."""
        _unpin(self._pins / "links", "tl_sockops")
        self._links = _destroy(self._links, "tl_sockops")
        if "headers" in self._objects:
            self._drain(self._objects["headers"])
        self.close()
        detach_all(self._bpffs)

    def _drain(self, loaded: libbpf.Object) -> None:
        """Takes sockets out of the sockhash when the application has read all that came.

        Needed where the verdict program queues what arrives: see decision 0002.
        """
        if not self.fionread_broken:
            return
        sockets = loaded.map_fd("tl_socks")
        try:
            link = loaded.program("tl_drain").attach_map_iterator(sockets)
        except OSError as error:
            log.warning("sockets cannot be drained: %s", error)
            return
        try:
            deadline = time.monotonic() + _DRAIN_SECONDS
            while next(libbpf.keys(sockets, 8), None) is not None:
                libbpf.run_iterator(link)
                if time.monotonic() > deadline:
                    left = sum(1 for _ in libbpf.keys(sockets, 8))
                    if left:
                        log.warning("%d connections had unread data when we detached", left)
                    return
                time.sleep(0.01)
        finally:
            link.destroy()


def detach_all(bpffs: Path) -> None:
    """Removes every pin of ours below `bpffs`, which detaches what nobody holds open."""
    for directory in bpffs.glob("abi*"):
        _remove_tree(directory)


def drain_pinned(bpffs: Path, cgroup2: Path) -> None:
    """After a crash: takes the sockets out before the pins are removed."""
    programs = Programs(
        bpffs=bpffs,
        cgroup2=cgroup2,
        roots=(),
        settings=Settings(abi.Sampler.ALWAYS_OFF, 0.0, False, False),
    )
    if not (bpffs / f"abi{abi.Abi.ABI_VERSION}" / "tl_socks").exists():
        return
    with programs:
        _unpin(programs._pins / "links", "tl_sockops")
        opened = programs._open("headers")
        programs._stack.enter_context(_closing(opened))
        for program in opened.programs():
            program.set_autoload(program.name == "tl_drain")
        opened.load()
        programs.fionread_broken = True
        programs._drain(opened)


def _unpin(directory: Path, name: str) -> None:
    for pin in directory.glob(f"{name}*"):
        pin.unlink(missing_ok=True)


def _destroy(links: list[libbpf.Link], name: str) -> list[libbpf.Link]:
    for link in links:
        if link.name == name or link.name.startswith(f"{name}@"):
            link.destroy()
    return [link for link in links if link.name != name and not link.name.startswith(f"{name}@")]


def _remove_tree(directory: Path) -> None:
    """bpffs: files are objects, directories may hold nothing but them."""
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if entry.is_dir():
            _remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    if directory.is_dir():
        directory.rmdir()


def _pin_name(root: str) -> str:
    """A cgroup path as a file name: bpffs refuses dots, so they and slashes are escaped."""
    return "".join(c if c.isalnum() or c in "-_" else f"+{ord(c):x}" for c in root) or "root"


class _closing:  # noqa: N801 - a context manager like contextlib.closing, typed
    def __init__(self, opened: libbpf.Object) -> None:
        self._opened = opened

    def __enter__(self) -> libbpf.Object:
        return self._opened

    def __exit__(self, *_: object) -> None:
        self._opened.close()
