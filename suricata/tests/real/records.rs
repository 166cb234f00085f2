//! EVE records and the command's verdicts, brought together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

/// What a flow is known by: protocol, both ends in order, and its start in microseconds since 1970.
pub(crate) type Key = (String, [(IpAddr, u64); 2], u64);

fn key(protocol: &str, mut ends: [(IpAddr, u64); 2], start_us: u64) -> Key {
    ends.sort();
    (protocol.to_owned(), ends, start_us)
}

fn address(value: &Value) -> IpAddr {
    value.as_str().unwrap().parse().unwrap()
}

/// The key of a flow record.
pub(crate) fn key_of_record(record: &Value) -> Key {
    let protocol = match record["proto"].as_str().unwrap() {
        "IPv6-ICMP" => "icmpv6".to_owned(),
        other => other.to_lowercase(),
    };
    let end = |name: &str| {
        (
            address(&record[format!("{name}_ip")]),
            record[format!("{name}_port")].as_u64().unwrap_or(0),
        )
    };
    key(
        &protocol,
        [end("src"), end("dest")],
        microseconds(record["flow"]["start"].as_str().unwrap()),
    )
}

/// The key of a line of the command.
pub(crate) fn key_of_line(line: &Value) -> Key {
    let end = |host: &str, port: &str| (address(&line[host]), line[port].as_u64().unwrap());
    let start_us = (line["start"].as_f64().unwrap() * 1e6).round() as u64;
    key(
        line["proto"].as_str().unwrap(),
        [end("src", "sport"), end("dst", "dport")],
        start_us,
    )
}

/// A time as EVE has it, in UTC, in microseconds since 1970.
fn microseconds(text: &str) -> u64 {
    assert!(text.ends_with("+0000"), "{text}: not UTC");
    let number = |from: usize, to: usize| {
        text[from..to]
            .parse::<u64>()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    // Days by the calendar whose years begin in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + number(11, 13) * 3_600 + number(14, 16) * 60 + number(17, 19);
    seconds * 1_000_000 + number(20, 26)
}

/// Values by key. A key that is there twice is an error of the test.
pub(crate) fn by_key(values: Vec<Value>, key_of: fn(&Value) -> Key) -> BTreeMap<Key, Value> {
    let count = values.len();
    let found: BTreeMap<Key, Value> = values
        .into_iter()
        .map(|value| (key_of(&value), value))
        .collect();
    assert_eq!(found.len(), count, "two flows of the same ends and start");
    found
}

/// What is not the same in a flow record's verdict and a line of the command; empty if nothing is.
pub(crate) fn difference(object: &Value, line: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |what: &str, expected: &Value, is: &Value| {
        if expected != is {
            found.push(format!(
                "{what}: the command says {expected}, the record {is}"
            ));
        }
    };
    expect("state", &"done".into(), &object["state"]);
    expect("final", &true.into(), &object["final"]);
    expect("model", &line["model"], &object["model"]);
    expect("profile", &line["profile"], &object["profile"]);
    let verdicts = line["verdicts"].as_array().unwrap();
    let mut labels = Vec::new();
    for verdict in verdicts {
        let task = verdict["task"].as_str().unwrap();
        for member in ["label", "score", "abstained"] {
            let name = format!("{task}_{member}");
            expect(&name, &verdict[member], &object[&name]);
        }
        for member in ["evidence", "reason"] {
            let (name, expected) = (format!("{task}_{member}"), verdict.get(member));
            expect(&name, expected.unwrap_or(&Value::Null), &object[&name]);
        }
        if verdict["abstained"] == false {
            labels.push(Value::from(format!(
                "{task}/{}",
                verdict["label"].as_str().unwrap()
            )));
        }
    }
    expect("labels", &labels.into(), &object["labels"]);
    let tasks = object.as_object().map_or(0, |object| {
        object
            .keys()
            .filter(|name| name.ends_with("_label"))
            .count()
    });
    expect("number of tasks", &verdicts.len().into(), &tasks.into());
    found
}

/// The committed JSON schema of the object.
pub(crate) struct Schema {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Schema {
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/trafficllm.schema.json");
        let text = std::fs::read_to_string(path).unwrap();
        let mut compiler = boon::Compiler::new();
        compiler.enable_format_assertions();
        compiler
            .add_resource("schema.json", serde_json::from_str(&text).unwrap())
            .unwrap();
        let mut schemas = boon::Schemas::new();
        let index = compiler.compile("schema.json", &mut schemas).unwrap();
        Self { schemas, index }
    }

    /// Whether an object is as the schema says.
    pub(crate) fn error(&self, object: &Value) -> Option<String> {
        self.schemas
            .validate(object, self.index)
            .err()
            .map(|error| format!("{object}: {error:#}"))
    }

    /// Fails for the first record with an object that the schema does not allow; how many there were.
    pub(crate) fn hold(&self, records: &[Value]) -> usize {
        let objects: Vec<&Value> = records
            .iter()
            .filter_map(|record| record.get("trafficllm"))
            .filter(|_| true)
            .collect();
        for object in &objects {
            if let Some(error) = self.error(object) {
                panic!("{error}");
            }
        }
        objects.len()
    }
}
