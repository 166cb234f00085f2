use std::io::Cursor;

use super::counts::{
    ADDRESS_LABELS_MAX, ADDRESSES_MAX, Counts, INTERVALS_MAX, LABELS_MAX, NAME_BYTES_MAX,
    NAMES_MAX, SCORE_BINS,
};
use super::*;

fn flow(number: u64, source: &str, start: f64, verdicts: &str) -> String {
    format!(
        r#"{{"capture":"a.pcap","flow":{number},"proto":"tcp","src":"{source}","sport":4000,"dst":"10.0.0.9","dport":80,"start":{start:.6},"packets":3,"bytes":400,"profile":"clean","model":"0123","verdicts":[{verdicts}]}}"#
    )
}

fn verdict(label: &str, score: f64, abstained: bool) -> String {
    format!(r#"{{"task":"t","label":"{label}","score":{score:.4},"abstained":{abstained}}}"#)
}

fn read(text: &str) -> (Input, Counts) {
    let mut input = Input {
        name: "v.jsonl".to_owned(),
        lines: 0,
        bad_lines: 0,
        shown: Vec::new(),
        failure: None,
    };
    let mut counts = Counts::default();
    read_lines(Cursor::new(text.as_bytes()), &mut input, &mut counts).unwrap();
    (input, counts)
}

#[test]
fn verdicts_are_counted_by_label_score_address_and_time() {
    let lines = [
        flow(0, "10.0.0.1", 100.5, &verdict("Zeus", 0.97, false)),
        flow(1, "10.0.0.1", 100.9, &verdict("Zeus", 0.40, true)),
        flow(2, "10.0.0.2", 103.0, &verdict("normal", 1.0, false)),
        r#"{"capture":"r.jsonl","request":1,"profile":"clean","model":"0123","verdicts":[]}"#
            .to_owned(),
    ];
    let (input, counts) = read(&lines.join("\n"));
    assert_eq!((input.lines, input.bad_lines), (4, 0));
    assert_eq!((counts.flows, counts.requests, counts.unasked), (3, 1, 1));
    assert_eq!((counts.packets, counts.bytes), (9, 1_200));
    let task = &counts.tasks["t"];
    let zeus = &task.labels["Zeus"];
    assert_eq!((zeus.answered, zeus.abstained), (1, 1));
    assert!((zeus.score_sum - 1.37).abs() < 1e-9);
    assert_eq!(
        task.scores[SCORE_BINS - 1],
        (2, 0),
        "0.97 and 1 are in the last bin"
    );
    assert_eq!(task.scores[8], (0, 1));
    let first = &counts.addresses[&"10.0.0.1".parse().unwrap()];
    assert_eq!((first.started, first.taken, first.bytes), (2, 0, 800));
    assert_eq!(
        first.labels[&zeus.number], 1,
        "an abstained verdict is no answer"
    );
    assert_eq!(counts.addresses[&"10.0.0.9".parse().unwrap()].taken, 3);
    assert_eq!(counts.timeline.intervals[&100], (2, 1));
    assert_eq!(counts.timeline.reach(), 4);
}

#[test]
fn bad_lines_are_counted_with_their_number_and_change_nothing() {
    let good = flow(0, "10.0.0.1", 1.0, &verdict("a", 0.5, false));
    let bad = [
        "not json".to_owned(),
        good.replace("\"flow\":0", "\"flow\":0,\"request\":1"),
        good.replace("\"src\":\"10.0.0.1\",", ""),
        good.replace("0.5000", "1.5"),
        good.replace("1.000000", "-1"),
        "\u{0}".to_owned(),
    ];
    let (input, counts) = read(&format!("{good}\n\n{}\n{good}\n", bad.join("\n")));
    assert_eq!((counts.flows, input.bad_lines), (2, bad.len() as u64));
    let numbers: Vec<u64> = input.shown.iter().map(|(line, _)| *line).collect();
    assert_eq!(numbers, [3, 4, 5, 6, 7, 8]);
    let reasons: Vec<&str> = input
        .shown
        .iter()
        .map(|(_, reason)| reason.as_str())
        .collect();
    assert!(
        reasons[2].starts_with("src:")
            && reasons[3].starts_with("score:")
            && reasons[4].starts_with("start:"),
        "{reasons:?}"
    );
    assert_eq!(counts.tasks["t"].labels["a"].answered, 2);
    let many = "x\n".repeat(BAD_LINES_SHOWN + 5);
    let (input, _) = read(&many);
    assert_eq!(
        (input.shown.len(), input.bad_lines),
        (BAD_LINES_SHOWN, BAD_LINES_SHOWN as u64 + 5)
    );
}

#[test]
fn a_line_is_read_at_the_limit_and_refused_past_it() {
    let good = flow(0, "10.0.0.1", 1.0, "");
    let padded = |bytes: usize| good.clone() + &" ".repeat(bytes - good.len()) + "\n";
    let text =
        padded(LINE_BYTES_MAX) + &padded(LINE_BYTES_MAX + 1) + &padded(LINE_BYTES_MAX * 2) + &good;
    let (input, counts) = read(&text);
    assert_eq!((input.lines, input.bad_lines, counts.flows), (4, 2, 2));
    let numbers: Vec<u64> = input.shown.iter().map(|(line, _)| *line).collect();
    assert_eq!(numbers, [2, 3]);
}

#[test]
fn far_times_make_the_intervals_longer_and_lose_no_flow() {
    let mut counts = Counts::default();
    for second in [0, INTERVALS_MAX - 1] {
        counts
            .add(flow(0, "10.0.0.1", second as f64, "").as_bytes())
            .unwrap();
    }
    assert_eq!(
        (counts.timeline.interval_s, counts.timeline.reach()),
        (1, INTERVALS_MAX)
    );
    counts
        .add(flow(0, "10.0.0.1", INTERVALS_MAX as f64, "").as_bytes())
        .unwrap();
    assert_eq!(counts.timeline.interval_s, 2);
    counts
        .add(flow(0, "10.0.0.1", 9e10, "").as_bytes())
        .unwrap();
    assert!(counts.timeline.reach() <= INTERVALS_MAX);
    assert_eq!(
        counts
            .timeline
            .intervals
            .values()
            .map(|interval| interval.0)
            .sum::<u64>(),
        4
    );
}

#[test]
fn what_is_past_a_limit_is_counted() {
    let mut counts = Counts::default();
    for label in 0..=LABELS_MAX {
        let verdict = verdict(&format!("label-{label}"), 0.5, false);
        counts
            .add(flow(0, "10.0.0.1", 1.0, &verdict).as_bytes())
            .unwrap();
        if label + 1 == LABELS_MAX {
            assert_eq!(counts.losses.verdicts, 0, "as many as the limit fit");
        }
    }
    assert_eq!(counts.losses.verdicts, 1);
    let address = &counts.addresses[&"10.0.0.1".parse().unwrap()];
    assert_eq!(
        address.labels.len(),
        LABELS_MAX,
        "an address keeps no label that is not counted"
    );
    let mut counts = Counts::default();
    // One address is the other end of all.
    for number in 0..ADDRESSES_MAX as u32 {
        let address = std::net::Ipv4Addr::from(0x0B00_0000 + number).to_string();
        counts.add(flow(0, &address, 1.0, "").as_bytes()).unwrap();
    }
    assert_eq!(
        (counts.addresses.len(), counts.losses.addresses),
        (ADDRESSES_MAX, 1)
    );
    let mut counts = Counts::default();
    for number in 0..=NAMES_MAX {
        let line = flow(0, "10.0.0.1", 1.0, "").replace("a.pcap", &format!("{number}.pcap"));
        counts.add(line.as_bytes()).unwrap();
    }
    assert_eq!((counts.captures.len(), counts.losses.names), (NAMES_MAX, 1));
    let html = page::page("t", &[], &counts).unwrap();
    assert!(html.contains("1 names of captures, models or profiles are not listed"));
}

#[test]
fn names_are_kept_at_their_longest_and_counted_as_lost_past_it() {
    let fitting = "n".repeat(NAME_BYTES_MAX);
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let named = |name: &str, place: &str| {
        let line = flow(0, "10.0.0.1", 1.0, &verdict("a", 0.5, false));
        line.replace(
            &format!("\"{place}\""),
            &serde_json::to_string(name).unwrap(),
        )
    };
    let places = ["a.pcap", "0123", "clean", "t", "a"];
    let mut counts = Counts::default();
    for place in places {
        counts.add(named(&fitting, place).as_bytes()).unwrap();
    }
    assert_eq!(counts.losses.long_names, 0);
    assert!(counts.captures.contains_key(&fitting) && counts.tasks.contains_key(&fitting));
    let before = counts.clone();
    for (lost, place) in (1..).zip(places) {
        counts.add(named(&long, place).as_bytes()).unwrap();
        assert_eq!(counts.losses.long_names, lost, "{place}");
    }
    assert_eq!(counts.flows, 10, "the flows themselves are counted");
    assert_eq!(
        (
            counts.captures.len(),
            counts.models.len(),
            counts.profiles.len()
        ),
        (
            before.captures.len(),
            before.models.len(),
            before.profiles.len()
        )
    );
    let labels = |counts: &Counts| -> Vec<usize> {
        let tasks = counts.tasks.values();
        tasks.map(|task| task.labels.len()).collect()
    };
    assert_eq!(labels(&counts), labels(&before));
    let html = page::page("t", &[], &counts).unwrap();
    assert!(html.contains("5 names of captures, models or profiles, or verdicts by the name"));
}

#[test]
fn pairs_of_address_and_label_are_kept_up_to_their_limit_and_counted_past_it() {
    let mut counts = Counts::default();
    let verdicts: Vec<String> = (0..LABELS_MAX)
        .map(|label| verdict(&label.to_string(), 0.5, false))
        .collect();
    let verdicts = verdicts.join(",");
    for address in 0..ADDRESS_LABELS_MAX / LABELS_MAX {
        let line = flow(0, &format!("10.1.0.{address}"), 1.0, &verdicts);
        counts.add(line.as_bytes()).unwrap();
    }
    assert_eq!(counts.losses.address_labels, 0, "as many as the limit fit");
    let known = flow(0, "10.1.0.0", 1.0, &verdict("7", 0.5, false));
    counts.add(known.as_bytes()).unwrap();
    assert_eq!(
        counts.losses.address_labels, 0,
        "a known pair needs no room"
    );
    let new = flow(0, "10.2.0.0", 1.0, &verdict("7", 0.5, false));
    counts.add(new.as_bytes()).unwrap();
    assert_eq!(counts.losses.address_labels, 1);
    assert!(
        counts.addresses[&"10.2.0.0".parse().unwrap()]
            .labels
            .is_empty()
    );
    let html = page::page("t", &[], &counts).unwrap();
    assert!(html.contains("1 answers are not told of their address"));
}

#[test]
fn talkers_are_shown_with_the_names_of_their_answers() {
    let mut counts = Counts::default();
    for label in ["Zeus", "normal", "Zeus"] {
        let line = flow(0, "10.0.0.1", 1.0, &verdict(label, 0.5, false));
        counts.add(line.as_bytes()).unwrap();
    }
    let html = page::page("t", &[], &counts).unwrap();
    assert!(html.contains("t: Zeus (2); t: normal (1)"), "{html}");
}

#[test]
fn reasons_are_cut_at_their_limit() {
    let text = |bytes: usize| format!("{{\"flow\":\"{}\"}}\n", "é".repeat(bytes / 2));
    let (input, _) = read(&(text(10) + &text(LINE_BYTES_MAX / 2)));
    assert_eq!(input.bad_lines, 2);
    assert!(!input.shown[0].1.ends_with('…'), "{:?}", input.shown[0]);
    let reason = &input.shown[1].1;
    assert!(reason.ends_with('…'), "{reason}");
    assert!(reason.len() <= REASON_BYTES_MAX + '…'.len_utf8());
    let exact = "x".repeat(REASON_BYTES_MAX);
    assert_eq!(cut(exact.clone()), exact);
    assert_eq!(cut(exact.clone() + "y"), exact + "…");
}

#[test]
fn flows_of_one_second_are_seen_in_the_timeline() {
    let timeline = |starts: [f64; 2]| {
        let lines = starts.map(|start| flow(0, "10.0.0.1", start, &verdict("a", 0.5, false)));
        let (input, counts) = read(&lines.join("\n"));
        let html = page::page("t", &[input], &counts).unwrap();
        let section = html.split(">Timeline</h2>").nth(1).unwrap();
        section.split("<h2").next().unwrap().to_owned()
    };
    let together = timeline([5.1, 5.9]);
    assert_eq!(together.matches("<circle").count(), 2, "{together}");
    assert!(!timeline([5.0, 6.0]).contains("<circle"));
}

#[test]
fn the_page_holds_the_numbers_and_nothing_hostile() {
    let label = "<script>alert(1)</script>";
    let lines = [
        flow(0, "10.0.0.1", 5.0, &verdict(label, 0.9, false)),
        flow(1, "10.0.0.1", 6.0, &verdict(label, 0.3, true)),
        "<b>bad</b>".to_owned(),
    ];
    let (input, counts) = read(&lines.join("\n"));
    let html = page::page("<title>", &[input], &counts).unwrap();
    assert!(!html.contains("<script") && !html.contains("<b>"), "{html}");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;</td><td class=\"n\">1</td><td class=\"n\">1</td><td class=\"n\">100.0</td><td class=\"n\">0.600</td>"));
    assert!(html.contains(
        "<td>10.0.0.1</td><td class=\"n\">2</td><td class=\"n\">0</td><td class=\"n\">800</td>"
    ));
    assert!(html.contains("v.jsonl, line 3:"));
    for title in [
        "Verdicts by label",
        "Scores",
        "Timeline",
        "Flows by address",
    ] {
        assert!(html.contains(title), "{title}");
    }
}
