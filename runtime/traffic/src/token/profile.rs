//! What of a flow the tokens show.

use serde::{Deserialize, Serialize};

use super::error::TokenError;
use super::limits;
use super::mask::{Piece, Ranges, pieces};

/// The version of token layout and masks that this program knows: a model reads what it was trained on and nothing else.
pub(super) const SCHEMA: u32 = 2;

/// The input profile: recorded in the bundle, so that a model is always fed as it was trained.
///
/// Profile `clean` shows direction, TCP flags, payload sizes, gaps and payload bytes. It hides addresses, MACs, absolute times,
/// IP id, TTL, checksums, sequence numbers and, by masks over payload bytes, host names of TLS hellos, the hardware and IP
/// addresses of DHCP, dotted IPv4 addresses and the names in `masked_names`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Always `clean`.
    pub name: String,
    /// Version of the token layout and of what masks hide; always 2.
    pub schema: u32,
    /// Packets of a flow that are looked at.
    pub max_packets: u32,
    /// Packets with payload whose payload is shown.
    pub payload_packets: u32,
    /// Bytes that are shown of one such packet; a masked run counts as one.
    pub payload_bytes_per_packet: u32,
    /// The same for a payload that starts as text, where it is more: the telling part of an HTTP head stands far behind its
    /// start, and merges shorten text more than binary data.
    pub text_bytes_per_packet: u32,
    /// Tokens of a flow.
    pub max_tokens: u32,
    /// Tokens of a request.
    pub request_tokens: u32,
    /// Whether the responder's port is shown (two byte tokens after the flow token).
    pub ports: bool,
    /// Whether host names in TLS hellos are shown.
    pub sni: bool,
    /// Whether the random and session id of TLS hellos, noise to a model, are shown.
    pub tls_random: bool,
    /// Host names that are masked wherever they stand, whatever their case, as text and in DNS messages. In lower case.
    pub masked_names: Vec<String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: "clean".to_owned(),
            schema: SCHEMA,
            max_packets: 20,
            payload_packets: 4,
            payload_bytes_per_packet: 64,
            text_bytes_per_packet: 224,
            max_tokens: 160,
            request_tokens: 192,
            ports: false,
            sni: false,
            tls_random: false,
            masked_names: vec!["example.attack".to_owned()],
        }
    }
}

impl Profile {
    /// Checks every field against what the encoder can do.
    ///
    /// # Errors
    /// [`TokenError::Profile`] names the first field that is out of its range.
    pub fn validate(&self) -> Result<(), TokenError> {
        check(
            "name",
            self.name == "clean",
            || "\"clean\"".to_owned(),
            || format!("{:?}", self.name),
        )?;
        check(
            "schema",
            self.schema == SCHEMA,
            || SCHEMA.to_string(),
            || self.schema.to_string(),
        )?;
        // The flow token, two port tokens and a packet with size and gap must find room.
        check_range("max_tokens", self.max_tokens, 8, limits::MAX_PROFILE_TOKENS)?;
        check_range(
            "request_tokens",
            self.request_tokens,
            8,
            limits::MAX_PROFILE_TOKENS,
        )?;
        check_range(
            "max_packets",
            self.max_packets,
            1,
            limits::MAX_PROFILE_PACKETS,
        )?;
        check_range("payload_packets", self.payload_packets, 0, self.max_packets)?;
        check_range(
            "payload_bytes_per_packet",
            self.payload_bytes_per_packet,
            0,
            limits::MAX_PROFILE_PAYLOAD_BYTES,
        )?;
        check_range(
            "text_bytes_per_packet",
            self.text_bytes_per_packet,
            0,
            limits::MAX_PROFILE_PAYLOAD_BYTES,
        )?;
        let names = self.masked_names.len();
        check(
            "masked_names",
            names <= limits::MAX_MASKED_NAMES,
            || format!("at most {} names", limits::MAX_MASKED_NAMES),
            || names.to_string(),
        )?;
        self.masked_names.iter().try_for_each(|name| {
            check(
                "masked_names",
                is_host_name(name),
                || {
                    format!(
                        "a host name in lower case of 4 to {} bytes",
                        limits::MAX_MASKED_NAME_BYTES
                    )
                },
                || format!("{name:?}"),
            )
        })
    }

    /// The most bytes that are shown of any payload.
    pub(super) fn shown_limit_max(&self) -> usize {
        self.payload_bytes_per_packet
            .max(self.text_bytes_per_packet) as usize
    }

    /// Bytes that are shown of a payload with these hidden ranges. What is hidden takes no part in the decision.
    pub(super) fn shown_limit(&self, payload: &[u8], hidden: &Ranges) -> usize {
        if starts_as_text(payload, hidden) {
            self.shown_limit_max()
        } else {
            self.payload_bytes_per_packet as usize
        }
    }
}

/// Bytes at the start of a payload that decide whether it is text, a hidden run counted as one.
const TEXT_START_BYTES: usize = 16;

/// Whether what is shown of a payload's start is all printable ASCII, tabs or line ends.
fn starts_as_text(payload: &[u8], hidden: &Ranges) -> bool {
    let mut seen = 0;
    let mut is_text = true;
    pieces(payload, hidden, TEXT_START_BYTES, |piece| match piece {
        Piece::Shown(bytes) => {
            seen += bytes.len();
            is_text &= bytes
                .iter()
                .all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
        }
        Piece::Hidden => seen += 1,
    });
    is_text && seen == TEXT_START_BYTES
}

fn check(
    field: &'static str,
    holds: bool,
    expected: impl Fn() -> String,
    found: impl Fn() -> String,
) -> Result<(), TokenError> {
    if holds {
        Ok(())
    } else {
        Err(TokenError::Profile {
            field,
            expected: expected(),
            found: found(),
        })
    }
}

fn check_range(field: &'static str, value: u32, low: u32, high: u32) -> Result<(), TokenError> {
    check(
        field,
        (low..=high).contains(&value),
        || format!("{low} to {high}"),
        || value.to_string(),
    )
}

/// Whether a name can stand in a DNS message. Shorter ones than four bytes would be found by chance in any payload.
fn is_host_name(name: &str) -> bool {
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
            })
    };
    (4..=limits::MAX_MASKED_NAME_BYTES).contains(&name.len()) && name.split('.').all(label_fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut Profile)) -> &'static str {
        let mut profile = Profile::default();
        change(&mut profile);
        match profile.validate() {
            Err(TokenError::Profile { field, .. }) => field,
            other => panic!("expected a refused field, found {other:?}"),
        }
    }

    #[test]
    fn the_default_is_valid_and_comes_back_from_json() {
        let profile = Profile::default();
        profile.validate().unwrap();
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut json = serde_json::to_value(Profile::default()).unwrap();
        json["port"] = true.into();
        let error = serde_json::from_value::<Profile>(json)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `port`"), "{error}");
    }

    #[test]
    fn each_limit_holds_at_it_and_past_it() {
        let accepted = |change: &dyn Fn(&mut Profile)| {
            let mut profile = Profile::default();
            change(&mut profile);
            profile.validate().unwrap();
        };
        accepted(&|p| p.max_packets = limits::MAX_PROFILE_PACKETS);
        assert_eq!(
            refused(|p| p.max_packets = limits::MAX_PROFILE_PACKETS + 1),
            "max_packets"
        );
        assert_eq!(refused(|p| p.max_packets = 0), "max_packets");
        accepted(&|p| p.payload_packets = p.max_packets);
        assert_eq!(
            refused(|p| p.payload_packets = p.max_packets + 1),
            "payload_packets"
        );
        accepted(&|p| p.payload_bytes_per_packet = limits::MAX_PROFILE_PAYLOAD_BYTES);
        assert_eq!(
            refused(|p| p.payload_bytes_per_packet = limits::MAX_PROFILE_PAYLOAD_BYTES + 1),
            "payload_bytes_per_packet"
        );
        accepted(&|p| p.text_bytes_per_packet = limits::MAX_PROFILE_PAYLOAD_BYTES);
        assert_eq!(
            refused(|p| p.text_bytes_per_packet = limits::MAX_PROFILE_PAYLOAD_BYTES + 1),
            "text_bytes_per_packet"
        );
        accepted(&|p| p.max_tokens = limits::MAX_PROFILE_TOKENS);
        accepted(&|p| p.max_tokens = 8);
        assert_eq!(
            refused(|p| p.max_tokens = limits::MAX_PROFILE_TOKENS + 1),
            "max_tokens"
        );
        assert_eq!(refused(|p| p.max_tokens = 7), "max_tokens");
        assert_eq!(
            refused(|p| p.request_tokens = limits::MAX_PROFILE_TOKENS + 1),
            "request_tokens"
        );
        accepted(&|p| p.masked_names = vec!["a.example".to_owned(); limits::MAX_MASKED_NAMES]);
        assert_eq!(
            refused(|p| p.masked_names = vec!["a.example".to_owned(); limits::MAX_MASKED_NAMES + 1]),
            "masked_names"
        );
        let long = [
            &"a".repeat(63),
            &"b".repeat(63),
            &"c".repeat(63),
            &"d".repeat(61),
        ]
        .map(String::as_str)
        .join(".");
        assert_eq!(long.len(), limits::MAX_MASKED_NAME_BYTES);
        accepted(&|p| p.masked_names = vec![long.clone()]);
        for name in [
            "",
            "abc",
            "UPPER.example",
            "two..dots",
            "a b.example",
            &format!("{long}d"),
            &"a".repeat(64),
        ] {
            assert_eq!(
                refused(|p| p.masked_names = vec![name.to_owned()]),
                "masked_names",
                "{name:?}"
            );
        }
        assert_eq!(refused(|p| p.name = "compat".to_owned()), "name");
        assert_eq!(refused(|p| p.schema = 1), "schema");
    }

    #[test]
    fn text_is_shown_further_than_binary_data() {
        let mut profile = Profile {
            payload_bytes_per_packet: 20,
            text_bytes_per_packet: 100,
            ..Profile::default()
        };
        let limit = |profile: &Profile, payload: &[u8], hidden: &[(usize, usize)]| {
            let mut ranges = Ranges::default();
            for &(start, end) in hidden {
                ranges.push(start, end);
            }
            profile.shown_limit(payload, &ranges)
        };
        assert_eq!(limit(&profile, b"GET /index HTTP/1.1\r\n", &[]), 100);
        assert_eq!(limit(&profile, b"sixteen bytes...\x00\xff", &[]), 100);
        assert_eq!(
            limit(&profile, b"fifteen bytes..", &[]),
            20,
            "too short to tell"
        );
        assert_eq!(limit(&profile, b"fifteen bytes..\x7f and more", &[]), 20);
        assert_eq!(limit(&profile, &[0x80; 40], &[]), 20);
        assert_eq!(limit(&profile, b"", &[]), 20);
        // A longer hidden run does not bring the binary byte into view or out of it.
        for length in [7, 15] {
            let payload = [&[b'1'; 20][..length], b"then fifteen b.", b"\x00"].concat();
            assert_eq!(limit(&profile, &payload, &[(0, length)]), 100);
            let payload = [&[b'1'; 20][..length], b"then fourteen.", b"\x00"].concat();
            assert_eq!(limit(&profile, &payload, &[(0, length)]), 20);
        }
        profile.text_bytes_per_packet = 0;
        assert_eq!(limit(&profile, b"GET /index HTTP/1.1\r\n", &[]), 20);
    }
}
