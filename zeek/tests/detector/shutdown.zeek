# @TEST-DOC: Zeek ends while flows are under way: what can be judged in the time that there is, is; then it ends.
# @TEST-EXEC: make_capture.py mixed 1000 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::shutdown_wait=30sec >output
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::shutdown_wait=0sec >ended.txt
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::shutdown_wait=1sec TrafficLLM::workers=0 >>ended.txt
# @TEST-EXEC: test $(grep -c "^700 connections, 700 removed" ended.txt) = 2
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::settings += { "engine.queue_flows=2048" };

global new = 0;
global removed = 0;
global judged: set[string];

event new_connection(c: connection)
	{
	if ( ++new == 700 )
		terminate();
	}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	add judged[c$uid];
	}

event connection_state_remove(c: connection)
	{
	++removed;
	}

event zeek_done() &priority=-10
	{
	print fmt("%d connections, %d removed, %d judged", new, removed, |judged|);
	}
