"""The VM of this run: commands on it, its state, and playbooks against it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testinfra.host import Host
from tests.fixtures import spans as decoding
from tests.fixtures.go.judge import Found, id_of, judge
from tests.fixtures.spans import Span
from tests.fleet.joined import Request, cart
from tests.vms import hypervisor
from tests.vms.expected import Platform

REPOSITORY = Path(__file__).resolve().parents[3]
PLAYBOOKS = REPOSITORY / "playbooks"
ROLLOUT = Path(__file__).resolve().parents[1] / "rollout.yml"
PLAYBOOK_SECONDS = 600.0
BOOT_SECONDS = 150.0
ATTEMPTS = 3
GO_IDS = {"1.1": 100, "2": 200}  # the first ids of requests to the Go services

Look = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Played:
    """The result of a playbook. `changed` is None when the host was not reached."""

    code: int
    output: str
    changed: int | None


@dataclass(frozen=True, slots=True)
class Sent:
    """Requests to the shop, as they arrived at the last hop, and their spans."""

    requests: Sequence[Request]
    spans: Sequence[Span]
    others: Sequence[Span]
    exported: int
    secure: bool  # the chain has HTTPS, as prepare.yml has configured it


@dataclass(frozen=True, slots=True)
class SentToGo:
    """Requests to the Go services: their answers, their spans, and whether parents are right."""

    front: str
    http: str  # the version in which it calls go-middle
    answers: Sequence[Mapping[str, Any]]
    found: Found
    others: Sequence[Span]
    counters: Mapping[str, int]  # of the groups go and go_write, by how much they grew
    opened: Sequence[Span]  # of the request that opened the connections, and its counters
    opened_counters: Mapping[str, int]


def decoded(exports: Sequence[str]) -> list[Span]:
    """The spans of exports as services/client.py prints them."""
    return [span for body in exports for span in decoding.decode(base64.b64decode(body))]


@dataclass(frozen=True, slots=True)
class Machine:
    """One VM, by its name in the inventory. Every method is one login, or one playbook run."""

    platform: Platform
    host: Host
    inventory: str
    folder: Path

    @property
    def has_tcx(self) -> bool:
        """Linux 6.6 and later."""
        return self.platform.has_multi

    def run(self, command: str, *, seconds: int = 120) -> str:
        """The output of a shell command as root; AssertionError when it fails."""
        answer = self.host.run("sudo -n timeout %s sh -c %s", str(seconds), command)
        assert answer.rc == 0, f"{command}: exit code {answer.rc}\n{answer.stdout}{answer.stderr}"
        return str(answer.stdout).strip()

    def ask(self, command: str) -> str:
        """The output of a command, whatever its exit code; "" when the host does not answer."""
        try:
            return str(self.host.run(command).stdout).strip()
        except RuntimeError:  # ssh's own exit code, 255
            return ""

    def look(self, *, healthy: int = 0) -> Look:
        """The host as services/look.py sees it, after waiting for a healthy agent."""
        look = f"python3 /opt/shop/look.py --healthy {healthy}"
        found: Look = json.loads(self.run(look, seconds=120 + healthy))
        return found

    def report(self) -> Mapping[str, Any]:
        """The verdict of check.yml on the bare host."""
        text = (self.folder / "report.json").read_text(encoding="utf-8")
        (found,) = json.loads(text)["hosts"]
        host: Mapping[str, Any] = found
        return host

    def bare(self) -> Look:
        """The host before throughline, as prepare.yml has seen it."""
        found: Look = json.loads((self.folder / "bare.json").read_text(encoding="utf-8"))
        return found

    def send(self, prefix: str, *, spans: int, through: str = "carts") -> Sent:
        """23 requests to the shop, or `held`, `local`; `spans` is how many are to be waited for.

        Before Linux 5.15 a request that comes with the segment that makes its connection is not
        seen, and counted. That happens on a slow machine; then they are sent again.
        """
        for attempt in range(ATTEMPTS):
            words = f"{through} {prefix}{'x' * attempt} {spans}"
            found = json.loads(self.run(f"python3 /opt/shop/client.py {words}"))
            if not found["lost"]:
                break
        return self.received(found)

    def received(self, found: Mapping[str, Any]) -> Sent:
        """The output of services/client.py, decoded."""
        requests = [Request(**request) for request in found["requests"]]
        carts = {request.cart for request in requests}
        received = decoded(found["exports"])
        return Sent(
            requests=requests,
            spans=[span for span in received if cart(span) in carts],
            others=[span for span in received if cart(span) not in carts],
            exported=found["exported"],
            secure=self.platform.secure,
        )

    def send_to_go(self, http: str, *, spans: int) -> SentToGo:
        """23 requests to the Go services; the first calls the second by HTTPS in a version of HTTP.

        `spans` is how many are to be waited for. Before that the agent is waited for to follow the
        services' programs, and one request opens the connections between them.
        """
        front = {"1.1": "go-front-http1", "2": "go-front"}[http]
        for attempt in range(ATTEMPTS):  # as in `send`
            first = GO_IDS[http] + attempt * 24
            words = f"go{http[0]} {first} {spans}"
            sent = json.loads(self.run(f"python3 /opt/shop/client.py {words}", seconds=300))
            if not sent["lost"]:
                break
        received = decoded(sent["exports"])
        ours = [span for span in received if id_of(span) > first]
        found = judge(
            {"ok": len(sent["requests"]), "failed": 0, "p99_ms": 0.0},
            spans=ours,
            expected=spans,
            answers=sent["requests"],
            names=(front, "go-middle", "go-back"),
        )
        others = [span for span in received if span not in ours]
        return SentToGo(
            front,
            http,
            sent["requests"],
            found,
            others,
            sent["counters"],
            opened=decoded(sent["opened"]["exports"]),
            opened_counters=sent["opened"]["counters"],
        )

    def echo(self, size: int) -> Mapping[str, Any]:
        """`size` random bytes through the chain and back, see services/client.py."""
        found: Mapping[str, Any] = json.loads(
            self.run(f"python3 /opt/shop/client.py bytes {size}", seconds=200)
        )
        return found

    def play(self, name: str, **variables: object) -> Played:
        """Runs a playbook of the collection against this VM, with the variables of converge.yml."""
        answer = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "-i", self.inventory),
                *(PLAYBOOKS / f"{name}.yml", "--limit", self.platform.name, "-e", f"@{ROLLOUT}"),
                *("-e", json.dumps(self.platform.asked | variables)),
            ],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "0",  # Molecule sets it, and the recap is read here
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAYBOOK_SECONDS,
        )
        (self.folder / f"{name}.log").write_text(answer.stdout, encoding="utf-8")
        recap = re.search(
            rf"^{re.escape(self.platform.name)} +: ok=\d+ +changed=(\d+)", answer.stdout, re.M
        )
        return Played(answer.returncode, answer.stdout, int(recap[1]) if recap else None)

    def reboot(self) -> tuple[float, int]:
        """Reboots; returns the seconds until the host answers, and how often it had to be reset.

        About one boot in thirty hangs under emulation, before the kernel has said a word: one that
        does is reset once. AssertionError when the host does not come back then either.
        """
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self.ask("sudo -n systemctl reboot")  # it may cut the connection before it answers
        for resets in range(2):
            begin = time.monotonic()
            while time.monotonic() - begin < BOOT_SECONDS:
                time.sleep(2)
                if self.ask("cat /proc/sys/kernel/random/boot_id") not in ("", before):
                    return time.monotonic() - begin, resets
            if resets == 0:
                self.reset()
        raise AssertionError(f"twice not back after {BOOT_SECONDS:.0f} s: see the console")

    def reset(self) -> None:
        """Presses the reset button; ProcessLookupError where the VM is not one of Vagrant's."""
        name = self.platform.name
        virsh = ["virsh", "--connect", "qemu:///system", "reset", f"throughline-{name}"]
        subprocess.run([*hypervisor.inside(name), *virsh], check=True, timeout=60)
