# @TEST-DOC: Lines of conn.log wait as long as they are told, also less than the 200 ms that are the least that Zeek itself knows; shorter while Zeek runs, too.
# @TEST-EXEC: make_capture.py http 18000 in.pcap
# @TEST-EXEC: zeek -C -r in.pcap %INPUT >output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/conn-log
@load base/frameworks/config

redef TrafficLLM::tasks = { "botnet_detection" };
redef TrafficLLM::workers = 0;
redef TrafficLLM::trace_wait = 0sec;
redef TrafficLLM::shutdown_wait = 0sec;
redef TrafficLLM::conn_wait = 50msec;
redef TrafficLLM::settings += { "engine.queue_flows=65536" };

# A connection ends each millisecond, and none is judged: so many lines wait as they wait milliseconds.
global removed = 0;
global most = 0;

event connection_state_remove(c: connection) &priority=-20
	{
	++removed;

	if ( zeek_is_terminating() )
		return;

	local lines = int_to_count(Log::get_delay_queue_size(Conn::LOG));

	if ( lines > most )
		most = lines;

	switch ( removed )
		{
		case 4000:
			print fmt("50 ms: %s", most > 40 && most < 70);
			Config::set_value("TrafficLLM::conn_wait", 500msec);
			break;
		case 8000:
			print fmt("500 ms: %s", most > 450 && most < 550);
			Config::set_value("TrafficLLM::conn_wait", 100msec);
			break;
		case 9000:
			most = 0;
			break;
		case 12000:
			print fmt("100 ms: %s", most > 90 && most < 120);
			break;
		}
	}
