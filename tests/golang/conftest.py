"""Fixtures of the tests with Go services."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernel.traced import Traced


@pytest.fixture
def writing() -> Iterator[Traced]:
    """The agent, with the group go_write, which this kernel may refuse.

    Where THROUGHLINE_TEST_WRITES is set it must not: then a refusal is a failure.
    """
    with Traced({"instrumentation": {"go_write": "auto"}}) as traced:
        status = traced.status()
        assert status is not None
        group = status["groups"]["go_write"]
        if group["state"] == "off" and not os.environ.get("THROUGHLINE_TEST_WRITES"):
            pytest.skip(f"go_write is off: {group['reason']}")
        assert group["state"] == "on", group
        yield traced
