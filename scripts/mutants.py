#!/usr/bin/env python3
"""Mutation testing: a random sample of small faults in what decides a number, each against its own crate's tests.

    scripts/mutants.py [--count 100] [--seed 0] [--only REGEX] [--timeout 1200]

Needs cargo-mutants (`cargo install cargo-mutants --locked`), which makes the mutants of the files that
`.cargo/mutants.toml` names. It filters them by name in part only, so a sample of them is drawn and tried here.
Works on a copy of the last commit in `target/mutants`, whose tests must pass. Results are added to
`target/mutants/COMMIT.jsonl`; a mutant that stands there is not tried again, so a broken-off call can be repeated.
A mutant is `caught` by a failing test or the time limit, `missed` if all tests pass, and `unviable` if it does not
compile. The last lines are the counts and those that were missed.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "mutants"
TREE = PLACE / "tree"


def git(*args):
    return subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout.strip()


def run(command, timeout=None):
    """Exit status; None after `timeout` seconds, if there is one. What it started ends with it."""
    environment = {**os.environ, "CARGO_TARGET_DIR": str(PLACE / "build")}
    with open(PLACE / "last.log", "w") as log:
        child = subprocess.Popen(
            command, cwd=TREE, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            return child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def mutated(text, mutant):
    """The file with the mutant's span, lines and columns from 1, replaced."""
    lines = text.splitlines(keepends=True)
    start, end = mutant["span"]["start"], mutant["span"]["end"]
    before = "".join(lines[: start["line"] - 1]) + lines[start["line"] - 1][: start["column"] - 1]
    after = lines[end["line"] - 1][end["column"] - 1 :] + "".join(lines[end["line"] :])
    return before + mutant["replacement"] + after


def attempt(mutant, timeout):
    path = TREE / mutant["file"]
    text = path.read_text()
    # Examples in documentation are compiled one by one, for minutes, and check no number.
    test = ["cargo", "test", "--locked", "--quiet", "--tests", "-p", mutant["package"]]
    try:
        path.write_text(mutated(text, mutant))
        # The first one builds everything, which takes what it takes.
        if run([*test, "--no-run"]) != 0:
            said = (PLACE / "last.log").read_text(errors="replace")
            # A killed compiler or a linker's error says nothing of the mutant, and must not take it out of the count.
            if "(signal:" in said or "linking with" in said:
                sys.exit(f"the build itself broke, see {PLACE / 'last.log'}; remove {PLACE / 'build'} and run again")
            return "unviable"
        return "missed" if run(test, timeout) == 0 else "caught"
    finally:
        path.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=re.compile, help="only mutants whose name this regular expression finds")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one mutant's tests")
    options = parser.parse_args()
    os.chdir(ROOT)
    commit = git("rev-parse", "HEAD")
    PLACE.mkdir(parents=True, exist_ok=True)
    if not TREE.exists():
        git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(TREE))
    git("-C", str(TREE), "fetch", "--quiet", str(ROOT), commit)
    git("-C", str(TREE), "checkout", "--quiet", "--force", commit)
    listed = ["cargo", "mutants", "--list", "--json", "--workspace"]
    mutants = json.loads(subprocess.run(listed, cwd=TREE, check=True, capture_output=True).stdout)
    if options.only:
        mutants = [mutant for mutant in mutants if options.only.search(mutant["name"])]
    sample = random.Random(options.seed).sample(mutants, min(options.count, len(mutants)))
    # Those of one crate follow each other, so that less is built again.
    sample.sort(key=lambda mutant: (mutant["package"], mutant["name"]))

    record = PLACE / f"{commit}.jsonl"
    found = {}
    if record.exists():
        found = {row["name"]: row for row in map(json.loads, record.read_text().splitlines())}
    for number, mutant in enumerate(sample, 1):
        name = mutant["name"]
        if name not in found:
            begun = time.monotonic()
            found[name] = {"name": name, "result": attempt(mutant, options.timeout)}
            with record.open("a") as file:
                file.write(json.dumps(found[name]) + "\n")
            seconds = time.monotonic() - begun
            print(f"{number}/{len(sample)} {found[name]['result']} in {seconds:.0f} s: {name}", flush=True)
    results = [found[mutant["name"]] for mutant in sample]
    counts = collections.Counter(row["result"] for row in results)
    tried = counts["caught"] + counts["missed"]
    print(f"of {len(mutants)} mutants {len(sample)} drawn by seed {options.seed}: {dict(counts)}")
    if tried:
        print(f"{counts['caught']} of {tried} that compile are caught")
    for row in results:
        if row["result"] == "missed":
            print(f"missed: {row['name']}")
    sys.exit(counts["missed"] > 0)


if __name__ == "__main__":
    main()
