#!/bin/busybox sh
# The first process of a guest, in its initrd: makes this machine's files its root, with all writes
# going to memory. What is to run there is in the directory `throughline.state=` of that machine.
# shellcheck shell=dash
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order

give_up() {
	echo "guest: $*" >/dev/console
	poweroff -f
}
word() { # word NAME: its value on the kernel's command line
	tr ' ' '\n' </proc/cmdline | sed -n "s/^throughline\.$1=//p"
}

mkdir /lower /upper
mount -t virtiofs -o ro host /lower || give_up "no virtiofs"
mount -t tmpfs -o size=75% upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root ||
	give_up "no overlay"
state=/lower$(word state)
mount -t tmpfs -o mode=755 run /root/run
mount -t tmpfs -o mode=1777,size=75% tmp /root/tmp
mkdir /root/run/guest /root/run/lock
cp "$state/start" "$state/command" /root/run/guest
mkdir -p /root/usr/lib/modules
mount -o bind "/lower$(word modules)" /root/usr/lib/modules

mount -o move /proc /root/proc
mount -o move /sys /root/sys
mount -o move /dev /root/dev
exec switch_root /root /bin/busybox sh /run/guest/start
