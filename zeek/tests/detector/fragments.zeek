# @TEST-DOC: Fragments are put together: the same verdicts as without them.
# @TEST-EXEC: make_capture.py whole 30 whole.pcap
# @TEST-EXEC: make_capture.py fragments 30 fragments.pcap
# @TEST-EXEC: test $(wc -c <fragments.pcap) -gt $(wc -c <whole.pcap)
# @TEST-EXEC: zeek -C -r whole.pcap %INPUT >whole.txt
# @TEST-EXEC: zeek -C -r fragments.pcap %INPUT >fragments.txt
# @TEST-EXEC: cmp whole.txt fragments.txt
# @TEST-EXEC: cut -d' ' -f2- whole.txt | cut -d' ' -f1,5- | sort | uniq -c >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::tasks = { "botnet_detection", "iot_device_classification" };

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	print fmt("%s %s %s %.6f after %d packets", c$id$orig_p, v$task, v$label, v$score, v$packets);
	}
