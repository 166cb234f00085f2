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

	## How long a line of conn.log waits at most for verdicts that are under way; with 0 no line waits.
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

# What Zeek holds lines back for at most: this can be made longer and not shorter, and is no less than 200 ms.
global longest_wait = 0sec;

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

	if ( c$trafficllm$waiting > 0 && conn_wait > 0sec && conn_waiting_max > 0 )
		waiting[c$uid] = Waiting($info=c$conn);
	}

function let_go(uid: string)
	{
	local line = waiting[uid];
	delete waiting[uid];

	if ( line?$token )
		Log::delay_finish(Conn::LOG, line$info, line$token);
	}

# A line has waited for less time than Zeek would let it.
event waited_enough(uid: string)
	{
	if ( uid in waiting )
		let_go(uid);
	}

function line_goes(rec: Conn::Info, id: Log::ID): bool
	{
	delete waiting[rec$uid];
	return T;
	}

# After those of others: one that keeps a line out of the log ends the hook before this.
hook Log::log_stream_policy(rec: any, id: Log::ID) &priority=-100
	{
	if ( id != Conn::LOG || |waiting| == 0 )
		return;

	local info = rec as Conn::Info;

	if ( info$uid !in waiting )
		return;

	waiting[info$uid]$token = Log::delay(id, info, line_goes);

	if ( conn_wait < longest_wait )
		schedule conn_wait { waited_enough(info$uid) };
	}

function release(c: connection)
	{
	if ( c$uid !in waiting )
		return;

	local line = waiting[c$uid];
	# Now: the line may go before the last answer is there.
	add_verdicts(line$info, c$trafficllm$verdicts);

	# Another question about the same connection may be open still.
	if ( c$trafficllm$waiting > 0 )
		return;

	let_go(c$uid);
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

event TrafficLLM::settled(c: connection)
	{
	release(c);
	}

function set_conn_wait(name: string, value: interval): interval
	{
	if ( value > longest_wait )
		{
		Log::set_max_delay_interval(Conn::LOG, value);
		longest_wait = value;
		}

	return value;
	}

function set_conn_waiting_max(name: string, value: count): count
	{
	# Zeek itself does not take 0; then no line waits any more.
	Log::set_max_delay_queue_size(Conn::LOG, value > 0 ? value : 1);
	return value;
	}

# After the stream was made.
event zeek_init() &priority=-5
	{
	longest_wait = Log::default_max_delay_interval;
	set_conn_wait("", conn_wait);
	set_conn_waiting_max("", conn_waiting_max);
	Option::set_change_handler("TrafficLLM::conn_wait", set_conn_wait);
	Option::set_change_handler("TrafficLLM::conn_waiting_max", set_conn_waiting_max);
	}
