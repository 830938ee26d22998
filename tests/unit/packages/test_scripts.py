"""What the scripts of a package do on a host: a tree of files, with commands that write down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from packages import tree

NEW, OLD = "a" * 64, "b" * 64
PLACES = ("/opt", "/etc", "/run", "/var/lib", "/proc")
# Each writes its arguments to the file `commands`, and says what a host with the account would.
COMMANDS = {
    "systemctl": 'case "$*" in *MainPID*) echo 4711;; esac',
    "getent": "echo throughline:x:997:",
    "id": "echo 997",
    "chgrp": "",
    "chown": "",
    "find": 'case "$*" in *-group*|*-user*) ;; *) exec {find} "$@";; esac',
    "groupdel": "",
    "userdel": "",
    "sleep": "",
    "setpriv": 'while [ "${{1#--}}" != "$1" ]; do shift; done; exec "$@"',
}


@dataclass
class Host:
    folder: Path

    def path(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def write(self, path: str, content: str = "") -> Path:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o755)
        return file

    def release(self, name: str, *, code: int = 0) -> None:
        """A release whose `config check` exits with a code."""
        base = f"/opt/throughline/releases/{name}"
        self.write(f"{base}/bin/python", "#!/bin/sh\n")
        self.write(f"{base}/bin/throughline", f"#!/bin/sh\necho its words; exit {code}\n")
        self.write(f"{base}/lib/__pycache__/start.pyc")
        self.write(f"{base}/UNPACKED")

    def runs(self, name: str) -> None:
        self.write("/proc/4711/cmdline", f"python\0/opt/throughline/releases/{name}/lib/start.py\0")

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        text = (tree.SCRIPTS / f"{script}.sh").read_text().replace("@RELEASE@", NEW)
        for place in PLACES:
            for before in (" ", "=", '"'):
                text = text.replace(f"{before}{place}", f"{before}{self.folder}{place}")
        text = text.replace("@ACCOUNTS@\n", "")
        for place in PLACES:  # of this machine nothing is touched
            own = f"{place}/throughline"
            assert text.count(own) == text.count(f"{self.folder}{own}")
        return subprocess.run(
            ["/bin/sh", "-c", f"set -e\n{text}"],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
        )

    def commands(self) -> str:
        path = self.path("commands")
        return path.read_text() if path.exists() else ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    for name, answer in COMMANDS.items():
        said = answer.format(find=shutil.which("find"))
        note = f'echo "{name} $*" >>{tmp_path}/commands'
        made.write(f"bin/{name}", f"#!/bin/sh\n{note}\n{said}\n")
    for folder in ("run/systemd/system", "opt/throughline", "etc/throughline"):
        (tmp_path / folder).mkdir(parents=True)
    return made


def test_an_upgrade_ends_when_the_agent_runs_the_new_release(host: Host) -> None:
    host.release(OLD)
    kept = host.write(f"/opt/throughline/releases/{OLD}/lib/of_the_package_manager")
    host.release(NEW)
    host.write("/etc/throughline/config.yaml")
    host.runs(NEW)
    done = host.run("after_install")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "systemctl reload throughline.service\n" in host.commands()
    assert "setpriv --reuid=997 --regid=997 --groups=997 --inh-caps=-all" in host.commands()
    assert host.commands().count("sleep") == 0
    left = [path for path in kept.parents[1].rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["of_the_package_manager", "python", "throughline"]
    shutil.rmtree(kept.parents[1] / "bin")
    kept.unlink()
    assert host.run("after_install").returncode == 0
    assert not kept.parents[1].exists(), "nothing is left where the package manager was first"


def test_a_configuration_that_the_new_release_refuses_leaves_the_agent_alone(host: Host) -> None:
    host.release(OLD)
    host.release(NEW, code=2)
    host.write("/etc/throughline/config.yaml")
    host.runs(OLD)
    done = host.run("after_install")
    assert done.returncode == 1
    assert done.stderr.startswith("its words\nthroughline: Found a configuration that ")
    assert "Remedy: " in done.stderr and "dpkg --configure throughline" in done.stderr
    assert "reload throughline.service" not in host.commands()
    assert host.path(f"/opt/throughline/releases/{OLD}/UNPACKED").exists()


def test_an_agent_that_does_not_take_over_is_waited_for_and_named(host: Host) -> None:
    host.release(OLD)
    host.release(NEW)
    host.runs(OLD)  # and an operator has deleted the configuration
    done = host.run("after_install")
    assert done.returncode == 1 and "Remedy: " in done.stderr
    assert host.commands().count("sleep 1\n") == 30
    assert "config check" not in host.commands()
    assert host.path(f"/opt/throughline/releases/{OLD}/UNPACKED").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/opt/throughline/releases/x",
        "/etc/systemd/system/throughline.service",
        "/etc/systemd/system/throughline.service.d/capabilities.conf",
        "/run/throughline.lock",
    ],
)
def test_the_package_refuses_what_ansible_has_installed(host: Host, path: str) -> None:
    assert host.run("before_install").returncode == 0
    host.write(path)
    done = host.run("before_install")
    assert done.returncode == 1 and "Remedy: " in done.stderr
    host.write("/opt/throughline/PACKAGE")
    assert host.run("before_install").returncode == 0


def test_the_package_refuses_a_link_that_leads_nowhere(host: Host) -> None:
    host.path("/opt/throughline/current").symlink_to("releases/x")
    assert host.run("before_install").returncode == 1


def test_a_purge_leaves_an_agent_alone_that_ansible_has_installed_since(host: Host) -> None:
    host.path("/opt/throughline/current").symlink_to("releases/x")
    file = host.write("/opt/throughline/releases/x/bin/throughline")
    assert host.run("after_remove").returncode == 0
    assert file.exists() and host.commands() == ""


def test_what_stays_belongs_to_no_account_that_is_gone(host: Host) -> None:
    host.write("/etc/throughline/config.yaml")
    assert host.run("after_remove").returncode == 0
    said = host.commands()
    assert "-group throughline -exec chgrp -h root {} +\n" in said
    assert said.index("chgrp -h root") < said.index("groupdel throughline\n")
    assert said.index("chown -h root") < said.index("userdel throughline\n")
    assert not host.path("/opt/throughline").exists()


def test_a_file_system_that_stays_mounted_does_not_fail_the_removal(host: Host) -> None:
    host.write("bin/rm", f"#!{sys.executable}\nraise SystemExit('Device or resource busy')\n")
    assert host.run("after_remove").returncode == 0
    assert "groupdel throughline\n" in host.commands()


def test_a_removal_goes_on_where_the_release_is_gone(host: Host) -> None:
    host.write("/proc/self/mounts", "")
    done = host.run("before_remove")
    assert (done.returncode, done.stderr) == (0, "")
