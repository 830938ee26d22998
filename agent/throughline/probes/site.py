"""Places in files at which programs are attached."""

from __future__ import annotations

from dataclasses import dataclass

from throughline.elf.elf import Elf
from throughline.probes import arch
from throughline.probes.arch.place import CODE_BYTES, Place


@dataclass(frozen=True, slots=True)
class Site:
    """Where a BPF program is attached to a file."""

    program: str
    offset: int  # in the file
    returns: bool = False  # the program runs when the function returns, not when it begins
    single_stepped: bool = False  # the kernel executes a copy: 23 µs, emulated 0.5 µs
    cookie: int = 0  # bpf_get_attach_cookie() in the program
    rare: bool = False  # the function runs once in a connection, not for each request


def c_place(elf: Elf, address: int) -> Place:
    """Where to probe the C function at an address (as linked) of a file."""
    return arch.here().c_place(elf.code(address, CODE_BYTES))


def c_sites(
    elf: Elf, address: int, program: str, at_return: str = "", *, rare: bool = False
) -> tuple[Site, ...]:
    """The sites of `program`, and of `at_return` where one is given, in the C function there.

    No sites where the file has no code at this address.
    """
    place = c_place(elf, address)
    offset = elf.offset(address + place.past, executable=True)
    if offset is None:
        return ()
    return tuple(
        Site(name, offset, returns, place.single_stepped, rare=rare)
        for name, returns in ((program, False), (at_return, True))
        if name
    )
