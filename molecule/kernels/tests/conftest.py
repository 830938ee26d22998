"""Fixtures for the VM of this run, the order of the checks, and the record of their findings.

The record is build/kernels/results/PLATFORM.seen.json, written anew after each check, so that a run
that ends early has left what it had; tests/vms/report.py makes the page of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import testinfra

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))
# ssh closes a connection that a reboot has cut after ten seconds.
os.environ["ANSIBLE_SSH_EXTRA_ARGS"] = "-o ServerAliveInterval=5 -o ServerAliveCountMax=2"

from machine import Machine  # noqa: E402
from tests.vms import expected  # noqa: E402

# From the bare host to the bare host; within a module, as written.
ORDER = (
    *("test_host", "test_refusal", "test_agent", "test_chain", "test_go", "test_selinux"),
    *(
        "test_options",
        "test_bcc",
        "test_operation",
        "test_reboot",
        "test_releases",
        "test_uninstall",
    ),
)
RECORD = pytest.StashKey[dict[str, Any]]()
SEEN = pytest.StashKey[dict[str, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begins the record."""
    config.addinivalue_line("markers", "proves(*groups): a group works only where this passes")
    config.stash[RECORD] = {
        "platform": platform_name(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "checks": {},
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the modules in order. Raises ValueError for a module that the order does not list."""
    items.sort(key=lambda item: ORDER.index(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds a check's outcome to the record. The last phase with an outcome wins."""
    report = yield
    record = item.config.stash[RECORD]
    check = record["checks"].setdefault(
        item.name,
        {
            "outcome": "unfinished",
            "seconds": 0.0,
            "proves": [group for mark in item.iter_markers("proves") for group in mark.args],
        },
    )
    check["seconds"] = round(check["seconds"] + report.duration, 1)
    if report.when == "call" and report.passed:
        check["outcome"] = "passed"
    elif not report.passed:
        check["outcome"] = report.outcome
        text = report.longrepr
        check["reason"] = text[2] if isinstance(text, tuple) else last_words(str(text))
    check["seen"] = item.stash.get(SEEN, {})
    write(record)
    return report


def last_words(text: str) -> str:
    """The lines of a traceback with the failed assertion, at most ten."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return "\n".join(lines[:10]) or text[-500:]


def platform_name() -> str:
    """The platform of this run."""
    return os.environ["THROUGHLINE_PLATFORM"]


def write(record: dict[str, Any]) -> None:
    """Replaces the record's file."""
    file = REPOSITORY / "build/kernels/results" / f"{record['platform']}.seen.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A check writes its findings into this dict."""
    return request.node.stash.setdefault(SEEN, {})


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> dict[str, Any]:
    """The whole record, for findings about the platform and not about one check."""
    return pytestconfig.stash[RECORD]


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The VM."""
    name, inventory = platform_name(), os.environ["MOLECULE_INVENTORY_FILE"]
    host = testinfra.get_host(f"ansible://{name}?ansible_inventory={inventory}")
    folder = REPOSITORY / "build/kernels" / name
    return Machine(expected.load()[name], host, inventory, folder)


@pytest.fixture(scope="session")
def accepted(machine: Machine) -> None:
    """Only where the agent is expected to be rolled out."""
    if not machine.platform.on:
        pytest.skip("no agent here: site.yml has to refuse this platform")


@pytest.fixture
def also(machine: Machine, request: pytest.FixtureRequest) -> None:
    """Only on platforms that list the module's name in the table's `also`."""
    name = request.path.stem.removeprefix("test_")
    if name not in machine.platform.also:
        pytest.skip(f"{name}: run on other platforms only, it does not depend on the kernel")
