# @TEST-DOC: Reading a capture file with a model that does not answer costs the time for a verdict once, not with each connection.
# @TEST-EXEC: make_capture.py http 200 in.pcap
# @TEST-EXEC: echo "for ever" >output
# @TEST-EXEC: FAULTY_SILENT=1000000 timeout 120 faulty_zeek.sh -C -r in.pcap %INPUT TrafficLLM::trace_wait=2sec >>output 2>messages
# @TEST-EXEC: grep -c "no verdict within 2.000 s; connections are not waited for" messages >>output
# @TEST-EXEC: grep -c "Zeek ends before 200 verdicts have come" messages >>output
# @TEST-EXEC: echo "for a while" >>output
# @TEST-EXEC: FAULTY_SILENT=5000 timeout 120 faulty_zeek.sh -C -r in.pcap %INPUT TrafficLLM::trace_wait=2sec TrafficLLM::shutdown_wait=60sec >>output 2>messages
# @TEST-EXEC: grep -c "no verdict within 2.000 s; connections are not waited for" messages >>output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::settings += { "engine.queue_flows=1024" };

global connections = 0;
global judged: set[string];
global reasons: table[string] of count &default=0;

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	add judged[c$uid];
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	++reasons[reason];
	}

event connection_state_remove(c: connection)
	{
	++connections;
	}

event zeek_done() &priority=-20
	{
	print connections, |judged|, reasons;
	}
