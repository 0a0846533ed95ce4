"""Describe finished runs in Markdown: scores beside published ones, and where the time went.

The score of a run is its last evaluation, `best` its highest, `training` the mean return of its
last 100 episodes of training, which lie far back where many environments end theirs together. A
line is a script, with the settings in which runs differ, an environment and a number of steps,
over all seeds. metrics.jsonl may be compressed with gzip. Published results come from targets.csv,
which names their sources.

python tools/report.py runs/*
"""

import argparse
import csv
import gzip
import json
import tomllib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean

TARGETS = Path(__file__).with_name("targets.csv")
TIMES = "update", "env", "act", "eval", "log"
ASIDE = {*"seed notes track capture_video log_every config".split()}  # a line may mix these


def read(folder):
    """Return what the tables need of a run folder."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    config = tomllib.loads((folder / "config.toml").read_text("utf-8"))
    path = folder / "metrics.jsonl"
    packed = folder / "metrics.jsonl.gz"
    text = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    rows = [json.loads(line) for line in text.splitlines()]
    scores = [row["eval/return_mean"] for row in rows if "eval/return_mean" in row]
    timed = [row for row in rows if "charts/SPS" in row]
    if summary["status"] != "finished" or not (scores and timed):
        raise ValueError(f"status {summary['status']}, {len(scores)} evaluations")
    lengths = [b - a for a, b in pairwise([0.0, *(row["seconds"] for row in timed)])]
    spent = {}
    for name in TIMES:
        parts = (n * row.get(f"time/{name}", 0) for n, row in zip(lengths, timed, strict=True))
        spent[name] = sum(parts) / sum(lengths)
    script = Path(summary["command"][0]).stem
    key = script, config["env_id"], config["total_timesteps"]
    summary["training"] = timed[-1].get("charts/average_return", float("nan"))
    return key, config, scores, summary, spent


def targets():
    """Return published results by algorithm, environment and steps."""
    with open(TARGETS, newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    return {(row["algorithm"], row["env_id"], int(row["steps"])): row for row in rows}


def split(groups):
    """Return the groups apart by settings, with a label of what differs, and runs by seed."""
    found = {}
    for (script, env_id, steps), runs in sorted(groups.items()):
        names = {name for config, *_ in runs for name in config} - ASIDE
        varied = [n for n in sorted(names) if len({str(config.get(n)) for config, *_ in runs}) > 1]
        for config, *run in sorted(runs, key=lambda run: run[0]["seed"]):
            label = ", ".join(f"{name}={config.get(name)}" for name in varied)
            key = f"{script} {label}".strip(), env_id, steps
            found.setdefault(key, []).append((config["seed"], *run))
    return dict(sorted(found.items()))


def main():
    """Print two tables of the run folders given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    groups, known = defaultdict(list), targets()
    for folder in parser.parse_args().folders:
        try:
            key, *run = read(folder)
        except (OSError, KeyError, ValueError) as error:
            parser.exit(
                2, f"error: {folder} is no finished run with evaluations ({error!r}): name others\n"
            )
        groups[key].append(run)
    groups = split(groups)
    titles = (
        "script, environment, steps, score by seed, mean, best by seed, training, published (range)"
    )
    print(titles.replace(", ", " | "), "---" + "|---" * 7, sep="\n")
    for (script, env_id, steps), runs in groups.items():
        last, best = [run[1][-1] for run in runs], [max(run[1]) for run in runs]
        one = known.get((script.split("_")[0], env_id, steps))
        found = (
            f"{one['mean']} ({one['low']} to {one['high']}, {one['seeds']} seeds)" if one else ""
        )
        by_seed = [", ".join(f"{run[0]}: {x:.0f}" for run, x in zip(runs, v)) for v in (last, best)]  # noqa: B905
        cells = [script, env_id, f"{steps:,}", by_seed[0], f"{fmean(last):.0f}", by_seed[1]]
        cells += [f"{fmean(run[2]['training'] for run in runs):.0f}", found]
        print(" | ".join(cells))
    print("\nscript | environment | steps/s by seed | " + " | ".join(TIMES))
    print("---|---|---" + "|---" * len(TIMES))
    for (script, env_id, _), runs in groups.items():
        speeds = ", ".join(f"{run[0]}: {run[2]['SPS']:.0f}" for run in runs)
        shares = [f"{100 * fmean(run[3][name] for run in runs):.1f} %" for name in TIMES]
        print(" | ".join([script, env_id, speeds, *shares]))


if __name__ == "__main__":
    main()
