#!/bin/sh
# Zeek on an interface, in a network of its own: unshare -n interface.sh CAPTURE. Prints what interface.zeek does.
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
for _ in $(seq 600); do
    [ "$(grep -cE 'listening on tllm1|is active$' messages.txt)" = 2 ] && break
    kill -0 $zeek || { cat messages.txt >&2; exit 1; }
    sleep 0.1
done
"$here/replay.py" "$1" tllm0 >&2
sleep 1
kill $zeek
wait $zeek
trap - EXIT
tail -n 1 found.txt
