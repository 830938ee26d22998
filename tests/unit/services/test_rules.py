"""Which rule is for a cgroup, and where programs attach."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.unit.services.tree import cgroup_id, cgroup_rule, services, traced_paths, unit_rule
from throughline.config.model import ServiceRule
from throughline.services import cgroups
from throughline.services.rules import attach_roots


def test_first_rule_wins_and_only_what_is_listed_is_traced(cgroup2: Path) -> None:
    found = services(
        cgroup2,
        unit_rule("shop-web.service", trace=False),
        unit_rule("shop-*", "shop"),
        unit_rule("odd-name.service"),
    )
    assert not found.trace_by_default
    assert traced_paths(cgroup2, found) == {
        "custom.slice/shop-batch.service",
        r"system.slice/odd\x2dname.service",
    }
    web = found.lookup(cgroup_id(cgroup2, "system.slice/shop-web.service"))
    assert (web.name, web.traced) == ("shop-web", False)
    batch = found.lookup(cgroup_id(cgroup2, "custom.slice/shop-batch.service"))
    assert (batch.name, batch.traced) == ("shop", True)


def test_without_rules_all_of_system_slice_is_traced(cgroup2: Path) -> None:
    found = services(cgroup2)
    assert found.trace_by_default
    assert len(found.traced()) == 1 + sum(
        path.is_dir() for path in (cgroup2 / "system.slice").rglob("*")
    )
    assert all(found.traced().values())


def test_a_cgroup_rule_covers_what_is_inside(cgroup2: Path) -> None:
    found = services(cgroup2, cgroup_rule("machine.slice/*.scope", "vm"))
    assert found.lookup(cgroup_id(cgroup2, "machine.slice/h2.scope/payload")).name == "vm"
    inner = "machine.slice/h2.scope/payload/system.slice/inner.service"
    assert found.lookup(cgroup_id(cgroup2, inner)).unit == "inner.service"
    assert "machine.slice" not in traced_paths(cgroup2, found)


@pytest.mark.parametrize(
    ("rules", "roots"),
    [
        ([], ["system.slice"]),
        ([unit_rule("nginx.service")], ["system.slice"]),
        ([unit_rule("shop-*.service")], ["custom.slice", "system.slice"]),
        ([unit_rule("inner.service")], ["machine.slice", "system.slice"]),
        ([cgroup_rule("machine.slice/*.scope")], ["machine.slice"]),
        ([cgroup_rule("machine.slice/h2.scope")], ["machine.slice/h2.scope"]),
        ([cgroup_rule("system.slice/x*"), unit_rule("n*")], ["system.slice"]),
        ([cgroup_rule("*/h?.scope")], [""]),
        ([cgroup_rule("*"), unit_rule("nginx.service")], [""]),
        ([cgroup_rule("gone.slice/*")], []),
        ([unit_rule("nginx.service", trace=False)], []),
    ],
)
def test_attach_roots(cgroup2: Path, rules: list[ServiceRule], roots: list[str]) -> None:
    assert attach_roots(rules, cgroup2=cgroup2) == roots


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_cgroup_of_another_user_ends_nothing() -> None:
    """As the agent's user, which has no CAP_DAC_READ_SEARCH."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        top.chmod(0o755)
        for path in ("user.slice/mine.service/hidden", "user.slice/theirs.service"):
            (top / path).mkdir(parents=True)
        (top / "user.slice/mine.service").chmod(0o700)
        rules = (
            cgroup_rule("user.slice/mine.service/hidden/*"),
            cgroup_rule("user.slice/mine.service"),
            cgroup_rule("user.slice/theirs.service"),
        )
        os.seteuid(65534)
        try:
            assert attach_roots(rules, cgroup2=top) == ["user.slice/theirs.service"]
            assert not cgroups.exists(top / "user.slice/mine.service/hidden")
            roots = ["user.slice", "user.slice/mine.service/hidden"]
            found = services(top, unit_rule("*.service"), roots=roots)
            assert attach_roots((unit_rule("theirs.service"),), cgroup2=top) == ["user.slice"]
        finally:
            os.seteuid(0)
        assert found.unreadable == 2
        assert traced_paths(top, found) == {
            "user.slice/mine.service",
            "user.slice/theirs.service",
        }
