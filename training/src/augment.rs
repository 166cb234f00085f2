//! What a network may do to a flow between its sender and who captures it: packets are lost, overtaken, held up or cut.
//!
//! [`apply`] changes a decoded flow, for evaluation under noise; `data augment` changes captures by the same [`Noise`], through the
//! same plan, so that both see the same network.

use trafficllm_traffic::{Direction, Flow, PacketRecord};

use crate::data::PreparationError;
use crate::random::Random;

/// Longest delay that may be asked for, in milliseconds: an hour, at which a flow would end.
pub const DELAY_MS_MAX: f64 = 3_600_000.0;

/// How a network changes flows. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Noise {
    /// Probability that a packet is lost, each for itself, in `0..1`.
    pub loss: f64,
    /// Probability that a packet is overtaken by the next one, in `0..=1`. A packet takes part in one exchange at most.
    pub reorder: f64,
    /// Each packet is held up by 0 to this many milliseconds, evenly distributed; none overtakes another by it.
    pub delay_ms: f64,
    /// Most payload bytes of a packet that are captured; its lengths stay true, as they do under a snapshot length.
    pub truncate_bytes: Option<usize>,
}

impl Noise {
    /// Whether a flow is left as it is.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`PreparationError::OutOfRange`] for the first one outside.
    pub fn validate(&self) -> Result<(), PreparationError> {
        let check = |name, value: f64, most: f64, expected| {
            if (0.0..=most).contains(&value) {
                Ok(())
            } else {
                Err(PreparationError::OutOfRange {
                    name,
                    expected,
                    found: value.to_string(),
                })
            }
        };
        check("loss", self.loss, 0.99, "0 to 0.99")?;
        check("reorder", self.reorder, 1.0, "0 to 1")?;
        check("delay-ms", self.delay_ms, DELAY_MS_MAX, "0 to 3600000")
    }
}

/// A packet that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Its index among the packets that were sent.
    pub(crate) packet: usize,
    /// When it is seen, in nanoseconds.
    pub(crate) time_ns: u64,
}

/// Which packets of a flow arrive, in which order and when. At least one does where there is one.
pub(crate) fn plan(times_ns: &[u64], noise: &Noise, random: &mut Random) -> Vec<Arrival> {
    let mut kept: Vec<usize> = (0..times_ns.len())
        .filter(|_| !random.chance(noise.loss))
        .collect();
    if kept.is_empty() && !times_ns.is_empty() {
        kept.push(random.below(times_ns.len()));
    }
    // Packets change places, times stay where they are.
    let mut arrivals: Vec<Arrival> = kept
        .into_iter()
        .map(|packet| Arrival {
            packet,
            time_ns: times_ns[packet],
        })
        .collect();
    let mut place = 0;
    while place + 1 < arrivals.len() {
        if random.chance(noise.reorder) {
            let overtaken = arrivals[place].packet;
            arrivals[place].packet = arrivals[place + 1].packet;
            arrivals[place + 1].packet = overtaken;
            place += 1;
        }
        place += 1;
    }
    if noise.delay_ms > 0.0 {
        let delay_us = (noise.delay_ms * 1_000.0) as usize;
        let mut last_ns = 0;
        for arrival in &mut arrivals {
            let delay_ns = random.below(delay_us + 1) as u64 * 1_000;
            arrival.time_ns = last_ns.max(arrival.time_ns + delay_ns);
            last_ns = arrival.time_ns;
        }
    }
    arrivals
}

/// The flow as it is seen behind such a network. At least one packet stays; where the first to arrive comes from the other side, that
/// side is the initiator, as a flow table would have it.
///
/// Only the kept records can change: what would move up from behind them is not known. `bytes` goes down by the payload of lost
/// records, since their headers' length is not known either. The flow stays one: a flow table may take a SYN that comes behind its
/// answer for a new connection and see two.
#[must_use]
pub fn apply(flow: &Flow, noise: &Noise, random: &mut Random) -> Flow {
    let kept: Vec<(&PacketRecord, &[u8])> = flow.kept().collect();
    let mut now_ns = flow.start_ns;
    let times_ns: Vec<u64> = kept
        .iter()
        .map(|(record, _)| {
            now_ns += u64::from(record.gap_us) * 1_000;
            now_ns
        })
        .collect();
    let arrivals = plan(&times_ns, noise, random);
    let Some(first) = arrivals.first() else {
        return flow.clone();
    };
    let turned = kept[first.packet].0.direction == Direction::FromResponder;
    let payload = |packets: &mut dyn Iterator<Item = usize>| -> u64 {
        packets
            .map(|packet| u64::from(kept[packet].0.payload_bytes))
            .sum()
    };
    let sent_bytes = payload(&mut (0..kept.len()));
    let arrived_bytes = payload(&mut arrivals.iter().map(|arrival| arrival.packet));
    let mut endpoints = flow.endpoints;
    if turned {
        std::mem::swap(&mut endpoints.initiator, &mut endpoints.responder);
        std::mem::swap(&mut endpoints.initiator_port, &mut endpoints.responder_port);
    }
    let mut changed = Flow {
        index: flow.index,
        endpoints,
        start_ns: first.time_ns,
        end_ns: first.time_ns,
        packets: flow.packets - (kept.len() - arrivals.len()) as u64,
        bytes: flow.bytes.saturating_sub(sent_bytes - arrived_bytes),
        records: Vec::with_capacity(arrivals.len()),
        payload: trafficllm_traffic::Payload::default(),
    };
    let mut last_ns = first.time_ns;
    for arrival in &arrivals {
        let (record, payload) = kept[arrival.packet];
        let gap_us = arrival.time_ns.saturating_sub(last_ns) / 1_000;
        last_ns = arrival.time_ns;
        changed.end_ns = changed.end_ns.max(last_ns);
        let record = PacketRecord {
            direction: if turned {
                opposite(record.direction)
            } else {
                record.direction
            },
            gap_us: u32::try_from(gap_us).unwrap_or(u32::MAX),
            ..*record
        };
        let most = noise.truncate_bytes.unwrap_or(payload.len());
        changed.push(record, payload.get(..most).unwrap_or(payload));
    }
    if flow.packets > kept.len() as u64 {
        changed.end_ns = changed.end_ns.max(flow.end_ns);
    }
    changed
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::FromInitiator => Direction::FromResponder,
        Direction::FromResponder => Direction::FromInitiator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captures::read_flows;
    use crate::synthetic;

    fn flows() -> Vec<Flow> {
        let data = tempfile::tempdir().expect("a folder");
        synthetic::write(data.path(), 1);
        read_flows(&data.path().join("colours/train/blue/blue-0.pcap")).expect("flows")
    }

    #[test]
    fn without_noise_a_flow_stays_as_it_is() {
        for flow in flows() {
            assert_eq!(apply(&flow, &Noise::default(), &mut Random::new(1)), flow);
        }
    }

    #[test]
    fn loss_takes_its_share_and_leaves_one_packet() {
        let times: Vec<u64> = (0..20_000).collect();
        let noise = Noise {
            loss: 0.3,
            ..Noise::default()
        };
        let left = plan(&times, &noise, &mut Random::new(5)).len();
        assert!((13_700..14_300).contains(&left), "{left}");
        let all = Noise {
            loss: 0.99,
            ..Noise::default()
        };
        for (seed, flow) in
            (0..50).flat_map(|seed| flows().into_iter().map(move |flow| (seed, flow)))
        {
            let changed = apply(&flow, &all, &mut Random::new(seed));
            assert!(!changed.records.is_empty());
            assert_eq!(changed.packets, changed.records.len() as u64);
            assert_eq!(changed.records[0].direction, Direction::FromInitiator);
            assert_eq!(changed.records[0].gap_us, 0);
        }
    }

    #[test]
    fn a_flow_whose_first_packet_is_lost_is_seen_from_the_other_side() {
        let flow = &flows()[0];
        let noise = Noise {
            loss: 0.5,
            ..Noise::default()
        };
        let turned = (0..200)
            .map(|seed| apply(flow, &noise, &mut Random::new(seed)))
            .find(|changed| changed.endpoints.initiator == flow.endpoints.responder)
            .expect("one of 200 begins with the responder");
        assert_eq!(
            turned.endpoints.initiator_port,
            flow.endpoints.responder_port
        );
        let (record, payload) = turned.kept().next().expect("a packet");
        assert_eq!(record.direction, Direction::FromInitiator);
        assert!(
            flow.kept()
                .any(|(sent, sent_payload)| sent_payload == payload
                    && sent.direction == Direction::FromResponder)
        );
    }

    #[test]
    fn overtaking_exchanges_neighbours_only_and_loses_nothing() {
        let times: Vec<u64> = (0..1_000).map(|place| place * 10).collect();
        let noise = Noise {
            reorder: 0.4,
            ..Noise::default()
        };
        let arrivals = plan(&times, &noise, &mut Random::new(2));
        let mut packets: Vec<usize> = arrivals.iter().map(|arrival| arrival.packet).collect();
        assert!(arrivals.iter().map(|arrival| arrival.time_ns).eq(times));
        let moved = packets
            .iter()
            .enumerate()
            .filter(|(place, packet)| place != *packet);
        assert!(moved.clone().count() > 300);
        assert!(
            moved
                .clone()
                .all(|(place, &packet)| place.abs_diff(packet) == 1)
        );
        packets.sort_unstable();
        assert!(packets.into_iter().eq(0..1_000));
    }

    #[test]
    fn delays_stay_in_their_range_and_keep_the_order() {
        let times: Vec<u64> = (0..1_000).map(|place| place * 500_000).collect();
        let noise = Noise {
            delay_ms: 2.0,
            ..Noise::default()
        };
        let arrivals = plan(&times, &noise, &mut Random::new(2));
        assert!(
            arrivals
                .windows(2)
                .all(|pair| pair[0].time_ns <= pair[1].time_ns)
        );
        let delays: Vec<u64> = arrivals
            .iter()
            .zip(&times)
            .map(|(arrival, sent)| arrival.time_ns - sent)
            .collect();
        assert!(delays.iter().all(|&delay| delay <= 2_000_000));
        assert!(delays.iter().any(|&delay| delay > 1_000_000));
    }

    #[test]
    fn a_cut_payload_keeps_its_length() {
        let flow = &flows()[0];
        let noise = Noise {
            truncate_bytes: Some(7),
            ..Noise::default()
        };
        let changed = apply(flow, &noise, &mut Random::new(1));
        for ((before, whole), (after, cut)) in flow.kept().zip(changed.kept()) {
            assert_eq!(cut, &whole[..7]);
            assert_eq!(after.payload_kept, 7);
            assert_eq!(after.payload_bytes, before.payload_bytes);
        }
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        for (noise, name) in [
            (
                Noise {
                    loss: 1.0,
                    ..Noise::default()
                },
                "loss",
            ),
            (
                Noise {
                    reorder: -0.1,
                    ..Noise::default()
                },
                "reorder",
            ),
            (
                Noise {
                    reorder: f64::NAN,
                    ..Noise::default()
                },
                "reorder",
            ),
            (
                Noise {
                    delay_ms: 3_600_001.0,
                    ..Noise::default()
                },
                "delay-ms",
            ),
        ] {
            let error = noise.validate().expect_err("out of range").to_string();
            assert!(error.contains(name), "{error}");
        }
        let edge = Noise {
            loss: 0.99,
            reorder: 1.0,
            delay_ms: DELAY_MS_MAX,
            truncate_bytes: Some(0),
        };
        edge.validate().expect("in range");
    }
}
