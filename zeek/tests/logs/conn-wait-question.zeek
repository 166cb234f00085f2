# @TEST-DOC: A line of conn.log that waits for the answer to a question goes when there will be none.
# @TEST-EXEC: make_capture.py http 18000 in.pcap
# @TEST-EXEC: FAULTY_SHED=1 faulty_zeek.sh -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/conn-log
@load base/frameworks/config

redef TrafficLLM::workers = 0;
redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::shutdown_wait = 0sec;
redef TrafficLLM::conn_wait = 1hr;
redef TrafficLLM::settings += { "engine.queue_flows=1" };

module TrafficLLM;

global asked = "";
global is_over = F;

event connection_established(c: connection)
	{
	if ( asked != "" )
		return;

	# It fills the queue: the connection itself is shed, and its line waits for the question alone.
	asked = c$uid;
	trafficllm_classify(c);
	}

event connection_state_remove(c: connection) &priority=-20
	{
	if ( c$uid == asked )
		{
		print fmt("a line waits: %s, for %d answers", asked in waiting, c$trafficllm$waiting);
		# With the change answers are looked for, and the defect comes that is on order: the question's session is lost.
		Config::set_value("TrafficLLM::bundle", "");
		}
	else if ( asked != "" && ! is_over && ! zeek_is_terminating() && asked !in waiting )
		{
		is_over = T;
		print "it goes while packets come";
		}
	}
