"""The feature groups as loaded objects: load, attach, pin, adopt after a crash, detach.

Everything that must outlive the agent is pinned below `<bpffs>/abi<N>`: the maps by libbpf (by
name), the links here. An agent that starts finds pinned links and replaces their programs in
place, so that no packet passes unobserved; one of another ABI is removed once the new is attached.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.kernel import abi, fionread, libbpf

log = logging.getLogger(__name__)

_CGROUP_TYPES = {"cgroup_skb/ingress", "cgroup_skb/egress", "sockops"}

# Objects made of one source, in the order in which they are tried; the second is for kernels before
# 5.15 (bpf/compat.bpf.h).
VARIANTS = ("", "-legacy")
_PINS = f"abi{abi.Abi.ABI_VERSION}"
_NOT_BY_VERIFIER = {
    None,  # the dynamic linker
    errno.EPERM,
    errno.ENOENT,
    errno.ENOEXEC,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EROFS,
}


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

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "where": self.where, "id": self.id}


def objects_directory() -> Path:
    """Where the compiled objects are: the bundle's, else those of the checkout."""
    named = os.environ.get("THROUGHLINE_BPF_OBJECTS")
    return Path(named) if named else Path(__file__).parents[3] / "build" / "bpf"


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
        self._map_sizes = dict(map_sizes or {})
        self._inodes: dict[str, int] = {}  # what the roots were when we attached to them
        self._bpffs = bpffs
        self.variant = ""  # one of VARIANTS
        self.adopting = any(bpffs.glob(f"{_PINS}*"))  # pins of an earlier run
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
        """Group `observe`: packets of the cgroups, reads of threads, ends of ticks.

        Its first variant that this kernel accepts decides that of the other groups.
        """
        self.fionread_broken = fionread.is_broken()
        loaded = self._load_variant("observe")
        settings = loaded.map_fd("tl_settings")
        libbpf.update(settings, bytes(4), self._settings.pack())
        self._attach_all(loaded, skip=())
        # before Linux 6.3: answers of databases do not tell whose request goes on
        if self._object("restore").exists():
            try:
                self._attach_all(self._load("restore"), skip=())
            except OSError as error:
                log.info("without the tracepoint sock_send_length: %s", error)
        self._remove_other_pins()

    def attach_headers(self) -> None:
        """Group `headers`: insertion into plaintext requests. After `attach_observe`."""
        loaded = self._load("headers")
        program = loaded.program("tl_send")
        libbpf.attach_map(program.fd, loaded.map_fd("tl_socks"), libbpf.SK_MSG_VERDICT)
        self._note(program, "tl_socks", program.fd)
        self._attach_all(loaded, skip=("tl_send", "tl_release"))

    @property
    def _pins(self) -> Path:
        return self._bpffs / f"{_PINS}{self.variant}"

    def _load_variant(self, name: str) -> libbpf.Object:
        """Raises what the first variant raised when none can be loaded."""
        refusals: list[OSError] = []
        for self.variant in VARIANTS:
            if refusals and not self._object(name).exists():
                break
            served = (self._pins / "links").is_dir()
            self._pins.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return self._load(name)
            except OSError as error:
                refusals.append(error)
                if served:
                    break  # its programs were accepted: what is in the way is not the verifier
                _remove_tree(self._pins)
                if not _by_verifier(error):
                    break
        self.variant = VARIANTS[0]
        raise refusals[0]

    def _object(self, name: str) -> Path:
        return objects_directory() / f"{name}{self.variant}.bpf.o"

    def _open(self, name: str) -> libbpf.Object:
        opened = libbpf.Object(self._object(name), pin_root=self._pins)
        found = abi.Config(*abi.CONFIG.unpack(opened.rodata(".rodata.config")))
        if found.abi_version != abi.Abi.ABI_VERSION:
            opened.close()
            raise OSError(
                errno.ENOEXEC,
                f"{name}.bpf.o has ABI {found.abi_version}, this agent {abi.Abi.ABI_VERSION}",
            )
        config = found._replace(fionread_broken=self.fionread_broken)
        opened.set_rodata(".rodata.config", abi.CONFIG.pack(*config))
        for map_name, entries in self._map_sizes.items():
            opened.set_max_entries(map_name, entries)
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
        self._note(program, f"/{root}", program.fd)

    def _drop_links(self, name: str, *, keep: Sequence[str]) -> None:
        wanted = {f"{name}@{_pin_name(root)}" for root in keep}
        for pin in (self._pins / "links").glob(f"{name}@*"):
            if pin.name not in wanted:
                pin.unlink()

    def _remove_other_pins(self) -> None:
        for other in self._bpffs.glob("abi*"):
            if other != self._pins:
                _remove_tree(other)

    def _note(self, program: libbpf.Program, where: str, fd: int) -> None:
        kind = program.section.partition("/")[0]
        self.attached.append(Attached(program.name, kind, where, libbpf.object_id(fd)))

    # -- while it runs -----------------------------------------------------------------------------

    def map_fd(self, name: str) -> int:
        return self._objects["observe"].map_fd(name)

    def reattach(self, roots: Sequence[str]) -> list[str]:
        """Attaches to cgroups that have come since, or were removed and made again; names them."""
        fresh = [r for r in roots if self._inode(r) not in (0, self._inodes.get(r))]
        for root in fresh:
            for loaded in self._objects.values():
                for program in loaded.programs():
                    if program.section not in _CGROUP_TYPES:
                        continue
                    pin = self._pins / "links" / f"{program.name}@{_pin_name(root)}"
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
            link_name.endswith(f"@{_pin_name(root)}") and self._inode(root) for root in self._roots
        )

    def _without_pin(self) -> list[str]:
        directory = self._pins / "links"
        expected = {
            f"{a.name}@{_pin_name(a.where[1:])}" if a.where.startswith("/") else a.name
            for a in self.attached
            if a.where != "tl_socks"
        }
        try:
            present = {pin.name for pin in directory.iterdir()}
        except OSError:
            return sorted(expected)
        return sorted(expected - present)

    # -- detaching ---------------------------------------------------------------------------------

    def release_sockets(self) -> None:
        """Takes sockets out of the sockhash whose process calls FIONREAD: decision 0002."""
        headers = self._objects.get("headers")
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
            for pins in self._bpffs.glob(f"{_PINS}*"):
                _remove_tree(pins)

    def detach(self) -> None:
        """Detaches everything and removes the pins; connections go on as if nothing had been."""
        self.close()
        detach_all(self._bpffs)


def detach_all(bpffs: Path) -> None:
    """Removes every pin of ours below `bpffs`, which detaches what nobody holds open."""
    for directory in [*bpffs.glob("abi*"), *bpffs.glob("doctor*")]:
        _remove_tree(directory)


def withdraw_headers(bpffs: Path) -> None:
    """Takes away the group `headers` that an earlier run left, when it is not wanted any more."""
    for pins in bpffs.glob(f"{_PINS}*"):
        _unpin(pins / "links", "tl_sockops")
        (pins / "tl_socks").unlink(missing_ok=True)


def _by_verifier(error: OSError) -> bool:
    """May another variant be accepted where this one was not? libbpf's own errors begin at 4000."""
    return error.errno not in _NOT_BY_VERIFIER and (error.errno or 0) < 4000


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
