# Prints every verdict, to be compared with what the command says. Connections last as long as flows of the command do.

@load TrafficLLM/main

redef tcp_inactivity_timeout = 1hr;
redef udp_inactivity_timeout = 1hr;
redef icmp_inactivity_timeout = 1hr;
redef dns_session_timeout = 1hr;
redef tcp_attempt_delay = 1hr;
redef tcp_close_delay = 1min;
redef tcp_reset_delay = 1min;
redef tcp_partial_close_delay = 1hr;
redef tcp_connection_linger = 1hr;

global verdicts = open("verdicts.txt");

event zeek_init()
	{
	enable_raw_output(verdicts);
	}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	print verdicts, fmt("%s %s %d %s %d %.6f %s %s %.4f %s %s %d\n", get_port_transport_proto(c$id$orig_p), c$id$orig_h,
	                    port_to_count(c$id$orig_p), c$id$resp_h, port_to_count(c$id$resp_p), c$start_time, v$task, v$label, v$score,
	                    v$abstained, v$model, v$packets);
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	print verdicts, fmt("unjudged %s\n", reason);
	}
