//! `ordermesh top`: the instances and their calls, live. Full screen on a terminal; otherwise a line for each edge and
//! interval.

mod screen;

use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;

use chassis::settings::positive_duration;
use clap::{Args, ValueEnum};
use kernel::{Clock, SystemClock};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error::Error;
use crate::instances::Instances;
use crate::json;
use crate::out;
use crate::system::Location;
use crate::text::millis;
use crate::top::screen::View;
use crate::topology::graph::{Graph, WindowLength};
use crate::topology::render;
use crate::up::Signals;

/// Keys that wait to be handled.
const MAX_KEYS: usize = 16;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Which calls: those that ended in about the last 10 or 60 seconds
    #[arg(long, value_enum, default_value_t = WindowLength::Short, value_name = "WINDOW")]
    window: WindowLength,
    /// The time between two readings: ms, s, m
    #[arg(long, default_value = "1s", value_parser = positive_duration, value_name = "DURATION")]
    interval: Duration,
    /// End after this many readings
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "COUNT")]
    count: Option<u64>,
    /// Output format [default: screen on a terminal, else text]
    #[arg(long, short, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    location: Location,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// The whole terminal, redrawn at each reading
    Screen,
    /// A line for each edge and reading
    Text,
    /// A JSON object per reading and line
    Json,
}

/// Shows the calls until a signal, or until `q`.
///
/// # Errors
/// There is no system, or the output cannot be written.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let format = options.output.unwrap_or(if is_terminal { Format::Screen } else { Format::Text });
    if format == Format::Screen && !is_terminal {
        return Err(Error::Usage("-o screen needs a terminal: use -o text or -o json".to_owned()));
    }
    let mut signals = Signals::new()?;
    tokio::select! {
        result = start(options, format) => result,
        // The terminal is restored when its screen is dropped.
        () = signals.next() => Ok(()),
    }
}

async fn start(options: Options, format: Format) -> Result<(), Error> {
    let instances = Instances::find(options.location).await?;
    let readings = Readings { instances, left: options.count };
    if format == Format::Screen {
        show(Screen::open()?, readings, options.window, options.interval).await
    } else {
        print(readings, options.window, options.interval, format).await
    }
}

/// The terminal in full screen; restored when it is dropped.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, Error> {
        ratatui::try_init().map(Self).map_err(|error| {
            ratatui::restore();
            Error::Output(error)
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads all instances, again and again.
struct Readings {
    instances: Instances,
    /// `None`: without end.
    left: Option<u64>,
}

impl Readings {
    /// The next reading; `None` at the end.
    async fn next(&mut self, window: WindowLength) -> Result<Option<Graph>, Error> {
        if self.left == Some(0) {
            return Ok(None);
        }
        self.instances.refresh().await?;
        let graph = Graph::of(&self.instances.snapshots().await, window);
        self.left = self.left.map(|left| left - 1);
        Ok(Some(graph))
    }
}

async fn print(mut readings: Readings, window: WindowLength, every: Duration, format: Format) -> Result<(), Error> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(graph) = readings.next(window).await? else { return Ok(()) };
        if format == Format::Json {
            json::print_line(&graph)?;
            continue;
        }
        let time = millis(&chassis::to_proto::timestamp(SystemClock.now()));
        for edge in &graph.edges {
            for [name, rate, success, p50, p99, load, in_flight, retries, problems] in render::rows(edge) {
                let retries = if retries.is_empty() { String::new() } else { format!("  {retries} retries") };
                let load = if load.is_empty() { load } else { format!("  load {load}") };
                let line = format!(
                    "{time}  {name:<22}  {rate:>7}/s  {success:>6}  p50 {p50:>7}  p99 {p99:>7}{load}  {in_flight} active{retries}  {problems}"
                );
                out::line(line.trim_end())?;
            }
        }
    }
}

/// What a key does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Quit,
    ToggleWindow,
    Pause,
    Scroll(i16),
    /// The terminal has another size.
    Redraw,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most keys do nothing")]
fn action(event: &Event) -> Option<Action> {
    let key = match event {
        Event::Resize(..) => return Some(Action::Redraw),
        Event::Key(key) if key.kind == KeyEventKind::Press => key,
        _ => return None,
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Action::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Action::Quit),
        KeyCode::Char('w') => Some(Action::ToggleWindow),
        KeyCode::Char('p' | ' ') => Some(Action::Pause),
        KeyCode::Up | KeyCode::Char('k') => Some(Action::Scroll(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Action::Scroll(1)),
        KeyCode::PageUp => Some(Action::Scroll(-10)),
        KeyCode::PageDown => Some(Action::Scroll(10)),
        _ => None,
    }
}

/// The keys that are pressed. Read by a thread that ends with the process: reading a terminal cannot be cancelled.
fn keys() -> mpsc::Receiver<Action> {
    let (to, keys) = mpsc::channel(MAX_KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(action) = action(&event)
                && to.blocking_send(action).is_err()
            {
                return;
            }
        }
    });
    keys
}

async fn show(mut screen: Screen, mut readings: Readings, window: WindowLength, every: Duration) -> Result<(), Error> {
    let mut keys = keys();
    let mut view = View::new(window);
    let mut due = Instant::now();
    loop {
        // A key that changes what is read begins a new reading; other keys do not wait for one.
        let (window, is_paused, at) = (view.window, view.is_paused, due);
        let mut reading = pin!(async {
            if is_paused {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep_until(at).await;
            readings.next(window).await
        });
        loop {
            screen.0.draw(|frame| screen::draw(frame, &mut view)).map_err(Error::Output)?;
            tokio::select! {
                biased;
                key = keys.recv() => match key {
                    None | Some(Action::Quit) => return Ok(()),
                    Some(Action::ToggleWindow) => {
                        view.window = view.window.other();
                        due = Instant::now();
                        break;
                    }
                    Some(Action::Pause) => {
                        view.is_paused = !view.is_paused;
                        break;
                    }
                    Some(Action::Scroll(rows)) => view.scroll(rows),
                    Some(Action::Redraw) => {}
                },
                read = &mut reading => match read? {
                    Some(graph) => {
                        view.graph = Some(graph);
                        due = Instant::now() + every;
                        break;
                    }
                    None => return Ok(()),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn ctrl_c_ends_it_although_the_terminal_sends_no_signal() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert_eq!(action(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Action::Quit));
        assert_eq!(action(&key(KeyCode::Char('q'), KeyModifiers::NONE)), Some(Action::Quit));
        assert_eq!(action(&key(KeyCode::Char('c'), KeyModifiers::NONE)), None);
        assert_eq!(action(&Event::Resize(80, 24)), Some(Action::Redraw));
    }
}
