"""Which file the functions of an object's class are from: what a framework's class has, and what a
class of the application's has replaced.

Read in the memory of a process of CPython, which goes on meanwhile. A class is changed seldom, so
what is there is whole; each object has to name its type, and each list has a bound.

Offsets are those of the minor version: `PyTypeObject` (the same in all), `PyTupleObject`,
`PyDictKeysObject` (Include/internal/pycore_dict.h), `PyFunctionObject`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from throughline.host.memory import Memory, word_at

_WORD = struct.Struct("<Q")
_TYPE_AT, _SIZE_AT = 8, 16
_TYPE_BYTES = 352  # of PyTypeObject, with all that is read of it
_FLAGS_AT, _DICT_AT, _MRO_AT = 168, 264, 344
_HEAP_TYPE, _TYPE_SUBCLASS, _TUPLE_SUBCLASS, _DICT_SUBCLASS = 1 << 9, 1 << 31, 1 << 26, 1 << 29
_KEYS_AT = 32  # PyDictObject.ma_keys
_MAX_CLASSES, _MAX_KEYS = 64, 4096


class Shape(NamedTuple):
    """Offsets and sizes of a minor version."""

    items: int  # PyTupleObject.ob_item
    function_code: int  # PyFunctionObject.func_code
    entries: int  # PyDictKeysObject.dk_nentries
    indices: int  # .dk_indices
    size: int  # .dk_size; 0: .dk_log2_index_bytes tells how long the indices are


_OLD = Shape(24, 16, 32, 40, 8)
_NEW = Shape(24, 48, 24, 32, 0)
SHAPES: Mapping[int, Shape] = {
    9: _OLD,
    10: _OLD._replace(function_code=48),
    11: _NEW,
    12: _NEW,
    13: _NEW,
    14: _NEW._replace(items=32),
}
_INDEX_BYTES_AT, _KIND_AT = 9, 10  # dk_log2_index_bytes, dk_kind: 0 where keys may be anything


class Classes:
    """The classes of one process. Raises OSError where its memory is not what it should be."""

    def __init__(self, memory: Memory, minor: int) -> None:
        self._memory = memory
        self._shape = SHAPES[minor]

    def defined(self, instance: int) -> Iterator[tuple[int, int]]:
        """What the class of the object at this address has: addresses of names and of values.

        In the order of its bases: the first value of a name is what the object has. Values that the
        object itself has, beside its class, are not looked at.
        """
        memory = self._memory
        kind = memory.word(instance + _TYPE_AT)
        data = self._class(kind)
        order = word_at(data, _MRO_AT)
        head = memory.read(order, self._shape.items)
        count = word_at(head, _SIZE_AT)
        if not self._is(word_at(head, _TYPE_AT), _TUPLE_SUBCLASS) or not 0 < count <= _MAX_CLASSES:
            raise OSError(errno.EFAULT, f"no order of classes at {order:#x}")
        bases = memory.read(order + self._shape.items, count * _WORD.size)
        for at in range(0, len(bases), _WORD.size):
            data = self._class(word_at(bases, at))
            if not word_at(data, _FLAGS_AT) & _HEAP_TYPE:
                if at + _WORD.size < len(bases):  # a class of an extension; the last one is object
                    raise OSError(errno.ENOTSUP, "a class that is not written in Python")
                return
            yield from self._items(word_at(data, _DICT_AT))

    def code(self, function: int) -> int:
        """The address of a function's code object."""
        return self._memory.word(function + self._shape.function_code)

    def type_of(self, instance: int) -> int:
        """The address of the class of the object at this address."""
        return self._memory.word(instance + _TYPE_AT)

    def _class(self, at: int) -> bytes:
        data = self._memory.read(at, _TYPE_BYTES)
        if not self._is(word_at(data, _TYPE_AT), _TYPE_SUBCLASS):
            raise OSError(errno.EFAULT, f"no class at {at:#x}")
        return data

    def _is(self, kind: int, flag: int) -> bool:
        return bool(self._memory.word(kind + _FLAGS_AT) & flag)

    def _items(self, at: int) -> Iterator[tuple[int, int]]:
        memory, shape = self._memory, self._shape
        if not self._is(memory.word(at + _TYPE_AT), _DICT_SUBCLASS):
            raise OSError(errno.EFAULT, f"no dict at {at:#x}")
        keys = memory.word(at + _KEYS_AT)
        head = memory.read(keys, shape.indices)
        count = word_at(head, shape.entries)
        # an entry is hash, key and value, or key and value where all keys are texts
        step, key = 3, 1
        if shape.size:
            size = word_at(head, shape.size)
            width = 1 if size <= 0xFF else 2 if size <= 0xFFFF else 4
            indices = size * width
        else:
            indices = 1 << min(head[_INDEX_BYTES_AT], 32)
            if head[_KIND_AT]:
                step, key = 2, 0
        if count > _MAX_KEYS or indices > _MAX_KEYS * 8:
            raise OSError(errno.EFAULT, f"a dict of {count} keys at {at:#x}")
        data = memory.read(keys + shape.indices + indices, count * step * _WORD.size)
        for entry in range(0, len(data), step * _WORD.size):
            name = word_at(data, entry + key * _WORD.size)
            value = word_at(data, entry + (key + 1) * _WORD.size)
            if name and value:
                yield name, value
