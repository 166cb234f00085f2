//! The structs and sizes that Rust and the kernels both know are the same: a C++ compiler says so.

use std::io::Write;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use crate::cuda::arguments::*;
use crate::cuda::variants::{
    HEAD_DIMS, QUERY_TILE, RowKind, TOKEN_TILE, WeightKind, attention_shared_bytes, products,
};

macro_rules! same_layout {
    ($text:ident, $($type:ident { $($field:ident),* })*) => {
        $(
            $text += &format!("static_assert(sizeof({0}) == {1});\n", stringify!($type), size_of::<$type>());
            $(
                let offset = offset_of!($type, $field);
                $text += &format!("static_assert(offsetof({}, {}) == {offset});\n", stringify!($type), stringify!($field));
            )*
        )*
    };
}

/// A text of kernels without what the preprocessor would do.
fn plain(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The constants that a header begins with.
fn constants(text: &str, end: &str) -> String {
    plain(&text[..text.find(end).unwrap()])
}

/// Whether the compiler accepts the text; `None` where there is no compiler.
fn compiles(text: &str) -> Option<Result<(), String>> {
    let mut child = Command::new("c++")
        .args(["-std=c++17", "-fsyntax-only", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(output.status.success().then_some(()).ok_or(errors))
}

fn structs() -> String {
    let mut text = "#include <cstddef>\n#include <cstdint>\n".to_owned();
    text += &plain(include_str!("../../../cuda/arguments.cuh"));
    same_layout!(
        text,
        BatchHeader { rows, tokens, queries, token_tiles, query_tiles, reserved }
        KeyRange { source, first, count, reserved }
        AttentionTile { first_row, rows, own_first, ranges, context }
        LabelNode { first_child, children, temperature, reserved }
        LowRankFactors { a, b, rank, reserved }
        EmbedArguments {
            header, row_index, token_values, token_nibbles, token_scales, token_minimums, query_embeddings, residual, hidden, reserved
        }
        QuantiseArguments {
            header, input, weight, values, scales, group_sums, epsilon, columns, input_stride, stride, row_set, form
        }
        ProductArguments {
            header, rows, row_scales, group_sums, weights, scales, minimums, output, queries, keys, values, rotary, positions,
            coefficients, row_task, factors, columns, channels, first_channel, output_stride, query_size, key_size, head_dim, row_set
        }
        AttentionArguments { header, tiles, queries, keys, values, output, score_factor, heads, kv_heads, reserved }
        GatherArguments { header, last_rows, from, to, stride, reserved }
        CoefficientsArguments {
            header, input, weight, row_task, factors, coefficients, epsilon, columns, input_stride, row_set
        }
        LabelArguments {
            header, states, query_node, nodes, children, label_weight, best, probabilities, hidden, probability_stride
        }
    );
    let sets = [
        ("ROWS_ALL", RowSet::All as u32),
        ("ROWS_TOKENS", RowSet::Tokens as u32),
        ("ROWS_QUERIES", RowSet::Queries as u32),
        ("ROWS_LAST", RowSet::Last as u32),
        ("FORM_INT8", FORM_INT8),
        ("FORM_BF16", FORM_BF16),
        ("FORM_F32", FORM_F32),
        ("LOW_RANK_MAX", LOW_RANK_MAX as u32),
    ];
    for (name, value) in sets {
        text += &format!("static_assert({name} == {value});\n");
    }
    text
}

/// Shared memory and threads of each kernel.
fn launches() -> String {
    let product = constants(
        include_str!("../../../cuda/product_tile.cuh"),
        "struct Stage",
    );
    let attention = constants(include_str!("../../../cuda/attention.cuh"), "TLLM_DEVICE");
    let mut text = "#include <cstdint>\n".to_owned();
    for (at, variant) in products((8, 0)).enumerate() {
        let kinds = (variant.weights as u32, variant.rows as u32);
        text += &format!(
            "#define TLLM_WEIGHTS {}\n#define TLLM_ROWS {}\n#define TLLM_TILE_ROWS {}\nnamespace product_{at} {{\n{product}\n",
            kinds.0, kinds.1, variant.tile_rows
        );
        text += &format!(
            "static_assert(SHARED_BYTES == {} && THREADS == {});\n}}\n",
            variant.shared_bytes(),
            variant.threads()
        );
        text += "#undef TLLM_WEIGHTS\n#undef TLLM_ROWS\n#undef TLLM_TILE_ROWS\n";
    }
    for head_dim in HEAD_DIMS.into_iter().chain([48, 144, 176, 192, 208, 240]) {
        for tile in [TOKEN_TILE, QUERY_TILE] {
            text += &format!(
                "#define TLLM_HEAD_DIM {head_dim}\n#define TLLM_TILE {tile}\nnamespace attention_{head_dim}_{tile} {{\n{attention}\n"
            );
            text += &format!(
                "static_assert(STAGES * STAGE_VALUES * sizeof(uint16_t) == {});\n",
                attention_shared_bytes(head_dim, tile)
            );
            text += "static_assert(THREADS == 128);\n}\n#undef TLLM_HEAD_DIM\n#undef TLLM_TILE\n";
        }
    }
    text
}

#[test]
fn kernels_and_rust_agree_on_sizes() {
    for text in [structs(), launches()] {
        match compiles(&text) {
            None => eprintln!("skipped: there is no C++ compiler"),
            Some(result) => result.unwrap_or_else(|errors| panic!("{errors}")),
        }
        // What is asserted is looked at.
        let wrong = format!("{text}static_assert(sizeof(uint32_t) == 5);\n");
        assert!(compiles(&wrong).is_none_or(|result| result.is_err()));
    }
    assert_eq!(
        (WeightKind::Int4Minimums as u32, RowKind::Bf16 as u32),
        (2, 1)
    );
}
