"""The name that a service has in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fixtures.process import running
from tests.unit.services.tree import cgroup_id, cgroup_rule, services, unit_rule
from throughline.services import environment

PROC = Path("/proc")
WAITS = "import sys; print(flush=True); sys.stdin.read()"
Start = Callable[[dict[str, str]], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with this environment, and returns when it runs."""
    with ExitStack() as stack:

        def begin(variables: dict[str, str]) -> int:
            process = stack.enter_context(
                running(
                    [sys.executable, "-I", "-c", WAITS],
                    env=variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert process.stdout is not None
            process.stdout.readline()
            return process.pid

        yield begin


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"A": "b", "OTEL_SERVICE_NAME": "käse", "Z": "=" * 9}, "käse"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a, service.name = cart%20api ,x=y"}, "cart api"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=no", "OTEL_SERVICE_NAME": "yes"}, "yes"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=yes", "OTEL_SERVICE_NAME": ""}, "yes"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.namespace=shop"}, ""),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=no,broken"}, ""),
        ({"MY_OTEL_SERVICE_NAME": "no"}, ""),
        ({"OTEL_SERVICE_NAME": "n" * 300}, "n" * 255),
        ({"LARGE": "x" * 50_000, "OTEL_SERVICE_NAME": "behind"}, "behind"),
        ({}, ""),
    ],
)
def test_names(start: Start, variables: dict[str, str], name: str) -> None:
    assert environment.service_name(start(variables), proc=PROC) == name


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    assert environment.service_name(1, proc=tmp_path) == ""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "stat").write_text("1 (short) S 0 1\n")
    assert environment.service_name(1, proc=tmp_path) == ""


def test_a_service_is_called_as_its_process_is_told(start: Start, cgroup2: Path) -> None:
    procs = cgroup2 / "system.slice/nginx.service/cgroup.procs"
    procs.write_text(f"{start({'OTEL_SERVICE_NAME': 'edge'})}\n")
    nginx = cgroup_id(cgroup2, "system.slice/nginx.service")
    found = services(cgroup2).lookup(nginx)
    assert (found.name, found.unit) == ("edge", "nginx.service")
    assert found.attributes["service.name"] == "edge"
    named = services(cgroup2, unit_rule("nginx.service", "rule")).lookup(nginx)
    assert named.name == "rule", "the operator's name wins"
    rules = unit_rule("nginx.service", trace=False), cgroup_rule("*")
    assert services(cgroup2, *rules).lookup(nginx).name == "nginx", (
        "nobody reads what is not traced"
    )


def test_a_process_that_comes_later(start: Start, cgroup2: Path) -> None:
    """The unit's identity stays, under which its instance is known."""
    found = services(cgroup2)
    nginx = cgroup_id(cgroup2, "system.slice/nginx.service")
    before = found.lookup(nginx)
    pid = start({"OTEL_SERVICE_NAME": "edge"})
    (cgroup2 / "system.slice/nginx.service/cgroup.procs").write_text(f"{os.getpid()}\n")
    found.refresh()
    assert found.lookup(nginx).name == before.name == "nginx"
    (cgroup2 / "system.slice/nginx.service/cgroup.procs").write_text(f"{pid}\n")
    found.refresh()
    after = found.lookup(nginx)
    assert after.name == "edge"
    key = "service.instance.id"
    assert after.attributes[key] == before.attributes[key]
    (cgroup2 / "system.slice/nginx.service/cgroup.procs").write_text("0\n")
    for _ in range(20):
        found.refresh()
    assert found.lookup(nginx).name == "edge", "what was found stays"
