"""For all tests: the longest files begin first, and pytest-xdist can send any text of a report."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# Two files run at a time. A worker takes the next one in the order of their collection, so that a
# long file that begins last would leave the other worker without work. Measured; longest first.
LONGEST_FIRST = (
    "fleet/test_upgrade.py",
    "fleet/test_chain.py",
    "fleet/test_check.py",
    "fleet/test_hosts.py",
    "fleet/test_credentials.py",
    "fleet/test_node.py",
    "kernel/tls/test_tls.py",
    "kernel/features/test_trial.py",
    "kernel/tls/test_tls_packets.py",
    "kernel/agent/test_adoption.py",
    "kernel/evidence/test_accuracy.py",
    "kernel/evidence/test_parents.py",
    "kernel/trace/test_middle.py",
    "kernel/agent/test_faults.py",
    "kernel/tls/test_tls_calls.py",
    "kernel/features/test_groups.py",
    "kernel/proto/test_fuzz.py",
    "kernel/proto/test_limits.py",
    "kernel/probes/test_seccomp.py",
)
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, and leaves all others in their order."""
    places = {_TESTS / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Half a surrogate pair in a name or in a log is not UTF-8: it is written as `\\udcff`."""
    return _encodable((yield))


def _encodable(found: Any) -> Any:
    if isinstance(found, str):
        return found.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(found, dict):
        return {_encodable(key): _encodable(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_encodable(value) for value in found)
    return found
