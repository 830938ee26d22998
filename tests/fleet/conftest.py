"""Fixtures of several files of fleet tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fleet import releases


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle, which a build meanwhile does not change."""
    return Path(shutil.copy(releases.newest(), tmp_path_factory.mktemp("dist")))
