# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The drop-in that gives a unit of Node.js the preload, and why a unit may not have it.

systemd hands the preload to the service as a credential: a copy that the service's user can read,
also in a sandbox, and that lives as long as the service. Where the file is missing when the service
starts, the copy has a program that does nothing. So Node.js, which refuses to start without a file
that --require names, always finds one (docs/decisions/0019-node-preload.md).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

DROP_IN = "throughline-node.conf"
CREDENTIAL = "throughline-context.cjs"
SOURCE = "/opt/throughline/current/share/node/context.cjs"
OPTION = f"--require=/run/credentials/%n/{CREDENTIAL}"
# In the environment of a process; the name of the unit is in between.
MARK = f"/{CREDENTIAL}"
VARIABLE = "NODE_OPTIONS"
TEMPLATE = """\
# Written by throughline_node (throughline.fleet); removed by uninstall.yml, and by site.yml where
# throughline_node_services does not name this unit.
[Service]
LoadCredential={credential}:{source}
SetCredential={credential}:0
Environment="{variable}={options}"
"""
PROPERTIES = (
    "ActiveState",
    "AppArmorProfile",
    "DropInPaths",
    "DynamicUser",
    "Environment",
    "EnvironmentFiles",
    "ExecStart",
    "FragmentPath",
    "LoadState",
    "MainPID",
    "RootDirectory",
    "RootImage",
    "UnsetEnvironment",
    "User",
    "WorkingDirectory",
)
UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.service")
NODE = re.compile(r"node(js)?([-.\d]+)?")
OTHER_USER = {"su", "sudo", "doas", "runuser", "setpriv", "gosu", "su-exec", "chpst", "setuidgid"}
OTHER_USER |= {"start-stop-daemon", "pkexec"}
OTHER_ROOT = {"chroot", "bwrap", "firejail", "docker", "podman", "unshare", "nsenter", "snap"}
OTHER_ROOT |= {"systemd-nspawn", "flatpak", "runc", "crun", "lxc-start"}
PERMISSION = re.compile(r"--(experimental-)?permission\b")
MAX_BYTES = 1 << 20


def unit_name(name):
    """The full name of a unit, or None where it is no name of a service."""
    full = name if name.endswith(".service") else f"{name}.service"
    return full if UNIT.fullmatch(full) else None


def shown_name(unit):
    """A name that `systemctl show` accepts: a template is shown by an instance of it."""
    return unit.replace("@.service", "@throughline.service")


def parse_properties(output):
    """{property: [values]} of `systemctl show`, which prints some properties several times."""
    found = {}
    for line in output.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            found.setdefault(name, []).append(value)
    return found


def first(properties, name):
    """The value of a property that is printed once."""
    return (properties.get(name) or [""])[0]


def service_lines(text):
    """(key, value) of each assignment in the sections [Service] of a unit file."""
    section, joined = "", ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("#", ";")):
            continue  # also between continued lines
        joined += stripped
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        whole, joined = joined, ""
        if whole.startswith("["):
            section = whole
        elif section == "[Service]" and "=" in whole:
            key, _separator, value = whole.partition("=")
            yield key.strip(), value.strip()


def own_options(texts):
    """NODE_OPTIONS that these unit files set by Environment=, as they write it; "" for none.

    Raises ValueError where it cannot be read.
    """
    found = ""
    for text in texts:
        for key, value in service_lines(text):
            if key != "Environment":
                continue
            if not value:
                found = ""
            for word in shlex.split(value):
                name, _separator, options = word.partition("=")
                if name == VARIABLE:
                    found = options
    return found.strip()


def drop_in(options):
    """The text of the drop-in. `options` are those of the unit, which stay."""
    escaped = options.replace("\\", "\\\\").replace('"', '\\"')
    return TEMPLATE.format(
        credential=CREDENTIAL,
        source=SOURCE,
        variable=VARIABLE,
        options=f"{escaped} {OPTION}".strip(),
    )


def read_text(path):
    """The text of a file, "" where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""


def environment_file(properties):
    """The file of EnvironmentFile= that sets NODE_OPTIONS, or None."""
    for value in properties.get("EnvironmentFiles", []):
        pattern = value.rpartition(" (ignore_errors=")[0] or value
        for found in sorted(Path("/").glob(pattern.lstrip("/"))):
            path = str(found)
            if re.search(rf"^\s*{VARIABLE}\s*=", read_text(path), re.MULTILINE):
                return path
    return None


def commands(properties):
    """The words of each ExecStart=."""
    texts = (re.search(r"argv\[\]=(.*?) ;", value) for value in properties.get("ExecStart", []))
    return [text.group(1).split() for text in texts if text]


def is_node(words):
    """Returns whether a command begins with Node.js: itself, or a program that it interprets."""
    rest = [word for word in words if word != "/usr/bin/env"]
    if not rest:
        return False
    if NODE.fullmatch(Path(rest[0]).name):
        return True
    begin = read_text(rest[0])[:256].splitlines()
    shebang = begin[0] if begin and begin[0].startswith("#!") else ""
    return any(NODE.fullmatch(Path(word).name) for word in shebang[2:].split())


def scripts(properties):
    """The scripts of the package in the working directory, which npm may run."""
    directory = first(properties, "WorkingDirectory").lstrip("!-")
    if not directory.startswith("/"):
        return []
    try:
        found = json.loads(read_text(Path(directory) / "package.json")).get("scripts", {})
        return [str(script) for script in found.values()]
    except (ValueError, AttributeError):
        return []


def obstacle(properties, options):
    """Why a unit does not get the preload, or None. `options` is its own NODE_OPTIONS."""
    if first(properties, "LoadState") != "loaded":
        state = first(properties, "LoadState") or "unknown"
        return f"systemd does not know the unit ({state})"
    path = environment_file(properties)
    if path:
        return (
            f"EnvironmentFile={path} sets {VARIABLE}, which wins over a drop-in: set it by"
            " Environment= in the unit"
        )
    if VARIABLE in first(properties, "UnsetEnvironment").split():
        return f"UnsetEnvironment= has {VARIABLE}"
    for name in ("RootDirectory", "RootImage"):
        if first(properties, name) not in ("", "/"):
            return f"it has a root of its own ({name}=)"
    if first(properties, "AppArmorProfile"):
        return "AppArmor confines it (AppArmorProfile=)"
    starts = commands(properties)
    words = [word for command in starts for word in command]
    names = {Path(word).name for word in words}
    if names & OTHER_ROOT:
        return f"ExecStart= has {min(names & OTHER_ROOT)}: Node.js may have another root there"
    if names & OTHER_USER:
        return f"ExecStart= has {min(names & OTHER_USER)}: another user cannot read the preload"
    if any(PERMISSION.search(text) for text in (" ".join(words), options, *scripts(properties))):
        return "it uses the permission model of Node.js, which older releases do not let us pass"
    is_root = first(properties, "User") in ("", "root", "0")
    if is_root and first(properties, "DynamicUser") != "yes" and not all(map(is_node, starts)):
        return (
            "it runs as root, and ExecStart= is not Node.js itself: a program of another user that"
            " it starts could not read the preload. Set User="
        )
    return None


def process_options(pid):
    """NODE_OPTIONS with which a process was started; None where it has ended."""
    try:
        variables = Path(f"/proc/{int(pid)}/environ").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    for variable in variables:
        name, _separator, value = variable.partition(b"=")
        if name == VARIABLE.encode():
            return value.decode(errors="replace")
    return ""
