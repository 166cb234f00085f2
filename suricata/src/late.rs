//! The file of verdicts that came after the record of their flow.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::host::packet::{self, Endpoint};
use crate::host::{Level, log};
use crate::plugin::Plugin;
use crate::table::{About, Left};
use crate::verdict::FlowVerdict;

/// The file, opened with its first line and appended to.
#[derive(Debug)]
pub struct LateFile {
    path: PathBuf,
    file: Option<File>,
    is_error_told: bool,
    line: String,
    /// Whether the last line was written in part: it is ended before the next one.
    is_torn: bool,
}

impl LateFile {
    /// The file of the configuration.
    #[must_use]
    pub fn new(plugin: &Plugin) -> Self {
        Self {
            path: plugin.host.log_directory().join(&plugin.config.late_file),
            file: None,
            is_error_told: false,
            line: String::new(),
            is_torn: false,
        }
    }

    /// Writes what has come since the last time.
    pub fn write(&mut self, plugin: &Plugin) {
        while let Some(number) = plugin.table.take_late() {
            let letter = plugin.table.place(number).and_then(|place| {
                let mut letter = place.open();
                let verdict = letter.verdict.take()?;
                let is_final = verdict.packets >= place.packets.load(Ordering::Acquire);
                Some((letter.about, verdict, is_final))
            });
            if let Some((about, verdict, is_final)) = letter {
                plugin.counters.late.add(1);
                if !self.append(&about, &verdict, is_final) {
                    plugin.counters.late_lost.add(1);
                }
            }
            if plugin.table.written(number) == Left::Free {
                plugin.free(number);
            }
        }
    }

    fn append(&mut self, about: &About, verdict: &FlowVerdict, is_final: bool) -> bool {
        self.line.clear();
        write_line(&mut self.line, SystemTime::now(), about, verdict, is_final);
        let written = self.file().and_then(|mut file| {
            append_line(&mut file, &self.line, &mut self.is_torn)?;
            Ok(file)
        });
        match written {
            Ok(file) => {
                self.file = Some(file);
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_error_told, true) {
                    log(
                        Level::Error,
                        &format!("late-file {}: {error}", self.path.display()),
                    );
                }
                false
            }
        }
    }

    /// The open file. One that was moved away, as log rotation does, is left and begun anew.
    fn file(&mut self) -> std::io::Result<File> {
        match self.file.take() {
            Some(file) if is_at(&file, &self.path) => Ok(file),
            _ => {
                let file = open(&self.path)?;
                // Another file has no torn line.
                self.is_torn &= file.metadata()?.len() > 0;
                Ok(file)
            }
        }
    }
}

/// Opens the file to append to. Nothing but a file: it does not wait for the reader of a FIFO.
fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    regular(file)
}

/// The file, if it is one that writing to does not wait for anybody.
pub fn regular(file: File) -> std::io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::new(ErrorKind::InvalidInput, "is no file"))
    }
}

/// Appends a line; on one of its own, if the one before was written in part.
fn append_line(file: &mut impl Write, line: &str, is_torn: &mut bool) -> std::io::Result<()> {
    let end = if *is_torn { "\n" } else { "" };
    for text in [end, line] {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    *is_torn = rest.get(written - 1) != Some(&b'\n');
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let open = file.metadata().map(identity);
    matches!((open, std::fs::metadata(path).map(identity)), (Ok(open), Ok(there)) if open == there)
}

/// A line as Suricata writes EVE records.
fn write_line(
    out: &mut String,
    now: SystemTime,
    about: &About,
    verdict: &FlowVerdict,
    is_final: bool,
) {
    let proto = match about.protocol {
        packet::TCP => "TCP".to_owned(),
        packet::UDP => "UDP".to_owned(),
        packet::ICMP => "ICMP".to_owned(),
        packet::ICMP_V6 => "IPv6-ICMP".to_owned(),
        other => format!("{other:03}"),
    };
    // Writing to a String does not fail.
    let _ = write!(
        out,
        "{{\"timestamp\":\"{}\",\"flow_id\":{},\"event_type\":\"trafficllm\",\"src_ip\":\"{}\"",
        timestamp(now),
        about.flow_id,
        address(about.ip_version, &about.initiator)
    );
    let has_ports = matches!(about.protocol, packet::TCP | packet::UDP);
    if has_ports {
        let _ = write!(out, ",\"src_port\":{}", about.initiator.port);
    }
    let _ = write!(
        out,
        ",\"dest_ip\":\"{}\"",
        address(about.ip_version, &about.responder)
    );
    if has_ports {
        let _ = write!(out, ",\"dest_port\":{}", about.responder.port);
    }
    let _ = write!(out, ",\"proto\":\"{proto}\",\"trafficllm\":{{");
    verdict.write_json(out, is_final);
    out.push_str("}}\n");
}

fn address(ip_version: u8, endpoint: &Endpoint) -> String {
    if ip_version == 4 {
        let [a, b, c, d, ..] = endpoint.address;
        Ipv4Addr::new(a, b, c, d).to_string()
    } else {
        // Suricata writes all groups with four digits.
        let groups = Ipv6Addr::from(endpoint.address).segments();
        let groups = groups.map(|group| format!("{group:04x}"));
        groups.join(":")
    }
}

/// A time as EVE has it, in UTC: "2026-01-02T03:04:05.678901+0000".
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date_of(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}+0000",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// Year, month and day of a day since 1970-01-01, by the proleptic Gregorian calendar.
fn date_of(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut rest) = (1970, days);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
#[path = "late_tests.rs"]
mod tests;
