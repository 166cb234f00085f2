##! Verdicts of a language model on connections: the events :zeek:see:`trafficllm_verdict` and :zeek:see:`trafficllm_unjudged`, the
##! function :zeek:see:`trafficllm_classify`, and the options. In a cluster each worker judges its own connections.

@load base/frameworks/cluster

module TrafficLLM;

export {
	## Whether connections that begin now are looked at.
	option enabled = T;

	## Path of the model's bundle; empty for the one that is compiled into the library. A change opens the new bundle beside the packets
	## and swaps the model when it has proved good; otherwise the model before goes on. Setting the same path again reads it again.
	option bundle = "";

	## Tasks of the model that are asked for; none for all. Each costs time.
	option tasks: set[string] = {};

	## Threads that judge, in each process that sees packets. With 0 nothing is judged while packets come from an interface.
	option workers = 1;

	## Connections with fewer packets than this are not judged.
	option min_packets = 1;

	## Further settings of the library, each as "key=value", for example "engine.queue_flows=4096". They win over the options above.
	option settings: set[string] = {};

	## Reading a capture file, Zeek waits at most this long for each verdict, so that the same file gives the same logs. After one that did
	## not come in time it waits for none until one comes. With 0 it does not wait, as it never does while packets come from an interface.
	option trace_wait = 10sec;

	## When it ends, Zeek waits at most this long for all verdicts that are under way; those that are there already it takes in any case.
	option shutdown_wait = 1sec;
}

# Whether this process sees packets.
function sees_packets(): bool
	{
	return ! Cluster::is_enabled() || Cluster::local_node_type() == Cluster::WORKER;
	}

function library_settings(): string_vec
	{
	local values: table[string] of string;
	local names: string_vec;
	local result: string_vec;

	for ( task in tasks )
		names += task;

	values["engine.tasks"] = join_string_vec(sort(names, strcmp), ",");
	values["engine.workers"] = cat(workers);
	values["flow.min_packets"] = cat(min_packets);

	for ( setting in settings )
		{
		local parts = split_string1(setting, /=/);

		if ( |parts| != 2 )
			{
			Reporter::warning(fmt("TrafficLLM::settings: expected key=value, found %s", setting));
			next;
			}

		values[strip(parts[0])] = strip(parts[1]);
		}

	for ( key, value in values )
		{
		result += key;
		result += value;
		}

	return result;
	}

function tune()
	{
	__tune(enabled, trace_wait, shutdown_wait);
	}

# Of changes that are made together only the last state counts.
global change_under_way = F;

event change()
	{
	change_under_way = F;
	__configure(bundle, library_settings(), F);
	}

event change_waits()
	{
	tune();
	}

# An option has its new value only after its handlers have run.
function ask_for_change()
	{
	if ( ! change_under_way )
		{
		change_under_way = T;
		event change();
		}
	}

function change_string(name: string, value: string): string
	{
	ask_for_change();
	return value;
	}

function change_set(name: string, value: set[string]): set[string]
	{
	ask_for_change();
	return value;
	}

function change_count(name: string, value: count): count
	{
	ask_for_change();
	return value;
	}

function change_bool(name: string, value: bool): bool
	{
	event change_waits();
	return value;
	}

function change_interval(name: string, value: interval): interval
	{
	event change_waits();
	return value;
	}

event zeek_init()
	{
	if ( ! sees_packets() )
		return;

	tune();
	# No packet has come yet: the first ones find the model open.
	__configure(bundle, library_settings(), T);

	Option::set_change_handler("TrafficLLM::bundle", change_string);
	Option::set_change_handler("TrafficLLM::tasks", change_set);
	Option::set_change_handler("TrafficLLM::settings", change_set);
	Option::set_change_handler("TrafficLLM::workers", change_count);
	Option::set_change_handler("TrafficLLM::min_packets", change_count);
	Option::set_change_handler("TrafficLLM::enabled", change_bool);
	Option::set_change_handler("TrafficLLM::trace_wait", change_interval);
	Option::set_change_handler("TrafficLLM::shutdown_wait", change_interval);
	}

event net_done(t: time)
	{
	__finish();
	}
