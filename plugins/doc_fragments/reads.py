# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The documentation that modules which change nothing share."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment throughline.fleet.reads."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Changes nothing, so it does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""
