"""The table of feature groups, compared with what names the groups and cannot import it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.fixtures.paths import CHECKOUT
from throughline.config import schema
from throughline.config.schema import SETTINGS
from throughline.features import pins
from throughline.features.table import BASE, GROUPS, MODES, NETWORK_CAPABILITIES, Group, Place
from throughline.host.facts import CAPABILITIES

PAGE = CHECKOUT / "docs/operator/what-works.md"
GROUP = pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)


def test_each_group_needs_one_before_it() -> None:
    seen: set[str] = set()
    for group in GROUPS.values():
        assert group.needs in seen or (group.name, group.needs) == (BASE, "")
        seen.add(group.name)


def test_modes_go_from_more_groups_to_fewer() -> None:
    sets = [set(groups) for groups in MODES.values()]
    assert all(later < earlier for earlier, later in pairwise(sets))
    assert sets[0] <= set(GROUPS)


def test_each_switch_is_a_setting_and_each_such_setting_a_switch() -> None:
    settings = [setting.key for setting in SETTINGS if setting.kind is schema.SWITCH]
    assert [group.switch for group in GROUPS.values() if group.switch] == settings
    assert [group.name for group in GROUPS.values() if not group.switch] == [BASE]


@GROUP
def test_each_capability_is_looked_for(group: Group) -> None:
    assert {*group.capabilities, *group.optional_capabilities} <= CAPABILITIES.keys()


def test_each_capability_is_of_use() -> None:
    used = {
        name
        for group in GROUPS.values()
        for name in (*group.capabilities, *group.optional_capabilities)
    }
    assert used == CAPABILITIES.keys()


@GROUP
def test_names_of_programs_are_ones_that_the_kernel_takes(group: Group) -> None:
    """It keeps 15 characters; libbpf finds the program by its whole name."""
    for program in group.programs:
        assert program.name.startswith("tl_") and program.object
        assert not program.needs or program.needs in {p.name for p in group.programs}


@GROUP
def test_each_group_can_be_withdrawn(tmp_path: Path, group: Group) -> None:
    """Its links and maps go, and no pin of another group."""
    maps, links = tmp_path / pins.NAME, tmp_path / pins.NAME / "links"
    links.mkdir(parents=True)
    for other in GROUPS.values():
        for name in other.maps:
            (maps / name).touch()
        for program in other.programs:
            (links / program.name).touch()
            (links / pins.of_cgroup(program.name, "system.slice")).touch()
    pins.withdraw(tmp_path, group.name)
    left = {path.name.partition("@")[0] for path in links.iterdir()}
    assert left == {p.name for o in GROUPS.values() if o is not group for p in o.programs}
    assert {path.name for path in maps.iterdir()} - {"links"} == {
        name for other in GROUPS.values() if other is not group for name in other.maps
    }


def test_one_program_at_most_is_attached_by_tc() -> None:
    """`tc.Interfaces` follows the interfaces for one program."""
    places = [program.place for group in GROUPS.values() for program in group.programs]
    assert places.count(Place.INTERFACES) == 1


def test_the_unit_has_the_capabilities_of_the_network_groups() -> None:
    """The role `capabilities` adds those of other groups in a drop-in."""
    unit = (CHECKOUT / "agent/systemd/throughline.service").read_text(encoding="utf-8")
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        (found,) = re.findall(rf"^{name}=(.+)$", unit, re.MULTILINE)
        assert set(found.split()) == set(NETWORK_CAPABILITIES)


@GROUP
def test_the_page_says_what_a_group_needs(group: Group) -> None:
    rows = re.findall(rf"^\| `{group.name}` \|(.*)\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 1
    _gives, needs, switch, kernel, capabilities = (cell.strip() for cell in rows[0].split("|"))
    assert needs == (f"`{group.needs}`" if group.needs else "")
    assert switch == (f"`{group.switch}`" if group.switch else "")
    assert kernel == ".".join(map(str, group.kernel))
    optional = [f"{name} where the host has it" for name in group.optional_capabilities]
    assert capabilities == ", ".join([*group.capabilities, *optional])
