# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""What the documentation of modules that only read has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment throughline.fleet.reads."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Only reads, so it does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""
