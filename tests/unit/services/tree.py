"""A directory tree in the place of the cgroup2 mount: inode numbers are ids in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from throughline.config.model import ServiceRule
from throughline.services.naming import Services

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
