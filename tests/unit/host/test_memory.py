"""The memory of a process whose /proc/PID/mem is not for the agent's user."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from throughline.host.memory import Memory


def test_a_process_whose_file_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    text = ctypes.create_string_buffer(b"jvm\0" + bytes(range(60)))
    with Memory(os.getpid()) as memory:
        assert memory.read(ctypes.addressof(text), 3) == b"jvm"
        assert memory.name(ctypes.addressof(text)) == "jvm"
        with pytest.raises(OSError, match="Bad address"):
            memory.word(8)


def test_a_process_that_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Memory(1, proc=tmp_path)
