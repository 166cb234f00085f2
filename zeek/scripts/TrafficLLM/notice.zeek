##! Notices about verdicts that an analyst should see.

@load base/frameworks/notice
@load ./main

module TrafficLLM;

export {
	redef enum Notice::Type += {
		## The model gives a connection a label that is not harmless, and is sure enough of it.
		Suspicious
	};

	## Tasks whose verdicts can be suspicious. The default are those of the bundles that come with the library; others have tasks of their
	## own.
	option notice_tasks: set[string] = {
		"apt_attack_detection",
		"botnet_detection",
		"malicious_doh_detection",
		"malware_traffic_detection",
		"web_attack_detection",
		"web_attack_http"
	};

	## Labels that are never suspicious.
	option harmless_labels: set[string] = {
		"benign",
		"benign-dns",
		"benign-doh",
		"non-doh-https",
		"normal",
		# What people do, in malware_traffic_detection.
		"BitTorrent", "FTP", "Facetime", "Gmail", "MySQL", "Outlook", "SMB", "Skype", "Weibo", "WorldOfWarcraft"
	};

	## Verdicts with a lower score raise no notice; neither do those that abstained.
	option notice_score = 0.95;

	## For how long the same label between the same two hosts raises no second notice.
	option notice_suppress = 1hr;
}

event trafficllm_verdict(c: connection, v: TrafficLLM::Verdict)
	{
	if ( v$abstained || v$score < notice_score || v$task !in notice_tasks || v$label in harmless_labels )
		return;

	NOTICE([$note=Suspicious, $conn=c,
	        $msg=fmt("%s: %s with score %.4f after %d packets", v$task, v$label, v$score, v$packets),
	        $sub=fmt("model %s", v$model),
	        $identifier=cat(c$id$orig_h, c$id$resp_h, v$task, v$label),
	        $suppress_for=notice_suppress]);
	}
