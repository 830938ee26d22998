"""The machinery of the kernel matrix, without a VM."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import yaml

from tests.fixtures import archive, cache
from tests.vms import (
    boxes,
    expected,
    kernels,
    kvm,
    machine,
    matrix,
    nobtf,
    platforms,
    processes,
)

PLATFORMS = platforms.load()

OUTPUT = """\
INFO     kernels ➜ create: Executing
  │ TASK [VM is up]
INFO     kernels ➜ create: Executed: Successful
\x1b[34mINFO    \x1b[0m kernels ➜ converge: Executing
  │ fatal: [6.1-none]: FAILED! =>
ERROR    kernels ➜ converge: Executed: Failed
INFO     kernels ➜ destroy: Executing
INFO     kernels ➜ destroy: Executed: Successful
"""


def test_every_platform_has_an_expectation_and_a_kernel() -> None:
    assert sorted(PLATFORMS) == sorted(expected.load())
    for platform in PLATFORMS.values():
        line = platform.line
        if line == nobtf.LINE:
            line = "6.1"
        assert line in boxes.RECIPES[platform.box].lines
        assert line == "newest" or platform.expect["kernel"] == f"{line}."
        assert platform.name.startswith(f"{line}-")


def test_the_matrix_has_every_kernel_and_every_mode() -> None:
    lines = {line for recipe in boxes.RECIPES.values() for line in recipe.lines}
    plain = {platform.line for platform in PLATFORMS.values() if not platform.words}
    assert plain == {*lines, nobtf.LINE}
    words = {word for platform in PLATFORMS.values() for word in platform.words.split()}
    assert {"lockdown=integrity", "lockdown=confidentiality"} <= words


@pytest.mark.parametrize("name", PLATFORMS)
def test_command_line(name: str) -> None:
    platform = PLATFORMS[name]
    words = platform.command_line.split()
    serial = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}[platform.arch]
    assert words[0] == f"console={serial}"
    assert f"systemd.hostname={name.replace('.', '-')}" in words
    assert platform.words.split() == words[len(words) - len(platform.words.split()) :]
    lockdown = [word.partition("=")[2] for word in words if word.startswith("lockdown=")]
    assert lockdown == [platform.expect["lockdown"]][: platform.expect["lockdown"] != "none"]
    assert ("systemd.unified_cgroup_hierarchy=0" in words) == (
        platform.expect["cgroup"] == "hybrid"
    )
    nosecurityfs = "throughline.nosecurityfs" in words
    assert nosecurityfs == ("/sys/kernel/security" in platform.expect.get("unmounted", []))


@pytest.mark.parametrize("entry", [{"box": "sid", "line": "6.1"}, {"box": "trixie", "line": "6.1"}])
def test_a_platform_without_a_kernel_is_refused(entry: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "platforms.yml"
    file.write_text(yaml.safe_dump({"6.1-none": {**entry, "words": "", "memory": 512}}))
    with pytest.raises(ValueError, match=r"no box has kernel 6\.1"):
        platforms.load(file)


def test_an_unknown_platform_is_told_the_known_ones() -> None:
    with pytest.raises(LookupError, match=r"there are 5\.10-none, "):
        platforms.get("4.19-none")
    with pytest.raises(LookupError, match=r"no platform 4\.19-none; there are 5\.10-none, "):
        matrix.choose("6.1-none,4.19-none", PLATFORMS)


def test_only_keeps_the_order_of_the_table() -> None:
    chosen = matrix.choose(" newest-none, 6.1-none,", PLATFORMS)
    assert [platform.name for platform in chosen] == ["6.1-none", "newest-none"]
    assert matrix.choose("", PLATFORMS) == list(PLATFORMS.values())


def test_the_recipe_decides_where_a_box_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = boxes.RECIPES["bookworm"]
    digest = boxes.recipe_hash(recipe)
    assert digest == boxes.recipe_hash(replace(recipe))
    assert digest != boxes.recipe_hash(replace(recipe, lines=("6.1",)))
    assert digest != boxes.recipe_hash(replace(recipe, bcc=""))
    monkeypatch.setattr(inspect, "getsource", lambda module: "other code")
    assert digest != boxes.recipe_hash(recipe)
    monkeypatch.undo()
    monkeypatch.setenv("THROUGHLINE_CACHE", str(tmp_path))
    assert boxes.path("bookworm") == tmp_path / "boxes" / f"bookworm-{digest}"
    monkeypatch.delenv("THROUGHLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert boxes.path("bookworm").parent == Path("/elsewhere/throughline/boxes")


def test_a_finished_box_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHLINE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")  # nothing could be built
    boxes.path("trixie").mkdir(parents=True)
    assert boxes.build("trixie") == boxes.path("trixie")


def test_what_is_unused_or_unfinished_goes_with_the_next_build(tmp_path: Path) -> None:
    for name in ("box-old", "box-used", "box-new.partial", "other-old"):
        (tmp_path / name).mkdir()
    for name in ("box-old", "other-old"):
        os.utime(tmp_path / name, (0, 0))
    made = cache.make(tmp_path / "box-new", lambda partial: (partial / "disk").touch())
    assert (made / "disk").exists()
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["box-new", "box-used", "box.lock", "other-old"]
    os.utime(made, (0, 0))
    assert cache.make(made, lambda partial: partial.rmdir()).stat().st_mtime > 0


def test_sources_come_from_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'Debian|Debian|http://mirror.example/debian/'\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (line,) = archive.sources(("trixie-backports",))
    assert line.endswith("] http://mirror.example/debian/ trixie-backports main")
    with pytest.raises(LookupError, match="no repository labelled Debian-Security"):
        archive.sources(("trixie-security",))


def test_initrd_holds_the_modules_in_the_order_to_load_them(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("virtio", "virtio_ring", "virtio_blk", "floppy"):
        (modules / f"{name}.ko").write_bytes(name.encode())
    dependencies = "virtio_blk.ko: virtio_ring.ko virtio.ko\nvirtio_ring.ko: virtio.ko\n"
    (modules / "modules.dep").write_text(f"{dependencies}virtio.ko:\nfloppy.ko:\n")
    kernels.write_initrd(tmp_path / "initrd", modules=modules)
    unpacked = subprocess.run(
        f"zcat {tmp_path}/initrd | busybox cpio -i --to-stdout modules/order",
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    )
    assert unpacked.stdout.split() == ["virtio.ko", "virtio_ring.ko", "virtio_blk.ko"]


def test_what_kconfig_has_dropped_is_found() -> None:
    wanted = "# why\nCONFIG_NET=y\nCONFIG_VT=n\nCONFIG_MODULES=n\nCONFIG_DMIID=y\n"
    config = "CONFIG_NET=y\n# CONFIG_VT is not set\nCONFIG_MODULES=y\n"
    assert nobtf.missing(wanted, config) == ["CONFIG_MODULES=n", "CONFIG_DMIID=y"]


@pytest.mark.parametrize("accelerated", [True, False])
def test_vagrantfile(accelerated: bool) -> None:
    template = jinja2.Template(machine.TEMPLATE.read_text(), undefined=jinja2.StrictUndefined)
    text = template.render(
        platform=PLATFORMS["6.1-integrity"],
        box="throughline-bookworm",
        kvm=accelerated,
        kernel="/boxes/vmlinuz",
        initrd="/boxes/initrd",
        ssh_seconds=300,
    )
    assert f'libvirt.driver = "{"kvm" if accelerated else "qemu"}"' in text
    assert 'config.vm.define "6.1-integrity"' in text
    assert 'libvirt.kernel = "/boxes/vmlinuz"' in text
    assert 'lockdown=integrity"' in text


def test_a_platform_that_has_passed_is_done_until_something_changes(tmp_path: Path) -> None:
    file = matrix.result_file("6.1-none", build=tmp_path)
    file.parent.mkdir()
    assert not matrix.done("6.1-none", "abc", build=tmp_path)
    file.write_text(json.dumps({"outcome": "failed", "inputs": "abc"}))
    assert not matrix.done("6.1-none", "abc", build=tmp_path)
    file.write_text(json.dumps({"outcome": "passed", "inputs": "abc"}))
    assert matrix.done("6.1-none", "abc", build=tmp_path)
    assert not matrix.done("6.1-none", "abd", build=tmp_path)


def test_inputs_are_the_platform_and_the_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.write_bytes(b"1")
    platform = PLATFORMS["6.1-none"]
    digest = matrix.inputs(platform, bundle=bundle)
    assert digest == matrix.inputs(platform, bundle=bundle)
    assert digest != matrix.inputs(replace(platform, words="lockdown=integrity"), bundle=bundle)
    assert digest != matrix.inputs(replace(platform, expect={}), bundle=bundle)
    bundle.write_bytes(b"2")
    assert digest != matrix.inputs(platform, bundle=bundle)


def test_what_is_missing_is_said() -> None:
    platform = replace(PLATFORMS["6.1-none"], memory=1000)
    need = 1000 + matrix.OVERHEAD_MIB

    def lacks(memory: int, disk: int, **more: int) -> str:
        there = {"box_exists": True, **more}
        return matrix.shortage(platform, memory=memory, disk=disk, **there)  # type: ignore[arg-type]

    assert lacks(need, matrix.DISK_MIB) == ""
    assert lacks(need - 1, matrix.DISK_MIB).startswith(f"{need} MiB of memory needed, {need - 1} ")
    assert "MiB of disk needed" in lacks(need, matrix.DISK_MIB - 1)
    assert "MiB of disk needed" in lacks(need, matrix.DISK_MIB, box_exists=False)
    assert "MiB of memory needed" in lacks(need, 1 << 20, side_by_side=2)


def test_steps_of_molecule_and_the_one_that_failed() -> None:
    assert matrix.steps(OUTPUT) == ["create", "converge", "destroy"]
    step, output = matrix.failure(OUTPUT)
    assert step == "converge"
    assert output.splitlines()[-1] == "  │ fatal: [6.1-none]: FAILED! =>"
    assert "VM is up" not in output
    assert matrix.failure("Traceback")[1] == "Traceback"


def test_processes_end_with_what_they_started() -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '1000'])"
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        while not (below := processes.children(parent.pid)):
            assert parent.poll() is None
        child = processes.identify(below[0])
        known = processes.identify(parent.pid)
        assert processes.alive(known)
        processes.end_tree((known[0], known[1] - 1))  # another process had this id
        assert processes.alive(known)
        processes.end_tree(known)
        assert not processes.alive(known)
        assert not processes.alive(child)
    finally:
        parent.kill()
        parent.wait()


def test_without_a_device_there_is_no_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    assert kvm.usable("bookworm") == (False, f"there is no {tmp_path / 'kvm'}")


def test_the_answer_about_kvm_is_kept_until_the_machine_boots_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THROUGHLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(kvm, "BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "kvm").touch()
    (tmp_path / "boot_id").write_text("one\n")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes/kvm").write_text("one it hung")
    assert kvm.usable("bookworm") == (False, "it hung")
    (tmp_path / "boxes/kvm").write_text("one ")
    assert kvm.usable("bookworm") == (True, "")
    (tmp_path / "boot_id").write_text("two\n")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError):  # it would boot the box's kernel, and there is none
        kvm.usable("bookworm")
