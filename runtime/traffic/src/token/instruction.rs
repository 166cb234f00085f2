//! The plain form of what somebody asks.

use super::limits;

/// What of an instruction is encoded: in lower case, with single blanks, letters without their marks. How somebody uses capitals, blanks and
/// accents says nothing of what is asked for, and few keyboards have all of them. Read up to [`limits::MAX_INSTRUCTION_BYTES`].
#[must_use]
pub fn canonical_instruction(text: &str) -> String {
    let end = text.floor_char_boundary(limits::MAX_INSTRUCTION_BYTES);
    let mut plain = String::with_capacity(end);
    for word in text[..end].split_whitespace() {
        if !plain.is_empty() {
            plain.push(' ');
        }
        for letter in word.chars().flat_map(char::to_lowercase) {
            match without_mark(letter) {
                Some(letters) => plain.push_str(letters),
                None => plain.push(letter),
            }
        }
    }
    plain
}

/// A Latin letter with a mark as it is typed without one; `None` for any other.
fn without_mark(letter: char) -> Option<&'static str> {
    Some(match letter {
        'à' | 'á' | 'â' | 'ã' | 'å' | 'ă' | 'ą' => "a",
        'ä' | 'æ' => "ae",
        'ç' | 'ć' | 'č' => "c",
        'ď' | 'đ' => "d",
        'è' | 'é' | 'ê' | 'ë' | 'ę' | 'ě' => "e",
        'ì' | 'í' | 'î' | 'ï' => "i",
        'ł' => "l",
        'ñ' | 'ń' | 'ň' => "n",
        'ò' | 'ó' | 'ô' | 'õ' | 'ő' => "o",
        'ö' | 'ø' | 'œ' => "oe",
        'ř' => "r",
        'ś' | 'š' | 'ş' => "s",
        'ß' => "ss",
        'ť' | 'ţ' => "t",
        'ù' | 'ú' | 'û' | 'ů' | 'ű' => "u",
        'ü' => "ue",
        'ý' | 'ÿ' => "y",
        'ź' | 'ż' | 'ž' => "z",
        '’' | '‘' => "'",
        '“' | '”' | '„' | '«' | '»' => "\"",
        '–' | '—' => "-",
        '…' => "...",
        // Combining marks: the letter before them stands for itself.
        '\u{300}'..='\u{36f}' => "",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_blanks_and_marks_are_left_out() {
        for (text, plain) in [
            ("  Is THIS\ta\r\nBotnet? ", "is this a botnet?"),
            (
                "Ist das Gerät böse? Größe!",
                "ist das geraet boese? groesse!",
            ),
            ("Quelle appli a généré ça…", "quelle appli a genere ca..."),
            ("cafe\u{301} – “x”", "cafe - \"x\""),
            ("ŁÓDŹ", "lodz"),
            ("это ботнет?", "это ботнет?"),
            ("这是僵尸网络吗", "这是僵尸网络吗"),
            (" \n", ""),
        ] {
            assert_eq!(canonical_instruction(text), plain, "{text}");
            assert_eq!(canonical_instruction(plain), plain);
        }
    }

    #[test]
    fn nothing_is_read_past_the_limit() {
        let limit = limits::MAX_INSTRUCTION_BYTES;
        let at = "a".repeat(limit);
        assert_eq!(canonical_instruction(&at), at);
        assert_eq!(canonical_instruction(&format!("{at}b")), at);
        // A letter that stands across the limit is left out whole.
        let across = format!("{}ж", "a".repeat(limit - 1));
        assert_eq!(canonical_instruction(&across), at[1..]);
    }
}
