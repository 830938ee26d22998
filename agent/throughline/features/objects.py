"""The compiled objects, loaded with as many of their programs as this kernel accepts.

libbpf loads an object whole or not at all. Where the kernel refuses an object, each of its programs
is loaded alone, and then the object once more without the programs that are refused. Which of them
it can do without is in features/table.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import ne
from pathlib import Path

from throughline.bpf import abi, libbpf, maps
from throughline.features import pins, table
from throughline.host import namespaces

# The objects that are compiled from one source, in the order in which they are tried. The second is
# for kernels before 5.15 (bpf/core/compat.h).
VARIANTS = ("", "-legacy")
# Objects whose tracepoints exist since Linux 6.3 have a second form, for the ends of the functions
# that those tracepoints stand in.
FEXIT = "-fexit"
# Each processor reserves so many free entries of an LRU map, and evicts other entries when it finds
# fewer (LOCAL_FREE_TARGET, kernel/bpf/bpf_lru_list.c). A map needs so many entries more.
_RESERVED_BY_CPU = 128
# Errors that another program of an object, or another variant of it, would meet as well.
_NOT_BY_PROGRAM = {
    None,  # the dynamic linker
    errno.ENOEXEC,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EROFS,
}
_NO_TRACEPOINT = {errno.ESRCH, errno.ENOENT}
_NOT_BY_VERIFIER = {*_NOT_BY_PROGRAM, errno.EPERM, errno.ENOENT}
_LIBBPF_ERRORS = 4000  # libbpf's own numbers, from LIBBPF_ERRNO__LIBELF on
REFUSE = "THROUGHLINE_TEST_REFUSE"

Prepare = Callable[[libbpf.Object], None]


def directory() -> Path:
    """Where the compiled objects are: the bundle's, else those of the checkout."""
    named = os.environ.get("THROUGHLINE_BPF_OBJECTS")
    return Path(named) if named else Path(__file__).parents[3] / "build" / "bpf"


class Objects:
    """The loaded objects of one run, by name. Their maps are pinned and shared."""

    def __init__(self, *, bpffs: Path, map_sizes: Mapping[str, int]) -> None:
        self._bpffs = bpffs
        self._map_sizes = map_sizes
        self._loaded: dict[str, libbpf.Object] = {}
        self.refused: dict[str, OSError] = {}  # optional programs, by load or by attachment
        self.variant = VARIANTS[0]
        self.fionread_broken = False

    @property
    def pins(self) -> Path:
        return self._bpffs / f"{pins.NAME}{self.variant}"

    def __iter__(self) -> Iterator[libbpf.Object]:
        return iter(self._loaded.values())

    def get(self, name: str) -> libbpf.Object | None:
        """A loaded object, or None."""
        return self._loaded.get(name)

    def has(self, name: str) -> bool:
        """Returns whether there is such an object of this kernel's variant."""
        return self._path(name).exists()

    def is_for_newer(self, name: str) -> bool:
        """Returns whether there is such an object, but not of this kernel's variant."""
        return not self.has(name) and (directory() / f"{name}{VARIANTS[0]}.bpf.o").exists()

    def load_first(self, name: str) -> libbpf.Object:
        """Loads the first variant that the kernel accepts; later objects are of the same variant.

        Raises the error of the first variant when none can be loaded.
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
                    break  # an earlier run loaded its programs: the verifier is not the obstacle
                pins.remove_tree(self.pins)
                if not _by_verifier(error):
                    break
        self.variant = VARIANTS[0]
        raise refusals[0]

    def load(self, name: str, *, prepare: Prepare = lambda _: None) -> libbpf.Object:
        """Opens, prepares and loads an object; it stays until `drop` or `close`.

        Optional programs that the kernel refuses are left out and put into `refused`. Raises the
        kernel's error for a required program, and where it refuses all of them.
        """
        try:
            opened, refused = self._load_form(name, prepare)
        except OSError as error:
            if error.errno not in _NO_TRACEPOINT or not self.has(name + FEXIT):
                raise
            try:
                opened, refused = self._load_form(name + FEXIT, prepare)
            except OSError as second:
                raise OSError(second.errno, f"{error.strerror}; {second.strerror}") from None
        self.refused |= refused
        self._loaded[name] = opened
        return opened

    def _load_form(self, name: str, prepare: Prepare) -> tuple[libbpf.Object, dict[str, OSError]]:
        """One form of an object, and those of its programs that are left out."""
        try:
            return self._load(name, prepare, lambda _: False), {}
        except OSError as error:
            if error.errno in _NOT_BY_PROGRAM or (error.errno or 0) >= _LIBBPF_ERRORS:
                raise
            refused = self._try_each(name, prepare)
            if not refused:
                raise  # no program is refused alone
        return self._load(name, prepare, refused.__contains__), refused

    def _load(self, name: str, prepare: Prepare, without: Callable[[str], bool]) -> libbpf.Object:
        opened = self._open(name)
        try:
            for program in list(opened.programs()):
                if without(program.name):
                    opened.leave_out(program.name)
            prepare(opened)
            _refuse_for_tests(opened)
            opened.load()
        except BaseException:
            opened.close()
            raise
        return opened

    def _try_each(self, of: str, prepare: Prepare) -> dict[str, OSError]:
        """Loads each program alone; returns the error of each that is refused.

        Raises where a required program is refused, and where all of them are.
        """
        opened = self._open(of)
        try:
            sections = {program.name: program.section for program in opened.programs()}
        finally:
            opened.close()
        legacy = self.variant != VARIANTS[0]
        required = {name: table.is_required(name, legacy=legacy) for name in sections}
        refused: dict[str, OSError] = {}
        for program in sorted(sections, key=lambda n: not required[n]):
            try:
                self._load(of, prepare, partial(ne, program)).close()
            except OSError as error:
                refused[program] = _of_program(error, program, sections[program])
                if required[program]:
                    raise refused[program] from None
        for program in sections.keys() - refused.keys():
            needed = table.PROGRAMS[program].needs
            if needed in refused:
                refused[program] = refused[needed]
        if len(refused) == len(sections):
            raise next(iter(refused.values()))
        return refused

    def drop(self, name: str) -> None:
        """Frees one object, if it is loaded."""
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
        config = found._replace(
            fionread_broken=self.fionread_broken, pid_namespace=namespaces.pid_namespace()
        )
        opened.set_rodata(".rodata.config", abi.CONFIG.pack(*config))
        reserved = _RESERVED_BY_CPU * maps.possible_cpus()
        sizes = {name: size + reserved for name, size in opened.lru_maps().items()}
        for map_name, entries in {**sizes, **self._map_sizes}.items():
            opened.set_max_entries(map_name, entries)
        return opened


def _of_program(error: OSError, program: str, section: str) -> OSError:
    """The kernel's refusal of an object from which all other programs were left out."""
    kind, _, target = section.partition("/")
    if error.errno in _NO_TRACEPOINT and kind in ("tp_btf", "fentry", "fexit"):
        what = "tracepoint" if kind == "tp_btf" else "function"
        return OSError(error.errno, f"this kernel has no {what} {target}")
    call, _, words = (error.strerror or str(error)).partition(": ")
    return OSError(error.errno, f"{call}: {program}: {words}")


def refuses(*words: str) -> bool:
    """Returns whether a test wants one of these refused.

    $THROUGHLINE_TEST_REFUSE is a list with commas: names of programs, types of programs (the first
    part of their section), and `attach:NAME`. An example is `tl_tick,uretprobe`. Only tests set it.
    """
    return not {word.strip() for word in os.environ.get(REFUSE, "").split(",")}.isdisjoint(words)


def _refuse_for_tests(opened: libbpf.Object) -> None:
    """Refuses the whole object for one program of it, as a kernel does."""
    for program in opened.programs():
        if refuses(program.name, program.section.partition("/")[0]):
            call = f"bpf_object__load {opened.path.name}"
            raise OSError(errno.EPERM, f"{call}: {os.strerror(errno.EPERM)} ({REFUSE})")


def _by_verifier(error: OSError) -> bool:
    """Returns whether the kernel may accept another variant where it refused this one."""
    return error.errno not in _NOT_BY_VERIFIER and (error.errno or 0) < _LIBBPF_ERRORS
