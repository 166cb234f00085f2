//! How outcomes are written: table, JSON Lines or CSV.

use std::fmt;
use std::io::{self, Write};

use trafficllm::json::{OutcomeJson, Protocol, Score, Start};
use trafficllm::{Outcome, Subject};

use super::Format;
use super::console::printable;

/// Columns of the CSV output. Of a flow's row `request` is empty, of a request's row everything that only flows have.
const CSV_COLUMNS: [&str; 17] = [
    "capture",
    "flow",
    "request",
    "proto",
    "src",
    "sport",
    "dst",
    "dport",
    "start",
    "packets",
    "bytes",
    "profile",
    "model",
    "task",
    "label",
    "score",
    "abstained",
];

/// Further columns of the CSV output where there are heads.
const CSV_COLUMNS_OF_HEADS: [&str; 2] = ["evidence", "reason"];

/// Writes outcomes in one format.
pub(super) struct Writer {
    format: Format,
    model: String,
    profile: String,
    has_heads: bool,
    /// The source that the last row was of; the table begins a new one with its name.
    table_source: Option<usize>,
    begun: bool,
}

impl Writer {
    pub(super) fn new(format: Format, model: &str, profile: &str, has_heads: bool) -> Self {
        Self {
            format,
            model: model.to_owned(),
            profile: profile.to_owned(),
            has_heads,
            table_source: None,
            begun: false,
        }
    }

    /// Appends an outcome of the input `name`.
    pub(super) fn write(
        &mut self,
        name: &str,
        outcome: &Outcome<'_>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        match self.format {
            Format::Table => self.write_table(name, outcome, out),
            Format::Json => self.write_json(name, outcome, out),
            Format::Csv => self.write_csv(name, outcome, out),
        }
    }

    /// What a format needs even if there was no outcome.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.format == Format::Csv {
            self.begin_csv(out)
        } else {
            Ok(())
        }
    }

    fn write_json(&self, name: &str, outcome: &Outcome<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let json = OutcomeJson {
            capture: Some(name),
            profile: &self.profile,
            model: &self.model,
            outcome,
        };
        writeln!(out, "{json}")
    }

    fn begin_csv(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        let mut rows = csv::Writer::from_writer(out);
        let further = CSV_COLUMNS_OF_HEADS.into_iter().filter(|_| self.has_heads);
        rows.write_record(CSV_COLUMNS.into_iter().chain(further))?;
        rows.flush()
    }

    fn write_csv(
        &mut self,
        name: &str,
        outcome: &Outcome<'_>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.begin_csv(out)?;
        let mut rows = csv::Writer::from_writer(out);
        let subject: [String; 10] = match &outcome.subject {
            Subject::Flow(flow) => {
                let ends = flow.endpoints;
                [
                    flow.index.to_string(),
                    String::new(),
                    Protocol(ends.protocol).to_string(),
                    ends.initiator.to_string(),
                    ends.initiator_port.to_string(),
                    ends.responder.to_string(),
                    ends.responder_port.to_string(),
                    Start(flow.start_ns).to_string(),
                    flow.packets.to_string(),
                    flow.bytes.to_string(),
                ]
            }
            Subject::Request(line) => {
                let mut subject: [String; 10] = Default::default();
                subject[1] = line.to_string();
                subject
            }
        };
        for verdict in outcome.verdicts {
            rows.write_field(name)?;
            for field in &subject {
                rows.write_field(field)?;
            }
            let score = Score(verdict.score).to_string();
            let abstained = if verdict.abstained { "true" } else { "false" };
            let further = [verdict.evidence, verdict.reason];
            let fields = [
                &self.profile,
                &self.model,
                verdict.task,
                verdict.label,
                &score,
                abstained,
            ];
            rows.write_record(
                fields
                    .into_iter()
                    .chain(further.into_iter().filter(|_| self.has_heads)),
            )?;
        }
        rows.flush()
    }

    fn write_table(
        &mut self,
        name: &str,
        outcome: &Outcome<'_>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.table_source != Some(outcome.source) {
            let gap = if self.begun { "\n" } else { "" };
            writeln!(out, "{gap}{}", printable(name))?;
            writeln!(
                out,
                "{:>8}  {:<7}{:<24}  {:<24}{:>9}{:>12}  {:<28}{:<20}{:>7}",
                "flow",
                "proto",
                "source",
                "destination",
                "packets",
                "bytes",
                "task",
                "label",
                "score"
            )?;
            self.table_source = Some(outcome.source);
            self.begun = true;
        }
        let head = match &outcome.subject {
            Subject::Flow(flow) => {
                let ends = flow.endpoints;
                format!(
                    "{:>8}  {:<7}{:<24}  {:<24}{:>9}{:>12}",
                    flow.index,
                    Protocol(ends.protocol).to_string(),
                    End(ends.initiator, ends.initiator_port).to_string(),
                    End(ends.responder, ends.responder_port).to_string(),
                    flow.packets,
                    flow.bytes
                )
            }
            Subject::Request(line) => format!("{line:>8}  {:<7}{:<71}", "request", ""),
        };
        if outcome.verdicts.is_empty() {
            return writeln!(out, "{head}  (no task applies)");
        }
        let mut shown = head.as_str();
        for verdict in outcome.verdicts {
            let label = printable(verdict.label);
            let doubt = if verdict.abstained { "  abstained" } else { "" };
            write!(
                out,
                "{shown:<86}  {:<28}{label:<20}{:>7}{doubt}",
                verdict.task,
                Score(verdict.score)
            )?;
            if !verdict.reason.is_empty() {
                write!(out, ": {}", verdict.reason)?;
            }
            if !verdict.evidence.is_empty() {
                write!(out, "  {}", printable(verdict.evidence))?;
            }
            writeln!(out)?;
            shown = "";
        }
        Ok(())
    }
}

/// An address with its port where it has one.
struct End(std::net::IpAddr, u16);

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (address, 0) => write!(formatter, "{address}"),
            (address, port) => write!(formatter, "{}", std::net::SocketAddr::new(address, port)),
        }
    }
}

#[cfg(test)]
mod tests;
