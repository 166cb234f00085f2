# @TEST-DOC: A plugin that is installed and not asked for does nothing.
# @TEST-EXEC: make_capture.py http 10 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

event connection_state_remove(c: connection)
	{
	print c?$trafficllm;
	}
