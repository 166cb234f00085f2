# @TEST-DOC: As on an interface, where nothing waits: "when" gets the verdicts later, a plain call those that there are.
# @TEST-EXEC: make_capture.py long 3 in.pcap
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
	timeout 10 sec
		{
		print "timeout";
		}
	}

event connection_state_remove(c: connection)
	{
	print |c$trafficllm$verdicts|;
	}

event zeek_done()
	{
	print fmt("%d answers for 3 questions, %d at once", answers, at_once);
	}
