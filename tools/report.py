"""Describe runs: scores beside published ones, failures, and where the time went.

The score of a run is the mean return over the last tenth of its evaluations. A row of a table holds
all seeds of a script, with the settings and versions in which runs differ, on an environment for a
number of steps. Finished, living and failed runs count; metrics.jsonl may be compressed with gzip.
Published results come from targets.csv and reference_curves.csv.

python tools/report.py runs                       tables of all runs in a folder
python tools/report.py runs/old-* runs/new-*      of some
python tools/report.py runs --plots FOLDER        and a figure of learning curves per environment
python tools/report.py --readme                   write the tables of README and docs/ from results/

A terminal gets tables that fit its width; files and other programs get Markdown, and so do you with
--markdown.
"""

import argparse
import csv
import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from run_folders import (
    ASIDE,
    TIMES,
    Run,
    changed_settings,
    enough_for_interval,
    find_runs,
    interval,
    iqm,
    mean,
    mean_or_nan,
    read_all,
    read_run,
    refuse,
    rules,
    safe,
    say,
    strength,
)
from text_tables import fitted, markdown, number, prose, wrap

HERE = Path(__file__).resolve().parent
ALGORITHMS = ("sac", "td3", "tqc", "ppo", "dqn")
SCRIPTS = (  # README's order
    "sac_continuous",
    "tqc_continuous",
    "td3_continuous",
    "ppo_continuous",
    "dqn_atari",
)
MARKS = ("<!-- made by tools/report.py -->\n", "<!-- end -->\n")  # in pages, around the results
FRONT = ("HalfCheetah-v4", "Hopper-v4")  # the tasks of README's figure
FRONT_SCRIPTS = ("sac_continuous", "td3_continuous", "ppo_continuous")  # a column each

# What a row is named by besides settings, where runs of one task differ in it
VERSIONS = ("script.py", "gymnasium", "mujoco", "ale-py")

NOTES = """
How to read the tables:

- A score is the mean return over the last tenth of a run's evaluations. A run that ended early
  counts with the evaluations that it had reached.
- (low to high) is the range over seeds. [low, high] is a 95 % bootstrap interval, given from 5
  seeds of each task on. With fewer than 10 seeds the interval of the IQM is too narrow. Where runs
  fail now and then, that of the mean is too narrow with any number of seeds.
- IQM is the interquartile mean, that of the middle half of the scores; below 4 seeds, the mean.
- One seed is an anecdote, 2 to 4 are a smoke test, 5 to 9 are exploratory, 10 allow a claim.
- A run has failed if it ended early or scored below random + 10 % of (published - random).
- Short is less than half of the published steps. "Early ends only": scores were not judged, since
  the run is short or nothing is published.
- If several results are published for about as many steps, the one shown is of the same version of
  the environment if there is one, then that of most seeds, then the highest.
"""
TOGETHER = """
Tasks with the same settings in one figure: 0 is the score of random actions, 1 the published one.
Short runs are left out; (n) is the number of seeds, and the range is over all runs:
"""
TRAINING = """
Returns of training are means of the last 100 episodes. Published ones are often of more steps:
"""
TIME = """
Mean time of a run, and steps per second of the slowest run and of the fastest. "last/first" is the
speed in the last quarter of the steps over that in the first. The shares of the time leave out the
start and the last evaluation:
"""


# --- published results ----------------------------------------------------------------------------
class Published(NamedTuple):
    """A result that others have published: a line of targets.csv."""

    algorithm: str
    env_id: str
    steps: int
    mean: float
    spread: str
    spread_kind: str
    seeds: str
    protocol: str
    implementation: str
    source: str


class Comparison(NamedTuple):
    """The published result that a row is compared with, and all means of about as many steps."""

    best: Published | None
    means: list[float]


def algorithm(script):
    """Return which of the known algorithms the name of a script holds."""
    for word in re.split("[_-]", script):
        if word in ALGORITHMS:
            return word
    return ""


@cache
def table_of(name):
    """Return the rows of a CSV file beside this one."""
    with open(HERE / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def published_results():
    """Return all lines of targets.csv."""
    results = []
    for row in table_of("targets.csv"):
        numbers = {"steps": int(row["steps"]), "mean": float(row["mean"])}
        results.append(Published(**(row | numbers)))
    return results


def comparable(one, other):
    """Tell whether returns on two environments may be compared: Gymnasium's pages on MuJoCo."""
    if one == other:
        return True
    pattern = r"(.*?)-?(v\d+)?"
    name, version = re.fullmatch(pattern, one, re.DOTALL).groups()
    other_name, other_version = re.fullmatch(pattern, other, re.DOTALL).groups()
    alike = ["v2", "v3", "v4"]
    if name == "HalfCheetah":
        alike.append("v5")
    if name != other_name or name in ("Ant", "Humanoid"):
        return False
    return version in alike and other_version in alike


def compare(script, env_id, steps, protocol):
    """Find the published results of a protocol whose number of steps is the nearest."""
    fitting = [
        result
        for result in published_results()
        if result.algorithm == algorithm(script)
        and comparable(env_id, result.env_id)
        and result.protocol.startswith(protocol)
    ]
    if not fitting:
        return Comparison(None, [])
    nearest = min(fitting, key=lambda result: abs(math.log(result.steps / steps))).steps
    nearby = [result for result in fitting if result.steps == nearest]

    def rank(result):
        return result.env_id == env_id, int(result.seeds or 0), result.mean

    return Comparison(max(nearby, key=rank), [result.mean for result in nearby])


# --- rows -----------------------------------------------------------------------------------------
@dataclass(eq=False)
class Row:
    """The runs of a script, with some settings and versions, on a task."""

    script: str
    label: str  # settings that are not the defaults, versions in which runs differ
    env_id: str
    steps: int
    runs: list[Run]

    @property
    def name(self):
        return f"{self.script} {self.label}".strip()

    @property
    def environment(self):
        return self.env_id + rules(self.runs[0].config)

    @property
    def task(self):
        """Where the row belongs, in words."""
        return f"{self.name}, {self.env_id}, {self.steps:,} steps"

    @cached_property
    def pool(self):
        """The runs that count: those that have ended, or all if none has."""
        return [run for run in self.runs if run.state != "living"] or self.runs

    @cached_property
    def scores_by_seed(self):
        """The scores of all runs of each seed."""
        found = defaultdict(list)
        for run in self.pool:
            found[run.seed] += [run.score] if run.evaluations else []
        return found

    @cached_property
    def scores(self):
        """One score per seed, as an array."""
        found = self.scores_by_seed.values()
        return np.array([mean_or_nan(scores) for scores in found if scores])

    @cached_property
    def evaluations(self):
        """What is published of evaluations."""
        return compare(self.script, self.env_id, self.steps, "evaluation")

    @cached_property
    def training(self):
        """What is published of returns of training."""
        return compare(self.script, self.env_id, self.steps, "training")

    @property
    def target(self):
        """The published result that decides what is a failure, or None."""
        return self.evaluations.best or self.training.best

    @property
    def is_short(self):
        return self.target is not None and self.steps < self.target.steps / 2

    @cached_property
    def known_random(self):
        """Returns of random actions, as published here."""
        known = [result for result in published_results() if result.algorithm == "random"]
        return [result.mean for result in known if result.env_id == self.env_id]

    @cached_property
    def random(self):
        """The return of random actions, or of untrained agents; NaN if neither is known."""
        untrained = []
        for run in self.runs:
            untrained += [score for step, score in run.evaluations if step == 0]
        return mean_or_nan(self.known_random or untrained)

    @property
    def is_judged(self):
        """Whether scores decide what is a failure."""
        return self.target is not None and not math.isnan(self.random) and not self.is_short

    def normalised(self, score):
        """Return a score where 0 is random and 1 is published."""
        return (score - self.random) / (self.target.mean - self.random)

    def has_failed(self, run):
        """Tell whether a run ended early, or learned next to nothing."""
        if run.ended_early:
            return True
        if run.state == "living" or not self.is_judged:
            return False
        return run.score < self.random + 0.1 * (self.target.mean - self.random)


def rows_of(runs):
    """Sort runs into rows; return these and the names of what keeps runs of a task apart.

    A run without a summary, which has no versions, has those of the others if these agree.
    """
    tasks = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        tasks[run.script, run.env_id, run.steps].append(run)
    rows = []
    apart = set()
    for (script, env_id, steps), group in sorted(tasks.items()):
        traits = [traits_of(run, shared_versions(group)) for run in group]
        varied = varied_names(traits)
        apart |= varied
        alike = defaultdict(list)
        for run, trait in zip(group, traits, strict=True):
            values = [str(trait.get(name)) for name in sorted(varied)]
            alike[label_of(run, trait, varied), *values].append(run)
        for (label, *_), same in sorted(alike.items()):
            rows.append(Row(script, label, env_id, steps, same))
    return rows, sorted(apart)


def shared_versions(runs):
    """Return the versions of all runs that have any, if these agree."""
    known = [run.versions for run in runs if run.versions]
    if known and all(versions == known[0] for versions in known):
        return known[0]
    return {}


def traits_of(run, versions):
    """Return all in which runs of a task may differ so that they are not of one row."""
    traits = {name: value for name, value in run.config.items() if name not in ASIDE}
    return traits | {"script.py": run.source} | (run.versions or versions)


def varied_names(traits):
    """Return the names whose value is not the same in all."""
    names = {name for trait in traits for name in trait}
    return {name for name in names if len({str(trait.get(name)) for trait in traits}) > 1}


def label_of(run, traits, varied):
    """Return what a row is named by besides its script: settings as flags, then versions."""
    words = changed_settings(run, [name for name in sorted(varied) if name not in VERSIONS])
    for name in VERSIONS:
        if name in varied:
            words.append(f"{name}={traits.get(name) or 'unknown'}")
    return " ".join(words)


# --- cells ----------------------------------------------------------------------------------------
def estimate(statistic, *tasks):
    """Write a statistic with its interval, or with the range of few runs."""
    runs = np.concatenate(tasks)
    if len(runs) == 0:
        return "none"
    text = number(statistic(runs))
    if enough_for_interval(*tasks):
        low, high = interval(statistic, *tasks)
        text += f" [{number(low)}, {number(high)}]"
    elif len(runs) > 1:
        text += f" ({number(runs.min())} to {number(runs.max())})"
    return text


def score_of_seed(run):
    """Write a run's score, and how far it came unless it has finished."""
    text = f"{run.seed}: {number(run.score) if run.evaluations else 'none'}"
    if run.state != "finished":
        text += f" ({run.state}, {run.step:,} of {run.steps:,} steps)"
    return text


def seeds_of(row):
    """Write how many seeds a row has, and what those with a score allow to say."""
    seeds = len(row.scores_by_seed)
    count = len(row.scores)
    text = f"{count}, {strength(count)}"
    if count < seeds:
        text = f"{count} of {seeds}, {strength(count) if count else 'no score'}"
    living = sum(run.state == "living" for run in row.runs)
    if living:
        text += f", {living} living"
    return text


def failures_of(row):
    """Write how many runs failed, and by what they are judged."""
    failed = sum(row.has_failed(run) for run in row.pool)
    text = f"{failed} of {len(row.pool)}"
    if not row.is_judged:
        text += ", early ends only"
    if row.is_judged and not row.evaluations.best:
        text += ", by training"
    return text


def cite(row, comparison):
    """Write a published result, its spread, and what differs."""
    best = comparison.best
    if not best:
        return "none known"
    words = []
    seeds = f"{best.seeds} seeds" if best.seeds else ""
    kind, _, over = best.spread_kind.partition(" ")  # such as "sd over seeds", or nothing
    if over:
        words.append(f"{kind} {best.spread} {over.replace('over seeds', f'over {seeds}')}")
    elif seeds:
        words.append(seeds)
    if best.env_id != row.env_id:
        words.append(f"on {best.env_id}")
    if best.steps != row.steps:
        words.append(f"at {best.steps:,} steps")
    words.append(best.implementation)
    means = comparison.means
    if len(means) > 1:
        ends = f"{number(min(means))} to {number(max(means))}"
        words.append(f"one of {len(means)} published, {ends}")
    return f"{number(best.mean)} ({', '.join(words)})"


# --- what is printed ------------------------------------------------------------------------------
def scores(rows, table, by_seed=True):
    """Return the table of scores, and one over tasks for scripts that have several."""
    lines = [score_line(row) for row in rows]
    if not by_seed:
        for line in lines:
            del line["score by seed"]
    return table(lines) + pooled_scores(rows, table)


def score_line(row):
    """Return the cells of a row of the table of scores."""
    few = len(row.scores) < 4
    return {
        "script": row.name,
        "environment": row.environment,
        "steps": f"{row.steps:,}, short" if row.is_short else f"{row.steps:,}",
        "seeds": seeds_of(row),
        "score by seed": ", ".join(score_of_seed(run) for run in row.runs),
        "mean": estimate(mean, row.scores),
        "IQM": "the mean" if few else estimate(iqm, row.scores),
        "minimum": number(row.scores.min()) if len(row.scores) else "none",
        "failures": failures_of(row),
        "published evaluations": cite(row, row.evaluations),
    }


def pooled_scores(rows, table):
    """Return the table over all tasks of scripts that have several; of each the most seeds."""
    tasks = defaultdict(dict)
    for row in rows:
        known = tasks[row.name].get(row.environment, ())
        if row.evaluations.best and row.is_judged and len(row.scores) > len(known):
            tasks[row.name][row.environment] = row.normalised(row.scores)
    lines = []
    for name, by_environment in tasks.items():
        arrays = list(by_environment.values())
        if len(arrays) > 1:
            runs = sum(len(array) for array in arrays)
            pooled = estimate(iqm, *arrays)
            seeds = [f"{task} ({len(array)})" for task, array in by_environment.items()]
            tasks_of_name = f"{len(arrays)}: {', '.join(seeds)}"
            lines.append({"script": name, "tasks": tasks_of_name, "runs": runs, "IQM": pooled})
    if not lines:
        return ""
    return prose(TOGETHER, table) + table(lines)


def remarks(rows, apart):
    """Return what a reader could overlook, then what the words mean."""
    lines = []
    if apart:
        lines.append(f"Kept apart, as they differ: {', '.join(apart)}.")
    for row in rows:
        seeds = [run.seed for run in row.runs]
        if min(seeds) < 101 <= max(seeds):
            what = "seeds up to 100, for tuning, are mixed with later ones."
            lines.append(f"Warning: {row.task}: {what}")
        lines += repeated_seeds(row)
    measured = {row.env_id for row in rows if row.is_judged and not row.known_random}
    if measured:
        lines.append(f"Random is the evaluation at step 0: {', '.join(sorted(measured))}.")
    return "".join(f"\n{line}\n" for line in lines) + NOTES


def repeated_seeds(row):
    """Return a line for each seed that ran several times: what differs within it is chance."""
    lines = []
    for seed, same in row.scores_by_seed.items():
        if len(same) < 2:
            continue
        deviations = number(np.std(same, ddof=1))
        if len(row.scores) > 1:
            deviations += f", of all seeds {number(np.std(row.scores, ddof=1))}"
        counts = f"seed {seed} counts once, as the mean of {len(same)} runs"
        lines.append(f"{row.task}: {counts}: sd {deviations}.")
    return lines


def details(rows, table):
    """Return returns of training, times, machines and the sources of published results."""
    text = prose(TRAINING, table) + table([training_line(row) for row in rows])
    text += prose(TIME, table) + table([time_line(row) for row in rows])
    return text + prose(list_of_machines(rows) + list_of_sources(rows), table)


def training_line(row):
    """Return the cells of a row of the table of training."""
    found = [run.training for run in row.pool if not math.isnan(run.training)]
    return {
        "script": row.name,
        "environment": row.environment,
        "steps": f"{row.steps:,}",
        "training": number(mean_or_nan(found)) if found else "none",
        "published returns of training": cite(row, row.training),
    }


def time_line(row):
    """Return the cells of a row of the table of times."""
    minutes = mean_or_nan([run.seconds for run in row.runs]) / 60
    known = [run.shares for run in row.runs if run.shares.any()]
    shares = np.mean(known, 0) if known else np.zeros(len(TIMES))
    cells = {
        "script": row.name,
        "environment": row.environment,
        "steps": f"{row.steps:,}",
        "time": f"{minutes:.0f} min",
        "steps/s": span_of([run.sps for run in row.runs], digits=0),
        "last/first": span_of([run.pace for run in row.runs], digits=2),
    }
    for name, share in zip(TIMES, shares, strict=True):
        cells[name] = f"{100 * share:.0f}%"
    return cells


def span_of(values, digits):
    """Write the lowest and the highest of what is known, once if they are the same: 310-420."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "unknown"
    ends = dict.fromkeys(f"{value:.{digits}f}" for value in (min(known), max(known)))
    return "-".join(ends)


def list_of_machines(rows):
    """Return a line for each machine, with what ran there if there are several."""
    machines = defaultdict(list)
    for row in rows:
        for machine in sorted({run.machine for run in row.runs}):
            machines[machine].append(f"{row.name} on {row.env_id}")
    text = "\nRan on:\n\n"
    for machine, names in machines.items():
        where = f": {', '.join(names)}" if len(machines) > 1 else ""
        text += f"- {machine}{where}\n"
    return text


def list_of_sources(rows):
    """Return a line for each published result that a row is compared with."""
    lines = {}  # each once, in order
    for row in rows:
        for best in (row.evaluations.best, row.training.best):
            if best:
                name = f"{best.implementation}, {best.env_id}, {best.steps:,} steps"
                lines[f"- {name}: {best.protocol} ({best.source})\n"] = None
    if not lines:
        return ""
    heading = "\nWhere the published results come from, and how they were counted:\n\n"
    return heading + "".join(lines)


# --- learning curves ------------------------------------------------------------------------------
# Okabe and Ito's colours, which most people can tell apart, and three more
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
    "#332288",
)
GREY = "0.55"
DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))  # of published curves


class Curve(NamedTuple):
    """A published learning curve."""

    name: str
    steps: np.ndarray
    returns: np.ndarray


def steps_word(x, _=None):
    """Write a number of steps: 0, 200k, 1M."""
    if abs(x) >= 1e6:
        return f"{x / 1e6:g}M"
    if abs(x) >= 1e3:
        return f"{x / 1e3:g}k"
    return f"{x:g}"


def plot(rows, folder):
    """Write a figure for each environment and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = defaultdict(list)
    for row in rows:
        figures[row.env_id].append(row)
    colours = {}  # of all figures, by name, so that a script has the same in each
    paths = []
    for env_id, group in figures.items():
        path = folder / f"{safe(env_id)}.png"
        draw_figure(group, colours, path)
        paths.append(path)
    return paths


def draw_figure(rows, colours, path):
    """Draw the rows of an environment, in panels of runs that are about as long."""
    from matplotlib.figure import Figure  # tables do not need it

    panels = panels_of(rows)
    across = min(len(panels), 2)
    down = math.ceil(len(panels) / across)
    figure = Figure(layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    several = len({algorithm(row.script) for row in rows}) > 1
    for one, group in zip(axes, panels, strict=False):
        known = draw_panel(one, group, colours)
        for name, colour in known.items():
            end = max(row.steps for row in group)
            draw_published(one, name, group[0].env_id, end, colour if several else GREY)
    for one in axes[len(panels) :]:
        one.remove()
    lines = legend_of(axes[: len(panels)])
    names = ["\n".join(wrap(plain(name), 60)) for name in lines]
    height = sum(1 + name.count("\n") for name in names) / 2
    figure.set_size_inches(8, 2.7 * down + 0.2 * math.ceil(height))
    figure.legend(
        lines.values(),
        names,
        loc="outside lower center",
        fontsize=8,
        frameon=False,
        ncols=2,
    )
    figure.savefig(path, dpi=150, metadata={"Software": None})  # no version: the same bytes again


def plain(text):
    """Return a text that Matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def panels_of(rows):
    """Sort rows into lists of one protocol whose runs differ in length by 5 times at most."""
    panels = []
    for row in sorted(rows, key=lambda row: (row.environment, row.steps)):
        first = panels[-1][0] if panels else None
        if first and first.environment == row.environment and row.steps <= 5 * first.steps:
            panels[-1].append(row)
        else:
            panels.append([row])
    return panels


def legend_of(axes):
    """Return all lines that have a label, once each, ours first."""
    lines = [line for one in axes for line in one.lines if not line.get_label().startswith("_")]
    lines.sort(key=lambda line: -line.zorder)
    return {line.get_label(): line for line in lines}


def draw_panel(axes, rows, colours):
    """Draw rows of an environment; return the colours of their algorithms."""
    known = {}
    for row in rows:
        # rows of one name differ in their number of steps
        same_name = [other for other in rows if other.name == row.name]
        key = row.name, same_name.index(row)
        colour = colours.setdefault(key, COLOURS[len(colours) % len(COLOURS)])
        known.setdefault(algorithm(row.script), colour)
        draw_row(axes, row, label_of_curve(row, len(same_name) > 1), colour)
    axes.set_title(plain(rows[0].environment), fontsize=9)
    axes.set_xlabel("environment steps", fontsize=8)
    axes.set_ylabel("return of evaluations", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, max(row.steps for row in rows))
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(steps_word)
    axes.grid(color="0.92", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return known


def finished_seeds(row):
    """Return the runs that a row's thick line stands for, by seed."""
    seeds = defaultdict(list)
    for run in row.runs:
        if run.state == "finished" and run.evaluations:
            seeds[run.seed].append(dict(run.evaluations))  # {step: score}
    return seeds


def centre_of(seeds):
    """Return the name and the function of what stands for seeds."""
    return ("mean", mean) if len(seeds) < 4 else ("IQM", iqm)


def label_of_curve(row, with_steps):
    """Return what the legend says of a row."""
    words = [row.name]
    if with_steps:
        words.append(f"{steps_word(row.steps)} steps")
    return ", ".join([*words, words_of_seeds(finished_seeds(row))])


def words_of_seeds(seeds):
    """Return what the thick line and the band around it are."""
    if len(seeds) == 1:
        return "1 seed"
    name, _ = centre_of(seeds)
    words = f"{name} of {len(seeds)} seeds"
    if enough_for_interval(seeds):
        return f"{words}, 95 % interval"
    return f"{words}, range" if len(seeds) > 2 else words


def draw_row(axes, row, label, colour):
    """Draw runs thin, with a cross where one ended early, and the mean or IQM of seeds thick."""
    for run in row.runs:
        if run.evaluations:
            axes.plot(*zip(*run.evaluations, strict=True), lw=0.7, alpha=0.5, color=colour)
            if run.ended_early:
                axes.plot(*run.evaluations[-1], "x", zorder=4, color=colour)
    seeds = finished_seeds(row)
    if not seeds:
        return
    steps, scores = scores_at_steps(seeds)
    if not steps:  # each seed was evaluated at steps of its own: the legend names thin lines
        axes.plot([], [], lw=0.7, label=f"{row.name}, no common steps", color=colour)
        return
    _, centre = centre_of(seeds)
    axes.plot(steps, centre(scores), lw=2.2, label=label, zorder=3, color=colour)
    if len(seeds) > 2:
        low, high = scores.min(1), scores.max(1)
        if enough_for_interval(seeds):
            ends = [interval(centre, line, draws=2000) for line in scores]
            low, high = np.transpose(ends)
        axes.fill_between(steps, low, high, alpha=0.15, lw=0, color=colour)


def scores_at_steps(seeds):
    """Return the steps at which all runs were evaluated, and scores there, [steps, seeds]."""
    runs = [run for same in seeds.values() for run in same]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    scores = [
        [mean_or_nan([run[step] for run in same]) for same in seeds.values()] for step in steps
    ]
    return steps, np.array(scores)


def draw_published(axes, name, env_id, end, colour):
    """Draw the published curves of an algorithm."""
    curves = published_curves(name, env_id)
    for place, curve in enumerate(curves):
        steps, returns = curve.steps, curve.returns
        last = min(end, steps[-1])
        shown = steps < last
        if not any((steps > 0) & (steps <= end)):
            continue
        axes.plot(
            [*steps[shown], last],
            [*returns[shown], np.interp(last, steps, returns)],
            color=colour,
            ls=DASHES[place % len(DASHES)],
            lw=1.2,
            label=curve.name,
            zorder=1,
        )


@cache
def published_curves(name, env_id):
    """Return the published curves of an algorithm that may be compared with an environment."""
    points = defaultdict(list)
    for row in table_of("reference_curves.csv"):
        if row["algorithm"] == name and comparable(env_id, row["env_id"]):
            words = f"{name.upper()}, {row['implementation']}"
            if row["protocol"] == "training":
                words += ", training"
            words += f" ({row['env_id'].split('-')[-1]})"
            points[words].append((float(row["step"]), float(row["return"])))
    return [Curve(words, *np.transpose(found)) for words, found in points.items()]


# --- main -----------------------------------------------------------------------------------------
def results(folders):
    """Return the rows of run folders and what kept them apart; exit with 2 if none is a run."""
    runs = read_all(folders, read_run, "not counted").values()
    return rows_of(runs)


def committed_runs(root):
    """Return the run folders in results/ that the pages show, by script."""
    return {script: sorted((root / "results" / script).glob("*/*")) for script in SCRIPTS}


def page_of(script):
    """Return the path of the page about a script."""
    return f"docs/{algorithm(script)}.md"


def between_marks(page, text):
    """Return a page with a new text between its marks."""
    first, last = MARKS
    before, rest = page.split(first)
    _, after = rest.split(last, 1)  # a page may have tables of other programs
    return before + first + text + last + after


def pages(root):
    """Return the pages whose tables are made from results/, by path, and all rows."""
    found = {}
    all_rows = []
    for script, folders in committed_runs(root).items():
        text = "\nNo run has been committed yet.\n"
        if folders:
            rows, apart = results(folders)
            all_rows += rows
            text = scores(rows, markdown, by_seed=False) + remarks(rows, apart) + "\n"
            for env_id in dict.fromkeys(row.env_id for row in rows):
                name = f"Learning curves on {env_id}"
                text += f"![{name}](../results/plots/{safe(env_id)}.png)\n"
        found[page_of(script)] = text
    found["README.md"] = short_table(all_rows)
    for path, text in found.items():
        found[path] = between_marks((root / path).read_text("utf-8"), text)
    return found, all_rows


def short_table(rows):
    """Return README's table: what has been trained with several seeds, beside what is published."""
    labels = []
    lines = []
    for row in rows:
        if len(row.scores) < 2:
            continue  # an anecdote
        name = f"[`{row.script}`]({page_of(row.script)})"
        if row.label:
            labels.append(row.label)
            name += f" ({len(labels)})"
        lines.append(
            {
                "script": name,
                "task": row.env_id,
                "steps": f"{row.steps:,}, short" if row.is_short else f"{row.steps:,}",
                "ours": f"{estimate(mean, row.scores)}, {len(row.scores)} seeds",
                "published": cite(row, row.evaluations),
            }
        )
    text = markdown(lines) if lines else ""
    for place, label in enumerate(labels, 1):
        text += f"\n({place}) `{label}`\n"
    return text


def front_rows(rows):
    """Return the rows of README's figure: for each task and script the longest runs."""
    found = {}
    for row in sorted(rows, key=lambda row: row.steps):
        if row.env_id in FRONT and row.script in FRONT_SCRIPTS and len(row.scores) > 1:
            found[row.env_id, row.script] = row
    return found


def draw_front(rows, path):
    """Draw README's figure: a panel for each task and script, published curves in grey."""
    from matplotlib.figure import Figure  # tables do not need it
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots(len(FRONT), len(FRONT_SCRIPTS), squeeze=False)
    shown = front_rows(rows)
    for line, env_id in zip(axes, FRONT, strict=True):
        for one, script in zip(line, FRONT_SCRIPTS, strict=True):
            if (env_id, script) in shown:
                draw_front_panel(one, shown[env_id, script])
            else:
                one.remove()
    for one in axes[-1]:
        one.set_xlabel("environment steps", fontsize=9)
    figure.supylabel("return of evaluations", fontsize=9)
    handles = [
        Line2D([], [], color=COLOURS[0], lw=2.2, label=label_of_front(shown.values())),
        Line2D([], [], color=GREY, lw=1.2, ls="--", label="published implementations"),
    ]
    figure.legend(handles=handles, loc="outside lower center", fontsize=10, frameon=False, ncols=2)
    figure.savefig(path, dpi=200, metadata={"Software": None})  # no version: the same bytes again


def label_of_front(rows):
    """Return what the thick lines of README's figure and the bands around them are."""
    words = {words_of_seeds(finished_seeds(row)) for row in rows}
    return f"these scripts: {'; '.join(sorted(words, reverse=True))}"


def draw_front_panel(axes, row):
    """Draw a row and the published curves of its algorithm."""
    draw_row(axes, row, row.name, COLOURS[0])
    draw_published(axes, algorithm(row.script), row.env_id, row.steps, GREY)
    axes.set_title(f"{algorithm(row.script).upper()}, {row.env_id}", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.set_xlim(0, row.steps)
    axes.locator_params(axis="both", nbins=4)
    axes.xaxis.set_major_formatter(steps_word)
    axes.grid(color="0.92", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def write_pages(root):
    """Write the pages and figures of the committed runs; return the figures' paths."""
    found, rows = pages(root)
    for path, text in found.items():
        (root / path).write_text(text, "utf-8")
    folder = root / "results" / "plots"
    paths = plot(rows, folder)
    draw_front(rows, folder / "front.png")
    return [*paths, folder / "front.png"]


def main():
    """Print the tables of the runs given, or write those of README and docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="*", help="run folders, folders of runs, or patterns such as 'runs/*'"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write learning curves as PNG")
    parser.add_argument("--markdown", action="store_true", help="print Markdown on a terminal, too")
    parser.add_argument(
        "--readme", action="store_true", help="write README's and docs' results, and plots"
    )
    args = parser.parse_args()
    if not (args.readme or args.folders):
        parser.error("name run folders, or --readme")
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that lack a letter
    if args.readme:
        for path in write_pages(HERE.parent):
            say(path)
        return
    table = fitted if sys.stdout.isatty() and not args.markdown else markdown
    rows, apart = results(find_runs(args.folders))
    text = scores(rows, table) + prose(remarks(rows, apart), table) + details(rows, table)
    say(text.strip())
    if args.plots:
        try:
            paths = plot(rows, args.plots)
        except OSError as error:
            refuse(f"--plots cannot write ({error}): name another folder")
        for path in paths:
            say(f"\n{path}")


if __name__ == "__main__":
    main()
