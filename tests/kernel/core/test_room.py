"""LRU maps hold as many entries as the pages say, on any number of processors."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures.kernel_objects import make_all_give_way
from tests.fixtures.paths import CHECKOUT
from tests.fixtures.secure import Secure
from tests.fixtures.traced import Traced
from throughline.bpf import maps
from throughline.features.objects import Objects

COUNT = 23
BPF = CHECKOUT / "bpf"
# object, map, bytes of key and value: one of each size that there is
MAPS = [
    ("tls", "tl_tls_pids", 4, 4),
    ("observe", "tl_claims", 8, 16),
    ("observe", "tl_threads", 4, 48),
]


@contextmanager
def loaded(*names: str) -> Iterator[Objects]:
    with tempfile.TemporaryDirectory(prefix="tl-") as directory:
        subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
        try:
            objects = Objects(bpffs=Path(directory), map_sizes={})
            objects.pins.mkdir()
            for name in names:
                objects.load(name)
            yield objects
            objects.close()
        finally:
            subprocess.run(["umount", directory], check=True)


def promised() -> dict[str, int]:
    """The number of entries that the sources promise."""
    found = {}
    for source in sorted(BPF.rglob("*.[ch]")):
        for body, name in re.findall(r"struct \{([^}]*)\} (\w+) SEC", source.read_text()):
            if "LRU_HASH" in body:
                (size,) = re.findall(r"max_entries, (\d+)", body)
                found[name] = int(size)
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "map_name", "key_bytes", "value_bytes"), MAPS)
def test_all_that_is_promised_has_room(
    name: str, map_name: str, key_bytes: int, value_bytes: int
) -> None:
    """Also when each processor has used the map once: the kernel sets entries aside for it then."""
    home = os.sched_getaffinity(0)
    wanted = promised()[map_name]
    with loaded("observe", *([name] if name != "observe" else [])) as objects:
        found = objects.get(name)
        assert found is not None
        table = found.map_fd(map_name)
        try:
            for number in range(wanted):
                if number < len(home):
                    os.sched_setaffinity(0, {sorted(home)[number]})
                maps.update(table, number.to_bytes(key_bytes, "little"), bytes(value_bytes))
        finally:
            os.sched_setaffinity(0, home)
        assert sum(1 for _ in maps.keys(table, key_bytes)) == wanted


def test_no_such_map_is_left_out() -> None:
    reserved = 128 * maps.possible_cpus()
    sizes = promised()
    with loaded("observe", "headers", "packets", "tls", "go") as objects:
        found = {name: size for one in objects for name, size in one.lru_maps().items()}
    assert len(found) > 12
    assert found == {name: sizes[name] + reserved for name in found}


@pytest.mark.timeout(90)
def test_what_gives_way_in_the_middle_of_a_call_is_counted() -> None:
    """On a kept connection the thread waits for the next request inside of SSL_read."""
    with Traced() as traced:
        secure = Secure(traced)
        port = secure.python("server")
        secure.wait_found("libssl.so")
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=20, context=secure.trust()
        )

        def ask() -> None:
            connection.request("GET", "/23")
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read()

        for _ in range(COUNT):
            ask()
        counters = traced.counters()
        assert (counters["tls_begun"], counters["tls_ended"]) == (COUNT, COUNT)
        assert "tls_gave_way" not in counters
        assert traced.agent is not None
        assert make_all_give_way(traced.agent.pid, "tl_tls") == 1
        ask()
        assert traced.counters()["tls_gave_way"] == 1
        connection.close()
