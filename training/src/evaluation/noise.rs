//! Flows as a worse place in the network would have seen them.
//!
//! Everything is done to the kept packets of a flow: the tap loses, reorders or cuts what it sees, while the hosts' conversation stays as it
//! was. The side whose packet is seen first becomes the initiator, as it would in the flow table.

use serde::{Deserialize, Serialize};
use trafficllm_traffic::{Direction, Flow, PacketRecord};

use crate::random::Random;

/// What is done to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// The tap misses each packet with this probability; of a flow at least one is seen.
    Loss(f64),
    /// Each packet changes places with the next one with this probability; the times of arrival stay.
    Reorder(f64),
    /// Each packet is late by a time drawn evenly between nothing and this many microseconds; none overtakes another.
    DelayUs(u32),
    /// Of each packet's payload at most so many bytes are kept; its length in the headers stays.
    TruncateBytes(usize),
}

impl Noise {
    /// What an evaluation goes through.
    pub const ALL: [Self; 6] = [
        Self::Loss(0.05),
        Self::Loss(0.10),
        Self::Loss(0.20),
        Self::Reorder(0.10),
        Self::DelayUs(20_000),
        Self::TruncateBytes(32),
    ];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Loss(share) => format!("loss {:.0} %", 100.0 * share),
            Self::Reorder(share) => format!("reorder {:.0} %", 100.0 * share),
            Self::DelayUs(most_us) => format!("delay 0-{} ms", f64::from(most_us) / 1_000.0),
            Self::TruncateBytes(bytes) => format!("payload cut to {bytes} bytes"),
        }
    }

    /// The flow with this done to it.
    #[must_use]
    pub fn apply(self, flow: &Flow, random: &mut Random) -> Flow {
        let mut packets: Vec<(PacketRecord, &[u8])> = flow
            .kept()
            .map(|(record, payload)| (*record, payload))
            .collect();
        match self {
            Self::Loss(share) => lose(&mut packets, share, random),
            Self::Reorder(share) => reorder(&mut packets, share, random),
            Self::DelayUs(most_us) => delay(&mut packets, most_us, random),
            Self::TruncateBytes(bytes) => {
                for (_, payload) in &mut packets {
                    *payload = payload.get(..bytes).unwrap_or(payload);
                }
            }
        }
        rebuilt(flow, &packets)
    }
}

fn lose(packets: &mut Vec<(PacketRecord, &[u8])>, share: f64, random: &mut Random) {
    let seen: Vec<bool> = packets.iter().map(|_| !random.chance(share)).collect();
    // A flow of which nothing is seen is no flow: its first packet is kept.
    let nothing = !seen.contains(&true);
    let mut missed_us = 0_u32;
    let mut place = 0;
    packets.retain_mut(|(record, _)| {
        let kept = seen[place] || (nothing && place == 0);
        place += 1;
        if kept {
            record.gap_us = record.gap_us.saturating_add(missed_us);
            missed_us = 0;
        } else {
            missed_us = missed_us.saturating_add(record.gap_us);
        }
        kept
    });
    if let Some((first, _)) = packets.first_mut() {
        first.gap_us = 0;
    }
}

fn reorder(packets: &mut [(PacketRecord, &[u8])], share: f64, random: &mut Random) {
    let gaps: Vec<u32> = packets.iter().map(|(record, _)| record.gap_us).collect();
    let mut place = 1;
    while place < packets.len() {
        if random.chance(share) {
            packets.swap(place - 1, place);
            // Who has changed places does not go further.
            place += 1;
        }
        place += 1;
    }
    for ((record, _), gap_us) in packets.iter_mut().zip(gaps) {
        record.gap_us = gap_us;
    }
}

fn delay(packets: &mut [(PacketRecord, &[u8])], most_us: u32, random: &mut Random) {
    let (mut sent_us, mut seen_us) = (0_u64, None);
    for (record, _) in packets {
        sent_us += u64::from(record.gap_us);
        let late_us = (random.unit() * f64::from(most_us)) as u64;
        let at_us = (sent_us + late_us).max(seen_us.unwrap_or(0));
        let gap_us = seen_us.map_or(0, |before| at_us - before);
        record.gap_us = u32::try_from(gap_us).unwrap_or(u32::MAX);
        seen_us = Some(at_us);
    }
}

/// The flow with other packets; seen from the side whose packet comes first.
fn rebuilt(flow: &Flow, packets: &[(PacketRecord, &[u8])]) -> Flow {
    let lost = flow.records.len() - packets.len();
    let mut seen = Flow {
        packets: flow.packets.saturating_sub(lost as u64),
        records: Vec::with_capacity(packets.len()),
        payload: trafficllm_traffic::Payload::default(),
        ..flow.clone()
    };
    let turned = packets
        .first()
        .is_some_and(|(record, _)| record.direction == Direction::FromResponder);
    if turned {
        let ends = &mut seen.endpoints;
        std::mem::swap(&mut ends.initiator, &mut ends.responder);
        std::mem::swap(&mut ends.initiator_port, &mut ends.responder_port);
    }
    for &(record, payload) in packets {
        let direction = match (turned, record.direction) {
            (false, direction) => direction,
            (true, Direction::FromInitiator) => Direction::FromResponder,
            (true, Direction::FromResponder) => Direction::FromInitiator,
        };
        seen.push(
            PacketRecord {
                direction,
                ..record
            },
            payload,
        );
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captures::read_flows;
    use crate::synthetic;

    fn flow() -> Flow {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 1);
        let flows = read_flows(&data.path().join("colours/train/blue/blue-0.pcap"));
        flows.expect("flows").swap_remove(0)
    }

    #[test]
    fn nothing_happens_at_no_noise() {
        let flow = flow();
        for none in [
            Noise::Loss(0.0),
            Noise::Reorder(0.0),
            Noise::DelayUs(0),
            Noise::TruncateBytes(1_000),
        ] {
            assert_eq!(none.apply(&flow, &mut Random::new(1)), flow, "{none:?}");
        }
    }

    #[test]
    fn lost_packets_leave_their_time_and_one_packet_always_stays() {
        let flow = flow();
        let total_us: u32 = flow.records.iter().map(|record| record.gap_us).sum();
        let lossy = (0..200).map(|seed| Noise::Loss(0.5).apply(&flow, &mut Random::new(seed)));
        let (mut kept, mut turned) = (0, 0);
        for seen in lossy {
            kept += seen.records.len();
            assert_eq!(seen.packets, seen.records.len() as u64);
            let first = &seen.records[0];
            assert!(first.gap_us == 0 && first.direction == Direction::FromInitiator);
            assert!(seen.records.iter().map(|record| record.gap_us).sum::<u32>() <= total_us);
            if seen.endpoints.initiator == flow.endpoints.responder {
                turned += 1;
                assert_eq!(seen.endpoints.initiator_port, flow.endpoints.responder_port);
            }
        }
        assert!(
            (350..450).contains(&kept),
            "{kept} of 800 packets at a loss of one half"
        );
        assert!(
            turned > 0,
            "some flows are seen from their responder's first packet on"
        );
        let nothing = Noise::Loss(1.0).apply(&flow, &mut Random::new(1));
        assert_eq!(nothing.records.len(), 1);
    }

    #[test]
    fn the_gap_before_a_lost_packet_goes_to_the_next() {
        let flow = flow();
        let gaps =
            |flow: &Flow| -> Vec<u32> { flow.records.iter().map(|record| record.gap_us).collect() };
        assert_eq!(gaps(&flow), [0, 20_000, 20_000, 20_000]);
        let without_third = (0..500)
            .map(|seed| Noise::Loss(0.3).apply(&flow, &mut Random::new(seed)))
            .filter(|seen| seen.records.len() == 3)
            .any(|seen| gaps(&seen) == [0, 20_000, 40_000]);
        assert!(without_third);
    }

    #[test]
    fn reordering_moves_packets_and_not_times() {
        let flow = flow();
        let seen = Noise::Reorder(1.0).apply(&flow, &mut Random::new(1));
        let order: Vec<u32> = seen
            .records
            .iter()
            .map(|record| record.payload_bytes)
            .collect();
        let was: Vec<u32> = flow
            .records
            .iter()
            .map(|record| record.payload_bytes)
            .collect();
        assert_eq!(order, [was[1], was[0], was[3], was[2]]);
        let gaps = seen.records.iter().map(|record| record.gap_us);
        assert!(gaps.eq(flow.records.iter().map(|record| record.gap_us)));
        let payloads: Vec<&[u8]> = seen.kept().map(|(_, payload)| payload).collect();
        assert_eq!(payloads[0], flow.kept().nth(1).expect("a packet").1);
    }

    #[test]
    fn delays_stay_within_their_bound_and_cuts_keep_the_length() {
        let flow = flow();
        for seed in 0..50 {
            let seen = Noise::DelayUs(5_000).apply(&flow, &mut Random::new(seed));
            for (late, was) in seen.records.iter().zip(&flow.records).skip(1) {
                assert!(late.gap_us.abs_diff(was.gap_us) <= 5_000);
            }
            assert!(seen.records != flow.records);
        }
        let cut = Noise::TruncateBytes(5).apply(&flow, &mut Random::new(1));
        for ((record, payload), (was, whole)) in cut.kept().zip(flow.kept()) {
            assert_eq!(payload, &whole[..5]);
            assert_eq!(record.payload_bytes, was.payload_bytes);
        }
    }
}
