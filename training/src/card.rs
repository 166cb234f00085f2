//! The model card: what the command that makes a bundle knows of it, and what its publisher has to say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use crate::bundle::BundleOptions;
use crate::data::TaskData;
use crate::error::{Result, TrainError};
use crate::files;
use crate::network::NetworkConfig;
use crate::pack::Statement;

/// Entries of the card that are not the publisher's to write.
const RESERVED: [&str; 6] = [
    "data_sha256",
    "parameters_in_embeddings",
    "parameters_in_layers",
    "recipe",
    "seed",
    "trainer",
];

/// Reads a publisher's remarks: an object of texts, each of which becomes an entry of the card. `intended_use` and `limits` take the place of
/// those that every bundle gets.
///
/// # Errors
/// As [`files::read_json`]; [`TrainError::CardEntry`] for an entry that the command writes itself.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let remarks: BTreeMap<String, String> = files::read_json(path)?;
    match RESERVED.iter().find(|name| remarks.contains_key(**name)) {
        Some(name) => Err(TrainError::CardEntry {
            path: path.into(),
            name,
        }),
        None => Ok(remarks),
    }
}

/// Everything of a manifest that says what the model is, and what its figures mean.
pub(crate) fn statement(
    options: &BundleOptions,
    data_sha256: &str,
    data_statement: Value,
    config: &NetworkConfig,
) -> Statement {
    let per_layer =
        config.hidden * (2 * config.hidden + 2 * config.kv_width() + 3 * config.feed_forward);
    let mut card = BTreeMap::from([
        (
            "intended_use".to_owned(),
            json!(
                "triage of network flows by an analyst; labels are those of the data sets named in the data statement"
            ),
        ),
        (
            "limits".to_owned(),
            json!(
                "other networks than those of the data look different, and scores will be lower there"
            ),
        ),
    ]);
    let remarks = options.remarks.iter();
    card.extend(remarks.map(|(name, text)| (name.clone(), json!(text))));
    // Last, so that no remark stands in their place.
    card.extend([
        ("recipe".to_owned(), json!(options.recipe)),
        ("seed".to_owned(), json!(options.seed)),
        ("data_sha256".to_owned(), json!(data_sha256)),
        (
            "trainer".to_owned(),
            json!(format!("trafficllm-train {}", env!("CARGO_PKG_VERSION"))),
        ),
        (
            "parameters_in_layers".to_owned(),
            json!(per_layer * config.layers),
        ),
        (
            "parameters_in_embeddings".to_owned(),
            json!(config.vocabulary * config.hidden),
        ),
    ]);
    let metrics_protocol = json!({
        "split": "val, divided from train by leakage group; also used to choose the checkpoint and to calibrate, so it flatters a little",
        "macro_f1": "mean over the labels with at least one item in the split; abstained answers count with their best label",
        "macro_f1_supported": "the same over the labels with at least 20 items",
        "unseen": "without the items whose payload also stands in train",
        "hidden_from_the_model": "addresses, MACs, absolute times, IP id, TTL, checksums, sequence numbers",
        "ports_visible": options.recipe.profile.ports,
        "engine": "the quantised engine of this bundle",
        "seeds": "one (this model); see the project's results table for others",
    });
    Statement {
        id: options.id.clone(),
        name: "Flow and request classifier".to_owned(),
        card,
        metrics_protocol,
        data_statement,
        licence: "MIT OR Apache-2.0".to_owned(),
    }
}

/// What data a model was made from.
pub(crate) fn data_statement(
    folder: &Path,
    train: &[TaskData],
    vals: &[TaskData],
    others: &[TaskData],
) -> Value {
    let sources = sources(folder);
    let of = |task: &str| sources.get(task).cloned().unwrap_or_default();
    let tuned: BTreeMap<&str, Value> = train
        .iter()
        .zip(vals)
        .map(|(train, val)| {
            let statement = json!({
                "labels": train.labels.len(),
                "train_items": train.items.len(),
                "train_groups": train.groups.len(),
                "val_items": val.items.len(),
                "val_groups": val.groups.len(),
                "sources": of(&train.task),
            });
            (train.task.as_str(), statement)
        })
        .collect();
    let read: BTreeMap<&str, Value> = others
        .iter()
        .map(|data| {
            (
                data.task.as_str(),
                json!({"items": data.items.len(), "sources": of(&data.task)}),
            )
        })
        .collect();
    json!({
        "tasks": tuned,
        "pretraining_only": read,
        "note": "no item of it is part of this bundle, self-tests are made up",
    })
}

/// The sources per task, where the data folder has a `MANIFEST.csv` (task,split,label,file,source,...). A row that cannot be read is told and
/// left out: the figures do not depend on it.
fn sources(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut sources: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let path = folder.join("MANIFEST.csv");
    if !path.is_file() {
        return sources;
    }
    let rows = csv::ReaderBuilder::new().flexible(true).from_path(&path);
    let rows = rows.map(csv::Reader::into_records).into_iter().flatten();
    for row in rows {
        match row {
            Ok(row) => {
                if let (Some(task), Some(source)) = (row.get(0), row.get(4)) {
                    let of_task = sources.entry(task.to_owned()).or_default();
                    of_task.insert(source.to_owned());
                }
            }
            Err(error) => tracing::warn!("{}: {error}", path.display()),
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_with_their_commas() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(sources(folder.path()).is_empty(), "there is no manifest");
        let text = "task,split,label,file,source,flows\n\
                    a,train,x,x.pcap,\"one, and two\",3\na,val,x,y.pcap,three,1\nb,train,y,z.pcap\n";
        std::fs::write(folder.path().join("MANIFEST.csv"), text).expect("written");
        let found = sources(folder.path());
        let of_a: Vec<&String> = found["a"].iter().collect();
        assert_eq!(of_a, ["one, and two", "three"]);
        assert!(!found.contains_key("b"), "its row ends before the source");
    }

    #[test]
    fn remarks_are_texts_under_names_that_are_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("card.json");
        let read_text = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read(&path).map_err(|error| error.to_string())
        };
        let remarks = read_text(r#"{"limits": "none known", "lab": "one"}"#).expect("remarks");
        assert_eq!(remarks["limits"], "none known");
        assert_eq!(remarks["lab"], "one");
        let taken = read_text(r#"{"seed": "3"}"#).expect_err("the command's own");
        assert!(taken.contains("card.json: seed"), "{taken}");
        let number = read_text(r#"{"limits": 3}"#).expect_err("no text");
        assert!(number.contains("card.json"), "{number}");
    }
}
