"""The files and accounts of a host, by the templates, defaults and modules of the roles."""

from __future__ import annotations

import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible.plugins.filter.core import FilterModule  # type: ignore[import-untyped]
from ansible.plugins.loader import init_plugin_loader  # type: ignore[import-untyped]
from ansible.utils.collection_loader import (  # type: ignore[import-untyped]
    AnsibleCollectionConfig,
)

PLUGINS = "ansible_collections.throughline.fleet.plugins"
CONFIG_REMARK = """\
Settings of the throughline agent; docs/operator/configure.md describes each key.
After a change: systemctl reload throughline"""
CAPABILITIES_REMARK = """\
What the feature groups need that are on by default. To grant others, such as CAP_SYS_ADMIN for
go_write, write a drop-in below /etc/systemd/system/throughline.service.d."""
USERADD = {"shell": "--shell", "home": "--home-dir", "comment": "--comment", "group": "--gid"}


def plugin(root: Path, name: str) -> Any:
    """A module of the collection that is this checkout."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([str(root / ".ansible/collections")])
    return import_module(f"{PLUGINS}.{name}")


def defaults(root: Path, role: str) -> dict[str, Any]:
    text = (root / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def template(root: Path, path: str, remark: str, **variables: object) -> bytes:
    """A template of a role, with a remark instead of the name of an inventory's file."""
    environment = jinja2.Environment(  # noqa: S701 (no HTML)
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(FilterModule().filters())
    text = (root / "roles" / path).read_text(encoding="utf-8")
    made = environment.from_string(text).render(ansible_managed=remark, **variables)
    return made.encode()


def config(root: Path) -> bytes:
    """/etc/throughline/config.yaml, as the role writes it for a host without variables."""
    agent, preflight = defaults(root, "agent"), defaults(root, "preflight")
    effective = plugin(root, "filter.throughline_configuration").throughline_configuration(
        agent["throughline_config"], preflight["throughline_groups"], agent["throughline_peers"]
    )
    path = "agent/templates/config.yaml.j2"
    return template(root, path, CONFIG_REMARK, __throughline_effective=effective)


def capabilities(root: Path) -> bytes:
    """The drop-in with the capabilities of a host that has no obstacle."""
    granted = plugin(root, "module_utils.groups").granted_capabilities(
        defaults(root, "preflight")["throughline_groups"],
        uprobes="multi",
        available=plugin(root, "module_utils.host").CAPABILITY_BITS,
        allow_sys_admin=False,
    )
    path = "capabilities/templates/capabilities.conf.j2"
    return template(root, path, CAPABILITIES_REMARK, __throughline_capabilities=granted)


def mount(root: Path) -> tuple[str, bytes]:
    """The name and the text of the unit that mounts the agent's BPF file system."""
    module = plugin(root, "modules.throughline_mount")
    mounts = defaults(root, "mounts")["throughline_mounts"]
    (wanted,) = (one for one in mounts if one["fstype"] == "bpf")
    text = module.unit_text(wanted["path"], wanted["fstype"], wanted["options"])
    _remark, _newline, unit = text.partition("\n")
    return module.unit_name(wanted["path"], wanted["fstype"]), unit.encode()


def accounts(root: Path) -> str:
    """Shell commands that make the group and the user of the role, where they are missing."""
    tasks = yaml.safe_load((root / "roles/agent/tasks/main.yml").read_text(encoding="utf-8"))
    (group,) = (task["ansible.builtin.group"] for task in tasks if "ansible.builtin.group" in task)
    (user,) = (task["ansible.builtin.user"] for task in tasks if "ansible.builtin.user" in task)
    if unknown := user.keys() - USERADD.keys() - {"name", "system", "create_home"}:
        raise ValueError(f"roles/agent: useradd has no option here for {', '.join(unknown)}")
    words = ["useradd", *(["--system"] if user["system"] else []), "--no-create-home"]
    for key, option in USERADD.items():
        words += [option, user[key]]
    return (
        f"getent group {group['name']} >/dev/null || groupadd --system {group['name']}\n"
        f"getent passwd {user['name']} >/dev/null || {shlex.join([*words, user['name']])}\n"
    )
