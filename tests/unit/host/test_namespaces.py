"""The pid namespace of the agent, and whether it is the host's first one."""

from __future__ import annotations

import subprocess
import sys

from throughline.host import namespaces

SAYS = "from throughline.host import namespaces; print(namespaces.pid_namespace())"


def test_a_namespace_of_its_own_is_named() -> None:
    unshared = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    said = subprocess.run(
        [*unshared, sys.executable, "-c", SAYS], capture_output=True, text=True, check=True
    )
    assert int(said.stdout) not in {0, namespaces.pid_namespace()}
