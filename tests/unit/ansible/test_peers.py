"""The addresses of the fleet."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.plugins import plugin


@pytest.mark.parametrize(
    ("variables", "networks"),
    [
        ({"ansible_host": "10.1.0.7"}, {"10.1.0.7/32"}),
        ({"ansible_host": "fd00:1::7"}, {"fd00:1::7/128"}),
        ({"throughline_addresses": ["10.2.0.0/16", "fd00:2::9"]}, {"10.2.0.0/16", "fd00:2::9/128"}),
        ({"throughline_addresses": "10.2.0.9", "ansible_host": "10.1.0.7"}, {"10.2.0.9/32"}),
        ({"ansible_host": "127.0.0.1"}, set()),  # a forwarded port
        ({"ansible_host": "fe80::1"}, set()),
        ({"ansible_host": "no-such-host.invalid"}, set()),
    ],
)
def test_the_address_of_a_peer(variables: dict[str, Any], networks: set[str]) -> None:
    assert plugin("filter.throughline_peers").networks_of("web1", variables) == networks


def test_a_network_with_host_bits_is_no_address_of_a_peer() -> None:
    with pytest.raises(ValueError, match="host bits"):
        plugin("filter.throughline_peers").networks_of(
            "a", {"throughline_addresses": ["10.1.0.7/8"]}
        )


def test_peers_are_the_fleet_and_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = plugin("filter.throughline_peers")
    warnings: list[str] = []
    monkeypatch.setattr(peers.Display, "warning", lambda self, text: warnings.append(text))
    inventory: dict[str, dict[str, Any]] = {
        "b": {"ansible_host": "10.1.0.10"},
        "a": {"throughline_addresses": ["fd00::1", "10.1.0.9"]},
        "twice": {"ansible_host": "10.1.0.9"},
        "unknown.invalid": {},
    }
    found = peers.throughline_peers(list(inventory), inventory)
    assert found == [
        "127.0.0.0/8",
        "::1/128",
        "10.1.0.9/32",
        "10.1.0.10/32",
        "fd00::1/128",
    ]
    assert len(warnings) == 1
    assert "unknown.invalid" in warnings[0] and "throughline_addresses" in warnings[0]
