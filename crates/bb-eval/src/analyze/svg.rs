//! Figures as SVG: points and lines between two axes, and a legend beside them.
//!
//! Text is placed by anchors, so that no font has to be measured, and every number is written with a fixed number of
//! decimals, so that the same data give the same bytes.

use std::fmt::Write as _;

use crate::markup::escaped;

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What stands above it.
    pub title: String,
    /// What the horizontal axis shows.
    pub x: String,
    /// What the vertical axis shows.
    pub y: String,
    /// What is drawn, the first one lowest.
    pub series: Vec<Series>,
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// How it is drawn.
    pub style: Style,
    /// The points, all finite.
    pub points: Vec<(f64, f64)>,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Each by itself.
    Points,
    /// Joined by a line.
    Line,
    /// Joined by a dashed line.
    Dashed,
    /// Joined by a thin grey line without a mark: something to compare with.
    Guide,
    /// Not at all: its name is a line of text in the legend.
    Note,
}

/// Width and height of the whole figure.
const SIZE: (f64, f64) = (800.0, 460.0);
/// Left, top, right and bottom edge of what is drawn in.
const FRAME: (f64, f64, f64, f64) = (70.0, 40.0, 580.0, 400.0);
/// Where the legend begins.
const LEGEND: f64 = 600.0;
/// Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];
const GUIDE: &str = "#888888";

impl Figure {
    /// The figure as a file.
    ///
    /// Both axes begin at 0 unless there are negative numbers.
    ///
    /// # Panics
    /// If a point is not finite.
    pub fn render(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        assert!(
            points().all(|(x, y)| x.is_finite() && y.is_finite()),
            "the points of `{}` are finite",
            self.title
        );
        let (left, top, right, bottom) = FRAME;
        let x = Axis::new(points().map(|point| point.0), left, right);
        let y = Axis::new(points().map(|point| point.1), bottom, top);

        let mut out = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| {
            out.write_fmt(text).expect("strings take all");
            out.push('\n');
        };
        let (width, height) = SIZE;
        let title = escaped(&self.title);
        line(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">"
        ));
        line(format_args!("<title>{title}</title>"));
        line(format_args!(
            "<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
        ));
        let middle = f64::midpoint(left, right);
        line(format_args!(
            "<text x=\"{middle}\" y=\"24\" font-size=\"15\" text-anchor=\"middle\">{title}</text>"
        ));
        line(format_args!(
            "<g stroke=\"#dddddd\" text-anchor=\"middle\">"
        ));
        for tick in &x.ticks {
            let (at, words) = (x.place(*tick), x.words(*tick));
            line(format_args!(
                "<path d=\"M{at:.1} {top}V{bottom}\"/><text x=\"{at:.1}\" y=\"{}\" stroke=\"none\">{words}</text>",
                bottom + 18.0
            ));
        }
        line(format_args!("</g>"));
        line(format_args!("<g stroke=\"#dddddd\" text-anchor=\"end\">"));
        for tick in &y.ticks {
            let (at, words) = (y.place(*tick), y.words(*tick));
            line(format_args!(
                "<path d=\"M{left} {at:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" stroke=\"none\">{words}</text>",
                left - 6.0,
                at + 4.0
            ));
        }
        line(format_args!("</g>"));
        line(format_args!(
            "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#222222\"/>"
        ));
        line(format_args!(
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 42.0,
            escaped(&self.x)
        ));
        let (across, down) = (18.0, f64::midpoint(top, bottom));
        line(format_args!(
            "<text x=\"{across}\" y=\"{down}\" text-anchor=\"middle\" transform=\"rotate(-90 {across} {down})\">{}</text>",
            escaped(&self.y)
        ));

        let mut shown = 0;
        for (row, series) in self.series.iter().enumerate() {
            let place = |&(px, py): &(f64, f64)| (x.place(px), y.place(py));
            let points: Vec<(f64, f64)> = series.points.iter().map(place).collect();
            let mut pen = Pen {
                style: series.style,
                shape: shown,
                colour: GUIDE,
            };
            if !matches!(series.style, Style::Guide | Style::Note) {
                pen.colour = COLOURS[shown % COLOURS.len()];
                shown += 1;
            }
            let colour = pen.colour;
            line(format_args!("<g fill=\"{colour}\" stroke=\"none\">"));
            line(format_args!("{}", pen.draw(&points)));
            let at = top + 10.0 + 22.0 * row as f64;
            let sample = match series.style {
                Style::Points => pen.draw(&[(LEGEND + 12.0, at)]),
                _ => pen.draw(&[(LEGEND, at), (LEGEND + 24.0, at)]),
            };
            line(format_args!(
                "{sample}<text x=\"{}\" y=\"{}\" fill=\"#222222\">{}</text>",
                LEGEND + 32.0,
                at + 4.0,
                escaped(&series.name)
            ));
            line(format_args!("</g>"));
        }
        line(format_args!("</svg>"));
        out
    }
}

/// What a series is drawn with.
#[derive(Clone, Copy)]
struct Pen {
    style: Style,
    /// Number of the shape of its points: shapes differ as well as colours, for prints without them.
    shape: usize,
    colour: &'static str,
}

impl Pen {
    /// Draws points, given in the figure's own lengths, as elements that are filled as what is around them.
    fn draw(self, points: &[(f64, f64)]) -> String {
        let mut out = String::new();
        let mut put =
            |text: std::fmt::Arguments<'_>| out.write_fmt(text).expect("strings take all");
        if matches!(self.style, Style::Line | Style::Dashed | Style::Guide) && !points.is_empty() {
            let dash = match self.style {
                Style::Dashed => " stroke-dasharray=\"6 4\"",
                Style::Guide => " stroke-dasharray=\"2 3\"",
                _ => "",
            };
            let mut way = String::new();
            for (i, (x, y)) in points.iter().enumerate() {
                let step = if i == 0 { 'M' } else { 'L' };
                write!(way, "{step}{x:.1} {y:.1}").expect("strings take all");
            }
            put(format_args!(
                "<path d=\"{way}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"{dash}/>",
                self.colour
            ));
        }
        if matches!(self.style, Style::Guide | Style::Note) {
            return out;
        }
        for (x, y) in points {
            match self.shape % 3 {
                0 => put(format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\" fill-opacity=\"0.7\"/>"
                )),
                1 => put(format_args!(
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"4\" height=\"4\" fill-opacity=\"0.7\"/>",
                    x - 2.0,
                    y - 2.0
                )),
                _ => put(format_args!(
                    "<path d=\"M{x:.1} {:.1}l2.8 4.8h-5.6z\" fill-opacity=\"0.7\"/>",
                    y - 3.2
                )),
            }
        }
        out
    }
}

/// An axis from one length of the figure to another.
struct Axis {
    /// The numbers at its ends.
    ends: (f64, f64),
    /// Their places.
    places: (f64, f64),
    ticks: Vec<f64>,
    decimals: usize,
}

/// About as many steps as an axis has.
const STEPS: f64 = 6.0;

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values.fold((0f64, 0f64), |(low, high), v| (low.min(v), high.max(v)));
        // Without any spread there is still an axis, from 0 to 1.
        let range = if high > low { high - low } else { 1.0 };
        let power = 10f64.powf((range / STEPS).log10().floor());
        // The least of 1, 2, 5 and 10 times a power of ten that makes no more steps than wanted.
        let step = [1.0, 2.0, 5.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| range / step <= STEPS)
            .unwrap_or(10.0 * power);
        let first = (low / step).floor();
        let last = (low + range) / step;
        // A value on a tick within rounding needs no step more.
        let last = (last - 1e-9).ceil().max(first + 1.0);
        let count = (last - first) as usize;
        let ticks: Vec<f64> = (0..=count).map(|i| (first + i as f64) * step).collect();
        Self {
            ends: (first * step, last * step),
            places: (from, to),
            ticks,
            decimals: (-step.log10().floor()).max(0.0) as usize,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value - self.ends.0) / (self.ends.1 - self.ends.0);
        self.places.0 + share * (self.places.1 - self.places.0)
    }

    fn words(&self, tick: f64) -> String {
        // No sign before a zero.
        let tick = if tick.abs() < 1e-300 { 0.0 } else { tick };
        format!("{tick:.*}", self.decimals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(values: &[f64]) -> (Vec<String>, (f64, f64)) {
        let axis = Axis::new(values.iter().copied(), 0.0, 100.0);
        (
            axis.ticks.iter().map(|&t| axis.words(t)).collect(),
            axis.ends,
        )
    }

    #[test]
    fn axes_have_round_steps_and_hold_all_values() {
        assert_eq!(axis(&[3.0, 10.0]).0, ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(axis(&[0.65]).0, ["0.0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(
            axis(&[511.0]).0,
            ["0", "100", "200", "300", "400", "500", "600"]
        );
        assert_eq!(axis(&[-1.0, 1.0]).0, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(axis(&[0.0]).0.len(), 6, "no spread");
        assert_eq!(axis(&[]).1, (0.0, 1.0));
        for scale in [1e-30, 3e-7, 0.12, 1.0, 7.7, 12_345.6, 1e20] {
            for low in [0.0, -0.3, -4.0] {
                let values = [low * scale, scale];
                let (words, (first, last)) = axis(&values);
                assert!(
                    first <= values[0] && last >= values[1] * (1.0 - 1e-8),
                    "{scale}"
                );
                assert!((2..=9).contains(&words.len()), "{words:?}");
            }
        }
    }

    #[test]
    fn points_stand_where_their_numbers_say() {
        let figure = Figure {
            title: "a < b & \"c\"".to_owned(),
            x: "x".to_owned(),
            y: "y".to_owned(),
            series: vec![
                Series {
                    name: "dots".to_owned(),
                    style: Style::Points,
                    points: vec![(0.0, 0.0), (10.0, 10.0), (5.0, 2.5)],
                },
                Series {
                    name: "way".to_owned(),
                    style: Style::Dashed,
                    points: vec![(0.0, 10.0), (10.0, 0.0)],
                },
            ],
        };
        let text = figure.render();
        assert_eq!(text, figure.render());
        assert!(
            text.contains("<title>a &lt; b &amp; &quot;c&quot;</title>"),
            "{text}"
        );
        // The frame is 70 to 580 across and 400 up to 40.
        for place in [(70.0, 400.0), (580.0, 40.0), (325.0, 310.0)] {
            let circle = format!("<circle cx=\"{:.1}\" cy=\"{:.1}\"", place.0, place.1);
            assert!(text.contains(&circle), "{circle}\n{text}");
        }
        assert!(text.contains("d=\"M70.0 40.0L580.0 400.0\""), "{text}");
        // Three points and the sample of the legend; two squares on the line and two on its sample.
        assert_eq!(text.matches("<circle").count(), 4);
        assert_eq!(text.matches("<rect x").count(), 4);
        // Elements open and close in order.
        let mut open = Vec::new();
        for tag in text.split('<').skip(1) {
            let name: String = tag
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '/')
                .collect();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
                None if tag.split('>').next().expect("a tag").ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }
}
