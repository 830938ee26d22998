# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The addresses of the fleet in the inventory, for propagation.peers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.utils.display import Display

# A host is its own peer. A loopback address in the inventory (a forwarded port) is not the host's
# address in the fleet.
LOOPBACK = ("127.0.0.0/8", "::1/128")


def resolved(name: str) -> set[str]:
    """The addresses of a name, resolved on the controller; none where the name is unknown."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(entry[4][0]).partition("%")[0] for entry in found}


def networks_of(name: str, variables: Mapping[str, Any]) -> set[str]:
    """The networks of a host: throughline_addresses, else ansible_host, else the host's name.

    Raises ValueError for an entry of throughline_addresses that is neither address nor network.
    """
    own = variables.get("throughline_addresses")
    if own:
        listed = [own] if isinstance(own, str) else own
        return {str(ipaddress.ip_network(str(entry))) for entry in listed}
    where = str(variables.get("ansible_host") or name)
    try:
        addresses = {str(ipaddress.ip_address(where))}
    except ValueError:
        addresses = resolved(where)
    found = map(ipaddress.ip_address, addresses)
    return {str(ipaddress.ip_network(a)) for a in found if not (a.is_loopback or a.is_link_local)}


def throughline_peers(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """The networks of the named hosts and of loopback. Warns of hosts without a known address."""
    found: set[str] = set()
    unknown = []
    for name in names:
        networks = networks_of(name, hostvars[name])
        found |= networks
        if not networks:
            unknown.append(name)
    if unknown:
        Display().warning(
            f"Found no address of {', '.join(unknown)}, required one for propagation.peers. Without"
            " it TCP options carry no context to and from there. Remedy: set throughline_addresses"
            " or ansible_host for the host, or throughline_peers for the fleet."
        )
    parsed = sorted(map(ipaddress.ip_network, found), key=lambda n: (n.version, n))
    return [*LOOPBACK, *map(str, parsed)]


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Any]:
        """Names in templates."""
        return {"throughline_peers": throughline_peers}
