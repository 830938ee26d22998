"""The collection's table of feature groups says the same as the agent and the roles."""

from __future__ import annotations

from typing import Any

import yaml

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import plugin
from throughline.config.schema import SETTINGS
from throughline.features import table


def groups() -> Any:
    return plugin("module_utils.groups")


def option(role: str, name: str) -> dict[str, Any]:
    path = CHECKOUT / f"roles/{role}/meta/argument_specs.yml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return dict(found["argument_specs"]["main"]["options"][name])


def test_the_agent_has_the_same_groups() -> None:
    assert list(groups().GROUPS) == list(table.GROUPS)


def test_each_row_is_that_of_the_agent() -> None:
    defaults = {setting.key: setting.default for setting in SETTINGS}
    for ours in table.GROUPS.values():
        theirs = groups().GROUPS[ours.name]
        assert theirs.capabilities == ours.capabilities, ours.name
        assert theirs.optional_capabilities == ours.optional_capabilities, ours.name
        assert theirs.switch == ours.switch, ours.name
        assert theirs.kernel == ours.kernel, ours.name
        assert theirs.uprobes == (ours.uprobes is not table.Uprobes.NONE), ours.name
        assert theirs.default == (defaults.get(ours.switch, "auto") == "auto"), ours.name


def test_the_modes_are_those_of_the_agent() -> None:
    assert list(groups().MODES.items()) == list(table.MODES.items())


def test_each_switch_is_a_setting_of_the_agent() -> None:
    switches = {group.switch for group in groups().TABLE} - {""}
    assert switches <= {setting.key for setting in SETTINGS}
    assert {group.name for group in groups().TABLE if not group.switch} == {"observe"}


def test_the_roles_offer_the_same_groups() -> None:
    wanted = option("preflight", "throughline_groups")
    assert wanted["choices"] == list(groups().GROUPS)
    assert wanted["default"] == list(groups().DEFAULT_GROUPS)


def test_the_unit_has_the_capabilities_of_the_network_groups() -> None:
    """Without the drop-in of the role `capabilities`."""
    text = (CHECKOUT / "agent/systemd/throughline.service").read_text(encoding="utf-8")
    wanted = " ".join(groups().NETWORK_CAPABILITIES)
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert f"\n{name}={wanted}\n" in text


def test_each_capability_has_a_number() -> None:
    known = plugin("module_utils.host").CAPABILITY_BITS
    for group in groups().TABLE:
        assert {*group.capabilities, *group.optional_capabilities} <= known.keys()
