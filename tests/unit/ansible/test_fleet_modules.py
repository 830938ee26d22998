"""The collection's modules: verdicts from recorded trees, releases on a real disk, reports."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import (
    ALL_CAPABILITIES,
    EVERYTHING,
    HYBRID,
    LEGACY,
    UNIFIED,
    UNLOCKED,
    answer,
    plugin,
    run_program,
    verdict,
)
from throughline.config import model as config


def test_a_current_host_can_run_the_network_groups(tmp_path: Path) -> None:
    found = verdict(tmp_path)
    assert found["mode"] == "network"
    assert found["host"]["lockdown"] == "integrity"
    assert found["host"]["cgroup_layout"] == "unified"
    assert found["groups"]["observe"] == {
        "state": "on", "wanted": True, "possible": True, "reason": "", "fix": ""
    }  # fmt: skip
    go_write = found["groups"]["go_write"]
    assert (go_write["state"], go_write["wanted"], go_write["possible"]) == ("off", False, False)
    assert go_write["reason"] == "lockdown is integrity: the kernel refuses bpf_probe_write_user"
    assert "Secure Boot" in go_write["fix"]


@pytest.mark.parametrize(
    ("uprobes", "allowed", "capabilities", "state", "reason"),
    [
        ("multi", False, ALL_CAPABILITIES, "on", ""),
        ("perf", False, ALL_CAPABILITIES, "on", ""),
        (None, False, ALL_CAPABILITIES, "on", ""),  # the agent's own trial will tell
        ("admin", False, ALL_CAPABILITIES, "off", "perf-based uprobes need CAP_SYS_ADMIN"),
        ("admin", True, ALL_CAPABILITIES, "on", ""),
        ("admin", True, "000001ffffdfffff", "off", "PID 1 cannot hand out CAP_SYS_ADMIN"),
    ],
)
def test_uprobes_that_ask_for_sys_admin_need_consent(
    tmp_path: Path, uprobes: str | None, allowed: bool, capabilities: str, state: str, reason: str
) -> None:
    found = verdict(tmp_path, uprobes=uprobes, allow_sys_admin=allowed, capabilities=capabilities)
    tls = found["groups"]["tls"]
    assert (tls["state"], tls["possible"]) == (state, state == "on")
    assert tls["reason"].startswith(reason) and bool(tls["reason"]) == bool(reason)
    assert ("throughline_allow_sys_admin" in tls["fix"]) == (reason != "" and not allowed)
    assert found["mode"] == "network"
    assert found["groups"]["packets"]["state"] == "on"


def test_the_kernel_says_itself_that_it_has_uprobe_multi(tmp_path: Path) -> None:
    need = plugin("module_utils.uprobes").need
    btf = tmp_path / "sys/kernel/btf/vmlinux"
    assert need(str(tmp_path)) is None
    btf.parent.mkdir(parents=True)
    btf.write_bytes(b"\0BPF_TRACE_KPROBE_MULTI\0")
    assert need(str(tmp_path)) is None  # nothing is tried on behalf of another tree
    btf.write_bytes(b"\0BPF_TRACE_KPROBE_MULTI\0BPF_TRACE_UPROBE_MULTI\0")
    assert need(str(tmp_path)) == "multi"


@pytest.mark.parametrize(
    ("with_all", "without", "need"),
    [
        (None, None, "perf"),
        (None, errno.EACCES, "admin"),
        (None, errno.EPERM, "admin"),
        (None, errno.ENOTSUP, None),  # CAP_SYS_ADMIN could not be given up
        (errno.EPERM, errno.EPERM, None),  # refused by something else
        (errno.ENOENT, errno.ENOENT, None),  # no uprobes at all
    ],
)
def test_whether_uprobes_ask_for_sys_admin_is_tried(
    monkeypatch: pytest.MonkeyPatch, with_all: int | None, without: int | None, need: str | None
) -> None:
    module = plugin("module_utils.uprobes")
    monkeypatch.setattr(module, "MULTI", b"\0no kernel has this\0")
    monkeypatch.setattr(module, "has_sys_admin", lambda root: True)
    monkeypatch.setattr(module, "attempt", lambda: with_all)
    monkeypatch.setattr(module, "attempt_without_sys_admin", lambda: without)
    assert module.need("/") == need


def test_only_capabilities_that_are_there_are_kept_for_the_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container without CAP_LEASE, which has CAP_SYS_ADMIN and CAP_BPF."""
    module = plugin("module_utils.uprobes")
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("CapPrm:\t0000008000200000\nCapEff:\t0000000000200000\n")
    assert module.has_sys_admin(str(tmp_path))
    asked: list[tuple[int, ...]] = []

    class Libc:
        @staticmethod
        def capset(_header: object, sets: bytes) -> int:
            asked.append(struct.unpack("<6I", bytes(sets)[:24]))
            return 0

    read = module.read_text
    monkeypatch.setattr(module, "read_text", lambda root, path: read(str(tmp_path), path))
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Libc)
    monkeypatch.setattr(module, "attempt", lambda: errno.EACCES)
    assert module.attempt_without_sys_admin() == errno.EACCES
    assert asked == [(0, 0, 0, 1 << 39 - 32, 1 << 39 - 32, 0)]


def test_confidentiality_leaves_nothing(tmp_path: Path) -> None:
    found = verdict(tmp_path, lockdown="none integrity [confidentiality]")
    assert found["mode"] == "none"
    for name in ("observe", "headers"):
        assert found["groups"][name]["reason"].startswith("lockdown is confidentiality")
        assert "lockdown=integrity" in found["groups"][name]["fix"]


def test_without_lockdown_the_host_could_write_into_programs(tmp_path: Path) -> None:
    found = verdict(tmp_path, lockdown=UNLOCKED)
    assert found["mode"] == "write"
    assert found["groups"]["go_write"] == {
        "state": "on", "wanted": False, "possible": True, "reason": "", "fix": ""
    }  # fmt: skip
    assert plugin("module_utils.verdict").shortfall(found, "write") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lockdown": "none [integrity] confidentiality"}, "lockdown is integrity"),
        ({"capabilities": "000001ffffdfffff"}, "PID 1 cannot hand out CAP_SYS_ADMIN"),
        ({"kernel": "5.10.0-46-amd64"}, "kernel is 5.10.0-46-amd64, but go needs 5.15"),
        ({"wanted": ["observe", "headers", "go_write"]}, "go is not wanted"),
    ],
)
def test_what_keeps_a_host_from_writing_into_programs(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    found = verdict(tmp_path, **{"lockdown": UNLOCKED, "wanted": EVERYTHING, **change})
    go_write = found["groups"]["go_write"]
    assert (go_write["state"], go_write["possible"], found["mode"]) == ("off", False, "network")
    assert go_write["reason"].startswith(reason) and go_write["fix"]
    message = plugin("module_utils.verdict").shortfall(found, "write")
    assert f"go_write is off: {go_write['reason']}. Remedy: {go_write['fix']}." in message


@pytest.mark.parametrize(
    ("wanted", "lockdown", "kernel", "states"),
    [
        ("go_write", UNLOCKED, "6.1.0-56-amd64", ("on", "on", "on")),
        ("", UNLOCKED, "6.1.0-56-amd64", ("off", "off", "on")),
        ("go_write", "none [integrity] confidentiality", "6.1.0-56-amd64", ("off", "off", "off")),
        ("go_write", UNLOCKED, "5.10.0-46-amd64", ("off", "off", "off")),
    ],
)
def test_asking_for_go_write_is_consent_where_it_can_work(
    tmp_path: Path, wanted: str, lockdown: str, kernel: str, states: tuple[str, str, str]
) -> None:
    groups = verdict(
        tmp_path,
        uprobes="admin",
        lockdown=lockdown,
        kernel=kernel,
        wanted=["observe", "headers", "tls", "go", wanted],
    )["groups"]
    assert tuple(groups[name]["state"] for name in ("tls", "go", "go_write")) == states
    if states[0] == "off":
        assert "throughline_allow_sys_admin" in groups["tls"]["fix"]


def test_an_unmounted_securityfs_is_said(tmp_path: Path) -> None:
    found = verdict(tmp_path, lockdown=None, mounts=UNIFIED)
    assert found["host"]["lockdown"] == "absent"
    assert found["host"]["securityfs"] is False
    go_write = found["groups"]["go_write"]
    assert go_write["possible"] and "securityfs is not mounted" in go_write["note"]
    verdicts = {"web": {"ansible_facts": {"throughline_preflight": preflight(found)}}}
    reports = plugin("filter.throughline_report")
    table = reports.throughline_table(reports.throughline_report(verdicts, "now"))
    assert table[-1] == (
        "web: go_write possible: securityfs is not mounted and no lockdown was found"
    )


@pytest.mark.parametrize(
    ("mounts", "layout", "cgroup2", "mode"),
    [
        (UNIFIED, "unified", "/sys/fs/cgroup", "network"),
        (HYBRID, "hybrid", "/sys/fs/cgroup/unified", "network"),
        (LEGACY, "legacy", None, "none"),
        ("", "none", None, "none"),
    ],
)
def test_cgroup_layouts(
    tmp_path: Path, mounts: str, layout: str, cgroup2: str | None, mode: str
) -> None:
    found = verdict(tmp_path, mounts=mounts)
    assert (found["host"]["cgroup_layout"], found["host"]["cgroup2"]) == (layout, cgroup2)
    assert found["mode"] == mode


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": "5.4.0-216-generic"}, "kernel is 5.4.0-216-generic, but 5.10 or newer"),
        ({"btf": False}, "/sys/kernel/btf/vmlinux is missing"),
        ({"booted": False}, "systemd is not PID 1"),
        ({"capabilities": "00000000a80425fb"}, "cannot hand out CAP_BPF, CAP_PERFMON"),
        ({"run": answer(python="3.9.2")}, "no Python 3.10 or newer is on PATH (found: 3.9.2)"),
        ({"run": answer(systemd="239")}, "systemd is 239, but 247 or newer"),
        (
            {"options": "CONFIG_BPF_SYSCALL=y\n# CONFIG_CGROUP_BPF is not set\n"},
            "CONFIG_CGROUP_BPF",
        ),
    ],
)
def test_an_obstacle_has_a_reason_and_a_remedy(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    found = verdict(tmp_path, **change)
    assert found["mode"] == "none"
    assert reason in found["groups"]["observe"]["reason"]
    assert found["groups"]["observe"]["fix"]
    message = plugin("module_utils.verdict").shortfall(found, "network")
    assert message.startswith("Found mode 'none', required mode 'network'.")
    assert reason in message
    assert "Remedy: " in message
    assert plugin("module_utils.verdict").shortfall(found, "none") is None


def test_tls_needs_a_capability_that_a_container_may_lack(tmp_path: Path) -> None:
    without_ptrace = f"{int(ALL_CAPABILITIES, 16) & ~(1 << 19):016x}"
    found = verdict(tmp_path, capabilities=without_ptrace)
    assert found["mode"] == "network"
    assert found["groups"]["packets"]["state"] == "on"
    tls = found["groups"]["tls"]
    assert (tls["state"], tls["possible"]) == ("off", False)
    assert tls["reason"] == "PID 1 cannot hand out CAP_SYS_PTRACE"


@pytest.mark.parametrize("name", ["tls", "go"])
def test_an_obstacle_to_all_groups_is_said_once(tmp_path: Path, name: str) -> None:
    found = verdict(tmp_path, btf=False)
    assert found["groups"][name]["reason"] == found["groups"]["observe"]["reason"]


@pytest.mark.parametrize(
    ("kernel", "state"), [("5.10.0-46-amd64", "off"), ("5.15.0-91-generic", "on")]
)
def test_go_needs_a_newer_kernel_than_the_others(tmp_path: Path, kernel: str, state: str) -> None:
    found = verdict(tmp_path, kernel=kernel)
    assert found["mode"] == "network"
    assert found["groups"]["tls"]["state"] == "on"
    assert found["groups"]["go"]["state"] == state
    reason = "" if state == "on" else f"kernel is {kernel}, but go needs 5.15 or newer"
    assert found["groups"]["go"]["reason"] == reason


def preflight(found: dict[str, Any]) -> dict[str, Any]:
    return {"source": "preflight", "version": None, **found}


@pytest.mark.parametrize(
    ("said", "fix", "lockdown", "word", "why"),
    [
        ("instrumentation.go_write is off", "", UNLOCKED, "possible", ""),
        ("not part of this release", "", UNLOCKED, "possible", ""),  # an older one
        (
            *("instrumentation.go_write is off", "", "none [integrity] confidentiality", "off"),
            "instrumentation.go_write is off; lockdown is integrity: the kernel refuses "
            "bpf_probe_write_user",
        ),
        ("missing CAP_SYS_ADMIN", "grant it", UNLOCKED, "off", "missing CAP_SYS_ADMIN"),
    ],
)
def test_what_the_agent_has_not_tried_is_judged_by_preflight(
    tmp_path: Path, said: str, fix: str, lockdown: str, word: str, why: str
) -> None:
    ours = preflight(verdict(tmp_path, lockdown=lockdown))
    works = {"state": "on", "wanted": True, "reason": "", "fix": ""}
    off = {"state": "off", "wanted": False, "reason": said, "fix": fix}
    groups = {**dict.fromkeys(EVERYTHING, works), "go_write": off}
    answer = {"version": "0.1.0", "mode": "network", "host": {}, "groups": groups}
    merged = plugin("modules.throughline_preflight").merge(ours, answer)
    merged.update(source="doctor")
    cell = plugin("filter.throughline_report").cell
    assert cell(merged, "observe")["word"] == "on"
    found = cell(merged, "go_write")
    assert (found["state"], found["word"], found["why"]) == ("off", word, why)


def test_without_sockmaps_a_host_can_only_observe(tmp_path: Path) -> None:
    found = verdict(tmp_path, options="CONFIG_BPF_SYSCALL=y\nCONFIG_CGROUP_BPF=y\n")
    assert found["mode"] == "observe"
    message = plugin("module_utils.verdict").shortfall(found, "network")
    assert "headers is off: the kernel is built without CONFIG_BPF_STREAM_PARSER" in message
    assert "observe is off" not in message


def test_mount_points_are_unescaped(tmp_path: Path) -> None:
    path = tmp_path / "proc/self/mountinfo"
    path.parent.mkdir(parents=True)
    path.write_text("1 2 0:3 / /mnt/a\\040b rw - bpf bpf rw\n", encoding="utf-8")
    assert plugin("module_utils.host").read_mounts(str(tmp_path)) == [("/mnt/a b", "bpf")]


@pytest.mark.parametrize("path", ["/run/throughline-bpf", "/run/a b/ü", "/run/.x"])
def test_mount_units_have_the_name_that_systemd_wants(path: str) -> None:
    if shutil.which("systemd-escape") is None:
        pytest.skip("systemd-escape is not installed")
    wanted = run_program(["systemd-escape", "--path", "--suffix=mount", path])[1].strip()
    assert plugin("modules.throughline_mount").unit_name(path, "bpf") == wanted


def bundle(folder: Path, content: str, extra: tarfile.TarInfo | None = None) -> tuple[Path, str]:
    """A small bundle with the real unpack.py, and its SHA-256."""
    source = CHECKOUT / "agent/bundle/release"
    files = {
        "bin/python": (source / "bin/python").read_bytes(),
        "unpack.py": (source / "unpack.py").read_bytes(),
        "lib/python/content.py": content.encode(),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = {"version": "1.0", "python": [3, 10], "files": hashes, "extensions": {}}
    files["MANIFEST.json"] = json.dumps(manifest).encode()
    path = folder / f"bundle-{hashlib.sha256(content.encode()).hexdigest()[:8]}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def install(base: Path, path: Path, sha256: str) -> None:
    plugin("module_utils.release").unpack(path, run_program, sha256=sha256, base=base)


def test_a_release_is_unpacked_verified_and_made_ready(tmp_path: Path) -> None:
    release = plugin("module_utils.release")
    path, sha256 = bundle(tmp_path, "x = 1\n")
    base = tmp_path / "opt"
    install(base, path, sha256)
    final = base / "releases" / sha256
    assert [entry.name for entry in final.parent.iterdir()] == [sha256]
    assert list(final.glob("UNPACKED-*"))
    assert release.make_ready(final, run_program) == (False, None)
    (final / "lib/python/content.py").write_text("x = 2\n", encoding="utf-8")
    changed, problem = release.make_ready(final, run_program)
    assert not changed
    assert "lib/python/content.py" in problem
    install(base, path, sha256)  # over the damaged one
    assert release.make_ready(final, run_program) == (False, None)


def test_a_wrong_hash_leaves_nothing_behind(tmp_path: Path) -> None:
    path, _sha256 = bundle(tmp_path, "x = 1\n")
    with pytest.raises(ValueError, match="required 0000"):
        install(tmp_path / "opt", path, "0" * 64)
    assert not list((tmp_path / "opt").rglob("*"))


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../outside", tarfile.REGTYPE, ""),
        ("/etc/passwd", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "../../../etc"),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str, kind: bytes, link: str) -> None:
    extra = tarfile.TarInfo(name)
    extra.type, extra.linkname = kind, link
    path, sha256 = bundle(tmp_path, "x = 1\n", extra)
    with pytest.raises(ValueError, match=f"{name}: "):
        install(tmp_path / "opt", path, sha256)
    assert not list((tmp_path / "opt/releases").iterdir())


def serve(base: Path, sha256: str, *, going_back: bool = False) -> None:
    """Sets links and record as throughline_service does when a release is healthy."""
    release, served = plugin("module_utils.release"), plugin("module_utils.served")
    record = served.read_served(base)
    previous = served.wanted_previous(base, record, sha256, going_back=going_back)
    release.point(base, "previous", previous)
    release.point(base, "current", sha256)
    entry = {"previous": previous, "rolled_back_from": None, "groups": [], "files": {}}
    served.note_served(base, sha256, entry)


def links(base: Path) -> tuple[str | None, str | None]:
    linked = plugin("module_utils.release").linked_release
    return linked(base, "current"), linked(base, "previous")


def test_the_current_and_the_previous_release_stay(tmp_path: Path) -> None:
    release = plugin("module_utils.release")
    base = tmp_path / "opt"
    names = []
    for number in range(4):
        path, sha256 = bundle(tmp_path, f"x = {number}\n")
        install(base, path, sha256)
        serve(base, sha256)
        serve(base, sha256)  # a repeated run moves nothing
        names.append(sha256)
    assert release.prune(base) == sorted(names[:2])
    assert links(base) == (names[3], names[2])
    assert (base / "current/MANIFEST.json").is_file()
    assert release.prune(base) == []
    assert set(plugin("module_utils.served").read_served(base)["releases"]) == set(names[2:])
    serve(base, names[2], going_back=True)
    assert links(base) == (names[2], None)
    assert release.prune(base) == [names[3]]


def test_a_release_that_was_never_healthy_does_not_become_the_previous_one(tmp_path: Path) -> None:
    base = tmp_path / "opt"
    good, tried, next_one = (f"{number}" * 64 for number in range(3))
    for name in (good, tried, next_one):
        (base / "releases" / name).mkdir(parents=True)
    serve(base, good)
    release = plugin("module_utils.release")
    release.point(base, "previous", good)
    release.point(base, "current", tried)  # and the run was cut short
    serve(base, next_one)
    assert links(base) == (next_one, good)


def test_the_record_is_for_root_only_and_survives_damage(tmp_path: Path) -> None:
    served = plugin("module_utils.served")
    served.note_served(tmp_path, "a", {"previous": None})
    assert (tmp_path / "served.json").stat().st_mode & 0o7777 == 0o600
    (tmp_path / "served.json").write_text("{", encoding="utf-8")
    assert served.read_served(tmp_path) == {"serving": None, "releases": {}}


def test_a_file_is_written_once_and_keeps_its_mode(tmp_path: Path) -> None:
    served = plugin("module_utils.served")
    path = tmp_path / "folder/config.yaml"
    assert served.write_file(path, "a: 1\n", mode=0o640) is True
    path.chmod(0o604)
    assert served.write_file(path, "a: 1\n") is False
    assert served.write_file(path, "a: 2\n") is True
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o7777) == ("a: 2\n", 0o604)
    assert served.write_file(path, None) is True
    assert served.write_file(path, None) is False
    assert list(path.parent.iterdir()) == []


def watch(unit: Any, answers: list[dict[str, str]], **options: Any) -> tuple[str | None, int]:
    """Gives these answers of systemd. Returns what is wrong, and how many were read."""
    given = 0

    def run(command: list[str]) -> tuple[int, str, str]:
        nonlocal given
        if command[0] != "systemctl":
            return 3, "null\n", ""  # throughline status: not running
        default = {"ActiveState": "activating", "MainPID": "0", "NRestarts": "0"}
        found = {**default, **answers[min(given, len(answers) - 1)]}
        given += 1
        return 0, "".join(f"{name}={value}\n" for name, value in found.items()), ""

    options = {"groups": [], "since": 0, "timeout": 30, **options}
    _status, problem = unit.wait_until_healthy(run, directory=Path("/nowhere"), **options)
    return problem, given


def test_an_agent_that_will_not_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = plugin("module_utils.unit")
    monkeypatch.setattr(unit, "POLL_SECONDS", 0.0)
    failed = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "2"}
    assert watch(unit, [{}, {}, failed]) == ("has failed (exit-code, exit code 2)", 3)
    # what was killed to be replaced has failed, and its successor is queued
    killed = {"ActiveState": "failed", "Result": "signal", "ExecMainStatus": "9", "Job": "4711"}
    assert watch(unit, [killed, killed, {**failed, "Job": "0"}])[1] == 3
    # a count from before the restart, which systemd then sets back, is no end of this agent
    counts = [{"NRestarts": number} for number in ("7", "0", "1", "2", "3")]
    problem, given = watch(unit, counts)
    assert problem is not None
    assert problem.startswith("has ended 3 times in ")
    assert given == 5
    problem, _given = watch(unit, [{}], timeout=0)
    assert problem == "is not healthy after 0 s: throughline status gives no answer"


def healthy() -> dict[str, Any]:
    return {
        "pid": 7,
        "started_unix": 100.5,
        "healthy": True,
        "groups": {"observe": {"state": "on"}, "headers": "on"},
        "attached": {"programs": [{"name": "tl_sock_ops"}]},
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"healthy": False}, "not healthy"),
        ({"pid": 8}, "process 8"),
        ({"started_unix": 99.0}, "has not taken over"),
        ({"attached": {"programs": []}}, "no program is attached"),
        ({"groups": {"observe": "on", "headers": {"state": "off"}}}, "group headers is off"),
        (
            {"groups": {"observe": "on", "headers": {"state": "off", "wanted": True}}},
            "group headers is off",
        ),
        # auto, and the host cannot give it
        ({"groups": {"observe": "on", "headers": {"state": "off", "wanted": False}}}, None),
    ],
)
def test_an_agent_is_healthy_when_it_traces(change: dict[str, Any], problem: str | None) -> None:
    status = {**healthy(), **change}
    found = plugin("module_utils.health").ailment(
        status, groups=["observe", "headers"], pid=7, since=100
    )
    assert (found is None) if problem is None else (problem in found)


def test_a_failure_comes_with_the_doctors_advice() -> None:
    doctor = {"groups": {"headers": {"state": "off", "wanted": True, "reason": "A", "fix": "B"}}}
    text = plugin("module_utils.health").describe_failure("Message.", json.dumps(doctor), "line\n")
    assert text == "Message.\ndoctor: headers is off: A. Remedy: B.\njournal:\nline"


def test_what_a_release_has_logged_reaches_no_terminal_raw() -> None:
    describe = plugin("module_utils.health").describe_failure
    doctor = {"groups": {"tls": {"state": "off", "wanted": True, "reason": "\x1b[2J", "fix": "B"}}}
    for text in (
        describe("Message.", json.dumps(doctor), "one \x1b]0;owned\x07\ntwo \udcff\n"),
        describe("Message.", "no JSON \x1b[2J", ""),
    ):
        assert all(char.isprintable() or char == "\n" for char in text), text
        assert r"\x1b[2J" in text


def test_what_a_killed_run_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have its id later."""
    release, served = plugin("module_utils.release"), plugin("module_utils.served")
    path, sha256 = bundle(tmp_path, "x = 1\n")
    base = tmp_path / "opt"
    monkeypatch.setattr("os.getpid", lambda: 4711)
    (base / f"releases/.{sha256}.4711/bin").mkdir(parents=True)
    (base / ".current.4711").symlink_to("nowhere")
    (base / ".served.json.4711").write_text("{", encoding="utf-8")
    install(base, path, sha256)
    assert release.point(base, "current", sha256)
    served.note_served(base, sha256, {"previous": None})
    assert sorted(entry.name for entry in base.iterdir()) == ["current", "releases", "served.json"]
    assert [entry.name for entry in (base / "releases").iterdir()] == [sha256]


def test_the_report_names_every_host_and_why(tmp_path: Path) -> None:
    reports = plugin("filter.throughline_report")
    found = {"source": "preflight", "version": None, **verdict(tmp_path, kernel="5.4.0")}
    traced = {"source": "doctor", "version": "0.1.0", **verdict(tmp_path)}
    report = reports.throughline_report(
        {
            "old": {"ansible_facts": {"throughline_preflight": found}},
            "web": {"ansible_facts": {"throughline_preflight": traced}},
            "away": {"unreachable": True, "msg": "no route"},
            "broken": {"msg": "no interpreter"},
        },
        "now",
    )
    assert report["summary"] == {"network": 1, "none": 1, "unknown": 2}
    lines = reports.throughline_table(report)
    words = {line.split()[0]: line.split()[1:] for line in lines[2:6]}
    assert words["old"][:7] == ["none", "-", "off", "off", "off", "off", "off"]
    assert words["web"] == [
        "network",
        "0.1.0",
        *["on"] * 5,
        "off",
    ]
    assert words["away"][0] == "unreachable"
    assert words["broken"][0] == "failed"
    assert "away: unreachable: no route" in lines
    assert any(
        line.startswith("old: observe, headers, packets, tls, go off: kernel is 5.4.0")
        for line in lines
    )


def doctors(**states: str) -> dict[str, Any]:
    """The output of doctor --json; every group that is not named here works."""
    groups = {
        name: {"state": "on", "wanted": True, "reason": "", "fix": ""} for name in EVERYTHING[:5]
    }
    groups["go_write"] = {
        "state": "off",
        "wanted": False,
        "fix": "",
        "reason": "instrumentation.go_write is off",
    }
    for name, reason in states.items():
        groups[name] = {"state": "off", "wanted": True, "reason": reason, "fix": "mend it"}
    return {"version": "0.1.0", "mode": "network", "host": {"bpffs": "/tmp/bpf"}, "groups": groups}


def report_of(**verdicts: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The report on hosts with these verdicts, and its lines for a terminal."""
    reports = plugin("filter.throughline_report")
    results = {
        name: {"ansible_facts": {"throughline_preflight": found}}
        for name, found in verdicts.items()
    }
    report = reports.throughline_report(results, "now")
    return report, reports.throughline_table(report)


def test_a_trial_says_what_works_and_what_does_not(tmp_path: Path) -> None:
    ours = preflight(verdict(tmp_path, lockdown=UNLOCKED))
    wanted = EVERYTHING[:5]
    module = plugin("modules.throughline_preflight")
    answer = doctors(headers="bpf_object__load headers: EPERM")
    tried = {**ours, **module.merge_trial(ours, answer, wanted=wanted)}
    report, lines = report_of(web=tried)
    (web,) = report["hosts"]
    words = {name: group["word"] for name, group in web["groups"].items()}
    assert words == {
        **dict.fromkeys(wanted, "works"),
        "headers": "off",
        "go_write": "possible",
    }
    assert web["mode"] == "observe", "what the kernel refused does not count"
    assert web["host"]["bpffs"] is None, "the trial's own is no fact of the host"
    assert web["version"] is None and web["tried_version"] == "0.1.0"
    assert "web: headers off: bpf_object__load headers: EPERM -> mend it" in lines


def test_what_a_group_that_works_does_without_is_said(tmp_path: Path) -> None:
    ours = preflight(verdict(tmp_path))
    answer = doctors()
    answer["groups"]["observe"]["without"] = [
        {"program": "tl_tick", "gives": "ends of ticks", "reason": "bpf_program__attach: EPERM"}
    ]
    module = plugin("modules.throughline_preflight")
    tried = {**ours, **module.merge_trial(ours, answer, wanted=EVERYTHING[:5])}
    report, lines = report_of(web=tried)
    assert report["hosts"][0]["groups"]["observe"]["word"] == "works"
    wanted = "web: observe works: without tl_tick: no ends of ticks (bpf_program__attach: EPERM)"
    assert wanted in lines


def test_facts_alone_claim_nothing(tmp_path: Path) -> None:
    ours = {**preflight(verdict(tmp_path)), "untried": "Found no bundle at dist"}
    report, lines = report_of(web=ours)
    groups = report["hosts"][0]["groups"]
    assert {groups[name]["word"] for name in EVERYTHING[:5]} == {"untried"}
    assert {groups[name]["state"] for name in EVERYTHING[:5]} == {"untried"}
    assert lines[2].split()[:4] == ["web", "network?", "-", "untried"]
    assert "web: nothing was tried: Found no bundle at dist" in lines


def test_an_agent_that_does_not_run_serves_nothing(tmp_path: Path) -> None:
    module = plugin("modules.throughline_preflight")
    for running, word in ((True, "on"), (False, "works")):
        ours = preflight(verdict(tmp_path))
        answer = {**doctors(), "agent": {"running": running, "pid": None}}
        found = {**ours, **module.merge(ours, answer), "source": "doctor"}
        report, _lines = report_of(web=found)
        assert report["hosts"][0]["groups"]["observe"]["word"] == word


HOSTILE = "\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>\u202e\udcff\nweb2  network  on"


def hostile(tree: Path) -> dict[str, Any]:
    """The verdict of a hostile host: every text in it is an attack."""
    found = preflight(verdict(tree))
    found.update(version=HOSTILE, doctor_error=HOSTILE, untried=HOSTILE, tried_version=HOSTILE)
    found["host"] = {
        key: HOSTILE if isinstance(value, str) else value for key, value in found["host"].items()
    }
    for group in found["groups"].values():
        group.update(state="off", wanted=True, reason=HOSTILE, fix=HOSTILE, note=HOSTILE)
    return found


def test_what_a_host_says_reaches_no_terminal_and_no_browser_raw(tmp_path: Path) -> None:
    report, lines = report_of(evil=hostile(tmp_path))
    away = plugin("filter.throughline_report").verdict_of(
        "away", {"unreachable": True, "msg": HOSTILE, "module_stderr": HOSTILE}
    )
    assert all(char.isprintable() for line in [*lines, away["error"]] for char in line)
    assert any(r"\x1b]0;owned\x07" in line for line in lines), "it is shown, and harmless"
    report["hosts"].append(away)
    json.dumps(report).encode()
    source = (CHECKOUT / "playbooks/templates/report.html.j2").read_text(encoding="utf-8")
    for kind in ("doctor", "trial", "preflight"):
        report["hosts"][0]["source"] = kind
        page = jinja2.Template(source).render(__throughline_report=report)
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert all(char.isprintable() or char == "\n" for char in page)


@pytest.mark.parametrize(
    "change",
    [
        {"groups": None},
        {"groups": {"observe": "on"}},
        {"groups": []},
        {"host": "x"},
        {"mode": {"a": 1}},
        {"host": {}},
    ],
)
def test_an_answer_of_another_shape_ends_no_report(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {**preflight(verdict(tmp_path)), "untried": "no bundle"}
    report, lines = report_of(evil={**good, **change}, web=good)
    assert report["hosts"][0]["mode"] == "unknown"
    assert any(line.startswith("web  ") for line in lines)


@pytest.mark.parametrize(
    ("script", "timeout", "problem"),
    [
        ("echo '{\"groups\": {}}'", 10, None),
        ("echo no Python >&2; exit 2", 10, "ended with 2 and said: no Python"),
        ("printf '\\377\\033[2J' >&2; exit 3", 10, "ended with 3 and said: "),
        ("exec sleep 60", 0.2, "gave no answer in 0.2 s"),
    ],
)
def test_what_a_trial_makes_of_the_doctor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    timeout: float,
    problem: str | None,
) -> None:
    trial = plugin("module_utils.trial")
    monkeypatch.setattr(trial, "PLACE", tmp_path)
    monkeypatch.setattr(trial, "become_service", lambda capabilities, **ids: None)
    launcher = tmp_path / "bin/throughline"
    launcher.parent.mkdir()
    launcher.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    launcher.chmod(0o755)
    answer, found = trial.ask(tmp_path, capabilities=[], wanted=["observe"], timeout=timeout)
    assert (answer is not None, found is None) == (problem is None, problem is None)
    assert problem is None or problem in found


def test_a_trial_has_the_configuration_that_the_agent_would_have(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    trial = plugin("module_utils.trial")
    for wanted in (("observe", "headers"), EVERYTHING):
        path.write_text(json.dumps(trial.configuration(wanted)), encoding="utf-8")
        found = config.load(path, environment={})
        assert found.propagation.headers
        assert found.propagation.packets == ("packets" in wanted)
        assert found.propagation.peers
        assert found.instrumentation == set(wanted) & {"tls", "go", "go_write"}


@pytest.mark.parametrize(
    ("variables", "networks"),
    [
        ({"ansible_host": "10.1.0.7"}, {"10.1.0.7/32"}),
        ({"ansible_host": "fd00:1::7"}, {"fd00:1::7/128"}),
        ({"throughline_addresses": ["10.2.0.0/16", "fd00:2::9"]}, {"10.2.0.0/16", "fd00:2::9/128"}),
        ({"throughline_addresses": "10.2.0.9", "ansible_host": "10.1.0.7"}, {"10.2.0.9/32"}),
        ({"ansible_host": "127.0.0.1"}, set()),  # a forwarded port
        ({"ansible_host": "fe80::1"}, set()),
        ({"ansible_host": "no-such-host.invalid"}, set()),
    ],
)
def test_the_address_of_a_peer(variables: dict[str, Any], networks: set[str]) -> None:
    assert plugin("filter.throughline_peers").networks_of("web1", variables) == networks


def test_a_network_with_host_bits_is_no_address_of_a_peer() -> None:
    with pytest.raises(ValueError, match="host bits"):
        plugin("filter.throughline_peers").networks_of(
            "a", {"throughline_addresses": ["10.1.0.7/8"]}
        )


def test_peers_are_the_fleet_and_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = plugin("filter.throughline_peers")
    warnings: list[str] = []
    monkeypatch.setattr(peers.Display, "warning", lambda self, text: warnings.append(text))
    inventory: dict[str, dict[str, Any]] = {
        "b": {"ansible_host": "10.1.0.10"},
        "a": {"throughline_addresses": ["fd00::1", "10.1.0.9"]},
        "twice": {"ansible_host": "10.1.0.9"},
        "unknown.invalid": {},
    }
    found = peers.throughline_peers(list(inventory), inventory)
    assert found == [
        "127.0.0.0/8",
        "::1/128",
        "10.1.0.9/32",
        "10.1.0.10/32",
        "fd00::1/128",
    ]
    assert len(warnings) == 1
    assert "unknown.invalid" in warnings[0] and "throughline_addresses" in warnings[0]
