#!/bin/sh
# After the files of the package are there, at the first time and at an upgrade. An agent that runs takes
# over in place: no request loses its trace. It is not started here, and never restarted.
# ---
release=/opt/throughline/releases/@RELEASE@
# Every file has to be as it was built, and the modules are compiled.
"$release/bin/python" "$release/unpack.py" >/dev/null
chgrp throughline /etc/throughline /etc/throughline/config.yaml
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl --quiet is-active throughline.service; then
        systemctl reload throughline.service
    fi
fi
# What an earlier version has compiled.
for other in /opt/throughline/releases/*; do
    [ "$other" = "$release" ] || rm -rf "$other"
done
