"""The table of feature groups of the collection, compared with the agent's and with the role."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import plugin
from throughline.config.schema import SETTINGS
from throughline.features import table


def groups() -> Any:
    return plugin("module_utils.groups")


def test_the_agent_has_the_same_groups_and_modes() -> None:
    assert list(groups().GROUPS) == list(table.GROUPS)
    assert groups().MODES == table.MODES
    assert list(groups().MODES) == list(table.MODES)
    assert groups().NETWORK_CAPABILITIES == table.NETWORK_CAPABILITIES


@pytest.mark.parametrize("name", table.GROUPS)
def test_a_group_is_the_same_as_the_agents(name: str) -> None:
    ours, agents = groups().GROUPS[name], table.GROUPS[name]
    for field in ("capabilities", "optional_capabilities", "switch", "kernel"):
        assert getattr(ours, field) == getattr(agents, field), field
    assert ours.uprobes == (agents.uprobes is not table.Uprobes.NONE)
    defaults = {setting.key: setting.default for setting in SETTINGS}
    assert ours.default == (defaults.get(agents.switch, "auto") == "auto")
    assert not ours.switch or ours.switch in defaults


def test_the_unit_has_the_capabilities_of_the_network_groups() -> None:
    """Without the drop-in of the role `capabilities`."""
    text = (CHECKOUT / "agent/systemd/throughline.service").read_text(encoding="utf-8")
    wanted = " ".join(groups().NETWORK_CAPABILITIES)
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert f"\n{name}={wanted}\n" in text


def test_the_role_offers_the_same_groups() -> None:
    path = CHECKOUT / "roles/preflight/meta/argument_specs.yml"
    specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    options = specs["main"]["options"]
    assert options["throughline_groups"]["choices"] == list(groups().GROUPS)
    assert options["throughline_groups"]["default"] == list(groups().DEFAULT_GROUPS)
    assert options["throughline_required_mode"]["choices"] == list(groups().MODES)


def test_each_capability_has_a_number() -> None:
    known = plugin("module_utils.host").CAPABILITY_BITS
    for group in groups().TABLE:
        assert {*group.capabilities, *group.optional_capabilities} <= known.keys()
