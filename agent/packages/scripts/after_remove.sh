#!/bin/sh
# After the files of the package are gone; not at an upgrade.
# ---
rm -rf /opt/throughline /var/lib/throughline /run/throughline /run/throughline-bpf
[ -d /opt ] || mkdir -m 0755 /opt # dpkg removes it where no other package has it
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl --quiet reset-failed throughline.service 2>/dev/null || true
fi
! getent passwd throughline >/dev/null || userdel throughline
! getent group throughline >/dev/null || groupdel throughline
