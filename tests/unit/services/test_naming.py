"""The services behind cgroups."""

from __future__ import annotations

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.clock import Clock
from tests.unit.services.tree import HOST, cgroup_id, services
from throughline.services.naming import agent_service


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


ODD = os.fsdecode(b"a\xff\x1b[2J.scope")


def test_a_name_that_is_no_utf8(cgroup2: Path) -> None:
    """It reached JSON, OTLP and uuid5 as surrogates: UnicodeEncodeError."""
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


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(
    cgroup2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a delegated cgroup does `chmod 700`: the walk raised PermissionError."""
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
