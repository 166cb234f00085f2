//! HTTP requests: as text and at the start of flows.

use super::{encoder, flow, packet};
use crate::flow::Direction::{FromInitiator, FromResponder};
use crate::token::vocabulary::REQUEST;
use crate::token::{
    EncodeScratch, PayloadPiece, TokenError, canonical_request, decode_text, first_request, limits,
};

fn canonical(request: &[u8]) -> String {
    let mut text = Vec::new();
    canonical_request(request, &mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn ids(request: &[u8]) -> Result<Vec<u32>, TokenError> {
    let mut ids = vec![1, 2, 3];
    let read = encoder(|_| {}).encode_request(request, &mut EncodeScratch::default(), &mut ids);
    assert!(read.is_ok() || ids.is_empty());
    read.map(|()| ids)
}

#[test]
fn method_path_and_body_are_kept() {
    let cases: [(&[u8], &str); 12] = [
        (
            b"GET http://localhost:8080/a/b.jsp HTTP/1.1\nHost: x\nCookie: y",
            "GET /a/b.jsp",
        ),
        (b"GET /a/b.jsp HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a/b.jsp"),
        (
            b"POST HTTPS://h/p?q=1 HTTP/1.1\nContent-Length: 7\n\nid=2&x=\n",
            "POST /p?q=1 id=2&x=",
        ),
        (
            b"POST /p HTTP/1.1\r\nA: b\r\n\r\none\r\ntwo\r\n",
            "POST /p one\ntwo",
        ),
        (b"GET http://host HTTP/1.0\n\n", "GET /"),
        (b"GET http://host?x HTTP/1.0\n\n", "GET ?x"),
        (
            b"GET /a%2Fb%20c%26d%41%zz%4 HTTP/1.1\n",
            "GET /a/b%20c%26dA%zz%4",
        ),
        (b"GET /one two HTTP/1.1 HTTP/1.1\n", "GET /one two HTTP/1.1"),
        (b"\r\n\r\nGET / HTTP/1.1\r\n\r\nbody", "GET / body"),
        (b"GET /cut/by/the/captu", "GET /cut/by/the/captu"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", "OPTIONS *"),
        (b"CONNECT host:443 HTTP/1.1\r\n\r\n", "CONNECT host:443"),
    ];
    for (request, expected) in cases {
        assert_eq!(canonical(request), expected, "{}", request.escape_ascii());
    }
}

#[test]
fn what_is_no_request_is_told_with_its_place() {
    let cases: [(&[u8], usize, &str); 6] = [
        (b"", 0, "nothing"),
        (b"\n\nBREW /pot HTTP/1.1", 2, "\"BREW /pot HTTP/1.1\""),
        (b"GET", 0, "\"GET\""),
        (b"get / HTTP/1.1\n", 0, "\"get / HTTP/1.1\\n\""),
        (b"GET key\r\n", 4, "\"key\""),
        (b"\x16\x03\x01", 0, "\"\\x16\\x03\\x01\""),
    ];
    for (request, at, what) in cases {
        match ids(request) {
            Err(TokenError::Request {
                position, found, ..
            }) => assert_eq!((position, found.as_str()), (at, what)),
            other => panic!("expected an error, found {other:?}"),
        }
    }
}

#[test]
fn requests_come_back_from_their_tokens() {
    let ids = ids(b"POST http://h/login?next=/ HTTP/1.1\nHost: h\n\nuser=10.0.0.1&x=1").unwrap();
    assert_eq!(ids[0], REQUEST);
    let text = decode_text(encoder(|_| {}).tokenizer(), &ids).unwrap();
    let expected = [
        PayloadPiece::Bytes(b"POST /login?next=/ user=".to_vec()),
        PayloadPiece::Mask,
        PayloadPiece::Bytes(b"&x=1".to_vec()),
    ];
    assert_eq!(text, expected);
    let error = decode_text(encoder(|_| {}).tokenizer(), &[REQUEST, 3]).unwrap_err();
    assert!(
        matches!(error, TokenError::Sequence { position: 1, .. }),
        "{error}"
    );
    assert!(matches!(
        decode_text(encoder(|_| {}).tokenizer(), &[]),
        Err(TokenError::Sequence { position: 0, .. })
    ));
}

#[test]
fn hosts_headers_and_line_ends_change_nothing() {
    let one = ids(b"GET http://one.example:81/a?b=c HTTP/1.1\nHost: one\nCookie: JSESSIONID=1\n\n")
        .unwrap();
    let other = ids(b"GET /a?b=c HTTP/1.0\r\nUser-Agent: other\r\n\r\n").unwrap();
    assert_eq!(one, other);
}

#[test]
fn requests_are_held_at_their_limits_and_past_them() {
    let encoder = encoder(|profile| profile.request_tokens = 4_096);
    let encoded = |last: &[u8]| {
        let mut request = b"GET /".to_vec();
        request.resize(limits::MAX_REQUEST_BYTES - 1, 0);
        request.extend_from_slice(last);
        let mut ids = Vec::new();
        encoder
            .encode_request(&request, &mut EncodeScratch::default(), &mut ids)
            .unwrap();
        assert!(ids.len() < 4_096);
        ids
    };
    assert_ne!(encoded(b"a"), encoded(b"b"));
    assert_eq!(encoded(b"aa"), encoded(b"ab"));

    let long = [b"GET /".to_vec(), b"~^".repeat(300)].concat();
    assert_eq!(ids(&long).unwrap().len(), 192);
}

#[test]
fn a_flow_gives_the_request_it_starts_with() {
    let head = packet(FromInitiator, b"POST /p HTTP/1.1\r\nA: b\r\n");
    let body = packet(FromInitiator, b"\r\nid=1");
    let (ack, answer) = (
        packet(FromResponder, b""),
        packet(FromResponder, b"HTTP/1.1 200 OK\r\n"),
    );
    let next = packet(FromInitiator, b"GET /next HTTP/1.1\r\n\r\n");

    let whole = flow(
        6,
        &[
            head.clone(),
            ack.clone(),
            body.clone(),
            answer.clone(),
            next.clone(),
        ],
    );
    assert_eq!(canonical(&first_request(&whole).unwrap()), "POST /p id=1");

    let mut cut = flow(6, &[head, body]);
    cut.records[0].payload_bytes += 1;
    assert_eq!(canonical(&first_request(&cut).unwrap()), "POST /p");

    assert_eq!(first_request(&flow(6, &[answer, next])), None);
    assert_eq!(
        first_request(&flow(6, &[packet(FromInitiator, b"EHLO there\r\n")])),
        None
    );
    assert_eq!(first_request(&flow(6, &[ack])), None);
}

#[test]
fn the_request_of_a_flow_is_encoded_as_its_text_is() {
    let encoder = encoder(|_| {});
    let long = [b"POST /p HTTP/1.1\r\n\r\n".to_vec(), b"~".repeat(5_000)].concat();
    let flows = [
        flow(6, &[packet(FromInitiator, b"GET /a?b=1 HTTP/1.1\r\n\r\n")]),
        flow(
            6,
            &[
                packet(FromInitiator, b"GET /a?b"),
                packet(FromInitiator, b"=1 HTTP/1.1\r\n"),
            ],
        ),
        flow(
            6,
            &[
                packet(FromInitiator, &long),
                packet(FromInitiator, &long),
                packet(FromInitiator, &long),
            ],
        ),
        flow(
            6,
            &[
                packet(FromInitiator, b"GET /a"),
                packet(FromInitiator, b" none\r\n"),
            ],
        ),
        flow(6, &[packet(FromInitiator, b"EHLO there\r\n")]),
    ];
    let mut scratch = EncodeScratch::with_room().unwrap();
    let held = scratch.bytes();
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (flow, is_request) in flows.iter().zip([true, true, true, false, false]) {
        let text = first_request(flow);
        assert!(
            text.as_ref()
                .is_none_or(|text| text.len() <= limits::MAX_REQUEST_BYTES)
        );
        let read = text.map(|text| {
            encoder.encode_request(&text, &mut EncodeScratch::default(), &mut expected)
        });
        assert_eq!(read.is_some_and(|read| read.is_ok()), is_request);
        assert_eq!(
            encoder.encode_first_request(flow, &mut scratch, &mut found),
            is_request
        );
        if is_request {
            assert_eq!(found, expected);
        }
    }
    assert_eq!(scratch.bytes(), held, "it never grows");
}
