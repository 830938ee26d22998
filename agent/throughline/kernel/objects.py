"""The compiled objects: which this kernel accepts, and what each is told before its load."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from throughline.kernel import abi, libbpf, pins

# Objects made of one source, in the order in which they are tried; the second is for kernels before
# 5.15 (bpf/compat.bpf.h).
VARIANTS = ("", "-legacy")
_NOT_BY_VERIFIER = {
    None,  # the dynamic linker
    errno.EPERM,
    errno.ENOENT,
    errno.ENOEXEC,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EROFS,
}


def directory() -> Path:
    """Where the compiled objects are: the bundle's, else those of the checkout."""
    named = os.environ.get("THROUGHLINE_BPF_OBJECTS")
    return Path(named) if named else Path(__file__).parents[3] / "build" / "bpf"


class Objects:
    """The loaded objects of one run, by the name of their group. Maps are pinned and shared."""

    def __init__(self, *, bpffs: Path, map_sizes: Mapping[str, int]) -> None:
        self._bpffs = bpffs
        self._map_sizes = map_sizes
        self._loaded: dict[str, libbpf.Object] = {}
        self.variant = VARIANTS[0]
        self.fionread_broken = False

    @property
    def pins(self) -> Path:
        return self._bpffs / f"{pins.NAME}{self.variant}"

    def __iter__(self) -> Iterator[libbpf.Object]:
        return iter(self._loaded.values())

    def get(self, name: str) -> libbpf.Object | None:
        return self._loaded.get(name)

    def has(self, name: str) -> bool:
        """Is there such an object for the kernel's variant?"""
        return self._path(name).exists()

    def is_for_newer(self, name: str) -> bool:
        """Is there such an object, but not for the kernel's variant?"""
        return not self.has(name) and (directory() / f"{name}{VARIANTS[0]}.bpf.o").exists()

    def load_first(self, name: str) -> libbpf.Object:
        """Loads the first variant that the kernel accepts, which decides that of the others.

        Raises what the first variant raised when none can be loaded.
        """
        refusals: list[OSError] = []
        for self.variant in VARIANTS:
            if refusals and not self.has(name):
                break
            served = (self.pins / "links").is_dir()
            self.pins.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return self.load(name)
            except OSError as error:
                refusals.append(error)
                if served:
                    break  # its programs were accepted: what is in the way is not the verifier
                pins.remove_tree(self.pins)
                if not _by_verifier(error):
                    break
        self.variant = VARIANTS[0]
        raise refusals[0]

    def load(
        self, name: str, *, prepare: Callable[[libbpf.Object], None] = lambda _: None
    ) -> libbpf.Object:
        """Opens, prepares and loads an object; it stays until `drop` or `close`."""
        opened = self._open(name)
        try:
            prepare(opened)
            opened.load()
        except BaseException:
            opened.close()
            raise
        self._loaded[name] = opened
        return opened

    def drop(self, name: str) -> None:
        opened = self._loaded.pop(name, None)
        if opened is not None:
            opened.close()

    def close(self) -> None:
        """Frees what this process holds, in the reverse order of loading."""
        for name in reversed(list(self._loaded)):
            self.drop(name)

    def _path(self, name: str) -> Path:
        return directory() / f"{name}{self.variant}.bpf.o"

    def _open(self, name: str) -> libbpf.Object:
        opened = libbpf.Object(self._path(name), pin_root=self.pins)
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


def _by_verifier(error: OSError) -> bool:
    """May another variant be accepted where this one was not? libbpf's own errors begin at 4000."""
    return error.errno not in _NOT_BY_VERIFIER and (error.errno or 0) < 4000
