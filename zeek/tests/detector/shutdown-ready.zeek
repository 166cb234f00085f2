# @TEST-DOC: Zeek ends: verdicts that are there by then are taken though nothing is waited for; those of an engine that was just replaced are waited for.
# @TEST-EXEC: make_capture.py long 100 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT ready.zeek >output 2>messages
# @TEST-EXEC: zeek -C -r in.pcap %INPUT replaced.zeek >>output 2>>messages
# @TEST-EXEC: ! grep "Zeek ends before" messages
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::tasks = { "botnet_detection" };
redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::settings += { "engine.queue_flows=1024" };

global new = 0;
global judged: set[string];

event new_connection(c: connection)
	{
	++new;
	}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	add judged[c$uid];
	}

event zeek_done() &priority=-20
	{
	print fmt("%d connections, %d judged", new, |judged|);
	}

# @TEST-START-FILE ready.zeek
redef TrafficLLM::shutdown_wait = 0sec;

event net_done(t: time) &priority=10
	{
	# The model has time, and Zeek does not look.
	piped_exec("sleep 5", "");
	}
# @TEST-END-FILE

# @TEST-START-FILE replaced.zeek
redef TrafficLLM::shutdown_wait = 60sec;

event net_done(t: time) &priority=10
	{
	# It is there when this returns.
	TrafficLLM::__configure("", vector("engine.workers", "2"), T);
	}
# @TEST-END-FILE
