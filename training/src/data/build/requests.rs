//! HTTP requests to splits.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{BuildOptions, BuildReport, Candidate, check_labels, count, divide, find_repeats};
use crate::data::output::Row;
use crate::data::split::GroupSizes;
use crate::data::{Content, RequestLine, read_requests};
use crate::error::{Result, TrainError};

pub(super) fn build(
    options: &BuildOptions,
    files: &[PathBuf],
    folder: &Path,
    report: &mut BuildReport,
) -> Result<Vec<Row>> {
    let mut lines = Vec::new();
    for file in files {
        lines.extend(read_requests(file)?);
    }
    let names: BTreeSet<&str> = lines.iter().map(|line| line.label.as_str()).collect();
    let labels: Vec<String> = names.into_iter().map(str::to_owned).collect();
    check_labels(&labels, &options.from)?;
    let label_of = |line: &RequestLine| labels.binary_search(&line.label).unwrap_or_default();
    let mut sizes: BTreeMap<&str, GroupSizes> = BTreeMap::new();
    for line in &lines {
        let group = sizes.entry(&line.group).or_default();
        *group.entry(label_of(line)).or_default() += 1;
    }
    let (names, sizes): (Vec<&str>, Vec<GroupSizes>) = sizes.into_iter().unzip();
    let hint = "add requests of other groups";
    let splits = divide(options, &labels, &sizes, "groups of requests", hint)?;
    let items: Vec<Candidate> = lines
        .iter()
        .map(|line| Candidate {
            label: label_of(line),
            split: splits[names
                .binary_search(&line.group.as_str())
                .unwrap_or_default()],
            fingerprint: Content::Request(line.request.clone()).payload_fingerprint(),
        })
        .collect();
    let repeated = find_repeats(&items, options, report)?;
    let source = files
        .iter()
        .filter_map(|file| file.strip_prefix(&options.from).ok())
        .map(|file| file.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let mut rows = Vec::new();
    let mut groups = BTreeMap::new();
    for split in options.shares.splits() {
        let path = folder.join(format!("{}.jsonl", split.name()));
        let mut text = Vec::new();
        let mut found: BTreeMap<&str, (u64, BTreeSet<&str>)> = BTreeMap::new();
        let chosen = lines.iter().zip(items.iter().zip(&repeated));
        for (line, _) in chosen.filter(|(_, (item, repeated))| item.split == split && !**repeated) {
            serde_json::to_writer(&mut text, line).map_err(|source| TrainError::Json {
                path: path.clone(),
                source,
            })?;
            writeln!(text).map_err(TrainError::io(&path))?;
            let (count, groups) = found.entry(&line.label).or_default();
            *count += 1;
            groups.insert(&line.group);
        }
        std::fs::write(&path, text).map_err(TrainError::io(&path))?;
        for (label, (requests, names)) in found {
            groups.insert(
                (split.name().to_owned(), label.to_owned()),
                names.len() as u64,
            );
            rows.push(Row {
                task: report.task.clone(),
                split: split.name().into(),
                label: label.into(),
                file: format!("{}/{}.jsonl", report.task, split.name()),
                source: source.clone(),
                flows: requests,
                packets: 0,
            });
        }
    }
    report.counts = count(&rows, |row| {
        let key = (row.split.clone(), row.label.clone());
        groups.get(&key).copied().unwrap_or(0)
    });
    Ok(rows)
}
