"""Where uprobes on OpenSSL's functions are cheap: sites in a file that defines SSL_read.

A uprobe costs about 0.5 µs where the kernel emulates the probed instruction (push, a branch, nop)
and 23 µs where it single-steps a copy of it (sub, mov, cmp): arch/x86/kernel/uprobes.c. So a site
is, in this order:
1. the function itself, past `endbr64` and `test %reg,%reg`, which change neither arguments nor
   stack;
2. the one function that SSL_X and SSL_X_ex both call at their start (ssl_read_internal,
   ssl_write_internal): it sees the calls of both, with the arguments of the latter;
3. the function itself at its dear instruction.
"""

from __future__ import annotations

import os
from pathlib import Path

from throughline.elf.elf import Elf, Function
from throughline.probes.uprobes import Site

# What decides whether a file is looked into, then what is probed there.
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
# What runs when the function returns.
RETURNS = {
    "tl_ssl_read": "tl_ssl_has_read",
    "tl_ssl_read_ex": "tl_ssl_has_read",
    "tl_ssl_write": "tl_ssl_has_sent",
    "tl_ssl_write_ex": "tl_ssl_has_sent",
    "tl_ssl_write_x2": "tl_ssl_has_sent",
    "tl_ssl_shake": "tl_ssl_shaken",
}
_WRAPPER_BYTES = 128  # of a function in which its call is looked for: 51 in OpenSSL 3.5
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_CALL, _JUMP = 0xE8, 0xE9


def sites(path: Path) -> tuple[Site, ...]:
    """The sites of a file; none when it has no OpenSSL (1.0.2 to 3.x, or BoringSSL) in it.

    Raises OSError when it cannot be read, MalformedError when it contradicts itself.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return sites_of(fd)
    finally:
        os.close(fd)


def sites_of(fd: int) -> tuple[Site, ...]:
    """As `sites`, for an open file."""
    elf = Elf.open(fd)
    if elf is None:
        return ()
    functions = elf.functions(_KEY, (*_READ[1:], *_WRITE, _HANDSHAKE, _FREE))
    if _WRITE[0] not in functions:
        return ()
    code = _Code(elf, functions)
    found = [
        *code.family(_READ, inner=code.inner("SSL_read", ("SSL_read_ex",))),
        # since OpenSSL 3.3 what writes is given flags, too; SSL_write_ex only calls SSL_write_ex2
        *code.family(_WRITE, inner=code.inner("SSL_write", ("SSL_write_ex2", "SSL_write_ex"))),
    ]
    if _HANDSHAKE in functions:
        found += code.probes(_PROGRAMS[_HANDSHAKE], functions[_HANDSHAKE].address)
    if _FREE in functions:
        found += code.probes("tl_ssl_free", functions[_FREE].address, returns=(False,))
    return tuple(found)


class _Code:
    """The first instructions of the functions."""

    def __init__(self, elf: Elf, functions: dict[str, Function]) -> None:
        self._elf = elf
        self._functions = functions
        self._reached = {name: self._targets(function) for name, function in functions.items()}

    def family(self, names: tuple[str, ...], *, inner: tuple[str, int] | None) -> list[Site]:
        """The sites that see every call of the functions of these names."""
        present = [name for name in names if name in self._functions]
        direct = [
            site
            for name in present
            # what only passes on to another of them is seen there
            if not self._passes_on(name, present)
            for site in self.probes(_PROGRAMS[name], self._functions[name].address)
        ]
        if inner is not None and any(site.dear for site in direct):
            return self.probes(_PROGRAMS[inner[0]], inner[1])
        return direct

    def _passes_on(self, name: str, family: list[str]) -> bool:
        return any(
            self._functions[other].address in self._reached[name]
            for other in family
            if other != name
        )

    def inner(self, name: str, longer: tuple[str, ...]) -> tuple[str, int] | None:
        """What `name` and the first of `longer` that exists both call, where probing it is cheap.

        With the one of `longer` whose arguments it takes. What both families call (OpenSSL's error
        queue, say) proves nothing.
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
        common = [
            target
            for target in self._reached[name]
            if target in self._reached[other] and target not in foreign
        ]
        # more than one: which of them reads or writes is not known
        return (other, common[0]) if len(common) == 1 and self._cheap(common[0])[1] else None

    def probes(
        self, program: str, address: int, *, returns: tuple[bool, ...] = (False, True)
    ) -> list[Site]:
        skipped, cheap = self._cheap(address)
        offset = self._elf.offset(address + skipped, executable=True)
        if offset is None:
            return []
        return [
            Site(RETURNS[program] if at_return else program, offset, at_return, not cheap)
            for at_return in returns
        ]

    def _cheap(self, address: int) -> tuple[int, bool]:
        """How far from its start a function can be probed at a low price, and whether at all."""
        code = self._elf.code(address, 16)
        at = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
        at += _test_bytes(code[at:])
        return (at, True) if _is_emulated(code[at:]) else (0, False)

    def _targets(self, function: Function) -> list[int]:
        """Where its first calls and jumps lead, in the order of the code.

        The bytes are not decoded: one that is no instruction leads somewhere by chance, and not
        where another function leads.
        """
        size = min(function.size or _WRAPPER_BYTES, _WRAPPER_BYTES)
        code = self._elf.code(function.address, size)
        found = []
        for at in range(len(code) - 4):
            if code[at] in (_CALL, _JUMP):
                distance = int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
                target = function.address + at + 5 + distance
                if self._elf.offset(target, executable=True) is not None and target not in found:
                    found.append(target)
        return found


def _test_bytes(code: bytes) -> int:
    """The length of a leading `test %reg,%reg`, else 0."""
    at = 1 if code[:1] and code[0] & 0xF0 == 0x40 else 0  # REX prefix
    return at + 2 if code[at : at + 1] == b"\x85" and code[at + 1 : at + 2] >= b"\xc0" else 0


def _is_emulated(code: bytes) -> bool:
    """Does the kernel emulate the first instruction? push, call, jmp, jcc; nop of one byte."""
    if not code:
        return False
    first, second = code[0], code[1] if len(code) > 1 else 0
    return (
        first in (_CALL, _JUMP, 0xEB, 0x90)
        or first & 0xF8 == 0x50  # push
        or first & 0xF0 == 0x70  # jcc
        or (first == 0x41 and second & 0xF8 == 0x50)  # push of r8 to r15
        or (first == 0x0F and second & 0xF0 == 0x80)  # jcc
    )
