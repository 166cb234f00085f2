//! Finds the payload bytes that the profile hides.

use super::limits;
use super::profile::Profile;
use crate::flow::Direction;

/// Kinds of first bytes in [`Masker::starts`].
const NOTHING: u8 = 0;
const DIGIT: u8 = 1;
const NAME: u8 = 2;

/// Bytes of a masked name that are hidden also where the payload ends before the name does.
const CUT_NAME_BYTES: usize = 4;

/// Where the BOOTP magic cookie stands (RFC 2131 3) and what it is.
const DHCP_COOKIE_START: usize = 236;
const DHCP_COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// From the transaction id to the cookie (RFC 2131 2): addresses, and the names of a server and a boot file. Those are empty nearly always,
/// and 192 shown zeros would leave no room for the options that say what a device is.
const DHCP_HIDDEN: (usize, usize) = (4, DHCP_COOKIE_START);
/// Options that are shown: lease, overload, message type, wanted parameters, message size, renewal and rebinding times, vendor class (RFC 2132). All
/// others may carry addresses, names or numbers of one device, those that nobody has thought of yet among them: of these the code alone
/// is shown, not even their length, which may be that of a host's name.
const DHCP_SHOWN_OPTIONS: [u8; 8] = [51, 52, 53, 55, 57, 58, 59, 60];

/// The hidden ranges of one payload: sorted, apart from each other, a fixed number at most.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    list: [(usize, usize); limits::MAX_MASK_RANGES],
    used: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            list: [(0, 0); limits::MAX_MASK_RANGES],
            used: 0,
        }
    }
}

impl Ranges {
    /// Adds a range that starts at or after the start of the last one. A full list grows its last range instead: that hides more,
    /// never less.
    pub(super) fn push(&mut self, start: usize, end: usize) {
        if start >= end {
            return;
        }
        let full = self.used == self.list.len();
        if let Some(last) = self.used.checked_sub(1).map(|last| &mut self.list[last])
            && (full || start <= last.1)
        {
            last.1 = last.1.max(end);
            return;
        }
        self.list[self.used] = (start, end);
        self.used += 1;
    }

    fn clear(&mut self) {
        self.used = 0;
    }

    pub(super) fn as_slice(&self) -> &[(usize, usize)] {
        &self.list[..self.used]
    }
}

/// A part of a payload as the tokens show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Shown(&'a [u8]),
    Hidden,
}

/// How much of a TLS hello that began in an earlier packet is still to come, per direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HelloState {
    bytes_left: [u64; 2],
}

/// The masks of a profile.
#[derive(Clone, Debug)]
pub(super) struct Masker {
    show_server_name: bool,
    show_tls_random: bool,
    /// Masked names in lower case, each as text and as labels of a DNS message.
    names: Vec<Vec<u8>>,
    /// For each byte, whether a masked name or a dotted address can start with it.
    starts: [u8; 256],
}

impl Masker {
    pub(super) fn new(profile: &Profile) -> Self {
        let mut names = Vec::new();
        for name in &profile.masked_names {
            names.push(name.to_ascii_lowercase().into_bytes());
            names.push(
                name.split('.')
                    .flat_map(labelled)
                    .map(|byte| byte.to_ascii_lowercase())
                    .collect(),
            );
        }
        let mut starts = [NOTHING; 256];
        starts[usize::from(b'0')..=usize::from(b'9')].fill(DIGIT);
        for first in names.iter().filter_map(|name: &Vec<u8>| name.first()) {
            starts[usize::from(*first)] |= NAME;
            starts[usize::from(first.to_ascii_uppercase())] |= NAME;
        }
        Self {
            show_server_name: profile.sni,
            show_tls_random: profile.tls_random,
            names,
            starts,
        }
    }

    /// Finds what is hidden of a packet's kept payload, as far as `shown_limit` shown bytes reach. To be called for each packet
    /// with payload of a flow in turn, as a TLS hello can go on in the next packet.
    pub(super) fn payload(
        &self,
        (payload, payload_bytes): (&[u8], u32),
        direction: Direction,
        hello: &mut HelloState,
        shown_limit: usize,
        ranges: &mut Ranges,
    ) {
        let mut structural = Ranges::default();
        let bytes_left = &mut hello.bytes_left[usize::from(direction == Direction::FromResponder)];
        let payload_bytes = u64::from(payload_bytes).max(payload.len() as u64);
        if is_tls_hello(payload) {
            *bytes_left = self.tls_hello(payload, payload_bytes, &mut structural);
        } else if *bytes_left > 0 {
            structural.push(0, (*bytes_left).min(payload.len() as u64) as usize);
            *bytes_left = bytes_left.saturating_sub(payload_bytes);
        } else {
            dhcp(payload, payload_bytes, &mut structural);
        }
        self.scan(payload, structural.as_slice(), shown_limit, ranges);
    }

    /// Finds what is hidden of a text: masked names and dotted addresses.
    pub(super) fn text(&self, text: &[u8], ranges: &mut Ranges) {
        self.scan(text, &[], text.len(), ranges);
    }

    fn scan(
        &self,
        bytes: &[u8],
        structural: &[(usize, usize)],
        shown_limit: usize,
        ranges: &mut Ranges,
    ) {
        ranges.clear();
        let mut structural = structural.iter().peekable();
        let mut shown = 0;
        let mut at = 0;
        while at < bytes.len() && shown < shown_limit {
            if let Some(&&(start, end)) = structural.peek()
                && start <= at
            {
                structural.next();
                if end > at {
                    ranges.push(start, end);
                    at = end;
                }
                continue;
            }
            let hidden = match self.starts[usize::from(bytes[at])] {
                NOTHING => 0,
                kind => self.hidden_text(bytes, at, kind),
            };
            if hidden > 0 {
                ranges.push(at, at + hidden);
                at += hidden;
            } else {
                shown += 1;
                at += 1;
            }
        }
    }

    /// Length of the masked name or dotted address at a position; 0 where there is none.
    fn hidden_text(&self, bytes: &[u8], at: usize, kind: u8) -> usize {
        let rest = &bytes[at..];
        let after_digit = at > 0 && bytes[at - 1].is_ascii_digit();
        let address = if kind & DIGIT != 0 && !after_digit {
            dotted_address(rest)
        } else {
            0
        };
        if kind & NAME == 0 {
            return address;
        }
        let name_length = |name: &Vec<u8>| {
            let length = name.len().min(rest.len());
            let enough = length == name.len() || length >= CUT_NAME_BYTES;
            if enough && rest[..length].eq_ignore_ascii_case(&name[..length]) {
                length
            } else {
                0
            }
        };
        self.names
            .iter()
            .map(name_length)
            .max()
            .unwrap_or(0)
            .max(address)
    }

    /// Adds what is hidden of a TLS hello and says how many bytes after this packet are still hidden.
    fn tls_hello(&self, payload: &[u8], payload_bytes: u64, ranges: &mut Ranges) -> u64 {
        if !self.show_tls_random {
            ranges.push(TLS_RANDOM.0, TLS_RANDOM.1.min(payload.len()));
            let session_bytes = payload
                .get(TLS_RANDOM.1)
                .map_or(0, |length| usize::from(*length));
            ranges.push(
                TLS_SESSION,
                (TLS_SESSION + session_bytes).min(payload.len()),
            );
        }
        if self.show_server_name || payload.get(5) == Some(&TLS_SERVER_HELLO) {
            return 0;
        }
        let record_end = be16(payload, 3).map_or(usize::MAX, |length| 5 + length);
        // A hello in several records has record headers inside, where its length fields do not count them.
        let readable = payload.len().min(record_end);
        let hello_end = match be16(&payload[..readable], 7) {
            Some(length) => 9 + length + (usize::from(payload[6]) << 16),
            None => TLS_HELLO_BYTES_MAX,
        };
        let readable = readable.min(hello_end);
        let hidden_start = match server_name(&payload[..readable]) {
            ServerName::At(start, end) if end <= record_end => {
                ranges.push(start, end.min(payload.len()));
                return (end as u64).saturating_sub(payload_bytes);
            }
            ServerName::At(start, _) => start,
            ServerName::NotBefore(position) if position < hello_end => position.min(readable),
            ServerName::NotBefore(_) => return 0,
        };
        // The name may be anywhere from here on; nothing before the session id can belong to it.
        ranges.push(hidden_start.max(TLS_SESSION), payload.len());
        let record_headers = if hello_end > record_end {
            5 * hello_end as u64
        } else {
            0
        };
        (hello_end as u64 + record_headers).saturating_sub(payload_bytes)
    }
}

fn labelled(label: &str) -> impl Iterator<Item = u8> + '_ {
    std::iter::once(label.len() as u8).chain(label.bytes())
}

const TLS_HANDSHAKE: u8 = 22;
const TLS_CLIENT_HELLO: u8 = 1;
const TLS_SERVER_HELLO: u8 = 2;
/// Record header, handshake header and version come before the random (RFC 8446 4.1.2, 5.1).
const TLS_RANDOM: (usize, usize) = (11, 43);
const TLS_SESSION: usize = 44;
/// How long a hello is taken to be whose length is not in its first packet: as long as a record may be (RFC 8446 5.1).
const TLS_HELLO_BYTES_MAX: usize = 1 << 14;

/// Whether a payload is the start of a hello, however short a start.
fn is_tls_hello(payload: &[u8]) -> bool {
    payload.first() == Some(&TLS_HANDSHAKE)
        && payload.get(1).is_none_or(|version| *version == 3)
        && payload
            .get(5)
            .is_none_or(|kind| matches!(*kind, TLS_CLIENT_HELLO | TLS_SERVER_HELLO))
}

enum ServerName {
    /// The content of the extension with its length fields, which tell the length of the name: start and end, which may lie past the
    /// bytes at hand.
    At(usize, usize),
    /// None so far: if there is one, it starts at this position or later.
    NotBefore(usize),
}

/// Looks for the server name extension in the start of a ClientHello (RFC 8446 4.1.2, RFC 6066 3).
fn server_name(hello: &[u8]) -> ServerName {
    let mut at = TLS_RANDOM.1;
    // Session id, cipher suites, compression methods: a length of one, two and one bytes, and that many bytes.
    for wide in [false, true, false] {
        let length = if wide {
            be16(hello, at)
        } else {
            hello.get(at).map(|byte| usize::from(*byte))
        };
        let Some(length) = length else {
            return ServerName::NotBefore(at);
        };
        at += length + if wide { 2 } else { 1 };
    }
    at += 2;
    while let (Some(kind), Some(length)) = (be16(hello, at), be16(hello, at + 2)) {
        let end = at + 4 + length;
        if kind == 0 {
            return ServerName::At(at + 2, end);
        }
        at = end;
    }
    ServerName::NotBefore(at)
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at + 2)?;
    Some(usize::from(pair[0]) << 8 | usize::from(pair[1]))
}

fn dhcp(payload: &[u8], payload_bytes: u64, ranges: &mut Ranges) {
    let options_start = DHCP_COOKIE_START + DHCP_COOKIE.len();
    match payload.get(DHCP_COOKIE_START..options_start) {
        Some(cookie) if cookie != DHCP_COOKIE => return,
        // Where the capture kept too little to see the cookie, a BOOTP header over Ethernet is taken for one.
        None if payload_bytes < options_start as u64 || !is_bootp_start(payload) => return,
        _ => {}
    }
    ranges.push(DHCP_HIDDEN.0, DHCP_HIDDEN.1.min(payload.len()));
    let mut at = options_start;
    while let Some(&option) = payload.get(at) {
        match (option, payload.get(at + 1)) {
            (0, _) => at += 1,
            (255, _) | (_, None) => break,
            (_, Some(length)) => {
                let end = at + 2 + usize::from(*length);
                if !DHCP_SHOWN_OPTIONS.contains(&option) {
                    ranges.push(at + 1, end.min(payload.len()));
                }
                at = end;
            }
        }
    }
}

/// Request or reply, hardware type Ethernet, six address bytes (RFC 2131 2).
fn is_bootp_start(payload: &[u8]) -> bool {
    matches!(payload, [1 | 2, 1, 6, ..])
}

/// Length of the dotted IPv4 address that `bytes` starts with; 0 where it starts with none.
fn dotted_address(bytes: &[u8]) -> usize {
    let mut at = 0;
    for part in 0..4 {
        if part > 0 {
            if bytes.get(at) != Some(&b'.') {
                return 0;
            }
            at += 1;
        }
        let digits = bytes[at..]
            .iter()
            .take(4)
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if !(1..=3).contains(&digits) {
            return 0;
        }
        at += digits;
    }
    at
}

/// Gives the shown and hidden pieces of a payload in order, until `shown_limit` bytes, a hidden run counted as one.
pub(super) fn pieces<'a>(
    payload: &'a [u8],
    ranges: &Ranges,
    shown_limit: usize,
    mut take: impl FnMut(Piece<'a>),
) {
    let mut left = shown_limit;
    let mut at = 0;
    for &(start, end) in ranges.as_slice() {
        let shown = (start - at).min(left);
        if shown > 0 {
            take(Piece::Shown(&payload[at..at + shown]));
        }
        left -= shown;
        if left == 0 {
            return;
        }
        take(Piece::Hidden);
        left -= 1;
        at = end.min(payload.len());
    }
    let shown = (payload.len() - at).min(left);
    if shown > 0 {
        take(Piece::Shown(&payload[at..at + shown]));
    }
}
