"""The container behind a cgroup, and its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.services.tree import cgroup_id, cgroup_rule, services
from throughline.services import containers

ID, OTHER = "fd43b9bf604ba3ed" * 4, "583000d05085d710" * 4
ALL = cgroup_rule("*")
USER = "user.slice/user-1000.slice/user@1000.service/user.slice"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"system.slice/docker-{ID}.scope", ID),
        (f"docker/{ID}", ID),
        (f"{USER}/libpod-{ID}.scope/container", ID),
        (f"system.slice/shop.service/libpod-payload-{ID}", ID),
        (f"kubepods.slice/cri-containerd-{ID}.scope/docker/{OTHER}/init", OTHER),
        (f"machine.slice/libpod-conmon-{ID}.scope", ""),
        (f"system.slice/docker-{ID[1:]}.scope", ""),
        (f"system.slice/docker-{ID}0.scope", ""),
        (f"system.slice/my-docker-{ID}.scope", ""),
        ("system.slice/docker.service", ""),
        ("", ""),
    ],
)
def test_ids(path: str, found: str) -> None:
    assert containers.container_id(path) == found


class Engine:
    """Processes and cgroups as Podman makes them."""

    def __init__(self, root: Path, cgroup2: Path) -> None:
        self.proc, self.cgroup2 = root / "proc", cgroup2

    def process(self, pid: int, parent: int, *words: str) -> None:
        directory = self.proc / str(pid)
        directory.mkdir(parents=True)
        (directory / "stat").write_text(f"{pid} (a ) 7 (b) S {parent} 1 1 0 -1\n")
        (directory / "cmdline").write_text("".join(f"{word}\0" for word in words))

    def container(self, pid: int, container: str, *, inner: str = "/container") -> str:
        path = f"{USER}/libpod-{container}.scope"
        (self.cgroup2 / f"{path}{inner}").mkdir(parents=True)
        (self.cgroup2 / path / "cgroup.procs").touch()
        (self.cgroup2 / f"{path}{inner}" / "cgroup.procs").write_text(f"{pid}\n")
        return path

    def name(self, pid: int) -> str:
        return containers.podman_name(f"{USER}/libpod-{ID}.scope", pid, proc=self.proc)


@pytest.fixture
def engine(tmp_path: Path, cgroup2: Path) -> Engine:
    found = Engine(tmp_path, cgroup2)
    found.process(1, 0, "/sbin/init")
    found.process(70, 1, "/usr/bin/conmon", "--api-version", "1", "-c", ID, "-n", "shop-web", "-r")
    found.process(71, 70, "python3", "/web.py")
    found.process(72, 71, "conmon", "-c", OTHER, "-n", "spoofed")
    return found


@pytest.mark.parametrize("pid", [71, 72])
def test_a_container_is_called_as_its_conmon_says(engine: Engine, pid: int) -> None:
    assert engine.name(pid) == "shop-web"


@pytest.mark.parametrize(
    ("words", "pid"),
    [
        (["conmon", "-c", ID], 81),  # no name
        (["conmon", "-c", ID, "-n"], 81),
        (["conmon", "-c", OTHER, "-n", "other"], 81),  # of another container
        (["sh", "-c", ID, "-n", "no-conmon"], 81),
        ([], 81),
        (["conmon", "-c", ID, "-n", "x"], 99),  # a process that has ended
    ],
)
def test_no_name(engine: Engine, words: list[str], pid: int) -> None:
    engine.process(80, 1, *words)
    engine.process(81, 80, "sleep")
    assert engine.name(pid) == ""


def test_other_engines_have_no_conmon(engine: Engine) -> None:
    assert containers.podman_name(f"system.slice/crio-{ID}.scope", 71, proc=engine.proc) == ""


def test_a_circle_of_processes_ends(engine: Engine) -> None:
    engine.process(90, 91, "a")
    engine.process(91, 90, "b")
    assert engine.name(90) == ""


@pytest.mark.parametrize("inner", ["", "/container"])
def test_a_service_has_the_name_and_the_id_of_its_container(
    engine: Engine, cgroup2: Path, inner: str
) -> None:
    path = engine.container(71, ID, inner=inner)
    engine.container(999, OTHER)
    found = services(cgroup2, ALL, roots=["user.slice"], proc=engine.proc)
    web = found.lookup(cgroup_id(cgroup2, f"{path}{inner}"))
    assert web is found.lookup(cgroup_id(cgroup2, path))
    assert (web.name, web.unit) == ("shop-web", f"libpod-{ID}.scope")
    assert web.attributes["container.name"] == web.attributes["service.name"] == "shop-web"
    assert web.attributes["container.id"] == ID
    other = found.lookup(cgroup_id(cgroup2, f"{USER}/libpod-{OTHER}.scope"))
    assert (other.name, other.attributes["container.id"]) == (f"libpod-{OTHER}", OTHER)
    assert "container.name" not in other.attributes


def test_a_name_that_comes_later_is_found(engine: Engine, cgroup2: Path) -> None:
    path = engine.container(81, ID)
    found = services(cgroup2, ALL, roots=["user.slice"], proc=engine.proc)
    cgroup = cgroup_id(cgroup2, path)
    assert found.lookup(cgroup).name == f"libpod-{ID}"
    engine.process(80, 1, "conmon", "-n", "late", "-c", ID)
    engine.process(81, 80, "sleep")
    found.refresh()
    assert found.lookup(cgroup).name == "late"


def test_it_is_not_looked_for_for_ever(engine: Engine, cgroup2: Path) -> None:
    path = engine.container(81, ID)
    found = services(cgroup2, ALL, roots=["user.slice"], proc=engine.proc)
    for _ in range(20):
        found.refresh()
    engine.process(80, 1, "conmon", "-n", "too-late", "-c", ID)
    engine.process(81, 80, "sleep")
    found.refresh()
    assert found.lookup(cgroup_id(cgroup2, path)).name == f"libpod-{ID}"
