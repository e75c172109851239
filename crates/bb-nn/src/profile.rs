//! Where the time of a pass goes, operation by operation.

use std::time::{Duration, Instant};

/// Time and work of one kind of operation.
#[derive(Clone, Debug)]
pub struct Row {
    /// Such as `forward conv 3x3/1 64->64 @32`: pass, operation, kernel and stride, channels, side of its input.
    pub name: String,
    /// How often it ran.
    pub calls: usize,
    /// Time of all calls.
    pub time: Duration,
    /// Multiplications and additions of all calls, counted in direct form; 0 where memory is the limit.
    pub flops: f64,
}

/// Times of operations in the order of their first call.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    rows: Vec<Row>,
}

impl Profile {
    /// One row for each kind of operation.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Adds a call that began at `start` and ends now.
    pub fn record(&mut self, name: &str, start: Instant, flops: usize) {
        let time = start.elapsed();
        let row = match self.rows.iter().position(|r| r.name == name) {
            Some(i) => &mut self.rows[i],
            None => {
                self.rows.push(Row {
                    name: name.to_owned(),
                    calls: 0,
                    time: Duration::ZERO,
                    flops: 0.0,
                });
                self.rows.last_mut().expect("a row was added")
            }
        };
        row.calls += 1;
        row.time += time;
        row.flops += flops as f64;
    }
}
