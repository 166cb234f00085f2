//! The inspection for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Inspection, LabelInspection, Level, SHORTCUT_SKILL, TaskInspection, WEAK_SKILL};

impl Inspection {
    /// All tasks as text.
    #[must_use]
    pub fn table(&self) -> String {
        let tasks: Vec<String> = self.tasks.iter().map(TaskInspection::table).collect();
        tasks.join("\n")
    }
}

impl TaskInspection {
    fn table(&self) -> String {
        let mut text = format!("{} ({})\n", self.task, self.kind);
        // Writing to a text cannot fail.
        let _written = self
            .counts(&mut text)
            .and_then(|()| self.splits(&mut text))
            .and_then(|()| self.shortcuts(&mut text));
        for finding in &self.findings {
            let level = match finding.level {
                Level::Error => "error",
                Level::Warning => "warning",
            };
            let _written = writeln!(text, "  {level}: {}", finding.text);
        }
        text
    }

    fn counts(&self, text: &mut String) -> std::fmt::Result {
        let mut rows: BTreeMap<&str, Vec<Option<&LabelInspection>>> = BTreeMap::new();
        for (place, split) in self.splits.iter().enumerate() {
            for label in &split.labels {
                let row = rows.entry(&label.label).or_default();
                row.resize(self.splits.len(), None);
                row[place] = Some(label);
            }
        }
        let width = rows.keys().map(|label| label.chars().count()).max();
        let width = width.unwrap_or(0).max(5);
        write!(text, "  {:width$}", "label")?;
        for split in &self.splits {
            let title = format!("{}: groups {} packets", split.split, self.kind);
            write!(text, "  {title:>30}")?;
        }
        writeln!(text)?;
        for (label, row) in rows {
            write!(text, "  {label:width$}")?;
            for cell in row {
                let cell = cell.map_or("-".into(), |found| {
                    format!("{} {:>8} {:>8}", found.groups, found.items, found.packets)
                });
                write!(text, "  {cell:>30}")?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    fn splits(&self, text: &mut String) -> std::fmt::Result {
        for split in &self.splits {
            write!(
                text,
                "  {}: {} {}, {} groups, {} packets; {} without payload, {} different payloads; largest/smallest label {:.1}, balance {:.2}",
                split.split,
                split.items,
                self.kind,
                split.groups,
                split.packets,
                split.without_payload,
                split.distinct_payloads,
                split.imbalance,
                split.balance
            )?;
            if let Some(repeats) = split.repeats {
                write!(
                    text,
                    "; payload also in train: {} under the same label, {} under others ({:.1} %)",
                    repeats.same_label,
                    repeats.other_label,
                    100.0 * repeats.share
                )?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    fn shortcuts(&self, text: &mut String) -> std::fmt::Result {
        let (Some(first), Some(split)) = (self.shortcuts.first(), &self.shortcuts_scored_on) else {
            return Ok(());
        };
        writeln!(
            text,
            "  one field alone, looked up in train and scored on {split} (most frequent label: accuracy {:.3}, macro-F1 {:.3}):",
            first.chance_accuracy, first.chance_macro_f1
        )?;
        writeln!(
            text,
            "    {:30} {:>7} {:>7} {:>9} {:>9} {:>6}  verdict",
            "field", "values", "known", "accuracy", "macro-F1", "skill"
        )?;
        for found in &self.shortcuts {
            writeln!(
                text,
                "    {:30} {:>7} {:>7.3} {:>9.3} {:>9.3} {:>6.2}  {}",
                found.feature,
                found.values,
                found.known,
                found.accuracy,
                found.macro_f1,
                found.skill,
                found.verdict.name()
            )?;
        }
        writeln!(
            text,
            "    skill is the part of the way from chance to a perfect score; shortcut from {SHORTCUT_SKILL} on, leans from {WEAK_SKILL} on"
        )
    }
}
