# @TEST-DOC: A defect in the library costs what is under way in its session, which is replaced; after too many of them the engine is given up, until it is asked for again.
# @TEST-EXEC: make_capture.py http 400 in.pcap 500
# @TEST-EXEC: FAULTY_SESSION=20 faulty_zeek.sh -C -r in.pcap %INPUT >output 2>messages
# @TEST-EXEC: grep -c "a defect in the library cost the verdicts of 1 connections" messages >>output
# @TEST-EXEC: grep -c "there are no verdicts any more" messages >>output
# @TEST-EXEC: echo "in a submission: it costs one connection, and one session" >>output
# @TEST-EXEC: FAULTY_SUBMIT=20 faulty_zeek.sh -C -r in.pcap %INPUT >>output 2>messages
# @TEST-EXEC: echo "nobody waits" >>output
# @TEST-EXEC: FAULTY_SESSION=1 faulty_zeek.sh -C -r in.pcap %INPUT nobody-waits.zeek >>output 2>messages
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config
@load base/frameworks/telemetry

global connections = 0;
global judged = 0;
global reasons: table[string] of count &default=0;

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	# Without waiting the packets go on meanwhile.
	print fmt("after %s connections: %s", TrafficLLM::trace_wait > 0sec ? cat(connections) : "some", problem == "" ? "taken" : problem);
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	++reasons[reason == "there is no engine" ? reason : "another"];
	}

event connection_state_remove(c: connection)
	{
	if ( c?$trafficllm && |c$trafficllm$verdicts| > 0 )
		++judged;

	if ( ++connections == 300 )
		Config::set_value("TrafficLLM::bundle", "");
	}

event zeek_done()
	{
	local under_way = 0.0;
	local lost = 0.0;

	for ( _, m in Telemetry::collect_metrics("zeek_trafficllm", "*") )
		{
		if ( /under_way/ in m$opts$name )
			under_way = m$value;

		if ( /sessions_lost/ in m$opts$name )
			lost = m$value;
		}

	print fmt("%d connections, %.0f under way, sessions lost: %s", connections, under_way, lost > 0.0);

	if ( TrafficLLM::trace_wait > 0sec )
		print lost, judged, reasons;
	}

# @TEST-START-FILE nobody-waits.zeek
redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::settings += { "engine.queue_flows=1024" };
# @TEST-END-FILE
