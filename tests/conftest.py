"""For all tests: what a worker of pytest-xdist says of them can be sent to the one that prints."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Half a surrogate pair in a name or in a log is no UTF-8: it is written as `\\udcff`."""
    return _encodable((yield))


def _encodable(found: Any) -> Any:
    if isinstance(found, str):
        return found.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(found, dict):
        return {_encodable(key): _encodable(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_encodable(value) for value in found)
    return found
