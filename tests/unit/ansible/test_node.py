"""The drop-in that gives units of Node.js the preload, and which units get none."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.plugins import plugin

node = plugin("module_utils.node")

SHOP = "[Service]\nUser=shop\nExecStart=/usr/bin/node /srv/shop.js\n"


def shown(**properties: str | list[str]) -> dict[str, list[str]]:
    """What `systemctl show` says of a unit."""
    start = "{ path=/usr/bin/node ; argv[]=/usr/bin/node /srv/shop.js ; ignore_errors=no ; pid=1 }"
    base: dict[str, Any] = {"LoadState": "loaded", "User": "shop", "ExecStart": start}
    found = {**base, **properties}
    return {name: [value] if isinstance(value, str) else value for name, value in found.items()}


def starts(*words: str) -> str:
    return f"{{ path={words[0]} ; argv[]={' '.join(words)} ; ignore_errors=no ; pid=0 }}"


def test_the_drop_in() -> None:
    lines = node.drop_in("").splitlines()
    assert lines[-4:] == [
        "[Service]",
        "LoadCredential=throughline-context.cjs:/opt/throughline/current/share/node/context.cjs",
        "SetCredential=throughline-context.cjs:0",
        'Environment="NODE_OPTIONS=--require=/run/credentials/%n/throughline-context.cjs"',
    ]


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("Environment=NODE_OPTIONS=--max-old-space-size=512", "--max-old-space-size=512"),
        ('Environment=A=b "NODE_OPTIONS=--a=1 --b" C=d', "--a=1 --b"),
        ("Environment='NODE_OPTIONS=--require \"/srv/a b.js\"'", '--require "/srv/a b.js"'),
        ("Environment=NODE_OPTIONS=--a\nEnvironment=NODE_OPTIONS=--b", "--b"),
        ("Environment=NODE_OPTIONS=--a\nEnvironment=", ""),
        ("Environment=A=1 \\\n# said in between\n  NODE_OPTIONS=--a", "--a"),
        ("Environment=NODE_OPTIONS_OTHER=1", ""),
        ("[Unit]\nEnvironment=NODE_OPTIONS=--a", ""),
    ],
)
def test_options_of_the_unit_stay(environment: str, options: str) -> None:
    found = node.own_options([SHOP + environment, "[Service]\nUser=shop\n"])
    assert found == options
    ours = node.own_options([SHOP + environment, node.drop_in(found)])
    assert ours == f"{options} {node.OPTION}".strip()


def test_a_later_file_wins() -> None:
    texts = [f"[Service]\nEnvironment=NODE_OPTIONS=--{letter}" for letter in "ab"]
    assert node.own_options(texts) == "--b"


def test_what_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError):
        node.own_options([f'{SHOP}Environment="NODE_OPTIONS=--a'])


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"User": "", "DynamicUser": "yes"},
        {"User": ""},
        {"User": "root", "ExecStart": starts("/usr/bin/env", "node", "/srv/shop.js")},
        {"ExecStart": starts("/bin/sh", "-c", "exec node /srv/shop.js")},
        {"ExecStart": starts("/opt/node-v22.1.0/bin/node22", "a.js"), "User": ""},
        {"EnvironmentFiles": "/nonexistent (ignore_errors=yes)"},
        {"RootDirectory": "/", "WorkingDirectory": "!/srv"},
    ],
)
def test_units_that_get_the_preload(properties: dict[str, str]) -> None:
    assert node.obstacle(shown(**properties), "--max-old-space-size=99") is None


@pytest.mark.parametrize(
    ("properties", "options", "reason"),
    [
        ({"LoadState": "not-found"}, "", "does not know the unit (not-found)"),
        ({"UnsetEnvironment": "A NODE_OPTIONS"}, "", "UnsetEnvironment="),
        ({"RootDirectory": "/srv/root"}, "", "RootDirectory="),
        ({"RootImage": "/srv/image"}, "", "RootImage="),
        ({"AppArmorProfile": "node"}, "", "AppArmor"),
        ({"ExecStart": starts("/usr/sbin/runuser", "-u", "a", "node")}, "", "runuser"),
        ({"ExecStart": starts("/usr/bin/sudo", "-u", "a", "node")}, "", "sudo"),
        ({"ExecStart": starts("/usr/sbin/chroot", "/srv", "node")}, "", "chroot"),
        ({"ExecStart": starts("/usr/bin/node", "--permission", "a.js")}, "", "permission model"),
        ({}, "--experimental-permission", "permission model"),
        ({"User": "", "ExecStart": starts("/bin/sh", "/srv/start")}, "", "runs as root"),
        ({"User": "0", "ExecStart": starts("/usr/bin/env", "python3")}, "", "runs as root"),
        (
            {"User": "", "ExecStart": [starts("/usr/bin/node", "a.js"), starts("/bin/sh", "b")]},
            "",
            "runs as root",
        ),
    ],
)
def test_units_that_get_none(properties: dict[str, Any], options: str, reason: str) -> None:
    assert reason in node.obstacle(shown(**properties), options)


def test_an_environment_file_wins(tmp_path: Path) -> None:
    file = tmp_path / "shop"
    file.write_text("# NODE_OPTIONS=--a\nA=1\n")
    properties = shown(EnvironmentFiles=[f"{file} (ignore_errors=no)"])
    assert node.obstacle(properties, "") is None
    file.write_text("A=1\n NODE_OPTIONS=--a\n")
    assert f"EnvironmentFile={file} sets NODE_OPTIONS" in node.obstacle(properties, "")
    several = shown(EnvironmentFiles=[f"{tmp_path}/s* (ignore_errors=yes)"])
    assert str(file) in node.obstacle(several, "")


def test_scripts_of_the_package_are_looked_at(tmp_path: Path) -> None:
    package = tmp_path / "package.json"
    npm = shown(WorkingDirectory=str(tmp_path), ExecStart=starts("/usr/bin/npm", "start"))
    for text in ("not JSON", "[]", json.dumps({"scripts": {"start": "node a.js"}})):
        package.write_text(text)
        assert node.obstacle(npm, "") is None
    package.write_text(json.dumps({"scripts": {"start": "node --permission a.js"}}))
    assert "permission model" in node.obstacle(npm, "")


def test_a_script_that_node_interprets(tmp_path: Path) -> None:
    script = tmp_path / "npm"
    script.write_text("#!/usr/bin/env node\n")
    assert node.is_node([str(script), "start"])
    script.write_text("#!/bin/sh\nnode\n")
    assert not node.is_node([str(script)])


@pytest.mark.parametrize("name", ["a/b.service", "a b", "", "shop.timer.service/..", "-"])
def test_names(name: str) -> None:
    assert node.unit_name("shop") == node.unit_name("shop.service") == "shop.service"
    assert node.unit_name("shop@.service") == "shop@.service"
    found = node.unit_name(name)
    assert found is None or "/" not in found


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "shop.service"
    unit.write_text("[Service]\nUser=nobody\nExecStart=/bin/true\n")
    directory = tmp_path / "shop.service.d"
    directory.mkdir()
    (directory / node.DROP_IN).write_text(node.drop_in('--a --b="c d"'))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert "throughline" not in done.stderr, done.stderr
