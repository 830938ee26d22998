"""The parents of calls by service: the kernel's map is a list here."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fixtures.clock import Clock
from throughline.agent.parents import READ_SECONDS, Parents
from throughline.agent.report import service_counts
from throughline.bpf import abi, trust
from throughline.bpf.trust import Trust
from throughline.records.durations import SeriesKey
from throughline.services.naming import Service
from throughline.steps import finish

SHOP = Service("shop", "shop.service", "system.slice/shop.service", True, {})
STOCK = Service("stock", "stock.service", "system.slice/stock.service", True, {})


class Names:
    """Cgroups 1 and 2 are of one service, as those of two containers in it."""

    def find(self, cgroup_id: int) -> Service | None:
        return {1: SHOP, 2: SHOP, 3: STOCK}.get(cgroup_id)


def program(
    cgroup_id: int, *, inode: int = 5, seen: dict[int, int], found: dict[int, int]
) -> Trust:
    """An entry as the kernel keeps it."""
    key = abi.PROGRAM.pack(*abi.Program(cgroup_id, inode, 0x800001, 0))
    value = abi.TRUST.pack(
        17,
        *(seen.get(number, 0) for number in range(abi.Seen.ALL)),
        *(found.get(number, 0) for number in range(abi.Found.ALL)),
        abi.ProgramKind.PROGRAM_EVENTS,
        0,
    )
    return trust.decode(key, memoryview(value))


def test_an_entry_is_decoded() -> None:
    found = program(1, seen={abi.Seen.LATE: 3}, found={abi.Found.ENDED: 7})
    assert (found.cgroup_id, found.inode, found.device) == (1, 5, 0x800001)
    assert (found.earned, found.kind) == (17, "events")
    assert {name: n for name, n in found.seen.items() if n} == {"late": 3}
    assert {name: n for name, n in found.found.items() if n} == {"ended": 7}


def test_the_programs_of_a_service_are_summed() -> None:
    programs = [
        program(1, seen={abi.Seen.ANSWER: 2}, found={abi.Found.PROVEN: 5}),
        program(1, inode=6, seen={}, found={abi.Found.PROVEN: 3, abi.Found.NOTHING: 1}),
        program(
            2, seen={abi.Seen.ANSWER: 1, abi.Seen.WAITS: 9}, found={abi.Found.CONTRADICTED: 11}
        ),
        program(3, seen={abi.Seen.OVERLAP: 4}, found={}),  # no call, and no contradiction
        program(4, seen={}, found={abi.Found.PROVEN: 100}),  # its cgroup is not known any more
    ]
    parents = Parents(lambda: iter(programs), Names())
    finish(parents.reading())
    assert {name: counts.as_json() for name, counts in parents.by_service.items()} == {
        "shop": {
            "proven": 8,
            "likely": 0,
            "none": {"nothing": 1, "contradicted": 11},
            "contradicted": {"answer": 3},
        }
    }


def test_a_service_has_requests_and_parents_whichever_is_known() -> None:
    programs = [program(1, seen={}, found={abi.Found.LIKELY: 5})]
    parents = Parents(lambda: iter(programs), Names())
    finish(parents.reading())
    served = SeriesKey("server", "GET", 200, "1.1")
    counts = [(SHOP, served, 7), (STOCK, served, 3)]
    shown = service_counts(counts, sampled={}, parents=parents.by_service)
    assert shown["shop"].as_json()["parents"]["likely"] == 5
    assert shown["shop"].as_json()["server"]["requests"] == 7
    assert "parents" not in shown["stock"].as_json()
    alone = service_counts([], sampled={}, parents=parents.by_service)
    assert list(alone) == ["shop"] and alone["shop"].unit == "shop.service"


def test_the_map_is_read_every_ten_seconds_and_in_turns() -> None:
    clock, readings = Clock(), []

    def read() -> Iterator[Trust]:
        readings.append(clock.now)
        for inode in range(8192):
            yield program(1, inode=inode + 1, seen={}, found={abi.Found.PROVEN: 1})

    parents = Parents(read, Names(), clock=clock)
    turns = 0
    for _ in parents.reading():
        turns += 1
        assert not parents.by_service, "half of the map is not shown"
    assert turns == 64
    assert parents.by_service["shop"].found["proven"] == 8192
    clock.now += READ_SECONDS - 1
    finish(parents.reading())
    assert len(readings) == 1
    clock.now += 1
    finish(parents.reading())
    assert len(readings) == 2
