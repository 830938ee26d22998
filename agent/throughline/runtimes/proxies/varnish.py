"""Varnish: where a fetch for a request begins, and where a thread asks the backend for it.

Another thread than the one that has read the request fetches. Both use the same struct busyobj.
varnishd exports its functions to modules.
"""

from __future__ import annotations

from throughline.bpf import abi
from throughline.elf.elf import Elf
from throughline.runtimes.proxies.proxy import Proxy, two_sites

BEGINS, FETCHES = "VBO_GetBusyObj", "VDI_GetHdr"


def find(elf: Elf) -> Proxy | None:
    """Varnish in a file; None where there is none. Raises OSError and MalformedError."""
    functions = elf.functions(FETCHES, [BEGINS])
    if set(functions) != {FETCHES, BEGINS}:
        return None
    sites = (
        *two_sites(elf, functions[FETCHES].address, "tl_var_works", "tl_hap_rests"),
        *two_sites(elf, functions[BEGINS].address, "tl_var_makes", "tl_hap_made"),
    )
    packed = bytes(abi.PROXY_BINARY.size)
    return Proxy("Varnish", abi.RuntimeKind.RUNTIME_VARNISH, sites, packed)
