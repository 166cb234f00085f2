//! Writes to the terminal that never fail: a closed standard error is no reason to stop.

use std::io::{self, Write};

/// One line on standard error.
pub(super) fn note(text: &str) {
    let _closed = writeln!(io::stderr().lock(), "{text}");
}

/// One line on standard error that says what went wrong.
pub(super) fn error(text: &str) {
    note(&format!("error: {text}"));
}

/// Text from outside, fit for one line of a terminal: control characters are escaped.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc é"), "a\\u{1b}[2Jb\\nc é");
    }
}
