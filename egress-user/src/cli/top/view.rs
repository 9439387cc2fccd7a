//! The picture on a screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Row, Table};

use super::model::Picture;
use crate::status::ConditionType;

/// Draws it.
pub(super) fn draw(frame: &mut Frame<'_>, picture: &Picture, paused: bool) {
    let [head, rules, middle, drops, keys] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Length(7),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [flows, clients] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(1)]).areas(middle);
    frame.render_widget(ratatui::widgets::Paragraph::new(summary(picture)), head);
    rule_table(frame, rules, picture);
    flow_table(frame, flows, picture);
    client_table(frame, clients, picture);
    drop_table(frame, drops, picture);
    let state = if paused { "  (paused)" } else { "" };
    frame.render_widget(Line::from(format!("q quit  p pause{state}")).dim(), keys);
}

fn summary(picture: &Picture) -> Vec<Line<'static>> {
    let mut spans = vec![Span::raw("egress-router  ").bold()];
    for condition in picture.conditions.iter() {
        let good = picture.conditions.holds(condition.kind) == (condition.kind == ConditionType::Available);
        let color = if good { Color::Green } else { Color::Yellow };
        spans.push(Span::styled(
            format!("{:?}={:?} {}  ", condition.kind, condition.status, condition.reason),
            Style::new().fg(color),
        ));
    }
    let degraded =
        picture.conditions.get(ConditionType::Degraded).filter(|_| picture.conditions.holds(ConditionType::Degraded));
    let message = degraded.map(|condition| condition.message.clone()).unwrap_or_default();
    let bytes: f64 = picture.rules.iter().map(|rule| rule.request_bytes + rule.reply_bytes).sum();
    let packets: f64 = picture.rules.iter().map(|rule| rule.packets).sum();
    let totals = format!(
        "flows {} of {}   {}B/s   {}packets/s",
        picture.used.flows,
        picture.used.capacity,
        scaled(bytes),
        scaled(packets)
    );
    vec![Line::from(spans), Line::from(totals), Line::from(message).yellow()]
}

fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    header: &[&'static str],
    widths: &[Constraint],
    rows: impl Iterator<Item = Vec<String>>,
) {
    let rows = rows.take(usize::from(area.height)).map(Row::new);
    let header = Row::new(header.to_vec()).style(Style::new().bold());
    let table = Table::new(rows, widths.to_vec()).header(header).block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

fn rule_table(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let rows = picture.rules.iter().map(|rule| {
        vec![
            rule.name.clone(),
            rule.destination.clone(),
            rule.flows.to_string(),
            scaled(rule.opened),
            scaled(rule.request_bytes),
            scaled(rule.reply_bytes),
            scaled(rule.packets),
        ]
    });
    let header = ["RULE", "DESTINATION", "FLOWS", "NEW/s", "OUT B/s", "BACK B/s", "PACKETS/s"];
    let widths = [20, 30, 8, 8, 10, 10, 10].map(Constraint::Min);
    table(frame, area, "Rules", &header, &widths, rows);
}

fn flow_table(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let rows = picture.flows.iter().map(|rate| {
        vec![
            rate.flow.protocol.clone(),
            rate.flow.client.to_string(),
            rate.flow.destination.to_string(),
            rate.flow.state.to_owned(),
            scaled(rate.bytes),
        ]
    });
    let header = ["PROTO", "CLIENT", "DESTINATION", "STATE", "B/s"];
    let widths = [6, 22, 22, 15, 8].map(Constraint::Min);
    table(frame, area, "Flows", &header, &widths, rows);
}

fn client_table(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let rows =
        picture.clients.iter().map(|rate| vec![rate.client.to_string(), rate.flows.to_string(), scaled(rate.bytes)]);
    table(frame, area, "Clients", &["CLIENT", "FLOWS", "B/s"], &[15, 6, 7].map(Constraint::Min), rows);
}

fn drop_table(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let rows = picture
        .drops
        .iter()
        .map(|rate| vec![rate.program.to_owned(), rate.reason.to_owned(), rate.packets.to_string(), scaled(rate.rate)]);
    let widths = [18, 22, 14, 10].map(Constraint::Min);
    table(frame, area, "Drops and refusals", &["PROGRAM", "REASON", "PACKETS", "PACKETS/s"], &widths, rows);
}

/// With three digits at least, and a thousand's letter.
fn scaled(value: f64) -> String {
    let (mut value, mut letters) = (value, ["k", "M", "G", "T"].into_iter());
    let mut letter = "";
    while value >= 10_000.0 {
        let Some(next) = letters.next() else { break };
        value /= 1000.0;
        letter = next;
    }
    if letter.is_empty() && value < 10.0 && value > 0.0 {
        return format!("{value:.1}");
    }
    format!("{value:.0}{letter}")
}

#[cfg(test)]
mod tests {
    use super::super::as_text;
    use super::super::model::Looks;
    use super::super::model::tests::{flow, look};
    use super::*;

    #[test]
    fn numbers_for_people() {
        let shown = [0.0, 0.5, 12.0, 9_999.0, 10_000.0, 1_234_567.0, 98_765_432_100.0].map(scaled);
        assert_eq!(shown, ["0", "0.5", "12", "9999", "10k", "1235k", "99G"]);
    }

    #[test]
    fn everything_is_on_the_screen() {
        let mut looks = Looks::at(|| Ok(look(vec![flow("10.128.0.1:40000", 7)], 3)));
        let text = as_text(&looks.again().unwrap());
        for shown in ["80/TCP IPv4", "203.0.113.26:8080", "10.128.0.1:40000", "table_full", "q quit"] {
            assert!(text.contains(shown), "no {shown} on\n{text}");
        }
    }

    #[test]
    fn a_small_screen_is_no_fault() {
        let picture = Picture::default();
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
            let backend = ratatui::backend::TestBackend::new(width, height);
            let mut terminal = ratatui::Terminal::new(backend).unwrap();
            terminal.draw(|frame| draw(frame, &picture, true)).unwrap();
        }
    }
}
