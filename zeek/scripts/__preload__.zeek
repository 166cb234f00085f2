##! What the plugin's own functions and events are declared with.

module TrafficLLM;

export {
	## What the model says about one connection in one task.
	type Verdict: record {
		## Name of the task.
		task: string;
		## The best label of the task.
		label: string;
		## The calibrated probability of the label, 0 to 1.
		score: double;
		## Whether the score is below the task's threshold: the model does not know.
		abstained: bool;
		## Packets that the connection had so far.
		packets: count;
		## Time from submission to the verdict.
		latency: interval;
		## Identity of the model.
		model: string;
		## Of a head: why, in its words.
		evidence: string &optional;
		## Of a head: why it has no verdict, as "fuel" or "switched_off".
		reason: string &optional;
	};

	## The verdicts that came together, one for each task and each head.
	type Verdicts: vector of Verdict;

	## What is known about a connection.
	type Flow: record {
		## Verdicts that are under way: so many times the model was asked and has not answered.
		waiting: count &default=0;
		## The latest verdicts.
		verdicts: Verdicts &default=Verdicts();
	};
}

redef record connection += {
	## Verdicts of a model on the connection; there once the model was asked.
	trafficllm: TrafficLLM::Flow &optional;
};
