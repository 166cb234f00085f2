# @TEST-DOC: A model that does not answer: the queue fills, further connections are shed, counted and told of, and Zeek goes on.
# @TEST-EXEC: make_capture.py http 500 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/telemetry

redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::shutdown_wait = 0sec;
redef TrafficLLM::workers = 0;
redef TrafficLLM::settings += { "engine.queue_flows=64" };

global connections = 0;
global reasons: table[string] of count &default=0;

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	print "a verdict out of nowhere";
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	++reasons[reason];
	}

event connection_state_remove(c: connection)
	{
	++connections;
	}

event zeek_done()
	{
	print connections, reasons;

	for ( _, m in Telemetry::collect_metrics("zeek_trafficllm", "*") )
		print fmt("%s %s %.0f", m$opts$name, m$label_values, m$value);
	}
