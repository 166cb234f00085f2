# @TEST-DOC: Questions are counted apart from connections; one that gets no answer is no connection without a verdict.
# @TEST-EXEC: make_capture.py http 20 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT | sort >output
# @TEST-EXEC: echo "deadlines pass" >>output
# @TEST-EXEC: zeek -C -r in.pcap %INPUT 'TrafficLLM::settings+={"engine.deadline_us=1"}' | sort >>output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/telemetry

redef TrafficLLM::tasks = { "botnet_detection" };

global asked: set[string];
global told = 0;

event new_connection(c: connection)
	{
	trafficllm_classify(c);
	add asked[c$uid];
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	++told;
	}

event zeek_done()
	{
	print fmt("%d asked about, %d told of", |asked|, told);

	for ( _, m in Telemetry::collect_metrics("zeek_trafficllm", "*") )
		if ( |m$label_values| == 0 && /changes|lost/ !in m$opts$name )
			print fmt("%s %.0f", m$opts$name, m$value);
	}
