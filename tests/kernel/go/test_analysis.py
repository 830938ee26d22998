"""What the analysis finds in programs of every release, however they were built.

Symbols or none, position-independent or not, with paths or without, with the race detector: the
layouts are those of the release, and every feature that the program has is on.
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from tests.fixtures.go import debian, offsets, tested
from tests.fixtures.go.build import PIE, RACE, STRIPPED, TRIMMED, build
from tests.fixtures.go.look import lacks, look
from tests.fixtures.go.toolchains import NEWEST, OLDEST, RELEASES
from throughline.runtimes.go import layouts
from throughline.runtimes.go.rtypes import Types
from throughline.runtimes.go.wanted import EXTRA, FEATURES

pytestmark = pytest.mark.long  # it needs every release of Go

NET_HTTP = {
    "goroutines",
    "http_client",
    "http_server",
    "http2_client",
    "http2_server",
    "http_write",
    "http2_write",
}
# each of the latter compiles Go's library anew
BUILDS = (
    *((release, flags) for release in RELEASES for flags in ((), STRIPPED)),
    *(
        (release, (*flags, *STRIPPED))
        for release in (OLDEST, "1.22", NEWEST)
        for flags in (PIE, TRIMMED)
    ),
)
# release, program, modules, what it must have
OTHERS = (
    ("1.18", "grpc/client", "1.50", {"grpc_client", "grpc_write", "x_http2_write"}),
    ("1.18", "grpc/server", "1.50", {"grpc_server"}),
    ("1.22", "grpc/client", "1.64", {"grpc_client", "grpc_write"}),
    ("1.22", "grpc/server", "1.64", {"grpc_server"}),
    ("1.26", "grpc/client", "1.72", {"grpc_client", "grpc_write"}),
    ("1.26", "grpc/server", "1.72", {"grpc_server"}),
    (NEWEST, "grpc/client", "", {"grpc_client", "grpc_write"}),
    (NEWEST, "grpc/server", "", {"grpc_server"}),
    ("1.18", "http2/client", "0.1", {"x_http2_client", "x_http2_write"}),
    ("1.18", "http2/server", "0.1", {"x_http2_server"}),
    ("1.22", "http2/client", "0.33", {"x_http2_client", "x_http2_write"}),
    ("1.22", "http2/server", "0.33", {"x_http2_server"}),
    # golang.org/x/net/http2 is only a cover of net/http's since then
    (NEWEST, "http2/client", "", {"http2_client", "http2_write"}),
    (NEWEST, "http2/server", "", {"http2_server"}),
)


@pytest.mark.parametrize(("release", "flags"), BUILDS, ids=str)
def test_net_http_of_each_release(release: str, flags: tuple[str, ...]) -> None:
    path = build("chain/server", version=release, flags=flags)
    program = tested.note(tested.ANALYSED, path, flags)
    assert lacks(program, NET_HTTP) == {}
    assert program.version.startswith(f"go{release}")
    assert set(program.sources.values()) == {"types"}
    assert not any(site.single_stepped for site in program.sites.values())
    assert program.offsets == look(build("chain/server", version=release)).offsets


def test_the_race_detector_changes_no_layout() -> None:
    path = build("chain/server", flags=RACE)
    program = tested.note(tested.ANALYSED, path, RACE)
    assert lacks(program, NET_HTTP) == {}
    assert program.offsets == look(build("chain/server")).offsets


@pytest.mark.parametrize(("release", "name", "modules", "features"), OTHERS)
def test_modules(release: str, name: str, modules: str, features: set[str]) -> None:
    path = build(name, version=release, modules=modules)
    program = tested.note(tested.ANALYSED, path, ())
    assert lacks(program, features | {"goroutines"}) == {}
    assert not any(site.single_stepped for site in program.sites.values())


@pytest.mark.parametrize("name", ["prometheus", "prometheus-node-exporter", "caddy", "etcd"])
def test_debian(name: str) -> None:
    """Stripped, linked by the system's linker, and without versions of modules."""
    program = look(Path(debian.program(name)))
    assert lacks(program, NET_HTTP) == {}


@pytest.mark.parametrize("release", RELEASES)
def test_dwarf_says_the_same_as_the_types(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build("chain/server", version=release)
    expected = look(path).offsets
    monkeypatch.setattr(Types, "find", lambda self, wanted: {})
    program = look(path)
    assert set(program.sources.values()) == {"dwarf"}
    assert len(program.offsets) > 40
    assert program.offsets == {name: expected[name] for name in program.offsets}


@pytest.mark.parametrize("release", RELEASES)
def test_the_table_says_the_same_as_the_types(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build("chain/server", version=release, flags=STRIPPED)
    expected = look(path).offsets
    monkeypatch.setattr(Types, "find", lambda self, wanted: {})
    program = look(path)
    assert set(program.sources.values()) == {"table"}
    extra = {group[0] for group in EXTRA.offsets}
    extra -= {group[0] for feature in FEATURES for group in feature.offsets}
    assert program.offsets == {n: v for n, v in expected.items() if n not in extra}


def test_the_table_is_what_the_programs_say() -> None:
    """Generated anew from the newest release it says nothing else."""
    found: offsets.Table = {}
    offsets.add(found, look(build("chain/server", flags=STRIPPED)))
    [[version, names]] = found["go"].items()
    known = layouts.table._table()["go"][version]
    assert {name: known.get(name) for name in names} == names


def test_a_large_program_takes_little(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(debian.program("prometheus"))
    look(path)
    started = time.process_time()
    look(path)
    took = time.process_time() - started
    tracemalloc.start()
    look(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with capsys.disabled():
        megabytes = path.stat().st_size >> 20
        print(f" [{megabytes} MB: {took:.2f} s, {peak >> 20} MB of memory]", end="")
    assert took < 2
    assert peak < 64 << 20


def test_every_feature_was_seen() -> None:
    seen = NET_HTTP.union(*(features for *_, features in OTHERS))
    assert seen == {feature.name for feature in FEATURES}
