//! HTTP requests in training: which ones teach the wrong thing, and how the others are varied.
//!
//! Data sets of attacks hold few applications. A page that is only ever attacked teaches that the page is the attack; so
//! such pages are left out, and names of pages and parameters are replaced at random, which leaves what makes the
//! difference: the values.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// How requests are varied. All texts are canonical: `METHOD path[?query][ body]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRecipe {
    /// Varied copies of each request that can be varied, of which one is drawn at a time; 0 leaves requests as they are.
    pub variants: usize,
    /// Pages with at least this many groups, all of one label, are left out; 0 leaves none out.
    pub one_sided_groups_min: usize,
    /// The label whose requests may lose parameters and still keep it; others might lose what earned them their label.
    pub harmless_label: String,
    /// As [`SamplingRecipe::group_exponent`](crate::batches::SamplingRecipe::group_exponent), for requests: one query that was
    /// recorded hundreds of times says no more than one that was recorded once.
    #[serde(default = "default_group_exponent")]
    pub group_exponent: f64,
    /// Probability that such a request keeps only some of its parameters.
    pub subset: f64,
    /// Probability that the page's name is replaced.
    pub rename_page: f64,
    /// Probability that a parameter's name is replaced, for each parameter.
    pub rename_parameter: f64,
}

/// What recipes mean that do not name it.
pub(crate) fn default_group_exponent() -> f64 {
    0.75
}

/// A request of the training split.
#[derive(Clone, Copy, Debug)]
pub struct TrainRequest<'a> {
    /// Canonical text.
    pub text: &'a [u8],
    /// Its label.
    pub label: usize,
    /// Its leakage group.
    pub group: usize,
}

/// Tells for each request whether it belongs to a page that has one label only, by the recipe's measure.
#[must_use]
pub fn one_sided(requests: &[TrainRequest<'_>], recipe: &RequestRecipe) -> Vec<bool> {
    let mut pages: BTreeMap<&[u8], (BTreeSet<usize>, BTreeSet<usize>)> = BTreeMap::new();
    for request in requests
        .iter()
        .filter(|request| has_parameters(request.text))
    {
        let (groups, labels) = pages.entry(page(request.text)).or_default();
        groups.insert(request.group);
        labels.insert(request.label);
    }
    let groups_min = recipe.one_sided_groups_min;
    let is_one_sided = |request: &TrainRequest<'_>| {
        let found = pages
            .get(page(request.text))
            .filter(|_| has_parameters(request.text));
        groups_min > 0
            && found.is_some_and(|(groups, labels)| groups.len() >= groups_min && labels.len() == 1)
    };
    requests.iter().map(is_one_sided).collect()
}

/// The words that names are replaced with: runs of 3 to 10 lower-case letters, each once, in byte order.
#[must_use]
pub fn words<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut words = BTreeSet::new();
    for text in texts {
        for run in text.split(|byte| !byte.is_ascii_lowercase()) {
            // Long runs are cut into words of ten.
            words.extend(
                run.chunks(10)
                    .filter(|word| word.len() >= 3)
                    .map(<[u8]>::to_vec),
            );
        }
    }
    words.into_iter().collect()
}

/// A varied copy of a canonical request; `harmless` says whether parameters may be left out.
#[must_use]
pub fn vary(
    text: &[u8],
    words: &[Vec<u8>],
    harmless: bool,
    recipe: &RequestRecipe,
    random: &mut Random,
) -> Vec<u8> {
    let mut varied = text.to_vec();
    // Without parameters the page is all there is: a harmless page stays one under another name, a wrong one may not.
    if !(has_parameters(text) || harmless) || words.is_empty() {
        return varied;
    }
    if harmless && has_parameters(text) && random.chance(recipe.subset) {
        varied = keep_some_parameters(&varied, random);
    }
    if random.chance(recipe.rename_page) {
        varied = rename_page(&varied, &words[random.below(words.len())]);
    }
    rename_parameters(&varied, words, recipe.rename_parameter, random)
}

/// Whether a request carries parameters.
#[must_use]
pub fn has_parameters(text: &[u8]) -> bool {
    text.contains(&b'=')
}

/// The path of a canonical request.
fn page(text: &[u8]) -> &[u8] {
    let target = text.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    target
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default()
}

/// Keeps a random choice of the parameters in their order: half the time one, else one up to all.
fn keep_some_parameters(text: &[u8], random: &mut Random) -> Vec<u8> {
    let Some(target) = text
        .iter()
        .position(|byte| *byte == b' ')
        .map(|blank| blank + 1)
    else {
        return text.to_vec();
    };
    let Some(border) = text[target..]
        .iter()
        .position(|byte| matches!(byte, b' ' | b'?'))
        .map(|at| target + at)
    else {
        return text.to_vec();
    };
    let parameters: Vec<&[u8]> = text[border + 1..].split(|byte| *byte == b'&').collect();
    let kept = if random.chance(0.5) {
        1 + random.below(parameters.len())
    } else {
        1
    };
    let mut order: Vec<usize> = (0..parameters.len()).collect();
    random.shuffle(&mut order);
    order.truncate(kept);
    order.sort_unstable();
    let chosen: Vec<&[u8]> = order.into_iter().map(|index| parameters[index]).collect();
    [&text[..=border], &chosen.join(&b'&')].concat()
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Replaces the name of the first `/name.extension`.
fn rename_page(text: &[u8], word: &[u8]) -> Vec<u8> {
    for (slash, _) in text.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let name = text[slash + 1..]
            .iter()
            .take_while(|byte| is_name(**byte))
            .count();
        let dot = slash + 1 + name;
        let extension = text
            .get(dot + 1..)
            .unwrap_or_default()
            .iter()
            .take_while(|byte| byte.is_ascii_lowercase())
            .count();
        if name > 0 && text.get(dot) == Some(&b'.') && (2..=5).contains(&extension) {
            return [&text[..=slash], word, &text[dot..]].concat();
        }
    }
    text.to_vec()
}

/// Replaces names of parameters: what stands between a blank, `?` or `&` and `=`.
fn rename_parameters(
    text: &[u8],
    words: &[Vec<u8>],
    probability: f64,
    random: &mut Random,
) -> Vec<u8> {
    let mut renamed = Vec::with_capacity(text.len() + 16);
    let mut at = 0;
    while at < text.len() {
        renamed.push(text[at]);
        at += 1;
        if !matches!(text[at - 1], b' ' | b'?' | b'&') {
            continue;
        }
        let name = text[at..].iter().take_while(|byte| is_name(**byte)).count();
        if name > 0 && text.get(at + name) == Some(&b'=') {
            if random.chance(probability) {
                renamed.extend(&words[random.below(words.len())]);
            } else {
                renamed.extend(&text[at..at + name]);
            }
            at += name;
        }
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> RequestRecipe {
        crate::recipe::Recipe::default().requests
    }

    fn one_word() -> Vec<Vec<u8>> {
        vec![b"word".to_vec()]
    }

    #[test]
    fn pages_of_one_label_are_found() {
        let texts: Vec<String> = (0..12)
            .map(|index| format!("GET /a?x={index}"))
            .chain((0..12).map(|index| format!("GET /b?x={index}")))
            .collect();
        let requests: Vec<TrainRequest<'_>> = texts
            .iter()
            .enumerate()
            .map(|(index, text)| TrainRequest {
                text: text.as_bytes(),
                label: usize::from(index == 20),
                group: index,
            })
            .collect();
        let found = one_sided(
            &requests,
            &RequestRecipe {
                one_sided_groups_min: 12,
                ..recipe()
            },
        );
        assert!(found[..12].iter().all(|left_out| *left_out));
        assert!(
            found[12..].iter().all(|left_out| !left_out),
            "page b has two labels"
        );
        assert!(
            !one_sided(
                &requests,
                &RequestRecipe {
                    one_sided_groups_min: 13,
                    ..recipe()
                }
            )
            .contains(&true)
        );
        assert!(
            !one_sided(
                &requests,
                &RequestRecipe {
                    one_sided_groups_min: 0,
                    ..recipe()
                }
            )
            .contains(&true)
        );
    }

    #[test]
    fn names_change_and_values_stay() {
        let always = RequestRecipe {
            subset: 0.0,
            rename_page: 1.0,
            rename_parameter: 1.0,
            ..recipe()
        };
        let vary = |text: &str| {
            String::from_utf8(vary(
                text.as_bytes(),
                &one_word(),
                true,
                &always,
                &mut Random::new(1),
            ))
            .expect("text")
        };
        assert_eq!(
            vary("GET /shop/add.jsp?id=1&n=a b=2 c"),
            "GET /shop/word.jsp?word=1&word=a word=2 c"
        );
        assert_eq!(
            vary("POST /x.gif a=' OR '1'='1"),
            "POST /word.gif word=' OR '1'='1"
        );
    }

    #[test]
    fn without_parameters_only_harmless_pages_are_renamed() {
        let always = RequestRecipe {
            rename_page: 1.0,
            ..recipe()
        };
        let vary = |harmless| {
            vary(
                b"GET /a/menu.jsp",
                &one_word(),
                harmless,
                &always,
                &mut Random::new(1),
            )
        };
        assert_eq!(vary(true), b"GET /a/word.jsp");
        assert_eq!(vary(false), b"GET /a/menu.jsp");
    }

    #[test]
    fn some_parameters_are_kept_in_order() {
        let mut random = Random::new(1);
        let mut lengths = [0; 4];
        for _ in 0..600 {
            let text = String::from_utf8(keep_some_parameters(b"GET /p?a=1&b=2&c=3", &mut random))
                .expect("text");
            let parameters: Vec<&str> = text
                .strip_prefix("GET /p?")
                .expect("the page stays")
                .split('&')
                .collect();
            assert!(parameters.is_sorted());
            lengths[parameters.len()] += 1;
        }
        assert!(
            (350..450).contains(&lengths[1]),
            "half and a third of the other half: {lengths:?}"
        );
    }

    #[test]
    fn words_are_runs_of_small_letters() {
        let found = words([b"GET /ab/page?abcdefghijklm=Xyz".as_slice()].into_iter());
        assert_eq!(
            found,
            [b"abcdefghij".to_vec(), b"klm".to_vec(), b"page".to_vec()]
        );
    }
}
