"""Maps: single entries, and whole hash maps read in batches."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from throughline.bpf.prototypes import check, library

U32, U64 = struct.Struct("=I"), struct.Struct("=Q")  # keys and values that are one number

BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
_SOCKHASH = 18  # enum bpf_map_type

_BATCH_BYTES = 1 << 20
_MAX_BATCH = 1 << 16
# The errors of a kernel that does not know the call, or not for this type of map. 524 is ENOTSUPP.
_NO_BATCHES = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, 524}

Batch = list[tuple[bytes, memoryview]]


def possible_cpus() -> int:
    """The number of values that an entry of a per-CPU map has."""
    return check(library().libbpf_num_possible_cpus(), "libbpf_num_possible_cpus")


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """One value, or None. `value_size` of a per-CPU map is the size of all CPUs' values."""
    return _value("bpf_map_lookup_elem", fd, key, value_size)


def update(fd: int, key: bytes, value: bytes, *, flags: int = BPF_ANY) -> None:
    check(library().bpf_map_update_elem(fd, key, value, flags), "bpf_map_update_elem")


def delete(fd: int, key: bytes) -> bool:
    """Removes an entry; returns False when there was none."""
    result = library().bpf_map_delete_elem(fd, key)
    if result == -errno.ENOENT:
        return False
    check(result, "bpf_map_delete_elem")
    return True


def take(fd: int, value_size: int) -> bytes | None:
    """Takes the first value out of a queue; None when it is empty."""
    return _value("bpf_map_lookup_and_delete_elem", fd, None, value_size)


def _value(call: str, fd: int, key: bytes | None, size: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    result = getattr(library(), call)(fd, key, value)
    if result == -errno.ENOENT:
        return None
    check(result, call)
    return value.raw


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys. An entry that is added or removed meanwhile may be missed."""
    current: bytes | None = None
    while True:
        following = ctypes.create_string_buffer(key_size)
        result = library().bpf_map_get_next_key(fd, current, following)
        if result == -errno.ENOENT:
            return
        check(result, "bpf_map_get_next_key")
        current = following.raw
        yield current


def create_sockhash(*, name: str, entries: int) -> int:
    """A sockhash with 64-bit keys and values, as a descriptor that the caller closes."""
    size = U64.size
    made = library().bpf_map_create(_SOCKHASH, name.encode(), size, size, entries, None)
    return check(made, "bpf_map_create")


@dataclass(frozen=True, slots=True)
class Hash:
    """A hash map. `value_size` of a per-CPU map is the size of all CPUs' values."""

    fd: int
    key_size: int
    value_size: int

    def entries(self) -> Iterator[Batch]:
        """Keys and values in batches of about 1 MB, by BPF_MAP_LOOKUP_BATCH (Linux 5.6).

        An entry that is added or removed meanwhile may be missed. A batch is valid until the
        caller asks for the next one.
        """
        count = max(16, min(512, _BATCH_BYTES // self.value_size))
        keys = (ctypes.c_char * (self.key_size * count))()
        values = (ctypes.c_char * (self.value_size * count))()
        position = None
        while True:
            following = ctypes.create_string_buffer(max(self.key_size, 8))
            number = ctypes.c_uint32(count)
            result = library().bpf_map_lookup_batch(
                self.fd, position, following, keys, values, ctypes.byref(number), None
            )
            if result == -errno.ENOSPC and count < _MAX_BATCH:
                count *= 2  # a bucket of the hash holds more entries than a batch
                keys = (ctypes.c_char * (self.key_size * count))()
                values = (ctypes.c_char * (self.value_size * count))()
                continue
            if -result in _NO_BATCHES and position is None:
                yield from self._one_by_one()
                return
            if result != -errno.ENOENT:  # ENOENT is the end of the map
                check(result, "bpf_map_lookup_batch")
            yield self._split(keys.raw, memoryview(values).cast("B"), number.value)
            if result:
                return
            position = following

    def lookup(self, key: bytes) -> bytes | None:
        return lookup(self.fd, key, self.value_size)

    def delete(self, key: bytes) -> None:
        delete(self.fd, key)

    def _split(self, keys: bytes, values: memoryview, count: int) -> Batch:
        key, value = self.key_size, self.value_size
        return [
            (keys[n * key : (n + 1) * key], values[n * value : (n + 1) * value])
            for n in range(count)
        ]

    def _one_by_one(self) -> Iterator[Batch]:
        for key in keys(self.fd, self.key_size):
            value = self.lookup(key)
            if value is not None:
                yield [(key, memoryview(value))]
