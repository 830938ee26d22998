# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The documentation that modules with releases on the host share."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment throughline.fleet.releases."""

    DOCUMENTATION = r"""
options:
  base:
    description: Directory on the host that holds the releases.
    type: path
    default: /opt/throughline
"""
