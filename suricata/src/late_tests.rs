//! Lines of the late file.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::verdict::{Names, State};

#[test]
fn dates_are_those_of_the_calendar() {
    for (day, date) in [
        (0, (1970, 1, 1)),
        (58, (1970, 2, 28)),
        (59, (1970, 3, 1)),
        (364, (1970, 12, 31)),
        (789, (1972, 2, 29)),
        (11_016, (2000, 2, 29)),
        (11_017, (2000, 3, 1)),
        (20_454, (2026, 1, 1)),
        (47_540, (2100, 2, 28)),
        (47_541, (2100, 3, 1)),
    ] {
        assert_eq!(date_of(day), date, "{day}");
    }
}

#[test]
fn what_is_no_file_is_not_opened_and_not_waited_for() {
    let folder = tempfile::TempDir::new().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    assert!(open(&fifo).is_err(), "nobody reads it");
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo);
    let found = open(&fifo).unwrap_err();
    assert_eq!(found.kind(), ErrorKind::InvalidInput, "somebody reads it");
    drop(reader);
    assert!(open(folder.path()).is_err());
    assert!(open(&folder.path().join("file")).is_ok());
}

/// A disk with so much room.
struct Disk {
    text: Vec<u8>,
    room: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let fitting = bytes.len().min(self.room - self.text.len());
        if fitting == 0 {
            return Err(ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(&bytes[..fitting]);
        Ok(fitting)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_that_was_torn_spoils_no_other() {
    // Full before the second line, within it, before its end, and again after its end was written.
    for (room, lines) in [
        (4, ["one", "four"].as_slice()),
        (6, &["one", "tw", "four"]),
        (7, &["one", "two", "four"]),
    ] {
        for tries_while_full in 1..3 {
            let mut disk = Disk {
                text: Vec::new(),
                room,
            };
            let mut is_torn = false;
            append_line(&mut disk, "one\n", &mut is_torn).unwrap();
            for _ in 0..tries_while_full {
                append_line(&mut disk, "two\n", &mut is_torn).unwrap_err();
            }
            assert_eq!(is_torn, room > 4);
            disk.room += 1;
            if is_torn {
                // Room for the end of the torn line only.
                append_line(&mut disk, "three\n", &mut is_torn).unwrap_err();
                assert!(!is_torn);
            }
            disk.room = 100;
            append_line(&mut disk, "four\n", &mut is_torn).unwrap();
            let text = String::from_utf8(disk.text).unwrap();
            assert_eq!(text.lines().collect::<Vec<_>>(), lines, "{room}");
        }
    }
}

fn line(about: About) -> serde_json::Value {
    let verdict = FlowVerdict {
        names: Arc::new(Names::example(&[])),
        state: State::Done,
        packets: 2,
        generation: 1,
        latency_us: 5,
        judgements: Vec::new(),
        heads: Vec::new(),
    };
    let mut text = String::new();
    let now = UNIX_EPOCH + Duration::from_micros(1_767_322_987_654_321);
    write_line(&mut text, now, &about, &verdict, true);
    assert!(text.ends_with("}\n"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_line_names_its_flow_as_eve_does() {
    let mut about = About {
        flow_id: 42,
        ip_version: 4,
        protocol: packet::TCP,
        ..About::default()
    };
    about.initiator.address[..4].copy_from_slice(&[192, 0, 2, 1]);
    about.initiator.port = 4_000;
    about.responder.address[..4].copy_from_slice(&[192, 0, 2, 2]);
    about.responder.port = 443;
    let found = line(about);
    assert_eq!(found["timestamp"], "2026-01-02T03:03:07.654321+0000");
    assert_eq!(
        (&found["flow_id"], &found["event_type"]),
        (&42.into(), &"trafficllm".into())
    );
    assert_eq!(
        (&found["src_ip"], &found["src_port"]),
        (&"192.0.2.1".into(), &4_000.into())
    );
    assert_eq!(
        (&found["dest_ip"], &found["dest_port"]),
        (&"192.0.2.2".into(), &443.into())
    );
    assert_eq!(
        (&found["proto"], &found["trafficllm"]["final"]),
        (&"TCP".into(), &true.into())
    );
}

#[test]
fn without_ports_none_are_written() {
    let mut about = About {
        ip_version: 6,
        protocol: packet::ICMP_V6,
        ..About::default()
    };
    about.initiator.address[..2].copy_from_slice(&[0xfe, 0x80]);
    let found = line(about);
    assert_eq!(found["src_ip"], "fe80:0000:0000:0000:0000:0000:0000:0000");
    assert_eq!(found["proto"], "IPv6-ICMP");
    assert!(found.get("src_port").is_none() && found.get("dest_port").is_none());
}
