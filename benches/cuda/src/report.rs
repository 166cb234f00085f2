//! What was measured: a line of text for those who watch, and a line of JSON for what reads it later.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Failure;

/// Both outputs of one part.
pub(crate) struct Report {
    part: &'static str,
    json: Option<BufWriter<File>>,
}

impl Report {
    /// Appends to the file, if one is named.
    pub(crate) fn new(part: &'static str, path: Option<&Path>) -> Result<Self, Failure> {
        let open = |path| File::options().create(true).append(true).open(path);
        let json = path.map(open).transpose()?.map(BufWriter::new);
        Ok(Self { part, json })
    }

    /// A line of the table, `name` first, then each figure by its key.
    pub(crate) fn row(&mut self, name: &str, figures: Value) -> Result<(), Failure> {
        let figures = match figures {
            Value::Object(figures) => figures,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        let shown: Vec<String> = figures
            .iter()
            // What the name says already stands in the lines of JSON only.
            .filter(|(_, value)| value.as_str().is_none_or(|text| !name.contains(text)))
            .map(|(key, value)| match value {
                Value::Number(number) => format!("{key} {}", short(number.as_f64())),
                Value::String(text) => format!("{key} {text}"),
                other => format!("{key} {other}"),
            })
            .collect();
        println!("{:<10}{name:<46} {}", self.part, shown.join("  "));
        if let Some(json) = &mut self.json {
            let mut line = Map::from_iter([
                ("part".to_owned(), json!(self.part)),
                ("name".to_owned(), json!(name)),
            ]);
            line.extend(figures);
            writeln!(json, "{}", Value::Object(line))?;
            json.flush()?;
        }
        Ok(())
    }

    /// What could not be measured, and why; the rest goes on.
    pub(crate) fn left_out(&mut self, name: &str, why: impl ToString) -> Result<(), Failure> {
        self.row(name, json!({"left_out": why.to_string()}))
    }
}

/// Four digits, or what is before the point.
fn short(number: Option<f64>) -> String {
    let Some(number) = number else {
        return "-".to_owned();
    };
    if number.fract() == 0.0 || number.abs() >= 1000.0 {
        return format!("{number:.0}");
    }
    let before_point = number.abs().log10().floor() as i32 + 1;
    let places = usize::try_from(4 - before_point).unwrap_or(0).min(9);
    format!("{number:.places$}")
}

/// The middle one; NaN of none.
pub(crate) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_as_long_as_they_mean_something() {
        assert_eq!(short(Some(12345.6)), "12346");
        assert_eq!(short(Some(12.3456)), "12.35");
        assert_eq!(short(Some(0.001_234_56)), "0.001235");
        assert_eq!(short(Some(24.0)), "24");
        assert_eq!(short(None), "-");
    }
}
