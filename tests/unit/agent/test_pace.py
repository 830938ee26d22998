"""When the agent looks at the host: each second, and more often while services start."""

from __future__ import annotations

from throughline.agent.pace import Pace


def ticks(of: Pace, start: float, seconds: float) -> list[float]:
    """When it is due, asked each tenth of a second as the agent's loop does."""
    times = [start + tenth / 10 for tenth in range(1, int(seconds * 10) + 1)]
    return [round(now - start, 1) for now in times if of.is_due(now)]


def test_each_second() -> None:
    assert ticks(Pace(100.0), 100.0, 3) == [1.0, 2.0, 3.0]


def test_a_listener_is_looked_at_soon_and_some_times_more() -> None:
    of = Pace(100.0)
    assert ticks(of, 100.0, 5) == [1.0, 2.0, 3.0, 4.0, 5.0]
    of.hurry(105.1)
    assert ticks(of, 105.0, 4) == [0.3, 0.6, 0.9, 1.2, 1.5, 2.5, 3.5]


def test_a_host_where_processes_listen_all_the_time() -> None:
    of, count = Pace(0.0), 0
    for tenth in range(1, 6001):
        of.hurry(tenth / 10)
        count += of.is_due(tenth / 10)
    # each second, 40 more at once, and a half more each second
    assert 600 <= count <= 600 + 40 + 300
