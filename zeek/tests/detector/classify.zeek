# @TEST-DOC: Asking for a verdict now: within "when" and without, early, late, and too late.
# @TEST-EXEC: make_capture.py http 3 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

redef TrafficLLM::tasks = { "botnet_detection" };

global connections: vector of connection;

function show(what: string, verdicts: TrafficLLM::Verdicts)
	{
	for ( _, v in verdicts )
		print fmt("%s: %s %s after %d packets", what, v$task, v$label, v$packets);

	if ( |verdicts| == 0 )
		print what, "none";
	}

event new_connection(c: connection)
	{
	connections += c;
	# After the first packet.
	show("new", trafficllm_classify(c));
	}

event http_request(c: connection, method: string, original_URI: string, unescaped_URI: string, version: string)
	{
	show("request", trafficllm_classify(c));
	}

event http_reply(c: connection, version: string, code: count, reason: string)
	{
	when [c] ( local verdicts = trafficllm_classify(c) )
		{
		show("reply", verdicts);
		}
	timeout 1 sec
		{
		print "timeout";
		}
	}

event connection_state_remove(c: connection)
	{
	show("removed", c$trafficllm$verdicts);
	show("asked again", trafficllm_classify(c));
	}

event zeek_done()
	{
	for ( _, c in connections )
		show("too late", trafficllm_classify(c));
	}
