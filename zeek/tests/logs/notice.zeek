# @TEST-DOC: Notices about labels that are not harmless, above the threshold, once for each pair of hosts and label.
# @TEST-EXEC: make_capture.py same 50 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT
# @TEST-EXEC: zeek-cut note id.orig_h id.resp_h msg sub suppress_for <notice.log >output
# @TEST-EXEC: btest-diff output
# @TEST-EXEC: rm notice.log
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::notice_score=1.01
# @TEST-EXEC: test ! -e notice.log

@load TrafficLLM/notice

redef TrafficLLM::notice_tasks = { "web_attack_http", "malware_traffic_detection" };
redef TrafficLLM::notice_score = 0.985;
