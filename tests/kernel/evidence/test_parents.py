"""A part of the bench of parents (tests/parents): real applications, 32 requests at a time, or 1.

`make bench-parents` runs all of them. Here are those whose packages `make test` has in any case, or
that are the first that anybody would try, and one in which a rule has been missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parents import cell
from tests.parents.app import Behaviour, MissingError
from tests.parents.apps import named

# How large the share of right parents has to be; the others are none. Never is one wrong.
ALL = 0.999
PART: dict[tuple[str, Behaviour], float] = {
    ("flask-sync", Behaviour.AT_ONCE): ALL,
    ("flask-sync", Behaviour.DATABASE): ALL,
    ("flask-gthread", Behaviour.POLLER): ALL,
    ("fastapi-asyncio", Behaviour.SLEEP): ALL,
    ("fastapi-uvloop", Behaviour.POLLER): ALL,
    ("nginx-keepalive", Behaviour.BODY): ALL,
    ("nginx-both", Behaviour.AT_ONCE): ALL,
    ("unix-flask-sync", Behaviour.DATABASE): ALL,
    ("haproxy", Behaviour.AT_ONCE): 0,
}


@pytest.fixture(scope="module")
def bench() -> Iterator[cell.Bench]:
    with cell.bench() as found:
        yield found


@pytest.mark.timeout(900)  # a new machine builds the service, too
def test_event_loops_of_java_earn_no_trust(bench: cell.Bench) -> None:
    """Reactor Netty reads and answers on one thread, as a pool does, but calls after the answer."""
    try:
        ((_, result),) = bench.run(named("spring-webflux"), [Behaviour.AFTER], {1: 101})
    except MissingError as error:
        pytest.skip(str(error))
    assert result.failures == []
    assert result.calls >= 101
    assert result.wrong == 0, result.examples
    assert result.unexplained == 0, result


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "behaviour"), PART, ids=lambda one: str(getattr(one, "value", one))
)
def test_no_parent_is_wrong(bench: cell.Bench, name: str, behaviour: Behaviour) -> None:
    ((_, result),) = bench.run(named(name), [behaviour], {32: 499})
    assert result.failures == []
    assert result.calls >= 499
    assert result.wrong == 0, result.examples
    assert result.right >= PART[name, behaviour] * result.calls, result
    assert result.unexplained == 0, result
