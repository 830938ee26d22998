"""The files that traced processes execute: found by their mappings, and probed.

A file counts by what is in it, whatever its name: libssl, a program with OpenSSL inside, a program
of Go, a copy in a container (tls/openssl.py, runtimes/go/). It is reached through its process's
root and attached once, however many processes, names and mounts lead to it. New processes are
looked at in the next second, after 2, 6, 14 and 30 seconds and then every 30, since libraries may
be loaded at any time.

What must not happen is a probe in a file that has been written over: the kernel would put a
breakpoint into the middle of another instruction, and what it takes back later is a byte of the old
file. So who wants to write waits until the probes are gone (host/lease.py). Where that cannot be
had, files are only watched each second, used or not: what is executed in between is damaged. Files
that nobody maps are let go after a while.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from throughline.bpf import libbpf
from throughline.elf.elf import MalformedError
from throughline.host import lease
from throughline.host.lease import Lease
from throughline.probes import mappings, uprobes
from throughline.probes.probedfile import (
    Attached,
    Identity,
    ProbedFile,
    code_at,
    destroy,
    is_touched,
    release,
    stamp,
    version,
)
from throughline.services.cgroups import GONE
from throughline.steps import Turns, finish

log = logging.getLogger(__name__)

# of a `follow` for reading mappings and files: while spans wait, and at the start
BUDGET_SECONDS, FIRST_BUDGET_SECONDS = 0.02, 2.0
PROCESS_SECONDS = 0.5  # of it for one process, at least: many files, or few that take long
SECOND_READING, LATER_READINGS = 2.0, 30.0  # seconds: twice as long each time, up to the latter
KEEP_UNUSED_SECONDS = 600.0  # a service that starts again is probed from its first request on
RETRY_SECONDS = 30.0
_MAX_EXAMINED = 1 << 14
_EACH_TURN = 32  # processes, about 1 ms
_MAX_FILES = 64  # attached to: each takes up to 14 descriptors

_Key = tuple[bytes, str, bool]  # device, name and deleted of a mapping


class LaterError(Exception):
    """What is in a file is still being looked into: ask again."""


@dataclass(slots=True)
class _Process:
    due: float  # when its mappings are read next
    # when they were read first, see mappings
    identity: tuple[str, int] | None = None
    seen: tuple[int, int] = (0, 0)
    readings: int = 0
    # what it maps -> the file, None for one that is not probed
    mapped: dict[_Key, Identity | None] = field(default_factory=dict)


class Libraries:
    """Attaches programs to files. Nothing is pinned: they go with this process.

    `find` tells of an open file what is to be attached where: nothing, to most. It may raise what
    reading it does, MalformedError and LaterError.
    """

    def __init__(
        self,
        programs: Mapping[str, libbpf.Program],
        find: Callable[[int], tuple[uprobes.Site, ...]],
        kind: uprobes.Kind,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
        attach: Callable[..., uprobes.Link] = uprobes.attach,
        take_lease: Callable[[int], Lease | None] = lease.take,
    ) -> None:
        self._programs = programs
        self._find = find
        self._kind = kind
        self._proc = proc
        self._clock = clock
        self._attach_site = attach
        self._take_lease = take_lease
        self._budget = FIRST_BUDGET_SECONDS
        self._processes: dict[int, _Process] = {}
        self._files: dict[Identity, ProbedFile] = {}
        # st_dev, st_ino, mtime and size -> the file, None for one that is not probed
        self._examined: dict[tuple[int, ...], Identity | None] = {}
        # the kernel takes 0.1 s to detach a probe
        self._detaching = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detach")
        self._pending: list[Future[None]] = []  # what it has not done yet
        self.failures: Counter[str] = Counter()  # reason -> how often

    @property
    def attached(self) -> tuple[Attached, ...]:
        return tuple(
            Attached(f.path, f.sites, f.processes, f.refused) for f in self._files.values()
        )

    @property
    def probed(self) -> Iterator[tuple[int, tuple[uprobes.Site, ...]]]:
        """The open files that are probed, or would be, and where."""
        return ((file.fd, file.sites) for file in self._files.values())

    def follow(self, cgroup_paths: Iterable[str]) -> None:
        """To be called each second, with the directories of the cgroups that are traced now."""
        finish(self.following(cgroup_paths))

    def following(self, cgroup_paths: Iterable[str]) -> Turns[None]:
        """The same in turns.

        What does not fit into its time is done by the next calls, what has waited longest first.
        The first call has more: who waits for the agent's start takes it that services are seen.
        """
        yield from self._find_processes(cgroup_paths, self._clock())
        now = self._clock()
        budget, self._budget = self._budget, BUDGET_SECONDS
        due = sorted((p.due, pid) for pid, p in self._processes.items() if p.due <= now)
        for count, (_, pid) in enumerate(due):
            if count and self._clock() - now > budget:
                break
            yield from self._read(pid, now, self._clock() + max(budget, PROCESS_SECONDS))
        yield
        self._tend_files(now)

    def close(self) -> None:
        """Detaches everything, and returns when that is done."""
        for identity in list(self._files):
            self._detach(identity)
        self._detaching.shutdown(wait=True)

    # -- processes -------------------------------------------------------------------------------

    def _find_processes(self, cgroup_paths: Iterable[str], now: float) -> Turns[None]:
        current = yield from mappings.pids(cgroup_paths, self.failures)
        for pid in self._processes.keys() - current:
            del self._processes[pid]
        for count, pid in enumerate(current, 1):
            known = self._processes.get(pid)
            if known is None or not self._is_same(pid, known):
                self._processes[pid] = _Process(now)
            if count % _EACH_TURN == 0:
                yield

    def _is_same(self, pid: int, known: _Process) -> bool:
        """Is it the process that was read, and does it still execute what it did?"""
        if known.identity is None:
            return True
        seen = mappings.seen(self._proc, pid)
        if seen == known.seen:
            return mappings.executable(self._proc, pid) == known.identity[0]
        known.seen = seen
        return mappings.identity(self._proc, pid) == known.identity

    def _read(self, pid: int, now: float, until: float) -> Turns[None]:
        """Looks at what a process maps, at one new file in any case."""
        process = self._processes[pid]
        process.due = now + min(LATER_READINGS, SECOND_READING * 2 ** min(process.readings, 8))
        process.readings += 1
        if process.identity is None:
            process.seen = mappings.seen(self._proc, pid)
            process.identity = mappings.identity(self._proc, pid)
        mapped: dict[_Key, Identity | None] = {}
        looked = later = False
        try:
            for mapping in mappings.executed(self._proc, pid, self.failures):
                key = (mapping.device, mapping.name, mapping.deleted)
                if key in process.mapped:
                    mapped[key] = process.mapped[key]
                    continue
                if looked and self._clock() > until:
                    later = True
                    continue
                looked = True
                try:
                    mapped[key] = self._look(pid, mapping, now)
                except LaterError:
                    later = True
                yield
        except OSError as error:
            if error.errno not in GONE:
                self._fail("maps_unreadable", error, f"process {pid}")
            return
        process.mapped = mapped
        if later:
            process.due = now
            process.readings -= 1

    # -- files -----------------------------------------------------------------------------------

    def _look(self, pid: int, mapping: mappings.Mapping, now: float) -> Identity | None:
        """The file behind a mapping, attached when it is one to probe, else None."""
        try:
            if not mapping.deleted:
                held = mappings.locate(self._proc, pid, mapping)
                return self._examine(held, mapping.name, mapping.device, now)
            for identity, file in self._files.items():
                if mapping.device in file.devices:
                    return identity  # attached before it was deleted
            return self._look_deleted(pid, mapping, now)
        except mappings.OtherFileError as error:
            self._fail("other_file", error, f"process {pid}")
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                self._fail("not_permitted", error, mapping.name)
            elif error.errno not in GONE:
                self._fail("file_unreadable", error, mapping.name)
            elif not mapping.deleted and mappings.executable(self._proc, pid):
                self._fail("unreachable", error, mapping.name)
        except MalformedError as error:
            self._fail("malformed", error, mapping.name)
        except LaterError:
            raise
        except Exception as error:  # the file is of those who are traced: it must not end the agent
            self._fail("failed", error, mapping.name)
        return None

    def _look_deleted(self, pid: int, mapping: mappings.Mapping, now: float) -> Identity | None:
        """A file without a name, as after the upgrade of a package, has only its mapping.

        To open that takes CAP_CHECKPOINT_RESTORE, and CAP_DAC_READ_SEARCH in processes of others.
        Without, what stands under the name now tells whether it was one to probe: then the process
        is not seen until it starts again.
        """
        try:
            area = f"{self._proc}/{pid}/map_files/{mapping.area}"
            held = os.open(area, os.O_PATH | os.O_CLOEXEC)
            return self._examine(held, mapping.name, mapping.device, now)
        except PermissionError as error:
            replaced = mappings.locate(self._proc, pid, mapping, verify=False)
            if self._examine(replaced, mapping.name, b"", now) is not None:
                what = f"{mapping.name} as process {pid} maps it (restart the service)"
                self._fail("deleted", error, what)
        return None

    def _examine(self, found: int, name: str, device: bytes, now: float) -> Identity | None:
        """Looks into the file behind a descriptor (O_PATH), and closes that."""
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                return None
            identity = self._examined.get(version(status), ())
            if identity is not None and identity not in self._files:
                identity = self._open(found, name, status, now)
            if identity is not None:
                self._files[identity].devices.add(device)
            return identity
        finally:
            os.close(found)

    def _open(self, found: int, name: str, status: os.stat_result, now: float) -> Identity | None:
        ours = mappings.open_ours(name, status)
        foreign = ours is None
        try:
            fd = mappings.open_file(f"/proc/self/fd/{found if ours is None else ours}")
        finally:
            if ours is not None:
                os.close(ours)
        file = held = None
        try:
            held = self._guard(fd)
            status = os.fstat(fd)
            known = self._examined.get(version(status))
            if known is not None and known not in self._files and self._full():
                return None
            if len(self._examined) >= _MAX_EXAMINED:
                self._examined.clear()
            # already now: what contradicts itself is not read again
            self._examined[version(status)] = None
            try:
                sites = self._find(fd)
            except LaterError:
                del self._examined[version(status)]
                raise
            if not sites:
                return None
            identity = uprobes.identity(fd)
            self._examined[version(status)] = identity
            if identity not in self._files:
                if self._full():
                    return None
                code = code_at(fd, sites)
                file = ProbedFile(name, fd, stamp(status), sites, code, foreign, held)
                self._files[identity] = file
                if held is None:
                    self.failures["unguarded"] += 1
                self._attach(file, now)
            return identity
        finally:
            if file is None:
                if held is not None:
                    held.give_back()  # who looks into the file has it open, too
                os.close(fd)

    def _guard(self, fd: int) -> Lease | None:
        try:
            return self._take_lease(fd)
        except BlockingIOError:
            raise LaterError from None  # it is being written

    def _full(self) -> bool:
        """Is there no room for one more file? Counted."""
        self._pending = [future for future in self._pending if not future.done()]
        if len(self._files) + len(self._pending) < _MAX_FILES:
            return False
        self.failures["too_many_files"] += 1
        return True

    def _attach(self, file: ProbedFile, now: float) -> None:
        off = sorted({site.program for site in file.sites} - self._programs.keys())
        if off:  # half of a file would be followed wrongly
            self.failures["no_program"] += 1
            file.refused = f"this kernel refuses {', '.join(off)}"
            file.retry_at = math.inf
            return
        # the end of a call is awaited before the first call is seen to begin
        for site in sorted(file.sites, key=lambda site: not site.returns):
            program = self._programs[site.program]
            try:
                link = self._attach_site(
                    program,
                    path=f"/proc/self/fd/{file.fd}",
                    site=site,
                    kind=self._kind,
                )
            except OSError as error:
                destroy(file.links)
                file.links = []
                file.refused = f"{site.program}: {os.strerror(error.errno or 0)}"
                file.retry_at = now + RETRY_SECONDS
                self._fail("attach_refused", error, file.path)
                return
            file.links.append(link)
        file.refused = ""
        log.info("probed %s: %s", file.path, ", ".join(site.program for site in file.sites))

    def _tend_files(self, now: float) -> None:
        used = Counter(
            identity
            for process in self._processes.values()
            for identity in set(process.mapped.values())
        )
        for identity, file in list(self._files.items()):
            file.processes = used[identity]
            try:
                status = os.fstat(file.fd)
                wanted = file.lease is not None and file.lease.is_wanted()
                changed = stamp(status) != file.stamp and not is_touched(file, status)
            except OSError as error:  # its file system is gone: NFS, FUSE
                self._fail("file_unreadable", error, file.path)
                self._detach(identity)
                self._forget(identity, now)
                continue
            if wanted or changed:
                self.failures["written"] += 1
                written = "is going to be" if wanted else "was"
                log.warning("%s %s written to: detached", file.path, written)
                self._detach(identity)
                self._forget(identity, now)
            elif file.processes:
                file.unused_since = None
                if file.refused and now >= file.retry_at:
                    self._attach(file, now)
            else:
                if file.unused_since is None:
                    file.unused_since = now
                # another mount namespace ends with its processes; we would keep its files mounted
                keep = 0.0 if file.foreign or not status.st_nlink else KEEP_UNUSED_SECONDS
                if now - file.unused_since >= keep:
                    self._detach(identity)

    def _forget(self, identity: Identity, now: float) -> None:
        """Whoever maps the file is looked at anew."""
        for process in self._processes.values():
            if identity in process.mapped.values():
                process.mapped, process.due = {}, now

    def _detach(self, identity: Identity) -> None:
        file = self._files.pop(identity)
        self._pending.append(self._detaching.submit(release, file.links, file.fd))

    def _fail(self, reason: str, error: Exception, what: str) -> None:
        """Counted each time, logged the first time."""
        self.failures[reason] += 1
        if self.failures[reason] == 1:
            # where a fault of ours is
            log.warning("%s: %s: %s", reason, what, error, exc_info=reason == "failed")
