"""OpenSSL: where to probe SSL_read, SSL_write and their relatives in a file that defines them.

A probe costs about 0.5 µs where the kernel emulates the probed instruction, and 23 µs where it
single-steps a copy (probes/arch/). So the calls of a function are seen at the first of these:
1. the function itself, where it begins with an instruction that is emulated;
2. the one function that SSL_X and SSL_X_ex both call at their start (ssl_read_internal,
   ssl_write_internal), where that begins so: it sees the calls of both, with the arguments of
   SSL_X_ex;
3. the function itself, single-stepped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from throughline.elf.elf import Elf, Function
from throughline.probes import arch
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site, c_place, c_sites
from throughline.steps import Turns

# A file without this function is not looked into.
_KEY = "SSL_read"
_READ = ("SSL_read", "SSL_read_ex")
_WRITE = ("SSL_write", "SSL_write_ex", "SSL_write_ex2")
_HANDSHAKE, _FREE = "SSL_do_handshake", "SSL_free"
_PROGRAMS = {
    "SSL_read": "tl_ssl_read",
    "SSL_read_ex": "tl_ssl_read_ex",
    "SSL_write": "tl_ssl_write",
    "SSL_write_ex": "tl_ssl_write_ex",
    "SSL_write_ex2": "tl_ssl_write_x2",
    _HANDSHAKE: "tl_ssl_shake",
}
# The program at the start of a function -> the program at its return.
RETURNS = {
    "tl_ssl_read": "tl_ssl_has_read",
    "tl_ssl_read_ex": "tl_ssl_has_read",
    "tl_ssl_write": "tl_ssl_has_sent",
    "tl_ssl_write_ex": "tl_ssl_has_sent",
    "tl_ssl_write_x2": "tl_ssl_has_sent",
    "tl_ssl_shake": "tl_ssl_shaken",
}
_WRAPPER_BYTES = 128  # of a function, searched for its call: that is at 51 in OpenSSL 3.5


class OpenSsl:
    """The provider for OpenSSL 1.0.2 to 3.x and BoringSSL, as a library or inside of a program."""

    name = "openssl"

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    def find(self, file: int) -> Found | Answer:
        """Raises OSError and MalformedError."""
        sites = sites_of(file)
        return Found(sites) if sites else Answer.NOT_MINE

    def tick(self, _probed: Sequence[Probed]) -> Turns[None]:
        """Nothing changes in a file with OpenSSL."""
        yield from ()

    def describe(self, _found: Probed) -> Mapping[str, str]:
        """Nothing more is known of such a file."""
        return {}

    def leaving(self, _sites: Sequence[Site]) -> None:
        """Nothing depends on the probes of a file."""

    def close(self) -> None:
        """Holds nothing."""


def sites(path: Path) -> tuple[Site, ...]:
    """The sites of the file at a path. Raises as `sites_of`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return sites_of(fd)
    finally:
        os.close(fd)


def sites_of(fd: int) -> tuple[Site, ...]:
    """The sites of an open file; none where it has no OpenSSL in it.

    Raises OSError when the file cannot be read, MalformedError when it contradicts itself.
    """
    elf = arch.open_elf(fd)
    if elf is None:
        return ()
    functions = elf.functions(_KEY, (*_READ[1:], *_WRITE, _HANDSHAKE, _FREE))
    if _WRITE[0] not in functions:
        return ()
    code = _Code(elf, functions)
    found = [
        *code.family(_READ, inner=code.inner("SSL_read", ("SSL_read_ex",))),
        # Since OpenSSL 3.3 the inner function of writes takes flags, and SSL_write_ex only calls
        # SSL_write_ex2.
        *code.family(_WRITE, inner=code.inner("SSL_write", ("SSL_write_ex2", "SSL_write_ex"))),
    ]
    if _HANDSHAKE in functions:
        program = _PROGRAMS[_HANDSHAKE]
        address = functions[_HANDSHAKE].address
        found += c_sites(elf, address, program, RETURNS[program], rare=True)
    if _FREE in functions:
        found += c_sites(elf, functions[_FREE].address, "tl_ssl_free", rare=True)
    return tuple(found)


class _Code:
    """The functions of a file, and where each of them leads with its first calls and jumps."""

    def __init__(self, elf: Elf, functions: dict[str, Function]) -> None:
        self._elf = elf
        self._functions = functions
        self._reached = {name: self._targets(function) for name, function in functions.items()}

    def family(self, names: tuple[str, ...], *, inner: tuple[str, int] | None) -> list[Site]:
        """The sites that see every call of the functions of these names, each once."""
        present = [name for name in names if name in self._functions]
        direct = [
            site
            for name in present
            # A function that only calls another of the family is seen at that one.
            if not self._passes_on(name, present)
            for site in self._sites(name, self._functions[name].address)
        ]
        if inner is not None and any(site.single_stepped for site in direct):
            return self._sites(*inner)
        return direct

    def _sites(self, name: str, address: int) -> list[Site]:
        """For the programs of the function `name`, at an address."""
        program = _PROGRAMS[name]
        return list(c_sites(self._elf, address, program, RETURNS[program]))

    def _passes_on(self, name: str, family: list[str]) -> bool:
        reached = self._reached[name]
        if name == "SSL_write_ex" and "SSL_write_ex2" in family and reached:
            # It may go there by the procedure linkage table, as Debian's for arm64 does. If it does
            # not, it has the code of SSL_write_ex2 in it, and calls what that calls.
            return reached.isdisjoint(self._reached["SSL_write_ex2"])
        return any(self._functions[other].address in reached for other in family if other != name)

    def inner(self, name: str, longer: tuple[str, ...]) -> tuple[str, int] | None:
        """The function that `name` and the first of `longer` that exists both call.

        Returns the one of `longer`, whose arguments the inner function takes, and the inner
        function's address; None where it cannot be told, or would be single-stepped. A function
        that both families call (such as OpenSSL's error queue) is not it.
        """
        other = next((other for other in longer if other in self._functions), None)
        if other is None or name not in self._functions:
            return None
        family = _READ if name in _READ else _WRITE
        foreign = {
            target
            for function, targets in self._reached.items()
            if function not in family
            for target in targets
        }
        common = (self._reached[name] & self._reached[other]) - foreign
        if len(common) != 1:  # none, or it is not known which of them reads or writes
            return None
        (address,) = common
        return None if c_place(self._elf, address).single_stepped else (other, address)

    def _targets(self, function: Function) -> set[int]:
        """Addresses of code that a function's first calls and jumps lead to.

        Some are random: what two functions have in common is not.
        """
        size = min(function.size or _WRAPPER_BYTES, _WRAPPER_BYTES)
        code = self._elf.code(function.address, size)
        targets = (function.address + target for target in arch.here().branch_targets(code))
        return {
            target for target in targets if self._elf.offset(target, executable=True) is not None
        }
