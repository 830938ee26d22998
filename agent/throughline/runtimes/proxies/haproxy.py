"""HAProxy: where streams are made and worked for, and where a connection keeps its descriptor.

HAProxy exports its functions, also in stripped builds, since it prints their names
(-Wl,-export-dynamic). Where struct connection has its descriptor is read in the code of functions
that get a connection: patch releases have moved it (3.2.0 has it at 104, 3.2.26 at 120). All else
that is read in its structs is at the same place from 2.4 to 3.4 (include/haproxy/connection-t.h and
session-t.h). bpf/runtimes/proxies.bpf.c checks at each use that the connection names its session.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from throughline.bpf import abi
from throughline.elf.elf import Elf, Function, MalformedError
from throughline.probes import arch
from throughline.runtimes.proxies.proxy import Proxy, UnsupportedError, two_sites

WORKS, MAKES = "process_stream", "stream_new"
_VERSION = "haproxy_version"
_MAX_VERSION = 64
_NUMBER = re.compile(rb"(\d{1,3})\.(\d{1,3})[^\0]{0,58}\0")


# Functions whose first argument is a connection, and which use its descriptor.
_USERS = ("sock_drain", "sock_ignore_events", "sock_conn_check")
_USER_BYTES = 96  # of each, looked into
_FDLESS = 0x00200000  # CO_FL_FDLESS: connections of QUIC, since 2.6
VERSIONS = {(2, minor): _FDLESS if minor >= 6 else 0 for minor in range(4, 10)}
VERSIONS |= {(3, minor): _FDLESS for minor in range(5)}


def find(elf: Elf) -> Proxy | None:
    """HAProxy in a file; None where there is none.

    Raises OSError, MalformedError, and UnsupportedError for a version that is not known.
    """
    functions = elf.functions(WORKS, [MAKES, *_USERS])
    if WORKS not in functions or MAKES not in functions:
        return None
    version = _version(elf)
    found = _NUMBER.fullmatch(version)
    flag = VERSIONS.get((int(found[1]), int(found[2]))) if found else None
    name = "HAProxy " + version.partition(b"\0")[0].decode(errors="replace")
    if flag is None:
        raise UnsupportedError(name)
    descriptor_at = _descriptor_at(elf, functions)
    if not descriptor_at:
        raise UnsupportedError(f"{name}, whose code is not as expected")
    sites = (
        *two_sites(elf, functions[WORKS].address, "tl_hap_works", "tl_hap_rests"),
        *two_sites(elf, functions[MAKES].address, "tl_hap_makes", "tl_hap_made"),
    )
    packed = abi.PROXY_BINARY.pack(flag, descriptor_at)
    return Proxy(name, abi.RuntimeKind.RUNTIME_HAPROXY, sites, packed)


def _descriptor_at(elf: Elf, functions: Mapping[str, Function]) -> int:
    """The offset of connection.handle.fd; 0 where the functions do not agree."""
    offsets = {
        next(arch.here().numbers_of_argument(elf.code(functions[name].address, _USER_BYTES)), 0)
        if name in functions
        else 0
        for name in _USERS
    }
    return offsets.pop() if len(offsets) == 1 else 0


def _version(elf: Elf) -> bytes:
    """The version with its final 0, as the program says it; b"" where it does not."""
    symbol = elf.objects([_VERSION]).get(_VERSION)
    if symbol is None or not 0 < symbol.size <= _MAX_VERSION:
        return b""
    offset = elf.offset(symbol.address)
    if offset is None:
        raise MalformedError(f"{_VERSION} is not in the file")
    return elf.read(offset, symbol.size)
