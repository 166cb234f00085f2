##! trafficllm.log: one line per verdict.

@load ./main

module TrafficLLM;

export {
	redef enum Log::ID += { LOG };

	## Decides what goes into the log; ``break`` leaves a line out.
	global log_policy: Log::PolicyHook;

	## A line of the log.
	type Info: record {
		## When the verdict came.
		ts: time &log;
		## The connection's unique identifier.
		uid: string &log;
		## The connection's addresses and ports.
		id: conn_id &log;
		## Name of the task.
		task: string &log;
		## The best label.
		label: string &log;
		## The calibrated probability of the label.
		score: double &log;
		## Whether the score is below the task's threshold: the model does not know.
		abstained: bool &log;
		## Packets that the connection had so far.
		packets: count &log;
		## Time from submission to the verdict.
		latency: interval &log;
		## Identity of the model.
		model: string &log;
		## Of a head: why, in its words.
		evidence: string &log &optional;
		## Of a head: why it has no verdict.
		reason: string &log &optional;
	};

	## Whether verdicts that abstained are logged.
	option log_abstained = T;

	## Generated with each line.
	global log_trafficllm: event(rec: Info);
}

event zeek_init() &priority=5
	{
	Log::create_stream(TrafficLLM::LOG, [$columns=Info, $ev=log_trafficllm, $path="trafficllm", $policy=log_policy]);
	}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	if ( v$abstained && ! log_abstained )
		return;

	local line = Info($ts=network_time(), $uid=c$uid, $id=c$id, $task=v$task, $label=v$label, $score=v$score,
	                  $abstained=v$abstained, $packets=v$packets, $latency=v$latency, $model=v$model);

	if ( v?$evidence )
		line$evidence = v$evidence;

	if ( v?$reason )
		line$reason = v$reason;

	Log::write(TrafficLLM::LOG, line);
	}
