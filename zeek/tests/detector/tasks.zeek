# @TEST-DOC: Chosen tasks only; short connections are left out; both can be changed while connections are under way.
# @TEST-EXEC: make_capture.py mixed 60 in.pcap 500
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config

redef TrafficLLM::tasks = { "botnet_detection" };
redef TrafficLLM::min_packets = 3;

global connections = 0;
global short = 0;
global seen: table[string] of count &default=0;

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	++seen[v$task];

	if ( v$packets < TrafficLLM::min_packets )
		++short;
	}

event connection_state_remove(c: connection)
	{
	if ( ++connections == 30 )
		{
		print fmt("%d connections, %d task, %d short ones", connections, |seen|, short);
		Config::set_value("TrafficLLM::tasks", set("malicious_doh_detection", "iot_device_classification"));
		Config::set_value("TrafficLLM::min_packets", 1);
		}
	}

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	print "changed", |model|, problem;
	}

event zeek_done()
	{
	local names: string_vec;

	for ( task in seen )
		names += task;

	print fmt("%d connections, tasks %s, short ones %s", connections, sort(names, strcmp), short > 0);
	}
