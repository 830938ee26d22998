# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The drop-in that gives a unit of Node.js the preload, and why a unit may not have it.

systemd hands the preload to the service as a credential: a copy that the service's user can read,
also in a sandbox, and that lives as long as the service. Where the file does not exist when the
service starts, the copy has a program that does nothing. So Node.js, which refuses to start without
a file that --require names, finds one (docs/decisions/0019-node-preload.md).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from .commands import (
    SETTINGS,
    START,
    STARTS_SINCE,
    commands,
    is_node,
    may_run_node,
    names,
    read_text,
    without_credential,
)

DROP_IN = "throughline-node.conf"
CREDENTIAL = "throughline-context.cjs"
SOURCE = "/opt/throughline/current/share/node/context.cjs"
# What `throughline status` and `doctor` read: {unit: why it has no drop-in}.
REFUSED = "/etc/throughline/node-refused.json"
OPTION = f"--require=/run/credentials/%n/{CREDENTIAL}"
# In the environment of a process; the name of the unit is in between.
MARK = f"/{CREDENTIAL}"
VARIABLE = "NODE_OPTIONS"
TEMPLATE = """\
# Written by throughline_node (throughline.fleet); removed by uninstall.yml, and by site.yml where
# throughline_node_services does not name this unit. Options in front of --require are a copy of the
# unit's own: after you change those, run site.yml before you restart the service.
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
    *SETTINGS,
    "FragmentPath",
    "Id",
    "LoadState",
    "MainPID",
    "NeedDaemonReload",
    "PassEnvironment",
    "RootDirectory",
    "RootImage",
    "Type",
    "UnsetEnvironment",
    "User",
    "WorkingDirectory",
)
UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.service")
OTHER_USER = {"su", "sudo", "doas", "runuser", "setpriv", "gosu", "su-exec", "chpst", "setuidgid"}
OTHER_USER |= {"start-stop-daemon", "pkexec"}
OTHER_ROOT = {"chroot", "bwrap", "firejail", "docker", "podman", "unshare", "nsenter", "snap"}
OTHER_ROOT |= {"systemd-nspawn", "flatpak", "runc", "crun", "lxc-start"}
# Where one of these is empty, systemd forgets what the files before it have set.
EMPTIED = {"Environment", "LoadCredential", "SetCredential"}
EMPTIED |= {"LoadCredentialEncrypted", "SetCredentialEncrypted"}
PERMISSION = re.compile(r"--(experimental-)?permission\b")


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


def split(value):
    """The words of an Environment=. Raises ValueError where it cannot be read."""
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"its Environment= could not be read ({error})") from error


def sets_variable(word):
    """Returns whether a word of Environment= sets NODE_OPTIONS, also to nothing."""
    return word.partition("=")[0] == VARIABLE


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
            for word in filter(sets_variable, split(value)):
                found = word.partition("=")[2]
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


def environment_file(properties):
    """The file of EnvironmentFile= that sets NODE_OPTIONS, or None."""
    for value in properties.get("EnvironmentFiles", []):
        pattern = value.rpartition(" (ignore_errors=")[0] or value
        for found in sorted(Path("/").glob(pattern.lstrip("/"))):
            path = str(found)
            if re.search(rf"^\s*{VARIABLE}\s*=", read_text(path), re.MULTILINE):
                return path
    return None


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


def obstacle(properties, options, *, version):
    """Why a unit does not get the preload, or None.

    `options` is its own NODE_OPTIONS, `version` the release of systemd. Raises ValueError for a
    command that cannot be read.
    """
    state = first(properties, "LoadState") or "unknown"
    if state == "masked":
        return "it is masked"
    if state != "loaded":
        return f"systemd does not know the unit ({state})"
    return (
        environment_obstacle(properties)
        or command_obstacle(properties, options)
        or root_obstacle(properties)
        or credential_obstacle(properties, version=version)
    )


def environment_obstacle(properties):
    """What of the environment of a unit wins over the preload, or hides it; or None."""
    path = environment_file(properties)
    if path:
        return (
            f"EnvironmentFile={path} sets {VARIABLE}, which wins over a drop-in: set it by"
            " Environment= in the unit"
        )
    if VARIABLE in first(properties, "UnsetEnvironment").split():
        return f"UnsetEnvironment= has {VARIABLE}"
    if VARIABLE in first(properties, "PassEnvironment").split():
        return (
            f"PassEnvironment= has {VARIABLE}, which a drop-in would replace: set it by"
            " Environment= in the unit"
        )
    for name in ("RootDirectory", "RootImage"):
        if first(properties, name) not in ("", "/"):
            return f"it has a root of its own ({name}=)"
    if first(properties, "AppArmorProfile"):
        return "AppArmor confines it (AppArmorProfile=)"
    return None


def command_obstacle(properties, options):
    """Which command of a unit keeps Node.js from reading the preload, or None."""
    said = [options, *scripts(properties)]
    for setting in SETTINGS:
        words = [word for command in commands(properties, setting) for word in command]
        found = names(words)
        if found & OTHER_ROOT:
            return f"{setting}= has {min(found & OTHER_ROOT)}: Node.js may have another root there"
        if found & OTHER_USER:
            return f"{setting}= has {min(found & OTHER_USER)}: another user cannot read the preload"
        said.append(" ".join(words))
    if any(PERMISSION.search(text) for text in said):
        return "it uses the permission model of Node.js, which older releases do not let us pass"
    return None


def root_obstacle(properties):
    """Which command of a unit that runs as root may start Node.js as another user, or None."""
    if first(properties, "User") not in ("", "root", "0"):
        return None
    if first(properties, "DynamicUser") == "yes":
        return None
    for setting in ("ExecStartPre", START, "ExecStartPost"):
        for words in commands(properties, setting):
            if not is_node(words) and (setting == START or may_run_node(words)):
                return (
                    f"it runs as root, and {setting}= is not Node.js itself: a program of another"
                    " user that it starts could not read the preload. Set User="
                )
    return None


def credential_obstacle(properties, *, version):
    """Which command of a unit may find no credential, or make the start fail; or None."""
    for setting, words in without_credential(properties, version=version):
        if may_run_node(words):
            return (
                f"{setting}= may run Node.js ({Path(words[0]).name}), and systemd {version} may"
                " start it without the preload: Node.js would refuse to start"
            )
    if first(properties, "Type") in ("simple", "idle") and commands(properties, "ExecStartPost"):
        return (
            "systemd may fail to start a unit with credentials, ExecStartPost= and Type="
            f"{first(properties, 'Type')}: set Type=exec"
        )
    for setting in ("ExecCondition", "ExecStartPre"):
        if version < STARTS_SINCE and commands(properties, setting):
            return f"systemd {version} may fail to start a unit with credentials and {setting}="
    return None


def unit_files(properties):
    """((path, text) of the files that systemd reads before our drop-in, of those behind it).

    Ours, of this unit or of its template, is in neither.
    """
    before, behind = [first(properties, "FragmentPath")], []
    for path in first(properties, "DropInPaths").split():
        name = Path(path).name  # systemd reads all drop-ins in the order of their names
        if name != DROP_IN:
            (before if name < DROP_IN else behind).append(path)
    return [[(path, read_text(path)) for path in paths if path] for paths in (before, behind)]


def overruled(files):
    """What in files that systemd reads behind our drop-in undoes it, or None.

    Raises ValueError where an Environment= cannot be read.
    """
    for path, text in files:
        for key, value in service_lines(text):
            said = None
            if key in EMPTIED and not value:
                said = f"empties {key}="
            elif key == "Environment" and any(map(sets_variable, split(value))):
                said = f"sets {VARIABLE}"
            if said:
                return f"{path} {said}, and systemd reads it behind {DROP_IN}"
    return None


def judge(blocks, *, version):
    """(the text of the drop-in for a unit or None, why it has none or None).

    `blocks` has the properties of the unit; of a template, those of each loaded instance, too.
    """
    options = None
    for properties in blocks:
        try:
            before, behind = unit_files(properties)
            found = own_options(text for _path, text in before)
            reason = obstacle(properties, found, version=version) or overruled(behind)
        except ValueError as error:
            reason = str(error)
        if not reason and options not in (None, found):
            reason = f"it has {VARIABLE} of its own: name the instances, not the template"
        if reason and properties is not blocks[0]:
            reason = f"{first(properties, 'Id')}: {reason}"
        if reason:
            return None, reason
        options = found
    return drop_in(options), None


def refusals(refused):
    """The text of the file with what was refused, or None where nothing was."""
    return json.dumps(refused, indent=2, sort_keys=True) + "\n" if refused else None


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
