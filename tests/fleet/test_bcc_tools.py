"""throughline_bcc_tools on a real host, with packages from a repository on its own disk."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import hosts, playbook
from tests.fleet.hosts import Fleet
from tests.fleet.playbook import PlaybookError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root")

NAME = "bcc"
TOOLS = Path(__file__).with_name("bcc_tools.yml")
HEADERS = f"linux-headers-{platform.release()}"

# Makes a repository of empty packages with these names, and of no others.
OFFER = r"""
set -eu
rm -f /etc/apt/sources.list.d/*
echo "deb [trusted=yes] file:/srv/repository ./" >/etc/apt/sources.list
mkdir -p /srv/repository; cd /srv/repository; : >Packages
for name; do
    mkdir -p "$name/DEBIAN"
    printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n' "$name" \
        >"$name/DEBIAN/control"
    dpkg-deb --build "$name" >/dev/null
    { cat "$name/DEBIAN/control"; printf 'Filename: ./%s.deb\nSize: %s\nSHA256: %s\n\n' "$name" \
        "$(stat -c %s "$name.deb")" "$(sha256sum <"$name.deb" | cut -d' ' -f1)"; } >>Packages
done
apt-get -q update >/dev/null
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One host for all tests of this file."""
    with hosts.fleet(NAME, count=1) as running:
        yield running


def offer(fleet: Fleet, *packages: str) -> None:
    """Puts these packages into the host's only repository."""
    subprocess.run(
        [*fleet.ssh, fleet.hosts[0].name, f"bash -s -- {' '.join(packages)}"],
        input=OFFER,
        check=True,
        text=True,
    )


def words(output: str) -> str:
    """Output as one line: Ansible wraps long lines."""
    return " ".join(output.split())


def test_without_the_package_there_is_a_remedy(fleet: Fleet) -> None:
    offer(fleet)
    with pytest.raises(PlaybookError) as failed:
        playbook.run(fleet, TOOLS, quiet=True)
    output = words(failed.value.output)
    assert "Found: No package matching 'bpfcc-tools' is available." in output
    assert "Remedy: give the host a repository that has it" in output


def test_a_kernel_without_packaged_headers_is_said_and_no_failure(fleet: Fleet) -> None:
    offer(fleet, "bpfcc-tools")
    output = words(playbook.run(fleet, TOOLS, quiet=True))
    assert f"Found no package {HEADERS} for the running kernel." in output
    places = (f"/lib/modules/{platform.release()}/build", "/sys/kernel/kheaders.tar.xz")
    found = fleet.run(fleet.hosts[0], f"ls -d {' '.join(places)}", check=False).stdout.split()
    assert ("Remedy: boot a kernel" if not found else f"against {found[0]} instead") in output
    fleet.run(fleet.hosts[0], "dpkg -s bpfcc-tools")


def test_tools_and_headers_are_installed_once(fleet: Fleet) -> None:
    offer(fleet, "bpfcc-tools", HEADERS)
    playbook.run(fleet, TOOLS, quiet=True)
    fleet.run(fleet.hosts[0], f"dpkg -s bpfcc-tools {HEADERS}")
    assert "changed=0 " in playbook.run(fleet, TOOLS, quiet=True)
