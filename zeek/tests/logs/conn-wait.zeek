# @TEST-DOC: Where Zeek does not wait for verdicts, lines of conn.log do: all are written, once, and none without the labels that came in time.
# @TEST-EXEC: make_capture.py mixed 400 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: wait_report.sh >>output
# @TEST-EXEC: echo "no time to wait" >>output
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::conn_wait=0sec TrafficLLM::workers=0 TrafficLLM::shutdown_wait=0sec >>output
# @TEST-EXEC: wait_report.sh >>output
# @TEST-EXEC: echo "no verdict comes" >>output
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::workers=0 TrafficLLM::shutdown_wait=0sec >>output
# @TEST-EXEC: wait_report.sh >>output
# @TEST-EXEC: echo "none may wait" >>output
# @TEST-EXEC: zeek -C -r in.pcap %INPUT TrafficLLM::conn_waiting_max=0 TrafficLLM::workers=0 TrafficLLM::shutdown_wait=0sec >>output
# @TEST-EXEC: wait_report.sh >>output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/conn-log

redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::shutdown_wait = 30sec;
redef TrafficLLM::conn_wait = 1hr;
redef TrafficLLM::conn_abstained = T;
redef TrafficLLM::settings += { "engine.queue_flows=2048" };

event zeek_done() &priority=-20
	{
	print fmt("%d lines wait", Log::get_delay_queue_size(Conn::LOG));
	}
