"""Facts of a host whose other users choose names."""

from __future__ import annotations

from pathlib import Path

from throughline.host import facts

MOUNTS = (
    b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
    # mounted by users: not UTF-8, and what str.splitlines and str.split take for ends
    b"23 22 0:40 / /home/a/m\xff\x1b[2J rw - fuse.sshfs a rw\n"
    b"24 22 0:41 / /home/a/\x0b\x1c\xc2\x85\xe2\x80\xa8\xc2\xa0x\\040y rw - fuse b rw\n"
    b"25 22 0:42 / /run/b\\040pf ro,relatime shared:2 - bpf none rw\n"
    b"26 22 0:43 / /sys/fs/cgroup rw - cgroup2 none rw\n"
)


def host(root: Path) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_bytes(MOUNTS)
    (root / "proc/self/status").write_bytes(b"Name:\t\xff\xff\nCapEff:\t0000008000001000\n")
    (root / "proc/self/cgroup").write_bytes(b"1:name=\xff:/\n0::/system.slice\n")
    return root


def test_mount_points_with_odd_names(tmp_path: Path) -> None:
    """They must not end the agent's start with UnicodeDecodeError or IndexError."""
    found = facts.mounts(host(tmp_path))
    assert [mount.kind for mount in found] == ["ext4", "fuse.sshfs", "fuse", "bpf", "cgroup2"]
    assert [mount.device[1] for mount in found] == [0, 40, 41, 42, 43]
    assert found[3].point == Path("/run/b pf") and found[3].read_only
    everything = facts.gather(tmp_path)
    assert everything.cgroup2 == Path("/sys/fs/cgroup")
    assert everything.capabilities == ("CAP_NET_ADMIN", "CAP_BPF")
    (tmp_path / "system.slice").mkdir()
    number = facts.own_cgroup(tmp_path, root=tmp_path)
    assert number == (tmp_path / "system.slice").stat().st_ino
