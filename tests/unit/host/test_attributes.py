"""The resource attributes of the host."""

from __future__ import annotations

from pathlib import Path

from throughline.host.attributes import host_attributes


def test_host_attributes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "etc/os-release").write_text(
        '# comment\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nPRETTY_NAME=\'Debian 12\'\n\n'
    )
    found = host_attributes(tmp_path)
    assert found["host.id"] == "0123456789abcdef0123456789abcdef"
    assert (found["os.name"], found["os.version"]) == ("Debian GNU/Linux", "12")
    assert (found["os.type"], found["os.description"]) == ("linux", "Debian 12")
    assert "telemetry.sdk.language" not in found


def test_a_bare_host_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    found = host_attributes(tmp_path)
    assert "host.id" not in found
    assert "os.name" not in found
    assert found["host.name"]
