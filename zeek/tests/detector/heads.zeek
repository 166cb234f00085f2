# @TEST-DOC: A head of one's own has a verdict beside the tasks', with its evidence, and changes none of theirs.
# @TEST-REQUIRES: test -f "$TRAFFICLLM_HEAD"
# @TEST-EXEC: make_capture.py mixed 20 in.pcap
# @TEST-EXEC: TRAFFICLLM_HEAD= zeek -C -r in.pcap %INPUT >without.txt
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >with.txt
# @TEST-EXEC: grep -v fusion <with.txt >tasks.txt
# @TEST-EXEC: cmp without.txt tasks.txt
# @TEST-EXEC: grep fusion <with.txt >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main

@if ( getenv("TRAFFICLLM_HEAD") != "" )
redef TrafficLLM::settings += { "heads.modules=" + getenv("TRAFFICLLM_HEAD") };
@endif

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	print fmt("%.3f %s %s %.4f %s%s", c$start_time, v$task, v$label, v$score, v$abstained ? "abstained" : "decided",
	          v?$evidence ? ", " + v$evidence : "");
	}
