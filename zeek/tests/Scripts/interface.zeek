# For interface.sh: counts what comes of the capture's connections. Others are the system's own, of IPv6.

@load TrafficLLM

redef TrafficLLM::shutdown_wait = 60sec;
redef TrafficLLM::settings += { "engine.queue_flows=8192" };

global of_capture: set[string];
global judged: set[string];
global at_once: set[string];
global unjudged = 0;

event new_connection(c: connection)
	{
	if ( c$id$orig_h in 10.0.0.0/8 || c$id$resp_h in 10.0.0.0/8 || c$id$orig_h in [2001:db8::]/32 )
		add of_capture[c$uid];
	}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	if ( c$uid !in of_capture )
		return;

	add judged[c$uid];

	if ( ! zeek_is_terminating() )
		add at_once[c$uid];
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	++unjudged;
	}

event zeek_done() &priority=-100
	{
	print fmt("%d connections, %d judged, some while packets came: %s, %d not judged", |of_capture|, |judged|, |at_once| > 0, unjudged);
	}
