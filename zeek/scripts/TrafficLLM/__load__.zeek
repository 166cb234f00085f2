##! Verdicts on all connections: events, columns in conn.log, trafficllm.log and notices.

@load ./main
@load ./conn-log
@load ./log
@load ./notice
