#!/bin/sh
# Makes the hosts of the Go services: network namespaces with an address each, on a bridge in a further
# namespace, go-lan, which sends the requests. The agent's namespace is not connected.
set -e
ip netns add go-lan
number=10
for host in go-front go-middle go-back; do
    number=$((number + 1))
    ip netns add $host
    ip -n $host -batch - <<EOT
link add eth0 type veth peer name $host netns go-lan
address add 10.79.0.$number/24 dev eth0
link set eth0 up
EOT
done
ip -n go-lan -batch - <<EOT
link add lan type bridge
address add 10.79.0.1/24 dev lan
link set lan up
link set go-front master lan up
link set go-middle master lan up
link set go-back master lan up
EOT
