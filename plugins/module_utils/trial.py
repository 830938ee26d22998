# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""The trial of a release on a host without an agent: its doctor runs as the agent would.

A child process gets a mount namespace in which /tmp is a tmpfs with the release, a bpffs and a
configuration. The kernel removes all of them, programs and pins included, when the last process of
that namespace has ended, also where it was killed. No file is made below the host's own /tmp.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import subprocess
from pathlib import Path

from .groups import TABLE
from .host import CAPABILITY_BITS, find_mount, read_mounts
from .release import unpack
from .uprobes import CAPABILITY_VERSION

# Every host has this directory. The tmpfs over it hides its content, as PrivateTmp= does.
PLACE = Path("/tmp")  # noqa: S108
NOBODY = 65534
SECONDS_TO_TIDY_UP = 30
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as systemd sets it
CLONE_NEWNS = 0x20000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 18
PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 24, 38, 47
PR_CAP_AMBIENT_RAISE = 2


def try_release(bundle, *, sha256, capabilities, wanted, timeout, probe_process=False):
    """(doctor --json of the release in a bundle, None), or (None, why there is no answer).

    With `probe_process` the release's process that opens uprobes runs beside its doctor.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            try:
                with open(bundle, "rb") as file:  # noqa: PTH123 (prepare() needs the descriptor)
                    release = prepare(file, sha256)
                with probing(release, seconds=timeout) if probe_process else nothing() as found:
                    answer = ask(
                        release,
                        capabilities=capabilities,
                        wanted=wanted,
                        timeout=timeout,
                        variables=found,
                    )
            except OSError as error:
                answer = None, f"{error.filename or 'trial'}: {error.strerror or error}"
            except ValueError as error:
                answer = None, str(error)
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    try:
        found, problem = json.loads(text.decode())
    except ValueError:
        return None, "the trial ended without an answer"
    return found, problem


def prepare(bundle, sha256):
    """Enters a mount namespace and unpacks the release there. Returns the release's directory."""
    call("unshare", CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", PLACE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=512m")
    os.umask(0o022)
    bpffs = PLACE / "bpf"
    bpffs.mkdir()
    mount("bpf", bpffs, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.chown(bpffs, NOBODY, NOBODY)
    bpffs.chmod(0o700)
    security = Path("/sys/kernel/security")
    if security.is_dir() and find_mount(read_mounts("/"), "securityfs") is None:
        with contextlib.suppress(OSError):  # the doctor then says that lockdown is not known
            mount("securityfs", security, "securityfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # The path of the bundle may lead into the /tmp that the tmpfs hides now.
    unpack(f"/proc/self/fd/{bundle.fileno()}", run, sha256=sha256, base=PLACE, for_trial=True)
    return PLACE / "releases" / sha256


def configuration(wanted):
    """The agent's configuration for the wanted groups, with this host as its only peer."""
    found = {
        "propagation": {"peers": ["127.0.0.0/8", "::1/128"]},
        "agent": {
            "bpffs": str(PLACE / "bpf"),
            "runtime_directory": str(PLACE / "run"),
            "state_directory": str(PLACE / "state"),
        },
    }
    for group in TABLE:
        if group.switch:
            section, key = group.switch.split(".")
            found.setdefault(section, {})[key] = "auto" if group.name in wanted else "off"
    return found


@contextlib.contextmanager
def probing(release, *, seconds):
    """Runs the release's process that opens uprobes, as its unit does. Yields where it is asked."""
    path = PLACE / "probes.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        os.chown(path, NOBODY, NOBODY)
        listener.listen()
        words = (release / "bin/python", release / "lib/opener.py", NOBODY, seconds)
        process = subprocess.Popen(
            list(map(str, words)),
            stdin=listener,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            cwd="/",
            preexec_fn=lambda: become_service(["CAP_SYS_ADMIN"], uid=0, gid=0),
        )
        try:
            yield {"THROUGHLINE_PROBES_SOCKET": str(path)}
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nothing():
    """Instead of `probing`, where the agent may open uprobes itself, or nobody."""
    yield {}


def ask(release, *, capabilities, wanted, timeout, variables=None):
    """(answer of the release's doctor, None) or (None, problem)."""
    config = PLACE / "config.yaml"
    config.write_text(json.dumps(configuration(wanted)), encoding="utf-8")  # JSON is valid YAML
    return ask_as_service(
        str(release / "bin/throughline"),
        config,
        capabilities=capabilities,
        timeout=timeout,
        variables=variables,
    )


def ask_as_service(
    launcher, config, *, capabilities, timeout, uid=NOBODY, gid=NOBODY, variables=None
):
    """(doctor --json as a user with these capabilities, None) or (None, problem)."""

    def begin():
        # Whoever runs this in the background may ignore SIGINT, and a child would do so, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        become_service(capabilities, uid=uid, gid=gid)

    def start(*arguments):
        return subprocess.Popen(
            [launcher, *arguments, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), **(variables or {})},
            cwd="/",
            preexec_fn=begin,
        )

    doctor = start("doctor", "--json")
    try:
        out, err = doctor.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # On a kernel without tcx, TC filters outlive the namespace. After SIGINT the doctor removes
        # them.
        doctor.send_signal(signal.SIGINT)
        if not ends_in_time(doctor) and uid == NOBODY:
            # An installed agent removes what is left when it starts.
            ends_in_time(start("detach"))
        return None, f"throughline doctor gave no answer in {timeout} s"
    try:
        return json.loads(out.decode()), None
    except ValueError:
        said = (err or out).decode(errors="replace").strip().splitlines()
        end = said[-1][-300:] if said else "nothing"
        return None, f"throughline doctor ended with {doctor.returncode} and said: {end}"


def ends_in_time(process):
    """Whether a process ends within SECONDS_TO_TIDY_UP. It is killed if it does not."""
    try:
        process.communicate(timeout=SECONDS_TO_TIDY_UP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    return True


def become_service(capabilities, *, uid, gid):
    """Takes on the privileges of the unit, in a child before exec; ends it where that fails."""
    if capabilities is None:
        return  # the child stays the present user
    try:
        raise_memlock()
        drop_privileges([CAPABILITY_BITS[name] for name in capabilities], uid=uid, gid=gid)
    except (OSError, ValueError) as error:
        os.write(2, f"the service's privileges could not be taken on: {error}".encode())
        os._exit(1)


def raise_memlock():
    """Sets the memlock limit as systemd does for LimitMEMLOCK=infinity: as high as it can."""
    infinity = resource.RLIM_INFINITY
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (infinity, infinity))
    except ValueError:  # without CAP_SYS_RESOURCE
        _soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def drop_privileges(bits, *, uid, gid):
    """Becomes a user with these capabilities, also as ambient ones, who cannot get others."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for bit in range(last + 1):
        if bit not in bits:
            call("prctl", PR_CAPBSET_DROP, bit, 0, 0, 0)
    call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    kept = sum(1 << bit for bit in bits)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    # The lower halves of effective, permitted and inheritable, then the upper halves.
    sets = struct.pack("<6I", low, low, low, high, high, high)
    call("capset", struct.pack("<Ii", CAPABILITY_VERSION, 0), sets)
    for bit in bits:
        call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def run(command):
    """(exit code, output, errors), as AnsibleModule.run_command returns them."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        check=False,
    )
    return done.returncode, *(text.decode(errors="replace") for text in (done.stdout, done.stderr))


def environment():
    """The environment of a unit, with the variables by which tests make a kernel refuse things."""
    tests = {key: word for key, word in os.environ.items() if key.startswith("THROUGHLINE_TEST_")}
    return {"PATH": PATH, "LANG": "C.UTF-8", **tests}


def mount(source, target, kind, flags, options=None):
    """mount(2)."""
    words = (str(word).encode() if word is not None else None for word in (source, target, kind))
    data = options.encode() if options else None
    call("mount", *words, flags, data, what=f"mount {kind or 'private'} at {target}")


def call(name, *arguments, what=None):
    """Calls a function of the C library that returns 0 on success. Raises OSError."""
    converted = (ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments)
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*converted):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or name)
