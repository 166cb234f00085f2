//! Broken tokenizer files, each with the error it must give.

use serde_json::{Value, json};

use super::tokenizer;
use crate::token::vocabulary::{FIRST_BYTE, FIRST_MERGE};
use crate::token::{TokenError, Tokenizer, limits};

fn valid() -> Value {
    serde_json::from_slice(&tokenizer().to_json()).unwrap()
}

fn read(value: &Value) -> Result<Tokenizer, TokenError> {
    Tokenizer::from_json(&serde_json::to_vec(value).unwrap())
}

#[test]
fn a_written_tokenizer_reads_back_the_same() {
    let written = tokenizer();
    let read = Tokenizer::from_json(&written.to_json()).unwrap();
    assert_eq!(read.merges(), written.merges());
    assert!(!read.merges().is_empty());
    assert_eq!(read.to_json(), written.to_json());
    assert_eq!(
        read.vocabulary_size(),
        FIRST_MERGE as usize + written.merges().len()
    );
}

#[test]
fn merges_may_be_written_as_text() {
    let mut file = valid();
    for merge in file["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!(
            "{} {}",
            merge[0].as_str().unwrap(),
            merge[1].as_str().unwrap()
        ));
    }
    assert_eq!(read(&file).unwrap().merges(), tokenizer().merges());
}

#[test]
fn each_wrong_field_is_named() {
    type Break = fn(&mut Value);
    let cases: [(&str, Break); 26] = [
        ("version", |file| file["version"] = json!("2.0")),
        ("truncation", |file| {
            file["truncation"] = json!({"max_length": 3})
        }),
        ("padding", |file| file["padding"] = json!(1)),
        ("normalizer", |file| {
            file["normalizer"] = json!({"type": "NFC"})
        }),
        ("post_processor", |file| file["post_processor"] = json!([])),
        ("pre_tokenizer.type", |file| {
            file["pre_tokenizer"]["type"] = json!("Whitespace")
        }),
        ("pre_tokenizer.add_prefix_space", |file| {
            file["pre_tokenizer"]["add_prefix_space"] = json!(true)
        }),
        ("pre_tokenizer.use_regex", |file| {
            file["pre_tokenizer"]["use_regex"] = json!(true)
        }),
        ("decoder.type", |file| {
            file["decoder"]["type"] = json!("Metaspace")
        }),
        ("model.type", |file| {
            file["model"]["type"] = json!("WordPiece")
        }),
        ("model.dropout", |file| {
            file["model"]["dropout"] = json!(0.1)
        }),
        ("model.unk_token", |file| {
            file["model"]["unk_token"] = json!("<unk>")
        }),
        ("model.continuing_subword_prefix", |file| {
            file["model"]["continuing_subword_prefix"] = json!("##")
        }),
        ("model.end_of_word_suffix", |file| {
            file["model"]["end_of_word_suffix"] = json!("</w>")
        }),
        ("model.fuse_unk", |file| {
            file["model"]["fuse_unk"] = json!(true)
        }),
        ("model.byte_fallback", |file| {
            file["model"]["byte_fallback"] = json!(true)
        }),
        ("model.ignore_merges", |file| {
            file["model"]["ignore_merges"] = json!(true)
        }),
        ("added_tokens", |file| {
            drop(file["added_tokens"].as_array_mut().unwrap().pop())
        }),
        ("added_tokens[3].id", |file| {
            file["added_tokens"][3]["id"] = json!(4)
        }),
        ("added_tokens[1].content", |file| {
            file["added_tokens"][1]["content"] = json!("<hide>")
        }),
        ("added_tokens[0].special", |file| {
            file["added_tokens"][0]["special"] = json!(false)
        }),
        ("added_tokens[2].lstrip", |file| {
            file["added_tokens"][2]["lstrip"] = json!(true)
        }),
        ("model.vocab", |file| {
            file["model"]["vocab"]["one too many"] = json!(5)
        }),
        ("model.merges[0]", |file| {
            file["model"]["merges"][0] = json!(["nowhere", "a"])
        }),
        ("model.merges[0]", |file| {
            file["model"]["merges"][0] = json!(["Z", "Z"])
        }),
        ("model.merges[1]", |file| {
            let first = file["model"]["merges"][0].clone();
            file["model"]["merges"][1] = first;
        }),
    ];
    for (expected, change) in cases {
        let mut file = valid();
        change(&mut file);
        match read(&file) {
            Err(TokenError::Field { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: found {other:?}"),
        }
    }
}

#[test]
fn a_wrong_vocabulary_is_told_from_a_right_one() {
    let replaced = |name: &str, by: Value| {
        let mut file = valid();
        file["model"]["vocab"][name] = by;
        read(&file).unwrap_err().to_string()
    };
    assert!(replaced("<mask>", json!(0)).contains("an id of its own"));
    assert!(replaced("<mask>", json!(4_000_000_000_u32)).contains("an id below"));

    let mut file = valid();
    let names = file["model"]["vocab"].as_object_mut().unwrap();
    let (first, second) = (names["a"].clone(), names["b"].clone());
    names["a"] = second;
    names["b"] = first;
    let error = read(&file).unwrap_err().to_string();
    let expected = format!(
        "model.vocab, id {}: expected \"\\\"a\\\"\", found \"\\\"b\\\"\"",
        FIRST_BYTE + 97
    );
    assert!(
        error
            .replace('\\', "")
            .contains(&expected.replace('\\', "").replace("\"\"", "\"")),
        "{error}"
    );

    let text = String::from_utf8(tokenizer().to_json()).unwrap();
    // The entry of id 7 under the name of id 1: a name twice, which a map would swallow.
    let twice = text.replace("\"<drop>\": 7", "\"<mask>\": 7");
    assert_ne!(twice, text);
    let error = Tokenizer::from_json(twice.as_bytes())
        .unwrap_err()
        .to_string();
    assert!(error.contains("expected one entry, found two"), "{error}");
}

#[test]
fn what_is_no_such_json_is_told_with_its_place() {
    let text = String::from_utf8(tokenizer().to_json()).unwrap();
    let nested = format!("{{\"version\": {}", "[".repeat(100_000));
    let huge_id = text.replacen("\"<pad>\": 0", "\"<pad>\": 99999999999999999999", 1);
    let unknown = text.replacen("\"version\"", "\"extra\": 1, \"version\"", 1);
    for broken in [
        "",
        "null",
        "[]",
        "{}",
        "{\"version\": \"1.0\"}",
        nested.as_str(),
        huge_id.as_str(),
        unknown.as_str(),
    ] {
        let error = Tokenizer::from_json(broken.as_bytes()).unwrap_err();
        assert!(matches!(error, TokenError::Json { .. }), "{error}");
    }
    assert!(matches!(
        Tokenizer::from_json(&[0xff, 0xfe]),
        Err(TokenError::Json { line: 1, .. })
    ));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = tokenizer().to_json();
    let end = bytes.iter().rposition(|byte| *byte == b'}').unwrap();
    for length in (0..=end).step_by(97).chain(end - 40..=end) {
        assert!(
            Tokenizer::from_json(&bytes[..length]).is_err(),
            "{length} bytes"
        );
    }
}

#[test]
fn the_file_is_held_at_its_size_limit_and_past_it() {
    let mut bytes = tokenizer().to_json();
    bytes.resize(limits::MAX_TOKENIZER_JSON_BYTES, b' ');
    assert!(Tokenizer::from_json(&bytes).is_ok());
    bytes.push(b' ');
    let error = Tokenizer::from_json(&bytes).unwrap_err();
    assert_eq!(
        error,
        TokenError::FileTooLong {
            limit: limits::MAX_TOKENIZER_JSON_BYTES,
            found: limits::MAX_TOKENIZER_JSON_BYTES + 1
        }
    );
}
