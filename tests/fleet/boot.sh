#!/bin/sh
# Boots one fleet host and boots it again when it asks for a reboot.
# usage: boot.sh CGROUP LOWER DIRECTORY MACHINE BRIDGE
# Runs in the fleet's network namespace and in a mount namespace of its own, so that the mounts below
# end with it.
set -eu
cgroup=$1 lower=$2 directory=$3 machine=$4 bridge=$5

echo $$ >"$cgroup/cgroup.procs"
mount -t overlay "$machine" "$directory/root" \
	-o "lowerdir=$lower,upperdir=$directory/upper,workdir=$directory/work"

export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1
while :; do
	status=0
	systemd-nspawn --quiet --register=no --keep-unit --boot --console=read-only \
		--directory="$directory/root" --machine="$machine" --network-bridge="$bridge" \
		--private-users=no --capability=all --system-call-filter='bpf perf_event_open @mount' \
		--link-journal=no --resolv-conf=off --timezone=off || status=$?
	# systemd-nspawn with --keep-unit leaves a reboot to its caller (EXIT_FORCE_RESTART)
	[ "$status" -eq 133 ] || exit "$status"
done
