//! The hostile heads of `plugins/attacks` with what becomes of each.

use trafficllm_heads::Reason;

/// What becomes of a hostile head.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// It is not loaded, and the error says this.
    Refused(&'static str),
    /// It is loaded, and no flow gets a verdict for this reason.
    Faults(Reason),
    /// It answers as the good head does.
    Harmless,
    /// Every call is its first: it always answers with label 0.
    Forgets,
}
use Outcome::*;

pub(crate) const ATTACKS: &[(&str, Outcome)] = &[
    ("about_at_end", Refused("bytes at 0")),
    ("about_labels", Refused("label: expected different labels")),
    ("about_lying", Refused("bytes: expected 32 to 65536")),
    ("about_name", Refused("name: expected a-z, 0-9 and _")),
    ("about_needs", Refused("needs: expected")),
    ("about_out_of_bounds", Refused("magic")),
    ("broken_text", Faults(Reason::Rubbish)),
    ("division", Faults(Reason::Trap)),
    ("empty_verdict", Faults(Reason::Rubbish)),
    ("endless_begin", Faults(Reason::Fuel)),
    ("endless_loop", Faults(Reason::Fuel)),
    ("endless_new", Faults(Reason::Fuel)),
    (
        "endless_start",
        Refused("used up its 10000000 units of fuel"),
    ),
    (
        "export_is_global",
        Refused(
            "export tllm_head_output: expected a function of 1 i32 that gives one i32, found a global",
        ),
    ),
    ("fill_bomb", Faults(Reason::Fuel)),
    (
        "foreign_import",
        Refused("import wasi_snapshot_preview1.fd_write: only trafficllm.tllm_head_log"),
    ),
    ("global_name", Refused("duplicate export name")),
    ("infinite_score", Faults(Reason::Rubbish)),
    ("input_out_of_bounds", Faults(Reason::Rubbish)),
    ("keeps_state", Refused("keeping state between calls")),
    ("large_score", Faults(Reason::Rubbish)),
    ("later_abi", Refused("abi: expected 1.0 to 1.0, found 1.1")),
    ("leaks_data", Refused("data.drop is not allowed")),
    ("leaks_global", Forgets),
    ("leaks_growth", Forgets),
    ("leaks_input", Forgets),
    ("leaks_memory", Forgets),
    ("leaks_table", Refused("table.copy is not allowed")),
    ("log_all_memory", Harmless),
    ("log_flood", Faults(Reason::Fuel)),
    ("log_out_of_bounds", Faults(Reason::Trap)),
    ("lying_block", Faults(Reason::Rubbish)),
    ("lying_count", Faults(Reason::Rubbish)),
    ("lying_evidence", Faults(Reason::Rubbish)),
    ("lying_result", Faults(Reason::Rubbish)),
    ("lying_scores", Faults(Reason::Rubbish)),
    ("lying_verdict", Faults(Reason::Rubbish)),
    ("memory_bomb", Faults(Reason::Trap)),
    ("memory_declared", Refused("memory")),
    (
        "missing_export",
        Refused(
            "export tllm_head_output: expected a function of 1 i32 that gives one i32, found none",
        ),
    ),
    ("nan_score", Faults(Reason::NotANumber)),
    ("negative_score", Faults(Reason::Rubbish)),
    ("no_memory", Refused("export memory")),
    ("no_verdicts", Faults(Reason::Rubbish)),
    ("nothing", Faults(Reason::Rubbish)),
    ("output_in_input", Faults(Reason::Rubbish)),
    ("output_null", Faults(Reason::Rubbish)),
    ("output_out_of_bounds", Faults(Reason::Rubbish)),
    ("output_unaligned", Faults(Reason::Rubbish)),
    ("read_out_of_bounds", Faults(Reason::Trap)),
    ("refusal", Faults(Reason::Refused)),
    ("shared_memory", Refused("thread")),
    ("signalling_nan", Faults(Reason::NotANumber)),
    ("stack_overflow", Faults(Reason::Stack)),
    ("table_declared", Refused("table")),
    ("terminal_escape", Faults(Reason::Rubbish)),
    ("trapping_start", Refused("trapped")),
    ("two_imports", Refused("imports: at most 1, found 2")),
    (
        "two_versions",
        Refused("abi: expected 1.0 to 1.0, found 2.0"),
    ),
    ("unknown_flags", Faults(Reason::Rubbish)),
    ("unknown_label", Faults(Reason::Rubbish)),
    ("wide_memory", Refused("memory64")),
    ("wrong_abi", Refused("abi: expected 1.0 to 1.0, found 2.0")),
    ("wrong_import", Refused("import trafficllm.tllm_head_log")),
    (
        "wrong_signature",
        Refused(
            "export tllm_head_output: expected a function of 1 i32 that gives one i32, found a function (i32) -> (i64)",
        ),
    ),
];
