"""Totals of requests: the kernel's map is a dictionary here, cgroups are directories."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.clock import Clock
from throughline.agent.report import service_counts
from throughline.bpf import abi
from throughline.records import durations
from throughline.records.durations import SeriesKey
from throughline.services.naming import Services
from throughline.telemetry import series
from throughline.telemetry.series import Point, Series

CPUS = 64
GET = SeriesKey("server", "GET", 200, "1.1")


class FakeTable:
    """A per-CPU hash: key -> one struct tl_duration for each CPU."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytearray] = {}
        self.looked_up = 0

    def entries(self) -> Iterator[list[tuple[bytes, memoryview]]]:
        for key, values in list(self.rows.items()):
            yield [(key, memoryview(values))]

    def lookup(self, key: bytes) -> bytes | None:
        self.looked_up += 1
        found = self.rows.get(key)
        return None if found is None else bytes(found)

    def delete(self, key: bytes) -> None:
        self.rows.pop(key, None)

    def count(self, cgroup_id: int, requests: int, *, status: int = 200) -> None:
        """What the kernel does for `requests` requests of 20 ms, on several CPUs."""
        key = abi.DURATION_KEY.pack(
            *abi.DurationKey(
                cgroup_id=cgroup_id,
                status=status,
                kind=abi.Kind.SERVER,
                method=abi.Method.GET,
                http_minor=1,
                tls=0,
                http_major=0,
                grpc=0,
            )
        )
        size = abi.DURATION.size
        values = self.rows.setdefault(key, bytearray(size * CPUS))
        for number in range(requests):
            at = number % CPUS * size
            known = list(abi.DURATION.unpack_from(values, at))
            known[0], known[1], known[4] = known[0] + 1, known[1] + 20_000_000, known[4] + 1
            abi.DURATION.pack_into(values, at, *known)


class Host:
    """Units that start and stop, and an agent that looks at them."""

    def __init__(self, directory: Path) -> None:
        self.cgroup2 = directory / "cgroup2"
        self.slice = self.cgroup2 / "system.slice"
        self.slice.mkdir(parents=True)
        self.path = directory / "series.json"
        self.table = FakeTable()
        self.clock = Clock()
        self.kept = 0
        self.begin(adopting=False)

    def unix(self) -> int:
        return int(self.clock.now * 1e9)

    def begin(self, *, adopting: bool) -> None:
        self.services = Services(
            (), cgroup2=self.cgroup2, host={}, resource_attributes={}, clock=self.clock
        )
        self.series = Series(
            self.table,
            services=self.services,
            path=self.path,
            start_unix_ns=self.unix(),
            adopting=adopting,
            clock=self.clock,
            unix=self.unix,
        )

    def start(self, name: str) -> int:
        path = self.slice / f"{name}.service"
        path.mkdir()
        return path.stat().st_ino

    def stop(self, name: str) -> None:
        """The directory moves away, so that its inode number is not used again."""
        self.kept += 1
        (self.slice / f"{name}.service").rename(self.cgroup2 / f"gone-{self.kept}")

    def second(self, seconds: float = 1.0) -> None:
        self.clock.now += seconds
        self.services.refresh()
        self.series.read()

    def points(self) -> dict[str, Point]:
        for _ in self.series.decoding():
            pass
        found = self.series.points()
        assert len({(p.service.name, p.series) for p in found}) == len(found)
        return {point.service.name: point for point in found}

    def total(self, name: str) -> tuple[int, int]:
        """Requests and start time of a service with one series."""
        point = self.points()[name]
        shown = service_counts(self.series.counts(), sampled={})
        assert shown[name].kinds["server"].requests == point.histogram.count
        return point.histogram.count, point.start_unix_ns


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_histogram_is_the_sum_over_all_cpus(host: Host) -> None:
    shop = host.start("shop")
    host.table.count(shop, 1000)
    host.second()
    point = host.points()["shop"]
    assert point.series == GET
    assert point.histogram.buckets == (0, 0, 1000, *[0] * 12)
    assert point.histogram.sum_ns == 20_000_000_000
    assert point.service.attributes["service.name"] == "shop"


def test_a_unit_that_restarts_goes_on(host: Host) -> None:
    """1000 requests, a restart, 50 more: 1050, not 50, for ever."""
    first = host.start("shop")
    host.table.count(first, 1000)
    host.second()
    assert host.total("shop")[0] == 1000
    began = host.total("shop")[1]
    host.stop("shop")
    second = host.start("shop")
    assert first != second
    host.table.count(second, 50)
    totals = []
    for _ in range(900):
        host.second()
        totals.append(host.total("shop"))
    assert set(totals) == {(1050, began)}
    assert len(host.table.rows) == 1, "the row of the cgroup that has gone makes room"


def test_what_comes_late_from_a_cgroup_that_has_gone_is_added(host: Host) -> None:
    shop = host.start("shop")
    host.table.count(shop, 10)
    host.second()
    host.stop("shop")
    for _ in range(20):
        host.second()
    assert host.table.rows == {}
    host.table.count(shop, 3)  # a connection that outlived it
    host.second()
    assert host.total("shop")[0] == 13


@pytest.mark.parametrize("seconds", [1, 100])
def test_a_crash_takes_nothing_back(host: Host, seconds: int) -> None:
    first = host.start("shop")
    host.table.count(first, 1000)
    host.second()
    began = host.total("shop")[1]
    host.stop("shop")
    for _ in range(seconds):
        host.second()
    # the agent is killed, the unit is started meanwhile
    host.table.count(host.start("shop"), 50)
    host.begin(adopting=True)
    host.second()
    assert host.total("shop") == (1050, began)
    host.second(100)
    assert host.total("shop") == (1050, began)


def test_a_crash_between_adding_and_removing_counts_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.table.count(host.start("shop"), 1000)
    host.second()
    host.stop("shop")

    def crash(_: bytes) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(host.table, "delete", crash)
    with pytest.raises(RuntimeError):
        for _ in range(20):
            host.second()
    monkeypatch.undo()
    assert len(host.table.rows) == 1
    host.begin(adopting=True)
    host.second()
    assert host.total("shop")[0] == 1000


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', "[1]"])
def test_without_a_readable_file_series_begin_anew(host: Host, text: str) -> None:
    shop = host.start("shop")
    host.table.count(shop, 1000)
    host.second()
    host.clock.now += 5
    host.path.write_text(text)
    host.begin(adopting=True)
    again = host.unix()
    host.second()
    assert host.points() == {}
    host.table.count(shop, 7)
    host.second()
    count, began = host.total("shop")
    assert count == 7 and began >= again


def test_a_service_that_was_forgotten_begins_anew(host: Host) -> None:
    host.table.count(host.start("shop"), 10)
    host.second()
    first = host.total("shop")
    host.stop("shop")
    for _ in range(700):
        host.second()
    assert host.points() == {}
    assert host.series._known == {} and host.series._of_cgroup == {}
    forgotten = host.unix()
    host.table.count(host.start("shop"), 2)
    host.second()
    count, began = host.total("shop")
    assert count == 2 and began >= forgotten > first[1]


def test_a_series_that_comes_later_begins_later(host: Host) -> None:
    shop = host.start("shop")
    host.table.count(shop, 1)
    host.second()
    between = host.unix()
    host.second()
    host.table.count(shop, 1, status=503)
    host.second()
    for _ in host.series.decoding():
        pass
    starts = {p.series.status: p.start_unix_ns for p in host.series.points()}
    assert starts[200] < between < starts[503] < host.unix()


def test_a_cgroup_that_nobody_has_met_waits_to_be_named(host: Host) -> None:
    shop = host.start("shop")
    host.table.count(shop, 5)
    host.series.read()  # before the next walk
    assert host.points() == {}
    host.second()
    assert host.total("shop")[0] == 5
    host.table.count(4711, 3)
    for _ in range(20):
        host.second()
    assert host.total("unknown_service")[0] == 3
    assert host.services.unresolved == 1
    assert len(host.table.rows) == 1


def test_other_rules_begin_another_series(host: Host) -> None:
    """What was counted under the old name stays there."""
    shop = host.start("shop")
    host.table.count(shop, 1000)
    host.second()
    from throughline.config.model import ServiceRule

    rule = ServiceRule("systemd_unit", "shop.service", "store", True)
    host.begin(adopting=True)
    host.services._rules = (rule,)
    host.services._entries.clear()
    host.second()
    host.table.count(shop, 7)
    host.second()
    assert host.total("shop")[0] == 1000
    assert host.total("store")[0] == 7


def test_other_rules_take_all_rows_of_a_cgroup_along(host: Host) -> None:
    """Also when rows of others wait to be named meanwhile."""
    from throughline.config.model import ServiceRule

    shop = host.start("shop")
    for status in (200, 404, 503):
        host.table.count(shop, 10, status=status)
    host.second()
    host.begin(adopting=True)
    host.services._rules = (ServiceRule("systemd_unit", "shop.service", "store", True),)
    host.services._entries.clear()
    for number in range(5):
        host.table.count(4711 + number, 1)
    for _ in range(3):
        host.second()
        host.table.count(shop, 1)
    host.second()
    shown = service_counts(host.series.counts(), sampled={})
    assert shown["shop"].kinds["server"].requests == 30
    assert shown["store"].kinds["server"].requests == 3


def test_memory_is_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_TOTALS", 20)
    for number in range(100):
        host.table.count(host.start(f"run-{number}"), 1)
        host.second()
        host.stop(f"run-{number}")
        host.second(30)
    assert sum(map(len, host.series._totals.values())) <= 21
    assert len(host.series._known) <= 21
    shop = host.start("shop")
    for status in range(100, 200):
        host.table.count(shop, 1, status=status)
        host.second()
        host.stop("shop")
        host.second(30)
        (host.slice / "shop.service").mkdir()
        shop = (host.slice / "shop.service").stat().st_ino
    assert sum(map(len, host.series._totals.values())) <= 21
    assert len(host.table.rows) <= 2


def test_only_what_has_changed_is_decoded(host: Host) -> None:
    shop, cart = host.start("shop"), host.start("cart")
    host.table.count(shop, 10)
    host.table.count(cart, 10)
    for _ in range(5):
        host.second()
    assert host.table.looked_up == 0, "status needs no histogram"
    host.points()
    assert host.table.looked_up == 2
    host.table.count(cart, 1)
    host.second()
    host.points()
    assert host.table.looked_up == 3


def test_a_full_map_of_many_processors_is_read_quickly(host: Host) -> None:
    """8,192 rows of 64 processors: 1 s of each second before, when all of it was decoded."""
    shop = host.start("shop")
    host.table.count(shop, 640)
    ((key, values),) = host.table.rows.items()
    known = abi.DurationKey(*abi.DURATION_KEY.unpack(key))
    for status in range(1000, 9191):
        host.table.rows[abi.DURATION_KEY.pack(*known._replace(status=status))] = values
    host.second()
    began = time.thread_time()
    host.series.read()
    shown = service_counts(host.series.counts(), sampled={})
    spent = time.thread_time() - began
    assert shown["shop"].kinds["server"].requests == 8192 * 640
    assert spent < 0.3, f"{spent:.2f} s"
    before = 0
    for _ in host.series.decoding():
        assert host.table.looked_up - before <= 32, "of these spans wait for no more at a time"
        before = host.table.looked_up
    assert host.table.looked_up == 8192
    assert sum(point.histogram.count for point in host.series.points()) == 8192 * 640


def test_one_histogram_costs_little() -> None:
    values = bytes(abi.DURATION.size * CPUS)
    assert durations.decode_count(values) == durations.decode_histogram(values).count == 0
