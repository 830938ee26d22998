"""How networks become keys of the map `tl_peers`."""

from __future__ import annotations

from ipaddress import ip_network

from throughline.bpf import peers
from throughline.config.schema import network


def keys(*networks: str) -> set[str]:
    return {key.hex() for key in peers.keys(map(ip_network, networks))}


def test_both_families_are_ipv6_prefixes() -> None:
    # prefix length as the host orders bytes, then the address
    assert keys("10.1.0.0/16") == {"70000000" + "00" * 10 + "ffff" + "0a010000"}
    assert keys("0.0.0.0/0") == {"60000000" + "00" * 10 + "ffff" + "00000000"}
    assert keys("192.0.2.7") == {"80000000" + "00" * 10 + "ffff" + "c0000207"}
    assert keys("fd00:1::/64") == {"40000000" + "fd000001" + "00" * 12}


def test_as_few_as_cover_them() -> None:
    assert keys("10.0.0.0/9", "10.128.0.0/9", "10.3.0.0/16") == keys("10.0.0.0/8")
    assert keys("fd00::/65", "fd00:0:0:0:8000::/65") == keys("fd00::/64")
    assert keys() == set()


def test_mapped_networks_are_ipv4() -> None:
    assert network("::ffff:10.1.0.0/112") == network("10.1.0.0/16")
    assert network("::ffff:0:0/96") == network("0.0.0.0/0")
