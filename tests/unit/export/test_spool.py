from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.records import SHOP, START, batch, raw, record, service
from throughline.export import spool as spool_module
from throughline.export.spool import Spool, StoredBatch, decode, encode
from throughline.services.naming import Service

MIB = 1 << 20


def drain(spool: Spool) -> list[StoredBatch]:
    found: list[StoredBatch] = []
    while True:
        name, waiting = spool.oldest()
        if not waiting:
            return found
        found.append(waiting)
        spool.remove(name)


def starts(batches: list[StoredBatch]) -> list[int]:
    return [record.start_unix_ns - START for batch in batches for record, _ in batch]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that says no without being full: the kernel refuses to let a file grow (EFBIG)."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_what_is_written_is_read_oldest_first_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=MIB)
    cart = service("cart", **{"host.id": "ü"})
    first = [
        (raw(record(target="/ä\udcff", parent_span_id=None, tracestate="a=1")), SHOP),
        (raw(record(kind="client", start_unix_ns=START)), cart),
    ]
    spool.write(first)
    spool.write(batch(3))
    again = Spool(tmp_path / "spool", max_bytes=MIB)
    assert (len(again), again.bytes) == (2, spool.bytes)
    found = drain(again)
    assert [record for record, _ in found[0]] == [span.decode() for span, _ in first]
    assert [service.name for _, service in found[0]] == ["shop", "cart"]
    assert found[0][1][1].attributes == cart.attributes
    assert found[0][0][1] is found[1][0][1], "one object for each service"
    assert starts(found[1:]) == [0, 1, 2]
    assert len(again) == again.bytes == 0
    assert list((tmp_path / "spool").iterdir()) == []


def test_only_the_agent_may_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=MIB)
    spool.write(batch(1))
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()] == [0o600]


def test_overflow_drops_the_oldest_and_counts(tmp_path: Path) -> None:
    size = len(encode(batch(100)))
    spool = Spool(tmp_path, max_bytes=int(3.5 * size))
    batches = [
        [(record(start_unix_ns=START + number), SHOP) for _ in range(100)] for number in range(23)
    ]
    for waiting in batches:
        spool.write(waiting)
    assert spool.bytes <= spool.max_bytes
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == spool.bytes
    assert spool.overflowed == 2000
    assert sorted(set(starts(drain(spool)))) == [20, 21, 22]


def test_a_batch_larger_than_the_spool_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1000)
    spool.write(batch(100))
    assert (len(spool), spool.overflowed) == (0, 100)


@pytest.mark.parametrize("keep", [0, 1, 10, 0.2, 0.5, 0.9])
def test_a_torn_file_gives_what_can_be_read(tmp_path: Path, keep: float) -> None:
    spool = Spool(tmp_path, max_bytes=MIB)
    spool.write(batch(100))
    spool.write(batch(2))
    path = min(tmp_path.iterdir())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    again = Spool(tmp_path, max_bytes=MIB)
    found = drain(again)
    assert again.torn_files == 1
    assert len(starts(found)) + again.torn == 102
    assert starts(found)[-2:] == [0, 1]
    if keep == 0.9:
        assert len(starts(found)) > 50


@pytest.mark.parametrize("at", [3, 40, 400, -3])
def test_a_damaged_file_is_counted_and_passed_over(tmp_path: Path, at: int) -> None:
    spool = Spool(tmp_path, max_bytes=MIB)
    spool.write(batch(100))
    spool.write(batch(2))
    path = min(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    again = Spool(tmp_path, max_bytes=MIB)
    assert starts(drain(again))[-2:] == [0, 1]
    assert again.torn_files == 1


def test_a_crash_while_writing_leaves_no_half_batch(tmp_path: Path) -> None:
    (tmp_path / ".000000000000-5.jsonl.gz.partial").write_bytes(encode(batch(5))[:50])
    (tmp_path / "lost+found").mkdir()
    spool = Spool(tmp_path, max_bytes=MIB)
    assert (len(spool), spool.torn_files) == (0, 1)
    spool.write(batch(1))
    assert len(drain(spool)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lost+found"]


def test_a_file_that_vanished_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=MIB)
    spool.write(batch(5))
    spool.write(batch(1))
    min(tmp_path.iterdir()).unlink()
    assert len(starts(drain(spool))) == 1
    assert spool.torn == 5


def test_a_disk_that_refuses_raises_and_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=MIB)
    spool.write(batch(1))
    with largest_file(8192), pytest.raises(OSError, match="File too large"):
        spool.write(batch(512))
    assert len(list(tmp_path.iterdir())) == 1
    spool.write(batch(2))
    assert [len(found) for found in drain(spool)] == [1, 2]


def test_a_directory_that_cannot_be_made_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Spool(tmp_path / "file" / "spool", max_bytes=MIB).write(batch(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs in a mount namespace of its own")
def test_a_full_disk(tmp_path: Path) -> None:
    """ENOSPC on a real file system: nothing is left behind, and it works again with room."""
    code = """
import errno, os, sys
from pathlib import Path
from throughline.export import spool as spool_module
from throughline.export.spool import Spool
from tests.fixtures.records import batch
spool = Spool(Path(sys.argv[1]), max_bytes=64 << 20)
try:
    for _ in range(1000):
        spool.write(batch(512))
except OSError as error:
    assert error.errno == errno.ENOSPC, error
else:
    sys.exit("the disk did not fill up")
written = len(spool)
assert written, "not even one"
assert len(os.listdir(sys.argv[1])) == written
name, _ = spool.oldest()
spool.remove(name)
spool.write(batch(256))
print(written)
"""
    script = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code]
    root = str(CHECKOUT)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr


def test_fields_are_found_by_name() -> None:
    """What another version wrote: an unknown field is ignored, a missing one loses the span."""
    import gzip
    import json

    header, line, _ = gzip.decompress(encode(batch(1))).decode().split("\n")
    described, values = json.loads(header), json.loads(line)
    described["fields"].insert(0, "new")
    values.insert(1, "value")
    newer = gzip.compress(f"{json.dumps(described)}\n{json.dumps(values)}\n".encode())
    assert decode(newer, {})[0][0][0].method == "GET"
    described["fields"][1] = "renamed"
    older = gzip.compress(f"{json.dumps(described)}\n{json.dumps(values)}\n".encode())
    assert decode(older, {}) == ([], False)


OLD_FILE = """\
{"version": 1, "fields": ["kind", "trace_id", "span_id", "parent_span_id", "trace_flags", \
"evidence", "end", "start_unix_ns", "end_unix_ns", "cgroup_id", "pid", "method", "target", \
"target_length", "host", "http_version", "status", "local_address", "local_port", "peer_address", \
"peer_port", "tracestate", "tls", "grpc"], "services": [{"name": "shop", "unit": "shop.service", \
"cgroup": "system.slice/shop.service", "attributes": {"service.name": "shop", "host.name": "h1", \
"systemd.unit": "shop.service"}}]}
[0,"server","000102030405060708090a0b0c0d0e0f","0001020304050607",null,1,"header","complete",\
1763830000000000000,1763830000012300000,7,99,"GET","/\\u00e4\\udcff",4,"shop.example:8080","1.1",200,\
"10.0.0.1",8080,"10.0.0.2",40001,"a=1",false,false]
[0,"client","000102030405060708090a0b0c0d0e0f","0102030405060708","0001020304050607",1,"context",\
"complete",1763830000000000000,1763830000012300000,7,99,"","/shop.v1.Cart/Add",17,"cart:1","2",5,\
"10.0.0.1",8080,"::1",40001,"",false,true]
"""


def test_a_file_of_a_version_that_queued_decoded_records() -> None:
    """Such a version reads the files of this one, too: they have all of its fields."""
    import gzip
    import json

    ids = {"trace_id": bytes(range(16)), "span_id": bytes(range(8))}
    expected = [
        record(**ids, parent_span_id=None, target="/ä\udcff", tracestate="a=1"),
        record(
            trace_id=bytes(range(16)),
            span_id=bytes(range(1, 9)),
            parent_span_id=bytes(range(8)),
            kind="client",
            evidence="context",
            method="",
            target="/shop.v1.Cart/Add",
            host="cart:1",
            http_version="2",
            status=5,
            peer_address="::1",
            grpc=True,
        ),
    ]
    found, whole = decode(gzip.compress(OLD_FILE.encode()), {})
    assert whole
    assert [span for span, _ in found] == expected
    written = encode([(raw(span), SHOP) for span in expected])
    assert [one for one, _ in decode(written, {})[0]] == expected
    fields = [
        json.loads(text.splitlines()[0])["fields"]
        for text in (OLD_FILE, gzip.decompress(written).decode())
    ]
    assert fields[1][: len(fields[0])] == fields[0]


def test_a_line_that_is_damaged_loses_one_span(tmp_path: Path) -> None:
    import gzip

    lines = gzip.decompress(encode(batch(10))).decode().split("\n")
    lines[5] = "[" * 100_000
    lines[7] = "[1, 2]"
    found, whole = decode(gzip.compress("\n".join(lines).encode()), {})
    assert (len(found), whole) == (8, False)


def test_services_of_old_files_are_not_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_MAX_SERVICES", 10)
    services: dict[str, Service] = {}
    for number in range(100):
        found, whole = decode(encode(batch(1, of=service(f"run-{number}"))), services)
        assert whole and found[0][1].name == f"run-{number}"
        assert len(services) <= 10
