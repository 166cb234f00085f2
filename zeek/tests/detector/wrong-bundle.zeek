# @TEST-DOC: A bundle that is not there, or broken, at the start: a warning, no verdicts, and everything else. A good one later helps.
# @TEST-EXEC: make_capture.py http 60 in.pcap 500
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::bundle=/nonexistent/model.tllm >output 2>messages
# @TEST-EXEC: grep -c "WARNING\|warning" messages >>output || true
# @TEST-EXEC: grep -q "/nonexistent/model.tllm was refused, and there are no verdicts: " messages
# @TEST-EXEC: head -c 100000 /dev/zero >broken.tllm
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::bundle=broken.tllm >>output 2>messages
# @TEST-EXEC: grep -q "broken.tllm was refused, and there are no verdicts: " messages
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config

global connections = 0;
global judged = 0;

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	print "changed", bundle, |model|, |problem| > 0;
	}

event connection_state_remove(c: connection)
	{
	if ( c?$trafficllm && |c$trafficllm$verdicts| > 0 )
		++judged;

	if ( ++connections == 20 )
		Config::set_value("TrafficLLM::bundle", "");
	}

event zeek_done()
	{
	print fmt("%d connections, some judged: %s, all: %s", connections, judged > 0, judged == connections);
	}
