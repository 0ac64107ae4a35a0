#!/usr/bin/env bash
# Runs a script on two "hosts" of one rank each, network namespaces of this machine, over a link of a given rate:
#
#   benchmarks/shaped_link.sh 1gbit benchmarks/sharding.py --cases 'table_wise/*' --out DIR
#
# RANKS=2 starts two ranks per host. Linux, root, ip and tc are needed, and torchrun on the path.
set -euo pipefail

rate=${1:?usage: shaped_link.sh RATE SCRIPT [ARGUMENTS], as in: shaped_link.sh 1gbit benchmarks/sharding.py --out DIR}
shift
for tool in ip tc torchrun; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not on the path; it makes the two hosts." >&2; exit 2; }
done
if [ "$(id -u)" != 0 ]; then
    echo "error: making network namespaces needs root; run this with sudo, or in a container as root." >&2
    exit 2
fi

# Names of this run only, so that two runs do not meet.
hosts=("stem$$a" "stem$$b")
links=("veth$$a" "veth$$b")
clean() {
    kill $(jobs -p) 2>/dev/null || true
    for host in "${hosts[@]}"; do ip netns delete "$host" 2>/dev/null || true; done
}
trap clean EXIT

for host in "${hosts[@]}"; do ip netns add "$host"; done
ip link add "${links[0]}" netns "${hosts[0]}" type veth peer name "${links[1]}" netns "${hosts[1]}"
for i in 0 1; do
    ip -n "${hosts[i]}" address add "10.77.0.$((i + 1))/24" dev "${links[i]}"
    ip -n "${hosts[i]}" link set lo up
    ip -n "${hosts[i]}" link set "${links[i]}" up
    # A token bucket: what one host sends, so each direction has the whole rate.
    ip netns exec "${hosts[i]}" tc qdisc add dev "${links[i]}" root tbf rate "$rate" burst 256kb latency 50ms
done

run() {
    ip netns exec "${hosts[$1]}" env GLOO_SOCKET_IFNAME="${links[$1]}" torchrun --nnodes 2 --node-rank "$1" \
        --nproc-per-node "${RANKS:-1}" --master-addr 10.77.0.1 --master-port 29400 "${@:2}"
}
run 1 "$@" >/dev/null &
run 0 "$@"
wait $!
