"""Which uprobes this kernel gives the agent, found by trying them on memory of our own."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from throughline.bpf import libbpf, links
from throughline.probes import arch, uprobes
from throughline.probes.site import Site
from throughline.probes.uprobes import Kind

_KPROBE = 2  # enum bpf_prog_type
_PAGE_BYTES = 4096
# The answers of a kernel that does not know the way at all.
_UNKNOWN = {errno.EINVAL, errno.E2BIG, errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP}
_FILTERED_SECONDS = 30.0
# A program that denies itself system calls by a seccomp filter, as filters do that list what they
# allow, and then calls the function of the page behind a descriptor.
_FILTERED = """
import ctypes, os, struct, sys
fd, denied = int(sys.argv[1]), [int(number) for number in sys.argv[2:]]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
READ_EXEC, PRIVATE = 5, 2
page = libc.mmap(None, 4096, READ_EXEC, PRIVATE, fd, 0)
assert page != ctypes.c_void_p(-1).value, "mmap: " + os.strerror(ctypes.get_errno())
function = ctypes.CFUNCTYPE(None)(page)
LOAD_NUMBER, EQUAL, RETURN = (0x20, 0, 0, 0), 0x15, 0x06  # struct seccomp_data.nr, linux/filter.h
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
code = [LOAD_NUMBER]
code += [(EQUAL, len(denied) - at, 0, number) for at, number in enumerate(denied)]
code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL_PROCESS)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
filters = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code), ctypes.addressof(program)))
print("ready", flush=True)
sys.stdin.readline()
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 4, 22, 38, 2
for call in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1),
             (PR_SET_SECCOMP, FILTER, ctypes.addressof(filters))):
    arguments = [ctypes.c_ulong(number) for number in (*call, 0, 0, 0)[:5]]
    assert not libc.prctl(*arguments), "prctl: " + os.strerror(ctypes.get_errno())
function()
os._exit(0)
"""


class ReturnsRefusedError(OSError):
    """Return probes kill processes that have a seccomp filter, or it is not known whether."""


def find_kind() -> Kind:
    """The way of attaching that works here, tried on a page of ours that nobody executes.

    Raises OSError with the kernel's refusal when none works.
    """
    refusals: list[OSError] = []
    for kind in Kind:
        try:
            with _loaded(kind) as program, _page() as path:
                uprobes.attach_fd(
                    program, path=path, site=Site("", 0), kind=kind, pid=os.getpid()
                ).destroy()
            return kind
        except OSError as error:
            refusals.append(error)
    multi, perf, process = refusals
    if multi.errno not in _UNKNOWN:
        raise multi
    if perf.errno in (errno.EACCES, errno.EPERM):  # the process is for such kernels
        raise OSError(perf.errno, f"{perf.strerror}; {process.strerror}")
    raise perf


def try_returns(kind: Kind) -> None:
    """Raises ReturnsRefusedError where a return probe kills a process that has a seccomp filter.

    Since Linux 6.11 a return probe of x86 enters a system call of its own (ff474a78cef5), which
    filters deny. Kernels with cf6cb56ef244 (6.14, 6.13.3, 6.12.14) do not ask the filters. A child
    process of ours tries it.
    """
    denied = arch.here().PROBE_SYSCALLS
    if not denied:
        return
    with _loaded(kind) as program, _page() as path:
        page = path.rpartition("/")[2]
        # a release starts its interpreter by a launcher; the folder of another one may be closed to
        # the agent's user
        python = sys.executable if "THROUGHLINE_LAUNCHER" in os.environ else "/proc/self/exe"
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTERED, page, *map(str, denied)],
            executable=python,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[int(page)],
        )
        try:
            assert child.stdout is not None
            if not select.select([child.stdout], [], [], _FILTERED_SECONDS)[0]:
                raise ReturnsRefusedError(errno.ETIMEDOUT, "the trial did not begin")
            if child.stdout.readline() == b"ready\n":
                site = Site("", 0, returns=True)
                link = uprobes.attach_fd(program, path=path, site=site, kind=kind, pid=child.pid)
                try:
                    error = child.communicate(b"\n", timeout=_FILTERED_SECONDS)[1]
                finally:
                    link.destroy()
            else:
                error = child.communicate(timeout=_FILTERED_SECONDS)[1]
        except subprocess.TimeoutExpired:
            raise ReturnsRefusedError(errno.ETIMEDOUT, "the trial did not end") from None
        finally:
            child.kill()
            child.communicate()
    if child.returncode < 0:
        raise ReturnsRefusedError(errno.EFAULT, f"signal {-child.returncode}")
    if child.returncode:
        last = error.decode(errors="replace").strip().rpartition("\n")[2]
        raise ReturnsRefusedError(errno.EINVAL, last)


@contextmanager
def _loaded(kind: Kind) -> Iterator[int]:
    """A program that does nothing, loaded for this way of attaching."""
    expected = links.UPROBE_MULTI if kind is Kind.MULTI else 0
    fd = libbpf.load_constant(0, kind=_KPROBE, name="tl_trial", attach_type=expected)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _page() -> Iterator[str]:
    """A file in memory that holds one function."""
    fd = os.memfd_create("tl_trial", os.MFD_CLOEXEC)
    try:
        os.write(fd, arch.here().FUNCTION.ljust(_PAGE_BYTES, b"\xcc"))
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
