# @TEST-DOC: Looking can be switched off and on; connections that were begun are finished.
# @TEST-EXEC: make_capture.py http 300 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config

global new = 0;
global judged = 0;

event new_connection(c: connection)
	{
	++new;

	if ( new == 100 )
		Config::set_value("TrafficLLM::enabled", F);

	if ( new == 200 )
		Config::set_value("TrafficLLM::enabled", T);
	}

event connection_state_remove(c: connection)
	{
	if ( c?$trafficllm )
		++judged;
	}

event zeek_done()
	{
	print fmt("%d connections, %d judged", new, judged);
	}

# Connections that were begun before are judged with all of their packets.
event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	if ( v$packets != 10 )
		print fmt("judged with %d packets", v$packets);
	}
