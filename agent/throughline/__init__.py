"""throughline: trace propagation and spans for unmodified services, one agent per host."""

from __future__ import annotations

__version__ = "0.1.0"
