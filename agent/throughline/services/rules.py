"""The rules of the configuration: which one is for a cgroup, and where programs attach for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from throughline.config.model import ServiceRule
from throughline.services import cgroups
from throughline.services.units import unescape, unit_name
from throughline.steps import Turns, finish

DEFAULT_ROOT = "system.slice"
_GLOB = re.compile(r"[*?\[]")
_EACH_TURN = 64  # cgroups, about 1 ms


def match(rules: Sequence[ServiceRule], path: str) -> ServiceRule | None:
    """The first rule that matches the cgroup at `path`, or None.

    A systemd_unit glob is compared with the unit's name, escaped and not. A cgroup glob is compared
    with the cgroup's path below the mount and with the path of each parent, so a rule for a cgroup
    also covers the cgroups in it.
    """
    unit = unit_name(path)
    for rule in rules:
        if rule.by == "systemd_unit":
            if unit and any(fnmatchcase(name, rule.pattern) for name in {unit, unescape(unit)}):
                return rule
        elif any(fnmatchcase(parent, rule.pattern) for parent in _with_parents(path)):
            return rule
    return None


def attach_roots(rules: Sequence[ServiceRule], *, cgroup2: Path) -> list[str]:
    """The cgroups to which programs are attached, as paths below the mount; none is in another.

    Each exists, and this user may open it; the cgroup's owner can forbid that at any time.
    Without rules the root is system.slice. A systemd_unit rule adds system.slice, and any other
    top-level cgroup that has a matching unit now. A cgroup rule adds the directory before its first
    wildcard. "" is the mount itself.
    """
    return finish(find_roots(rules, cgroup2=cgroup2))


def find_roots(rules: Sequence[ServiceRule], *, cgroup2: Path) -> Turns[list[str]]:
    """Does the work of `attach_roots` in turns."""
    roots: set[str] = set()
    wanted = [rule for rule in rules if rule.trace]
    if not rules or any(rule.by == "systemd_unit" for rule in wanted):
        roots.add(DEFAULT_ROOT)
    for rule in wanted:
        if rule.by == "cgroup":
            glob = _GLOB.search(rule.pattern)
            roots.add(rule.pattern[: glob.start()].rpartition("/")[0] if glob else rule.pattern)
    by_unit = [rule for rule in wanted if rule.by == "systemd_unit"]
    if by_unit:
        walked = yield from cgroups.walk(cgroup2, [""])
        for count, path in enumerate(walked.paths.values(), 1):
            if match(rules, path) in by_unit:
                roots.add(path.partition("/")[0])
            if count % _EACH_TURN == 0:
                yield
    existing = {root for root in roots if cgroups.is_open(cgroup2 / root)}
    return sorted(
        root
        for root in existing
        if not any(other != root and root.startswith(f"{other}/") for other in existing)
        and (root == "" or "" not in existing)
    )


def _with_parents(path: str) -> Iterable[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
