//! The page of `--html`: everything inside one file, so that it can be mailed and kept.

use std::fmt::Write;

use serde_json::Value;

use super::svg::{Chart, Curve, escape};
use super::{Absent, Row, bytes};

/// The page.
pub fn render(
    bench: &str,
    facts: &Value,
    rows: &[Row],
    absent: &[Absent],
    notes: &[String],
    charts: &[Chart],
) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>pmemha-perf {bench}</title><style>{STYLE}</style>\
         <h1>pmemha-perf {bench}</h1>"
    );
    list(
        &mut out,
        "machine",
        facts.as_object().into_iter().flatten().map(|(k, v)| format!("{k}: {}", plain(v))),
    );
    list(&mut out, "how to read this", METHOD.iter().map(|m| m.to_string()).chain(notes.iter().cloned()));
    list(&mut out, "not measured", absent.iter().map(|a| format!("{}: {}", a.name, a.remedy)));
    charts
        .iter()
        .chain(&size_curves(rows))
        .chain(&percentile_curves(rows))
        .for_each(|chart| out += &chart.svg());
    table(&mut out, rows);
    out + "</html>\n"
}

fn list(out: &mut String, title: &str, items: impl Iterator<Item = String>) {
    let items: String = items.map(|item| format!("<li>{}</li>", escape(&item))).collect();
    if !items.is_empty() {
        _ = write!(out, "<h2>{title}</h2><ul>{items}</ul>");
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A chart for each figure that was measured at several sizes: ours, and each peer's.
fn size_curves(rows: &[Row]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for what in distinct(rows.iter().map(|r| &r.what)) {
        let of: Vec<&Row> = rows.iter().filter(|r| r.what == *what && r.size.is_some()).collect();
        if distinct(of.iter().map(|r| &r.size)).len() < 2 {
            continue;
        }
        let place = |r: &Row, value: f64| (r.size.unwrap_or(0) as f64, value);
        let mut ours: Vec<_> = of.iter().map(|r| place(r, r.ours.spread().median())).collect();
        ours.dedup_by_key(|p| p.0);
        let mut curves = vec![Curve { name: "pmemha".into(), ours: true, points: ours }];
        for peer in distinct(of.iter().filter_map(|r| r.peer.as_ref().map(|(name, _)| name))) {
            let points = of.iter().filter_map(|r| match &r.peer {
                Some((name, series)) if name == peer => Some(place(r, series.spread().median())),
                _ => None,
            });
            curves.push(Curve { name: peer.to_string(), ours: false, points: points.collect() });
        }
        let title = what.clone();
        charts.push(Chart { title, x: ("size", |v| bytes(v as u64)), x_step: 8.0, y: of[0].unit, curves });
    }
    charts
}

/// A chart for each figure and size that has times.
fn percentile_curves(rows: &[Row]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (what, size) in distinct(rows.iter().map(|r| (&r.what, r.size))) {
        let of = || rows.iter().filter(|r| r.what == **what && r.size == size);
        let ours = of().find_map(|r| r.ours.times.as_ref());
        let Some(ours) = ours else { continue };
        let mut curves = vec![Curve { name: "pmemha".into(), ours: true, points: ours.curve() }];
        for (name, series) in of().filter_map(|r| r.peer.as_ref()) {
            if let Some(times) = &series.times {
                curves.push(Curve { name: name.to_string(), ours: false, points: times.curve() });
            }
        }
        let title = format!("{what} {}", size.map_or(String::new(), bytes));
        charts.push(Chart { title, x: ("percentile", percentile), x_step: 10.0, y: "us", curves });
    }
    charts
}

/// Of one over the share that is slower.
fn percentile(inverse: f64) -> String {
    let digits = (inverse.log10().round() as usize).saturating_sub(2);
    if inverse < 2.0 { "0".into() } else { format!("{:.digits$}", 100.0 - 100.0 / inverse) }
}

fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

fn table(out: &mut String, rows: &[Row]) {
    *out += "<h2>rows</h2><table><tr><th>what<th>size<th>unit<th>ours<th>spread<th>peer<th>peer's<th>ratio<th>spread<th>aim\
             <th>label</tr>";
    for row in rows {
        let json = row.json();
        let range = |v: &Value| {
            v.as_array().map_or(String::new(), |a| format!("{}-{}", figure(&a[0]), figure(&a[1])))
        };
        let met = row.met().map_or("", |met| if met { "met" } else { "missed" });
        let cells = [
            row.what.clone(),
            row.size.map_or(String::new(), bytes),
            row.unit.into(),
            figure(&json["ours"]),
            range(&json["spread"]["ours"]),
            row.peer.as_ref().map_or(String::new(), |(name, _)| name.to_string()),
            figure(&json["peer"]),
            figure(&json["ratio"]),
            range(&json["spread"]["ratio"]),
            row.aim.map_or(String::new(), |aim| format!("{} {met}", aim.text())),
            row.label.unwrap_or_default().into(),
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{}", escape(cell))).collect();
        _ = write!(out, "<tr class=\"{met}\">{cells}</tr>");
    }
    *out += "</table>";
}

fn figure(value: &Value) -> String {
    value
        .as_f64()
        .map_or(String::new(), |v| if v.abs() >= 100.0 { format!("{v:.0}") } else { format!("{v:.2}") })
}

/// What holds of every benchmark.
const METHOD: [&str; 2] = [
    "Ours and peers take turns within each round; a figure is the median of the rounds, its spread their smallest and largest.",
    "A ratio is taken within a round, so that whatever else the machine did hits both; its median is compared with the aim.",
];

const STYLE: &str = "body{font:14px/1.45 sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}\
    h1{font-size:22px}h2{font-size:16px;margin:1.4em 0 .3em}ul{margin:.2em 0;padding-left:1.3em}\
    svg{width:640px;max-width:100%;margin:.4em .6em .4em 0}svg text{font:11px sans-serif;fill:#333}\
    svg .t{font-size:13px;font-weight:bold}svg .m{text-anchor:middle}svg .e{text-anchor:end}\
    svg .g{stroke:#e4e4e4;fill:none}svg .a{stroke:#555;fill:none}table{border-collapse:collapse;font-size:13px}\
    th,td{border-bottom:1px solid #ddd;padding:3px 9px;text-align:left}tr.missed td{background:#fdeee6}tr.met td{background:#eaf6ef}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Times, round_of_times};
    use crate::report::Series;

    #[test]
    fn a_page_has_a_size_curve_a_percentile_curve_and_every_row_and_nothing_from_elsewhere() {
        let (mut times, mut round) = (Times::default(), round_of_times());
        (1..2000u64).for_each(|us| round.record(us * 1000).expect("in bounds"));
        times.push(&round);
        let row = |size| {
            let ours = Series::of_times(&times);
            Row::new("wait <durable>", Some(size), "us", ours).beside("librpma", vec![7.0].into())
        };
        let page =
            render("latency", &serde_json::json!({"kernel": "6.1"}), &[row(64), row(4096)], &[], &[], &[]);
        assert_eq!(page.matches("<svg").count(), 3, "{page}");
        assert_eq!(page.matches("<tr class").count(), 2);
        assert!(page.contains("4 KiB") && page.contains("librpma") && !page.contains("<durable>"));
        assert!(!page.contains("http"), "it needs nothing from elsewhere");
    }

    #[test]
    fn percentiles_are_written_with_the_digits_that_they_need() {
        let written: Vec<String> = [1.0, 10.0, 100.0, 1000.0, 10000.0].into_iter().map(percentile).collect();
        assert_eq!(written, ["0", "90", "99", "99.9", "99.99"]);
    }
}
