#!/usr/bin/env python3
"""Compute the means, spreads, DERs, averages and deltas of a table again, from its counts alone.

    bb-eval table GRID --format csv > table.csv     (or tables/NAME/table.csv in the folder of results)
    scripts/check_table.py table.csv

Written from what the numbers mean and not from the program, so that a mistake in one of them shows. Prints how many numbers
it compared; each that differs is a line, and the exit code is 1 then. Needs nothing but Python.
"""
import collections
import csv
import statistics
import sys

METRICS = ("acc", "asr", "ra")
# The file has six digits behind the point, and its sums are taken in another order.
TOLERANCE = 2e-6


def percent(row, metric):
    total = row[f"{metric}_total"]
    return 100 * int(row[f"{metric}_hits"]) / int(total) if total else None


def der(before, after):
    """Defense effectiveness rating in percent, from percentages."""
    if None in (before["asr"], after["asr"]):
        return None
    gained, lost = before["asr"] - after["asr"], before["acc"] - after["acc"]
    return (max(0, gained) - max(0, lost) + 100) / 2


def summary(values):
    if not values or None in values:
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], newline="") as file:
        rows = list(csv.DictReader(file))
    compared, wrong = 0, []

    def compare(row, column, value):
        nonlocal compared
        compared += 1
        found = float(row[column]) if row[column] else None
        same = found is value if None in (found, value) else abs(found - value) <= TOLERANCE * max(1, abs(value))
        if not same:
            wrong.append(f"{row['attack']} / {row['defense']} {row['kind']} {row['seed']}: {column} {found}, expected {value}")

    # One table for each dataset, network and data; an average has the network of the table.
    tables = collections.defaultdict(list)
    for row in rows:
        tables[row["dataset"], row["data"]].append(row)
    for table in tables.values():
        cells = collections.defaultdict(dict)
        for row in table:
            if row["kind"] == "cell":
                scores = {metric: percent(row, metric) for metric in METRICS}
                cells[row["attack"], row["defense"]][row["seed"]] = scores
        undefended = {row["attack"]: row["defense"] for row in table if row["role"] == "undefended" and row["kind"] == "mean"}
        for (attack, defense), seeds in cells.items():
            for seed, scores in seeds.items():
                before = cells[attack, undefended[attack]].get(seed)
                defended = defense != undefended[attack] and before is not None
                scores["der"] = der(before, scores) if defended else None
        marks = {row["attack"]: set(row["flags"].split()) for row in table if row["role"] == "undefended" and row["kind"] == "mean"}
        poisoned = {attack for (attack, _), seeds in cells.items() if any(s["asr"] is not None for s in seeds.values())}
        averaged = [attack for attack in undefended if attack in poisoned and not marks[attack] & {"not_planted", "at_chance"}]
        for row in table:
            seeds = cells[row["attack"], row["defense"]]
            for metric in (*METRICS, "der"):
                if row["kind"] == "cell":
                    compare(row, metric, seeds[row["seed"]][metric])
                    continue
                if row["kind"] == "mean":
                    mean, spread = summary([scores[metric] for scores in seeds.values()])
                else:
                    columns = [cells[attack, row["defense"]] for attack in averaged]
                    means = [summary([scores[metric] for scores in column.values()])[0] for column in columns]
                    mean, _ = summary(means)
                    spread = None
                    if mean is not None and all(column.keys() == columns[0].keys() for column in columns):
                        _, spread = summary([summary([c[seed][metric] for c in columns])[0] for seed in columns[0]])
                compare(row, metric, mean)
                compare(row, f"{metric}_std", spread)
                # A delta is left out where a printed number cannot be right.
                if row[f"delta_{metric}"]:
                    compare(row, f"delta_{metric}", mean - float(row[f"paper_{metric}"]))
    for line in wrong:
        print(line)
    print(f"{compared} numbers compared, {len(wrong)} differ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
