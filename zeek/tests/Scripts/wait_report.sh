#!/bin/sh
# What conn.log has of connections and labels.
echo "$(zeek-cut uid <conn.log | wc -l) lines, $(zeek-cut uid <conn.log | sort -u | wc -l) connections," \
    "$(zeek-cut trafficllm_label <conn.log | grep -vc '^-$') with labels"
