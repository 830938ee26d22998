# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The agent's configuration on a host, from the variables of the role `agent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.utils.vars import merge_hash
from ansible_collections.throughline.fleet.plugins.module_utils.groups import (
    GROUPS,
    TABLE,
    is_switched_off,
    switch,
)

try:
    from ansible.parsing.vault import EncryptedString as Encrypted
except ImportError:  # ansible-core before 2.19
    from ansible.parsing.yaml.objects import AnsibleVaultEncryptedUnicode as Encrypted


def throughline_switched_on(groups: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Those of throughline_groups that throughline_config does not switch off."""
    return [name for name in groups if not is_switched_off(GROUPS[name], config)]


def throughline_configuration(
    config: Mapping[str, Any], groups: Sequence[str], peers: Sequence[str]
) -> dict[str, Any]:
    """throughline_config with the addresses of the fleet and the switches of the feature groups.

    An operator can switch a group off in throughline_groups and in throughline_config. A setting
    with the value that the agent takes by default is not written.
    """
    wanted = throughline_switched_on(groups, config)
    found: dict[str, Any] = {}
    if "packets" in wanted:
        found = {"propagation": {"peers": list(peers)}}
    for group in TABLE:
        if group.name in wanted and not group.default:
            found = merge_hash(found, switch(group, "auto"))
    found = merge_hash(found, config)
    for group in sorted(TABLE, key=lambda group: group.name):
        if group.switch and group.name not in wanted:
            found = merge_hash(found, switch(group, "off"))
    plain: dict[str, Any] = decrypted(found)
    return plain


def decrypted(value: Any) -> Any:
    """A value whose inline vaults (`!vault`) are plain text, also inside of dicts and lists.

    The filter to_nice_yaml would write their ciphertext, which the agent cannot read. Since
    ansible-core 2.19 a decrypted text still has its ciphertext as a tag, and loses it here.
    """
    if isinstance(value, (str, Encrypted)):
        return str.__str__(str(value))
    if isinstance(value, Mapping):
        return {key: decrypted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [decrypted(item) for item in value]
    return value


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, Any]:
        """Names in templates."""
        return {
            "throughline_configuration": throughline_configuration,
            "throughline_switched_on": throughline_switched_on,
        }
