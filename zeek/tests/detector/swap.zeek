# @TEST-DOC: Models and engines are replaced again and again while connections are judged, without waiting, and none is lost.
# @TEST-EXEC: make_capture.py mixed 3000 in.pcap 20
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config
@load base/frameworks/telemetry

redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::shutdown_wait = 30sec;
redef TrafficLLM::settings += { "engine.queue_flows=8192" };

global connections = 0;
global judged: set[string];
global unjudged = 0;
global refused = 0;
global changes = 0;
global asked = 0;

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	++changes;

	if ( problem != "" )
		++refused;
	}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	add judged[c$uid];
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	++unjudged;
	}

event connection_state_remove(c: connection)
	{
	if ( ++connections % 100 != 0 )
		return;

	++asked;

	switch ( asked % 3 )
		{
		case 0:
			Config::set_value("TrafficLLM::workers", 1 + asked % 4);
			break;
		case 1:
			Config::set_value("TrafficLLM::bundle", "");
			break;
		case 2:
			Config::set_value("TrafficLLM::bundle", "/nonexistent/model.tllm");
			break;
		}
	}

event zeek_done()
	{
	print fmt("%d connections, %d judged, %d not", connections, |judged|, unjudged);
	print fmt("changes told: %s, some refused: %s", changes > 1, refused > 0);
	}
