# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The capability that this kernel requires for uprobes, found by a trial that leaves nothing.

`multi`: uprobe_multi links (Linux 6.6) need CAP_BPF and CAP_PERFMON only.
`perf`: perf events need CAP_PERFMON.
`admin`: perf events need CAP_SYS_ADMIN, because of the fix of CVE-2025-38466. Distributions have
backported the fix, so the kernel's version does not tell.
None: the trial has no result.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

from .host import CAPABILITY_BITS, read_text

BTF = "sys/kernel/btf/vmlinux"
TYPE = "/sys/bus/event_source/devices/uprobe/type"
MULTI = b"\0BPF_TRACE_UPROBE_MULTI\0"  # the constant of enum bpf_attach_type, in the BTF
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
CLOSE_ON_EXEC = 1 << 3  # PERF_FLAG_FD_CLOEXEC
EVENT = struct.Struct("<IIQ40xQQ40x")  # struct perf_event_attr, PERF_ATTR_SIZE_VER5
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
REFUSED = (errno.EACCES, errno.EPERM)


def need(root):
    """'multi', 'perf', 'admin' or None."""
    try:
        if MULTI in (Path(root) / BTF).read_bytes():
            return "multi"
    except OSError:
        return None
    if root != "/" or not has_sys_admin(root):
        return None
    try:
        if attempt() is not None:
            return None  # refused with all capabilities, as in some containers
        refusal = in_child(attempt_without_sys_admin)
    except (OSError, AttributeError):  # no memfd_create before Python 3.8
        return None
    return {None: "perf", **dict.fromkeys(REFUSED, "admin")}.get(refusal)


def has_sys_admin(root):
    """Returns whether this process has CAP_SYS_ADMIN."""
    return bool(capability_set(root, "CapEff") >> CAPABILITY_BITS["CAP_SYS_ADMIN"] & 1)


def capability_set(root, name):
    """A capability set of this process, as bits."""
    for line in (read_text(root, "/proc/self/status") or "").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1], 16)
    return 0


def attempt():
    """Puts a uprobe on a page that nobody executes. Returns None or the error number."""
    kind = read_text("/", TYPE)
    if kind is None:
        return errno.ENOENT
    libc = ctypes.CDLL(None, use_errno=True)
    page = os.memfd_create("throughline", os.MFD_CLOEXEC)
    try:
        os.write(page, b"\x90".ljust(4096, b"\xcc"))
        path = ctypes.create_string_buffer(b"/proc/self/fd/%d" % page)
        event = EVENT.pack(int(kind), EVENT.size, 0, ctypes.addressof(path), 0)
        data = ctypes.create_string_buffer(event, len(event))
        number = SYS_PERF_EVENT_OPEN.get(platform.machine(), -1)
        opened = libc.syscall(number, data, os.getpid(), -1, -1, CLOSE_ON_EXEC)
        if opened < 0:
            return ctypes.get_errno()
        os.close(opened)
        return None
    finally:
        os.close(page)


def attempt_without_sys_admin():
    """The same with all capabilities that the agent can have but CAP_SYS_ADMIN."""
    kept = sum(1 << bit for name, bit in CAPABILITY_BITS.items() if name != "CAP_SYS_ADMIN")
    # capset(2) refuses capabilities that are not permitted, as in a container without CAP_LEASE.
    kept &= capability_set("/", "CapPrm")
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header = ctypes.create_string_buffer(struct.pack("<Ii", CAPABILITY_VERSION, 0), 8)
    sets = struct.pack("<6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, ctypes.create_string_buffer(sets, len(sets))):
        return errno.ENOTSUP  # CAP_SYS_ADMIN could not be dropped: the trial has no result
    return attempt()


def in_child(function):
    """Runs a function in a child process. Returns its result, an error number or None."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = min(function() or 0, 255)
        finally:
            os._exit(code)
    _pid, status = os.waitpid(pid, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 255
    return code or None
