# @TEST-DOC: Where the system gives no threads Zeek warns and works; a change later, when it gives some, is taken, and one that needs none goes on.
# @TEST-EXEC: make_capture.py http 100 in.pcap 500
# @TEST-EXEC: cc -shared -fPIC -o no_threads.so $SCRIPTS/../unit/no_threads.c -ldl
# @TEST-EXEC: LD_PRELOAD=./no_threads.so timeout 120 zeek -C -r in.pcap %INPUT >output 2>messages
# @TEST-EXEC: grep -c "TrafficLLM: .*Resource temporarily unavailable" messages >>output
# @TEST-EXEC: btest-diff output

@load TrafficLLM/main
@load base/frameworks/config

global connections = 0;
global judged = 0;

event zeek_init() &priority=10
	{
	setenv("NO_THREADS", "1");
	}

event zeek_init() &priority=-10
	{
	setenv("NO_THREADS", "0");
	}

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	print fmt("after %d connections: %s", connections, problem == "" ? "taken" : "refused");
	}

event connection_state_remove(c: connection)
	{
	if ( c?$trafficllm && |c$trafficllm$verdicts| > 0 )
		++judged;

	switch ( ++connections )
		{
		case 10:
			# Now there are threads; this one is not to need any.
			Config::set_value("TrafficLLM::workers", 0);
			break;
		case 40:
			# The thread that ends engines is not there yet, and cannot be.
			setenv("NO_THREADS", "1");
			Config::set_value("TrafficLLM::min_packets", 2);
			break;
		case 70:
			# The engine itself needs threads.
			Config::set_value("TrafficLLM::workers", 2);
			break;
		case 90:
			setenv("NO_THREADS", "0");
			break;
		}
	}

event zeek_done()
	{
	print fmt("%d connections, some judged: %s", connections, judged > 50);
	}
