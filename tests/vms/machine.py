"""One VM of the matrix: `python -m tests.vms.machine up 6.1-none`, Ansible or ssh, then `down`.

Vagrant with the libvirt provider makes and destroys it. State is below /run/throughline-vms/NAME:
`inventory.yml` (Ansible), `ssh_config`, `Vagrantfile`, the console and `boot.json`; the two first
reach into the VM's network namespace by themselves, from any shell of root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jinja2

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.waiting import poll
from tests.fleet.host import system_state
from tests.fleet.hosts import CONNECT
from tests.vms import boxes, hypervisor, kvm, leftovers, platforms, stock
from tests.vms.platforms import Platform

REPOSITORY = CHECKOUT
TEMPLATE = REPOSITORY / "molecule/kernels/Vagrantfile.j2"
# A boot hangs when the console has said nothing new for so long: a busy machine only takes longer.
BOOT_SECONDS = 150
SSH_SECONDS = 300
TRIES = 2  # about one boot in thirty hangs under emulation, with an empty console
DESTROY_SECONDS = 60


def say(line: str) -> None:
    """Progress goes to standard error at once."""
    print(f"vms: {line}", file=sys.stderr, flush=True)


def _console_size(platform: Platform) -> int:
    return platform.console.stat().st_size if platform.console.exists() else 0


def _wait(process: subprocess.Popen[bytes], platform: Platform, *, seconds: float) -> int | str:
    """The exit status, or what is wrong once the console has not grown for `seconds`."""
    size, since = _console_size(platform), time.monotonic()
    while (status := process.poll()) is None:
        time.sleep(0.1)
        if _console_size(platform) != size:
            size, since = _console_size(platform), time.monotonic()
        if time.monotonic() > since + seconds:
            return f"nothing new for {seconds:.0f} s"
    return status


def _vagrant(platform: Platform, *words: str, seconds: float) -> str:
    """Runs Vagrant beside the platform's libvirtd and returns its output.

    Raises RuntimeError with its last lines when it fails, or when it is not done after `seconds`
    in which the VM printed nothing either.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(platform.state),
        "LANG": "C.UTF-8",
        "VAGRANT_CWD": str(platform.state),
        "VAGRANT_HOME": str(platform.state / "home"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    log = platform.state / "log/vagrant.log"
    with log.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(
            [*hypervisor.inside(platform.name), "vagrant", *words],
            cwd=platform.state,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            status = _wait(process, platform, seconds=seconds)
        finally:
            process.kill()
            process.wait()
    output = log.read_bytes()[begin:].decode(errors="replace")
    if status != 0:
        end = "\n".join(output.splitlines()[-12:])
        raise RuntimeError(f"{platform.name}: vagrant {words[0]}: {status}\n{end}")
    return output


def _add_box(platform: Platform) -> str:
    """Puts the box where Vagrant and libvirt have it after `box add` and upload; returns its name.

    By links, since that copies hundreds of megabytes twice for each machine.
    """
    name, box = f"throughline-{platform.box}", boxes.path(platform.box)
    home = platform.state / "home/boxes" / name / "0/libvirt"
    home.mkdir(parents=True)
    for file in ("box.img", "metadata.json", "Vagrantfile"):
        (home / file).symlink_to(box / file)
    written = int((box / "box.img").stat().st_mtime)
    volume = f"{name}_vagrant_box_image_0_{written}_box.img"
    (hypervisor.pool(platform.name) / "images" / volume).symlink_to(box / "box.img")
    return name


def _write_vagrantfile(platform: Platform, *, box: str, accelerated: bool) -> None:
    kernel, initrd = stock.kernel(platform)
    template = jinja2.Template(TEMPLATE.read_text(), undefined=jinja2.StrictUndefined)
    text = template.render(
        platform=platform,
        box=box,
        kvm=accelerated,
        kernel=kernel,
        initrd=initrd,
        ssh_seconds=SSH_SECONDS,
    )
    (platform.state / "Vagrantfile").write_text(f"{text}\n")


def _address(platform: Platform) -> tuple[str, str]:
    """The VM's address and the file with the key that opens it, as Vagrant knows them."""
    text = _vagrant(platform, "ssh-config", seconds=60)
    found = dict(re.findall(r"^\s+(HostName|IdentityFile) (.+)$", text, re.MULTILINE))
    key = platform.state / "key"
    shutil.copy(found["IdentityFile"].strip('"'), key)
    key.chmod(0o600)
    return found["HostName"], str(key)


def _write_ssh_config(platform: Platform) -> None:
    address, key = _address(platform)
    inside = f"nsenter --net={hypervisor.namespace_path(platform.name)}"
    options = {
        "HostName": address,
        "User": "vagrant",
        "IdentityFile": key,
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "ProxyCommand": f"{inside} {sys.executable} {CONNECT} %h %p",
        "ProxyUseFdpass": "yes",
        "ConnectTimeout": 20,
        "ServerAliveInterval": 10,
        "ControlMaster": "auto",
        "ControlPath": platform.state / "mux" / "%n",
        "ControlPersist": 60,
        "LogLevel": "ERROR",
    }
    lines = [f"Host {platform.name}", *(f"    {key} {value}" for key, value in options.items())]
    platform.ssh_config.write_text("\n".join(lines) + "\n")


def _write_inventory(platform: Platform) -> None:
    """JSON is YAML too."""
    variables = {
        "ansible_user": "vagrant",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-F {platform.ssh_config}",
        "ansible_control_path_dir": str(platform.state / "mux"),
        "platform": platform.name,
        "platform_expect": platform.expect,
    }
    groups = {"kernels": {"hosts": {platform.name: variables}}}
    platform.inventory.write_text(json.dumps({"all": {"children": groups}}, indent=2) + "\n")


def _wait_running(platform: Platform, *, seconds: float) -> None:
    """Waits until systemd has started everything."""
    ssh = ["ssh", "-F", str(platform.ssh_config), "-o", "ControlPath=none", platform.name]
    started = ("running", "degraded")  # the tests judge whether it may be degraded
    state = poll(
        lambda: system_state(ssh), enough=lambda found: found in started, seconds=seconds, every=1
    )
    if state not in started:
        raise RuntimeError(f"{platform.name} is not running: {state}")


def console_end(platform: Platform, *, lines: int = 25) -> str:
    """The last lines of the VM's console."""
    if not platform.console.exists():
        return "(no console)"
    text = platform.console.read_text(errors="replace")
    return "\n".join(text.splitlines()[-lines:]) or "(the console is empty)"


def keep_console(platform: Platform) -> Path:
    """Copies the console to where it outlives the VM."""
    kept = REPOSITORY / "build/kernels/console" / f"{platform.name}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(platform.console.read_bytes() if platform.console.exists() else b"")
    return kept


def _boot(platform: Platform, *, accelerated: bool) -> None:
    hypervisor.up(platform, kvm=accelerated)
    box = _add_box(platform)
    _write_vagrantfile(platform, box=box, accelerated=accelerated)
    _vagrant(platform, "up", seconds=BOOT_SECONDS)
    _write_ssh_config(platform)
    _write_inventory(platform)
    _wait_running(platform, seconds=BOOT_SECONDS)


def up(platform: Platform) -> float:
    """Boots a platform's VM and returns the seconds that the successful boot took.

    A boot that hangs is tried once more. Raises RuntimeError with the end of the console when the
    second one hangs too; then nothing is left behind but the console, in build/kernels/console.
    """
    stock.kernel(platform)
    accelerated, reason = kvm.usable(platform.box)
    say("KVM boots kernels: it is used" if accelerated else f"software emulation: {reason}")
    for attempt in range(1, TRIES + 1):
        begin = time.monotonic()
        try:
            _boot(platform, accelerated=accelerated)
        except (ProcessLookupError, RuntimeError) as error:
            kept = keep_console(platform)
            end = console_end(platform)
            hypervisor.down(platform.name)
            message = f"{error}\nThe console ({kept}) ends with:\n{end}"
            if attempt == TRIES:
                raise RuntimeError(message) from None
            say(f"{message}\nvms: {platform.name}: boot {attempt} failed; trying again")
        except BaseException:
            hypervisor.down(platform.name)
            raise
        else:
            seconds = time.monotonic() - begin
            result = {"seconds": round(seconds, 1), "kvm": accelerated, "attempt": attempt}
            (platform.state / "boot.json").write_text(json.dumps(result) + "\n")
            say(f"{platform.name} is running ({seconds:.0f} s)")
            return seconds
    raise AssertionError


def down(name: str) -> None:
    """Destroys a platform's VM by Vagrant, then ends its hypervisor and removes all files."""
    known = platforms.load().get(name)
    if known is not None and known.state.is_dir():
        keep_console(known)
        try:
            _vagrant(known, "destroy", "--force", seconds=DESTROY_SECONDS)
        except (ProcessLookupError, RuntimeError) as error:
            say(f"{name}: destroyed without Vagrant: {error}")
    hypervisor.down(name)


def main() -> int:
    """Runs one command. Returns its exit code: 1 for an error that the user can correct."""
    parser = argparse.ArgumentParser(prog="python -m tests.vms.machine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "boot a platform's VM and leave it running"),
        ("down", "destroy it and remove everything of it"),
        ("ssh", "run a command there, or a shell"),
        ("console", "show the end of its console"),
        ("clean", "remove all VMs, and what killed runs left of them"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name != "clean":
            command.add_argument("platform")
        if name == "ssh":
            command.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND …")
    arguments = parser.parse_args()
    try:
        if arguments.command == "clean":
            leftovers.clean(say=say)
            return 0
        platform = platforms.get(arguments.platform)
        if arguments.command == "up":
            up(platform)
        elif arguments.command == "down":
            down(platform.name)
        elif arguments.command == "ssh":
            return subprocess.call(
                ["ssh", "-F", platform.ssh_config, platform.name, *arguments.words]
            )
        else:
            print(console_end(platform))
    except (OSError, LookupError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"vms: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
