//! Tells the program which commit it is made of.
//!
//! A checked build says none: it would be built again at every commit.
use std::path::Path;
use std::process::Command;

fn main() {
    let version = env!("CARGO_PKG_VERSION");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=BB_VERSION={version}");
    if std::env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return;
    }
    // A folder that is no checkout, or a machine without git, leaves the commit unknown.
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return;
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_some_and(|files| !files.is_empty()) {
        "-changed"
    } else {
        ""
    };
    println!("cargo::rustc-env=BB_COMMIT={commit}{mark}");
    println!("cargo::rustc-env=BB_VERSION={version} ({commit}{mark})");
    println!("cargo::rerun-if-changed=..");
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    if let Some(log) = log.filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
