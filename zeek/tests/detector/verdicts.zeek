# @TEST-DOC: Every connection with packets gets its verdicts, before it is removed, and the same ones each time.
# @TEST-EXEC: make_capture.py mixed 40 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >first.txt
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::workers=4 >second.txt
# @TEST-EXEC: cmp first.txt second.txt
# @TEST-EXEC: mv first.txt output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

global removed = 0;
global judged_before = 0;

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	# All of the answer is there with the first event.
	local all_of_it = fmt("%d of %d", |c$trafficllm$verdicts|, c$trafficllm$waiting);
	print fmt("%.3f %s %s %.4f %s after %d packets, %s", c$start_time, v$task, v$label, v$score, v$abstained ? "abstained" : "decided",
	          v$packets, all_of_it);
	}

event connection_state_remove(c: connection)
	{
	++removed;

	if ( c?$trafficllm && |c$trafficllm$verdicts| > 0 && c$trafficllm$waiting == 0 )
		++judged_before;
	}

event zeek_done()
	{
	print fmt("%d connections, %d judged before they were removed", removed, judged_before);
	}
