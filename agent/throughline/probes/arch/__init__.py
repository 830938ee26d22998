"""What depends on the processor: the machine code of probed functions, one module per processor.

`here()` gives the module of the processor that the agent runs on. Support for another processor is
one more module that has what `Architecture` has, and its line in `_MODULES`.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterator, Mapping
from typing import Protocol

from throughline.elf.elf import Elf
from throughline.probes.arch import aarch64, x86_64
from throughline.probes.arch.place import Place

__all__ = ["Architecture", "Place", "here", "open_elf"]


class Architecture(Protocol):
    """One processor architecture. A module of this folder implements it."""

    @property
    def ELF_MACHINE(self) -> int:  # noqa: N802 - a constant of the module
        """e_machine of an ELF file (elf(5))."""

    @property
    def RELATIVE(self) -> int:  # noqa: N802
        """The type of a relocation that adds the load address to its addend."""

    @property
    def FUNCTION(self) -> bytes:  # noqa: N802
        """The code of a function that returns at once."""

    @property
    def PROBE_SYSCALLS(self) -> tuple[int, ...]:  # noqa: N802
        """The system calls by which probes enter the kernel, on kernels that have such."""

    @property
    def CODE_STEP(self) -> int:  # noqa: N802
        """Instructions begin at multiples of this many bytes."""

    @property
    def SPECIFIC_AT(self) -> int:  # noqa: N802
        """glibc's struct pthread.specific_1stblock (thread-specific data), since glibc 2.10."""

    @property
    def PTHREAD_AT(self) -> int | None:  # noqa: N802
        """How far struct pthread begins before the thread pointer; None: each glibc says so."""

    @property
    def GO_REGISTERS(self) -> int:  # noqa: N802
        """In how many registers a Go function gets integers and pointers (Go's ABIInternal)."""

    def c_place(self, code: bytes) -> Place:
        """Where to probe a C function that begins with this code."""

    def go_place(self, code: bytes) -> Place:
        """Where to probe a Go function that begins with this code."""

    def branch_targets(self, code: bytes) -> Iterator[int]:
        """Where the calls and jumps in this code lead, counted in bytes from its start.

        The code is not decoded: bytes that only look like a call lead to a random place too. So the
        caller takes only targets that it knows to be the start of a function.
        """

    def numbers_of_argument(self, code: bytes) -> Iterator[int]:
        """Where this code of a C function reads numbers of 32 bits in its first argument's object.

        Offsets from 64 to 127, as far as they are read by the register of the argument. The code is
        not decoded, as above.
        """


_MODULES: Mapping[str, Architecture] = {"aarch64": aarch64, "x86_64": x86_64}


def here() -> Architecture:
    """The architecture of this machine. Raises OSError where the agent does not know it."""
    machine = platform.machine()
    if machine not in _MODULES:
        raise OSError(errno.EOPNOTSUPP, f"probes are not possible on {machine} yet")
    return _MODULES[machine]


def open_elf(fd: int) -> Elf | None:
    """The program or library in an open file; None for any other file, or for another machine.

    Raises OSError and MalformedError as `Elf.open` does.
    """
    return Elf.open(fd, machine=here().ELF_MACHINE)
