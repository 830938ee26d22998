"""A fixture of all tests of the collection."""

from __future__ import annotations

import sys

import pytest

from tests.fixtures.paths import CHECKOUT


@pytest.fixture(autouse=True)
def collection_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection is imported from the checkout, anew for each test."""
    monkeypatch.syspath_prepend(str(CHECKOUT / ".ansible/collections"))
    for name in [name for name in sys.modules if name.startswith("ansible_collections")]:
        monkeypatch.delitem(sys.modules, name)
