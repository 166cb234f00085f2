//! Changed copies of a split's captures: what another network would have shown of the same flows.

mod readdress;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::readdress::{Addresses, Readdressed};
use super::output::{self, Partial, Row};
use super::pcap::PcapWriter;
use super::{Fingerprint, PreparationError, Split, group_name, list_captures, tasks_of};
use crate::augment::{Noise, plan};
use crate::captures::{BARE_FLOW_CONFIG, FlowPacket, Visit, walk};
use crate::error::{Result, TrainError};
use crate::progress::Progress;
use crate::random::Random;

/// Most copies of a capture.
pub const COPIES_MAX: usize = 1_000;
/// Time between two copies in a file: twice what ends an idle flow, so that no flow of a copy goes on in the next.
const COPY_GAP_NS: u64 = 2 * BARE_FLOW_CONFIG.tcp_idle_timeout_us * 1_000;

/// What to change, and where.
#[derive(Clone, Debug)]
pub struct AugmentOptions {
    /// The data folder to read.
    pub data: PathBuf,
    /// The task.
    pub task: String,
    /// The split.
    pub split: Split,
    /// The data folder to write; the task's split must not be in it.
    pub out: PathBuf,
    /// What the network does.
    pub noise: Noise,
    /// Whether each flow gets other addresses and another port for its client.
    pub readdress: bool,
    /// Changed copies of each flow.
    pub copies: usize,
    /// Seed of all of it.
    pub seed: u64,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct AugmentReport {
    /// The task.
    pub task: String,
    /// The split.
    pub split: String,
    /// Files, one per group and label.
    pub files: u64,
    /// Flows read.
    pub flows_read: u64,
    /// Flows as they are read again from what was written.
    pub flows_written: u64,
    /// Packets read.
    pub packets_read: u64,
    /// Packets written.
    pub packets_written: u64,
    /// Packets that are part of no flow and were left out.
    pub skipped_packets: u64,
    /// Flows, counted in each copy, that kept their addresses and ports: no others that they may get were free.
    pub addresses_kept: u64,
}

impl AugmentReport {
    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "task {}, {}: {} files, {} flows and {} packets read, {} flows and {} packets written, {} packets of no flow left out\n",
            self.task,
            self.split,
            self.files,
            self.flows_read,
            self.packets_read,
            self.flows_written,
            self.packets_written,
            self.skipped_packets
        );
        if self.addresses_kept > 0 {
            text += &format!(
                "flows that kept their addresses and ports, since no others were free between their ends: {}\n",
                self.addresses_kept
            );
        }
        text
    }
}

/// Writes changed copies of the captures of a split under the same labels and group names. The same input, options and seed give the
/// same bytes, whatever other files there are.
///
/// # Errors
/// Where something cannot be read or written, or no change is asked for; then nothing was made.
pub fn augment(options: &AugmentOptions) -> Result<AugmentReport> {
    check(options)?;
    let (task, split) = (&options.task, options.split.name());
    let folder = options.data.join(task);
    let listed = list_captures(&folder.join(split))?;
    output::check_outside(&options.out.join(task), &folder)?;
    output::check_manifest(&options.out)?;
    let partial = Partial::begin(&options.out, &format!("{task}/{split}"))?;
    let files = listed.values().map(|captures| captures.len() as u64).sum();
    let mut progress = Progress::new("augment", files, 0);
    let mut report = AugmentReport {
        task: task.clone(),
        split: split.into(),
        files: 0,
        flows_read: 0,
        flows_written: 0,
        packets_read: 0,
        packets_written: 0,
        skipped_packets: 0,
        addresses_kept: 0,
    };
    let mut rows = Vec::new();
    for (label, captures) in &listed {
        let place = partial.folder().join(label);
        std::fs::create_dir_all(&place).map_err(TrainError::io(&place))?;
        for capture in captures {
            let group = group_name(capture);
            let target = place.join(format!("{group}.pcap"));
            let stream = stream_of(&[task, split, label, &group]);
            let written = change_capture(capture, &target, options, stream, &mut report)?;
            rows.push(Row {
                task: task.clone(),
                split: split.into(),
                label: label.clone(),
                file: format!("{task}/{split}/{label}/{group}.pcap"),
                source: format!(
                    "changed copy of {}",
                    capture
                        .strip_prefix(&options.data)
                        .unwrap_or(capture)
                        .display()
                ),
                flows: written.flows,
                packets: written.packets,
            });
            report.files += 1;
            progress.advance(report.files, || label.clone());
        }
    }
    partial.publish(&rows)?;
    Ok(report)
}

/// Refuses settings out of their range and tasks that are not there or hold no captures.
fn check(options: &AugmentOptions) -> Result<()> {
    options.noise.validate()?;
    if options.noise.is_none() && !options.readdress {
        return Err(PreparationError::NoChange.into());
    }
    if !(1..=COPIES_MAX).contains(&options.copies) {
        return Err(PreparationError::OutOfRange {
            name: "copies",
            expected: "1 to 1000",
            found: options.copies.to_string(),
        }
        .into());
    }
    check_captures(&options.data, &options.task)
}

/// Refuses a task that is not there or holds no captures.
pub(super) fn check_captures(data: &Path, task: &str) -> Result<()> {
    let present = tasks_of(data)?;
    if !present.iter().any(|known| known == task) {
        return Err(TrainError::TaskUnknown {
            task: task.into(),
            path: data.into(),
            found: present.join(", "),
        });
    }
    if data.join(task).join("train.jsonl").is_file() {
        return Err(PreparationError::NoCaptures { task: task.into() }.into());
    }
    Ok(())
}

/// The stream of random numbers of one file: what stands beside it does not matter.
fn stream_of(names: &[&str]) -> u64 {
    let mut hash = Fingerprint::default();
    for name in names {
        hash.update(name.as_bytes());
        hash.update(&[0]);
    }
    hash.finish().unwrap_or_default()
}

/// A packet as it was captured.
struct Kept {
    time_ns: u64,
    bytes: Vec<u8>,
    wire_bytes: u32,
    header_bytes: usize,
    from_initiator: bool,
}

struct KeptFlow {
    addresses: Addresses,
    packets: Vec<Kept>,
}

#[derive(Default)]
struct Whole {
    /// By flow index.
    flows: Vec<KeptFlow>,
    packets: u64,
}

impl Visit for Whole {
    fn packet(&mut self, found: &FlowPacket<'_>) -> Result<()> {
        let packet = &found.packet;
        let source = (packet.source, packet.source_port);
        if found.place == 0 {
            self.flows.push(KeptFlow {
                addresses: Addresses {
                    protocol: packet.protocol,
                    initiator: source,
                    responder: (packet.destination, packet.destination_port),
                },
                packets: Vec::new(),
            });
        }
        self.packets += 1;
        if let Some(flow) = self.flows.get_mut(found.flow as usize) {
            flow.packets.push(Kept {
                time_ns: packet.timestamp_ns,
                bytes: found.ip.to_vec(),
                wire_bytes: packet.ip_bytes,
                header_bytes: found.header_bytes,
                from_initiator: source == flow.addresses.initiator,
            });
        }
        Ok(())
    }
}

struct Written {
    flows: u64,
    packets: u64,
}

fn change_capture(
    source: &Path,
    target: &Path,
    options: &AugmentOptions,
    stream: u64,
    report: &mut AugmentReport,
) -> Result<Written> {
    let mut whole = Whole::default();
    report.skipped_packets += walk(source, BARE_FLOW_CONFIG, &mut whole)?.total();
    if whole.flows.is_empty() {
        return Err(TrainError::DataEmpty {
            path: source.into(),
            expected: "a capture with at least one flow",
        });
    }
    report.flows_read += whole.flows.len() as u64;
    report.packets_read += whole.packets;
    let times = whole.flows.iter().flat_map(|flow| &flow.packets);
    let (first, last) = times.fold((u64::MAX, 0), |(first, last), packet| {
        (packet.time_ns.min(first), packet.time_ns.max(last))
    });
    let delay_ns = (options.noise.delay_ms * 1e6) as u64;
    let step_ns = last.saturating_sub(first) + delay_ns + COPY_GAP_NS;
    let failed = |error| TrainError::io(target)(error);
    let mut writer = PcapWriter::create(target).map_err(failed)?;
    for copy in 0..options.copies as u64 {
        let mut random = Random::stream(options.seed, stream, copy);
        let (changed, kept) = change_flows(&whole.flows, options, &mut random);
        report.addresses_kept += kept;
        for packet in changed {
            let time_ns = packet.time_ns.saturating_add(copy.saturating_mul(step_ns));
            writer
                .push(time_ns, &packet.bytes, packet.wire_bytes)
                .map_err(failed)?;
        }
    }
    writer.finish().map_err(failed)?;
    let mut tally = super::build::Tally::default();
    walk(target, BARE_FLOW_CONFIG, &mut tally)?;
    report.flows_written += tally.flows;
    report.packets_written += tally.packets;
    Ok(Written {
        flows: tally.flows,
        packets: tally.packets,
    })
}

/// A packet as it is written.
struct Changed {
    time_ns: u64,
    bytes: Vec<u8>,
    wire_bytes: u32,
}

/// One changed copy of all flows, in the order of time, and how many of them kept their addresses against the options. Packets of one flow never change places by that: where a flow's time runs
/// backwards, its packet stands as late as the one before it.
fn change_flows(
    flows: &[KeptFlow],
    options: &AugmentOptions,
    random: &mut Random,
) -> (Vec<Changed>, u64) {
    let mut new_addresses = Readdressed::default();
    let mut changed: Vec<(u64, Changed)> = Vec::new();
    for flow in flows {
        let addresses = options
            .readdress
            .then(|| new_addresses.draw(&flow.addresses, random))
            .flatten();
        let times: Vec<u64> = flow.packets.iter().map(|packet| packet.time_ns).collect();
        let mut latest_ns = 0;
        for arrival in plan(&times, &options.noise, random) {
            let packet = &flow.packets[arrival.packet];
            let mut bytes = packet.bytes.clone();
            if let Some(most) = options.noise.truncate_bytes {
                bytes.truncate(packet.header_bytes.saturating_add(most));
            }
            if let Some(new) = &addresses {
                readdress::rewrite(&mut bytes, &flow.addresses, new, packet.from_initiator);
            }
            latest_ns = arrival.time_ns.max(latest_ns);
            let packet = Changed {
                time_ns: arrival.time_ns,
                bytes,
                wire_bytes: packet.wire_bytes,
            };
            changed.push((latest_ns, packet));
        }
    }
    // Stable: flows that begin at the same time stay in their order.
    changed.sort_by_key(|(place, _)| *place);
    let packets = changed.into_iter().map(|(_, packet)| packet).collect();
    (packets, new_addresses.kept())
}

#[cfg(test)]
mod tests;
