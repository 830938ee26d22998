"""The fixtures of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.services.tree import TREE


@pytest.fixture
def cgroup2(tmp_path: Path) -> Path:
    for path in TREE:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "cgroup.procs").write_text("")
    return tmp_path
