"""Fixtures of the tests with Go services."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.fixtures import needs
from tests.fixtures.go import tested
from tests.fixtures.traced import Traced


@pytest.fixture
def writing() -> Iterator[Traced]:
    """The agent, with the group go_write.

    Where THROUGHLINE_TEST_WRITES is set the kernel must give what it needs.
    """
    if not os.environ.get("THROUGHLINE_TEST_WRITES"):
        needs.any_uprobes()
        needs.write_user()
    with Traced({"instrumentation": {"go_write": "auto"}}) as traced:
        status = traced.status()
        assert status is not None
        group = status["groups"]["go_write"]
        assert group["state"] == "on", group
        yield traced


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps for docs/reference/go-versions.md what has passed."""
    report = yield
    if call.when == "teardown" or (call.when == "setup" and report.passed):
        return report
    noted = tested.take()
    if not report.skipped:
        passed = noted if report.passed else []
        writes = "writing" in getattr(item, "fixturenames", ())
        tested.kept(item.nodeid, passed, writes=writes)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in tested.to_print:
        terminalreporter.write_line(line)
