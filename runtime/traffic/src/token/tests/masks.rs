//! What the masks hide.

use proptest::prelude::*;

use super::{encoder, flow, flow_ids, packet};
use crate::flow::Direction::{FromInitiator, FromResponder};
use crate::flow::Flow;
use crate::token::{PayloadPiece, Profile, decode_flow, limits};

/// The first packet's shown payload, masks as `#`.
fn shown(change: impl Fn(&mut Profile), flow: &Flow) -> Vec<Vec<u8>> {
    let encoder = encoder(|profile| {
        (profile.payload_bytes_per_packet, profile.max_tokens) = (1_500, 4_000);
        // Text is shown no further than other payloads.
        profile.text_bytes_per_packet = 0;
        change(profile);
    });
    let found = decode_flow(
        encoder.tokenizer(),
        encoder.profile(),
        &flow_ids(&encoder, flow),
    )
    .unwrap();
    let text = |pieces: Vec<PayloadPiece>| {
        let bytes = |piece| match piece {
            PayloadPiece::Bytes(bytes) => bytes,
            PayloadPiece::Mask => b"#".to_vec(),
        };
        pieces.into_iter().flat_map(bytes).collect()
    };
    found
        .packets
        .into_iter()
        .map(|packet| text(packet.payload))
        .collect()
}

fn shown_text(payload: &[u8]) -> String {
    let shown = shown(|_| {}, &flow(17, &[packet(FromInitiator, payload)]));
    String::from_utf8(shown[0].clone()).unwrap()
}

/// A ClientHello in one record with these extensions.
fn client_hello(random: u8, session: &[u8], extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([random; 32]);
    body.push(session.len() as u8);
    body.extend_from_slice(session);
    body.extend([0, 4, 0x13, 0x01, 0x13, 0x02, 1, 0]);
    let mut all = Vec::new();
    for (kind, content) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend((content.len() as u16).to_be_bytes());
        all.extend_from_slice(content);
    }
    body.extend((all.len() as u16).to_be_bytes());
    body.extend(all);
    let mut hello = vec![22, 3, 1];
    hello.extend((body.len() as u16 + 4).to_be_bytes());
    hello.extend([1, 0]);
    hello.extend((body.len() as u16).to_be_bytes());
    hello.extend(body);
    hello
}

fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    let mut content = (name.len() as u16 + 3).to_be_bytes().to_vec();
    content.push(0);
    content.extend((name.len() as u16).to_be_bytes());
    content.extend_from_slice(name);
    (0, content)
}

fn contains(payloads: &[Vec<u8>], needle: &[u8]) -> bool {
    payloads
        .iter()
        .any(|payload| payload.windows(needle.len()).any(|window| window == needle))
}

#[test]
fn host_names_of_hellos_are_hidden_unless_the_profile_shows_them() {
    let hello = client_hello(
        7,
        &[9; 32],
        &[
            (23, vec![]),
            server_name(b"secret.example"),
            (16, b"\x02h2".to_vec()),
        ],
    );
    let flow = flow(6, &[packet(FromInitiator, &hello)]);
    let hidden = shown(|_| {}, &flow);
    assert!(!contains(&hidden, b"secret"));
    // What comes after the name is shown.
    assert!(contains(&hidden, b"#\x00\x10\x00\x03\x02h2"));
    assert!(
        contains(&hidden, &[b'#', 32, b'#', 0, 4]),
        "random and session id are one mask each"
    );
    assert!(contains(
        &shown(|profile| profile.sni = true, &flow),
        b"secret.example"
    ));
    let random_shown = shown(|profile| profile.tls_random = true, &flow);
    assert!(contains(&random_shown, &[7; 32]) && !contains(&random_shown, b"secret"));
}

#[test]
fn host_names_are_hidden_wherever_packet_borders_and_cuts_fall() {
    let hello = client_hello(
        7,
        &[9; 32],
        &[
            (10, vec![5; 30]),
            server_name(b"secret.example"),
            (21, vec![0; 20]),
        ],
    );
    let name_start = hello
        .windows(6)
        .position(|window| window == b"secret")
        .unwrap();
    for cut in 1..hello.len() {
        let (first, second) = hello.split_at(cut);
        let two = flow(
            6,
            &[
                packet(FromInitiator, first),
                packet(FromResponder, b"x"),
                packet(FromInitiator, second),
            ],
        );
        let found = shown(|_| {}, &two);
        for part in hello[name_start..name_start + 14].windows(3) {
            assert!(!contains(&found, part), "cut at {cut}: {found:?}");
        }
        let mut truncated = flow(6, &[packet(FromInitiator, first)]);
        truncated.records[0].payload_bytes = hello.len() as u32;
        let found = shown(|_| {}, &truncated);
        assert!(
            !contains(&found, &hello[name_start..name_start + 2]),
            "kept {cut}: {found:?}"
        );
    }
}

#[test]
fn a_hello_in_several_records_shows_nothing_after_the_first() {
    let hello = client_hello(7, &[9; 32], &[server_name(b"secret.example")]);
    for cut in 1..hello.len() - 5 {
        let mut records = vec![22, 3, 1];
        records.extend((cut as u16).to_be_bytes());
        records.extend_from_slice(&hello[5..5 + cut]);
        records.extend([22, 3, 1]);
        records.extend(((hello.len() - 5 - cut) as u16).to_be_bytes());
        records.extend_from_slice(&hello[5 + cut..]);
        let found = shown(|_| {}, &flow(6, &[packet(FromInitiator, &records)]));
        for part in b"secret.example".windows(4) {
            assert!(!contains(&found, part), "cut at {cut}: {found:?}");
        }
    }
}

#[test]
fn dhcp_shows_no_addresses() {
    let mut message = vec![b'.'; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..236].fill(b'A');
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend(b"\x35\x01\x03\x32\x04AAAA\x00\x0c\x03AAA\x3d\x07AAAAAAA\x37\x02\x01\x03\xff");
    let found = shown(|_| {}, &flow(17, &[packet(FromInitiator, &message)]));
    assert!(!contains(&found, b"A"));
    assert!(contains(
        &found,
        b"\x01\x01\x06\x00#\x63\x82\x53\x63\x35\x01\x03"
    ));
    assert!(contains(
        &found,
        b"\x35\x01\x03\x32#\x00\x0c#\x3d#\x37\x02\x01\x03\xff"
    ));

    for option in 1..255 {
        message.truncate(240);
        message.extend([option, 3]);
        message.extend(b"AAA\xff");
        let found = shown(|_| {}, &flow(17, &[packet(FromInitiator, &message)]));
        let is_shown = matches!(option, 51..=53 | 55 | 57..=60);
        assert_eq!(contains(&found, b"AAA"), is_shown, "option {option}");
    }

    let mut cut = flow(17, &[packet(FromInitiator, &message[..100])]);
    cut.records[0].payload_bytes = message.len() as u32;
    assert!(!contains(&shown(|_| {}, &cut), b"A"));

    message[236] = 0;
    assert!(contains(
        &shown(|_| {}, &flow(17, &[packet(FromInitiator, &message)])),
        b"AAAA"
    ));
}

#[test]
fn masked_names_are_hidden_as_text_and_in_dns_messages() {
    assert_eq!(shown_text(b"see t.example.attack!"), "see t.#!");
    assert_eq!(shown_text(b"eexAMPLe.ATTack"), "e#");
    assert_eq!(shown_text(b"\x01t\x07Example\x06attacK\x00"), "\x01t#\x00");
    assert_eq!(shown_text(b"example.org"), "example.org");
    // A cut name is hidden where enough of it is left to tell.
    assert_eq!(shown_text(b"at exam"), "at #");
    assert_eq!(shown_text(b"at exa"), "at exa");
    assert_eq!(
        shown_text(b"exampleexample.attackexample.attackz"),
        "example#z"
    );
    let shown = shown(
        |profile| profile.masked_names = vec!["other.example".to_owned()],
        &flow(
            17,
            &[packet(FromInitiator, b"example.attack other.example")],
        ),
    );
    assert_eq!(shown, [b"example.attack #"]);
}

#[test]
fn dotted_addresses_are_hidden() {
    assert_eq!(
        shown_text(b"Host: 192.168.1.10:80, 1.2.3.4"),
        "Host: #:80, #"
    );
    assert_eq!(
        shown_text(b"v1.2.3 and 1.2.3. 4 1234.1.1.1 1.1.1.1234"),
        "v1.2.3 and 1.2.3. 4 1234.1.1.1 1.1.1.1234"
    );
    assert_eq!(shown_text(b"x255.255.255.255"), "x#");
}

#[test]
fn more_ranges_than_are_kept_apart_hide_more_not_less() {
    let kept_apart = limits::MAX_MASK_RANGES;
    let at_limit = b"10.0.0.1 ".repeat(kept_apart);
    assert_eq!(shown_text(&at_limit), "# ".repeat(kept_apart));
    let past_limit = b"10.0.0.1 ".repeat(kept_apart + 8);
    assert_eq!(shown_text(&past_limit), "# ".repeat(kept_apart));
}

#[test]
fn a_masked_run_counts_as_one_shown_byte() {
    let name = |name: &[u8]| [b"zz", name, &[b'y'; 60]].concat();
    let limited = |payload: &[u8]| {
        let flow = flow(17, &[packet(FromInitiator, payload)]);
        shown(|profile| profile.payload_bytes_per_packet = 8, &flow)[0].clone()
    };
    assert_eq!(limited(&name(b"1.1.1.1")), b"zz#yyyyy");
    assert_eq!(limited(&name(b"111.111.111.111")), b"zz#yyyyy");
}

proptest! {
    #[test]
    fn the_host_name_changes_nothing(
        names in (prop::collection::vec(any::<u8>(), 1..60), prop::collection::vec(any::<u8>(), 1..60)),
        randoms: (u8, u8),
        before in prop::collection::vec(1_u8..5, 0..4),
    ) {
        let ids = |name: &[u8], random: u8| {
            let mut extensions: Vec<(u16, Vec<u8>)> = before.iter().map(|kind| (u16::from(*kind), vec![0; 3])).collect();
            extensions.push(server_name(name));
            extensions.push((16, b"\x02h2".to_vec()));
            let mut hello = client_hello(random, &[random; 32], &extensions);
            // The lengths of message and record tell the length of the packet, which the size token shows in any case.
            hello[3..5].fill(0xff);
            hello[6..9].fill(0);
            hello[7] = 0xff;
            let extension_bytes = 44 + 32 + 8;
            hello[extension_bytes..extension_bytes + 2].fill(0);
            let mut flow = flow(6, &[packet(FromInitiator, &hello)]);
            flow.records[0].payload_bytes = 517;
            flow_ids(&encoder(|profile| (profile.payload_bytes_per_packet, profile.max_tokens) = (400, 1_000)), &flow)
        };
        prop_assert_eq!(ids(&names.0, randoms.0), ids(&names.1, randoms.1));
    }

    #[test]
    fn any_payload_is_encoded_within_its_limits(
        start in prop_oneof![Just(vec![]), Just(vec![22, 3, 1]), Just(vec![22, 3, 3, 0, 90, 1, 0, 0, 80]), Just(vec![1, 1, 6, 0])],
        rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'1'), Just(b'.')], 0..420),
        payload_bytes in 0_u32..2_000,
        from_responder: bool,
    ) {
        let direction = if from_responder { FromResponder } else { FromInitiator };
        let payload = [start, rest].concat();
        let mut flow = flow(6, &[packet(direction, &payload), packet(direction, &payload)]);
        flow.records[0].payload_bytes = payload_bytes;
        for payload in shown(|profile| profile.payload_bytes_per_packet = 50, &flow) {
            prop_assert!(payload.len() <= 50);
        }
    }
}
