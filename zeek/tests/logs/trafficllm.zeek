# @TEST-DOC: trafficllm.log has a line for each verdict; a policy hook and an option leave lines out.
# @TEST-EXEC: make_capture.py mixed 20 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT
# @TEST-EXEC: zeek-cut -n latency <trafficllm.log >output
# @TEST-EXEC: btest-diff output
# @TEST-EXEC: test "$(zeek-cut latency <trafficllm.log | grep -vc '^0\.[0-9]*$')" = 0
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::log_abstained=F
# @TEST-EXEC: test "$(zeek-cut abstained <trafficllm.log | sort -u)" = F

@load TrafficLLM/log

hook TrafficLLM::log_policy(rec: TrafficLLM::Info, id: Log::ID, filter: Log::Filter)
	{
	if ( rec$task == "iot_device_classification" )
		break;
	}
