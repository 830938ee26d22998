"""Walks over the cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.services.tree import cgroup_id, cgroup_rule, services, unit_rule
from throughline.services import cgroups
from throughline.services.rules import find_roots


def test_a_walk_is_bounded(cgroup2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "MAX_CGROUPS", 5)
    found = services(cgroup2, cgroup_rule("*"))
    assert len(found._entries) == 5
    assert found.too_many == 1
    assert found.find(cgroup_id(cgroup2, "system.slice")) is not None, "from the top"


def test_a_walk_is_done_in_small_steps(cgroup2: Path) -> None:
    """A thousand cgroups: no step looks at more than 64."""
    for number in range(1000):
        (cgroup2 / f"system.slice/run-{number}.scope").mkdir()
    found = services(cgroup2)
    steps = sum(1 for _ in found.refreshing())
    assert 2 * 1000 / 64 < steps < 200
    assert sum(1 for _ in find_roots((unit_rule("run-*"),), cgroup2=cgroup2)) > 2 * 1000 / 64
