"""The networks with which TCP options are exchanged: the map `tl_peers`.

The map is a longest-prefix-match trie over IPv6 addresses. IPv4 networks are in it as IPv4-mapped
ones (::ffff:0:0/96, RFC 4291 section 2.5.5.2), so the programs need one lookup for both families.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from throughline.bpf import maps

_KEY = struct.Struct("=I16s")  # struct bpf_lpm_trie_key: bits of the prefix, then the address
_MAPPED = bytes(10) + b"\xff\xff"
_PRESENT = b"\x01"


def key(network: IPv4Network | IPv6Network) -> bytes:
    """The key of a network: 20 bytes."""
    address = network.network_address.packed
    if isinstance(network, IPv4Network):
        return _KEY.pack(96 + network.prefixlen, _MAPPED + address)
    return _KEY.pack(network.prefixlen, address)


def keys(networks: Iterable[IPv4Network | IPv6Network]) -> set[bytes]:
    """The fewest keys that cover the networks: adjacent networks and subnetworks are merged."""
    known = list(networks)
    four = collapse_addresses(n for n in known if isinstance(n, IPv4Network))
    six = collapse_addresses(n for n in known if isinstance(n, IPv6Network))
    return {*map(key, four), *map(key, six)}


def tell(table: int, networks: Iterable[IPv4Network | IPv6Network]) -> None:
    """Makes the map equal to `networks`. Raises ENOSPC when it is too small."""
    wanted = keys(networks)
    told = set(maps.keys(table, _KEY.size))
    for stale in told - wanted:
        maps.delete(table, stale)
    for fresh in wanted - told:
        try:
            maps.update(table, fresh, _PRESENT)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"propagation.peers: {len(wanted)} networks are more than tl_peers holds",
            ) from error
