"""Makes the collection importable, as ansible-playbook does, from this checkout."""

from __future__ import annotations

from ansible.plugins.loader import init_plugin_loader  # type: ignore[import-untyped]

from tests.fixtures.paths import CHECKOUT

init_plugin_loader([str(CHECKOUT / ".ansible/collections")])
