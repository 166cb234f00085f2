# @TEST-DOC: What became of connections is in Zeek's metrics.
# @TEST-EXEC: make_capture.py mixed 100 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT | sort >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/telemetry

redef TrafficLLM::min_packets = 3;

event zeek_done()
	{
	for ( _, m in Telemetry::collect_metrics("zeek_trafficllm", "*") )
		if ( |m$label_values| == 0 || /botnet_detection/ in cat(m$label_values) )
			print fmt("%s %s %s %.0f", m$opts$name, m$label_names, m$label_values, m$value);

	for ( _, h in Telemetry::collect_histogram_metrics("zeek_trafficllm", "*") )
		print fmt("%s %.0f", h$opts$name, h$observations);
	}
