//! What a run found: as a table, as JSON, as a Markdown page, as plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path as File;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::ratios;
use super::record::{Record, Summary};
use super::svg::{self, Line, Mark, number};

/// Writes all of it into `dir`.
pub(super) fn write(record: &Record, rounds: usize, dir: &File) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    let plots = plots(record);
    for (name, svg) in &plots {
        put(&format!("{name}.svg"), svg)?;
    }
    put("report.json", &format!("{:#}\n", as_json(record, rounds)))?;
    put("report.md", &markdown(record, rounds, &plots))
}

/// The same figures and ratios in columns.
pub(super) fn table(record: &Record) -> String {
    let mut text = String::new();
    let mut rows = vec![["workload", "uplink", "IPv", "path", "median", "min", "max", "unit", ""].map(str::to_owned)];
    rows.extend(record.figures().map(|(subject, summary)| {
        [
            subject.workload.clone(),
            subject.uplink.to_owned(),
            family(subject.family),
            subject.path.clone(),
            number(summary.median),
            number(summary.min),
            number(summary.max),
            subject.unit.to_owned(),
            noise(&summary),
        ]
    }));
    text += &crate::run::table::aligned(&rows);
    text.push_str("\n\n");
    let mut rows = vec![["ratio", "median", "min", "max", "must be", "", ""].map(str::to_owned)];
    rows.extend(record.ratios().map(|(name, summary)| {
        let bound = ratios::bound(name);
        [
            name.to_owned(),
            format!("{:.3}", summary.median),
            format!("{:.3}", summary.min),
            format!("{:.3}", summary.max),
            bound.shown(),
            verdict(bound.holds(summary.median)).to_owned(),
            noise(&summary),
        ]
    }));
    text += &crate::run::table::aligned(&rows);
    text
}

fn as_json(record: &Record, rounds: usize) -> Value {
    let figures = record.figures().map(|(subject, summary)| {
        json!({
            "workload": subject.workload,
            "uplink": subject.uplink,
            "family": subject.family,
            "path": subject.path,
            "unit": subject.unit,
            "median": summary.median,
            "min": summary.min,
            "max": summary.max,
            "rounds": summary.rounds,
            "noisy": summary.is_noisy(),
        })
    });
    let ratios = record.ratios().map(|(name, summary)| (name.to_owned(), json!(summary.median)));
    let spreads = record.ratios().map(|(name, summary)| (name.to_owned(), json!([summary.min, summary.max])));
    json!({
        "rounds": rounds,
        "machine": machine(),
        "figures": figures.collect::<Vec<_>>(),
        "ratios": ratios.collect::<Map<_, _>>(),
        "ratio_spreads": spreads.collect::<Map<_, _>>(),
        "remarks": record.remarks(),
    })
}

fn markdown(record: &Record, rounds: usize, plots: &[(String, String)]) -> String {
    let mut text = format!(
        "# Benchmark\n\n{}\n\nMedian of {rounds} rounds, in which the paths took turns. Times mean nothing by themselves; compare \
         paths. **!** marks a figure whose rounds lie more than 20 % apart.\n\n- `tc`: egress-router's tc programs\n- `nft`, \
         `iptables`: the kernel's NAT, with the original's rules\n- `forward`: the kernel's forwarding without any NAT, the \
         ceiling\n- `redirect`: a BPF program that only redirects, without NAT\n\n`ns/packet` is processor time between the \
         router's entrance and the far end's, both ends' veth included.\n\n",
        machine()
    );
    // Writing to a string cannot fail, here and below.
    text.push_str(
        "## Ratios, ours by the peer's\n\n| ratio | median | min..max | must be | |\n|---|---|---|---|---|\n",
    );
    for (name, summary) in record.ratios() {
        let bound = ratios::bound(name);
        let _ = writeln!(
            text,
            "| {name} | {:.3} | {:.3}..{:.3} | {} | {}{} |",
            summary.median,
            summary.min,
            summary.max,
            bound.shown(),
            verdict(bound.holds(summary.median)),
            noise(&summary)
        );
    }
    text.push_str("\n## Figures\n\n| workload | uplink | IPv | path | median | min..max | unit | |\n|---|---|---|---|---|---|---|---|\n");
    for (subject, summary) in record.figures() {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {}..{} | {} | {} |",
            subject.workload,
            subject.uplink,
            family(subject.family),
            subject.path,
            number(summary.median),
            number(summary.min),
            number(summary.max),
            subject.unit,
            noise(&summary)
        );
    }
    if !record.remarks().is_empty() {
        text.push_str("\n## Remarks\n\n");
        for remark in record.remarks() {
            let _ = writeln!(text, "- {remark}");
        }
    }
    if !plots.is_empty() {
        text.push_str("\n## Plots\n\n");
        for (name, _) in plots {
            let _ = writeln!(text, "![{name}]({name}.svg)");
        }
    }
    text
}

/// A bar for each path of each workload, and lines for those that grow.
fn plots(record: &Record) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for (workload, title, unit) in [
        ("udp-small", "UDP, 18 bytes, established flows: cost of the path (less is better)", "ns/packet"),
        ("new-flows", "UDP, each packet a new flow: cost of the path (less is better)", "ns/flow"),
        ("crr", "TCP connect, request, close (more is better)", "connections/s"),
        ("rr-p50", "TCP request and response, median (less is better)", "us"),
        ("rr-p99", "TCP request and response, 99th percentile (less is better)", "us"),
        ("stream1", "TCP, one stream (more is better)", "Gbit/s"),
        ("stream8", "TCP, eight streams (more is better)", "Gbit/s"),
    ] {
        for uplink in ["macvlan", "veth"] {
            for number in [4, 6] {
                let marks = record
                    .figures()
                    .filter(|(subject, _)| {
                        subject.workload == workload && subject.uplink == uplink && subject.family == Some(number)
                    })
                    .map(|(subject, summary)| mark(&subject.path, &summary))
                    .collect::<Vec<_>>();
                if !marks.is_empty() {
                    let title = format!("IPv{number}, {uplink}: {title}");
                    plots.push((format!("{workload}-{uplink}-v{number}"), svg::bars(&title, unit, &marks)));
                }
            }
        }
    }
    for (workload, title, unit, axis) in [
        ("rules", "Packets of established flows, as the rules grow", "ns/packet", "rules"),
        ("rules-new", "New flows, as the rules grow", "ns/flow", "rules"),
        ("flows", "Packets of established flows, as the flows grow", "ns/packet", "live flows"),
    ] {
        for number in [4, 6] {
            let lines = lines_of(record, workload, number);
            if !lines.is_empty() {
                let title = format!("IPv{number}: {title}");
                plots.push((format!("{workload}-v{number}"), svg::lines(&title, unit, axis, &lines)));
            }
        }
    }
    plots
}

/// For each path, the figures whose workload is `workload` with a number after it.
fn lines_of(record: &Record, workload: &str, family: u8) -> Vec<Line> {
    let mut lines = Vec::<Line>::new();
    for (subject, summary) in record.figures().filter(|(subject, _)| subject.family == Some(family)) {
        let Some(label) = subject.workload.strip_prefix(workload).and_then(|rest| rest.strip_prefix('-')) else {
            continue;
        };
        let Ok(at) = label.parse::<u32>() else { continue };
        let point = (f64::from(at), mark(label, &summary));
        match lines.iter_mut().find(|line| line.name == subject.path) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: subject.path.clone(), points: vec![point] }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    }
    lines
}

fn mark(label: &str, summary: &Summary) -> Mark {
    Mark { label: label.to_owned(), value: summary.median, min: summary.min, max: summary.max }
}

fn family(family: Option<u8>) -> String {
    family.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn noise(summary: &Summary) -> String {
    if summary.is_noisy() { format!("! {:.0} %", summary.spread() * 100.0) } else { String::new() }
}

fn verdict(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "ok ",
        Some(false) => "MISSED ",
        None => "",
    }
}

/// Processor, number of them, kernel.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{} x {}, Linux {}", processors, model.unwrap_or("unknown processor").trim(), kernel.trim())
}
