"""Fixtures that several files of fleet tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fleet import releases


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle: a build during the tests does not change it."""
    return Path(shutil.copy(releases.newest(), tmp_path_factory.mktemp("dist")))
