//! What `top` draws: a line with totals, the instances, and the edges with their instances.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table, TableState};

use crate::topology::graph::{Graph, Node, WindowLength};
use crate::topology::render::{self, latency, percent};

/// What is shown.
pub(crate) struct View {
    /// `None` before the first reading.
    pub(crate) graph: Option<Graph>,
    pub(crate) window: WindowLength,
    pub(crate) is_paused: bool,
    /// The first row of the edges.
    offset: usize,
}

impl View {
    pub(crate) fn new(window: WindowLength) -> Self {
        Self { graph: None, window, is_paused: false, offset: 0 }
    }

    /// Moves the edges by this many rows.
    pub(crate) fn scroll(&mut self, rows: i16) {
        self.offset = self.offset.saturating_add_signed(rows.into());
    }
}

/// The load is shown in terminals of at least this many columns.
const WIDE: u16 = 100;

const TITLE: Style = Style::new().add_modifier(Modifier::REVERSED);
const PROBLEM: Style = Style::new().fg(Color::Red);

pub(crate) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let nodes = view.graph.as_ref().map_or(0, |graph| graph.instances.len());
    let max_height = frame.area().height.saturating_sub(3) / 2;
    let height = u16::try_from(nodes + 1).unwrap_or(u16::MAX).min(max_height.max(2));
    let rows = [Constraint::Length(1), Constraint::Length(height), Constraint::Length(1), Constraint::Min(1)];
    let [head, top, _, bottom] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(title(view), head);
    let Some(graph) = &view.graph else { return };
    frame.render_widget(instances(graph), top);
    let is_wide = frame.area().width >= WIDE;
    let rows: Vec<_> = graph.edges.iter().flat_map(render::rows).map(|cells| edge_row(cells, is_wide)).collect();
    // The last page is full.
    let visible = usize::from(bottom.height.saturating_sub(1));
    view.offset = view.offset.min(rows.len().saturating_sub(visible));
    let mut state = TableState::new().with_offset(view.offset);
    frame.render_stateful_widget(edges(rows, is_wide), bottom, &mut state);
}

fn title(view: &View) -> Line<'static> {
    let window = match view.window {
        WindowLength::Short => "10 s",
        WindowLength::Long => "60 s",
    };
    let totals = view.graph.as_ref().map_or_else(|| "reading".to_owned(), totals);
    let paused = if view.is_paused { ", PAUSED" } else { "" };
    Line::styled(
        format!("ordermesh top  {totals}, last {window}{paused}  [q]uit [w]indow [p]ause [↑↓]"),
        Style::new().add_modifier(Modifier::BOLD),
    )
}

/// The sum of the clients' calls only: each call between services is part of serving one of them.
fn totals(graph: &Graph) -> String {
    let up = graph.instances.iter().filter(|node| node.state == "serving").count();
    let from_clients =
        graph.edges.iter().filter(|edge| ["anonymous", "customer", "operator"].contains(&edge.from.as_str()));
    let rate: f64 = from_clients.map(|edge| edge.calls.per_second).sum();
    format!("{up}/{} serving, {rate:.0} calls/s", graph.instances.len())
}

fn titles(titles: impl IntoIterator<Item = &'static str>) -> Row<'static> {
    Row::new(titles.into_iter().map(Cell::from)).style(TITLE)
}

fn instances(graph: &Graph) -> Table<'static> {
    let widths = [
        Constraint::Min(12),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(6),
    ];
    Table::new(graph.instances.iter().map(instance_row), widths)
        .header(titles(["INSTANCE", "STATE", "CALLS/S", "SUCCESS", "P50", "P99", "ACTIVE"]))
}

fn instance_row(node: &Node) -> Row<'static> {
    let name =
        if node.instance.is_empty() { format!("{} {}", node.service, node.address) } else { node.instance.clone() };
    let row = Row::new([
        name,
        node.state.to_owned(),
        format!("{:.1}", node.calls.per_second),
        percent(node.calls.success()),
        latency(node.calls.p50()),
        latency(node.calls.p99()),
        node.in_flight.to_string(),
    ]);
    if node.state == "serving" { row } else { row.style(PROBLEM) }
}

/// The columns that are shown: all, or all but the load.
fn columns<T>(all: [T; 9], is_wide: bool) -> impl Iterator<Item = T> {
    all.into_iter().enumerate().filter(move |(index, _)| is_wide || *index != render::LOAD).map(|(_, column)| column)
}

fn edges(rows: Vec<Row<'static>>, is_wide: bool) -> Table<'static> {
    let widths = [
        Constraint::Min(17),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(20),
    ];
    Table::new(rows, columns(widths, is_wide)).header(titles(columns(render::TITLES, is_wide)))
}

fn edge_row(cells: [String; 9], is_wide: bool) -> Row<'static> {
    let has_problem = !cells[8].is_empty();
    let is_edge = !cells[0].starts_with(' ');
    let row = Row::new(columns(cells, is_wide));
    match (has_problem, is_edge) {
        (true, _) => row.style(PROBLEM),
        (false, true) => row.style(Style::new().add_modifier(Modifier::BOLD)),
        (false, false) => row,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::topology::graph::tests::graph;

    fn drawn(width: u16, height: u16, view: &mut View) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, view)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_small_terminal_shows_the_instances_and_names_the_slow_one() {
        let mut view = View { graph: Some(graph()), ..View::new(WindowLength::Short) };
        let lines = drawn(80, 24, &mut view);
        assert!(lines[0].starts_with("ordermesh top  2/5 serving, 10 calls/s, last 10 s"), "{}", lines[0]);
        let line = |start: &str| {
            lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {lines:#?}"))
        };
        assert!(line("order-1").contains("serving"));
        assert!(line("data 10.0.0.5").contains("unreachable"));
        assert!(line("order → payment").contains("230 ms"));
        assert!(line("  payment-2").contains("SLOW, breaker"), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("LOAD")), "{lines:#?}");
        let wide = drawn(160, 50, &mut view);
        assert!(wide.iter().any(|line| line.contains("LOAD")), "{wide:#?}");
        assert!(wide.iter().any(|line| line.contains("SLOW, breaker open")), "{wide:#?}");
    }

    #[test]
    fn edges_are_scrolled_and_the_last_page_is_full() {
        let mut view = View { graph: Some(graph()), ..View::new(WindowLength::Short) };
        view.scroll(100);
        let lines = drawn(80, 12, &mut view);
        assert!(lines[11].starts_with("  payment-2"), "{lines:#?}");
        view.scroll(-100);
        let lines = drawn(80, 12, &mut view);
        assert!(lines.iter().any(|line| line.starts_with("customer → order")), "{lines:#?}");
    }

    #[test]
    fn a_terminal_of_one_line_and_a_view_without_a_reading_are_drawn() {
        let mut view = View::new(WindowLength::Short);
        assert!(drawn(80, 24, &mut view)[0].contains("reading"));
        view.graph = Some(graph());
        assert_eq!(drawn(3, 1, &mut view).len(), 1);
    }
}
