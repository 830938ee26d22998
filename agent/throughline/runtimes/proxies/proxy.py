"""What is known of a file with a proxy in it."""

from __future__ import annotations

from dataclasses import dataclass

from throughline.bpf import abi
from throughline.elf.elf import Elf, MalformedError
from throughline.probes.site import Site, c_sites


class UnsupportedError(ValueError):
    """A proxy that cannot be followed; the text names it."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that can be followed."""

    name: str  # "HAProxy 2.6.12", for status
    kind: abi.RuntimeKind
    sites: tuple[Site, ...]  # without cookies
    packed: bytes  # struct tl_proxy_binary


def two_sites(elf: Elf, address: int, begins: str, returns: str) -> tuple[Site, Site]:
    """Where a function begins and where it returns. Raises MalformedError where it has no code."""
    sites = c_sites(elf, address, begins, returns)
    if len(sites) != 2:
        raise MalformedError(f"no code at {address:#x}")
    return sites[0], sites[1]
