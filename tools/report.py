"""Describe runs in Markdown: scores beside published ones, failures, and where the time went.

The score of a run is the mean return over the last tenth of its evaluations. A row holds all seeds
of a script, with the settings and versions in which runs differ, on an environment for a number of
steps. Finished, living and failed runs count; metrics.jsonl may be compressed with gzip. Published
results come from targets.csv and reference_curves.csv.

python tools/report.py runs/*                     tables
python tools/report.py runs/* --plots FOLDER      and a figure of learning curves per script
python tools/report.py --readme                   write README's results from those in results/
"""

import argparse
import csv
import glob
import gzip
import hashlib
import json
import math
import re
import sys
import time
import tomllib
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HERE = Path(__file__).resolve().parent
ALGORITHMS = "sac", "td3", "ppo", "dqn"
SCRIPTS = "sac_continuous", "td3_continuous", "ppo_continuous", "dqn_atari"
TIMES = "update", "env", "act", "eval", "log"
ASIDE = {*"seed notes track capture_video log_every config".split()}  # a row may mix these
PLAIN = {*"env-id total-timesteps run-dir threads device compile eval-every".split()}  # not shown
PLAIN |= {prefix + name.replace("_", "-") for name in ASIDE for prefix in ("", "no-")}
SILENT = 1800  # seconds without a metric after which a run without a summary is taken for killed
MARKS = "<!-- made by tools/report.py -->\n", "<!-- end -->\n"
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"  # Okabe and Ito's
HEAD = ["script", "environment", "steps"]
NOTES = """
Scores are mean returns over the last tenth of a run's evaluations; of a run that ended early, of
what it had reached. In parentheses their range, in brackets, from 5 seeds on, 95 % bootstrap
intervals, which are too narrow below 10; the IQM is the mean below 4. One seed is an anecdote, 2 to
4 are a smoke test, 5 to 9 exploratory, 10 allow a claim. A run has failed if it ended early or is
below random + 10 % of (published - random). Short runs, of less than half of the published steps,
are not judged by their score. Of several published results for about as many steps the first is
shown by version of the environment, then number of seeds, then height.
"""


# --- runs -----------------------------------------------------------------------------------------
def read(folder):
    """Return what the tables need of a run folder, whether the run has ended or not."""
    config = tomllib.loads((folder / "config.toml").read_text("utf-8"))
    path, packed = folder / "metrics.jsonl", folder / "metrics.jsonl.gz"
    data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    rows = [json.loads(line) for line in data.splitlines(True) if line.endswith(b"\n")]
    files = folder / "script.py", folder / "summary.json"
    source, summary = (file.read_text("utf-8") if file.exists() else "" for file in files)
    run = SimpleNamespace(config=config, seed=config["seed"], env_id=config["env_id"])
    run.steps, run.step = config["total_timesteps"], rows[-1]["global_step"] if rows else 0
    run.source = hashlib.sha256(source.encode()).hexdigest()[:7] if source else None
    found = {"seconds": rows[-1]["seconds"] if rows else 0, "versions": {}}
    if summary:
        found = json.loads(summary)
        run.state, run.script = found["status"], Path(found["command"][0]).stem
    else:
        run.state = "killed" if time.time() - path.stat().st_mtime > SILENT else "living"
        said = folder.name.split("__")[1:2] or re.findall(r"python (\w+)\.py", source)
        run.script = [*said, "unknown"][0]
    tries = folder.parent.glob(f".{glob.escape(folder.name)}-unfinished-*")  # by benchmark.sh
    run.tries = len([*tries])
    flags = re.split(r"(?:^| )--", " ".join(found.get("command", [])[1:]))[1:]
    flags = {re.split("[ =]", flag)[0]: f"--{flag}" for flag in flags}
    run.flags = {name: flag for name, flag in flags.items() if name not in PLAIN}
    run.seconds, run.sps = found["seconds"], run.step / max(found["seconds"], 1e-9)
    run.evals = [(r["global_step"], r["eval/return_mean"]) for r in rows if "eval/return_mean" in r]
    tail = [score for _, score in run.evals[-math.ceil(len(run.evals) / 10) :]]
    run.score = sum(tail) / len(tail) if tail else math.nan
    returns = [r["charts/episodic_return"] for r in rows if "charts/episodic_return" in r][-100:]
    run.training = sum(returns) / len(returns) if returns else math.nan
    timed = [r for r in rows if "charts/SPS" in r]
    lengths = [b - a for a, b in pairwise([0.0, *(r["seconds"] for r in timed)])]
    shares = [[r.get(f"time/{name}", 0) for name in TIMES] for r in timed]
    run.shares = np.average(shares, 0, lengths) if timed else np.zeros(len(TIMES))
    versions = found["versions"]
    simulator = "ale-py" if rules(config) else "mujoco"
    run.versions = {name: versions.get(name) for name in ("gymnasium", simulator) if versions}
    python = versions.get("python", "unknown").split()[0]
    words = [found.get("hardware", "unknown"), config.get("device", ""), f"Python {python}"]
    words += [f"{k} {versions.get(k, 'unknown')}" for k in ("torch", "gymnasium", simulator)]
    run.machine = ", ".join(filter(None, words))
    return run


def split(runs):
    """Return runs by (script, label, environment, steps), and the names that kept some apart.

    The label says in which settings and versions the runs of one task differ. One without a
    summary, which has no versions, has those of the others if these agree.
    """
    tasks, rows, apart = defaultdict(list), defaultdict(list), set()
    for run in sorted(runs, key=lambda run: run.seed):
        tasks[run.script, run.env_id, run.steps].append(run)
    for (script, env_id, steps), group in tasks.items():
        known = [run.versions for run in group if run.versions]
        shared = known[0] if known and all(one == known[0] for one in known) else {}
        every = [r.config | {"script.py": r.source} | (r.versions or shared) for r in group]
        names = sorted({name for one in every for name in one} - ASIDE)
        varied = [n for n in names if len({str(one.get(n)) for one in every}) > 1]
        apart |= {*varied}
        for run, one in zip(group, every, strict=True):
            label = ", ".join(f"{name}={one.get(name)}" for name in varied)
            rows[script, label, env_id, steps].append(run)
    return dict(sorted(rows.items())), sorted(apart)


def rules(config):
    """Return the protocol of an Atari game, which is part of what is solved; else nothing."""
    name, size = config["env_id"], config.get("frame_size", 84)
    old = "life_loss" in config and not re.search("[:/]", name)  # Breakout-v4; not a module's own
    if not (name.startswith("ALE/") or "NoFrameskip" in name or old):
        return ""
    sticky = name.startswith("ALE/") or name.endswith("-v0")
    lives = {"on": True, "off": False}.get(config.get("life_loss"), not sticky)
    usual = lives != sticky and size == 84
    whose = ("Machado's: " if sticky else "Nature's: ") * usual
    ends = "lost lives end" if lives else "lost lives do not end"
    pixels = f", {size} x {size} pixels" * (size != 84)
    return f" ({whose}{'sticky' if sticky else 'no sticky'} actions, {ends}{pixels})"


# --- published results ----------------------------------------------------------------------------
def algorithm(script):
    """Return which of the known algorithms the name of a script holds."""
    return next((word for word in re.split("[_-]", script) if word in ALGORITHMS), "")


@cache
def table_of(name):
    """Return the rows of a CSV file beside this one."""
    with open(HERE / name, newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def comparable(one, other):
    """Tell whether returns on two environments may be compared: Gymnasium's pages on MuJoCo."""
    alike = ["v2", "v3", "v4"] + ["v5"] * one.startswith("HalfCheetah-")
    name, version = re.fullmatch(r"(.*?)-?(v\d+)?", one).groups()
    base, number = re.fullmatch(r"(.*?)-?(v\d+)?", other).groups()
    alike = name == base and version in alike and number in alike
    return one == other or (alike and name not in ("Ant", "Humanoid"))


def target(script, env_id, steps, protocol):
    """Return a published result of the nearest number of steps, and all means of that number."""
    rows = [r for r in table_of("targets.csv") if r["algorithm"] == algorithm(script)]
    rows = [r for r in rows if comparable(env_id, r["env_id"])]
    rows = [r for r in rows if r["protocol"].startswith(protocol)]
    if not rows:
        return None, []
    at = min((int(r["steps"]) for r in rows), key=lambda s: abs(math.log(s / steps)))
    rows = [r for r in rows if int(r["steps"]) == at]
    ranks = [(r["env_id"] == env_id, int(r["seeds"] or 0), float(r["mean"])) for r in rows]
    return rows[ranks.index(max(ranks))], [float(r["mean"]) for r in rows]


# --- statistics -----------------------------------------------------------------------------------
def mean(scores):
    """Return the mean along the last axis."""
    return scores.mean(-1)


def iqm(scores):
    """Return the mean of the middle half along the last axis."""
    cut = scores.shape[-1] // 4
    return np.sort(scores)[..., cut : scores.shape[-1] - cut].mean(-1)


def interval(statistic, *tasks, draws=20_000):
    """Return the 95 % percentile interval of runs drawn with replacement within each task."""
    random = np.random.default_rng(0)
    drawn = [task[random.integers(len(task), size=(draws, len(task)))] for task in tasks]
    return np.percentile(statistic(np.concatenate(drawn, -1)), [2.5, 97.5])


def judge(key, runs):
    """Return what the tables say of a row's runs."""
    script, label, env_id, steps = key
    shared = set.intersection(*({*run.flags.items()} for run in runs))
    words = [script, *[label] * bool(label)]
    for name, flag in runs[0].flags.items():
        words += [flag] * ((name, flag) in shared and f"{name.replace('-', '_')}=" not in label)
    row = SimpleNamespace(key=key, runs=runs, name=" ".join(words))
    row.env, row.steps = env_id + rules(runs[0].config), steps
    row.pool = [run for run in runs if run.state != "living"] or runs
    row.repeats = defaultdict(list)  # of each seed
    for run in row.pool:
        row.repeats[run.seed] += [run.score] * bool(run.evals)
    row.scores = np.array([sum(same) / len(same) for same in row.repeats.values() if same])
    row.published = {p: target(script, env_id, steps, p) for p in ("evaluation", "training")}
    one = row.published["evaluation"][0] or row.published["training"][0]
    row.short = bool(one) and steps < int(one["steps"]) / 2
    known = [r for r in table_of("targets.csv") if r["algorithm"] == "random"]
    untrained = [float(r["mean"]) for r in known if r["env_id"] == env_id]
    row.measured = not untrained
    untrained = untrained or [y for run in runs for x, y in run.evals if x == 0]
    row.judged = bool(one and untrained and not row.short)
    bad = [run for run in row.pool if run.state not in ("finished", "living")]
    if row.judged:
        row.random = sum(untrained) / len(untrained)
        bar = row.random + 0.1 * (float(one["mean"]) - row.random)
        bad += [run for run in row.pool if run.state == "finished" and run.score < bar]
    row.failures = f"{len(bad)} of {len(row.pool)}" + ", early ends only" * (not row.judged)
    tries = sum(run.tries for run in runs)
    row.failures += f", {tries} more begun and not finished" * (tries > 0)
    row.failures += ", by training" * bool(row.judged and not row.published["evaluation"][0])
    return row


# --- tables ---------------------------------------------------------------------------------------
def number(x):
    """Write a return with three digits at least."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def estimate(statistic, *tasks):
    """Write a statistic with its interval, or with the range of less than five runs."""
    runs = np.concatenate(tasks)
    if not len(runs):
        return "none"
    if len(runs) > 4:
        ends = f" [{', '.join(map(number, interval(statistic, *tasks)))}]"
    else:
        ends = f" ({number(runs.min())} to {number(runs.max())})" * (len(runs) > 1)
    return number(statistic(runs)) + ends


def by_seed(run):
    """Write a run's score, and how far it came unless it has finished."""
    score = f"{run.seed}: {number(run.score) if run.evals else 'none'}"
    reached = f" ({run.state}, {run.step:,} of {run.steps:,} steps)"
    return score + reached * (run.state != "finished")


def cite(row, protocol):
    """Write a published result, its spread, and what differs."""
    one, means = row.published[protocol]
    if not one:
        return "none known"
    seeds = f"{one['seeds']} seeds" if one["seeds"] else ""
    kind, _, over = one["spread_kind"].partition(" ")
    spread = f"{kind} {one['spread']} {over}".replace("over seeds", f"over {seeds}")
    words = [spread if over else seeds]
    words += [f"on {one['env_id']}"] * (one["env_id"] != row.key[2])
    words += [f"at {int(one['steps']):,} steps"] * (int(one["steps"]) != row.steps)
    words += [one["implementation"]]
    if len(means) > 1:
        words += [f"one of {len(means)}, {number(min(means))} to {number(max(means))}"]
    return f"{number(float(one['mean']))} ({', '.join(filter(None, words))})"


def markdown(titles, lines):
    """Return a table."""
    lines = [titles, ["---"] * len(titles), *lines]
    return "\n" + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def scores(rows, seeds=True):
    """Return the table of scores, and one over tasks for scripts that have several."""
    titles = [*HEAD, "seeds", *["score by seed"] * seeds, "mean", "IQM", "minimum", "failures"]
    lines, tasks = [], defaultdict(dict)
    for row in rows:
        n, living = len(row.repeats), sum(run.state == "living" for run in row.runs)
        label = ["anecdote", "smoke", "exploratory", "claim"][(n > 1) + (n > 4) + (n > 9)]
        line = [row.name, row.env, f"{row.steps:,}" + ", short" * row.short]
        line += [f"{n}, {label}" + f", {living} living" * (living > 0)]
        line += [", ".join(map(by_seed, row.runs))] * seeds
        line += [
            estimate(mean, row.scores),
            estimate(iqm, row.scores) if len(row.scores) > 3 else "the mean",
        ]
        line += [number(row.scores.min()) if len(row.scores) else "none", row.failures]
        lines.append([*line, cite(row, "evaluation")])
        one, _ = row.published["evaluation"]
        if one and row.judged and len(row.scores) > len(tasks[row.name].get(row.env, ())):
            scale = float(one["mean"]) - row.random
            tasks[row.name][row.env] = (row.scores - row.random) / scale
    text = markdown([*titles, "published evaluations"], lines)
    several = {name: [*of.values()] for name, of in tasks.items() if len(of) > 1}
    lines = [[k, len(v), sum(map(len, v)), estimate(iqm, *v)] for k, v in several.items()]
    heading = "\nAll tasks that are not short; 0 is random, 1 is published:\n"
    return text + (heading + markdown(["script", "tasks", "runs", "IQM"], lines) if lines else "")


def remarks(rows, apart):
    """Return what a reader could overlook, then what the words mean."""
    lines = [f"Kept apart, as they differ: {', '.join(apart)}."] if apart else []
    for row in rows:
        seeds, where = (
            [run.seed for run in row.runs],
            f"{row.name}, {row.key[2]}, {row.steps:,} steps",
        )
        if min(seeds) < 101 <= max(seeds):
            lines += [f"Warning: {where}: seeds up to 100, for tuning, are mixed with later ones."]
        for seed, same in row.repeats.items():
            if len(same) > 1:
                sds = [f"{number(np.std(x, ddof=1))}" for x in (same, row.scores) if len(x) > 1]
                sds = f"sd {', of all seeds '.join(sds)}"
                lines += [
                    f"{where}: seed {seed} counts once, as the mean of {len(same)} runs: {sds}."
                ]
    names = sorted({row.key[2] for row in rows if row.judged and row.measured})
    lines += [f"Random is the evaluation at step 0: {', '.join(names)}."] * bool(names)
    return "".join(f"\n{line}\n" for line in lines) + NOTES


def details(rows):
    """Return returns of training, times, machines and the sources of published results."""
    training, times, machines, sources = [], [], defaultdict(list), []
    for row in rows:
        head = [row.name, row.env, f"{row.steps:,}"]
        found = np.array([run.training for run in row.pool if not math.isnan(run.training)])
        training.append(
            [*head, number(mean(found)) if len(found) else "none", cite(row, "training")]
        )
        minutes = sum(run.seconds for run in row.runs) / len(row.runs) / 60
        speeds = ", ".join(f"{run.seed}: {run.sps:.0f}" for run in row.runs)
        shares = [f"{100 * share:.1f} %" for share in np.mean([run.shares for run in row.runs], 0)]
        times.append([*head, f"{minutes:.0f} min", speeds, *shares])
        for machine in sorted({run.machine for run in row.runs}):
            machines[machine].append(f"{row.name} on {row.key[2]}")
        for one in (one for one, _ in row.published.values() if one):
            name = f"{one['implementation']}, {one['env_id']}, {int(one['steps']):,} steps"
            sources.append(f"- {name}: {one['protocol']} ({one['source']})\n")
    text = "\nReturns of training are means of the last 100 episodes.\n"
    text += markdown([*HEAD, "training", "published returns of training"], training)
    text += markdown([*HEAD, "wall-clock", "steps/s by seed", *TIMES], times) + "\n"
    for machine, names in machines.items():
        text += f"- {machine}" + f": {', '.join(names)}" * (len(machines) > 1) + "\n"
    heading = "\nWhere the published results come from, and how they were counted:\n\n"
    return text + heading * bool(sources) + "".join(dict.fromkeys(sources))


# --- learning curves ------------------------------------------------------------------------------
def steps_word(x, _=None):
    """Write a number of steps: 0, 200k, 1M."""
    scale, unit = (1e6, "M") if abs(x) >= 1e6 else (1e3, "k") if abs(x) >= 1e3 else (1, "")
    return f"{x / scale:g}{unit}"


def draw(axes, rows, styles, versions):
    """Draw the rows of an environment: seeds thin, mean or IQM thick, published curves grey.

    styles and versions are those of the whole figure, by name, and get what is new.
    """
    script, _, env_id, _ = rows[0].key
    end, curves = max(row.steps for row in rows), defaultdict(list)
    for r in table_of("reference_curves.csv"):
        if r["algorithm"] == algorithm(script) and comparable(env_id, r["env_id"]):
            name = r["implementation"] + ", training" * (r["protocol"] == "training")
            curves[name, r["env_id"]].append((float(r["step"]), float(r["return"])))
    for (name, other), points in curves.items():
        x, y = np.array(points).T
        if any((x > 0) & (x <= end)):
            line = [*x[x < end], end], [*y[x < end], np.interp(end, x, y)]
            versions[name].add(other.split("-")[-1])
            style = styles.setdefault(name, {"ls": "- -- : -.".split()[len(versions) % 4 - 1]})
            axes.plot(*line, color="0.55", lw=1.2, label=name, zorder=1, **style)
    for row in rows:
        same = sum(other.name == row.name for other in rows[: rows.index(row)])
        taken = sum("color" in style for style in styles.values())
        style = styles.setdefault((row.name, same), {"color": COLOURS[taken % len(COLOURS)]})
        done = [run for run in row.runs if run.state == "finished" and run.evals]
        for run in (run for run in row.runs if run.evals):
            axes.plot(*zip(*run.evals, strict=True), lw=0.7, alpha=0.55, zorder=2, **style)
            if run.state not in ("finished", "living"):
                axes.plot(*run.evals[-1], "x", zorder=4, **style)
        if not done:
            continue
        x = sorted(set.intersection(*({step for step, _ in run.evals} for run in done)))
        values = np.array([[dict(run.evals)[step] for run in done] for step in x])
        name, centre = ("mean", mean) if len(done) < 4 else ("IQM", iqm)
        words = [row.key[1] or script]
        words += [f"{steps_word(row.steps)} steps"] * any(r.steps != row.steps for r in rows)
        words += [f"{name} of {len(done)} seeds" if len(done) > 1 else "1 seed"]
        words += ["range" if len(done) < 5 else "95 % interval"] * (len(done) > 2)
        word = ", ".join(words)
        axes.plot(x, centre(values), lw=2.2, label=word, zorder=3, **style)
        if len(done) > 2:
            ends = values.min(1), values.max(1)
            if len(done) > 4:
                ends = np.array([interval(centre, line, draws=2000) for line in values]).T
            axes.fill_between(x, *ends, alpha=0.2, lw=0, zorder=2, **style)
    axes.set_title(rows[0].env, fontsize=9)
    axes.set_xlim(0, end)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(steps_word)
    axes.grid(color="0.92", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def plot(rows, folder):
    """Write a figure per script, a panel per environment, and return the paths."""
    from matplotlib.figure import Figure  # tables do not need it

    folder.mkdir(parents=True, exist_ok=True)
    scripts, paths = defaultdict(lambda: defaultdict(list)), []
    for row in rows:
        scripts[row.key[0]][row.env].append(row)
    for script, panels in scripts.items():
        across, styles, versions = min(len(panels), 2), {}, defaultdict(set)
        down = math.ceil(len(panels) / across)
        figure = Figure(layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for one, group in zip(axes, panels.values(), strict=False):
            draw(one, group, styles, versions)
            one.set_xlabel("environment steps", fontsize=8)
            one.set_ylabel("return of evaluations", fontsize=8)
            one.tick_params(labelsize=8)
        lines = [line for one in axes for line in one.lines if line.get_label()[0] != "_"]
        lines = {line.get_label(): line for line in sorted(lines, key=lambda line: -line.zorder)}
        names = [f"{n} ({', '.join(sorted(versions[n]))})" if n in versions else n for n in lines]
        columns = 2 if max(map(len, [*names, ""])) < 60 else 1
        figure.set_size_inches(8, 2.7 * down + 0.2 * math.ceil(len(names) / columns))
        options = {"fontsize": 8, "frameon": False, "ncols": columns}
        figure.legend(lines.values(), names, loc="outside lower center", **options)
        for one in axes[len(panels) :]:
            one.remove()
        paths.append(folder / f"{script}.png")
        figure.savefig(paths[-1], dpi=150, metadata={"Software": None})
    return paths


# --- main -----------------------------------------------------------------------------------------
def results(folders):
    """Return the rows of run folders and what kept them apart; exit with 2 if none is a run."""
    runs = []
    for folder in folders:
        try:
            runs.append(read(folder))
        except (OSError, EOFError, KeyError, ValueError) as error:
            print(f"not counted: {folder} is no run ({error!r:.150})", file=sys.stderr)
    if not runs:
        print("error: folders names no run: name others", file=sys.stderr)
        raise SystemExit(2)
    rows, apart = split(runs)
    return [judge(*item) for item in rows.items()], apart


def readme(root):
    """Return README's text with its tables made anew, and their rows."""
    found = [sorted((root / "results" / name).glob("*/*")) for name in SCRIPTS]
    rows, apart = results(sum(found, []))
    before, rest = (root / "README.md").read_text("utf-8").split(MARKS[0])
    rows.sort(key=lambda row: SCRIPTS.index(row.key[0]))
    text = scores(rows, seeds=False) + remarks(rows, apart) + "\n"
    for script in dict.fromkeys(row.key[0] for row in rows):
        text += f"![Learning curves of {script}.py](results/plots/{script}.png)\n"
    return before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1], rows


def main():
    """Print the tables of the runs given, or write README's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", help="run folders, or patterns such as 'runs/*'")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write learning curves as PNG")
    parser.add_argument("--readme", action="store_true", help="write README's results and plots")
    args = parser.parse_args()
    if args.readme:
        text, rows = readme(HERE.parent)
        (HERE.parent / "README.md").write_text(text, "utf-8")
        args.plots = HERE.parent / "results" / "plots"
    elif args.folders:
        named = [glob.glob(name) or [name] for name in args.folders]
        rows, apart = results(sorted({Path(path) for paths in named for path in paths}))
        print((scores(rows) + remarks(rows, apart) + details(rows)).strip())
    else:
        parser.error("name run folders, or --readme")
    for path in plot(rows, args.plots) if args.plots else ():
        print(f"\n{path}")


if __name__ == "__main__":
    main()
