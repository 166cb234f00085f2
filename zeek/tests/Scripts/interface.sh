#!/bin/sh
# Zeek on an interface, in a network of its own: unshare -n interface.sh CAPTURE. Prints what interface.zeek does, and on a second line how
# many packets there were: sent, received by Zeek, and dropped before.
set -e
here=$(dirname "$0")
ip link add tllm0 type veth peer name tllm1
ip link set tllm0 mtu 9000 up
ip link set tllm1 mtu 9000 up
: >messages.txt
zeek -C -i tllm1 "$here/interface.zeek" >found.txt 2>messages.txt &
zeek=$!
trap 'kill $zeek 2>/dev/null || true' EXIT

# It listens when it says so, and has a model.
is_ready() { [ "$(grep -cE 'listening on tllm1|is active$' messages.txt)" = 2 ]; }
for _ in $(seq 600); do
    is_ready && break
    kill -0 $zeek || { cat messages.txt >&2; exit 1; }
    sleep 0.1
done
is_ready || { echo "Zeek was not ready within 60 s:" >&2; cat messages.txt >&2; exit 1; }
"$here/replay.py" "$1" tllm0 >sent.txt
sleep 1
kill $zeek
wait $zeek
trap - EXIT
tail -n 1 found.txt
# Zeek says at its end what the system says.
received=$(sed -n 's/.* \([0-9]*\) packets received on interface tllm1, \([0-9]*\) .*dropped.*/\1 received, \2 dropped/p' messages.txt)
[ -n "$received" ] || { echo "Zeek does not say what it received:" >&2; cat messages.txt >&2; exit 1; }
echo "$(sed -n 's/ packets sent$//p' sent.txt) sent, $received"
