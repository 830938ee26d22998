"""Runs a command on another kernel: `python -m tests.vms.guest --kernel 6.1 -- COMMAND ARG …`

Boots QEMU without any network device on one of Debian's cloud kernels. Its root is this machine's
file system, shared by virtiofs and read-only below an overlay in memory: the command finds the
checkout, .venv and all programs where they are, and nothing of what it writes is left. It runs as
root in the present directory, and its exit status becomes this program's.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.vms import guestkernel
from tests.vms.guestkernel import Kernel

START = Path(__file__).with_name("guest-start.sh")
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
BOOT_SECONDS = 60.0
TRIES = 2  # about one boot in thirty hangs under emulation, with an empty console
# as timeout(1) and env(1) say it: the command took too long; there was nothing to run it in
TIMED_OUT, NO_GUEST = 124, 125
LOCKDOWNS = ("none", "integrity", "confidentiality")
# Directories that the guest has of its own: a command cannot begin there.
OWN = ("/dev", "/proc", "/run", "/sys", "/tmp")
CMDLINE = (
    "console=ttyS0 loglevel=6 panic=-1 "
    "mitigations=off random.trust_cpu=on tsc=reliable no_timer_check"
)
# In a mount namespace of its own, in which nothing can be written.
READ_ONLY = """findmnt --raw --noheadings --output TARGET | while read -r point; do
    mount -o remount,bind,ro "$point" || :
done
exec "$@"
"""


def say(line: str) -> None:
    """Progress goes to standard error at once."""
    print(f"guest: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Guest:
    """What boots, and what runs there. `memory` is in MiB, `seconds` bounds the command."""

    kernel: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    lockdown: str = "none"
    cpus: int = 2
    memory: int = 3072
    seconds: float = 900.0


def script(guest: Guest) -> str:
    """The shell script that runs the guest's command."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in guest.environment.items())]
    run = shlex.join([*words, *guest.command])
    return f"cd {shlex.quote(str(guest.directory))} || exit\nexec {run}\n"


def cmdline(guest: Guest, kernel: Kernel, *, state: Path) -> str:
    """The kernel's command line."""
    words = [CMDLINE, f"throughline.state={state}", f"throughline.modules={kernel.modules}"]
    if guest.lockdown != "none":
        words.append(f"lockdown={guest.lockdown}")
    return " ".join(words)


def qemu(guest: Guest, kernel: Kernel, *, state: Path) -> list[str]:
    """The command line of QEMU. The guest's ports and its console end in files of `state`."""
    return [
        "qemu-system-x86_64",
        *("-M", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", str(guest.cpus), "-m", f"{guest.memory}M"),
        *("-object", f"memory-backend-memfd,id=memory,size={guest.memory}M,share=on"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initrd)),
        *("-append", cmdline(guest, kernel, state=state)),
        *("-chardev", f"file,id=console,path={state}/console", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=files,path={state}/virtiofs"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=status,path={state}/status"),
        *("-device", "virtserialport,chardev=status,name=status"),
        *("-chardev", f"file,id=output,path={state}/output"),
        *("-device", "virtserialport,chardev=output,name=output"),
    ]


def virtiofsd(program: str, *, listener: int) -> list[str]:
    """The command line of virtiofsd, which shares this machine's files read-only."""
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, "sh"),
        *(program, "-f", f"--fd={listener}", "-o", "source=/", "-o", "sandbox=chroot"),
        *("-o", "cache=always", "-o", "timeout=3600", "-o", "no_posix_lock"),
    ]


def exit_status(status: str) -> int | None:
    """The exit status of the command as the guest has printed it, None before that."""
    for line in status.split("\n")[:-1]:  # the last is not complete
        word, _, number = line.partition(" ")
        if word == "exit" and number.isdigit():
            return int(number)
    return None


def _virtiofsd(guest: Guest) -> str:
    """The virtiofsd to use. Raises an error that says why no guest can run on this machine."""
    if os.geteuid() != 0:
        raise PermissionError("a guest needs root: it is shown all files of this machine")
    if any(guest.directory.is_relative_to(own) for own in OWN):
        raise ValueError(f"{guest.directory} is not seen in a guest, which has its own {OWN}")
    found = [program for program in VIRTIOFSD if os.access(program, os.X_OK)]
    if not found or shutil.which("qemu-system-x86_64") is None:
        raise FileNotFoundError("QEMU or virtiofsd is not installed (make setup)")
    return found[0]


@contextmanager
def _running(
    words: Sequence[str], *, log: Path, descriptors: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and with this process in any case."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=descriptors,
            start_new_session=True,  # a Ctrl-C is for this process, which then ends the others
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end(*logs: Path, lines: int = 25) -> str:
    """The last lines of what the processes and the guest's kernel printed."""
    found = [
        line
        for log in logs
        if log.exists()
        for line in log.read_text(errors="replace").splitlines()
    ]
    return "\n".join(found[-lines:]) or "(nothing was printed)"


def _follow(guest: Guest, process: subprocess.Popen[bytes], *, state: Path) -> int:
    """Shows the command's output until the guest has said its exit status, and returns that.

    Raises TimeoutError when it does not come up, RuntimeError when it ends before its command.
    """
    output = (state / "output").open("rb")
    begin = since = time.monotonic()
    up, console = False, 0
    while True:
        ended = process.poll() is not None
        status = (state / "status").read_text()
        sys.stdout.buffer.write(output.read())
        sys.stdout.buffer.flush()
        if (code := exit_status(status)) is not None:
            return code
        if ended:
            raise RuntimeError("the guest ended before its command")
        now = time.monotonic()
        if not up and status:
            up, since = True, now
            say(f"{guest.kernel} is up ({now - begin:.1f} s)")
        size = (state / "console").stat().st_size
        if not up and size != console:
            console, since = size, now  # a busy machine only takes longer
        if up and now > since + guest.seconds:
            say(f"the command did not end in {guest.seconds:.0f} s")
            return TIMED_OUT
        if not up and now > since + BOOT_SECONDS:
            raise TimeoutError(f"the boot has hung for {BOOT_SECONDS:.0f} s")
        time.sleep(0.05)


def _boot(guest: Guest, kernel: Kernel, *, program: str) -> int:
    """Boots a guest to its end and returns its command's exit status. Raises what _follow does."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="throughline-guest-"))
        state = Path(folder)
        shutil.copy(START, state / "start")
        (state / "command").write_text(script(guest))
        for name in ("console", "output", "status"):
            (state / name).touch()
        logs = [state / name for name in ("virtiofsd.log", "qemu.log", "console")]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(state / "virtiofs"))
            listener.listen()
            words = virtiofsd(program, listener=listener.fileno())
            shared = _running(words, log=logs[0], descriptors=[listener.fileno()])
            stack.enter_context(shared)
        words = qemu(guest, kernel, state=state)
        process = stack.enter_context(_running(words, log=logs[1]))
        try:
            return _follow(guest, process, state=state)
        except (RuntimeError, TimeoutError) as error:
            raise type(error)(f"{error}\n{_end(*logs)}") from None


def run(guest: Guest) -> int:
    """Runs a guest's command, whose output goes to standard output; returns its exit status.

    The status is 124 where the command does not end in time. A boot that hangs is tried once more.
    Raises TimeoutError when that hangs, too, and RuntimeError when the guest ends too early.
    """
    program = _virtiofsd(guest)
    kernel = guestkernel.build(guest.kernel)
    for attempt in range(1, TRIES + 1):
        try:
            return _boot(guest, kernel, program=program)
        except TimeoutError as error:
            if attempt == TRIES:
                raise
            say(f"{error}\nguest: trying again")
    raise AssertionError


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(words: Sequence[str], *, directory: Path, path: str) -> Guest:
    """The guest that a command line asks for. `path` is the command's PATH."""
    parser = argparse.ArgumentParser(prog="python -m tests.vms.guest", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kernel", choices=guestkernel.LINES, required=True)
    parser.add_argument("--lockdown", choices=LOCKDOWNS, default="none")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--seconds", type=float, default=900.0, help="for the command")
    parser.add_argument("--env", action="append", type=_variable, default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs="+")
    found = parser.parse_args(words)
    environment = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **dict(found.env)}
    return Guest(
        kernel=found.kernel,
        command=found.command,
        directory=directory,
        environment=environment,
        lockdown=found.lockdown,
        cpus=found.cpus,
        memory=found.memory,
        seconds=found.seconds,
    )


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


def main() -> int:
    """Runs one guest and returns its command's exit status; 125 when there was no guest."""
    guest = parse(sys.argv[1:], directory=Path.cwd(), path=os.environ["PATH"])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        return run(guest)
    except (OSError, LookupError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        say(str(error))
        return NO_GUEST
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
