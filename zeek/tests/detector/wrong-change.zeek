# @TEST-DOC: A bundle or a setting that is refused while connections are judged changes nothing; the next good one is taken.
# @TEST-EXEC: make_capture.py http 100 in.pcap 500
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config

global connections = 0;
global judged = 0;

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	print fmt("after %d connections: %s", connections, problem == "" ? "taken" : sub(problem, / *[(:].*/, ""));
	}

event connection_state_remove(c: connection)
	{
	if ( |c$trafficllm$verdicts| > 0 )
		++judged;

	switch ( ++connections )
		{
		case 10:
			Config::set_value("TrafficLLM::bundle", "/nonexistent/model.tllm");
			break;
		case 20:
			Config::set_value("TrafficLLM::bundle", "");
			break;
		case 30:
			Config::set_value("TrafficLLM::settings", set("engine.queue_flows=none"));
			break;
		case 40:
			Config::set_value("TrafficLLM::settings", set("no.such.key=1"));
			break;
		case 50:
			Config::set_value("TrafficLLM::settings", set("no value"));
			break;
		case 60:
			Config::set_value("TrafficLLM::tasks", set("no_such_task"));
			break;
		case 70:
			Config::set_value("TrafficLLM::tasks", set("botnet_detection"));
			Config::set_value("TrafficLLM::settings", set("flow.max_packets=8", "engine.queue_flows=64"));
			break;
		}
	}

event zeek_done()
	{
	print fmt("%d of %d connections judged", judged, connections);
	}
