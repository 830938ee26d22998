"""`doctor` and `status`: output, exit codes, and nothing of them stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence

from tests.fixtures import kernel_objects
from tests.fixtures.load import Load, start_chain
from tests.fixtures.operated import Operated
from tests.fixtures.paths import CHECKOUT
from tests.fixtures.privileges import mounts
from tests.fixtures.waiting import poll
from throughline.features import pins


def test_doctor_without_an_agent(host: Operated) -> None:
    run = host.command("doctor", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    report = json.loads(run.stdout)
    assert report["mode"] == "network"
    assert report["agent"] == {"running": False, "pid": None}
    for name in ("observe", "headers"):
        group = report["groups"][name]
        assert group == {"state": "on", "wanted": True, "reason": "", "fix": "", "without": []}
    found = report["host"]
    assert found["bpffs"] == str(host.bpffs) and found["cgroup2"] == str(host.cgroup.parent)
    assert found["btf"] is True and "CAP_BPF" in found["capabilities"]
    text = host.command("doctor")
    assert text.returncode == 0
    assert "mode: network" in text.stdout and "not running" in text.stdout
    assert host.pins() == [], "the trial leaves nothing"


def test_doctor_and_status_with_an_agent(host: Operated) -> None:
    assert host.command("status").returncode == 3
    assert host.command("status", "--json").stdout.strip() == "null"
    host.start_agent()
    assert host.agent is not None
    pins = host.pins()
    run = host.command("doctor", "--json")
    assert run.returncode == 0
    assert json.loads(run.stdout)["agent"] == {"running": True, "pid": host.agent.pid}
    assert host.pins() == pins
    assert host.command("status").returncode == 0
    status = json.loads(host.command("status", "--json").stdout)
    assert status["pid"] == host.agent.pid and status["healthy"]
    names = {program["name"] for program in status["attached"]["programs"]}
    assert {"tl_ingress", "tl_egress", "tl_sockops", "tl_send", "tl_read", "tl_state"} <= names
    ids = {program["id"] for program in status["attached"]["programs"]}
    assert ids <= kernel_objects.existing()["prog"]
    assert host.stop_agent() == 0
    assert host.command("status").returncode == 3


def test_doctor_next_to_a_killed_agent_disturbs_nothing(host: Operated) -> None:
    host.start_agent()
    chain = start_chain(host)
    with Load(chain) as load:
        assert host.stop_agent(signal.SIGKILL) == -signal.SIGKILL
        pins = host.pins()
        run = host.command("doctor", "--json")
        assert run.returncode == 0
        report = json.loads(run.stdout)
        assert not report["agent"]["running"] and report["mode"] == "network"
        assert host.pins() == pins
        load.wait(0.3)
    assert not load.failures and not load.untraced()


def test_what_a_killed_doctor_leaves_goes_with_detach(host: Operated) -> None:
    for _ in range(10):
        doctor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "throughline",
                "doctor",
                "--config",
                str(host.directory / "config.yaml"),
            ],
            env=host.environment,
            cwd=CHECKOUT,
            stdout=subprocess.DEVNULL,
        )
        poll(lambda: any(f"/{pins.NAME}/" in pin for pin in host.pins()), seconds=5, every=0.002)
        doctor.kill()
        doctor.wait()
        if host.pins():
            break
    assert host.pins(), "it was killed inside the trial"
    assert host.command("detach").returncode == 0
    assert host.pins() == []


def test_headers_off_by_configuration(host: Operated) -> None:
    host.configure(propagation={"headers": "off"})
    for _ in range(2):
        run = host.command("doctor", "--json")
        assert run.returncode == 0, "what nobody wants may be off"
        report = json.loads(run.stdout)
        assert report["mode"] == "observe"
        assert report["groups"]["headers"]["reason"] == "propagation.headers is off"
        if host.agent is None:
            host.start_agent()
    assert host.command("status").returncode == 0
    assert host.stop_agent() == 0


def test_go_write_is_decided_by_a_trial(host: Operated) -> None:
    """With lockdown and without: doctor gives the reason."""
    where = "/sys/kernel/security"
    mounted = mounts(f"mountpoint -q {where} || mount -t securityfs none {where}")

    def asked(prefix: Sequence[str]) -> tuple[dict, dict]:
        run = host.command("doctor", "--json", prefix=prefix)
        assert run.returncode == 0, "off is no fault"
        report = json.loads(run.stdout)
        return report, report["groups"]["go_write"]

    report, found = asked(mounted)
    assert found["reason"] == "instrumentation.go_write is off", "nobody has asked for it"
    assert report["groups"]["go"]["state"] == "on" and host.pins() == []
    host.configure(instrumentation={"go_write": "auto"})
    report, found = asked(mounted)
    assert report["groups"]["go"]["state"] == "on"
    lockdown = report["host"]["lockdown"]
    if lockdown in ("none", "absent"):
        assert (found["state"], report["mode"]) == ("on", "write")
        assert any("bpf_probe_write_user helper" in note for note in report["notes"])
    else:
        assert (found["state"], found["wanted"]) == ("off", False)
        assert found["reason"].startswith(f"lockdown is {lockdown}: the kernel refuses")
        assert "instrumentation.go_write: off" in found["fix"] and report["mode"] == "network"
        _, found = asked(mounts(f"! mountpoint -q {where} || umount {where}"))
        assert found["reason"].startswith("the kernel refuses bpf_probe_write_user, as it does")
        assert "securityfs is not mounted" in found["reason"]
    host.configure(instrumentation={"go": "off", "go_write": "auto"})
    _, found = asked(mounted)
    assert (found["state"], found["reason"]) == ("off", "go is off")


def test_doctor_with_output_that_nobody_reads(host: Operated) -> None:
    command = f"{sys.executable} -m throughline doctor --json | head -c 1"
    run = subprocess.run(
        ["sh", "-c", command], env=host.environment, cwd=CHECKOUT, capture_output=True, text=True
    )
    assert run.stdout == "{" and "Traceback" not in run.stderr
    assert host.pins() == []
