"""Proxies in front of the backend."""

from __future__ import annotations

from tests.parents.app import App

APPS: tuple[App, ...] = ()
