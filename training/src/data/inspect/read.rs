//! Reads the splits of a task as they are, whatever is wrong with them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use trafficllm_traffic::Flow;

use super::{Facts, Item, Tally};
use crate::captures::{FLOW_CONFIG, FlowPacket, Visit, walk};
use crate::data::{Content, Split, TaskKind, group_name, list_captures, read_requests};
use crate::error::{Result, TrainError};
use crate::progress::Progress;

/// What is looked up of a flow.
const FLOW_FEATURES: &[&str] = &[
    "initiator network (/24, /48)",
    "responder network (/24, /48)",
    "both networks",
    "server address",
    "server port",
    "first TTL",
    "TTL of both sides",
    "IP id pattern",
    "first payload length",
];
/// What is looked up of a request.
const REQUEST_FEATURES: &[&str] = &["method", "path", "length"];

/// All labels in byte order, and what stands in each split that is there.
pub(super) fn read(
    data: &Path,
    task: &str,
    merge_at: Option<char>,
) -> Result<(Vec<String>, Vec<Facts>)> {
    let (labels, lists) = list(data, task, merge_at)?;
    let sources = lists.iter().map(|(_, _, list)| list.len() as u64).sum();
    let mut progress = Progress::new("inspect", sources, 0);
    let mut done = 0;
    let mut facts = Vec::new();
    for (split, kind, list) in lists {
        let mut found = Facts {
            split,
            kind,
            features: match kind {
                TaskKind::Flow => FLOW_FEATURES,
                TaskKind::Request | TaskKind::Instruction => REQUEST_FEATURES,
            },
            items: Vec::new(),
            counts: BTreeMap::new(),
            skipped_packets: 0,
            broken: Vec::new(),
        };
        for (label, group, source) in list {
            let label = labels.binary_search(&label).unwrap_or_default();
            match source {
                Source::Request(text) => found.add_request(label, group, &text),
                Source::Capture(path) => found.add_capture(label, group, &path)?,
            }
            done += 1;
            progress.advance(done, || format!("{task}, {}", split.name()));
        }
        facts.push(found);
    }
    Ok((labels, facts))
}

/// One split: label, group and source of each capture or request.
type Listed = (Split, TaskKind, Vec<(String, String, Source)>);

/// All labels in byte order, and what is to be read of each split.
fn list(data: &Path, task: &str, merge_at: Option<char>) -> Result<(Vec<String>, Vec<Listed>)> {
    let folder = data.join(task);
    let mut lists: Vec<Listed> = Vec::new();
    for split in [Split::Train, Split::Val, Split::Test] {
        let file = folder.join(format!("{}.jsonl", split.name()));
        if file.is_file() {
            let lines = read_requests(&file)?;
            let lines = lines.into_iter().map(|line| {
                let item = Source::Request(line.request);
                (line.label, line.group, item)
            });
            lists.push((split, TaskKind::Request, lines.collect()));
        } else if folder.join(split.name()).is_dir() {
            let mut captures = Vec::new();
            for (label, paths) in list_captures(&folder.join(split.name()))? {
                let sources = paths.into_iter().map(|path| {
                    let group = group_name(&path);
                    (label.clone(), group, Source::Capture(path))
                });
                captures.extend(sources);
            }
            lists.push((split, TaskKind::Flow, captures));
        }
    }
    if let Some(border) = merge_at {
        for (label, _, _) in lists.iter_mut().flat_map(|(_, _, list)| list) {
            let end = label.find(border).unwrap_or(label.len());
            label.truncate(end);
        }
    }
    let mut labels: Vec<String> = lists
        .iter()
        .flat_map(|(_, _, list)| list.iter().map(|(label, _, _)| label.clone()))
        .collect();
    labels.sort_unstable();
    labels.dedup();
    Ok((labels, lists))
}

enum Source {
    Capture(PathBuf),
    Request(String),
}

impl Facts {
    fn add_request(&mut self, label: usize, group: String, text: &str) {
        let fingerprint = Content::Request(text.into()).payload_fingerprint();
        let tally = self.counts.entry((label, group)).or_default();
        tally.items += 1;
        tally.without_payload += u64::from(fingerprint.is_none());
        let mut words = text.split_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let path = target.split(['?', '#']).next().unwrap_or_default();
        self.items.push(Item {
            label,
            fingerprint,
            features: vec![method, path.to_owned(), text.len().to_string()],
        });
    }

    fn add_capture(&mut self, label: usize, group: String, path: &Path) -> Result<()> {
        let mut seen = Seen::default();
        match walk(path, FLOW_CONFIG, &mut seen) {
            Ok(skipped) => {
                self.skipped_packets += skipped.total();
                if seen.flows.is_empty() {
                    let path = path.display();
                    self.broken.push(format!("{path}: holds no flow"));
                }
            }
            // What was read before the fault counts.
            Err(error @ TrainError::Capture { .. }) => self.broken.push(error.to_string()),
            Err(error) => return Err(error),
        }
        let tally = self.counts.entry((label, group)).or_default();
        tally.add(&seen.flows);
        self.items.extend(seen.flows.iter().map(|flow| Item {
            label,
            fingerprint: flow.fingerprint,
            features: flow.features(),
        }));
        Ok(())
    }
}

impl Tally {
    fn add(&mut self, flows: &[FlowFacts]) {
        for flow in flows {
            self.items += 1;
            self.packets += flow.packets;
            self.without_payload += u64::from(flow.fingerprint.is_none());
        }
    }
}

/// What a capture's flows look like from outside.
#[derive(Default)]
struct Seen {
    /// By flow index.
    flows: Vec<FlowFacts>,
}

struct FlowFacts {
    initiator: (IpAddr, u16),
    responder: (IpAddr, u16),
    initiator_ttl: u8,
    responder_ttl: Option<u8>,
    ip_ids: IdPattern,
    first_payload_bytes: Option<u32>,
    fingerprint: Option<u64>,
    packets: u64,
}

impl Visit for Seen {
    fn packet(&mut self, found: &FlowPacket<'_>) -> Result<()> {
        let packet = &found.packet;
        let source = (packet.source, packet.source_port);
        if found.place == 0 {
            self.flows.push(FlowFacts {
                initiator: source,
                responder: (packet.destination, packet.destination_port),
                initiator_ttl: ttl(found.ip),
                responder_ttl: None,
                ip_ids: IdPattern::default(),
                first_payload_bytes: None,
                fingerprint: None,
                packets: 0,
            });
        }
        let Some(flow) = self.flows.get_mut(found.flow as usize) else {
            return Ok(());
        };
        flow.packets += 1;
        if packet.payload_bytes > 0 {
            flow.first_payload_bytes.get_or_insert(packet.payload_bytes);
        }
        if source == flow.initiator {
            flow.ip_ids.add(found.ip);
        } else {
            flow.responder_ttl.get_or_insert(ttl(found.ip));
        }
        Ok(())
    }

    fn flow(&mut self, flow: Flow) {
        let index = flow.index as usize;
        if let Some(facts) = self.flows.get_mut(index) {
            facts.fingerprint = Content::Flow(flow).payload_fingerprint();
        }
    }
}

impl FlowFacts {
    /// In the order of [`FLOW_FEATURES`].
    fn features(&self) -> Vec<String> {
        let (initiator, responder) = (network(self.initiator.0), network(self.responder.0));
        let both = format!("{initiator} {responder}");
        let server = self.server();
        vec![
            initiator,
            responder,
            both,
            server.0.to_string(),
            server.1.to_string(),
            self.initiator_ttl.to_string(),
            format!("{} {:?}", self.initiator_ttl, self.responder_ttl),
            self.ip_ids.name().to_owned(),
            format!("{:?}", self.first_payload_bytes),
        ]
    }

    /// The side with the lower port; the responder where the ports do not tell.
    fn server(&self) -> (IpAddr, u16) {
        if self.initiator.1 < self.responder.1 {
            self.initiator
        } else {
            self.responder
        }
    }
}

/// The hop limit of the packet's IP header (RFC 791, RFC 8200).
fn ttl(ip: &[u8]) -> u8 {
    let offset = if is_four(ip) { 8 } else { 7 };
    ip.get(offset).copied().unwrap_or(0)
}

fn is_four(ip: &[u8]) -> bool {
    ip.first().is_some_and(|first| first >> 4 == 4)
}

/// The address without its last byte, or the first 48 bits of an IPv6 address.
fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(four) => {
            let [a, b, c, _] = four.octets();
            format!("{a}.{b}.{c}")
        }
        IpAddr::V6(six) => {
            let [a, b, c, ..] = six.segments();
            format!("{a:x}:{b:x}:{c:x}")
        }
    }
}

/// How the initiator numbers its IPv4 packets.
#[derive(Default)]
struct IdPattern {
    last: Option<u16>,
    ids: u64,
    zeros: u64,
    /// Steps of one, of 2 to 64, and others.
    steps: [u64; 3],
}

impl IdPattern {
    fn add(&mut self, ip: &[u8]) {
        let Some(&[high, low]) = ip.get(4..6).filter(|_| is_four(ip)) else {
            return;
        };
        let id = u16::from_be_bytes([high, low]);
        self.ids += 1;
        self.zeros += u64::from(id == 0);
        if let Some(last) = self.last {
            let kind = match id.wrapping_sub(last) {
                1 => 0,
                2..=64 => 1,
                _ => 2,
            };
            self.steps[kind] += 1;
        }
        self.last = Some(id);
    }

    fn name(&self) -> &'static str {
        match (self.ids, self.steps) {
            (0, _) => "none",
            (ids, _) if ids == self.zeros => "zero",
            (1, _) => "single",
            (_, [_, 0, 0]) => "steps of one",
            (_, [_, _, 0]) => "small steps",
            _ => "other",
        }
    }
}
