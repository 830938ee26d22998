"""The bench of parents, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures import needs
from tests.parents.cell import Bench, bench


@pytest.fixture(scope="module")
def running() -> Iterator[Bench]:
    needs.any_uprobes()
    with bench() as found:
        yield found
