"""All applications of the bench, in the order of the grid."""

from __future__ import annotations

from tests.parents.app import App
from tests.parents.proxies.apps import APPS as PROXIES
from tests.parents.python.apps import APPS as PYTHON

APPS: tuple[App, ...] = (*PYTHON, *PROXIES)
