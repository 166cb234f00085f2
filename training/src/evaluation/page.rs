//! The page: every figure of the JSON as tables, the telling ones as plots too.

use trafficllm::report::Page;
use trafficllm::report::plot::{self, Line, NAMES_MAX, Scale};

use super::{EvaluationReport, GroupReport, Lead, Protocol, TaskReport, VariantReport};
use crate::baselines::BaselineScores;
use crate::error::Result;
use crate::metrics::Scores;

/// The whole range of a share.
const WHOLE: (f64, f64) = (0.0, 1.0);

/// Writes the page of a report.
///
/// # Errors
/// Where a plot cannot be drawn.
pub fn page(report: &EvaluationReport) -> Result<String> {
    let protocol = &report.protocol;
    let mut page = Page::new(&format!(
        "Evaluation of {} on {}",
        protocol.bundle_name, protocol.split
    ));
    summary(&mut page, report)?;
    for task in &report.tasks {
        describe(&mut page, task)?;
    }
    describe_protocol(&mut page, protocol);
    Ok(page.finish())
}

fn percent(value: f64) -> String {
    format!("{:.1}", 100.0 * value)
}

fn points(lead: Option<Lead>) -> String {
    lead.map_or_else(String::new, |lead| {
        format!("{:+.1} ({:+.1})", lead.points, lead.points_supported)
    })
}

fn summary(page: &mut Page, report: &EvaluationReport) -> Result<()> {
    page.section("Summary");
    let rows: Vec<Vec<String>> = report
        .tasks
        .iter()
        .map(|task| {
            let all = &task.evaluation.all;
            vec![
                task.evaluation.task.clone(),
                all.items.to_string(),
                format!("{} of {}", all.labels_scored, task.labels.len()),
                percent(all.macro_f1),
                format!(
                    "{} ({})",
                    percent(all.macro_f1_supported),
                    all.labels_supported
                ),
                percent(task.evaluation.unseen.macro_f1),
                percent(all.accuracy),
                percent(task.reliability.expected_calibration_error),
                percent(task.risk_coverage.coverage_at_threshold),
                percent(task.risk_coverage.accuracy_at_threshold),
                points(task.lead),
            ]
        })
        .collect();
    let head = [
        "task",
        "items",
        "labels",
        "macro-F1",
        "F1, n≥20 (labels)",
        "F1, unseen",
        "accuracy",
        "calibration error",
        "answered",
        "accuracy of the answered",
        "above the best baseline, points (n≥20)",
    ];
    page.table("All tasks; shares in percent", &head, &rows);
    if report.tasks.len() <= NAMES_MAX && !report.tasks.is_empty() {
        let names: Vec<String> = report
            .tasks
            .iter()
            .map(|task| task.evaluation.task.clone())
            .collect();
        let mut series = vec![("model", values(report, |task| task.evaluation.all.macro_f1))];
        let measured = report.tasks.iter().flat_map(|task| &task.baselines);
        let mut baselines: Vec<&str> = Vec::new();
        for baseline in measured {
            if !baselines.contains(&baseline.name.as_str()) {
                baselines.push(&baseline.name);
            }
        }
        for name in baselines {
            let of_task = |task: &TaskReport| {
                let found = task.baselines.iter().find(|baseline| baseline.name == name);
                found.map_or(f64::NAN, |baseline| baseline.all.macro_f1)
            };
            series.push((name, values(report, of_task)));
        }
        let plot = plot::bars("Macro-F1", &names, &series, Scale::Share)?;
        page.figure(
            &plot,
            "Macro-F1 of each task, the baselines beside it where they were measured.",
        );
    }
    Ok(())
}

fn values(report: &EvaluationReport, of_task: impl Fn(&TaskReport) -> f64) -> Vec<f64> {
    report.tasks.iter().map(of_task).collect()
}

fn describe(page: &mut Page, task: &TaskReport) -> Result<()> {
    let evaluation = &task.evaluation;
    page.section(&evaluation.task);
    let cost = &task.cost;
    page.paragraph(&format!(
        "{} items, of which {} carry a payload that also stands in the training split. An item has {:.1} tokens ({} at most) and costs {:.0} us of \
         encoding and {:.0} us of the model on one thread ({} items timed).",
        evaluation.all.items,
        evaluation.repeated,
        cost.tokens_mean,
        cost.tokens_max,
        cost.encoding_us,
        cost.model_us,
        cost.timed_items
    ));
    if !task.baselines.is_empty() {
        baselines(
            page,
            &evaluation.all,
            &evaluation.unseen,
            &task.baselines,
            task.lead,
        )?;
    }
    for group in &task.groups {
        describe_group(page, group)?;
    }
    classes(page, task)?;
    confusion(page, task)?;
    reliability(page, task)?;
    coverage(page, task)?;
    unknown(page, task);
    variants(page, "Noise", &evaluation.all, &task.noise)?;
    variants(
        page,
        "Occlusion: what each token family is worth",
        &evaluation.all,
        &task.occlusion,
    )
}

fn baselines(
    page: &mut Page,
    all: &Scores,
    unseen: &Scores,
    measured: &[BaselineScores],
    lead: Option<Lead>,
) -> Result<()> {
    let row = |name: &str, all: &Scores, unseen: &Scores| {
        vec![
            name.to_owned(),
            percent(all.macro_f1),
            percent(all.macro_f1_supported),
            percent(all.accuracy),
            percent(unseen.macro_f1),
        ]
    };
    let mut rows = vec![row("model", all, unseen)];
    rows.extend(
        measured
            .iter()
            .map(|one| row(&one.name, &one.all, &one.unseen)),
    );
    let head = ["", "macro-F1", "F1, n≥20", "accuracy", "F1, unseen"];
    page.table("Model and baselines, in percent", &head, &rows);
    let mut names = vec!["model".to_owned()];
    names.extend(measured.iter().map(|one| one.name.clone()));
    let mut scores = vec![all.macro_f1];
    scores.extend(measured.iter().map(|one| one.all.macro_f1));
    let plot = plot::bars("Macro-F1", &names, &[("", scores)], Scale::Share)?;
    let lead = lead.map_or_else(String::new, |lead| {
        format!(
            "{:+.1} points against the best baseline, {:+.1} over labels with 20 items and more.",
            lead.points, lead.points_supported
        )
    });
    page.figure(&plot, &format!("The model beside the baselines. {lead}"));
    Ok(())
}

fn describe_group(page: &mut Page, group: &GroupReport) -> Result<()> {
    page.heading(&format!("Among the labels {}… alone", group.prefix));
    page.paragraph(&format!(
        "{} items, macro-F1 {}, accuracy {}, without repeated items {}; calibration error {}.",
        group.all.items,
        percent(group.all.macro_f1),
        percent(group.all.accuracy),
        percent(group.unseen.macro_f1),
        percent(group.expected_calibration_error)
    ));
    let rows = class_rows(&group.all);
    page.table("Per label", &CLASS_HEAD, &rows);
    if group.baselines.is_empty() {
        return Ok(());
    }
    baselines(
        page,
        &group.all,
        &group.unseen,
        &group.baselines,
        group.lead,
    )
}

/// The columns of [`class_rows`].
const CLASS_HEAD: [&str; 5] = ["label", "items", "precision", "recall", "F1"];

fn class_rows(scores: &Scores) -> Vec<Vec<String>> {
    let classes = scores.per_class.iter();
    classes
        .map(|class| {
            vec![
                class.label.clone(),
                class.support.to_string(),
                format!("{:.3}", class.precision),
                format!("{:.3}", class.recall),
                format!("{:.3}", class.f1),
            ]
        })
        .collect()
}

fn classes(page: &mut Page, task: &TaskReport) -> Result<()> {
    page.heading("Per label");
    let scores = &task.evaluation.all;
    page.table(
        "Labels that the split holds",
        &CLASS_HEAD,
        &class_rows(scores),
    );
    if scores.per_class.len() > NAMES_MAX {
        page.paragraph(&format!("More than {NAMES_MAX} labels: no plot."));
        return Ok(());
    }
    let names: Vec<String> = scores
        .per_class
        .iter()
        .map(|class| class.label.clone())
        .collect();
    let f1: Vec<f64> = scores.per_class.iter().map(|class| class.f1).collect();
    let plot = plot::bars("F1 per label", &names, &[("", f1)], Scale::Share)?;
    page.figure(&plot, "F1 of each label.");
    Ok(())
}

fn confusion(page: &mut Page, task: &TaskReport) -> Result<()> {
    page.heading("Confusion");
    if task.labels.len() > NAMES_MAX {
        page.paragraph(&format!(
            "More than {NAMES_MAX} labels: the counts stand in the JSON."
        ));
        return Ok(());
    }
    let counts: Vec<u64> = task.confusion.concat();
    let plot = plot::heat_map("Confusion", ("true label", "answer"), &task.labels, &counts)?;
    page.figure(
        &plot,
        "Items by true label and answer; a row is shaded by its share.",
    );
    let mut mistakes: Vec<(u64, usize, usize)> = Vec::new();
    for (truth, row) in task.confusion.iter().enumerate() {
        let wrong = row
            .iter()
            .enumerate()
            .filter(|&(answer, &count)| answer != truth && count > 0);
        mistakes.extend(wrong.map(|(answer, &count)| (count, truth, answer)));
    }
    mistakes.sort_by(|left, right| {
        right
            .0
            .cmp(&left.0)
            .then((left.1, left.2).cmp(&(right.1, right.2)))
    });
    let rows: Vec<Vec<String>> = mistakes
        .iter()
        .take(MISTAKES_SHOWN)
        .map(|&(count, truth, answer)| {
            vec![
                format!("{} answered as {}", task.labels[truth], task.labels[answer]),
                count.to_string(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        page.table("Most frequent mistakes", &["mistake", "items"], &rows);
    }
    Ok(())
}

/// Mistakes that are listed below the confusion map.
const MISTAKES_SHOWN: usize = 12;

fn reliability(page: &mut Page, task: &TaskReport) -> Result<()> {
    page.heading("Calibration");
    let table = &task.reliability;
    let filled = || table.bins.iter().filter(|bin| bin.items > 0);
    let rows: Vec<Vec<String>> = filled()
        .map(|bin| {
            vec![
                format!("{:.3} to {:.3}", bin.above, bin.up_to),
                bin.items.to_string(),
                format!("{:.3}", bin.mean_score),
                format!("{:.3}", bin.accuracy),
            ]
        })
        .collect();
    page.paragraph(&format!(
        "Expected calibration error {:.4}.",
        table.expected_calibration_error
    ));
    page.table(
        "Reliability",
        &["score", "items", "mean score", "accuracy"],
        &rows,
    );
    let measured = filled().map(|bin| (bin.mean_score, bin.accuracy)).collect();
    let series = [
        Line {
            name: "measured",
            points: measured,
        },
        Line {
            name: "as it should be",
            points: vec![(0.0, 0.0), (1.0, 1.0)],
        },
    ];
    let plot = plot::lines(
        "Reliability",
        ("mean score", "share of right answers"),
        (WHOLE, WHOLE),
        &series,
    )?;
    page.figure(
        &plot,
        "Under the straight line the model is too sure, above it not sure enough.",
    );
    Ok(())
}

fn coverage(page: &mut Page, task: &TaskReport) -> Result<()> {
    page.heading("Abstention");
    let curve = &task.risk_coverage;
    page.paragraph(&format!(
        "At the shipped threshold {:.4}, {} % of the items are answered and {} % of those answers are right. Area under risk over coverage {:.4}; {:.4} \
         if the score put every right answer first.",
        curve.threshold,
        percent(curve.coverage_at_threshold),
        percent(curve.accuracy_at_threshold),
        curve.area,
        curve.area_best
    ));
    let risks = curve
        .points
        .iter()
        .map(|point| (point.coverage, point.risk))
        .collect();
    let highest = curve
        .points
        .iter()
        .map(|point| point.risk)
        .fold(0.0, f64::max);
    let mut series = vec![Line {
        name: "risk",
        points: risks,
    }];
    if curve.coverage_at_threshold > 0.0 {
        let at = curve.coverage_at_threshold;
        series.push(Line {
            name: "shipped threshold",
            points: vec![(at, 0.0), (at, highest)],
        });
    }
    let axes = (
        "share of the items that are answered",
        "share of wrong answers",
    );
    let plot = plot::lines("Risk over coverage", axes, (WHOLE, (0.0, 0.01)), &series)?;
    page.figure(&plot, "The answers with the highest scores first.");
    Ok(())
}

fn unknown(page: &mut Page, task: &TaskReport) {
    if task.unknown.is_empty() {
        return;
    }
    page.heading("Unknown classes");
    let rows: Vec<Vec<String>> = task
        .unknown
        .iter()
        .map(|one| {
            vec![
                one.outsiders.clone(),
                one.items.to_string(),
                one.left_out.to_string(),
                one.auroc.map_or("-".into(), |auroc| format!("{auroc:.3}")),
                percent(one.answered_inside),
                one.answered_outside.map_or("-".into(), percent),
            ]
        })
        .collect();
    let head = [
        "outsiders",
        "items",
        "left out as known",
        "AUROC",
        "answered inside, %",
        "answered outside, %",
    ];
    page.table("How well the score tells outsiders", &head, &rows);
}

fn variants(
    page: &mut Page,
    heading: &str,
    plain: &Scores,
    variants: &[VariantReport],
) -> Result<()> {
    if variants.is_empty() {
        return Ok(());
    }
    page.heading(heading);
    let mut rows = vec![vec![
        "as recorded".to_owned(),
        percent(plain.macro_f1),
        String::new(),
        percent(plain.accuracy),
        percent(plain.abstained),
        percent(plain.accuracy_answered),
    ]];
    rows.extend(variants.iter().map(|variant| {
        vec![
            variant.name.clone(),
            percent(variant.macro_f1),
            format!("{:+.1}", 100.0 * (variant.macro_f1 - plain.macro_f1)),
            percent(variant.accuracy),
            percent(variant.abstained),
            percent(variant.accuracy_answered),
        ]
    }));
    let head = [
        "",
        "macro-F1",
        "change",
        "accuracy",
        "abstained",
        "accuracy of the answered",
    ];
    page.table(heading, &head, &rows);
    let mut names = vec!["as recorded".to_owned()];
    names.extend(variants.iter().map(|variant| variant.name.clone()));
    let mut scores = vec![plain.macro_f1];
    scores.extend(variants.iter().map(|variant| variant.macro_f1));
    let plot = plot::bars("Macro-F1", &names, &[("", scores)], Scale::Share)?;
    page.figure(&plot, "Macro-F1 of the same items, changed.");
    Ok(())
}

fn describe_protocol(page: &mut Page, protocol: &Protocol) {
    page.section("Protocol");
    let rows = [
        ("program", protocol.program.clone()),
        ("bundle", protocol.bundle.clone()),
        ("split", protocol.split.clone()),
        ("seed of noise and baselines", protocol.seed.to_string()),
        ("CPU level", protocol.level.clone()),
        ("profile", protocol.profile.to_string()),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    page.table("How it was measured", &["", ""], &rows);
    for (name, meaning) in &protocol.figures {
        page.paragraph(&format!("{name}: {meaning}."));
    }
}
