"""The Vagrant boxes: one Debian root for each release, with the modules of several kernels.

A box is kept outside the repository, in a directory named after the hash of its recipe, so that a
changed recipe makes a new box and an unchanged one costs nothing. The directory holds `box.img` (a
qcow2 disk without partitions), `metadata.json` and `Vagrantfile`, which make it a box, and for each
kernel line a link `LINE` to its release, `vmlinuz-RELEASE` and `initrd-RELEASE`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures import archive, cache
from tests.fleet import root as fleet_root
from tests.vms import architecture, debs, kernels
from tests.vms.architecture import ARCHITECTURES

DISK_GIB = 6
# Vagrant's public key, whose private half everyone has: the VMs are reached from this machine only.
INSECURE_KEYS = Path("/usr/share/rubygems-integration/all/gems")

PACKAGES = (
    # a host as an operator would have it: systemd with logind sessions, sshd, sudo, Python
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "python3",
    "python3-apt",
    "iproute2",
    "libnss-myhostname",
    "ca-certificates",
    "procps",
    "kmod",
    "busybox-static",  # of the initrd
    # what the tests run there
    "bpftool",
    "curl",
    "nginx-light",
)

# The policy as Debian has it, and what sets and shows labels.
SELINUX = ("policycoreutils", "selinux-policy-default", "selinux-utils")
SELINUX_CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"
# Debian's policy denies it what it reads, where the policy is enforced; nothing here needs it.
SELINUX_MASKED = ("systemd-network-generator.service",)

MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-timesyncd.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-journal-flush.service",
    "systemd-hwdb-update.service",
    "getty@tty1.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@loop.service",
    # a manager for the user that logs in, begun and ended again with each connection of Ansible
    "user@.service",
)

# Crypto that is tried by udev for the CPU's features, seconds under emulation, and not needed.
BLACKLISTED = (
    "aesni_intel",
    "crc32_pclmul",
    "crct10dif_pclmul",
    "ghash_clmulni_intel",
    "kvm",
    "kvm_amd",
    "kvm_intel",
    "polyval_clmulni",
    "sha1_ssse3",
    "sha256_ssse3",
    "sha512_ssse3",
)

NETWORK = """[Match]
Type=ether

[Network]
DHCP=ipv4
LinkLocalAddressing=no

[DHCPv4]
ClientIdentifier=mac
"""

# systemd mounts securityfs itself, before everything else. A generator runs after that and before
# systemd looks at what is mounted, so this host looks to it as if nothing had been mounted; and it
# does so at every boot. Only then: systemd runs generators at each daemon-reload, too, and what the
# role has mounted is to stay.
NO_SECURITYFS = """#!/bin/sh
grep -qw throughline.nosecurityfs /proc/cmdline || exit 0
mkdir /run/box-nosecurityfs 2>/dev/null || exit 0
nsenter --mount=/proc/1/ns/mnt umount /sys/kernel/security
"""

VAGRANTFILE = """Vagrant.configure("2") do |config|
  config.vm.synced_folder ".", "/vagrant", disabled: true
end
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the content of a box, besides this file. `lines` are kernel release lines."""

    name: str
    suites: tuple[str, ...]
    lines: tuple[str, ...]
    excluded: tuple[str, ...] = fleet_root.EXCLUDED
    bcc: str = ""  # the kernel line that the box can install BCC and headers for, without a network
    arch: str = architecture.NATIVE
    selinux: bool = False  # with a policy, and a label on each file


RECIPES = {
    one.name: one
    for one in (
        Recipe(
            "bookworm",
            ("bookworm", "bookworm-updates", "bookworm-security", "bullseye-security"),
            ("5.10", "6.1"),
            bcc="6.1",
        ),
        Recipe(
            "trixie",
            ("trixie", "trixie-updates", "trixie-security", "trixie-backports"),
            ("6.12", "newest"),
        ),
        Recipe(
            "trixie-aarch64",
            ("trixie", "trixie-updates", "trixie-security"),
            ("6.12",),
            arch="aarch64",
        ),
        Recipe(
            "trixie-selinux",
            ("trixie", "trixie-updates", "trixie-security"),
            ("6.12",),
            selinux=True,
        ),
    )
}


def recipe_hash(recipe: Recipe) -> str:
    """Twelve hex digits that change when the recipe, or the code that follows it, does."""
    modules = (sys.modules[__name__], architecture, archive, debs, kernels)
    text = "\0".join([repr(recipe), *(inspect.getsource(module) for module in modules)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def path(name: str) -> Path:
    """The directory of the box of the present recipe, whether it exists or not."""
    return cache.directory() / "boxes" / f"{name}-{recipe_hash(RECIPES[name])}"


def kernel(name: str, line: str) -> tuple[Path, Path]:
    """Kernel and initrd of a release line of a box, which is built first where it is missing."""
    box = build(name)
    release = (box / line).readlink()
    return box / f"vmlinuz-{release}", box / f"initrd-{release}"


def _bootstrap(recipe: Recipe, root: Path) -> None:
    subprocess.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root",
            "--skip=cleanup/apt",
            f"--architectures={ARCHITECTURES[recipe.arch].debian}",
            f"--include={','.join((*PACKAGES, *(SELINUX if recipe.selinux else ())))}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded),
            '--aptopt=Acquire::Retries "3"',
            '--aptopt=Acquire::Languages "none"',
            recipe.suites[0],
            str(root),
            *archive.sources(recipe.suites),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )


def _write(file: Path, content: str, *, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)


def _insecure_key() -> str:
    found = sorted(INSECURE_KEYS.glob("vagrant-[0-9]*/keys/vagrant.pub"))
    if not found:
        raise FileNotFoundError("Vagrant's public key is missing: apt-get install vagrant")
    return found[-1].read_text()


def _customize(root: Path) -> None:
    """Users, network, and what makes a boot under emulation bearable."""
    run = ["systemctl", f"--root={root}", "--quiet"]
    subprocess.run([*run, "enable", "ssh.service", "systemd-networkd.service"], check=True)
    subprocess.run([*run, "disable", "nginx.service"], check=True)
    subprocess.run([*run, "mask", *MASKED], check=True)
    subprocess.run([*run, "set-default", "multi-user.target"], check=True)
    subprocess.run(
        ["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "vagrant"], check=True
    )
    home = root / "home/vagrant"
    _write(home / ".ssh/authorized_keys", _insecure_key(), mode=0o600)
    (home / ".ssh").chmod(0o700)
    subprocess.run(["chroot", root, "chown", "-R", "vagrant:", "/home/vagrant/.ssh"], check=True)
    _write(root / "etc/sudoers.d/vagrant", "vagrant ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    _write(root / "etc/systemd/network/80-dhcp.network", NETWORK)
    _write(root / "etc/ssh/sshd_config.d/vms.conf", "UseDNS no\nPasswordAuthentication no\n")
    blacklist = "".join(f"blacklist {module}\n" for module in BLACKLISTED)
    _write(root / "etc/modprobe.d/vms.conf", blacklist)
    _write(root / "etc/fstab", "")
    _write(root / "etc/default/locale", "LANG=C.UTF-8\n")
    _write(root / "etc/hostname", "throughline-vm\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
    shutil.rmtree(root / "etc/update-motd.d")
    generators = root / "usr/lib/systemd/system-generators"
    _write(generators / "throughline-no-securityfs", NO_SECURITYFS, mode=0o755)


def _forget(root: Path) -> None:
    """Removes what is of the machine that built the box, and what a box should not carry."""
    # every box has the same host key, which nobody checks: a new one takes seconds at each boot
    for file in (root / "etc/ssh").glob("ssh_host_*"):
        if "ed25519" not in file.name:
            file.unlink()
    for name in ("var/lib/dbus/machine-id", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    for folder in ("var/log/apt", "var/cache/apt", "boot"):
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir()
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)


def _label(root: Path) -> None:
    """Gives each file its label of SELinux, which this machine's kernel need not know."""
    run = ["systemctl", f"--root={root}", "--quiet"]
    subprocess.run([*run, "mask", *SELINUX_MASKED], check=True)
    subprocess.run(["chroot", root, "setfiles", "-F", "-m", SELINUX_CONTEXTS, "/"], check=True)


def _write_disk(root: Path, image: Path) -> None:
    raw = image.with_suffix(".raw")
    with raw.open("wb") as file:
        file.truncate(DISK_GIB << 30)
    options = ["-E", "lazy_itable_init=1,nodiscard", "-O", "^metadata_csum"]
    subprocess.run(["mkfs.ext4", "-q", "-L", "root", *options, "-d", root, raw], check=True)
    convert = ["qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
    subprocess.run([*convert, raw, image], check=True)
    raw.unlink()


def _build(recipe: Recipe, box: Path) -> None:
    root = box / "root"
    _bootstrap(recipe, root)
    _customize(root)
    for line in recipe.lines:
        release = kernels.install(root, line, debian=ARCHITECTURES[recipe.arch].debian)
        cache.say(f"{recipe.name}: kernel {line} is {release}")
        modules = root / "usr/lib/modules" / release
        shutil.copy(root / "boot" / f"vmlinuz-{release}", box)
        busybox = root / "usr/bin/busybox"
        kernels.write_initrd(box / f"initrd-{release}", modules=modules, busybox=busybox)
        (box / line).symlink_to(release)
    if recipe.bcc:
        release = str((box / recipe.bcc).readlink())
        debs.offer(root, ["bpfcc-tools", f"linux-headers-{release}"])
    else:
        debs.offer(root, [])
    _forget(root)
    if recipe.selinux:
        _label(root)
    _write_disk(root, box / "box.img")
    shutil.rmtree(root)
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}
    _write(box / "metadata.json", json.dumps(metadata) + "\n")
    _write(box / "Vagrantfile", VAGRANTFILE)


def build(name: str) -> Path:
    """Returns a box's directory, building it first where it is missing (one to two minutes).

    Raises CalledProcessError when a step fails, FileNotFoundError for a program that is missing.
    """
    recipe = RECIPES[name]
    with architecture.programs_run(recipe.arch):
        return cache.make(path(name), lambda box: _build(recipe, box))
