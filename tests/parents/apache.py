"""The configuration of an Apache that listens on one port of 127.0.0.1, with Debian's modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_CONFIGURATION = """\
ServerRoot {folder}
ServerName test
PidFile {name}.pid
ErrorLog {name}.log
Listen 127.0.0.1:{port}
User nobody
Group nogroup
{modules}
KeepAliveTimeout 30
MaxKeepAliveRequests 0
{more}
"""


def configuration(
    folder: str | Path, port: int, modules: Sequence[str], more: str, *, name: str = "apache"
) -> str:
    """`modules` are names without `mod_`; its files are NAME.pid and NAME.log in the folder."""
    return _CONFIGURATION.format(
        folder=folder,
        port=port,
        name=name,
        modules="\n".join(
            f"LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so"
            for module in ("authz_core", *modules)
        ),
        more=more,
    )
