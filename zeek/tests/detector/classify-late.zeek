# @TEST-DOC: Questions about connections that end before the answer is there are answered all the same: none stays open.
# @TEST-EXEC: make_capture.py mixed 300 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::shutdown_wait = 60sec;
redef TrafficLLM::settings += { "engine.queue_flows=4096" };

global asked: vector of connection;

event new_connection(c: connection)
	{
	# The answer comes when the connection is long over: the capture is read faster.
	trafficllm_classify(c);
	asked += c;
	}

event zeek_done() &priority=-20
	{
	local under_way = 0;
	local unanswered = 0;

	for ( _, c in asked )
		{
		if ( ! c?$trafficllm )
			next;

		under_way += c$trafficllm$waiting;
		unanswered += |c$trafficllm$verdicts| == 0 ? 1 : 0;
		}

	print fmt("%d asked about, %d answers under way, %d without verdicts", |asked|, under_way, unanswered);
	}
