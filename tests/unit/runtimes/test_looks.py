"""When a provider looks at a process."""

from __future__ import annotations

from throughline.runtimes.looks import Looks


def test_often_while_it_starts_and_when_it_begins_to_listen() -> None:
    looks = Looks(100.0)

    def due(*times: float, listens: int) -> list[float]:
        return [time for time in times if looks.is_due(time, listens)]

    assert due(100.0, 101.0, 104.9, listens=0) == [100.0, 101.0, 104.9]
    assert due(105.0, 106.0, 114.9, 115.0, 116.0, listens=0) == [105.0, 115.0]
    assert due(116.2, 116.5, 121.0, 121.5, 131.0, listens=1) == [116.2, 116.5, 121.0, 121.5]
    assert due(131.6, 132.0, listens=1) == [131.6]
    assert due(133.0, listens=2) == [133.0]
    assert looks.is_settled(133.0)
