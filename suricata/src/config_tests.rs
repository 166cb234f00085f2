//! Every key: its default, its borders, what is no value of it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

fn text(key: &str, value: &str) -> (String, Value) {
    (key.to_owned(), Value::Text(value.to_owned()))
}

fn read(block: &[(String, Value)]) -> Result<Config, String> {
    Config::read(block).map_err(|error| error.to_string())
}

#[test]
fn an_empty_block_gives_the_defaults() {
    let config = read(&[]).unwrap();
    assert!(config.enabled);
    assert_eq!(config.bundle, "");
    assert_eq!(config.eve_types, ["flow", "alert"]);
    assert_eq!(config.overload, Overload::Shed);
    assert_eq!(u64::from(config.packets), limits::EARLY_PACKETS_DEFAULT);
    assert_eq!(config.log_level, "info");
}

#[test]
fn every_default_is_a_value_of_its_key() {
    for key in KEYS {
        let default = match key.kind {
            Kind::Switch { default } => if default { "yes" } else { "no" }.to_owned(),
            Kind::Number { default, .. } | Kind::Bytes { default, .. } => default.to_string(),
            Kind::Fraction { default, .. } => default.to_string(),
            Kind::Choice { words } => words[0].to_owned(),
            Kind::Text { default } | Kind::List { default, .. } => default.to_owned(),
        };
        assert_eq!(read(&[text(key.name, &default)]), read(&[]), "{}", key.name);
        assert!(key.help.ends_with('.'), "{}", key.name);
    }
}

#[test]
fn numbers_end_at_their_borders() {
    for key in KEYS {
        let Kind::Number {
            minimum, maximum, ..
        } = key.kind
        else {
            continue;
        };
        for good in [minimum, maximum] {
            assert!(
                read(&[text(key.name, &good.to_string())]).is_ok(),
                "{}",
                key.name
            );
        }
        let beyond = [
            (maximum + 1).to_string(),
            "-1".to_owned(),
            "many".to_owned(),
            String::new(),
        ];
        for bad in beyond {
            let error = read(&[text(key.name, &bad)]).unwrap_err();
            assert!(
                error.starts_with(&format!("trafficllm.{}: expected", key.name)),
                "{error}"
            );
        }
        if minimum > 0 {
            assert!(read(&[text(key.name, &(minimum - 1).to_string())]).is_err());
        }
    }
}

#[test]
fn fractions_end_at_their_borders() {
    assert_eq!(read(&[text("min-score", "0.5")]).unwrap().min_score, 0.5);
    assert_eq!(read(&[text("min-score", "1")]).unwrap().min_score, 1.0);
    for bad in ["1.01", "-0.1", "NaN", "half"] {
        assert!(read(&[text("min-score", bad)]).is_err(), "{bad}");
    }
}

#[test]
fn bytes_take_units() {
    let budget =
        |value: &str| read(&[text("memory-budget", value)]).map(|config| config.memory_bytes);
    assert_eq!(budget("0"), Ok(0));
    assert_eq!(budget("64mb"), Ok(64 << 20));
    assert_eq!(budget("1 GB"), Ok(1 << 30));
    assert_eq!(budget("65536kb"), Ok(64 << 20));
    for bad in ["1kb", "-1mb", "64m", "mb", "99999999999gb"] {
        assert!(budget(bad).is_err(), "{bad}");
    }
}

#[test]
fn lists_are_sequences_or_words_with_commas() {
    let sequence = Value::List(vec!["flow".to_owned(), "tls".to_owned()]);
    let config = read(&[("eve-types".to_owned(), sequence)]).unwrap();
    assert_eq!(config.eve_types, ["flow", "tls"]);
    assert_eq!(read(&[text("eve-types", "flow, tls")]).unwrap(), config);
    assert!(
        read(&[("eve-types".to_owned(), Value::Empty)])
            .unwrap()
            .eve_types
            .is_empty()
    );
    let error = read(&[text("eve-types", "flow,stats")]).unwrap_err();
    assert!(
        error.contains("\"stats\"") && error.contains("netflow"),
        "{error}"
    );
    assert!(read(&[("tasks".to_owned(), Value::List(vec!["a,b".to_owned()]))]).is_err());
}

#[test]
fn what_is_no_key_is_told() {
    let error = read(&[text("bundel", "x")]).unwrap_err();
    assert!(
        error.starts_with("trafficllm.bundel is no key; known are enabled, library, bundle"),
        "{error}"
    );
    assert_eq!(
        read(&[text("workers", "1"), text("workers", "2")]).unwrap_err(),
        "trafficllm.workers is given twice"
    );
    assert!(read(&[("workers".to_owned(), Value::Block)]).is_err());
    assert!(read(&[("workers".to_owned(), Value::List(Vec::new()))]).is_err());
}

#[test]
fn words_are_told_apart() {
    assert_eq!(
        read(&[text("overload", "Pause")]).unwrap().overload,
        Overload::Pause
    );
    assert!(!read(&[text("enabled", "no")]).unwrap().enabled);
    assert!(read(&[text("enabled", "maybe")]).is_err());
    assert!(read(&[text("overload", "block")]).is_err());
    let long = "x".repeat(limits::TEXT_BYTES_MAX + 1);
    assert!(read(&[text("library", &long)]).is_err());
    assert!(read(&[text("library", &long[1..])]).is_ok());
}

#[test]
fn the_table_of_keys_has_a_row_for_each() {
    let table = markdown();
    assert_eq!(table.lines().count(), KEYS.len() + 2);
    for (row, key) in table.lines().skip(2).zip(KEYS) {
        assert!(row.starts_with(&format!("| `{}` | ", key.name)), "{row}");
        assert_eq!(row.matches('|').count(), 6, "{row}");
    }
}

#[test]
fn what_is_written_to_is_a_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("file"), "").unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(path("fifo"))
        .status();
    assert!(fifo.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let check = |late: &str, metrics: &str| {
        let block = [text("late-file", late), text("metrics-file", metrics)];
        let config = Config::read(&block).unwrap();
        let checked = config.check_files(folder.path());
        checked.map_err(|error| error.to_string())
    };
    let absolute = |name: &str| path(name).to_string_lossy().into_owned();
    for good in ["", "file", "none", "/nowhere/none"] {
        assert_eq!(check(good, ""), Ok(()), "{good}");
    }
    assert_eq!(check("", &absolute("file")), Ok(()));
    for (name, kind) in [
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("../", "a folder"),
    ] {
        let shown = format!("{:?}", absolute(name));
        let told = format!(": expected a file or none yet, found {shown} ({kind})");
        assert_eq!(check(name, ""), Err(format!("trafficllm.late-file{told}")));
        let metrics = check("", &absolute(name));
        assert_eq!(metrics, Err(format!("trafficllm.metrics-file{told}")));
    }
    let device = check("/dev/null", "").unwrap_err();
    assert!(device.ends_with("(a device)"), "{device}");
}
