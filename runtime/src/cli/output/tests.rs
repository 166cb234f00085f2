use std::net::IpAddr;

use trafficllm::{Endpoints, FlowInfo, Verdict};

use super::*;

const VERDICTS: [Verdict<'static>; 2] = [
    Verdict {
        task: "malware_traffic_detection",
        label: "Zeus",
        task_index: 0,
        label_index: 0,
        score: 0.973,
        abstained: false,
        evidence: "",
        reason: "",
    },
    Verdict {
        task: "botnet_detection",
        label: "a \"b\",c",
        task_index: 0,
        label_index: 0,
        score: 0.500_04,
        abstained: true,
        evidence: "",
        reason: "",
    },
];

fn flow(protocol: u8, start_ns: u64) -> Subject {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    Subject::Flow(FlowInfo {
        index: 0,
        endpoints: Endpoints {
            initiator: address("10.0.0.1"),
            responder: address("2001:db8::2"),
            initiator_port: 40_001,
            responder_port: 443,
            protocol,
        },
        start_ns,
        packets: 12,
        bytes: 4_321,
    })
}

fn written(format: Format, subjects: &[Subject], verdicts: &[Verdict<'_>]) -> String {
    let mut writer = Writer::new(format, "0123456789abcdef", "clean", false);
    let mut out = Vec::new();
    for subject in subjects {
        let outcome = Outcome {
            source: 0,
            subject: *subject,
            verdicts,
        };
        writer.write("a.pcap", &outcome, &mut out).unwrap();
    }
    writer.finish(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn json_has_the_keys_in_their_order() {
    let expected = concat!(
        r#"{"capture":"a.pcap","flow":0,"proto":"tcp","src":"10.0.0.1","sport":40001,"dst":"2001:db8::2","dport":443,"#,
        r#""start":1700000000.123456,"packets":12,"bytes":4321,"profile":"clean","model":"0123456789abcdef","#,
        r#""verdicts":[{"task":"malware_traffic_detection","label":"Zeus","score":0.9730,"abstained":false},"#,
        r#"{"task":"botnet_detection","label":"a \"b\",c","score":0.5000,"abstained":true}]}"#,
        "\n"
    );
    assert_eq!(
        written(
            Format::Json,
            &[flow(6, 1_700_000_000_123_456_789)],
            &VERDICTS
        ),
        expected
    );
}

#[test]
fn json_of_a_request_has_its_line_instead_of_the_flow() {
    let text = written(Format::Json, &[Subject::Request(7)], &VERDICTS[..1]);
    let expected = concat!(
        r#"{"capture":"a.pcap","request":7,"profile":"clean","model":"0123456789abcdef","#,
        r#""verdicts":[{"task":"malware_traffic_detection","label":"Zeus","score":0.9730,"abstained":false}]}"#,
        "\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn an_outcome_without_verdicts_is_still_written() {
    assert!(written(Format::Json, &[flow(6, 0)], &[]).ends_with("\"verdicts\":[]}\n"));
    assert!(written(Format::Table, &[flow(6, 0)], &[]).contains("(no task applies)"));
}

#[test]
fn the_start_keeps_leading_zeros_of_its_fraction() {
    let text = written(Format::Json, &[flow(6, 5_000_042_999)], &[]);
    assert!(text.contains("\"start\":5.000042,"), "{text}");
}

#[test]
fn protocols_have_names_or_numbers() {
    for (protocol, name) in [
        (1, "icmp"),
        (6, "tcp"),
        (17, "udp"),
        (58, "icmpv6"),
        (132, "132"),
    ] {
        let text = written(Format::Json, &[flow(protocol, 0)], &[]);
        assert!(text.contains(&format!("\"proto\":\"{name}\"")), "{text}");
    }
}

#[test]
fn csv_has_one_row_per_flow_and_task() {
    let text = written(
        Format::Csv,
        &[flow(6, 1_500_000_000), Subject::Request(3)],
        &VERDICTS,
    );
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(
        rows.headers().unwrap().iter().collect::<Vec<_>>(),
        CSV_COLUMNS
    );
    let rows: Vec<csv::StringRecord> = rows.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 4);
    let first: Vec<&str> = rows[1].iter().collect();
    assert_eq!(
        first[..9],
        [
            "a.pcap",
            "0",
            "",
            "tcp",
            "10.0.0.1",
            "40001",
            "2001:db8::2",
            "443",
            "1.500000"
        ]
    );
    assert_eq!(
        first[13..],
        ["botnet_detection", "a \"b\",c", "0.5000", "true"]
    );
    assert_eq!(
        rows[2].iter().take(4).collect::<Vec<_>>(),
        ["a.pcap", "", "3", ""]
    );
}

#[test]
fn csv_has_its_header_even_without_rows() {
    assert_eq!(
        written(Format::Csv, &[], &[]),
        format!("{}\n", CSV_COLUMNS.join(","))
    );
}

#[test]
fn the_table_shows_doubt_and_ipv6_ports() {
    let text = written(Format::Table, &[flow(6, 0)], &VERDICTS);
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("[2001:db8::2]:443"), "{text}");
    assert!(
        text.lines().last().unwrap().ends_with("0.5000  abstained"),
        "{text}"
    );
}
