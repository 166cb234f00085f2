//! The flows of captures.

use std::path::{Path, PathBuf};
use std::{fs, io};

use trafficllm::{Flow, Model};
use trafficllm_traffic::{CaptureReader, FlowTable, decode};

use crate::Failure;

/// All files below a folder, in the order of their names; none where it is not there.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Flows of the captures below a folder; what is no capture is passed over.
pub(crate) fn of_folder(model: &Model, folder: &Path) -> Result<Vec<Flow>, Failure> {
    let mut paths = Vec::new();
    files(folder, &mut paths)?;
    let mut flows = Vec::new();
    for path in paths {
        let bytes = fs::read(path)?;
        let Ok(mut reader) = CaptureReader::new(bytes.as_slice()) else {
            continue;
        };
        let mut table = FlowTable::new(model.flow_config())?;
        while let Ok(Some(raw)) = reader.next_packet() {
            if let Ok(packet) = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns) {
                table.push(&packet, &mut |flow| flows.push(flow));
            }
        }
        table.flush(&mut |flow| flows.push(flow));
    }
    Ok(flows)
}

/// Flows of the `val` captures of all tasks, where the data is there.
pub(crate) fn of_data(model: &Model, data: &Path) -> Result<Vec<Flow>, Failure> {
    let Ok(tasks) = fs::read_dir(data) else {
        return Ok(Vec::new());
    };
    let mut folders = tasks
        .map(|entry| Ok(entry?.path().join("val")))
        .collect::<io::Result<Vec<_>>>()?;
    folders.sort();
    let mut flows = Vec::new();
    for folder in folders {
        flows.extend(of_folder(model, &folder)?);
    }
    Ok(flows)
}
