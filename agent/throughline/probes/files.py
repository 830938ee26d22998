"""The files that traced processes execute: opened, examined, probed, watched, let go.

A file counts by its content, whatever its name: a libssl, a program with OpenSSL inside, a program
of Go, a copy in a container. It is reached through the root of its process, and probed once,
however many processes, names and mounts lead to it. Providers say where (provider.py).

No probe may stay in a file that is being overwritten: the kernel would write a breakpoint into the
middle of another instruction, and would later restore a byte of the old file. So the agent takes a
lease on each file: a writer waits until the probes are gone (host/lease.py). Where no lease is to
be had, the agent only checks each second whether the file has changed. Then code that is executed
in that second is damaged; counted as `unguarded`.
"""

from __future__ import annotations

import enum
import errno
import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from throughline.elf.elf import MalformedError
from throughline.host import lease
from throughline.host.lease import Lease
from throughline.probes import mappings, procfs, uprobes
from throughline.probes.attachments import Attachments
from throughline.probes.probedfile import (
    Attached,
    Identity,
    ProbedFile,
    Sites,
    code_at,
    joined,
    stamp,
    version,
)
from throughline.probes.provider import Answer, Found, Probed, Process, Provider
from throughline.services.cgroups import GONE

log = logging.getLogger(__name__)

KEEP_UNUSED_SECONDS = 600.0  # a service that starts again is probed from its first request on
RETRY_SECONDS = 30.0
_MAX_EXAMINED = 1 << 14
_MAX_FILES = 64  # attached to: each takes up to 14 descriptors

_Version = tuple[int, ...]  # see probedfile.version


class State(enum.Enum):
    """Why a file that a process maps is not probed."""

    UNPROBED = "no provider has sites in the file, or it cannot be probed"
    LATER = "the file is being written to, or still being analysed: look again"


class Files:
    """The probed files. `failures` counts what could not be done, by reason."""

    def __init__(
        self,
        providers: Sequence[Provider],
        attachments: Attachments,
        *,
        proc: Path = Path("/proc"),
        take_lease: Callable[[int], Lease | None] = lease.take,
    ) -> None:
        self._providers = tuple(providers)
        self._attachments = attachments
        self._proc = proc
        self._take_lease = take_lease
        self._files: dict[Identity, ProbedFile] = {}
        # What an earlier examination of the same content said.
        self._examined: dict[_Version, Identity | State] = {}
        # While one provider says LATER: those that said NOT_MINE need not look again.
        self._not_mine: dict[_Version, set[str]] = {}
        self.failures: Counter[str] = Counter()

    @property
    def attached(self) -> tuple[Attached, ...]:
        """Every file of a provider, for status."""
        return tuple(
            Attached(f.path, f.fd, f.sites, f.processes, f.refused) for f in self._files.values()
        )

    def probed(self, provider: str) -> tuple[Probed, ...]:
        """The files of a provider."""
        return tuple(file.probed(provider) for file in self.attached if provider in file.sites)

    def look(self, pid: int, mapping: mappings.Mapping, now: float) -> Identity | State:
        """Examines the file behind a mapping, and probes it where a provider has sites in it."""
        try:
            if not mapping.deleted:
                held = mappings.locate(self._proc, pid, mapping)
                return self._examine(held, mapping.name, mapping.device, now)
            for identity, file in self._files.items():
                if mapping.device in file.devices:
                    return identity  # it was probed before it was deleted
            return self._look_deleted(pid, mapping, now)
        except mappings.OtherFileError as error:
            self.fail("other_file", error, f"process {pid}")
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                self.fail("not_permitted", error, mapping.name)
            elif error.errno not in GONE:
                self.fail("file_unreadable", error, mapping.name)
            elif not mapping.deleted and procfs.executable(self._proc, pid):
                self.fail("unreachable", error, mapping.name)
        except MalformedError as error:
            self.fail("malformed", error, mapping.name)
        except Exception as error:  # the file belongs to a traced process: it must not end us
            self.fail("failed", error, mapping.name)
        return State.UNPROBED

    def tend(self, used: Mapping[Identity, Sequence[Process]], now: float) -> set[Identity]:
        """Once each second: lets go of files that were written to, or that nobody uses any more.

        `used`: the processes that map each file. Returns the files that processes have to be asked
        for again, because their content has changed.
        """
        changed: set[Identity] = set()
        for identity, file in list(self._files.items()):
            file.processes = tuple(used.get(identity, ()))
            try:
                status = os.fstat(file.fd)
                wanted = file.lease is not None and file.lease.is_wanted()
                written = file.is_changed(status)
            except OSError as error:  # its file system is gone: NFS, FUSE
                self.fail("file_unreadable", error, file.path)
                self._let_go(identity)
                changed.add(identity)
                continue
            if wanted or written:
                self.failures["written"] += 1
                what = "is going to be" if wanted else "was"
                log.warning("%s %s written to: its probes are detached", file.path, what)
                self._let_go(identity)
                changed.add(identity)
            elif file.processes:
                file.unused_since = None
                if file.refused and now >= file.retry_at:
                    self._attach(file, now)
            else:
                if file.unused_since is None:
                    file.unused_since = now
                # Another mount namespace ends with its processes: our descriptor would keep its
                # file systems mounted.
                keep = 0.0 if file.foreign or not status.st_nlink else KEEP_UNUSED_SECONDS
                if now - file.unused_since >= keep:
                    self._let_go(identity)
        return changed

    def close(self) -> None:
        """Detaches all probes, and returns when that is done."""
        for identity in list(self._files):
            self._let_go(identity)
        self._attachments.close()

    def fail(self, reason: str, error: Exception, what: str) -> None:
        """Counts a failure, and logs the first one of its reason."""
        self.failures[reason] += 1
        if self.failures[reason] == 1:
            # "failed" is a fault of the agent: the log shows where.
            log.warning("%s: %s: %s", reason, what, error, exc_info=reason == "failed")

    # -- examining ---------------------------------------------------------------------------------

    def _look_deleted(self, pid: int, mapping: mappings.Mapping, now: float) -> Identity | State:
        """A file without a name, as after the upgrade of a package, is reached by its mapping only.

        To open that takes CAP_CHECKPOINT_RESTORE, and CAP_DAC_READ_SEARCH in processes of other
        users. Without them, the file that has the name now tells whether the deleted one was one to
        probe. If so, the process is not seen until it starts again: counted as `deleted`.
        """
        try:
            area = f"{self._proc}/{pid}/map_files/{mapping.area}"
            held = os.open(area, os.O_PATH | os.O_CLOEXEC)
            return self._examine(held, mapping.name, mapping.device, now)
        except PermissionError as error:
            replaced = mappings.locate(self._proc, pid, mapping, verify=False)
            found = self._examine(replaced, mapping.name, b"", now)
            if found is State.LATER:
                return found
            if found is not State.UNPROBED:
                what = f"{mapping.name} as process {pid} maps it (restart the service)"
                self.fail("deleted", error, what)
        return State.UNPROBED

    def _examine(self, found: int, name: str, device: bytes, now: float) -> Identity | State:
        """Looks into the file behind a descriptor (O_PATH), and closes the descriptor."""
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                return State.UNPROBED
            known = self._examined.get(version(status), State.LATER)
            if known is State.LATER or not self._is_settled(known):
                known = self._open(found, name, status, now)
            if not isinstance(known, State):
                self._files[known].devices.add(device)
            return known
        finally:
            os.close(found)

    def _is_settled(self, known: Identity | State) -> bool:
        """Does the answer of an earlier examination still hold? A file may have been let go."""
        return known is State.UNPROBED or known in self._files

    def _open(self, found: int, name: str, status: os.stat_result, now: float) -> Identity | State:
        """Opens a file that is not known, under a lease, and probes it where it has sites."""
        ours = mappings.open_ours(name, status)
        try:
            fd = mappings.open_file(f"/proc/self/fd/{found if ours is None else ours}")
        finally:
            if ours is not None:
                os.close(ours)
        kept = False
        held: Lease | None = None
        sites: dict[str, Sites] | State = {}
        try:
            try:
                held = self._take_lease(fd)
            except BlockingIOError:  # it is being written to
                return State.LATER
            status = os.fstat(fd)
            sites = self._ask(fd, version(status))
            if isinstance(sites, State):
                return sites
            identity = uprobes.identity(fd)
            self._examined[version(status)] = identity
            if identity in self._files:
                return identity
            if self._is_full():
                return State.UNPROBED
            code = code_at(fd, joined(sites))
            file = ProbedFile(name, fd, stamp(status), sites, code, ours is None, held)
            self._files[identity] = file
            kept = True
            if not code:
                _give_back(file)
            elif held is None:
                self.failures["unguarded"] += 1
            self._attach(file, now)
            return identity
        finally:
            if not kept:
                if held is not None:
                    # The lease ends with the last descriptor, and a provider may have one.
                    held.give_back()
                if not isinstance(sites, State):
                    self._leave(sites)
                os.close(fd)

    def _ask(self, fd: int, content: _Version) -> dict[str, Sites] | State:
        """Asks the providers for their sites in an open file."""
        known = self._examined.get(content, State.UNPROBED)
        if not self._is_settled(known) and self._is_full():
            return State.UNPROBED
        for memory in (self._examined, self._not_mine):
            if len(memory) >= _MAX_EXAMINED:
                memory.clear()
        # Stays if a provider raises: a file that contradicts itself is not read again.
        self._examined[content] = State.UNPROBED
        not_mine = self._not_mine.pop(content, set())
        sites: dict[str, Sites] = {}
        complete = False
        try:
            for provider in self._providers:
                if provider.name in not_mine:
                    continue
                match provider.find(fd):
                    case Found(found):
                        sites[provider.name] = found
                    case Answer.NOT_MINE:
                        not_mine.add(provider.name)
                    case Answer.LATER:
                        self._not_mine[content] = not_mine
                        del self._examined[content]
                        return State.LATER
            complete = True
        finally:
            if not complete:
                self._leave(sites)
        return sites or State.UNPROBED

    def _leave(self, sites: Mapping[str, Sites]) -> None:
        """What providers have found in a file is not probed, or not any more."""
        for provider in self._providers:
            if provider.name in sites:
                provider.leaving(sites[provider.name])

    def _is_full(self) -> bool:
        """Is there no room for one more file? Counts it."""
        if len(self._files) + self._attachments.detaching < _MAX_FILES:
            return False
        self.failures["too_many_files"] += 1
        return True

    # -- probing -----------------------------------------------------------------------------------

    def _attach(self, file: ProbedFile, now: float) -> None:
        sites = file.all_sites
        if not sites:  # a provider only follows its processes
            log.info("found %s", file.path)
            return
        missing = self._attachments.missing(sites)
        if missing:  # with half of its sites a file would be traced wrongly
            self.failures["no_program"] += 1
            file.refused = f"this kernel refuses {', '.join(missing)}"
            file.retry_at = math.inf
            return
        try:
            file.links = self._attachments.attach(file.fd, sites)
        except OSError as error:
            file.refused = error.strerror or str(error)
            file.retry_at = now + RETRY_SECONDS
            self.fail("attach_refused", error, file.path)
            return
        file.refused = ""
        log.info("probed %s: %s", file.path, ", ".join(site.program for site in sites))

    def _let_go(self, identity: Identity) -> None:
        file = self._files.pop(identity)
        self._leave(file.sites)
        self._attachments.detach(file.links, file.fd)


def _give_back(file: ProbedFile) -> None:
    """Nothing is probed in the file: whoever writes to it need not wait for the agent."""
    if file.lease is not None:
        file.lease.give_back()
        file.lease = None
