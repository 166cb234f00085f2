# @TEST-DOC: Engines that were replaced and do not end hold up no change, and there are not more and more of them.
# @TEST-EXEC: make_capture.py http 300 in.pcap 500
# @TEST-EXEC: FAULTY_STOP=1 timeout 120 faulty_zeek.sh -C -r in.pcap %INPUT >output 2>messages
# @TEST-EXEC: ! grep "not open yet" messages
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config

redef TrafficLLM::tasks = { "botnet_detection" };

global connections = 0;
global judged = 0;
global results: table[string] of count &default=0;

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	++results[problem];
	}

event connection_state_remove(c: connection)
	{
	if ( |c$trafficllm$verdicts| > 0 )
		++judged;

	if ( ++connections % 10 == 0 && connections <= 200 )
		Config::set_value("TrafficLLM::min_packets", 1 + connections / 10 % 2);
	}

event zeek_done()
	{
	print connections, judged, results;
	}
