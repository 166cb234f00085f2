//! Requests files: JSON Lines with one HTTP request per line in the key `request`.

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

use serde::Deserialize;
use trafficllm_traffic::token::TokenError;

use crate::limits::REQUEST_LINE_BYTES_MAX;

/// Why a line could not be used. Lines count from 0 here, as in the output, and from 1 in the text, as in editors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The line is no JSON object with a text in `request`.
    #[error("line {}: expected a JSON object with a text in \"request\", found: {message}", line + 1)]
    Json {
        /// The line, from 0.
        line: u64,
        /// What the JSON reader says.
        message: String,
    },
    /// The line is longer than is read.
    #[error("line {}: expected at most {limit} bytes, found more", line + 1)]
    TooLong {
        /// The line, from 0.
        line: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// The text is no HTTP request.
    #[error("line {}: {source}", line + 1)]
    NotARequest {
        /// The line, from 0.
        line: u64,
        /// What is wrong with it.
        source: TokenError,
    },
}

/// One line, without its end.
pub(super) struct Line {
    /// From 0.
    pub(super) index: u64,
    bytes: Vec<u8>,
    too_long: bool,
}

impl Line {
    pub(super) fn is_blank(&self) -> bool {
        !self.too_long && self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

/// Reads lines in bounded memory.
pub(super) struct LineReader<R> {
    source: R,
    next: u64,
    source_bytes: u64,
}

impl<R: BufRead> LineReader<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            next: 0,
            source_bytes: 0,
        }
    }

    pub(super) fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let limit = REQUEST_LINE_BYTES_MAX as u64 + 1;
        let taken = self
            .source
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut bytes)?;
        if taken == 0 {
            return Ok(None);
        }
        self.source_bytes += taken as u64;
        let ended = bytes.pop_if(|last| *last == b'\n').is_some();
        let too_long = bytes.len() > REQUEST_LINE_BYTES_MAX;
        if too_long && !ended {
            self.source_bytes += self.source.skip_until(b'\n')? as u64;
        }
        let index = self.next;
        self.next += 1;
        Ok(Some(Line {
            index,
            bytes,
            too_long,
        }))
    }

    pub(super) fn source_bytes(&self) -> u64 {
        self.source_bytes
    }
}

#[derive(Deserialize)]
struct RequestLine<'a> {
    #[serde(borrow)]
    request: Cow<'a, str>,
}

/// The request of a line. Other keys, such as labels, are passed over.
pub(super) fn request_of(line: &Line) -> Result<String, LineError> {
    if line.too_long {
        return Err(LineError::TooLong {
            line: line.index,
            limit: REQUEST_LINE_BYTES_MAX,
        });
    }
    serde_json::from_slice::<RequestLine<'_>>(&line.bytes)
        .map(|line| line.request.into_owned())
        .map_err(|error| LineError::Json {
            line: line.index,
            message: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<Result<String, String>> {
        let mut reader = LineReader::new(text);
        let mut found = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            found.push(request_of(&line).map_err(|error| error.to_string()));
        }
        assert_eq!(reader.source_bytes(), text.len() as u64);
        found
    }

    #[test]
    fn requests_come_out_and_other_keys_are_passed_over() {
        let found = lines(b"{\"label\":\"normal\",\"request\":\"GET / HTTP/1.1\"}\n{\"request\":\"GET /\\u00e9\"}");
        assert_eq!(
            found,
            [
                Ok("GET / HTTP/1.1".to_owned()),
                Ok("GET /\u{e9}".to_owned())
            ]
        );
    }

    #[test]
    fn a_bad_line_names_its_number() {
        for (bad, expected) in [
            (&b"{"[..], "line 2: expected a JSON object"),
            (b"[]", "line 2: expected a JSON object"),
            (b"{\"request\":7}", "line 2: expected a JSON object"),
            (
                b"{\"requests\":\"GET / HTTP/1.1\"}",
                "missing field `request`",
            ),
            (b"\"\xff\"", "line 2: expected a JSON object"),
        ] {
            let mut text = b"{\"request\":\"a\"}\n".to_vec();
            text.extend_from_slice(bad);
            text.extend_from_slice(b"\n{\"request\":\"b\"}\n");
            let found = lines(&text);
            assert_eq!(
                (found.len(), &found[0], &found[2]),
                (3, &Ok("a".to_owned()), &Ok("b".to_owned()))
            );
            assert!(
                found[1].as_ref().unwrap_err().contains(expected),
                "{found:?}"
            );
        }
    }

    #[test]
    fn lines_are_read_at_the_limit_and_refused_past_it() {
        let line = |bytes: usize| {
            let mut line = b"{\"request\":\"".to_vec();
            line.resize(bytes - 2, b'a');
            line.extend_from_slice(b"\"}\n");
            line
        };
        let mut text = line(REQUEST_LINE_BYTES_MAX);
        text.extend(line(REQUEST_LINE_BYTES_MAX + 1));
        text.extend(line(REQUEST_LINE_BYTES_MAX + 4_000));
        text.extend(line(40));
        let found = lines(&text);
        assert!(
            found[0].is_ok() && found[3].is_ok(),
            "a line at the limit, and what comes after longer ones"
        );
        for (index, number) in [(1, 2), (2, 3)] {
            let expected = format!(
                "line {number}: expected at most {REQUEST_LINE_BYTES_MAX} bytes, found more"
            );
            assert_eq!(found[index], Err(expected));
        }
    }
}
