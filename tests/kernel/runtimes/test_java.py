"""Parents of calls that Java makes: by virtual thread, 32 requests at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import java
from tests.fixtures.traced import Traced


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return java.classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found


@pytest.mark.parametrize("way", ["now", "later", "twice", "socket"])
@pytest.mark.parametrize("major", [21, 25])
def test_virtual_threads(traced: Traced, built: Path, major: int, way: str) -> None:
    found = java.run(traced, java.need(major), built, way, "virtual")
    assert found["wrong"] == 0
    assert found["right"] >= 0.999 * found.total()
