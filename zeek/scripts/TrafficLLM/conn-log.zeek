##! Verdicts in conn.log.
##!
##! Most connections end before the model has seen all that it looks at, and are judged at their end. While packets come from an interface
##! Zeek does not wait for that, but their lines in conn.log do, for a moment.

@load base/protocols/conn
@load ./main

module TrafficLLM;

export {
	## Tasks whose verdicts go to conn.log, in this order; none for all, in the model's order.
	option conn_tasks: vector of string = vector();

	## Whether verdicts that abstained go to conn.log.
	option conn_abstained = F;

	## How long a line of conn.log waits at most for verdicts that are under way. It can be made longer while Zeek runs, not shorter than
	## it was; with 0 no line waits.
	option conn_wait = 1sec;

	## How many lines of conn.log wait at most. The oldest gives way, without verdicts.
	option conn_waiting_max = 20000;
}

redef record Conn::Info += {
	## The tasks that have a verdict on the connection.
	trafficllm_task: vector of string &log &optional;
	## Their labels, in the same order.
	trafficllm_label: vector of string &log &optional;
	## Their scores, in the same order.
	trafficllm_score: vector of double &log &optional;
};

# A line that waits.
type Waiting: record {
	info: Conn::Info;
	token: Log::DelayToken &optional;
};

# By the connection's unique identifier.
global waiting: table[string] of Waiting &create_expire=1hr;

function add_verdict(info: Conn::Info, v: Verdict)
	{
	if ( v$abstained && ! conn_abstained )
		return;

	info$trafficllm_task += v$task;
	info$trafficllm_label += v$label;
	info$trafficllm_score += v$score;
	}

function add_verdicts(info: Conn::Info, verdicts: Verdicts)
	{
	info$trafficllm_task = vector();
	info$trafficllm_label = vector();
	info$trafficllm_score = vector();

	if ( |conn_tasks| == 0 )
		{
		for ( _, any_verdict in verdicts )
			add_verdict(info, any_verdict);
		}
	else
		{
		for ( _, task in conn_tasks )
			for ( _, verdict in verdicts )
				if ( verdict$task == task )
					add_verdict(info, verdict);
		}

	if ( |info$trafficllm_task| == 0 )
		{
		# Nothing to say is no empty list.
		delete info$trafficllm_task;
		delete info$trafficllm_label;
		delete info$trafficllm_score;
		}
	}

# The line is made at priority 5 and written at -5.
event connection_state_remove(c: connection)
	{
	if ( ! c?$trafficllm || ! c?$conn )
		return;

	add_verdicts(c$conn, c$trafficllm$verdicts);

	if ( c$trafficllm$waiting > 0 && conn_wait > 0sec )
		waiting[c$uid] = Waiting($info=c$conn);
	}

function line_goes(rec: Conn::Info, id: Log::ID): bool
	{
	delete waiting[rec$uid];
	return T;
	}

hook Log::log_stream_policy(rec: any, id: Log::ID)
	{
	if ( id != Conn::LOG || |waiting| == 0 )
		return;

	local info = rec as Conn::Info;

	if ( info$uid in waiting )
		waiting[info$uid]$token = Log::delay(id, info, line_goes);
	}

function release(c: connection)
	{
	# Another question about the same connection may be open still.
	if ( c$uid !in waiting || c$trafficllm$waiting > 0 )
		return;

	local line = waiting[c$uid];
	add_verdicts(line$info, c$trafficllm$verdicts);

	if ( line?$token )
		Log::delay_finish(Conn::LOG, line$info, line$token);
	else
		delete waiting[c$uid];
	}

# All verdicts of an answer are there with the first.
event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	release(c);
	}

event trafficllm_unjudged(c: connection, reason: string)
	{
	release(c);
	}

function set_conn_wait(name: string, value: interval): interval
	{
	if ( value > 0sec )
		Log::set_max_delay_interval(Conn::LOG, value);

	return value;
	}

function set_conn_waiting_max(name: string, value: count): count
	{
	Log::set_max_delay_queue_size(Conn::LOG, value);
	return value;
	}

# After the stream was made.
event zeek_init() &priority=-5
	{
	set_conn_wait("", conn_wait);
	set_conn_waiting_max("", conn_waiting_max);
	Option::set_change_handler("TrafficLLM::conn_wait", set_conn_wait);
	Option::set_change_handler("TrafficLLM::conn_waiting_max", set_conn_waiting_max);
	}
