"""A host as hardening guides leave it, on which two operators are at work.

root's umask is 077, useradd makes no groups, and /proc hides the processes of others.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.receiver import Receiver
from tests.fixtures.waiting import until
from tests.fleet import hosts, network, playbook, releases
from tests.fleet.hosts import Fleet
from tests.fleet.playbook import PlaybookError

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "hard"
LOCK = "/run/throughline.lock"
HARDEN = """
set -e
echo 'session optional pam_umask.so umask=077' >>/etc/pam.d/sshd
sed -i 's/^UMASK.*/UMASK 077/; s/^USERGROUPS_ENAB.*/USERGROUPS_ENAB no/' /etc/login.defs
mount -o remount,hidepid=2 /proc
"""
# The umask, and what is for everybody and not everybody can read or pass through.
CLOSED = r"""
umask
find /opt/throughline /etc/systemd/system/*hroughline* ! -type l ! -name served.json \
    ! \( -type d -perm 755 \) ! \( -type f -perm 644 \) ! \( -type f -perm 755 \)
"""
OURS = """
stat -c '%a %U:%G %n' /etc/throughline /etc/throughline/config.yaml /opt/throughline/served.json
id -gn throughline
"""
AS_BEFORE = """
systemctl show --property=MainPID --value throughline.service
cat /etc/throughline/config.yaml
"""
# An HTTPS service with a user that systemd makes for it.
DYNAMIC = """
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=dynamic -days 1 \
    -keyout /etc/dynamic.key -out /etc/dynamic.crt 2>/dev/null
chmod 644 /etc/dynamic.*
systemd-run --quiet --unit=dynamic --property=DynamicUser=yes python3 -c '
import http.server, ssl
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/etc/dynamic.crt", "/etc/dynamic.key")
server = http.server.HTTPServer(("127.0.0.1", 8443), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()'
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with hosts.fleet(NAME, count=1) as running:
        one = running.hosts[0]
        running.run(one, HARDEN)
        for path in (running.state / "mux").iterdir():  # open connections keep the old umask
            command = [*running.ssh, "-o", f"ControlPath={path}", "-O", "exit", one.name]
            subprocess.run(command, capture_output=True, check=False)
        yield running


@pytest.fixture(scope="module")
def receiver(fleet: Fleet) -> Iterator[Receiver]:
    """From the beginning: the agent asks one that was away only now and then."""
    with Receiver(network.listen(NAME, port=4318)) as listening:
        yield listening


def variables(bundle: Path, **otlp: object) -> dict[str, Any]:
    endpoint = f"http://{network.GATEWAY}:4318"
    return {
        "throughline_bundle": str(bundle),
        "throughline_config": {"export": {"otlp": {"endpoint": endpoint, **otlp}}},
    }


def site(fleet: Fleet, bundle: Path, *options: str, **otlp: object) -> str:
    given = variables(bundle, **otlp)
    return playbook.run(fleet, playbook.SITE, *options, quiet=True, **given)


@contextmanager
def at_work(fleet: Fleet, bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of site.yml of another operator, which has the host's lock."""
    with subprocess.Popen(
        playbook.command(fleet, playbook.SITE, **variables(bundle)),
        cwd=playbook.REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as other:
        try:
            until(
                lambda: fleet.run(fleet.hosts[0], f"test -s {LOCK}", check=False).returncode,
                enough=lambda code: code == 0,
                seconds=30,
                every=0.1,
                otherwise="no lock is taken",
            )
            yield other
        finally:
            if other.poll() is None:
                os.killpg(other.pid, signal.SIGKILL)


def refused(fleet: Fleet, bundle: Path, *options: str, **otlp: object) -> str:
    with pytest.raises(PlaybookError) as failed:
        site(fleet, bundle, *options, **otlp)
    return failed.value.output


def test_one_run_at_a_time_and_modes_whatever_the_umask(
    fleet: Fleet, bundle: Path, receiver: Receiver
) -> None:
    one = fleet.hosts[0]
    with at_work(fleet, bundle) as other:
        output = refused(fleet, bundle)
        assert f"(process {other.pid}), for 0 min. Required: one run at a time" in output
        assert "changed=0" in output
        assert other.poll() is None, "it has ended before the second run was refused"
        said, _ = other.communicate(timeout=120)
        assert other.returncode == 0, said
    assert fleet.run(one, f"ls {LOCK}", check=False).returncode == 2, "it is free"
    assert fleet.run(one, CLOSED).stdout == "0077\n"
    assert fleet.run(one, OURS).stdout.splitlines() == [
        "750 root:throughline /etc/throughline",
        "640 root:throughline /etc/throughline/config.yaml",
        "600 root:root /opt/throughline/served.json",
        "throughline",
    ]


def test_hidden_processes_and_users_of_systemd_are_traced(fleet: Fleet, receiver: Receiver) -> None:
    """hidepid=2 hides nothing from CAP_SYS_PTRACE, by which the agent finds libssl."""
    one = fleet.hosts[0]
    fleet.run(one, DYNAMIC)
    users = fleet.run(one, "ps -o uid= -C python3").stdout.split()
    assert any(61184 <= int(user) <= 65519 for user in users), "systemd made no user"
    assert "hidepid=invisible" in fleet.run(one, "grep ' /proc proc ' /proc/mounts").stdout
    curl = "curl --retry 5 --retry-all-errors -sko /dev/null https://127.0.0.1:8443/"
    until(
        lambda: (fleet.run(one, curl), receiver.spans)[1],
        enough=lambda spans: any(span.service == "dynamic" for span in spans),
        seconds=20,
        every=0.5,
        otherwise="no span of the service",
    )


def test_a_killed_run_does_not_block_and_the_agents_user_checks(fleet: Fleet, bundle: Path) -> None:
    one = fleet.hosts[0]
    before = fleet.run(one, AS_BEFORE).stdout
    with at_work(fleet, bundle) as other:
        os.killpg(other.pid, signal.SIGKILL)
    # Of another controller's run nobody knows that it has been killed.
    fleet.run(one, f'sed -i.kept \'s/"controller": "/&another /\' {LOCK}')
    assert "Found another run at work" in refused(fleet, bundle)
    assert "Found another run at work" in site(fleet, bundle, "--check"), "a warning"
    fleet.run(one, f"mv {LOCK}.kept {LOCK}")
    # The directories as they were made before modes were explicit, and a file for root only.
    fleet.run(
        one, "chmod 700 /opt/throughline /opt/throughline/releases /opt/throughline/releases/*"
    )
    fleet.run(one, "install -m 600 /etc/ssl/certs/ca-certificates.crt /etc/throughline/ca.pem")
    output = refused(fleet, bundle, certificate="/etc/throughline/ca.pem")
    assert "certificate: /etc/throughline/ca.pem cannot be read" in output
    assert "config.yaml was not touched" in output
    assert fleet.run(one, f"ls {LOCK}", check=False).returncode == 2, "a failed run frees it"
    assert fleet.run(one, AS_BEFORE).stdout == before
    assert fleet.run(one, CLOSED).stdout == "0077\n"
    fleet.run(one, "chgrp throughline /etc/throughline/ca.pem; chmod 640 /etc/throughline/ca.pem")
    site(fleet, bundle, certificate="/etc/throughline/ca.pem")
