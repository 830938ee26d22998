# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The documentation that modules with an action plugin for the bundle share."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment throughline.fleet.bundle."""

    DOCUMENTATION = r"""
options:
  sha256:
    description: SHA-256 of the bundle. The action plugin sets it.
    type: str
  src:
    description: Copy of the bundle on the host. The action plugin sets it.
    type: path
"""
