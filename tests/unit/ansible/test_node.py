"""The drop-in that gives units of Node.js the preload, and which units get none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.plugins import plugin
from throughline.runtimes.node.units import refused

commands = plugin("module_utils.commands")
node = plugin("module_utils.node")
module = plugin("modules.throughline_node")
installed_agent = plugin("module_utils.host").installed_agent

SHOP = "[Service]\nUser=shop\nExecStart=/usr/bin/node /srv/shop.js\n"


def shown(**properties: str | list[str]) -> dict[str, list[str]]:
    """What `systemctl show` says of a unit."""
    start = "{ path=/usr/bin/node ; argv[]=/usr/bin/node /srv/shop.js ; ignore_errors=no ; pid=1 }"
    base: dict[str, Any] = {
        "Id": "shop.service",
        "LoadState": "loaded",
        "User": "shop",
        "ExecStart": start,
        "Type": "simple",
    }
    found = {**base, **properties}
    return {name: [value] if isinstance(value, str) else value for name, value in found.items()}


def starts(*words: str) -> str:
    return f"{{ path={words[0]} ; argv[]={' '.join(words)} ; ignore_errors=no ; pid=0 }}"


def obstacle(properties: dict[str, list[str]], options: str = "", *, version: int = 257) -> Any:
    return node.obstacle(properties, options, version=version)


def test_the_drop_in() -> None:
    lines = node.drop_in("").splitlines()
    assert lines[-4:] == [
        "[Service]",
        "LoadCredential=throughline-context.cjs:/opt/throughline/current/share/node/context.cjs",
        "SetCredential=throughline-context.cjs:0",
        'Environment="NODE_OPTIONS=--require=/run/credentials/%n/throughline-context.cjs"',
    ]


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("Environment=NODE_OPTIONS=--max-old-space-size=512", "--max-old-space-size=512"),
        ('Environment=A=b "NODE_OPTIONS=--a=1 --b" C=d', "--a=1 --b"),
        ("Environment='NODE_OPTIONS=--require \"/srv/a b.js\"'", '--require "/srv/a b.js"'),
        ("Environment=NODE_OPTIONS=--a\nEnvironment=NODE_OPTIONS=--b", "--b"),
        ("Environment=NODE_OPTIONS=--a\nEnvironment=", ""),
        ("Environment=A=1 \\\n# said in between\n  NODE_OPTIONS=--a", "--a"),
        ("Environment=NODE_OPTIONS_OTHER=1", ""),
        ("[Unit]\nEnvironment=NODE_OPTIONS=--a", ""),
    ],
)
def test_options_of_the_unit_stay(environment: str, options: str) -> None:
    found = node.own_options([SHOP + environment, "[Service]\nUser=shop\n"])
    assert found == options
    ours = node.own_options([SHOP + environment, node.drop_in(found)])
    assert ours == f"{options} {node.OPTION}".strip()


def test_a_later_file_wins() -> None:
    texts = [f"[Service]\nEnvironment=NODE_OPTIONS=--{letter}" for letter in "ab"]
    assert node.own_options(texts) == "--b"


def test_what_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError):
        node.own_options([f'{SHOP}Environment="NODE_OPTIONS=--a'])


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"User": "", "DynamicUser": "yes"},
        {"User": ""},
        {"User": "root", "ExecStart": starts("/usr/bin/env", "node", "/srv/shop.js")},
        {"ExecStart": starts("/bin/sh", "-c", "exec node /srv/shop.js")},
        {"ExecStart": starts("/opt/node-v22.1.0/bin/node22", "a.js"), "User": ""},
        {"EnvironmentFiles": "/nonexistent (ignore_errors=yes)"},
        {"RootDirectory": "/", "WorkingDirectory": "!/srv"},
    ],
)
def test_units_that_get_the_preload(properties: dict[str, str]) -> None:
    assert obstacle(shown(**properties), "--max-old-space-size=99") is None


@pytest.mark.parametrize(
    ("properties", "options", "reason"),
    [
        ({"LoadState": "not-found"}, "", "does not know the unit (not-found)"),
        ({"LoadState": "masked"}, "", "it is masked"),
        ({"UnsetEnvironment": "A NODE_OPTIONS"}, "", "UnsetEnvironment="),
        ({"PassEnvironment": "A NODE_OPTIONS"}, "", "PassEnvironment="),
        ({"RootDirectory": "/srv/root"}, "", "RootDirectory="),
        ({"RootImage": "/srv/image"}, "", "RootImage="),
        ({"AppArmorProfile": "node"}, "", "AppArmor"),
        ({"ExecStart": starts("/usr/sbin/runuser", "-u", "a", "node")}, "", "runuser"),
        ({"ExecStart": starts("/usr/bin/sudo", "-u", "a", "node")}, "", "sudo"),
        ({"ExecStart": starts("/usr/sbin/chroot", "/srv", "node")}, "", "chroot"),
        ({"ExecStart": starts("/usr/bin/node", "--permission", "a.js")}, "", "permission model"),
        ({}, "--experimental-permission", "permission model"),
        ({"User": "", "ExecStart": starts("/bin/sh", "/srv/start")}, "", "runs as root"),
        ({"User": "0", "ExecStart": starts("/usr/bin/env", "python3")}, "", "runs as root"),
        (
            {"User": "", "ExecStart": [starts("/usr/bin/node", "a.js"), starts("/bin/sh", "b")]},
            "",
            "runs as root",
        ),
    ],
)
def test_units_that_get_none(properties: dict[str, Any], options: str, reason: str) -> None:
    assert reason in obstacle(shown(**properties), options)


SETTINGS = ("ExecCondition", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop")


@pytest.mark.parametrize("setting", [*SETTINGS, "ExecStopPost"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("/usr/sbin/runuser", "-u", "a", "/bin/true"), "runuser: another user"),
        (("/bin/sh", "-c", "true ; su - a"), "su: another user"),
        (("/bin/sh", "-c", '"true;su', '-"'), "su: another user"),
        (("/usr/sbin/chroot", "/srv", "/bin/true"), "chroot: Node.js may have another root"),
        (("/bin/echo", "--permission"), "permission model"),
    ],
)
def test_each_command_is_judged(setting: str, words: tuple[str, ...], reason: str) -> None:
    properties = shown(Type="exec", **{setting: starts(*words)})
    assert reason in obstacle(properties)


@pytest.mark.parametrize(
    ("setting", "version", "refused"),
    [
        *((setting, 999, True) for setting in ("ExecCondition", "ExecReload", "ExecStop")),
        ("ExecStopPost", 999, True),
        ("ExecStartPre", 253, True),
        ("ExecStartPre", 254, False),
        ("ExecStartPost", 255, True),
        ("ExecStartPost", 256, False),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("/usr/bin/node", "/srv/a.js"),
        ("/usr/bin/npm", "run", "migrate"),
        ("/opt/pm2", "reload", "all"),
        ("/bin/sh", "-c", "exec anything"),
        ("/bin/bash", "/srv/script"),
        ("/usr/bin/env", "sometool"),
        ("/nonexistent/program",),
    ],
)
def test_commands_that_systemd_may_start_without_the_preload(
    setting: str, version: int, refused: bool, words: tuple[str, ...]
) -> None:
    reason = obstacle(shown(Type="exec", **{setting: starts(*words)}), version=version)
    if refused:
        assert f"{setting}= may run Node.js ({Path(words[0]).name})" in reason
    else:
        assert reason is None


def test_programs_that_run_no_node(tmp_path: Path) -> None:
    program, script = tmp_path / "kill", tmp_path / "script"
    program.write_bytes(b"\x7fELF and more")
    script.write_text("#!/bin/sh\n")
    assert not commands.may_run_node([str(program), "-HUP", "$MAINPID"])
    assert commands.may_run_node([str(script)])
    assert commands.may_run_node([str(program), str(script)])
    one = starts(str(program), "-HUP", "$MAINPID")
    everywhere = dict.fromkeys([*SETTINGS, "ExecStopPost"], one)
    assert obstacle(shown(Type="exec", **everywhere), version=252) is None


def test_the_path_is_the_program(tmp_path: Path) -> None:
    program = tmp_path / "kill"
    program.write_bytes(b"\x7fELF and more")
    value = f"{{ path={program} ; argv[]=kill -HUP 1 ; ignore_errors=no ; pid=0 }}"
    assert obstacle(shown(ExecReload=value)) is None
    value = "{ path=/usr/bin/node ; argv[]=harmless a.js ; ignore_errors=no ; pid=0 }"
    assert "ExecReload= may run Node.js (node)" in obstacle(shown(ExecReload=value))


def test_a_command_that_cannot_be_read_is_an_obstacle() -> None:
    cut = shown(ExecStart="{ path=/bin/sh ; argv[]=/bin/sh -c true")
    text, reason = node.judge([cut], version=257)
    assert text is None and reason == "ExecStart= has a command that cannot be read"


def test_a_second_main_command() -> None:
    several = [starts("/usr/bin/node", name) for name in ("a.js", "b.js")]
    properties = shown(Type="oneshot", ExecStart=several)
    assert "ExecStart= may run Node.js" in obstacle(properties, version=253)
    assert obstacle(properties, version=254) is None


def test_starts_that_may_fail() -> None:
    post = shown(ExecStartPost=starts("/bin/true"))
    assert "set Type=exec" in obstacle(post)
    assert obstacle({**post, "Type": ["exec"]}) is None
    before = shown(ExecStartPre=starts("/bin/true"))
    assert "systemd 247 may fail to start" in obstacle(before, version=247)
    assert obstacle(before, version=248) is None


def test_a_script_before_the_start_of_a_unit_of_root() -> None:
    script = shown(User="", ExecStartPre=starts("/bin/sh", "/srv/prepare"))
    assert "it runs as root, and ExecStartPre= is not Node.js" in obstacle(script)
    assert obstacle(shown(User="", ExecStartPre=starts("/bin/true"))) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Environment=NODE_OPTIONS=--b", "sets NODE_OPTIONS"),
        ("Environment=NODE_OPTIONS=", "sets NODE_OPTIONS"),
        ("Environment=", "empties Environment="),
        ("LoadCredential=", "empties LoadCredential="),
        ("SetCredentialEncrypted=", "empties SetCredentialEncrypted="),
        ('Environment="A=1', "could not be read"),
        ("Environment=A=1\nLoadCredential=a:/b", None),
    ],
)
def test_a_file_that_systemd_reads_behind_ours(
    tmp_path: Path, text: str, reason: str | None
) -> None:
    unit = tmp_path / "shop.service"
    unit.write_text(SHOP + "Environment=NODE_OPTIONS=--a")
    early, ours, late = (tmp_path / name for name in ("a.conf", node.DROP_IN, "z.conf"))
    early.write_text("[Service]\nEnvironment=NODE_OPTIONS=--early\n")
    ours.write_text(node.drop_in("--early"))
    late.write_text("[Service]\n" + text)
    paths = f"{early} {ours} {late}"
    found, said = node.judge([shown(FragmentPath=str(unit), DropInPaths=paths)], version=252)
    if reason is None:
        assert (found, said) == (node.drop_in("--early"), None)
    else:
        assert found is None and reason in said


def test_a_template_is_judged_by_its_instances(tmp_path: Path) -> None:
    unit, own = tmp_path / "shop@.service", tmp_path / "own.conf"
    unit.write_text(SHOP + "Environment=NODE_OPTIONS=--a")
    directory = tmp_path / "shop@.service.d"
    directory.mkdir()
    ours = directory / node.DROP_IN
    ours.write_text(node.drop_in("--a"))
    template = shown(FragmentPath=str(unit), DropInPaths=str(ours))
    one = {**template, "Id": ["shop@1.service"]}
    assert node.judge([template, one], version=252) == (node.drop_in("--a"), None)
    confined = {**one, "AppArmorProfile": ["node"]}
    text, reason = node.judge([template, confined], version=252)
    assert text is None and reason.startswith("shop@1.service: AppArmor")
    own.write_text("[Service]\nEnvironment=NODE_OPTIONS=--own")
    different = {**one, "DropInPaths": [f"{own} {ours}"]}
    text, reason = node.judge([template, different], version=252)
    assert text is None and "name the instances" in reason


def test_an_environment_file_wins(tmp_path: Path) -> None:
    file = tmp_path / "shop"
    file.write_text("# NODE_OPTIONS=--a\nA=1\n")
    properties = shown(EnvironmentFiles=[f"{file} (ignore_errors=no)"])
    assert obstacle(properties) is None
    file.write_text("A=1\n NODE_OPTIONS=--a\n")
    assert f"EnvironmentFile={file} sets NODE_OPTIONS" in obstacle(properties)
    several = shown(EnvironmentFiles=[f"{tmp_path}/s* (ignore_errors=yes)"])
    assert str(file) in obstacle(several)


def test_scripts_of_the_package_are_looked_at(tmp_path: Path) -> None:
    package = tmp_path / "package.json"
    npm = shown(WorkingDirectory=str(tmp_path), ExecStart=starts("/usr/bin/npm", "start"))
    for text in ("not JSON", "[]", json.dumps({"scripts": {"start": "node a.js"}})):
        package.write_text(text)
        assert obstacle(npm) is None
    package.write_text(json.dumps({"scripts": {"start": "node --permission a.js"}}))
    assert "permission model" in obstacle(npm)


def test_a_script_that_node_interprets(tmp_path: Path) -> None:
    script = tmp_path / "npm"
    script.write_text("#!/usr/bin/env node\n")
    assert node.is_node([str(script), "start"])
    script.write_text("#!/bin/sh\nnode\n")
    assert not node.is_node([str(script)])


@pytest.mark.parametrize("name", ["a/b.service", "a b", "", "shop.timer.service/..", "-"])
def test_names(name: str) -> None:
    assert node.unit_name("shop") == node.unit_name("shop.service") == "shop.service"
    assert node.unit_name("shop@.service") == "shop@.service"
    found = node.unit_name(name)
    assert found is None or "/" not in found


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "shop.service"
    unit.write_text("[Service]\nUser=nobody\nExecStart=/bin/true\n")
    directory = tmp_path / "shop.service.d"
    directory.mkdir()
    (directory / node.DROP_IN).write_text(node.drop_in('--a --b="c d"'))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert "throughline" not in done.stderr, done.stderr


class Host:
    """A tree of files, and the answers of systemctl and of the agent on it."""

    def __init__(self, tree: Path, **units: dict[str, list[str]]) -> None:
        self.units = {f"{name.replace('__', '@')}.service": unit for name, unit in units.items()}
        self.groups: dict[str, str] = {}
        self.tree, self.warnings, self.asked = tree, [], []  # type: tuple[Path, list[str], Any]
        self.params: dict[str, Any] = {"root": str(tree)}
        self.check_mode = False
        source = tree / node.SOURCE.lstrip("/")
        source.parent.mkdir(parents=True)
        source.write_text("the preload")

    def path(self, unit: str) -> Path:
        return self.tree / f"etc/systemd/system/{unit}.d" / str(node.DROP_IN)

    def block(self, name: str) -> str:
        unit = self.units.get(name.replace("@throughline", "@"), {"LoadState": ["not-found"]})
        paths = [self.path(name), self.path(re.sub("@.*", "@.service", name))]
        drop_in = "".join(path.read_text() for path in paths if path.exists())
        unit = {**unit, "Id": [name], "Environment": [drop_in.replace("\n", " ")]}
        return "".join(f"{key}={value}\n" for key, values in unit.items() for value in values)

    def run_command(self, words: list[str]) -> tuple[int, str, str]:
        self.asked.append(words)
        if words[0] == "timeout":
            return 0, json.dumps({"groups": self.groups}), ""
        if "--property=Version" in words:
            return 0, "Version=252.39-1~deb12u2\n", ""
        if words[1] == "daemon-reload":
            return 0, "", ""
        pattern = words[2]
        names = [name for name in self.units if fnmatch(name, pattern) and "@." not in name]
        return 0, "\n".join(map(self.block, names if "*" in pattern else [pattern])), ""

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> None:
        self.result = result


@pytest.fixture
def sleeper() -> Iterator[dict[str, str]]:
    """Processes with and without the preload's mark in their environment."""
    mark = {node.VARIABLE: f"--require=/run/credentials/x{node.MARK}"}
    with ExitStack() as stack:
        found = {}
        for name, environment in (("plain", {}), ("loaded", mark)):
            process = stack.enter_context(subprocess.Popen(["/bin/sleep", "60"], env=environment))
            stack.callback(process.kill)
            found[name] = str(process.pid)
        yield found


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    def run(host: Host, *units: str, check: bool = False) -> dict[str, Any]:
        host.params["units"], host.check_mode = list(units), check
        monkeypatch.setattr(module, "AnsibleModule", lambda **_: host)
        module.main()
        return host.result

    return run


Judged = Callable[..., dict[str, Any]]
RESTART = "restart it when it suits you"


def test_check_mode_tells_what_would_be(
    tmp_path: Path, judged: Judged, sleeper: dict[str, str]
) -> None:
    host = Host(tmp_path, shop=shown(MainPID=sleeper["plain"]))
    found = judged(host, "shop", check=True)
    assert found["changed"] and found["restart"] == []
    assert found["report"] == ["shop.service would have the preload after its next restart."]
    assert not host.path("shop.service").exists()
    found = judged(host, "shop")
    assert found["changed"] and found["restart"] == ["shop.service"]
    assert found["report"] == [f"shop.service runs without the preload: {RESTART}."]
    again = judged(host, "shop")
    assert not again["changed"] and again["report"] == found["report"]
    host.units["shop.service"]["MainPID"] = [sleeper["loaded"]]
    found = judged(host, check=True)
    assert found["changed"] and found["restart"] == []
    (said,) = found["report"]
    assert said == "shop.service would still run with the preload, until it is restarted."
    found = judged(host)
    assert found["restart"] == ["shop.service"]
    assert found["report"] == ["shop.service still runs with the preload, until it is restarted."]
    assert not host.path("shop.service").parent.exists()


def test_another_preload_than_the_releases(
    tmp_path: Path, judged: Judged, sleeper: dict[str, str]
) -> None:
    host = Host(tmp_path, shop=shown(MainPID=sleeper["loaded"]))
    copy = tmp_path / "run/credentials/shop.service" / node.CREDENTIAL
    copy.parent.mkdir(parents=True)
    for text in ("0", "the preload of another release"):
        copy.write_text(text)
        found = judged(host, "shop")
        said = f"shop.service runs another preload than the release's: {RESTART}."
        assert found["report"] == [said] and found["restart"] == ["shop.service"]
    copy.write_text("the preload")
    assert judged(host, "shop")["report"] == []


def test_instances_are_named(tmp_path: Path, judged: Judged, sleeper: dict[str, str]) -> None:
    units = {f"shop__{name}": shown(MainPID=pid) for name, pid in sleeper.items()}
    host = Host(tmp_path, shop__=shown(), **units)
    found = judged(host, "shop@")
    assert host.path("shop@.service").exists()
    assert found["restart"] == ["shop@plain.service"]
    assert not judged(host, "shop@.service")["changed"]


def test_a_group_that_is_off_is_said(tmp_path: Path, judged: Judged) -> None:
    host = Host(tmp_path, shop=shown())
    host.groups = {"observe": "on", "node": "off"}
    assert judged(host, "shop")["report"] == [
        "shop.service: the group `node` is off on this host, so the preload has no effect."
    ]
    host.groups["node"] = "on"
    assert judged(host, "shop")["report"] == []


def test_an_unknown_unit_is_a_warning(tmp_path: Path, judged: Judged) -> None:
    host = Host(tmp_path, masked=shown(LoadState="masked"))
    found = judged(host, "absent", "masked")
    assert not list(tmp_path.glob("etc/**/*.conf"))
    assert (
        host.warnings
        == found["report"]
        == [
            "absent.service gets no preload: systemd does not know the unit (not-found).",
            "masked.service gets no preload: it is masked.",
        ]
    )


def test_what_is_refused_can_be_read_on_the_host(tmp_path: Path, judged: Judged) -> None:
    """By the agent, which shows it."""
    host = Host(tmp_path, shop=shown(), rooted=shown(User="root", ExecStart=starts("/bin/sh", "a")))
    path = tmp_path / node.REFUSED.lstrip("/")
    assert judged(host, "shop", "rooted", check=True)["changed"] and not path.exists()
    found = judged(host, "shop", "rooted")
    assert found["changed"] and found["refused"].keys() == {"rooted.service"}
    assert refused(etc=tmp_path / "etc") == found["refused"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert installed_agent(tmp_path)["node_services"] == ["rooted.service", "shop.service"]
    assert not judged(host, "shop", "rooted")["changed"]
    # to be looked at once more, where none is named any more
    judged(host, "rooted")
    assert installed_agent(tmp_path)["node_services"] == ["rooted.service"]
    assert judged(host)["changed"] and not path.exists()
    assert installed_agent(tmp_path)["node_services"] == []
    path.parent.mkdir(exist_ok=True)
    for text in ("{", "3", ""):
        path.write_text(text)
        assert installed_agent(tmp_path)["node_services"] == (["?"] if text else [])


def test_a_drop_in_that_loses_only_after_the_reload_is_taken_back(
    tmp_path: Path, judged: Judged
) -> None:
    late = tmp_path / "z.conf"
    late.write_text("[Service]\nEnvironment=NODE_OPTIONS=--mine\n")
    host = Host(tmp_path, shop=shown())
    run = host.run_command

    def reloaded(words: list[str]) -> tuple[int, str, str]:
        if words[1] == "daemon-reload":
            host.units["shop.service"]["DropInPaths"] = [str(late)]
        return run(words)

    host.run_command = reloaded  # type: ignore[method-assign]
    found = judged(host, "shop")
    assert "z.conf sets NODE_OPTIONS" in found["refused"]["shop.service"]
    assert not host.path("shop.service").exists()
    assert not judged(host, "shop")["changed"]
