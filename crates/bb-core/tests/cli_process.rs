//! How a program ends, seen from outside: signals, panics, a reader that goes away.
//!
//! The program is this test binary itself, started again with [`ROLE`] saying what to do.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use bb_core::cli::{self, Failure};
use rustix::process::{Pid, Signal, kill_process};

/// The variable that makes a process of this binary act as the program.
const ROLE: &str = "BB_CORE_TEST_ROLE";

/// The program, and no test of its own: without a role it does nothing.
#[test]
fn program() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let code = cli::main(|| match role.as_str() {
        "poll" => poll(),
        "stuck" => stuck(),
        "panic" => panic!("on purpose"),
        "print" => loop {
            cli::print(&"x".repeat(1 << 16))?;
        },
        _ => Err(Failure::usage("no such role")),
    });
    // The test harness has an exit code of its own; the program has to end before it.
    #[expect(clippy::exit, reason = "see above")]
    std::process::exit(
        (0..=255)
            .find(|&number| ExitCode::from(number) == code)
            .map_or(255, i32::from),
    );
}

/// Stops at the first signal, as a training loop does.
fn poll() -> Result<(), Failure> {
    cli::catch_interrupts()?;
    cli::catch_interrupts()?;
    say("ready");
    while !cli::interrupted() {
        std::thread::sleep(Duration::from_millis(5));
    }
    say("seen");
    Ok(cli::check_interrupt()?)
}

/// Takes too long to stop.
fn stuck() -> Result<(), Failure> {
    let stopped = poll();
    std::thread::sleep(Duration::from_secs(60));
    stopped
}

fn say(word: &str) {
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "{word}").expect("the parent reads this");
}

/// Starts the program in a role.
fn start(role: &str) -> Child {
    Command::new(std::env::current_exe().expect("this test runs from a file"))
        .args(["--exact", "program", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test can start itself")
}

/// Starts the program, sends each signal when the program waits for it, and gives exit code and last words.
fn signalled(role: &str, signals: &[Signal]) -> (Option<i32>, String) {
    let mut child = start(role);
    let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    for (&signal, expected) in signals.iter().zip(["ready\n", "seen\n"]) {
        let mut line = String::new();
        stderr.read_line(&mut line).expect("messages are text");
        assert_eq!(line, expected);
        kill_process(Pid::from_child(&child), signal).expect("the program runs");
    }
    let mut words = String::new();
    stderr
        .read_to_string(&mut words)
        .expect("messages are text");
    (child.wait().expect("the program ends").code(), words)
}

#[test]
fn the_first_signal_stops_in_good_order() {
    let hint = "hint: the same command again goes on from the last checkpoint\n";
    let cases = [
        (
            Signal::INT,
            130,
            format!("seen\nerror: interrupted by Ctrl-C\n{hint}"),
        ),
        (
            Signal::TERM,
            143,
            format!("seen\nerror: interrupted by a termination signal\n{hint}"),
        ),
    ];
    for (signal, code, words) in cases {
        assert_eq!(signalled("poll", &[signal]), (Some(code), words));
    }
}

#[test]
fn the_second_signal_stops_at_once() {
    let start = Instant::now();
    let cases = [
        ([Signal::INT, Signal::INT], 130),
        ([Signal::TERM, Signal::INT], 130),
        ([Signal::INT, Signal::TERM], 143),
    ];
    for (signals, code) in cases {
        assert_eq!(signalled("stuck", &signals), (Some(code), String::new()));
    }
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "the program waited for its work to end"
    );
}

#[test]
fn a_panic_is_a_bug() {
    let Output { status, stderr, .. } =
        start("panic").wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(101), "{stderr}");
    assert!(stderr.contains("on purpose"), "{stderr}");
    assert!(
        stderr.contains("hint: this is a bug; please report it with the lines above\n"),
        "{stderr}"
    );
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let mut child = start("print");
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout
        .read_exact(&mut [0; 4096])
        .expect("the program writes without end");
    drop(stdout);
    let Output { status, stderr, .. } = child.wait_with_output().expect("the program ends");
    assert_eq!(
        (status.code(), String::from_utf8_lossy(&stderr).as_ref()),
        (Some(0), "")
    );
}
