"""A launcher that sets a seccomp filter, as systemd does: kill|errno FILE COMMAND ARG …

FILE names the allowed system calls, one a line, as SystemCallFilter= would.
"""

import ctypes
import os
import sys
from pathlib import Path

KILL_PROCESS, EPERM, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # SCMP_ACT_*
UNKNOWN = -1  # a name of another kernel or processor

action, names, *command = sys.argv[1:]
library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
library.seccomp_init.restype = ctypes.c_void_p
library.seccomp_init.argtypes = [ctypes.c_uint32]
library.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
]
library.seccomp_load.argtypes = [ctypes.c_void_p]
made = library.seccomp_init({"kill": KILL_PROCESS, "errno": EPERM}[action])
for name in Path(names).read_text().split():
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number != UNKNOWN:
        library.seccomp_rule_add_array(made, ALLOW, number, 0, None)
if error := library.seccomp_load(made):
    sys.exit(f"seccomp_load: {os.strerror(-error)}")
os.execvp(command[0], command)
