//! Patterns of what analysts ask: a line that stands for many, as `[make|forge] a [capture|trace] of {app}` does.
//!
//! They are for training alone. What is scored are lines that were written out, so that a score says how people are understood and not how
//! well the patterns were learnt.

use std::collections::BTreeMap;

use crate::random::Random;

/// Names by their list, for what stands in braces.
pub(super) type Names = BTreeMap<String, Vec<String>>;

/// What a pattern is made of.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    /// A name of a list.
    Name(&'a [String]),
    /// One of these.
    OneOf(Vec<Vec<Piece<'a>>>),
}

/// A pattern, read.
#[derive(Debug, PartialEq)]
pub(super) struct Pattern<'a>(Vec<Piece<'a>>);

impl<'a> Pattern<'a> {
    /// Reads a pattern: `[one|the other|]` for alternatives, which do not nest, and `{list}` for a name, in an alternative too.
    pub(super) fn read(text: &'a str, names: &'a Names) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('[') {
            pieces.extend(plain(before, names)?);
            let (inside, behind) = after
                .split_once(']')
                .ok_or_else(|| format!("a bracket is not closed: {after:?}"))?;
            if inside.contains('[') {
                return Err(format!("a bracket inside another: {inside:?}"));
            }
            let alternatives = inside.split('|').map(|one| plain(one, names));
            pieces.push(Piece::OneOf(alternatives.collect::<Result<_, _>>()?));
            rest = behind;
        }
        pieces.extend(plain(rest, names)?);
        Ok(Self(pieces))
    }

    /// One of the lines that it stands for.
    pub(super) fn draw(&self, random: &mut Random) -> String {
        let mut line = String::new();
        push(&self.0, random, &mut line);
        line
    }
}

/// A text without brackets.
fn plain<'a>(text: &'a str, names: &'a Names) -> Result<Vec<Piece<'a>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let without_strays = |text: &str| match text.find([']', '}', '|']) {
        Some(stray) => Err(format!("a bracket or bar of nothing: {:?}", &text[stray..])),
        None => Ok(()),
    };
    while let Some((before, after)) = rest.split_once('{') {
        without_strays(before)?;
        let (list, behind) = after
            .split_once('}')
            .ok_or_else(|| format!("a brace is not closed: {after:?}"))?;
        let found = names.get(list).filter(|names| !names.is_empty());
        let found = found.ok_or_else(|| format!("no list of names is called {list:?}"))?;
        pieces.extend([Piece::Text(before), Piece::Name(found)]);
        rest = behind;
    }
    without_strays(rest)?;
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

fn push(pieces: &[Piece<'_>], random: &mut Random, line: &mut String) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => line.push_str(text),
            Piece::Name(names) => line.push_str(&names[random.below(names.len())]),
            Piece::OneOf(alternatives) => {
                push(
                    &alternatives[random.below(alternatives.len())],
                    random,
                    line,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names() -> Names {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Names::from([
            ("app".to_owned(), list(&["skype", "signal"])),
            ("none".to_owned(), Vec::new()),
        ])
    }

    #[test]
    fn a_pattern_gives_each_of_its_lines_and_no_other() {
        let names = names();
        let pattern =
            Pattern::read("[make|forge|] {app}[ now|, {app} too]", &names).expect("sound");
        let drawn: BTreeSet<String> = (0..500)
            .map(|seed| pattern.draw(&mut Random::new(seed)))
            .collect();
        let mut expected = BTreeSet::new();
        for verb in ["make", "forge", ""] {
            for app in ["skype", "signal"] {
                for end in [" now", ", skype too", ", signal too"] {
                    expected.insert(format!("{verb} {app}{end}"));
                }
            }
        }
        assert_eq!(drawn, expected);
    }

    #[test]
    fn broken_patterns_say_what_is_wrong() {
        let names = names();
        for (text, reason) in [
            ("[make", "not closed"),
            ("[a [b]]", "inside another"),
            ("a]", "of nothing"),
            ("a | b", "of nothing"),
            ("a | b {app}", "of nothing"),
            ("a] {app}", "of nothing"),
            ("a} {app}", "of nothing"),
            ("{app", "not closed"),
            ("{App}", "\"App\""),
            ("{none}", "\"none\""),
        ] {
            let error = Pattern::read(text, &names).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
