#!/bin/busybox sh
# The first process of a guest in its final root: what systemd would do, then the command, the end.
# shellcheck shell=dash
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
busybox hostname guest
echo "127.0.0.1 localhost guest" >/etc/hosts
echo "::1 localhost" >>/etc/hosts
busybox ip link set lo up
ulimit -l unlimited
ulimit -n 65536

port() { # port NAME: the device of a port of virtio-serial
	for folder in /sys/class/virtio-ports/*; do
		[ "$(cat "$folder/name")" != "$1" ] || echo "/dev/${folder##*/}"
	done
}
exec 3>"$(port status)"
echo up >&3
# A pipe, as the port can be opened once only, and /dev/stderr may be.
mkfifo /run/guest/output
cat /run/guest/output >"$(port output)" 3>&- &
reader=$!
/usr/bin/setsid /bin/sh /run/guest/command >/run/guest/output 2>&1 </dev/null 3>&- &
wait $!
code=$?
# What the command left running may hold the pipe open.
(sleep 5; kill "$reader") 3>&- &
wait "$reader"
echo "exit $code" >&3
busybox poweroff -f
