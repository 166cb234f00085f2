//! HTTP requests in flows and as text.

use std::borrow::Cow;

use super::error::TokenError;
use super::limits;
use crate::flow::{Direction, Flow};

/// Methods that start a request: RFC 9110, PATCH and WebDAV's.
const METHODS: [&[u8]; 18] = [
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"SEARCH",
    b"REPORT",
];

/// The HTTP request at the start of a flow: the kept payload of the initiator before the responder's first payload, as far as it
/// is without a hole. Of a request that the record keeps only in part, the part; of one in several packets the first
/// [`limits::MAX_REQUEST_BYTES`]. None where the flow does not start with one.
#[must_use]
pub fn first_request(flow: &Flow) -> Option<Cow<'_, [u8]>> {
    let mut joined = Vec::new();
    match find_request(flow, &mut joined)? {
        Found::InPacket(payload) => Some(Cow::Borrowed(payload)),
        Found::Joined => Some(Cow::Owned(joined)),
    }
}

/// Where a request stands.
pub(super) enum Found<'a> {
    /// All of it in the payload of a packet.
    InPacket(&'a [u8]),
    /// In the buffer that was given for it, at most [`limits::MAX_REQUEST_BYTES`].
    Joined,
}

/// Finds what [`first_request`] gives; allocates only where `joined` is too small.
pub(super) fn find_request<'a>(flow: &'a Flow, joined: &mut Vec<u8>) -> Option<Found<'a>> {
    joined.clear();
    let mut first: &[u8] = &[];
    for (record, payload) in flow.kept().filter(|(record, _)| record.payload_bytes > 0) {
        let found_bytes = first.len().max(joined.len());
        if record.direction == Direction::FromResponder || found_bytes >= limits::MAX_REQUEST_BYTES
        {
            break;
        }
        if first.is_empty() {
            RequestLine::read(payload).ok()?;
            first = payload;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(first);
            }
            let room = limits::MAX_REQUEST_BYTES - joined.len();
            joined.extend_from_slice(&payload[..payload.len().min(room)]);
        }
        if payload.len() < record.payload_bytes as usize {
            break;
        }
    }
    match (first.is_empty(), joined.is_empty()) {
        (true, _) => None,
        (false, true) => Some(Found::InPacket(first)),
        (false, false) => Some(Found::Joined),
    }
}

/// Appends the canonical text of a request to `text`: the method, a blank, path and query and, where there is one, a blank and the
/// body. Scheme and host of an absolute target and all headers are left out; percent escapes are resolved, but those of
/// blanks, control characters and the characters that structure a query. Only the first
/// [`limits::MAX_REQUEST_BYTES`] bytes of `request` are read. Lines may end in CR LF or LF.
///
/// # Errors
/// [`TokenError::Request`] where `request` does not start like an HTTP request; nothing is appended then.
pub fn canonical_request(request: &[u8], text: &mut Vec<u8>) -> Result<(), TokenError> {
    Ok(push_canonical(request, text)?)
}

/// As [`canonical_request`], with an error that allocates nothing.
pub(super) fn push_canonical<'a>(
    request: &'a [u8],
    text: &mut Vec<u8>,
) -> Result<(), NotARequest<'a>> {
    let request = &request[..request.len().min(limits::MAX_REQUEST_BYTES)];
    let line = RequestLine::read(request)?;
    text.extend_from_slice(line.method);
    text.push(b' ');
    push_unescaped(path_and_query(line.target), text);
    let body = body_of(request).trim_ascii();
    if !body.is_empty() {
        text.push(b' ');
        push_unescaped(body, text);
    }
    Ok(())
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
}

impl<'a> RequestLine<'a> {
    /// Says what it found without an allocation: most flows are no requests, and nobody reads why.
    fn read(request: &'a [u8]) -> Result<Self, NotARequest<'a>> {
        // RFC 9112 2.2: empty lines before a request are to be ignored.
        let start = request
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        let request = &request[start..];
        let method_bytes = request
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or(request.len());
        let method = &request[..method_bytes];
        if !METHODS.contains(&method) || method_bytes == request.len() {
            return Err(NotARequest {
                position: start,
                expected: "an HTTP method and a blank",
                found: request,
            });
        }
        let rest = &request[method_bytes + 1..];
        let line_bytes = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..line_bytes.unwrap_or(rest.len())];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let target = match line.windows(6).rposition(|window| window == b" HTTP/") {
            Some(end) => &line[..end],
            // Only a line that is whole must have a version.
            None if line_bytes.is_none() => line,
            None => {
                return Err(NotARequest {
                    position: start + method_bytes + 1,
                    expected: "a target and HTTP/ with a version",
                    found: line,
                });
            }
        };
        Ok(Self { method, target })
    }
}

/// What was expected at a position, and what stands there.
pub(super) struct NotARequest<'a> {
    position: usize,
    expected: &'static str,
    found: &'a [u8],
}

impl From<NotARequest<'_>> for TokenError {
    fn from(error: NotARequest<'_>) -> Self {
        let shown = &error.found[..error.found.len().min(24)];
        let found = if shown.is_empty() {
            "nothing".to_owned()
        } else {
            format!("\"{}\"", shown.escape_ascii())
        };
        Self::Request {
            position: error.position,
            expected: error.expected,
            found,
        }
    }
}

/// The target without scheme and host.
fn path_and_query(target: &[u8]) -> &[u8] {
    let scheme_bytes = target
        .iter()
        .take_while(|byte| byte.is_ascii_alphabetic())
        .count();
    match target[scheme_bytes..].strip_prefix(b"://") {
        Some(rest) if scheme_bytes > 0 => {
            let host_bytes = rest
                .iter()
                .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
                .unwrap_or(rest.len());
            let path = &rest[host_bytes..];
            if path.is_empty() { b"/" } else { path }
        }
        _ => target,
    }
}

/// What comes after the first empty line.
fn body_of(request: &[u8]) -> &[u8] {
    let start = request
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let mut at = start;
    while let Some(line_bytes) = request[at..].iter().position(|byte| *byte == b'\n') {
        let line = &request[at..at + line_bytes];
        at += line_bytes + 1;
        if line.is_empty() || line == b"\r" {
            return &request[at..];
        }
    }
    &[]
}

fn push_unescaped(bytes: &[u8], text: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = if byte == b'%' {
            hexadecimal(bytes.get(at + 1), bytes.get(at + 2))
        } else {
            None
        };
        match escaped {
            Some(value) if !keeps_escape(value) => {
                text.push(value);
                at += 3;
            }
            // Both ends of a line mean the same, so they give the same tokens.
            _ if byte == b'\r' && bytes.get(at + 1) == Some(&b'\n') => at += 1,
            _ => {
                text.push(byte);
                at += 1;
            }
        }
    }
}

fn hexadecimal(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

/// Whether an escaped byte would mean something else if it stood there as it is.
fn keeps_escape(byte: u8) -> bool {
    matches!(
        byte,
        0..=0x20 | 0x7f | b'&' | b'=' | b'%' | b'+' | b'#' | b';' | b'?'
    )
}
