# @TEST-DOC: In a cluster the workers judge, the logger writes, the others open no model; an option set on the manager changes on workers.
# @TEST-PORT: MANAGER_PORT
# @TEST-PORT: LOGGER_PORT
# @TEST-PORT: WORKER1_PORT
# @TEST-PORT: WORKER2_PORT
# @TEST-EXEC: make_capture.py mixed 40 1.pcap
# @TEST-EXEC: make_capture.py http 30 2.pcap
# @TEST-EXEC: cp $SCRIPTS/cluster.zeek cluster-layout.zeek
# @TEST-EXEC: btest-bg-run manager "ZEEKPATH=$(zeek-config --zeekpath):.. CLUSTER_NODE=manager zeek %INPUT"
# @TEST-EXEC: btest-bg-run logger "ZEEKPATH=$(zeek-config --zeekpath):.. CLUSTER_NODE=logger zeek %INPUT"
# @TEST-EXEC: btest-bg-run worker-1 "ZEEKPATH=$(zeek-config --zeekpath):.. CLUSTER_NODE=worker-1 zeek -C -r ../1.pcap %INPUT"
# @TEST-EXEC: btest-bg-run worker-2 "ZEEKPATH=$(zeek-config --zeekpath):.. CLUSTER_NODE=worker-2 zeek -C -r ../2.pcap %INPUT"
# @TEST-EXEC: btest-bg-wait 60
# @TEST-EXEC: cat logger/trafficllm*.log | zeek-cut uid | wc -l >output
# @TEST-EXEC: cat logger/conn*.log | zeek-cut uid | wc -l >>output
# @TEST-EXEC: cat */told.txt | sort | uniq -c >>output
# @TEST-EXEC: ls manager logger worker-1 worker-2 | grep -c '^trafficllm' >>output
# @TEST-EXEC: btest-diff output

@load TrafficLLM
@load base/frameworks/config

redef TrafficLLM::conn_abstained = T;

global told = open("told.txt");
global up: set[string];
global gone = 0;

function go_on()
	{
	if ( "logger" in up && |TrafficLLM::tasks| == 1 )
		continue_processing();
	}

# The packets wait until the logger is there and the manager's change has come.
event zeek_init() &priority=-20
	{
	if ( Cluster::local_node_type() == Cluster::WORKER )
		suspend_processing();
	}

event trafficllm_changed(bundle: string, model: string, problem: string)
	{
	print told, fmt("%s opened a model, asked for %d tasks", Cluster::local_node_type() == Cluster::WORKER ? "a worker" : "another",
	                |TrafficLLM::tasks|);
	go_on();
	}

event Cluster::node_up(name: string, id: string) &priority=-20
	{
	add up[name];

	if ( Cluster::local_node_type() == Cluster::MANAGER )
		{
		if ( "worker-1" in up && "worker-2" in up )
			Config::set_value("TrafficLLM::tasks", set("botnet_detection"));
		}
	else
		go_on();
	}

event Pcap::file_done(path: string)
	{
	terminate();
	}

event Cluster::node_down(name: string, id: string)
	{
	if ( /^worker/ in name && ++gone == 2 )
		terminate();
	}
