//! Between two networks: flows are dropped by their verdicts.

use std::collections::HashMap;

use crate::daemon::{SHORT_FLOWS, hold_records};
use crate::host::{Live, Setup, hosts};
use crate::network::{Wire, apart, pair};
use crate::traffic::{self, Ends, Packet};

const BRIDGE: &str = "\
runmode: workers
af-packet:
  - interface: left1
    threads: 1
    cluster-id: 98
    cluster-type: cluster_flow
    copy-mode: ips
    copy-iface: right0
  - interface: right0
    threads: 1
    cluster-id: 97
    cluster-type: cluster_flow
    copy-mode: ips
    copy-iface: left1
";

fn count(packets: &[Packet]) -> HashMap<Ends, usize> {
    let mut found = HashMap::new();
    for packet in packets {
        if let Some(ends) = packet.ends() {
            *found.entry(ends).or_default() += 1;
        }
    }
    found
}

/// The packets of each flow, in their order.
fn in_order(packets: &[Packet]) -> HashMap<Ends, Vec<&[u8]>> {
    let mut found: HashMap<Ends, Vec<&[u8]>> = HashMap::new();
    for packet in packets {
        if let Some(ends) = packet.ends() {
            found.entry(ends).or_default().push(&packet.bytes);
        }
    }
    found
}

/// The packets, one of each flow in turn.
fn in_turn(packets: &[Packet]) -> Vec<Packet> {
    let mut places: HashMap<Ends, usize> = HashMap::new();
    let place = |packet: &Packet| {
        let place = places.entry(packet.ends().unwrap()).or_default();
        *place += 1;
        *place
    };
    let mut placed: Vec<(usize, &Packet)> = {
        let places: Vec<usize> = packets.iter().map(place).collect();
        places.into_iter().zip(packets).collect()
    };
    placed.sort_by_key(|&(place, _)| place);
    placed
        .into_iter()
        .map(|(_, packet)| packet.clone())
        .collect()
}

#[test]
fn flows_are_dropped_by_verdict() {
    for host in hosts() {
        apart(|| {
            pair("left0", "left1");
            pair("right0", "right1");
            // One rule by score, one by label; flows to the third port are judged as well, and pass.
            let setup = Setup::new()
                .key("packets", 4)
                .rules("drop tcp any any <> any 8080 (msg:\"score\"; trafficllm.score:botnet_detection,>=0.0; sid:1;)")
                .rules("drop tcp any any -> any 2222 (msg:\"label\"; trafficllm.label:malicious_doh_detection,non-doh-https; sid:2;)")
                .rules("drop tcp any any -> any 2525 (msg:\"never\"; trafficllm.score:botnet_detection,<0.0001; sid:3;)")
                .yaml(SHORT_FLOWS)
                .yaml(BRIDGE);
            let live = Live::capture(&host, &setup, &["--af-packet"]);
            let mut packets: Vec<Packet> = Vec::new();
            for name in ["http.pcap", "ssh.pcap", "smtp.pcap"] {
                packets.extend(
                    traffic::read(&traffic::capture(name))
                        .into_iter()
                        .filter(|packet| packet.ends().is_some()),
                );
            }
            let (wire, far) = (Wire::on("left0"), Wire::on("right1"));
            // Slowly, and a packet of each flow in turn: a verdict takes some milliseconds, and packets pass until it is there.
            let packets = in_turn(&packets);
            wire.send_at(&packets, 200);
            let sent = count(&packets);
            live.until("all flows have a record", || {
                live.eve()
                    .iter()
                    .filter(|record| record["event_type"] == "flow")
                    .count()
                    == sent.len()
            });
            let arrived: Vec<Packet> = far
                .received()
                .into_iter()
                .map(|bytes| Packet { time_us: 0, bytes })
                .collect();
            let whole = in_order(&arrived);
            let arrived = count(&arrived);
            let ran = live.stop().with_plugin();
            assert!(ran.log.contains("IPS"), "{}", ran.log);
            let order = in_order(&packets);
            let (mut dropped, mut passed) = (0, 0);
            for (ends, &packets) in &sent {
                let came = arrived.get(ends).copied().unwrap_or(0);
                let port = |port: u16| ends.0.iter().any(|end| end.ends_with(&port.to_be_bytes()));
                if port(2525) {
                    assert_eq!(
                        came, packets,
                        "a flow that no rule is for passes whole: {ends:?}"
                    );
                    passed += 1;
                } else {
                    // The first packets pass: there is no verdict on them.
                    assert!(came >= 3, "{came} of {packets} packets: {ends:?}");
                    assert!(
                        came < packets,
                        "all {packets} packets of a flow passed that is to be dropped: {ends:?}"
                    );
                    dropped += 1;
                    if port(8080) {
                        // The rule is for both directions and every score: behind the verdict nothing of the flow arrives any more.
                        assert!(
                            order[ends].starts_with(&whole[ends]),
                            "a packet of {ends:?} passed behind one that was dropped"
                        );
                    }
                }
            }
            assert!(
                dropped > 5 && passed > 2,
                "{dropped} dropped, {passed} passed"
            );
            eprintln!(
                "Suricata {}: {dropped} flows dropped by verdict, {passed} passed",
                host.version
            );
            let drops = ran.records("drop");
            assert!(
                !drops.is_empty()
                    && drops.iter().all(|drop| [1, 2]
                        .contains(&drop["alert"]["signature_id"].as_u64().unwrap_or(1))),
                "{drops:?}"
            );
            let alerts = ran.records("alert");
            assert!(
                alerts
                    .iter()
                    .all(|alert| alert["alert"]["action"] == "blocked"
                        && alert["trafficllm"]["state"] == "done")
            );
            hold_records(&ran);
        });
    }
}
