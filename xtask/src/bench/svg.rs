//! Plots as SVG: bars beside each other, and lines over a logarithmic axis.

use std::fmt::Write as _;

/// One bar, or one point of a line.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) label: String,
    pub(super) value: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// A line: its name, and for each point where it is on the axis and how high.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, Mark)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// Told apart by those who see no red or green, too.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#e69f00", "#009e73", "#56b4e9", "#999999"];

/// A bar for each mark, its spread drawn over it.
pub(super) fn bars(title: &str, unit: &str, marks: &[Mark]) -> String {
    let top = nice(marks.iter().map(|mark| mark.max).fold(0.0, f64::max));
    let mut svg = frame(title, unit, top);
    let step = (WIDTH - LEFT - RIGHT) / marks.len().max(1) as f64;
    for (index, mark) in marks.iter().enumerate() {
        let middle = LEFT + step * (index as f64 + 0.5);
        let (y, half) = (height(mark.value, top), step * 0.3);
        let colour = colour(index);
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(
            svg,
            r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/>"#,
            middle - half,
            half * 2.0,
            HEIGHT - BOTTOM - y
        );
        spread(&mut svg, middle, mark, top);
        let _ = writeln!(
            svg,
            r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            HEIGHT - BOTTOM + 18.0,
            escaped(&mark.label)
        );
        let _ = writeln!(
            svg,
            r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle" font-weight="bold">{}</text>"#,
            height(mark.max, top) - 6.0,
            number(mark.value)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A line for each of `lines`, over a logarithmic axis named `axis`.
pub(super) fn lines(title: &str, unit: &str, axis: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let top = nice(points().map(|(_, mark)| mark.max).fold(0.0, f64::max));
    let first = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min).max(1.0).log10();
    let last = points().map(|(x, _)| *x).fold(1.0, f64::max).log10();
    let across = |x: f64| {
        let part = if last > first { (x.max(1.0).log10() - first) / (last - first) } else { 0.5 };
        LEFT + 20.0 + part * (WIDTH - LEFT - RIGHT - 40.0)
    };
    let mut svg = frame(title, unit, top);
    let mut labelled = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let colour = colour(index);
        let path = line.points.iter().map(|(x, mark)| format!("{:.1},{:.1}", across(*x), height(mark.value, top)));
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.5"/>"#,
            path.collect::<Vec<_>>().join(" ")
        );
        for (x, mark) in &line.points {
            let _ = writeln!(
                svg,
                r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{colour}"/>"#,
                across(*x),
                height(mark.value, top)
            );
            spread(&mut svg, across(*x), mark, top);
            if !labelled.contains(&mark.label) {
                let at = HEIGHT - BOTTOM + 18.0;
                let _ = writeln!(
                    svg,
                    r#"<text x="{:.1}" y="{at:.1}" text-anchor="middle">{}</text>"#,
                    across(*x),
                    escaped(&mark.label)
                );
                labelled.push(mark.label.clone());
            }
        }
        let x = LEFT + 20.0 + 150.0 * index as f64;
        let _ = writeln!(svg, r#"<rect x="{x:.1}" y="{:.1}" width="12" height="12" fill="{colour}"/>"#, TOP - 14.0);
        let _ = writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, x + 17.0, TOP - 4.0, escaped(&line.name));
    }
    let _ = writeln!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0,
        escaped(axis)
    );
    svg.push_str("</svg>\n");
    svg
}

/// Title, axis and grid.
fn frame(title: &str, unit: &str, top: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let _ = writeln!(svg, r#"<text x="{LEFT}" y="22" font-size="16" font-weight="bold">{}</text>"#, escaped(title));
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let y = height(value, top);
        let _ =
            writeln!(svg, r##"<line x1="{LEFT}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="#ddd"/>"##, WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 6.0,
            y + 4.0,
            number(value)
        );
    }
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    let _ = writeln!(
        svg,
        r#"<text x="18" y="{middle:.1}" text-anchor="middle" transform="rotate(-90 18 {middle:.1})">{}</text>"#,
        escaped(unit)
    );
    svg
}

/// From the least to the most that was measured.
fn spread(svg: &mut String, x: f64, mark: &Mark, top: f64) {
    let _ = writeln!(
        svg,
        r##"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}" stroke="#222" stroke-width="1.5"/>"##,
        height(mark.min, top),
        height(mark.max, top)
    );
}

fn height(value: f64, top: f64) -> f64 {
    let part = if top > 0.0 { (value / top).clamp(0.0, 1.0) } else { 0.0 };
    HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)
}

/// The next number whose quarters are round.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= value * 1.05);
    step.unwrap_or(12.0) * power
}

/// A number with three digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or("black")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(label: &str, value: f64) -> Mark {
        Mark { label: label.to_owned(), value, min: value * 0.9, max: value * 1.1 }
    }

    #[test]
    fn plots_are_whole_documents_within_their_frame() {
        let bars = bars("a < b", "ns", &[mark("tc", 980.0), mark("nft", 1718.0)]);
        assert!(bars.starts_with("<svg") && bars.ends_with("</svg>\n") && bars.contains("a &lt; b"));
        let points = vec![(1.0, mark("1", 5.0)), (65_535.0, mark("65535", 6.0))];
        let lines = lines("rules", "ns", "rules", &[Line { name: "tc".to_owned(), points }]);
        assert_eq!(lines.matches("<circle").count(), 2);
        for plot in [bars, lines] {
            let numbers = plot.split('"').filter_map(|word| word.parse::<f64>().ok());
            assert!(numbers.into_iter().all(|number| (0.0..=WIDTH).contains(&number)), "{plot}");
        }
    }

    #[test]
    fn an_axis_ends_above_what_it_shows() {
        for value in [0.3, 1.0, 7.0, 99.0, 1718.0] {
            assert!(nice(value) >= value && nice(value) < value * 3.0, "{value}");
        }
    }
}
