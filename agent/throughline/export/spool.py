"""Batches that wait on disk for the Collector: bounded, oldest first, and whole after a crash.

A batch is one file `SEQUENCE-SPANS.jsonl.gz` in a directory that only the agent may read (request
targets can be private). The first line holds the services, each further line one span. Spans are
decoded for that: a later version of the agent can read what an earlier one left, also when the
layout of the kernel's records has changed. A file appears by rename, after its bytes are on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from throughline.records.spanrecord import RawSpan, SpanRecord
from throughline.services.naming import Service

# A span as it came from the kernel, or as it was read from a file; and its service.
Item = tuple[RawSpan | SpanRecord, Service]
Batch = Sequence[Item]
StoredBatch = Sequence[tuple[SpanRecord, Service]]

_VERSION = 1
_NAME = re.compile(r"(\d{12})-(\d+)\.jsonl\.gz")
_MAX_SERVICES = 4096  # of which one object is kept
_GZIP = 31  # wbits of zlib: deflate in a gzip wrapper
_BYTES = ("trace_id", "span_id", "parent_span_id")
_FIELDS = tuple(field.name for field in fields(SpanRecord))
_OPTIONAL = frozenset(f.name for f in fields(SpanRecord) if f.default is not MISSING)
_values = attrgetter(*_FIELDS)
# what json and the access to its values raise for a damaged line
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_BYTES_AT = tuple(_FIELDS.index(name) for name in _BYTES)


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    spans: int
    size: int


class Spool:
    """A directory of batches. Not for several threads at once: the pipeline has a lock.

    What is lost is counted in spans: `overflowed` made room for newer batches, `torn` was damaged
    on disk, `unwritable` are records of which no line can be made. Nothing here raises for a
    damaged file; `write` raises OSError when the disk refuses.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.overflowed = 0
        self.torn = 0
        self.unwritable = 0
        self.torn_files = 0
        self._files: list[_File] = []
        self._bytes = 0
        self._sequence = 0
        self._torn: set[str] = set()  # files that have been counted: they are read at each attempt
        self._services: dict[str, Service] = {}
        self._open()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def bytes(self) -> int:
        return self._bytes

    def write(self, batch: Batch) -> None:
        """Appends a batch; the oldest make room. Raises OSError (ENOSPC, EROFS, EACCES, …)."""
        try:
            data = encode(batch)
        except Exception:  # a damaged record: the others are written
            whole = [item for item in batch if _is_encodable(item)]
            self.unwritable += len(batch) - len(whole)
            batch, data = whole, encode(whole)
        if not batch:
            return
        if len(data) > self.max_bytes:
            self.overflowed += len(batch)
            return
        while self._files and self._bytes + len(data) > self.max_bytes:
            self.overflowed += self._files[0].spans
            self._remove_first()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{self._sequence:012d}-{len(batch)}.jsonl.gz"
        partial = self.directory / f".{name}.partial"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            partial.rename(self.directory / name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        self._sequence += 1
        self._files.append(_File(name, len(batch), len(data)))
        self._bytes += len(data)

    def oldest(self) -> tuple[str, StoredBatch]:
        """The first batch that can be read and its name; ("", ()) when the spool is empty."""
        while self._files:
            first = self._files[0]
            try:
                data = (self.directory / first.name).read_bytes()
            except OSError:
                data = b""
            batch, whole = decode(data, self._services)
            if not whole and first.name not in self._torn:
                self._torn.add(first.name)
                self.torn_files += 1
                self.torn += max(0, first.spans - len(batch))
            if batch:
                return first.name, batch
            self._remove_first()
        return "", ()

    def remove(self, name: str) -> None:
        """Removes the batch that `oldest` returned."""
        if self._files and self._files[0].name == name:  # else it has made room for others
            self._remove_first()

    def postpone(self, name: str) -> None:
        """Puts the batch that `oldest` returned behind all others, until the agent restarts."""
        if self._files and self._files[0].name == name:
            self._files.append(self._files.pop(0))

    def _remove_first(self) -> None:
        first = self._files.pop(0)
        self._bytes -= first.size
        self._torn.discard(first.name)
        # A file that cannot be removed is sent again after a restart.
        with contextlib.suppress(OSError):
            (self.directory / first.name).unlink(missing_ok=True)

    def _open(self) -> None:
        try:
            names = sorted(os.listdir(self.directory))  # noqa: PTH208
        except OSError:
            return  # not there yet, or not readable: `write` raises the reason
        for name in names:
            path = self.directory / name
            match = _NAME.fullmatch(name)
            if match is None:
                if name.endswith(".partial"):
                    self.torn_files += 1
                    with contextlib.suppress(OSError):
                        path.unlink()
                continue
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                self._files.append(_File(name, int(match[2]), size))
                self._bytes += size
                self._sequence = int(match[1]) + 1


def encode(batch: Batch) -> bytes:
    """The file of a batch."""
    numbers: dict[int, int] = {}
    services: list[dict[str, Any]] = []
    lines = [""]
    for span, service in batch:
        record = span.decode() if isinstance(span, RawSpan) else span
        number = numbers.get(id(service))
        if number is None:
            number = numbers[id(service)] = len(services)
            services.append(
                {
                    "name": service.name,
                    "unit": service.unit,
                    "cgroup": service.cgroup,
                    "attributes": dict(service.attributes),
                }
            )
        values: list[Any] = [number, *_values(record)]
        for at in _BYTES_AT:
            value = values[at + 1]
            values[at + 1] = None if value is None else value.hex()
        lines.append(json.dumps(values, separators=(",", ":")))
    lines[0] = json.dumps({"version": _VERSION, "fields": _FIELDS, "services": services})
    lines.append("")
    compressor = zlib.compressobj(level=1, wbits=_GZIP)
    return compressor.compress("\n".join(lines).encode()) + compressor.flush()


def _is_encodable(item: Item) -> bool:
    try:
        encode([item])
    except Exception:
        return False
    return True


def decode(data: bytes, services: dict[str, Service]) -> tuple[StoredBatch, bool]:
    """The batch of a file, and whether it was whole; of a torn file each span that can be read.

    `services` keeps one object for each service over all files. Fields are found by name: one that
    this version does not know is ignored, one that a record lacks has its default or makes that
    span unreadable.
    """
    decompressor = zlib.decompressobj(wbits=_GZIP)
    try:
        text = decompressor.decompress(data).decode("utf-8", "replace")
    except zlib.error:
        return (), False
    lines = text.split("\n")
    batch: list[tuple[SpanRecord, Service]] = []
    whole = decompressor.eof and lines[-1] == ""
    try:
        header = json.loads(lines[0])
        known = header["fields"]
        places = [
            (name, known.index(name) + 1)
            for name in _FIELDS
            if name in known or name not in _OPTIONAL
        ]
        found = [_service(item, services) for item in header["services"]]
    except _DAMAGED:
        return [], False
    for line in lines[1:-1]:
        try:
            values = json.loads(line)
            named = {name: values[place] for name, place in places}
            for name in _BYTES:
                named[name] = None if named[name] is None else bytes.fromhex(named[name])
            batch.append((SpanRecord(**named), found[values[0]]))
        except _DAMAGED:
            whole = False
    return batch, whole


def _service(item: dict[str, Any], services: dict[str, Service]) -> Service:
    key = json.dumps(item, sort_keys=True)
    service = services.get(key)
    if service is None:
        if len(services) >= _MAX_SERVICES:  # of units that have ended, too
            services.clear()
        service = Service(item["name"], item["unit"], item["cgroup"], True, item["attributes"])
        services[key] = service
    return service
