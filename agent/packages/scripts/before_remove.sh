#!/bin/sh
# Before the package is removed; not at an upgrade. A stop detaches the programs.
# ---
if [ -d /run/systemd/system ]; then
    systemctl --quiet disable --now throughline.service || true
    systemctl --quiet stop throughline-probes.socket || true
    systemctl --quiet stop throughline.slice || true
fi
# Pins of an agent that was killed.
[ ! -d /run/throughline-bpf ] || /opt/throughline/current/bin/throughline detach >/dev/null || true
if [ -d /run/systemd/system ]; then
    systemctl --quiet stop 'run-throughline\x2dbpf.mount' || true
fi
while grep -q ' /run/throughline-bpf ' /proc/self/mounts; do
    umount /run/throughline-bpf || break
done
if [ -d /opt/throughline/releases/@RELEASE@ ]; then
    find /opt/throughline/releases/@RELEASE@ -depth -name __pycache__ -exec rm -rf {} +
    rm -f /opt/throughline/releases/@RELEASE@/UNPACKED
fi
