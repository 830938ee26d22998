"""nginx, and what is made of it: where it makes connections, or takes ones that it has kept.

Programs that load modules export their functions, so Debian's and nginx.org's do. A program that
has no such symbols is followed by the turns of its event loop (bpf/evidence/thread.h).
"""

from __future__ import annotations

from throughline.bpf import abi
from throughline.elf.elf import Elf
from throughline.runtimes.proxies.proxy import Proxy, two_sites

CONNECT = "ngx_event_connect_peer"
_OTHERS = ("ngx_http_upstream_create", "ngx_http_upstream_init")


def find(elf: Elf) -> Proxy | None:
    """nginx in a file; None where there is none. Raises OSError and MalformedError."""
    functions = elf.functions(CONNECT, _OTHERS)
    if set(functions) != {CONNECT, *_OTHERS}:
        return None
    sites = two_sites(elf, functions[CONNECT].address, "tl_nginx_asks", "tl_nginx_asked")
    packed = bytes(abi.PROXY_BINARY.size)
    return Proxy("nginx", abi.RuntimeKind.RUNTIME_NGINX, sites, packed)
