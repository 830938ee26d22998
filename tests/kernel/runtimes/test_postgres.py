"""Applications that ask PostgreSQL, through four connections that 32 requests share.

The stacks are those of the bench (tests/parents).
"""

from __future__ import annotations

import pytest

from tests.parents.app import Behaviour, MissingError
from tests.parents.apps import named
from tests.parents.cell import Bench

REQUESTS, CONCURRENT = 211, 32


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("flask-postgres", "thread"),  # psycopg
        ("fastapi-threads-postgres", "python"),
        ("fastapi-postgres", "python"),  # asyncpg
        ("express-postgres-preload", "node"),  # pg
    ],
)
def test_each_call_has_its_request(running: Bench, name: str, evidence: str) -> None:
    app = named(name)
    try:
        steps = running.run(app, (Behaviour.DATABASE,), {CONCURRENT: REQUESTS})
        ((_, result),) = steps
    except MissingError as error:
        pytest.skip(str(error))
    assert not result.failures
    assert (result.wrong, result.right) == (0, REQUESTS), result
    assert result.evidence == {f"right by {evidence}": REQUESTS}
