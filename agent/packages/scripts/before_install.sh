#!/bin/sh
# Before the files of the package are there.
# ---
if [ ! -e /opt/throughline/PACKAGE ]; then
    for path in /opt/throughline/releases /opt/throughline/current \
        /etc/systemd/system/throughline.service \
        /etc/systemd/system/throughline.service.d/capabilities.conf /run/throughline.lock; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            echo "throughline: Found $path of an agent that Ansible has installed, or installs now," \
                "required none. Remedy: run throughline.fleet.uninstall for this host, then install" \
                "the package." >&2
            exit 1
        fi
    done
fi
@ACCOUNTS@
