# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The documentation that modules share which can look at a recorded tree of files."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment throughline.fleet.root."""

    DOCUMENTATION = r"""
options:
  root:
    description: Directory that stands for C(/) when files are read or written, for tests.
    type: path
    default: /
"""
