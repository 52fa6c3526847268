//! Curves as SVG: one chart of several series, axes linear or logarithmic.

use std::fmt::Write;

/// A curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it shows.
    pub name: String,
    /// Ours are drawn thick.
    pub ours: bool,
    /// In order of x; all positive.
    pub points: Vec<(f64, f64)>,
}

/// Which label stands at a value of an axis.
pub type Label = fn(f64) -> String;

/// A chart with logarithmic axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below the x axis, and how its values are written.
    pub x: (&'static str, Label),
    /// Factor between two marks of the x axis.
    pub x_step: f64,
    /// Beside the y axis.
    pub y: &'static str,
    /// What it shows.
    pub curves: Vec<Curve>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 330.0;
/// Room for labels: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (62.0, 190.0, 28.0, 44.0);

/// Told apart by people who see few colours, too.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#000000"];

impl Chart {
    /// The drawing; empty where there is nothing to draw.
    pub fn svg(&self) -> String {
        let points = || self.curves.iter().flat_map(|c| &c.points);
        if points().next().is_none() {
            return String::new();
        }
        let x = Axis::over(points().map(|p| p.0), self.x_step, MARGIN.0, WIDTH - MARGIN.1);
        let y = Axis::over(points().map(|p| p.1), 10.0, HEIGHT - MARGIN.3, MARGIN.2);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{t}\"><text class=\"t\" x=\"{}\" y=\"16\">{t}</text>",
            MARGIN.0,
            t = escape(&self.title),
        );
        self.axes(&mut out, &x, &y);
        for (i, curve) in self.curves.iter().enumerate() {
            draw(&mut out, curve, COLOURS[i % COLOURS.len()], i, &x, &y);
        }
        out + "</svg>"
    }

    /// The drawing as a file of its own.
    pub fn standalone(&self) -> String {
        let head = "<svg xmlns=\"http://www.w3.org/2000/svg\" ";
        let style = "<style>text{font:12px sans-serif}.t{font-weight:bold}.m{text-anchor:middle}.e{text-anchor:end}\
                     .g{stroke:#ddd}.a{stroke:#000;fill:none}</style>";
        self.svg().replacen("<svg ", head, 1).replacen('>', &format!(">{style}"), 1)
    }

    fn axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        let (left, right, top, bottom) = (x.from, x.to, y.to, y.from);
        for value in x.marks() {
            let at = x.place(value);
            _ = write!(
                out,
                "<path class=\"g\" d=\"M{at:.1} {top}V{bottom}\"/><text class=\"m\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 14.0,
                escape(&(self.x.1)(value)),
            );
        }
        for value in y.marks() {
            let at = y.place(value);
            _ = write!(
                out,
                "<path class=\"g\" d=\"M{left} {at:.1}H{right}\"/><text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left - 5.0,
                at + 4.0,
                number(value),
            );
        }
        _ = write!(
            out,
            "<path class=\"a\" d=\"M{left} {top}V{bottom}H{right}\"/><text class=\"m\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"m\" transform=\"translate(14 {:.1}) rotate(-90)\">{}</text>",
            (left + right) / 2.0,
            bottom + 34.0,
            escape(self.x.0),
            (top + bottom) / 2.0,
            escape(self.y),
        );
    }
}

fn draw(out: &mut String, curve: &Curve, colour: &str, index: usize, x: &Axis, y: &Axis) {
    let width = if curve.ours { 2.6 } else { 1.4 };
    let path: Vec<String> =
        curve.points.iter().map(|p| format!("{:.1} {:.1}", x.place(p.0), y.place(p.1))).collect();
    _ = write!(
        out,
        "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" d=\"M{}\"/>",
        path.join("L")
    );
    if curve.points.len() <= 16 {
        for p in &curve.points {
            _ = write!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\" fill=\"{colour}\"/>",
                x.place(p.0),
                y.place(p.1)
            );
        }
    }
    let (left, at) = (x.to + 12.0, y.to + 10.0 + 17.0 * index as f64);
    _ = write!(
        out,
        "<path stroke=\"{colour}\" stroke-width=\"{width}\" d=\"M{left:.1} {at:.1}h18\"/><text class=\"l\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        left + 23.0,
        at + 4.0,
        escape(&curve.name),
    );
}

/// A logarithmic axis between two places of the drawing.
struct Axis {
    /// Logarithms of the ends, to the base `step`.
    low: f64,
    high: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, step: f64, from: f64, to: f64) -> Axis {
        let logs: Vec<f64> = values.map(|v| v.max(SMALLEST).ln() / step.ln()).collect();
        // A value that is a mark must not get a decade of its own for an error in its last digit.
        let low = (logs.iter().copied().fold(f64::INFINITY, f64::min) + 1e-9).floor();
        let high = (logs.iter().copied().fold(f64::NEG_INFINITY, f64::max) - 1e-9).ceil();
        Axis { low, high: high.max(low + 1.0), step, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let at = (value.max(SMALLEST).ln() / self.step.ln() - self.low) / (self.high - self.low);
        self.from + at * (self.to - self.from)
    }

    fn marks(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|i| self.step.powi(i))
    }
}

/// What is drawn in place of nothing, which has no logarithm.
const SMALLEST: f64 = 1e-3;

/// A mark of a decade.
fn number(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value}") }
}

/// Text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let curves = vec![Curve { name: "a<b".into(), ours: true, points }];
        Chart { title: "t".into(), x: ("x", |v| format!("{v:.0}")), x_step: 10.0, y: "y", curves }
    }

    #[test]
    fn points_stay_inside_their_axes_and_names_are_escaped() {
        let svg = chart(vec![(1.0, 0.0), (10.0, 5.0), (1000.0, 70.0)]).svg();
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b") && !svg.contains("NaN"), "{svg}");
        let axis = Axis::over([1.0, 1000.0].into_iter(), 10.0, 50.0, 350.0);
        for (value, at) in [(1.0, 50.0), (10.0, 150.0), (1000.0, 350.0)] {
            assert!((axis.place(value) - at).abs() < 1e-6, "{value} at {}", axis.place(value));
        }
    }

    #[test]
    fn one_point_is_a_chart_and_none_is_nothing() {
        assert!(chart(vec![(8.0, 8.0)]).svg().contains("circle"));
        assert_eq!(chart(vec![]).svg(), "");
    }
}
