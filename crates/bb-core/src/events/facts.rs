//! Facts about the process and the moment.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When this was first asked for; `cli::main` asks as soon as the program starts.
pub fn started() -> SystemTime {
    static STARTED: OnceLock<SystemTime> = OnceLock::new();
    *STARTED.get_or_init(SystemTime::now)
}

/// The processor's name, where the system says it.
pub fn processor() -> Option<String> {
    let cpuinfo = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    cpu_model(&cpuinfo).map(str::to_owned)
}

/// The version of the system's kernel; empty where that is not known.
pub fn kernel() -> String {
    let text = fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// The name of the first processor in the text of `/proc/cpuinfo`.
fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    line.split_once(':')
        .map(|(_, name)| name.trim())
        .filter(|name| !name.is_empty())
}

/// What this process has used so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Time of the processor, of the program and of the system for it, in steps of 10 ms.
    pub processor: Duration,
    /// Most memory that it has had at a time, in KiB.
    pub peak_kib: u64,
}

/// What this process has used so far; nothing where the system does not say, which only Linux does.
pub fn usage() -> Option<Usage> {
    let stat = fs_err::read_to_string("/proc/self/stat").ok()?;
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    usage_of(&stat, &status)
}

/// Lets the peak of memory count from here on, where the system can do that.
pub fn clear_peak() {
    // Linux resets the peak for this number.
    let _ = fs_err::write("/proc/self/clear_refs", "5");
}

fn usage_of(stat: &str, status: &str) -> Option<Usage> {
    // The name of the program, which may hold anything, ends with the last bracket.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    // Linux counts in hundredths of a second for programs, whatever it does itself.
    let processor = Duration::from_millis(10 * ticks()?.checked_add(ticks()?)?);
    let mut lines = status.lines();
    let peak = lines.find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak_kib = peak.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Usage {
        processor,
        peak_kib,
    })
}

/// The time in UTC, to the second: `2026-01-31T12:00:00Z`. Times before 1970 count as its beginning.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second % 3600 / 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day that lie `days` after 1970-01-01 in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Whole spans of 400 years are skipped at once, so that the loop is short for every clock.
    const SPAN: u64 = 400 * 365 + 97;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970 + 400 * (days / SPAN), days % SPAN);
    loop {
        let length = 365 + u64::from(leap(year));
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn usage_is_read_behind_the_name_of_the_program() {
        let stat = "42 (a) b) R 1 2 3 4 5 6 7 8 9 10 123 45 0 0";
        let status = "Name:\ta\nVmPeak:\t  99 kB\nVmHWM:\t    1234 kB\n";
        let expected = Usage {
            processor: Duration::from_millis(1680),
            peak_kib: 1234,
        };
        assert_eq!(usage_of(stat, status), Some(expected));
        assert_eq!(usage_of("42 (a) R 1", status), None);
        assert_eq!(usage_of(stat, "Name:\ta\n"), None);
    }

    #[test]
    fn known_moments_are_written_as_rfc_3339() {
        // Expected values from `date -u -d @SECONDS +%FT%TZ`.
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00Z"
        );
    }

    #[test]
    fn the_processor_is_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: Fast CPU @ 2.0 GHz\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(cpu_model(text), Some("Fast CPU @ 2.0 GHz"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
        assert_eq!(cpu_model("model name"), None);
    }
}
