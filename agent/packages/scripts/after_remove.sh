#!/bin/sh
# After the files of the package are gone; not at an upgrade.
# ---
# The package's own link is gone by now. This one is of an agent that Ansible has installed since.
if [ -e /opt/throughline/current ] || [ -L /opt/throughline/current ]; then
    exit 0
fi
# A directory that is a mount point stays, and is empty.
rm -rf /opt/throughline /var/lib/throughline /run/throughline /run/throughline-bpf || true
[ -d /opt ] || mkdir -m 0755 /opt # dpkg removes it where no other package has it
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl --quiet reset-failed 'throughline*' 2>/dev/null || true
fi
# The next account that is made may get the same number: it must not read a credential that stays.
if [ -d /etc/throughline ]; then
    ! getent group throughline >/dev/null ||
        find /etc/throughline -group throughline -exec chgrp -h root {} +
    ! getent passwd throughline >/dev/null ||
        find /etc/throughline -user throughline -exec chown -h root {} +
fi
! getent passwd throughline >/dev/null || userdel throughline
! getent group throughline >/dev/null || groupdel throughline
