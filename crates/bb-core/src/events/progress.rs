//! How far a run has come.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cli::visible;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

/// Longest silence of a run that has no terminal.
const QUIET_SPELL: Duration = Duration::from_secs(30);

/// All bars of this process: they share one terminal with the log lines.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes a line to standard error, above the bars where there are any.
pub(super) fn line(text: &str) {
    // Progress is a courtesy: a closed standard error must not end a run.
    BARS.suspend(|| {
        let _ = writeln!(io::stderr().lock(), "{}", visible(text));
    });
}

/// The progress of something that is counted, with its rate and the time that is left.
///
/// A bar when standard error is a terminal, which disappears when it is done; otherwise one plain line at most every
/// 30 seconds, and a last one; nothing when quiet. All methods can be called from any thread.
#[derive(Debug)]
pub struct Progress(View);

#[derive(Debug)]
enum View {
    Quiet,
    Bar(ProgressBar),
    Lines { since: Instant, lines: Mutex<Lines> },
}

impl Progress {
    /// `label` says what is going on, `unit` what is counted, in the plural (`images`).
    pub fn new(label: &str, unit: &'static str, total: u64, quiet: bool) -> Self {
        Self(if quiet {
            View::Quiet
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::new(total)
                .with_prefix(label.to_owned())
                .with_style(style(unit));
            View::Bar(BARS.add(bar))
        } else {
            View::Lines {
                since: Instant::now(),
                lines: Mutex::new(Lines::new(label, unit, total)),
            }
        })
    }

    /// What an earlier run had done counts as done, and not for the rate. To be called before [`Progress::add`].
    #[must_use]
    pub fn resumed_at(self, done: u64) -> Self {
        match &self.0 {
            View::Quiet => {}
            View::Bar(bar) => {
                bar.set_position(done);
                bar.reset_eta();
            }
            View::Lines { lines, .. } => lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .resume(done),
        }
        self
    }

    /// `more` units are done.
    pub fn add(&self, more: u64) {
        match &self.0 {
            View::Quiet => {}
            View::Bar(bar) => bar.inc(more),
            View::Lines { since, lines } => {
                let due = lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(more, since.elapsed());
                if let Some(text) = due {
                    line(&text);
                }
            }
        }
    }

    /// A few words beside the numbers, such as the epoch and its loss.
    pub fn note(&self, words: &str) {
        match &self.0 {
            View::Quiet => {}
            View::Bar(bar) => bar.set_message(words.to_owned()),
            View::Lines { lines, .. } => {
                words.clone_into(&mut lines.lock().unwrap_or_else(PoisonError::into_inner).note);
            }
        }
    }

    /// Done. Progress that is dropped without it ends without a last line, as after an error.
    pub fn finish(self) {
        if let View::Lines { since, lines } = &self.0 {
            let text = lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .last(since.elapsed());
            line(&text);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.0 {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

/// The look of a bar. In the first second there is no telling how fast it goes.
fn style(unit: &'static str) -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {bar:24} {percent:>3} %  {speed}{msg}")
        .expect("the template is fixed and valid")
        .progress_chars("=> ")
        .with_key(
            "speed",
            move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                if state.elapsed() >= Duration::from_secs(1) {
                    let (rate, left) = (rate(state.per_sec(), unit), span(state.eta()));
                    // A bar that cannot be drawn is no reason to stop.
                    let _ = write!(text, "{rate}  {left} left  ");
                }
            },
        )
}

/// The plain form, without a clock of its own.
#[derive(Debug)]
struct Lines {
    label: String,
    unit: &'static str,
    total: u64,
    /// Done by an earlier run.
    before: u64,
    done: u64,
    note: String,
    /// When the last line was written, since the start.
    written: Duration,
}

impl Lines {
    fn new(label: &str, unit: &'static str, total: u64) -> Self {
        let (label, note) = (label.to_owned(), String::new());
        Self {
            label,
            unit,
            total,
            before: 0,
            done: 0,
            note,
            written: Duration::ZERO,
        }
    }

    fn resume(&mut self, done: u64) {
        (self.before, self.done) = (done, done);
    }

    /// Counts, and gives the line that is due at `elapsed`.
    fn add(&mut self, more: u64, elapsed: Duration) -> Option<String> {
        self.done += more;
        if elapsed.saturating_sub(self.written) < QUIET_SPELL {
            return None;
        }
        self.written = elapsed;
        let percent = (100 * u128::from(self.done))
            .checked_div(u128::from(self.total))
            .unwrap_or(100);
        let mut text = format!(
            "{}: {}/{} {} ({percent} %)",
            self.label, self.done, self.total, self.unit
        );
        let per_second = self.per_second(elapsed);
        if per_second > 0.0 {
            let left = self.total.saturating_sub(self.done) as f64 / per_second;
            // More than a century is as good as never, and would not fit a duration.
            let left = Duration::from_secs_f64(left.min(4e9));
            write!(
                text,
                ", {}, {} left",
                rate(per_second, self.unit),
                span(left)
            )
            .expect("strings take all");
        }
        if !self.note.is_empty() {
            write!(text, ", {}", self.note).expect("strings take all");
        }
        Some(text)
    }

    fn last(&self, elapsed: Duration) -> String {
        let mut text = format!(
            "{}: {}/{} {} in {}",
            self.label,
            self.done,
            self.total,
            self.unit,
            span(elapsed)
        );
        let per_second = self.per_second(elapsed);
        if per_second > 0.0 {
            write!(text, ", {}", rate(per_second, self.unit)).expect("strings take all");
        }
        if !self.note.is_empty() {
            write!(text, ", {}", self.note).expect("strings take all");
        }
        text
    }

    /// Units a second in this run; 0 while there is nothing to tell from.
    fn per_second(&self, elapsed: Duration) -> f64 {
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 {
            (self.done - self.before) as f64 / seconds
        } else {
            0.0
        }
    }
}

/// `812 images/s`; with decimals when it is slow.
fn rate(per_second: f64, unit: &str) -> String {
    let decimals = match per_second {
        slow if slow < 1.0 => 2,
        slow if slow < 10.0 => 1,
        _ => 0,
    };
    format!("{per_second:.decimals$} {unit}/s")
}

/// A duration in the two units that matter.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_plain_line_comes_at_most_every_30_seconds() {
        let mut lines = Lines::new("train", "images", 50_000);
        let written: Vec<_> = (0..=95)
            .filter_map(|second| lines.add(100, at(second)).map(|_| second))
            .collect();
        assert_eq!(written, [30, 60, 90]);
    }

    #[test]
    fn a_plain_line_tells_share_rate_and_time_left() {
        let mut lines = Lines::new("train", "images", 50_000);
        lines.note = "epoch 3/10".to_owned();
        assert_eq!(lines.add(12_800, at(29)), None);
        assert_eq!(
            lines.add(0, at(32)).as_deref(),
            Some("train: 12800/50000 images (25 %), 400 images/s, 1 min 33 s left, epoch 3/10")
        );
        lines.add(37_200, at(40));
        assert_eq!(
            lines.last(at(125)),
            "train: 50000/50000 images in 2 min 5 s, 400 images/s, epoch 3/10"
        );
    }

    #[test]
    fn what_an_earlier_run_did_does_not_count_for_the_rate() {
        let mut lines = Lines::new("train", "images", 1000);
        lines.resume(900);
        assert_eq!(
            lines.add(60, at(30)).as_deref(),
            Some("train: 960/1000 images (96 %), 2.0 images/s, 20 s left")
        );
    }

    #[test]
    fn nothing_to_do_is_told_without_a_rate() {
        let mut lines = Lines::new("score", "cells", 0);
        assert_eq!(
            lines.add(0, at(31)).as_deref(),
            Some("score: 0/0 cells (100 %)")
        );
        assert_eq!(lines.last(Duration::ZERO), "score: 0/0 cells in 0 s");
    }

    #[test]
    fn rates_and_spans_read_well() {
        let rates = [
            (0.25, "0.25 x/s"),
            (2.0, "2.0 x/s"),
            (99.6, "100 x/s"),
            (8123.4, "8123 x/s"),
        ];
        for (value, expected) in rates {
            assert_eq!(rate(value, "x"), expected);
        }
        let spans = [
            (0.4, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (3599.0, "59 min 59 s"),
            (7500.0, "2 h 5 min"),
            (93_600.0, "1 d 2 h"),
        ];
        for (seconds, expected) in spans {
            assert_eq!(span(Duration::from_secs_f64(seconds)), expected);
        }
    }

    #[test]
    fn the_template_of_the_bar_is_valid() {
        let bar = ProgressBar::hidden().with_style(style("images"));
        bar.inc(1);
    }
}
