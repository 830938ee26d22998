"""Services and their names, from a tree in place of cgroup2: ids are inode numbers in both."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.clock import Clock
from throughline.config.model import ServiceRule
from throughline.host.attributes import host_attributes
from throughline.services import cgroups
from throughline.services.naming import (
    Services,
    agent_service,
    attach_roots,
    find_roots,
    unescape,
    unit_path,
)

HOST = {"host.id": "0123456789abcdef0123456789abcdef", "host.name": "h1"}
TREE = (
    "init.scope",
    "system.slice/nginx.service",
    "system.slice/shop-web.service/supervisor/worker",
    r"system.slice/system-cart\x2dapi.slice/cart-api@1.service",
    r"system.slice/dev-disk-by\x2duuid.mount",
    r"system.slice/odd\x2dname.service",
    "system.slice/docker-abc.scope",
    "user.slice/user-1000.slice/user@1000.service/app.slice/app-x.service",
    "machine.slice/h2.scope/payload/system.slice/inner.service",
    "custom.slice/shop-batch.service",
)


@pytest.fixture
def cgroup2(tmp_path: Path) -> Path:
    for path in TREE:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "cgroup.procs").write_text("")
    return tmp_path


def unit_rule(pattern: str, name: str | None = None, *, trace: bool = True) -> ServiceRule:
    return ServiceRule("systemd_unit", pattern, name, trace)


def cgroup_rule(pattern: str, name: str | None = None) -> ServiceRule:
    return ServiceRule("cgroup", pattern, name, True)


def services(cgroup2: Path, *rules: ServiceRule, **more: Any) -> Services:
    values: dict[str, Any] = {"cgroup2": cgroup2, "host": HOST, "resource_attributes": {}}
    return Services(rules, **{**values, **more})


def cgroup_id(cgroup2: Path, path: str) -> int:
    return (cgroup2 / path).stat().st_ino


def traced_paths(cgroup2: Path, found: Services) -> set[str]:
    by_id = {
        path.stat().st_ino: path.relative_to(cgroup2).as_posix()
        for path in cgroup2.rglob("*")
        if path.is_dir()
    }
    return {by_id[number] for number, traced in found.traced().items() if traced}


def test_names() -> None:
    assert unescape(r"a\x2db\x5cc") == r"a-b\c"
    assert unit_path("a.slice/b.service/c/d") == "a.slice/b.service"
    assert unit_path("a.slice/b.service/c.scope") == "a.slice/b.service/c.scope"
    assert unit_path("a.slice") == ""


@pytest.mark.parametrize(
    ("path", "name", "unit"),
    [
        ("system.slice/nginx.service", "nginx", "nginx.service"),
        ("system.slice/shop-web.service/supervisor/worker", "shop-web", "shop-web.service"),
        (
            r"system.slice/system-cart\x2dapi.slice/cart-api@1.service",
            "cart-api@1",
            "cart-api@1.service",
        ),
        (r"system.slice/odd\x2dname.service", "odd-name", r"odd\x2dname.service"),
        ("system.slice/docker-abc.scope", "docker-abc", "docker-abc.scope"),
        ("system.slice", "system.slice", ""),
    ],
)
def test_default_names(cgroup2: Path, path: str, name: str, unit: str) -> None:
    found = services(cgroup2).lookup(cgroup_id(cgroup2, path))
    assert (found.name, found.unit, found.traced) == (name, unit, True)


def test_one_service_for_all_cgroups_of_a_unit(cgroup2: Path) -> None:
    found = services(cgroup2)
    inner = found.lookup(cgroup_id(cgroup2, "system.slice/shop-web.service/supervisor/worker"))
    assert inner is found.lookup(cgroup_id(cgroup2, "system.slice/shop-web.service"))
    assert inner.cgroup == "system.slice/shop-web.service"


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


def test_a_unit_that_starts_later_is_found(cgroup2: Path) -> None:
    clock = Clock()
    found = services(cgroup2, clock=clock)
    (cgroup2 / "system.slice/new.service").mkdir()
    new = cgroup_id(cgroup2, "system.slice/new.service")
    clock.now += 1
    assert found.find(new) is None
    found.refresh()
    assert found.lookup(new).name == "new"
    assert found.unresolved == 0


def test_walks_ahead_of_their_turn_are_limited(cgroup2: Path) -> None:
    clock = Clock()
    found = services(cgroup2, clock=clock)
    assert not found.may_refresh()
    assert found.find(1) is None and found.unresolved == 0
    assert found.lookup(1).name == "unknown_service" and found.unresolved == 1
    clock.now += 0.1
    assert found.may_refresh()


def test_a_name_outlives_its_cgroup(cgroup2: Path) -> None:
    clock = Clock()
    found = services(cgroup2, clock=clock)
    path = cgroup2 / "system.slice/nginx.service"
    nginx = cgroup_id(cgroup2, "system.slice/nginx.service")
    (path / "cgroup.procs").unlink()
    path.rmdir()
    clock.now += 1
    found.refresh()
    assert found.lookup(nginx).name == "nginx"
    assert nginx not in found.traced()
    clock.now += 601
    found.refresh()
    assert found.lookup(nginx).name == "unknown_service"


def test_memory_is_bounded_when_units_come_and_go(cgroup2: Path) -> None:
    clock = Clock()
    found = services(cgroup2, clock=clock)
    for number in range(200):
        path = cgroup2 / f"system.slice/run-{number}.scope"
        path.mkdir()
        found.refresh()
        path.rmdir()
        clock.now += 100
    found.refresh()
    assert len(found._entries) < 40
    assert len(found._services) < 100


def test_resource(cgroup2: Path) -> None:
    extra = {"team": "a", "service.name": "ignored", "host.name": "given"}
    found = services(cgroup2, resource_attributes=extra).lookup(
        cgroup_id(cgroup2, "system.slice/nginx.service")
    )
    identity = f"{HOST['host.id']}/nginx.service"
    namespace = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
    assert found.attributes == {
        "host.id": HOST["host.id"],
        "host.name": "given",
        "team": "a",
        "service.name": "nginx",
        "service.instance.id": str(uuid.uuid5(namespace, identity)),
        "systemd.unit": "nginx.service",
        "linux.cgroup.path": "/system.slice/nginx.service",
    }
    assert agent_service(host=HOST, resource_attributes=extra).attributes["service.name"] == (
        "throughline"
    )


def test_host_attributes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "etc/os-release").write_text(
        '# comment\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nPRETTY_NAME=\'Debian 12\'\n\n'
    )
    found = host_attributes(tmp_path)
    assert found["host.id"] == "0123456789abcdef0123456789abcdef"
    assert (found["os.name"], found["os.version"]) == ("Debian GNU/Linux", "12")
    assert (found["os.type"], found["os.description"]) == ("linux", "Debian 12")
    assert "telemetry.sdk.language" not in found


def test_a_bare_host_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    found = host_attributes(tmp_path)
    assert "host.id" not in found
    assert "os.name" not in found
    assert found["host.name"]


ODD = os.fsdecode(b"a\xff\x1b[2J.scope")


def test_a_name_that_is_no_utf8(cgroup2: Path) -> None:
    """Surrogates must not reach JSON, OTLP or uuid5, which raise UnicodeEncodeError."""
    for name in (ODD, os.fsdecode(b"a\xfe\x1b[2J.scope")):
        (cgroup2 / "system.slice" / name / "below").mkdir(parents=True)
    known = services(cgroup2)
    found = known.lookup(cgroup_id(cgroup2, f"system.slice/{ODD}/below"))
    assert found.name == "a\ufffd\x1b[2J" and found.unit == "a\ufffd\x1b[2J.scope"
    assert found.cgroup == "system.slice/a\ufffd\x1b[2J.scope"
    for value in found.attributes.values():
        value.encode("utf-8")
    json.dumps(dict(found.attributes), ensure_ascii=False).encode("utf-8")
    other = known.lookup(cgroup_id(cgroup2, os.fsdecode(b"system.slice/a\xfe\x1b[2J.scope")))
    key = "service.instance.id"
    assert found.attributes[key] != other.attributes[key]
    paths = [path for path in known.traced_paths() if ODD in path]
    assert len(paths) == 2 and all(Path(path).is_dir() for path in paths)


def test_escapes_of_unit_names_are_bytes_of_utf8() -> None:
    assert unescape(r"caf\xc3\xa9") == "café"
    for name in (r"a\x1b[2J", r"a\x00", r"a\xff", r"a\x0ab"):
        assert unescape(name) == name, "what cannot be printed stays escaped"


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(
    cgroup2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with mode 700 of a delegated cgroup does not end the walk."""
    hidden = cgroup2 / "system.slice/shop-web.service"
    really = os.scandir

    def refuse(path: Any) -> Any:
        for ending, number in (
            ("shop-web.service", errno.EACCES),
            ("nginx.service", errno.ELOOP),
            ("docker-abc.scope", errno.ENAMETOOLONG),
            ("system-cart\\x2dapi.slice", errno.ENODEV),  # gone: not counted
        ):
            if os.fspath(path).endswith(ending):
                raise OSError(number, os.strerror(number), path)
        return really(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = services(cgroup2)
    assert found.lookup(hidden.stat().st_ino).name == "shop-web"
    assert found.find((hidden / "supervisor").stat().st_ino) is None
    assert found.find(cgroup_id(cgroup2, r"system.slice/odd\x2dname.service")) is not None
    assert found.unreadable == 3
    found.refresh()
    assert found.unreadable == 3, "each is counted once while it lasts"
    monkeypatch.undo()
    found.refresh()
    monkeypatch.setattr(os, "scandir", refuse)
    found.refresh()
    assert found.unreadable == 6


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_cgroup_of_another_user_ends_nothing() -> None:
    """The agent's user has no CAP_DAC_READ_SEARCH."""
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


def test_what_is_known_stays_while_a_walk_is_under_way(cgroup2: Path) -> None:
    found = services(cgroup2)
    before = found.traced()
    for number in range(100):
        (cgroup2 / f"system.slice/new-{number}.service").mkdir()
    walking = found.refreshing()
    next(walking, None)
    walking.close()
    assert found.traced() == before
    found.follow(["system.slice", "custom.slice"])
    found.refresh()
    assert found.find(cgroup_id(cgroup2, "custom.slice/shop-batch.service")) is not None
