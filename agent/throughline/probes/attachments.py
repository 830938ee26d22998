"""The probes of files: attached all together, and detached in a thread of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from throughline.bpf import libbpf
from throughline.probes import uprobes
from throughline.probes.site import Site


class Attachments:
    """Attaches programs to the sites of files. Nothing is pinned: probes end with this process."""

    def __init__(
        self,
        programs: Mapping[str, libbpf.Program],
        kind: uprobes.Kind | None,  # None: there is nothing to attach
        *,
        attach: Callable[..., uprobes.Link] = uprobes.attach,
    ) -> None:
        self._programs = programs
        self._kind = kind
        self._attach = attach
        # The kernel takes 0.1 s to detach a probe: spans must not wait for that.
        self._detaching = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detach")
        self._pending: list[Future[None]] = []

    def missing(self, sites: Sequence[Site]) -> list[str]:
        """The programs of these sites that the kernel has refused."""
        return sorted({site.program for site in sites} - self._programs.keys())

    def attach(self, fd: int, sites: Sequence[Site]) -> list[uprobes.Link]:
        """Attaches to all sites of an open file, or to none.

        Raises OSError with the name of the program that the kernel did not attach.
        """
        assert self._kind is not None
        links: list[uprobes.Link] = []
        # First at returns: when the start of a call is seen, its end has to be seen as well.
        for site in sorted(sites, key=lambda site: not site.returns):
            try:
                link = self._attach(
                    self._programs[site.program],
                    path=f"/proc/self/fd/{fd}",
                    site=site,
                    kind=self._kind,
                )
            except OSError as error:
                _destroy(links)
                reason = f"{site.program}: {error.strerror or error}"
                raise OSError(error.errno, reason) from error
            links.append(link)
        return links

    def detach(self, links: Sequence[uprobes.Link], fd: int) -> None:
        """Detaches from a file and closes it, in the background."""
        self._pending.append(self._detaching.submit(release, links, fd))

    @property
    def detaching(self) -> int:
        """How many files are still open because their probes are being detached."""
        self._pending = [future for future in self._pending if not future.done()]
        return len(self._pending)

    def close(self) -> None:
        """Returns when everything that was given to `detach` is detached."""
        self._detaching.shutdown(wait=True)


def release(links: Sequence[uprobes.Link], fd: int) -> None:
    """Detaches from an open file and closes it, also where the kernel refuses to detach."""
    try:
        _destroy(links)
    finally:
        os.close(fd)


def _destroy(links: Sequence[uprobes.Link]) -> None:
    """All at once: the kernel takes 0.1 s for one, and the same time for all together."""
    if links:
        with ThreadPoolExecutor(len(links), thread_name_prefix="detach") as pool:
            list(pool.map(lambda link: link.destroy(), links))
