//! Captures to groups, groups to splits, and the captures written again for each group.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;
use std::path::{Path, PathBuf};

use trafficllm_traffic::{Flow, FlowConfig};

use super::input::Source;
use super::{
    BuildOptions, BuildReport, Candidate, GroupUnit, LeftOut, count, divide, find_repeats,
};
use crate::captures::{BARE_FLOW_CONFIG, FLOW_CONFIG, FlowPacket, Visit, walk};
use crate::data::output::Row;
use crate::data::pcap::PcapWriter;
use crate::data::split::GroupSizes;
use crate::data::{Content, Split};
use crate::error::{Result, TrainError};
use crate::progress::Progress;

/// A progress bar is told this often.
const PACKETS_PER_STEP: u64 = 4_096;

/// A leakage group: some flows of a capture that begin one after the other.
struct Group {
    name: String,
    label: usize,
    source: usize,
    flows: Range<u64>,
}

pub(super) fn build(
    options: &BuildOptions,
    labels: &[String],
    sources: Vec<Source>,
    folder: &Path,
    report: &mut BuildReport,
) -> Result<Vec<Row>> {
    let surveyed = survey_all(options, sources, report)?;
    let groups = make_groups(options, labels, &surveyed);
    let sizes: Vec<GroupSizes> = groups
        .iter()
        .map(|group| GroupSizes::from([(group.label, group.flows.end - group.flows.start)]))
        .collect();
    let (unit, hint) = match options.unit {
        GroupUnit::File => (
            "captures with flows",
            "add captures, or cut them into time windows with --split-by window",
        ),
        GroupUnit::Window => ("time windows with flows", "add captures"),
    };
    let splits = divide(options, labels, &sizes, unit, hint)?;
    let mut items = Vec::new();
    for (group, &split) in groups.iter().zip(&splits) {
        items.extend(group.flows.clone().map(|flow| Candidate {
            label: group.label,
            split,
            fingerprint: surveyed[group.source].fingerprints[flow as usize],
        }));
    }
    let mut repeated = find_repeats(&items, options, report)?.into_iter();
    let dropped: Vec<Vec<bool>> = groups
        .iter()
        .map(|group| {
            let flows = (group.flows.end - group.flows.start) as usize;
            repeated.by_ref().take(flows).collect()
        })
        .collect();
    let mut rows = Vec::new();
    let bytes: u64 = surveyed.iter().map(|found| found.source.file_bytes).sum();
    let mut meter = Meter::new("write", bytes);
    for (number, found) in surveyed.iter().enumerate() {
        let own = (0..groups.len()).filter(|&group| groups[group].source == number);
        let mut cut = Cut {
            options,
            outputs: Vec::new(),
            meter: &mut meter,
        };
        for group in own {
            let place = Place { labels, folder };
            let dropped = &dropped[group];
            cut.outputs
                .extend(place.open(&groups[group], splits[group], dropped)?);
        }
        walk(&found.source.path, BARE_FLOW_CONFIG, &mut cut)?;
        for output in cut.outputs {
            rows.push(output.finish(&report.task, labels, found, &mut report.joined_flows)?);
        }
        meter.file_done(found.source.file_bytes);
    }
    rows.sort_by(|one, other| (&one.split, &one.file).cmp(&(&other.split, &other.file)));
    report.counts = count(&rows, |_| 1);
    Ok(rows)
}

/// What is known of a capture after the first reading.
struct Surveyed {
    source: Source,
    /// By flow index.
    fingerprints: Vec<Option<u64>>,
}

fn survey_all(
    options: &BuildOptions,
    sources: Vec<Source>,
    report: &mut BuildReport,
) -> Result<Vec<Surveyed>> {
    let bytes = sources.iter().map(|source| source.file_bytes).sum();
    let mut meter = Meter::new("read", bytes);
    let mut surveyed = Vec::new();
    for source in sources {
        let mut survey = Survey {
            flows: Vec::new(),
            meter: &mut meter,
        };
        // Repeats are looked for in what will be written, seen the way that it will be read.
        let config = FlowConfig {
            max_packets: FLOW_CONFIG.max_packets.min(options.packets),
            max_payload_bytes: FLOW_CONFIG.max_payload_bytes.min(options.payload_bytes),
            ..FLOW_CONFIG
        };
        let walked = walk(&source.path, config, &mut survey);
        let mut flows = std::mem::take(&mut survey.flows);
        meter.file_done(source.file_bytes);
        let reason = match walked {
            Ok(skipped) => {
                for (reason, packets) in skipped.iter() {
                    let sum = report.skipped_packets.entry(reason.name().into());
                    *sum.or_default() += packets;
                }
                flows.is_empty().then(|| "holds no flow".to_owned())
            }
            Err(TrainError::Capture { source, .. }) if options.skip_broken => {
                Some(source.to_string())
            }
            Err(error) => return Err(error),
        };
        if let Some(reason) = reason {
            let path = source.path.clone();
            report.left_out.push(LeftOut { path, reason });
            continue;
        }
        flows.sort_unstable_by_key(|(index, _)| *index);
        let fingerprints = flows.into_iter().map(|(_, fingerprint)| fingerprint);
        surveyed.push(Surveyed {
            source,
            fingerprints: fingerprints.collect(),
        });
    }
    Ok(surveyed)
}

struct Survey<'a> {
    flows: Vec<(u64, Option<u64>)>,
    meter: &'a mut Meter,
}

impl Visit for Survey<'_> {
    fn packet(&mut self, packet: &FlowPacket<'_>) -> Result<()> {
        self.meter.packet(packet.source_bytes);
        Ok(())
    }

    fn flow(&mut self, flow: Flow) {
        let index = flow.index;
        self.flows
            .push((index, Content::Flow(flow).payload_fingerprint()));
    }
}

fn make_groups(options: &BuildOptions, labels: &[String], surveyed: &[Surveyed]) -> Vec<Group> {
    let splits = options.shares.splits().len();
    let mut captures = vec![0; labels.len()];
    for found in surveyed {
        captures[found.source.label] += 1;
    }
    let mut groups = Vec::new();
    let mut taken = BTreeSet::new();
    for (number, found) in surveyed.iter().enumerate() {
        let label = found.source.label;
        let name = group_name(&labels[label], &found.source.stem);
        let flows = found.fingerprints.len() as u64;
        let is_cut = options.unit == GroupUnit::Window && captures[label] < splits;
        let windows = if is_cut {
            flows.min(options.windows as u64)
        } else {
            1
        };
        let digits = windows.saturating_sub(1).to_string().len();
        for window in 0..windows {
            let wanted = if is_cut {
                format!("{name}_w{window:0digits$}")
            } else {
                name.clone()
            };
            groups.push(Group {
                name: free_name(&wanted, &mut taken),
                label,
                source: number,
                flows: flows * window / windows..flows * (window + 1) / windows,
            });
        }
    }
    groups
}

/// The label stands in the name: captures of the same name under two labels are two groups.
fn group_name(label: &str, stem: &str) -> String {
    let plain = |text: &str| -> String {
        let allowed = |character: char| character.is_alphanumeric() || "-_.".contains(character);
        let replaced = text
            .chars()
            .map(|found| if allowed(found) { found } else { '_' });
        replaced.collect()
    };
    let (label, stem) = (plain(label), plain(stem));
    if stem.starts_with(&label) {
        stem
    } else {
        format!("{label}_{stem}")
    }
}

fn free_name(wanted: &str, taken: &mut BTreeSet<String>) -> String {
    let mut name = wanted.to_owned();
    let mut number = 2;
    // File systems that do not tell cases apart would lay two groups into one file.
    while !taken.insert(name.to_lowercase()) {
        name = format!("{wanted}-{number}");
        number += 1;
    }
    name
}

/// Where groups are written.
struct Place<'a> {
    labels: &'a [String],
    folder: &'a Path,
}

impl Place<'_> {
    /// Begins the group's file; none where all of its flows are dropped.
    fn open<'a>(
        &self,
        group: &'a Group,
        split: Split,
        dropped: &'a [bool],
    ) -> Result<Option<Output<'a>>> {
        let flows = dropped.iter().filter(|dropped| !**dropped).count() as u64;
        if flows == 0 {
            return Ok(None);
        }
        let folder = self
            .folder
            .join(split.name())
            .join(&self.labels[group.label]);
        std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        let path = folder.join(format!("{}.pcap", group.name));
        let writer = PcapWriter::create(&path).map_err(TrainError::io(&path))?;
        Ok(Some(Output {
            group,
            split,
            dropped,
            flows,
            path,
            writer,
        }))
    }
}

/// A group's file that is being written.
struct Output<'a> {
    group: &'a Group,
    split: Split,
    /// By flow, from the group's first.
    dropped: &'a [bool],
    flows: u64,
    path: PathBuf,
    writer: PcapWriter<BufWriter<File>>,
}

impl Output<'_> {
    fn wants(&self, flow: u64) -> bool {
        let place = flow.checked_sub(self.group.flows.start);
        place.is_some_and(|place| self.dropped.get(place as usize) == Some(&false))
    }

    /// Closes the file and counts what a reader finds in it.
    fn finish(
        self,
        task: &str,
        labels: &[String],
        found: &Surveyed,
        joined_flows: &mut u64,
    ) -> Result<Row> {
        self.writer.finish().map_err(TrainError::io(&self.path))?;
        let mut tally = Tally::default();
        walk(&self.path, BARE_FLOW_CONFIG, &mut tally)?;
        *joined_flows += self.flows.saturating_sub(tally.flows);
        let label = &labels[self.group.label];
        Ok(Row {
            task: task.into(),
            split: self.split.name().into(),
            label: label.clone(),
            file: format!(
                "{task}/{}/{label}/{}.pcap",
                self.split.name(),
                self.group.name
            ),
            source: found.source.relative.clone(),
            flows: tally.flows,
            packets: tally.packets,
        })
    }
}

/// Counts flows and packets.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) flows: u64,
    pub(crate) packets: u64,
}

impl Visit for Tally {
    fn packet(&mut self, _: &FlowPacket<'_>) -> Result<()> {
        self.packets += 1;
        Ok(())
    }

    fn flow(&mut self, _: Flow) {
        self.flows += 1;
    }
}

/// Writes the first packets of each flow, cut, to the file of its group.
struct Cut<'a> {
    options: &'a BuildOptions,
    outputs: Vec<Output<'a>>,
    meter: &'a mut Meter,
}

impl Visit for Cut<'_> {
    fn packet(&mut self, packet: &FlowPacket<'_>) -> Result<()> {
        self.meter.packet(packet.source_bytes);
        if packet.place >= self.options.packets as u64 {
            return Ok(());
        }
        let Some(output) = self
            .outputs
            .iter_mut()
            .find(|output| output.wants(packet.flow))
        else {
            return Ok(());
        };
        let kept = packet.header_bytes + self.options.payload_bytes;
        let bytes = packet.ip.get(..kept).unwrap_or(packet.ip);
        let written = output
            .writer
            .push(packet.packet.timestamp_ns, bytes, packet.packet.ip_bytes);
        written.map_err(TrainError::io(&output.path))
    }
}

/// Progress in bytes of the input files.
struct Meter {
    progress: Progress,
    done_bytes: u64,
    packets: u64,
}

impl Meter {
    fn new(stage: &'static str, bytes: u64) -> Self {
        Self {
            progress: Progress::new(stage, bytes / 1024, 0),
            done_bytes: 0,
            packets: 0,
        }
    }

    fn packet(&mut self, source_bytes: u64) {
        self.packets += 1;
        if self.packets.is_multiple_of(PACKETS_PER_STEP) {
            self.show(self.done_bytes + source_bytes);
        }
    }

    fn file_done(&mut self, file_bytes: u64) {
        self.done_bytes += file_bytes;
        self.show(self.done_bytes);
    }

    fn show(&mut self, bytes: u64) {
        let packets = self.packets;
        self.progress
            .advance(bytes / 1024, || format!("KiB, {packets} packets"));
    }
}
