"""A .rpm of the agent, by rpmbuild."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from bundle.archive import MTIME
from packages import tree
from packages.tree import Tree

# Nothing is stripped, compiled, searched for dependencies or dated: the files are the bundle's.
SPEC = """\
%global debug_package %{{nil}}
%global __os_install_post %{{nil}}
%global _build_id_links none
%global _buildhost throughline
%global _binary_payload w{level}.xzdio
%global use_source_date_epoch_as_buildtime 1
%global clamp_mtime_to_source_date_epoch 1
Name: throughline
Version: {version}
Release: 1
Summary: {summary}
License: Apache-2.0
Packager: {maintainer}
AutoReqProv: no
Requires: systemd >= 247
Requires: util-linux
Requires: findutils
Requires(pre): /usr/sbin/useradd
%description
BPF programs write a W3C traceparent into the HTTP requests of services, and
every hop becomes an OpenTelemetry span. The services are not changed. The
package starts nothing: systemctl enable --now throughline
%install
cp -a {source}/. %{{buildroot}}
%pre
set -e
{before_install}
%post
set -e
{after_install}
%preun
set -e
if [ "$1" = 0 ]; then
{before_remove}fi
%postun
set -e
if [ "$1" = 0 ]; then
{after_remove}rmdir /etc/throughline 2>/dev/null || true
fi
%files
{files}
"""


def build(packed: Tree, output: Path, *, summary: str, maintainer: str, level: int) -> Path:
    """Writes the .rpm into the directory `output`. The same tree gives the same bytes."""
    made = output / f"throughline-{packed.version}-1.{packed.architecture}.rpm"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        tree.write(packed, source)
        spec = Path(folder) / "throughline.spec"
        scripts = {name: text.replace("%", "%%") for name, text in packed.scripts.items()}
        text = SPEC.format(
            version=packed.version,
            summary=summary,
            maintainer=maintainer,
            level=max(level, 1),
            source=source,
            files="\n".join(_files(packed)),
            **scripts,
        )
        spec.write_text(text, encoding="utf-8")
        for path in source.rglob("*"):
            if not path.is_symlink():
                os.utime(path, (MTIME, MTIME))
        command = ["rpmbuild", "-bb", "--quiet", "--target", packed.architecture]
        command += ["--define", f"_topdir {folder}/top", "--define", f"_rpmdir {folder}/made"]
        answer = subprocess.run(
            [*command, str(spec)],
            capture_output=True,
            text=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(MTIME)},
        )
        if answer.returncode:
            raise ValueError(f"rpmbuild: {answer.stderr.strip()[-2000:]}")
        (built,) = Path(folder).glob("made/*/*.rpm")
        made.write_bytes(built.read_bytes())
    return made


def _files(packed: Tree) -> list[str]:
    lines = [f"%dir %attr(0755, root, root) /{path}" for path in packed.folders()]
    lines = [line for line in lines if not line.endswith(" /etc/throughline")]
    lines.append("%dir %attr(0750, root, throughline) /etc/throughline")
    for path in sorted(packed.files):
        if path == tree.CONFIG:
            lines.append(f"%config(noreplace) %attr(0640, root, throughline) /{path}")
        else:
            mode = "0755" if path in packed.executable else "0644"
            lines.append(f'%attr({mode}, root, root) "/{path}"')
    lines += [f'"/{path}"' for path in sorted(packed.links)]
    return lines
