//! What is printed below the table of scores.

use std::fmt::Write as _;

use super::{EvaluationReport, Lead, VariantReport};

/// The other figures, in percent: calibration, abstention and cost, then whatever else was asked for.
#[must_use]
pub fn table(report: &EvaluationReport) -> String {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let mut text = format!(
        "\n{:<28}{:>9}{:>9}{:>10}{:>11}{:>9}{:>11}{:>11}\n",
        "task", "ECE", "AURC", "answered", "accuracy", "tokens", "encode us", "model us"
    );
    // Writing to a text cannot fail.
    for task in &report.tasks {
        let (curve, cost) = (&task.risk_coverage, &task.cost);
        let _ = writeln!(
            text,
            "{:<28}{:>9.4}{:>9.4}{:>10}{:>11}{:>9.1}{:>11.1}{:>11.0}",
            task.evaluation.task,
            task.reliability.expected_calibration_error,
            curve.area,
            percent(curve.coverage_at_threshold),
            percent(curve.accuracy_at_threshold),
            cost.tokens_mean,
            cost.encoding_us,
            cost.model_us
        );
    }
    text.push_str("ECE: expected calibration error; AURC: area under risk over coverage; answered: at the shipped threshold; us: per item, one thread.\n");
    for task in &report.tasks {
        let mut rows: Vec<(String, String)> = Vec::new();
        let scores = |macro_f1: f64, accuracy: f64| {
            format!(
                "macro-F1 {:>5}  accuracy {:>5}",
                percent(macro_f1),
                percent(accuracy)
            )
        };
        for one in &task.baselines {
            rows.push((one.name.clone(), scores(one.all.macro_f1, one.all.accuracy)));
        }
        rows.extend(task.lead.map(lead));
        for group in &task.groups {
            let error = format!("  ECE {:.4}", group.expected_calibration_error);
            rows.push((
                format!("among {}*", group.prefix),
                scores(group.all.macro_f1, group.all.accuracy) + &error,
            ));
            for one in &group.baselines {
                rows.push((
                    format!("  {}", one.name),
                    scores(one.all.macro_f1, one.all.accuracy),
                ));
            }
            rows.extend(group.lead.map(lead));
        }
        let variants = task.noise.iter().chain(&task.occlusion);
        rows.extend(variants.map(
            |VariantReport {
                 name,
                 macro_f1,
                 accuracy,
                 ..
             }| (name.clone(), scores(*macro_f1, *accuracy)),
        ));
        for one in &task.unknown {
            let outside = match (one.auroc, one.answered_outside) {
                (Some(auroc), Some(answered)) => format!(
                    "AUROC {auroc:.3}  answered {} of {} outsiders in %",
                    percent(answered),
                    one.items
                ),
                _ => format!("0 outsiders, {} left out as known", one.left_out),
            };
            rows.push((format!("outside: {}", one.outsiders), outside));
        }
        if !rows.is_empty() {
            let _ = writeln!(text, "\n{}", task.evaluation.task);
        }
        for (name, figures) in rows {
            let _ = writeln!(text, "  {name:<38}{figures}");
        }
    }
    text
}

fn lead(lead: Lead) -> (String, String) {
    let figures = format!(
        "{:+.1} points, {:+.1} where n>=20",
        lead.points, lead.points_supported
    );
    ("above the best baseline".to_owned(), figures)
}
