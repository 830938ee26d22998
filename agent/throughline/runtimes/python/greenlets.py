"""greenlet, which gevent is made of: where greenlets are made, and where threads switch to them.

The extension exports its C++ functions since greenlet 2.0. They are called inside of the extension
through its table of functions, so that no compiler has them inlined.
"""

from __future__ import annotations

from throughline.probes import arch
from throughline.probes.site import Site, c_sites

_SWITCHED = "_ZN8greenlet8Greenlet21g_switchstack_successEv"
# greenlet::UserGreenlet::UserGreenlet(PyGreenlet*, BorrowedGreenlet)
_SPAWNED = (
    "_ZN8greenlet12UserGreenletC2EP9_greenletNS_4refs17_BorrowedGreenletIS1_"
    "XadL_ZNS3_15GreenletCheckerEPvEEEE"
)


def find(file: int) -> tuple[Site, ...]:
    """The sites in an open file, without cookies; none where it is not greenlet.

    Raises OSError and MalformedError.
    """
    elf = arch.open_elf(file)
    functions = elf.functions(_SWITCHED, [_SPAWNED]) if elf else {}
    if elf is None or len(functions) < 2:
        return ()
    return (
        *c_sites(elf, functions[_SPAWNED].address, "tl_py_spawned"),
        *c_sites(elf, functions[_SWITCHED].address, "tl_py_switched"),
    )
