"""Units of Node.js get the preload by a drop-in, which never keeps them from starting."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.waiting import until
from tests.fleet import hosts, playbook, releases
from tests.fleet.hosts import Fleet

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "node"
UNITS = "/etc/systemd/system"
DROP_IN = f"{UNITS}/api.service.d/throughline-node.conf"
COPY = "/run/credentials/api.service/throughline-context.cjs"
SANDBOX = f"{UNITS}/api.service.d/sandbox.conf"
# A primary of a cluster, which replaces its worker.
API = """
const cluster = require('cluster');
const http = require('http');
if (cluster.isPrimary) {
  cluster.on('exit', () => cluster.fork());
  cluster.fork();
} else {
  http.createServer(async (request, response) => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    http.get('http://127.0.0.1:8002/', (answer) => answer.pipe(response));
  }).listen(8001, '127.0.0.1');
}
"""
# Root's: a worker, and children that run as another user, each in another way.
ROOT = """
const { fork, spawn } = require('child_process');
const cluster = require('cluster');
const preloaded = process.execArgv.join().includes('throughline-context.cjs');
if (process.env.CHILD) {
  console.log(`${process.env.CHILD} ${process.getuid()} ${preloaded}`);
  process.exit();
} else if (cluster.isPrimary) {
  cluster.fork({ CHILD: 'worker' });
  fork(__filename, [], { env: { ...process.env, CHILD: 'forked' }, uid: 65534 });
  const env = { ...process.env, CHILD: 'spawned' };
  spawn('setpriv', ['--reuid=65534', process.execPath, __filename], { env, stdio: 'inherit' });
  setTimeout(() => {
    process.setuid(65534);
    cluster.fork({ CHILD: 'dropped' });
  }, 1000);
  setTimeout(() => {}, 1e9);
}
"""
UNIT = """
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/node /srv/api.js
User=nobody
NoNewPrivileges=yes
ProtectSystem=strict
Restart=no
"""
SETUP = f"""
set -e
cat > /srv/api.js <<'END'
{API}
END
cat > {UNITS}/api.service <<'END'
{UNIT}
Environment=NODE_OPTIONS=--max-old-space-size=128 A=1
END
cat > {UNITS}/scripted.service <<'END'
[Service]
ExecStart=/bin/sh -c 'exec /usr/bin/node /srv/api.js'
END
cat > {UNITS}/filed.service <<'END'
{UNIT}
EnvironmentFile=/etc/default/filed
END
echo NODE_OPTIONS=--max-old-space-size=64 > /etc/default/filed
cat > {UNITS}/reloaded.service <<'END'
{UNIT}
ExecReload=/bin/sh -c 'exec /usr/bin/node /srv/reload.js'
END
cat > {UNITS}/signalled.service <<'END'
{UNIT}
ExecReload=/bin/kill -HUP $MAINPID
END
cat > {UNITS}/late.service <<'END'
{UNIT}
END
mkdir {UNITS}/late.service.d
cat > {UNITS}/late.service.d/z.conf <<'END'
[Service]
Environment=NODE_OPTIONS=--max-old-space-size=64
END
cat > /srv/idle.js <<'END'
setInterval(() => undefined, 1000);
END
cat > {UNITS}/many@.service <<'END'
[Service]
ExecStart=/usr/bin/node /srv/idle.js
User=nobody
END
cat > /srv/root.js <<'END'
{ROOT}
END
cat > {UNITS}/rooted.service <<'END'
[Service]
ExecStart=/usr/bin/node /srv/root.js
END
cat > {UNITS}/backend.service <<'END'
[Service]
WorkingDirectory=/srv
ExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 8002
END
systemctl daemon-reload
systemctl start backend api
"""
NAMED = ["api", "scripted.service", "filed", "absent", "reloaded", "late"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with hosts.fleet(NAME, count=1) as running:
        on(running, SETUP)
        yield running


def on(fleet: Fleet, command: str, *, check: bool = True) -> str:
    """The output of a command on the host."""
    done: subprocess.CompletedProcess[str] = fleet.run(fleet.hosts[0], command, check=check)
    return done.stdout.strip()


def site(fleet: Fleet, *options: str, services: list[str]) -> str:
    return playbook.run(
        fleet,
        playbook.SITE,
        *options,
        quiet=True,
        throughline_bundle=str(releases.newest()),
        throughline_node_services=services,
        throughline_config={"export": {"otlp": {"enabled": False}}},
    )


def pid(fleet: Fleet) -> str:
    return on(fleet, "systemctl show --property=MainPID --value api")


def exists(fleet: Fleet) -> bool:
    return on(fleet, f"test -e {DROP_IN} && echo yes", check=False) == "yes"


def answers(fleet: Fleet, count: int = 1) -> None:
    """The service answers so many requests, once it has started."""
    command = f"curl -s -o /dev/null -w '%{{http_code}} ' http://127.0.0.1:8001/?n=[1-{count}]"
    until(
        lambda: on(fleet, command, check=False),
        enough=lambda found: found.split() == ["200"] * count,
        seconds=30,
        every=0.2,
        otherwise=lambda: on(fleet, "journalctl -u api -n 20 --no-pager", check=False),
    )


def status(fleet: Fleet) -> Any:
    return json.loads(on(fleet, "/opt/throughline/current/bin/throughline status --json"))


def preload(fleet: Fleet, unit: str) -> tuple[str, str]:
    """What `throughline status` says of a unit, and why."""
    for file in status(fleet)["node"]["files"]:
        if unit in file["units"]:
            found = file["units"][unit]
            return found["preload"], found["reason"]
    return "", ""


def says(fleet: Fleet, unit: str, expected: str) -> str:
    """The reason, once the agent says what is expected of a unit."""
    found = until(
        lambda: preload(fleet, unit),
        enough=lambda found: found[0] == expected,
        seconds=30,
        every=0.5,
        otherwise=lambda: str(status(fleet)["node"]),
    )
    return found[1]


def doctor(fleet: Fleet) -> str:
    return on(fleet, "/opt/throughline/current/bin/throughline doctor", check=False)


def option(fleet: Fleet) -> str:
    """NODE_OPTIONS of the running service."""
    return on(fleet, f"tr '\\0' '\\n' < /proc/{pid(fleet)}/environ | grep NODE_OPTIONS=")


def test_no_unit_is_touched_that_nobody_names(fleet: Fleet) -> None:
    output = site(fleet, services=[])
    assert "Units of Node.js have the preload" not in output
    assert not exists(fleet)


def test_check_mode_says_what_would_be_done(fleet: Fleet) -> None:
    output = site(fleet, "--check", "--diff", services=NAMED)
    assert "+Environment=" in output and "changed=1 " in output
    assert "api.service would have the preload after its next restart." in output
    assert "restart it when it suits you" not in output
    assert not exists(fleet)


def test_units_that_are_named_get_it_and_none_is_restarted(fleet: Fleet) -> None:
    before = pid(fleet)
    output = site(fleet, services=NAMED)
    assert "api.service runs without the preload: restart it when it suits you." in output
    assert "scripted.service gets no preload: it runs as root" in output
    assert "filed.service gets no preload: EnvironmentFile=/etc/default/filed sets" in output
    assert "absent.service gets no preload: systemd does not know the unit" in output
    assert "reloaded.service gets no preload: ExecReload= may run Node.js (sh)" in output
    assert f"late.service gets no preload: {UNITS}/late.service.d/z.conf sets" in output
    assert pid(fleet) == before
    found = on(fleet, f"ls {UNITS}/*.d/throughline-node.conf")
    assert found == DROP_IN
    again = site(fleet, services=NAMED)
    assert "changed=0 " in again and "api.service runs without the preload" in again


def test_the_agent_says_which_services_have_it(fleet: Fleet) -> None:
    """As its own user, which may not read what belongs to the services."""
    on(fleet, f"sed -i 's/api.js/idle.js/' {UNITS}/filed.service {UNITS}/signalled.service")
    on(fleet, "systemctl daemon-reload && systemctl start filed signalled")
    assert says(fleet, "api.service", "not_restarted") == ""
    assert "EnvironmentFile=/etc/default/filed sets" in says(fleet, "filed.service", "refused")
    assert says(fleet, "signalled.service", "not_configured") == ""
    said = on(fleet, "/opt/throughline/current/bin/throughline status")
    assert "configured, but the service runs without it: restart it" in said
    said = doctor(fleet)
    assert "note: api.service runs without the preload: restart it when it suits you." in said
    assert "note: absent.service gets no preload: systemd does not know the unit" in said
    on(fleet, "systemctl stop filed signalled")


def test_after_a_restart_its_calls_have_parents(fleet: Fleet) -> None:
    on(fleet, "systemctl restart api")
    answers(fleet)
    assert option(fleet) == (
        "NODE_OPTIONS=--max-old-space-size=128"
        " --require=/run/credentials/api.service/throughline-context.cjs"
    )
    until(lambda: status(fleet)["node"]["files"], enough=bool, seconds=20, every=0.5)
    time.sleep(5)  # the agent learns of the new cgroup within two seconds, the process tells again
    before = status(fleet)["counters"]["parent_node"]
    answers(fleet, 23)
    until(
        lambda: status(fleet)["counters"]["parent_node"] - before,
        enough=lambda found: found == 23,
        seconds=10,
        every=0.5,
    )
    (file,) = status(fleet)["node"]["files"]
    assert file["preloaded"] == file["processes"] == 2, file
    says(fleet, "api.service", "active")
    assert "restart" not in site(fleet, services=["api"])
    said = doctor(fleet)
    assert "the preload" not in said and "no preload" not in said


@pytest.mark.parametrize(
    ("away", "back", "preloaded"),
    [
        ("mv /opt/throughline /opt/elsewhere", "mv /opt/elsewhere /opt/throughline", False),
        ("chmod 700 /opt/throughline", "chmod 755 /opt/throughline", True),
        (
            "rm /opt/throughline/current/share/node/context.cjs",
            "cp /root/context.cjs /opt/throughline/current/share/node/context.cjs",
            False,
        ),
        (
            "printf '[Service]\\nInaccessiblePaths=/opt\\nTemporaryFileSystem=/srv:ro\\n"
            "BindReadOnlyPaths=/srv/api.js\\nDynamicUser=yes\\nUser=\\n'"
            f" > {SANDBOX}; systemctl daemon-reload",
            f"rm {SANDBOX}; systemctl daemon-reload",
            True,
        ),
    ],
)
def test_the_service_starts_whatever_becomes_of_the_file(
    fleet: Fleet, away: str, back: str, preloaded: bool
) -> None:
    on(fleet, "cp /opt/throughline/current/share/node/context.cjs /root/")
    on(fleet, away)
    try:
        on(fleet, "systemctl restart api")
        answers(fleet, 3)
        assert (on(fleet, f"stat -c %s {COPY}") != "1") == preloaded
    finally:
        on(fleet, back)
        on(fleet, "systemctl restart api")


def test_a_service_that_started_while_the_file_was_away_is_named(fleet: Fleet) -> None:
    on(fleet, "mv /opt/throughline /opt/elsewhere")
    try:
        on(fleet, "systemctl restart api")
        answers(fleet)
    finally:
        on(fleet, "mv /opt/elsewhere /opt/throughline")
    output = site(fleet, services=["api"])
    assert "api.service runs another preload than the release" in output
    on(fleet, "systemctl restart api")
    answers(fleet)
    assert "restart it" not in site(fleet, services=["api"])


def test_a_template_is_its_instances(fleet: Fleet) -> None:
    on(fleet, "systemctl start many@1")
    output = site(fleet, services=["api", "many@", "signalled"])
    assert "many@1.service runs without the preload" in output
    assert "gets no preload" not in output
    on(fleet, "systemctl restart many@1")
    again = site(fleet, services=["api", "many@", "signalled"])
    assert "changed=0 " in again and "many@1.service" not in again
    variables = on(fleet, "tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID many@1)/environ")
    assert variables.count("--require=") == 1
    on(fleet, "systemctl stop many@1")
    site(fleet, services=["api"])


def test_a_name_of_no_service_ends_the_run_early(fleet: Fleet) -> None:
    with pytest.raises(playbook.PlaybookError) as raised:
        site(fleet, services=["a/b"])
    assert "Found a/b in throughline_node_services" in raised.value.output
    assert "Release is unpacked" not in raised.value.output


def test_children_of_root_start_as_other_users(fleet: Fleet) -> None:
    output = site(fleet, services=["api", "rooted"])
    assert "rooted.service gets no preload" not in output
    on(fleet, "systemctl restart rooted")
    said = until(
        lambda: on(fleet, "journalctl -u rooted -o cat", check=False),
        enough=lambda found: "dropped " in found,
        seconds=20,
        every=0.5,
    )
    lines = {line for line in said.splitlines() if line.endswith(("true", "false"))}
    assert lines == {
        "worker 0 true",
        "forked 65534 false",
        "spawned 65534 false",
        "dropped 65534 false",
    }
    on(fleet, "systemctl stop rooted")


def test_a_unit_that_is_not_named_any_more(fleet: Fleet) -> None:
    answers(fleet)
    before = pid(fleet)
    output = site(fleet, services=[])
    assert "api.service still runs with the preload, until it is restarted." in output
    assert not exists(fleet)
    says(fleet, "api.service", "removed")
    assert "api.service" not in site(fleet, services=[])
    assert pid(fleet) == before
    on(fleet, "systemctl restart api")
    answers(fleet)
    assert option(fleet) == "NODE_OPTIONS=--max-old-space-size=128"


def test_uninstall_leaves_no_drop_in_and_a_service_that_goes_on(fleet: Fleet) -> None:
    site(fleet, services=["api"])
    on(fleet, "systemctl restart api")
    answers(fleet)
    before = pid(fleet)
    output = playbook.run(fleet, playbook.UNINSTALL, quiet=True)
    assert "api.service still runs with the preload, until it is restarted." in output
    assert "Nothing is left." in output
    assert not exists(fleet)
    # the primary still has the option: a worker that it forks now finds the file
    worker = on(fleet, f"cat /proc/{before}/task/*/children")
    on(fleet, f"kill {worker}")
    until(
        lambda: on(fleet, f"cat /proc/{before}/task/*/children", check=False),
        enough=lambda found: bool(found) and found != worker,
        seconds=20,
        every=0.2,
    )
    answers(fleet, 3)
    assert pid(fleet) == before
    on(fleet, "systemctl restart api")
    answers(fleet)
    assert "--require" not in option(fleet)


def test_the_text_of_this_file() -> None:
    """A unit file with a line that begins with a space would be another one."""
    assert textwrap.dedent(UNIT) == UNIT
