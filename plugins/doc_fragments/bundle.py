# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The documentation that modules with an action plugin for the bundle share."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment throughline.fleet.bundle."""

    DOCUMENTATION = r"""
options:
  bundle:
    description:
      - Bundle on the controller, or a directory whose newest bundle for the host's architecture is
        taken. Without O(bundle_url) it is required.
    type: path
  bundle_url:
    description:
      - Address of the bundle, instead of O(bundle). C({arch}) in it stands for the host's
        architecture.
      - A proxy that C(http_proxy), C(https_proxy) and C(no_proxy) name is asked.
    type: str
  bundle_sha256:
    description:
      - SHA-256 that the bundle has to have. It is required with O(bundle_url), unless
        O(bundle_keyring) is given. A dict has one for each architecture.
    type: raw
  bundle_fetched_by:
    description:
      - Whether the controller fetches O(bundle_url) and copies it to the hosts, or each host
        fetches it.
    type: str
    choices: [controller, host]
    default: controller
  bundle_keyring:
    description:
      - File on the controller with keys, as C(gpg --export) writes it. C(SHA256SUMS) beside the
        bundle has to have a signature of one of them, C(SHA256SUMS.asc), and to name the bundle.
    type: path
  sha256:
    description: SHA-256 of the bundle. The action plugin sets it.
    type: str
  src:
    description: Copy of the bundle on the host. The action plugin sets it.
    type: path
  url:
    description: Where the host fetches the bundle. The action plugin sets it.
    type: str
  fetch:
    description: Whether the host fetches the bundle now. The action plugin sets it.
    type: bool
    default: false
"""
