# @TEST-DOC: Labels and scores stand in conn.log: of all tasks, or of those chosen and in their order.
# @TEST-EXEC: make_capture.py mixed 20 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT
# @TEST-EXEC: zeek-cut proto id.orig_p trafficllm_task trafficllm_label trafficllm_score <conn.log >output
# @TEST-EXEC: echo "chosen tasks, in this order, and doubts too" >>output
# @TEST-EXEC: zeek -C -r in.pcap %INPUT chosen.zeek
# @TEST-EXEC: zeek-cut proto id.orig_p trafficllm_task trafficllm_label trafficllm_score <conn.log >>output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/conn-log

# @TEST-START-FILE chosen.zeek
redef TrafficLLM::conn_tasks = vector("web_attack_http", "botnet_detection");
redef TrafficLLM::conn_abstained = T;
# @TEST-END-FILE
