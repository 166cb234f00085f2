//! The `trafficllm` object in EVE records.

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::fmt::Write as _;

use crate::collect;
use crate::host::symbols::{Flow, JsonBuilder, Packet, ThreadVars};
use crate::limits::EVE_HEAD_BYTES;
use crate::plugin::{self, Plugin};

thread_local! {
    /// The object that is being written; only its memory is kept.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Suricata is about to end a record.
///
/// # Safety
/// Suricata calls it, with a live record, and NULL or a live flow whose lock the calling thread holds.
pub unsafe extern "C" fn on_record(
    _thread: *mut ThreadVars,
    _packet: *const Packet,
    flow: *mut Flow,
    record: *mut JsonBuilder,
    _data: *mut c_void,
) {
    let Some(plugin) = plugin::get() else { return };
    if flow.is_null() || record.is_null() {
        return;
    }
    // SAFETY: Suricata gives a live record and a flow whose lock this thread holds.
    crate::guarded((), || unsafe { extend(plugin, flow, record) });
}

/// # Safety
/// A live record, and a live flow whose lock this thread holds.
unsafe fn extend(plugin: &Plugin, flow: *mut Flow, record: *mut JsonBuilder) {
    // SAFETY: as the caller says; the bytes are not used after the record changes.
    let head = unsafe { plugin.host.record_start(record, EVE_HEAD_BYTES) };
    let Some(kind) = event_type(head) else { return };
    let is_wanted = plugin
        .config
        .eve_types
        .iter()
        .any(|wanted| wanted.as_bytes() == kind);
    let is_flow_record = kind == b"flow";
    if !is_wanted && !is_flow_record {
        return;
    }
    // SAFETY: as the caller says.
    let Some(followed) = (unsafe { collect::followed(plugin, flow) }) else {
        return;
    };
    if is_flow_record {
        collect::at_record(plugin, followed, flow_id(head));
    }
    // What is no flow record has no place for "not yet".
    if !is_wanted || (followed.verdict().is_none() && !is_flow_record) {
        return;
    }
    TEXT.with(|text| {
        let Ok(mut text) = text.try_borrow_mut() else {
            return;
        };
        text.clear();
        text.push_str("\"trafficllm\":{");
        match followed.verdict() {
            Some(verdict) => verdict.write_json(&mut text, followed.is_final()),
            None => {
                // Writing to a String does not fail.
                let _ = write!(text, "\"state\":\"{}\"", collect::word_of(plugin, followed));
            }
        }
        text.push('}');
        let Ok(member) = CString::new(text.as_bytes()) else {
            return;
        };
        // SAFETY: the record lives; nothing of it is used after this. Without memory for it the record stays as it was.
        let _ = unsafe { plugin.host.add_to_record(record, &member) };
    });
}

/// What stands behind `"event_type":"` in the start of a record.
fn event_type(head: &[u8]) -> Option<&[u8]> {
    let rest = behind(head, b"\"event_type\":\"")?;
    let end = rest.iter().position(|&byte| byte == b'"')?;
    rest.get(..end)
}

/// What stands behind `"flow_id":` in the start of a record.
fn flow_id(head: &[u8]) -> Option<u64> {
    let rest = behind(head, b"\"flow_id\":")?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}

fn behind<'a>(text: &'a [u8], mark: &[u8]) -> Option<&'a [u8]> {
    let place = text.windows(mark.len()).position(|found| found == mark)?;
    text.get(place + mark.len()..)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = br#"{"timestamp":"2026-01-01T00:00:00.000000+0000","flow_id":1234,"in_iface":"eth0","event_type":"flow","src_ip":"#;

    #[test]
    fn type_and_flow_are_found_in_the_start_of_a_record() {
        assert_eq!(event_type(HEAD), Some(&b"flow"[..]));
        assert_eq!(flow_id(HEAD), Some(1234));
    }

    #[test]
    fn a_record_that_is_cut_has_neither() {
        for end in 0..HEAD.len() {
            let head = &HEAD[..end];
            assert!(event_type(head).is_none_or(|kind| kind == b"flow"));
            assert!(flow_id(head).is_none_or(|found| found == 1234));
        }
        assert_eq!(event_type(b"\"event_type\":\"flow"), None);
        assert_eq!(flow_id(b"\"flow_id\":99"), None);
        assert_eq!(flow_id(b"\"flow_id\":99999999999999999999999,"), None);
    }
}
