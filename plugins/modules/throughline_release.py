#!/usr/bin/python
# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Unpacks a release of the agent below /opt/throughline/releases, and verifies it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: throughline_release
short_description: A release of the agent is unpacked and verified
version_added: "0.1.0"
author: throughline authors (@throughline)
description:
  - Finds the bundle on the controller, or at an address, and copies it only to hosts without the
    release; or lets these fetch it.
  - The name of the release's directory is the bundle's SHA-256. The archive is verified when it is
    unpacked, and the files at each run. A damaged release is unpacked again.
  - Every user can read the release, whatever umask root has.
  - Where SELinux is on, the files have the labels that the host's policy has for them.
  - Fails while another run has the lock of the host (M(throughline.fleet.throughline_lock)).
  - The running agent is not touched. M(throughline.fleet.throughline_service) starts the release.
options:
  run:
    description: Name of this run. The action plugin says it.
    type: str
extends_documentation_fragment:
  - throughline.fleet.bundle
  - throughline.fleet.releases
attributes:
  check_mode:
    description: Says whether the release would be unpacked, and copies nothing.
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
  description: Name of the release, which is the bundle's SHA-256.
  returned: always
  type: str
path:
  description: Directory of the release.
  returned: always
  type: str
version:
  description: Version in the release's manifest; null where the release is not unpacked yet.
  returned: always
  type: str
damage:
  description: The damage of the release that was found on the host.
  returned: when a damaged release was found
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.throughline.fleet.plugins.module_utils.fetch import (
    BUNDLE_OPTIONS,
    FetchError,
    fetch,
)
from ansible_collections.throughline.fleet.plugins.module_utils.lock import describe, other_run
from ansible_collections.throughline.fleet.plugins.module_utils.package import refusal
from ansible_collections.throughline.fleet.plugins.module_utils.release import (
    make_ready,
    open_directories,
    read_manifest,
    unpack,
)
from ansible_collections.throughline.fleet.plugins.module_utils.selinux import set_labels


def main():
    """Entry point of the module; its action plugin calls it once, or again with the bundle."""
    module = AnsibleModule(
        argument_spec={
            **BUNDLE_OPTIONS,
            "base": {"type": "path", "default": "/opt/throughline"},
            "sha256": {"type": "str"},
            "src": {"type": "path"},
            "url": {"type": "str"},
            "fetch": {"type": "bool", "default": False},
            "run": {"type": "str"},
        },
        supports_check_mode=True,
    )
    base, sha256, src = (module.params[name] for name in ("base", "sha256", "src"))
    path = Path(base) / "releases" / sha256
    result = {"release": sha256, "path": str(path), "version": None}
    reason = refusal(base)
    if reason:
        module.fail_json(msg=reason, **result)
    other = None if module.check_mode else other_run(module.params["run"])
    if other:
        module.fail_json(msg=describe(other), **result)
    if path.is_dir() and src is None:
        changed, problem = make_ready(path, module.run_command, check=module.check_mode)
        if problem is None:
            opened = open_directories(base, sha256, check=module.check_mode)
            labelled = label(module, base)
            result["version"] = read_manifest(path)["version"]
            module.exit_json(changed=changed or opened or labelled, **result)
        result["damage"] = problem
    if src is None and not module.params["fetch"]:  # the action plugin runs the module again
        module.exit_json(changed=True, missing=True, **result)
    try:
        if src is None:
            src = str(Path(module.tmpdir) / "bundle.tar.gz")
            fetch(module.params["url"], src, sha256=sha256)
        result["version"] = unpack(src, module.run_command, sha256=sha256, base=base)["version"]
    except FetchError as error:
        module.fail_json(msg=str(error), **result)
    except (ValueError, OSError) as error:
        module.fail_json(msg=f"Bundle {Path(module.params['bundle']).name}: {error}", **result)
    label(module, base)
    module.exit_json(changed=True, **result)


def label(module, base):
    """Sets the labels of SELinux, warns where that fails, and returns whether any was wrong."""
    changed, problem = set_labels(base, module.run_command, check=module.check_mode)
    if problem:
        module.warn(problem)
    return changed


if __name__ == "__main__":
    main()
