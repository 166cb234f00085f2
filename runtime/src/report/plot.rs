//! Plots as SVG text, drawn by plotters without any font of the system: the text stays text.

use plotters::coord::Shift;
use plotters::element::Text;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, LineSeries,
    PathElement, RGBColor, Rectangle, SVGBackend, TextStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of every plot, in pixels.
const WIDTH: u32 = 760;
/// Height of a line plot.
const LINES_HEIGHT: u32 = 340;
/// Height of one bar.
const BAR_HEIGHT: u32 = 14;
/// Room for the names at the left of bars and of a heat map's rows.
const NAMES_WIDTH: i32 = 220;
/// Room for the title, and for the axis under the bars.
const MARGIN: i32 = 28;
/// Characters of a name that are shown in a plot; the tables show all.
const NAME_CHARACTERS: usize = 32;
/// Most names of one bar plot or heat map; a table can take more than a picture.
pub const NAMES_MAX: usize = 128;
/// Size of the text; the library makes a font of about four fifths of it, in pixels.
const TEXT_SIZE: i32 = 15;
/// Side of a heat map's cell: at most, and at least.
const CELL: (i32, i32) = (40, 12);
/// A cell as large as this has room for its number.
const CELL_WITH_NUMBER: i32 = 22;

/// Radius of the dot that stands for a line of one point.
const DOT_RADIUS: i32 = 6;

/// Colours of the series, told apart by people with any colour sight (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
];

/// A drawn plot.
#[derive(Clone, Debug)]
pub struct Plot {
    svg: String,
}

impl Plot {
    /// The plot as an SVG element.
    #[must_use]
    pub fn svg(&self) -> &str {
        &self.svg
    }
}

/// A plot that could not be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlotError {
    /// The drawing library refused something.
    #[error("plot {title:?}: {message}")]
    Drawing {
        /// The plot's title.
        title: String,
        /// What the library said.
        message: String,
    },
    /// Names and values do not belong together, or there are none, or too many.
    #[error("plot {title:?}: expected {expected}, found {found}")]
    Shape {
        /// The plot's title.
        title: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: usize,
    },
}

/// What the values of bars are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Shares in `0..=1`.
    Share,
    /// Counts from 0 on.
    Count,
}

/// One line of [`lines`].
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Its name, shown beside the plot's title.
    pub name: &'a str,
    /// Its points, `(x, y)`; those that are no numbers are left out.
    pub points: Vec<(f64, f64)>,
}

/// Horizontal bars, one group per name with one bar per series. `series` holds a name and one value per name.
///
/// # Errors
/// [`PlotError`].
pub fn bars(
    title: &str,
    names: &[String],
    series: &[(&str, Vec<f64>)],
    scale: Scale,
) -> Result<Plot, PlotError> {
    check_names(title, names.len())?;
    for (_, values) in series {
        check(
            title,
            format!("{} values", names.len()),
            values.len() == names.len(),
            values.len(),
        )?;
    }
    check(
        title,
        "1 series at least".to_owned(),
        !series.is_empty(),
        series.len(),
    )?;
    let top = match scale {
        Scale::Share => 1.0,
        Scale::Count => largest(series.iter().flat_map(|(_, values)| values.iter().copied())),
    };
    let group = BAR_HEIGHT as i32 * series.len() as i32 + 6;
    let height = 2 * MARGIN + group * names.len() as i32;
    draw(title, (WIDTH, height as u32), |area| {
        legend(area, title, series.iter().map(|(name, _)| *name))?;
        let left = NAMES_WIDTH;
        let width = WIDTH as i32 - left - 70;
        for (row, name) in names.iter().enumerate() {
            let above = MARGIN + group * row as i32;
            let middle = above + group / 2;
            write(area, &short(name), (left - 6, middle), HPos::Right)?;
            for (index, (_, values)) in series.iter().enumerate() {
                let value = values[row];
                let y = above + 3 + BAR_HEIGHT as i32 * index as i32;
                let share = if value.is_finite() && top > 0.0 {
                    (value / top).clamp(0.0, 1.0)
                } else {
                    0.0
                };
                let right = left + (share * f64::from(width)).round() as i32;
                let corners = [(left, y), (right, y + BAR_HEIGHT as i32 - 2)];
                area.draw(&Rectangle::new(corners, colour(index).filled()))
                    .map_err(text)?;
                let shown = match scale {
                    _ if !value.is_finite() => "not measured".to_owned(),
                    Scale::Share => format!("{value:.3}"),
                    Scale::Count => format!("{value}"),
                };
                write(
                    area,
                    &shown,
                    (right + 4, y + BAR_HEIGHT as i32 / 2),
                    HPos::Left,
                )?;
            }
        }
        Ok(())
    })
}

/// Lines over common axes; a line whose points are one point is a dot. The axes reach over all points, and at least over `x` and `y`.
///
/// # Errors
/// [`PlotError`].
pub fn lines(
    title: &str,
    axes: (&str, &str),
    least: ((f64, f64), (f64, f64)),
    lines: &[Line<'_>],
) -> Result<Plot, PlotError> {
    let number = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let points = || {
        lines
            .iter()
            .flat_map(|line| line.points.iter().filter(number))
    };
    check(
        title,
        "1 point at least".to_owned(),
        points().next().is_some(),
        0,
    )?;
    let x = reach(least.0, points().map(|point| point.0));
    let y = reach(least.1, points().map(|point| point.1));
    draw(title, (WIDTH, LINES_HEIGHT), |area| {
        legend(area, title, lines.iter().map(|line| line.name))?;
        let mut chart = ChartBuilder::on(area)
            .margin_top(MARGIN)
            .margin_right(24)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)
            .map_err(text)?;
        chart
            .configure_mesh()
            .light_line_style(BLACK.mix(0.04))
            .bold_line_style(BLACK.mix(0.12))
            .x_desc(axes.0)
            .y_desc(axes.1)
            .label_style(("sans-serif", TEXT_SIZE))
            .draw()
            .map_err(text)?;
        for (index, line) in lines.iter().enumerate() {
            let points: Vec<(f64, f64)> = line.points.iter().filter(number).copied().collect();
            // A line without a length would not be seen. Of several in one place each is smaller than the one under it.
            if let Some(&first) = points.first()
                && points.iter().all(|point| *point == first)
            {
                let radius = (DOT_RADIUS - 2 * index as i32).max(2);
                let dot = Circle::new(first, radius, colour(index).filled());
                chart.draw_series([dot]).map_err(text)?;
                continue;
            }
            chart
                .draw_series(LineSeries::new(points, colour(index).stroke_width(2)))
                .map_err(text)?;
        }
        Ok(())
    })
}

/// Counts as a map of shaded cells, each row shaded by its own share. `counts` is `[rows, columns]`, row-major, both as many as `names`.
///
/// # Errors
/// [`PlotError`].
pub fn heat_map(
    title: &str,
    axes: (&str, &str),
    names: &[String],
    counts: &[u64],
) -> Result<Plot, PlotError> {
    check_names(title, names.len())?;
    let side = names.len();
    check(
        title,
        format!("{} cells", side * side),
        counts.len() == side * side,
        counts.len(),
    )?;
    let cell = ((WIDTH as i32 - NAMES_WIDTH) / side as i32).clamp(CELL.1, CELL.0);
    let span = cell * side as i32;
    let top = 2 * MARGIN;
    let size = (
        (NAMES_WIDTH + span + 20).max(WIDTH as i32) as u32,
        (top + span + MARGIN) as u32,
    );
    draw(title, size, |area| {
        legend(area, title, std::iter::empty())?;
        write(
            area,
            &format!("rows: {}; columns, in the same order: {}", axes.0, axes.1),
            (10, top - 16),
            HPos::Left,
        )?;
        for (row, name) in names.iter().enumerate() {
            let y = top + cell * row as i32;
            write(
                area,
                &short(name),
                (NAMES_WIDTH - 6, y + cell / 2),
                HPos::Right,
            )?;
            let cells = &counts[row * side..(row + 1) * side];
            let total: u64 = cells.iter().sum();
            for (column, &count) in cells.iter().enumerate() {
                let x = NAMES_WIDTH + cell * column as i32;
                let share = if total == 0 {
                    0.0
                } else {
                    count as f64 / total as f64
                };
                let corners = [(x, y), (x + cell - 1, y + cell - 1)];
                // A faint ground, so that empty cells show where the map is.
                let shade = colour(0).mix(0.05 + 0.95 * share);
                area.draw(&Rectangle::new(corners, shade.filled()))
                    .map_err(text)?;
                if count > 0 && cell >= CELL_WITH_NUMBER {
                    let style = style(11, HPos::Center);
                    let style = if share > 0.5 {
                        style.color(&plotters::style::WHITE)
                    } else {
                        style
                    };
                    let place = (x + cell / 2, y + cell / 2);
                    area.draw(&Text::new(count.to_string(), place, style))
                        .map_err(text)?;
                }
            }
        }
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(
    title: &str,
    size: (u32, u32),
    paint: impl FnOnce(&Area<'_>) -> Result<(), String>,
) -> Result<Plot, PlotError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let painted = area
            .fill(&plotters::style::WHITE)
            .map_err(text)
            .and_then(|()| paint(&area));
        painted
            .and_then(|()| area.present().map_err(text))
            .map_err(|message| PlotError::Drawing {
                title: title.to_owned(),
                message,
            })?;
    }
    Ok(Plot { svg })
}

/// The title, and a coloured stroke with each name beside it.
fn legend<'a>(
    area: &Area<'_>,
    title: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    write(area, title, (10, MARGIN / 2), HPos::Left)?;
    let mut x = 10 + 7 * title.chars().count() as i32 + 30;
    for (index, name) in names.enumerate() {
        let y = MARGIN / 2;
        let stroke = colour(index).stroke_width(3);
        area.draw(&PathElement::new([(x, y), (x + 18, y)], stroke))
            .map_err(text)?;
        write(area, name, (x + 22, y), HPos::Left)?;
        x += 22 + 7 * name.chars().count() as i32 + 18;
    }
    Ok(())
}

fn write(area: &Area<'_>, words: &str, place: (i32, i32), side: HPos) -> Result<(), String> {
    area.draw(&Text::new(printable(words), place, style(TEXT_SIZE, side)))
        .map_err(text)
}

fn style(size: i32, side: HPos) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size).into_font()).pos(Pos::new(side, VPos::Center))
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// The drawing library escapes what XML needs; control characters, which XML refuses, and what else is unprintable are shown as escapes.
fn printable(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for character in words.chars() {
        if super::is_unprintable(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A name that fits beside a plot.
fn short(name: &str) -> String {
    if name.chars().count() <= NAME_CHARACTERS {
        return name.to_owned();
    }
    let kept = name.chars().take(NAME_CHARACTERS - 1);
    kept.chain(['…']).collect()
}

fn reach(least: (f64, f64), values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold(least, |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if high > low {
        (low, high)
    } else {
        (low, low + 1.0)
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.filter(|value| value.is_finite()).fold(0.0, f64::max)
}

fn check_names(title: &str, found: usize) -> Result<(), PlotError> {
    check(
        title,
        format!("1 to {NAMES_MAX} names"),
        (1..=NAMES_MAX).contains(&found),
        found,
    )
}

fn check(title: &str, expected: String, holds: bool, found: usize) -> Result<(), PlotError> {
    if holds {
        return Ok(());
    }
    Err(PlotError::Shape {
        title: title.to_owned(),
        expected,
        found,
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("name-{index}")).collect()
    }

    /// The widths of the bars, whose left side is where the names end.
    fn bar_widths(svg: &str) -> Vec<i32> {
        svg.lines()
            .filter(|line| line.starts_with("<rect") && line.contains("x=\"220\""))
            .map(|line| {
                let after = line.split("width=\"").nth(1).unwrap();
                after.split('"').next().unwrap().parse().unwrap()
            })
            .collect()
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let plot = bars(
            "F1",
            &names(3),
            &[("model", vec![1.0, 0.5, f64::NAN])],
            Scale::Share,
        )
        .unwrap();
        let widths = bar_widths(plot.svg());
        assert_eq!(widths.len(), 3, "{}", plot.svg());
        assert!(
            (widths[0] - 2 * widths[1]).abs() <= 1 && widths[2] <= 1,
            "{widths:?}"
        );
        assert!(plot.svg().contains("name-2") && plot.svg().contains("0.500"));
        assert!(plot.svg().contains("not measured") && !plot.svg().contains("NaN"));
        let counts = bars("n", &names(2), &[("flows", vec![40.0, 10.0])], Scale::Count).unwrap();
        let widths = bar_widths(counts.svg());
        assert!((widths[0] - 4 * widths[1]).abs() <= 3, "{widths:?}");
    }

    #[test]
    fn as_many_names_as_the_limit_are_drawn_and_one_more_is_refused() {
        let plot = |count: usize| {
            let values = vec![0.5; count];
            bars("many", &names(count), &[("one", values)], Scale::Share)
        };
        assert!(plot(NAMES_MAX).is_ok());
        let refused = plot(NAMES_MAX + 1).unwrap_err();
        assert!(
            matches!(refused, PlotError::Shape { found, .. } if found == NAMES_MAX + 1),
            "{refused}"
        );
        assert!(plot(0).is_err());
        assert!(
            heat_map(
                "many",
                ("a", "b"),
                &names(NAMES_MAX),
                &vec![1; NAMES_MAX * NAMES_MAX]
            )
            .is_ok()
        );
    }

    #[test]
    fn a_heat_map_shows_its_counts_and_refuses_a_wrong_shape() {
        let plot = heat_map("map", ("truth", "answer"), &names(2), &[17, 3, 0, 29]).unwrap();
        for number in ["17", "3", "29"] {
            assert!(
                plot.svg().contains(&format!("\n{number}\n")),
                "{}",
                plot.svg()
            );
        }
        assert!(heat_map("map", ("truth", "answer"), &names(2), &[1, 2, 3]).is_err());
    }

    #[test]
    fn lines_need_a_point_that_is_a_number() {
        let line = |points: Vec<(f64, f64)>| Line {
            name: "one",
            points,
        };
        let least = ((0.0, 1.0), (0.0, 1.0));
        let plot = lines(
            "risk",
            ("x", "y"),
            least,
            &[line(vec![(0.1, 0.2), (f64::NAN, 1.0), (0.9, 0.4)])],
        )
        .unwrap();
        assert_eq!(plot.svg().matches("stroke-width=\"2\"").count(), 1);
        assert!(lines("risk", ("x", "y"), least, &[line(vec![(f64::NAN, 0.0)])]).is_err());
        assert!(
            lines(
                "flat",
                ("x", "y"),
                ((5.0, 5.0), (2.0, 2.0)),
                &[line(vec![(5.0, 2.0)])]
            )
            .is_ok()
        );
    }

    #[test]
    fn a_line_of_one_point_is_a_dot() {
        let plot = |points: &[&[(f64, f64)]]| {
            let points = points.iter().map(|points| points.to_vec());
            let all: Vec<Line<'_>> = points
                .map(|points| Line {
                    name: "one",
                    points,
                })
                .collect();
            lines("dots", ("x", "y"), ((0.0, 1.0), (0.0, 1.0)), &all).unwrap()
        };
        let dots = plot(&[&[(0.0, 7.0)], &[(0.0, 7.0), (0.0, 7.0)], &[(f64::NAN, 7.0)]]);
        let radii: Vec<&str> = dots
            .svg()
            .lines()
            .filter(|line| line.starts_with("<circle"))
            .map(|line| {
                line.split(" r=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
            })
            .collect();
        assert_eq!(radii, ["6", "4"], "both are seen: {}", dots.svg());
        let line = plot(&[&[(0.0, 7.0), (1.0, 7.0)]]);
        assert!(!line.svg().contains("<circle"), "{}", line.svg());
    }
}
