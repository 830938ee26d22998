#!/bin/sh
# After the files of the package are there, at the first time and at an upgrade. An agent that runs takes
# over in place: no request loses its trace. It is not started here, and never restarted.
# ---
release=/opt/throughline/releases/@RELEASE@
config=/etc/throughline/config.yaml
# Every file has to be as it was built, and the modules are compiled.
"$release/bin/python" "$release/unpack.py" >/dev/null
for path in /etc/throughline "$config"; do
    [ ! -e "$path" ] || chgrp throughline "$path"
done
# Checks the configuration as the unit's user, with the groups of a drop-in: root reads every file.
accepts() {
    groups=$(id -G throughline | tr ' ' ,)
    for name in $(systemctl show --property=SupplementaryGroups --value throughline.service); do
        number=$(getent group "$name" | cut -d: -f3)
        groups=$groups${number:+,$number}
    done
    said=$(timeout --kill-after=1 20 setpriv --reuid="$(id -u throughline)" \
        --regid="$(id -g throughline)" --groups="$groups" --inh-caps=-all --no-new-privs \
        "$release/bin/throughline" config check "$config" 2>&1)
}
has_taken_over() {
    pid=$(systemctl show --property=MainPID --value throughline.service)
    grep -qsz "/releases/@RELEASE@/lib/start.py\$" "/proc/$pid/cmdline"
}
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl --quiet is-active throughline.service; then
        if [ -e "$config" ] && ! accepts; then
            echo "$said" >&2
            echo "throughline: Found a configuration that the new version refuses, required one that it" \
                "accepts. The agent that runs goes on; it could not start again. Remedy: change" \
                "$config, then run: dpkg --configure throughline (with rpm:" \
                "systemctl reload throughline)." >&2
            exit 1
        fi
        systemctl reload throughline.service
        # The agent executes the new version a moment later.
        seconds=30
        until has_taken_over; do
            if [ "$seconds" = 0 ]; then
                echo "throughline: Found an agent that does not run the new version 30 s after its" \
                    "reload, required one that does. Remedy: look at journalctl -u throughline, then" \
                    "run: systemctl reload throughline, and: dpkg --configure throughline." >&2
                exit 1
            fi
            seconds=$((seconds - 1))
            sleep 1
        done
    fi
fi
# What earlier versions have compiled. The package manager deletes their other files.
for other in /opt/throughline/releases/*; do
    [ "$other" != "$release" ] || continue
    find "$other" -depth -name __pycache__ -exec rm -rf {} +
    rm -f "$other/UNPACKED"
    find "$other" -depth -type d -empty -delete
done
