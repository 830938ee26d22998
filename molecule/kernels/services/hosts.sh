#!/bin/sh
# The hosts of the Go services: network namespaces with an address each, on a bridge in one more, go-lan,
# from which the load comes. The agent's own namespace has no part in it.
set -e
ip netns add go-lan
ip -n go-lan link add lan type bridge
ip -n go-lan address add 10.79.0.1/24 dev lan
ip -n go-lan link set lan up
number=10
for host in go-front go-middle go-back; do
    number=$((number + 1))
    ip netns add $host
    ip -n $host link add eth0 type veth peer name $host netns go-lan
    ip -n $host address add 10.79.0.$number/24 dev eth0
    ip -n $host link set eth0 up
    ip -n go-lan link set $host master lan up
done
