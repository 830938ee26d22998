#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""A release of the agent is unpacked below /opt/throughline/releases, and is what it should be."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_release
short_description: A release of the agent is unpacked and verified
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Finds the bundle on the controller, and copies it only to hosts that lack the release.
  - The release directory is named by the bundle's SHA-256. Archive and files are verified, the
    files again at each run; a damaged release is unpacked anew.
  - The running agent is not touched; see M(throughline.fleet.throughline_service).
options:
  bundle:
    description:
      - Bundle on the controller, or a directory, of which the newest bundle is taken.
    type: path
    required: true
  base:
    description: Directory on the host that holds the releases.
    type: path
    default: /opt/throughline
  sha256:
    description: SHA-256 of the bundle. Set by the action plugin.
    type: str
  src:
    description: Copy of the bundle on the host. Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether the release would be unpacked; copies nothing.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Release is unpacked
  throughline.fleet.throughline_release:
    bundle: dist/
  register: __throughline_release
"""

RETURN = r"""
release:
  description: Name of the release, the bundle's SHA-256.
  returned: always
  type: str
path:
  description: Directory of the release.
  returned: always
  type: str
version:
  description: Version in the release's manifest, null where the release is not there yet.
  returned: always
  type: str
damage:
  description: What was wrong with the release that was found.
  returned: when a damaged release was found
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.release import (
    make_ready,
    read_manifest,
    unpack,
)


def main():
    """Entry point of the module; the action plugin of the same name calls it once or twice."""
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "base": {"type": "path", "default": "/opt/throughline"},
            "sha256": {"type": "str"},
            "src": {"type": "path"},
        },
        supports_check_mode=True,
    )
    base, sha256, src = (module.params[name] for name in ("base", "sha256", "src"))
    path = Path(base) / "releases" / sha256
    result = {"release": sha256, "path": str(path), "version": None}
    if path.is_dir() and src is None:
        changed, problem = make_ready(path, module.run_command, check=module.check_mode)
        if problem is None:
            result["version"] = read_manifest(path)["version"]
            module.exit_json(changed=changed, **result)
        result["damage"] = problem
    if src is None:  # the action plugin brings the bundle and asks again
        module.exit_json(changed=True, missing=True, **result)
    try:
        result["version"] = unpack(src, module.run_command, sha256=sha256, base=base)["version"]
    except (ValueError, OSError) as error:
        module.fail_json(msg=f"Bundle {Path(module.params['bundle']).name}: {error}", **result)
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
