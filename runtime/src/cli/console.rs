//! Writes to the terminal that never fail: a closed standard error is no reason to stop.

use std::io::{self, Write};

use trafficllm::report::is_unprintable;

/// One line on standard error.
pub(super) fn note(text: &str) {
    let _closed = writeln!(io::stderr().lock(), "{text}");
}

/// One line on standard error that says what went wrong.
pub(super) fn error(text: &str) {
    note(&format!("error: {text}"));
}

/// Text from outside, fit for one line of a terminal: what [`is_unprintable`] is escaped.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = is_unprintable(c).then(|| c.escape_default());
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

    #[test]
    fn text_cannot_be_turned_around_or_hidden_on_the_terminal() {
        assert_eq!(
            printable("exe.\u{202e}gpj\u{200b}\u{feff} עברית"),
            "exe.\\u{202e}gpj\\u{200b}\\u{feff} עברית"
        );
    }
}
