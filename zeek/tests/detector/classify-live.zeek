# @TEST-DOC: As on an interface, where nothing waits: "when" gets the verdicts later, a plain call those that there are.
# @TEST-EXEC: make_capture.py long 6 in.pcap 500
# @TEST-EXEC: zeek -C --pseudo-realtime -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::tasks = { "botnet_detection" };

global answers = 0;
global at_once = 0;

event connection_established(c: connection)
	{
	at_once += |trafficllm_classify(c)|;

	when [c] ( local verdicts = trafficllm_classify(c) )
		{
		answers += |verdicts|;
		}
	timeout 1hr
		{
		# Only when Zeek ends.
		}
	}

event zeek_done()
	{
	# The last connections may still be under way.
	print fmt("answers to most of 6 questions: %s, %d at once", answers >= 3, at_once);
	}
