"""Header values reach no output, and none that was replaced stays on a host."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import NAMESPACE, plugin, run_program

OLD, NEW = "Bearer old-0123456789", "Bearer new-9876543210"
GROUP = grp.getgrgid(os.getgid()).gr_name


def written(token: str | None, **export: Any) -> str:
    """A configuration as the role writes it."""
    otlp: dict[str, Any] = {"endpoint": "https://collector.example.net:4318"}
    if token is not None:
        otlp["headers"] = {"authorization": token, "x-tenant": 1234567}
        otlp["traces"] = {"headers": {"api-key": f"{token} traces"}, "timeout": 1.5}
    content = {
        "propagation": {"peers": ["127.0.0.0/8", "::1/128"], "headers": "off"},
        "services": [{"match": {"systemd_unit": "shop-*.service"}, "name": "shop"}],
        "export": {"otlp": otlp, **export},
    }
    return f"#\n# Ansible managed\n#\n{yaml.dump(content, indent=2, sort_keys=False)}"


def test_what_the_role_writes_is_shown_without_credentials() -> None:
    hide = plugin("module_utils.credentials").hide
    shown = hide(written(OLD))
    assert "old-0123456789" not in shown and "1234567" not in shown
    for line in ("  headers: 'off'", "      authorization: (hidden)", "      x-tenant: (hidden)"):
        assert line in shown.splitlines(), shown
    assert "    endpoint: https://collector.example.net:4318" in shown.splitlines()
    assert "    systemd_unit: shop-*.service" in shown.splitlines()
    changed = hide(written(NEW), before=written(OLD)).splitlines()
    assert "      authorization: (hidden, changed)" in changed
    assert "      x-tenant: (hidden)" in changed, "this one is the same"
    assert hide("") == ""


SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"export: {{otlp: {{headers: {{authorization: {SECRET}}}}}}}\n",
        f"export:\n  otlp:\n    headers: {{\nauthorization: {SECRET}\n}}\n",
        f"export:\n  otlp:\n    headers: {{a: b,\nauthorization: {SECRET}}}\n",
        f'export:\n  otlp:\n    headers:\n      a: "x\nauthorization: {SECRET}\n"\n',
        f"export:\n  otlp:\n    headers:\n      a: |\n        {SECRET}\n        more\n",
        f"export:\n  otlp:\n    headers:\n      a: >-\n\n        {SECRET}\n\n  console: true\n",
        f"export:\n  otlp:\n    headers: &h\n      a: {SECRET}\n",
        f"x: &h\n  a: {SECRET}\nexport:\n  otlp:\n    headers: *h\n",
        f"x: &h {{a: {SECRET}}}\n",
        f'export:\n  otlp:\n    "head\\x65rs":\n      a: {SECRET}\n',
        f"export:\n  otlp:\n    ? headers\n    : a: {SECRET}\n",
        f'"headers":\n  "a": {SECRET}\n',
        f"'headers' : {{a: {SECRET}}}\n",
        f"# authorization: {SECRET}\nexport: {{}}\n",
        f"export:\n  console: true # not {SECRET}\n",
        f"headers:\n- {SECRET}\n",
        f"headers:\n  - {SECRET}\n",
        f"export:\n  otlp:\n    endpoint: https://user:{SECRET}@collector:4318\n",
        f"authorization: {SECRET}\n",
        f"OTEL_EXPORTER_OTLP_HEADERS: authorization={SECRET}\n",
        f"- headers:\n    a: {SECRET}\n  console: true\n",
        f"headers:\n\ta: {SECRET}\n",
        f"{SECRET}\n",
        f"console: true\n  {SECRET}\n",
        f'{{"export": {{"otlp": {{"headers": {{"a": "{SECRET}"}}}}}}}}\n',
        f"export:\r\n  otlp:\r\n    headers:\r\n      a: {SECRET}\r\n",
        f"export:\n  otlp:\n    headers:\n      a:\n        {SECRET}\n",
        f"%YAML 1.2\n---\nheaders: {{a: {SECRET}}}\n",
    ],
)
def test_what_somebody_else_has_written_is_not_shown_either(text: str) -> None:
    module = plugin("module_utils.credentials")
    assert SECRET not in module.hide(text)
    assert SECRET not in (module.take_out(text) or "")


def test_credentials_are_taken_out_and_those_of_another_text_put_back() -> None:
    module = plugin("module_utils.credentials")
    long = "Bearer " + " ".join(["0123456789abcdef"] * 9)  # which YAML folds into several lines
    for token in (OLD, long, "with: colon # and more", "two\nlines"):
        text = written(token)
        skeleton = module.take_out(text)
        assert not any(word in skeleton for word in token.split() if len(word) > 5)
        whole, lacking = module.put_back(skeleton, text)
        assert (yaml.safe_load(whole), lacking) == (yaml.safe_load(text), [])
    whole, lacking = module.put_back(module.take_out(written(OLD)), written(NEW, console=True))
    assert (yaml.safe_load(whole), lacking) == (yaml.safe_load(written(NEW)), [])
    _whole, lacking = module.put_back(module.take_out(written(OLD)), written(None))
    assert lacking == [
        "export.otlp.headers.authorization",
        "export.otlp.headers.x-tenant",
        "export.otlp.traces.headers.api-key",
    ]


def test_a_message_about_a_configuration_names_no_credential() -> None:
    scrub = plugin("module_utils.credentials").scrub
    said = f"headers.authorization: found '{OLD}', x-tenant: found 1234567"
    assert scrub(said, written(OLD)) == (
        "headers.authorization: found '(hidden)', x-tenant: found (hidden)"
    )


# -- the module that writes the file --------------------------------------------------------------

CHECK = """#!/bin/sh
grep -q refused "$3" || exit 0
echo "throughline: $3:5: export.otlp.headers: found $(cat "$3")" >&2
exit 2
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A host on which release r1 serves with the old token."""
    for name in ("r1", "r2"):
        launcher = tmp_path / "opt/releases" / name / "bin/throughline"
        launcher.parent.mkdir(parents=True)
        launcher.write_text(CHECK, encoding="utf-8")
        launcher.chmod(0o755)
    plugin("module_utils.release").point(tmp_path / "opt", "current", "r1")
    put(tmp_path / "opt", written(OLD))
    serve(tmp_path / "opt", "r1")
    return tmp_path / "opt"


def config(base: Path) -> Path:
    return base.parent / "etc/throughline/config.yaml"


def put(base: Path, content: str, *, release: str = "r1", **other: Any) -> dict[str, Any]:
    """Runs throughline_config and returns its result; everything that it printed is in `said`."""
    arguments = {
        "content": content,
        "release": release,
        "base": str(base),
        "path": str(config(base)),
        "group": GROUP,
        **other,
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"{NAMESPACE}.modules.throughline_config",
        ],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / ".ansible/collections")},
        capture_output=True,
        text=True,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return {**result, "said": done.stdout + done.stderr}


def serve(base: Path, release: str) -> None:
    """The record that throughline_service writes when the agent is healthy."""
    served = plugin("module_utils.served")
    path = config(base)
    entry = {
        "previous": None,
        "rolled_back_from": None,
        "groups": [],
        "files": {},
        "config": served.described(path, plugin("module_utils.files").read_file(path)),
    }
    served.note_served(base, release, entry)
    served.drop_replaced(base)


def on_disk(base: Path) -> str:
    """Everything that is in files of the host."""
    return "".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in base.parent.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files get an owner")


@needs_root
def test_a_rotated_credential_is_gone_once_the_new_one_is_healthy(base: Path) -> None:
    assert "old-0123456789" not in (base / "served.json").read_text(encoding="utf-8")
    result = put(base, written(NEW))
    assert result["changed"]
    for token in (OLD, NEW, "1234567"):
        assert token not in result["said"]
    assert (config(base).stat().st_mode & 0o7777, config(base).read_text()) == (0o640, written(NEW))
    kept = base / "config.replaced"
    assert (kept.stat().st_mode & 0o7777, kept.read_text()) == (0o600, written(OLD))
    serve(base, "r1")
    assert "old-0123456789" not in on_disk(base)
    assert not put(base, written(NEW))["changed"]


@needs_root
def test_the_entry_of_the_previous_release_has_no_credential_either(base: Path) -> None:
    release, served = plugin("module_utils.release"), plugin("module_utils.served")
    put(base, written(NEW), release="r2")
    release.point(base, "previous", "r1")
    release.point(base, "current", "r2")
    serve(base, "r2")
    record = served.read_served(base)
    assert sorted(record["releases"]) == ["r1", "r2"]
    assert "old-0123456789" not in on_disk(base)
    # an operator goes back: it gets what it was healthy with, and the credentials of today
    text, lost = served.config_text(base, record["releases"]["r1"])
    assert (yaml.safe_load(text), lost) == (yaml.safe_load(written(NEW)), None)


def going_back(base: Path, release: str) -> dict[Path, str]:
    """The files that throughline_service would write to go back to a release."""

    plan = plugin("module_utils.plan")
    request = plan.Request(
        state="previous",
        release=None,
        groups=None,
        config=str(config(base)),
        base=base,
        config_changed=False,
        check_mode=False,
    )
    record = plugin("module_utils.served").read_served(base)
    found: dict[Path, str] = plan.wanted_files(run_program, request, record, release)
    return found


@needs_root
def test_an_older_configuration_comes_back_with_the_credentials_of_today(base: Path) -> None:
    release = plugin("module_utils.release")
    unit = base / "releases/r1/systemd/throughline.service"
    unit.parent.mkdir()
    unit.write_text("[Service]\n", encoding="utf-8")
    (base / "releases/r2/bin/throughline").write_text("#!/bin/sh\n", encoding="utf-8")
    for token, lacking in ((NEW, ""), (None, "export.otlp.headers.authorization")):
        put(base, written(token, console="refused by r1"), release="r2")
        release.point(base, "previous", "r1")
        release.point(base, "current", "r2")
        serve(base, "r2")
        if not lacking:
            text = going_back(base, "r1")[config(base)]
            assert yaml.safe_load(text) == yaml.safe_load(written(NEW))
            continue
        with pytest.raises(plugin("module_utils.plan").PlanError) as failed:
            going_back(base, "r1")
        assert "Found a configuration that release r1 refuses" in str(failed.value)
        assert f"cannot be brought back: the present one has no {lacking}" in str(failed.value)


@needs_root
def test_headers_that_are_removed_are_not_shown(base: Path) -> None:
    result = put(base, written(None), _ansible_check_mode=True, _ansible_diff=True)
    assert "old-0123456789" not in result["said"]
    assert "authorization: (hidden)" in result["diff"]["before"]
    assert "authorization" not in result["diff"]["after"]
    assert "endpoint: https://collector" in result["diff"]["after"], "the rest is"
    config(base).write_text(f"export: {{otlp: {{headers: {{a: {SECRET}}}}}}}\n", encoding="utf-8")
    result = put(base, written(None), _ansible_check_mode=True, _ansible_diff=True)
    assert SECRET not in result["said"]


@needs_root
def test_a_refused_configuration_changes_nothing_and_is_not_shown(base: Path) -> None:
    result = put(base, written("refused-0123456789"))
    assert result["failed"] and "Found a configuration that release r1 refuses" in result["msg"]
    assert "refused-0123456789" not in result["said"]
    assert f"{config(base)}:5: export.otlp.headers: found" in result["msg"]
    assert config(base).read_text(encoding="utf-8") == written(OLD)
    assert sorted(path.name for path in config(base).parent.iterdir()) == ["config.yaml"]
    assert not (base / "config.replaced").exists()


@needs_root
def test_the_configuration_comes_back_as_it_was(base: Path) -> None:
    served, rollback = plugin("module_utils.served"), plugin("module_utils.rollback")
    put(base, written(NEW, console=True))
    entry = served.serving_entry(served.read_served(base))
    assert not served.is_config_in_place(entry)
    assert rollback.restore_config(base, entry) == ""
    assert config(base).read_text(encoding="utf-8") == written(OLD)
    assert not (base / "config.replaced").exists()


@needs_root
def test_a_run_that_was_cut_short_does_not_replace_what_was_healthy(base: Path) -> None:
    served, rollback = plugin("module_utils.served"), plugin("module_utils.rollback")
    put(base, written(NEW))
    put(base, written("Bearer third-000000"))
    assert (base / "config.replaced").read_text(encoding="utf-8") == written(OLD)
    rollback.restore_config(base, served.serving_entry(served.read_served(base)))
    assert config(base).read_text(encoding="utf-8") == written(OLD)


@needs_root
def test_what_is_not_kept_as_a_whole_gets_the_present_credentials(base: Path) -> None:
    served, rollback = plugin("module_utils.served"), plugin("module_utils.rollback")
    entry = served.serving_entry(served.read_served(base))
    config(base).write_text(written(NEW, console=True), encoding="utf-8")  # by hand
    assert "credentials of the new one" in rollback.restore_config(base, entry)
    found = yaml.safe_load(config(base).read_text(encoding="utf-8"))
    assert found == yaml.safe_load(written(NEW))
    config(base).write_text(written(None), encoding="utf-8")
    said = rollback.restore_config(base, entry)
    assert "the present one has no export.otlp.headers.authorization" in said
    assert config(base).read_text(encoding="utf-8") == written(None), "better than half of another"


def test_a_record_of_an_earlier_version_loses_its_credentials(tmp_path: Path) -> None:
    served = plugin("module_utils.served")
    path = tmp_path / "config.yaml"
    path.write_text(written(OLD), encoding="utf-8")
    entry: dict[str, Any] = {"previous": None, "rolled_back_from": None, "groups": []}
    files = {"/etc/systemd/system/throughline.service": "unit", str(path): written(OLD)}
    record = {"serving": "a", "releases": {"a": {**entry, "files": files}}}
    (tmp_path / "served.json").write_text(json.dumps(record), encoding="utf-8")
    found = served.serving_entry(served.read_served(tmp_path))
    assert list(found["files"].values()) == ["unit"]
    assert served.is_config_in_place(found)
    assert served.config_text(tmp_path, found) == (written(OLD), None)
    (tmp_path / "releases").mkdir()
    plugin("module_utils.release").point(tmp_path, "current", "a")
    served.note_served(tmp_path, "a", found)
    assert "old-0123456789" not in (tmp_path / "served.json").read_text(encoding="utf-8")


def test_bytes_that_are_no_utf8_survive(tmp_path: Path) -> None:
    served, files = plugin("module_utils.served"), plugin("module_utils.files")
    path = tmp_path / "capabilities.conf"
    path.write_bytes(b"# caf\xe9\n[Service]\n")
    text = files.read_file(path)
    json.dumps({"files": text}).encode()
    assert files.write_file(tmp_path / "copy", text)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert served.described(path, text)["sha256"]
