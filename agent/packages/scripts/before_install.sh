#!/bin/sh
# Before the files of the package are there.
# ---
if [ ! -e /opt/throughline/PACKAGE ] && [ -e /opt/throughline/current ]; then
    echo "throughline: Found an agent that Ansible has installed, required none." \
        "Remedy: run throughline.fleet.uninstall for this host, then install the package." >&2
    exit 1
fi
@ACCOUNTS@
