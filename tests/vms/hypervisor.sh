#!/bin/sh
# The hypervisor of one platform: libvirtd in namespaces of its own, as their first process.
# usage: hypervisor.sh STATE POOL CACHE KVM
# Its network namespace was entered before (by `ip netns exec`, for a /sys that shows its interfaces).
# Every directory of libvirt is replaced by one of ours, in this mount namespace, so that a libvirt of
# the machine itself neither notices nor is changed. When this process dies, all of it dies.
set -eu
state=$1 pool=$2 cache=$3 kvm=$4

mkdir -p /run/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$state/etc" /etc/libvirt
mount --bind "$state/run" /run/libvirt
mount --bind "$state/log" /var/log/libvirt
mount --bind "$pool" /var/lib/libvirt
mount --bind "$cache" /var/cache/libvirt
# libvirt probes each emulator anew for more than a minute where it sees a KVM that does not work
if [ "$kvm" = no ] && [ -e /dev/kvm ]; then
	mount --bind "$state/empty" /dev/kvm
fi

libvirtd --pid-file /run/libvirt/libvirtd.pid --timeout 0 &
# also collects the daemons that libvirtd leaves behind
wait
