//! Outcomes as JSON, and how the values of an outcome are written wherever it goes.

use std::fmt::{Display, Error, Formatter, Result};

use crate::outcome::{FlowInfo, Outcome, Subject, Verdict};

/// An outcome as one JSON object on one line, without the line's end.
///
/// The keys and their order are part of the interface: `capture`, of a flow `flow`, `proto`, `src`, `sport`, `dst`, `dport`, `start`,
/// `packets` and `bytes`, of a request `request`, then `profile`, `model` and `verdicts`.
#[derive(Clone, Copy, Debug)]
pub struct OutcomeJson<'a> {
    /// Name of the capture; `None` leaves the key out.
    pub capture: Option<&'a str>,
    /// [`crate::Model::profile_name`].
    pub profile: &'a str,
    /// [`crate::Model::id`].
    pub model: &'a str,
    /// The flow or request and its verdicts.
    pub outcome: &'a Outcome<'a>,
}

impl Display for OutcomeJson<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        out.write_str("{")?;
        if let Some(capture) = self.capture {
            write!(out, "\"capture\":{},", Quoted(capture))?;
        }
        match &self.outcome.subject {
            Subject::Flow(flow) => write_flow(flow, out)?,
            Subject::Request(line) => write!(out, "\"request\":{line},")?,
        }
        write!(
            out,
            "\"profile\":{},\"model\":{},\"verdicts\":{}}}",
            Quoted(self.profile),
            Quoted(self.model),
            VerdictsJson(self.outcome.verdicts)
        )
    }
}

fn write_flow(flow: &FlowInfo, out: &mut Formatter<'_>) -> Result {
    let ends = flow.endpoints;
    write!(
        out,
        "\"flow\":{},\"proto\":\"{}\",",
        flow.index,
        Protocol(ends.protocol)
    )?;
    write!(
        out,
        "\"src\":\"{}\",\"sport\":{},",
        ends.initiator, ends.initiator_port
    )?;
    write!(
        out,
        "\"dst\":\"{}\",\"dport\":{},",
        ends.responder, ends.responder_port
    )?;
    write!(out, "\"start\":{},", Start(flow.start_ns))?;
    write!(
        out,
        "\"packets\":{},\"bytes\":{},",
        flow.packets, flow.bytes
    )
}

/// Verdicts as a JSON array of objects with the keys `task`, `label`, `score` and `abstained`; those of heads also have `evidence` and
/// `reason` where these are not empty.
#[derive(Clone, Copy, Debug)]
pub struct VerdictsJson<'a>(pub &'a [Verdict<'a>]);

impl Display for VerdictsJson<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        out.write_str("[")?;
        for (index, verdict) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(
                out,
                "{comma}{{\"task\":{},\"label\":{},\"score\":{},\"abstained\":{}",
                Quoted(verdict.task),
                Quoted(verdict.label),
                Score(verdict.score),
                verdict.abstained
            )?;
            for (key, text) in [("evidence", verdict.evidence), ("reason", verdict.reason)] {
                if !text.is_empty() {
                    write!(out, ",\"{key}\":{}", Quoted(text))?;
                }
            }
            out.write_str("}")?;
        }
        out.write_str("]")
    }
}

/// A JSON string.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        out.write_str(&serde_json::to_string(self.0).map_err(|_| Error)?)
    }
}

/// The name of an IP protocol, or its number where it has none here.
#[derive(Clone, Copy, Debug)]
pub struct Protocol(pub u8);

impl Display for Protocol {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self.0 {
            1 => out.write_str("icmp"),
            6 => out.write_str("tcp"),
            17 => out.write_str("udp"),
            58 => out.write_str("icmpv6"),
            number => write!(out, "{number}"),
        }
    }
}

/// A time in nanoseconds since the Unix epoch as seconds with six decimals; what is below a microsecond is cut off.
#[derive(Clone, Copy, Debug)]
pub struct Start(pub u64);

impl Display for Start {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let micros = self.0 / 1_000;
        write!(out, "{}.{:06}", micros / 1_000_000, micros % 1_000_000)
    }
}

/// A score with four decimals: more would pretend to a precision that calibration does not have.
#[derive(Clone, Copy, Debug)]
pub struct Score(pub f32);

impl Display for Score {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        out.pad(&format!("{:.4}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use trafficllm_traffic::Endpoints;

    use super::*;

    const VERDICTS: [Verdict<'static>; 2] = [
        Verdict {
            task: "vpn_detection",
            label: "a \"b\",\u{7}",
            task_index: 0,
            label_index: 0,
            score: 0.973,
            abstained: false,
            evidence: "",
            reason: "",
        },
        Verdict {
            task: "botnet_detection",
            label: "Zeus",
            task_index: 0,
            label_index: 0,
            score: 0.500_04,
            abstained: true,
            evidence: "",
            reason: "",
        },
    ];

    fn flow() -> Subject {
        Subject::Flow(FlowInfo {
            index: 3,
            endpoints: Endpoints {
                initiator: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
                responder: IpAddr::V6(Ipv6Addr::LOCALHOST),
                initiator_port: 40_001,
                responder_port: 443,
                protocol: 6,
            },
            start_ns: 5_000_042_999,
            packets: 12,
            bytes: 4_321,
        })
    }

    fn written(capture: Option<&str>, subject: Subject, verdicts: &[Verdict<'_>]) -> String {
        let outcome = Outcome {
            source: 0,
            subject,
            verdicts,
        };
        OutcomeJson {
            capture,
            profile: "clean",
            model: "0123456789abcdef",
            outcome: &outcome,
        }
        .to_string()
    }

    #[test]
    fn an_object_has_its_keys_in_their_order() {
        let expected = concat!(
            r#"{"capture":"a\\b.pcap","flow":3,"proto":"tcp","src":"10.0.0.1","sport":40001,"dst":"::1","dport":443,"#,
            r#""start":5.000042,"packets":12,"bytes":4321,"profile":"clean","model":"0123456789abcdef","#,
            r#""verdicts":[{"task":"vpn_detection","label":"a \"b\",\u0007","score":0.9730,"abstained":false},"#,
            r#"{"task":"botnet_detection","label":"Zeus","score":0.5000,"abstained":true}]}"#,
        );
        assert_eq!(written(Some("a\\b.pcap"), flow(), &VERDICTS), expected);
    }

    #[test]
    fn without_a_capture_its_key_is_left_out() {
        assert_eq!(
            written(None, Subject::Request(7), &[]),
            r#"{"request":7,"profile":"clean","model":"0123456789abcdef","verdicts":[]}"#
        );
    }

    #[test]
    fn every_object_is_json() {
        for verdicts in [&VERDICTS[..0], &VERDICTS[..1], &VERDICTS] {
            for subject in [flow(), Subject::Request(u64::MAX)] {
                let text = written(Some("\u{1}\n\"é"), subject, verdicts);
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value["capture"], "\u{1}\n\"é");
                let array: serde_json::Value =
                    serde_json::from_str(&VerdictsJson(verdicts).to_string()).unwrap();
                assert_eq!(value["verdicts"], array);
                assert_eq!(array.as_array().map(Vec::len), Some(verdicts.len()));
            }
        }
    }
}
