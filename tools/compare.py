"""Say what changed between two groups of runs, and whether the scores differ by more than chance.

python tools/compare.py runs/old runs/new             two runs, folders of runs, or quoted patterns
python tools/compare.py 'runs/a/*' 'runs/b/*' --journal    and write the outcome into JOURNAL.md
python tools/compare.py runs/short runs/long --until 300000    runs of different lengths
python tools/compare.py --table runs                  all runs in a table for each script

A is the baseline. First comes what changed: settings, code, versions of packages, the device. What
cannot act on a score does not count: comments, docstrings, the order of functions, names, notes,
videos. A new function counts with the code that calls it, a new setting at its default with the
code that reads it; another algorithm counts as a whole. One change gets a verdict. Two or more are
CONFOUNDED: no verdict, exit code 2, and the commands of the runs that would settle it. Changed code
is one change for each function; --bundle "n-step returns" declares that all of it is one idea.

The score of a run is the mean return over the last tenth of its evaluations; runs of one seed count
once, as their mean. B - A is the difference of IQMs, with a 95 % percentile interval of 20,000
bootstrap samples. P(B > A) is the probability that a run of B beats one of A. p is that of a
permutation test of P(B > A), of Mann and Whitney: of all ways to share out the runs, or of 20,000
where there are more. Several tasks are pooled as means over tasks, their differences in standard
deviations of all runs of a task, permuted and drawn within tasks. Holm's method corrects the p of a
table. B is called higher or lower only where the interval excludes 0 and p is at most 0.05, from 4
seeds a side on; on one of several tasks alone, only where so few seeds could decide at all, which
takes 5, or 6 from 7 tasks on. Between groups drawn from the same runs it was in 3.8 % of cases with
5 seeds a side, in 4.2 % with 10, at most (results/aa.md). The mean over the whole curve stands
beside the end and is not judged: two looks are two chances to be wrong.

Seeds need not be the same, as runs are not paired, but you are told. All runs of a side must have
the same settings, and both sides the same number of steps: a run that was planned for more steps is
another one from its start where anything is annealed. Where nothing is, --until 300000 reads runs
of any length as if they had been planned for 300,000 steps; there is a verdict if their scores are
means over the same steps. A run that failed counts with what it had reached. While runs are living,
interrupted or killed there is no verdict, since who looks twice has two chances; the numbers shown
are those at the last step that all have reached.

A terminal gets tables that fit its width; files and other programs get Markdown, and so do you with
--markdown. Exit code 0, or 2 for CONFOUNDED and for bad input.
"""

import argparse
import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from changes import (
    Change,
    Record,
    Task,
    difference,
    differs_in_script,
    fields_of,
    has_setting,
    hash_of,
    is_default,
    names_of_settings,
    read_record,
    setting,
    show,
)
from lengths import cut_both, or_until, other_steps, remarks_on_lengths
from run_folders import NO_RUN, ROOT, find_runs, flag, iqm, refuse, say, strength, why_no_run
from text_tables import fits_in_columns, fitted, markdown, number, prose, turned

try:
    from evidence import (
        HIGHER,
        LEAST,
        LOWER,
        NO_DIFFERENCE,
        TOO_FEW,
        UNFINISHED,
        Line,
        Pair,
        Scores,
        common_end,
        judged,
        least_score,
        lines_of,
        runs_until,
        scores_of,
        seeds_for_each,
        with_unscored,
    )
except ImportError as error:
    refuse(f"{error.name} is missing: pip install -r requirements.txt")

CLAIM = 10  # seeds a side for a claim
SMALL = 0.1  # an effect below this share of A needs MANY seeds a side
MANY = 20
MOST_CHANGES = 4  # for which the runs that would settle it are written out
TASK_COLUMNS: dict[str, Callable[[Record], str]] = {
    "environment": lambda record: record.run.env_id,
    "steps": lambda record: f"{record.run.steps:,}",
}

NOTES = """
Each side shows IQMs over seeds, the mean below 4: end is the mean return over the last tenth of the
evaluations, whole curve that over all of them. A run has failed if its summary says so, or if it
learned less than a tenth of what the better side did since the evaluation at step 0. P(B > A) is
the probability that a run of B beats one of A. All tasks, in sd: the mean over tasks, each in
standard deviations of all its runs.
"""
NOTES_ON_RUNS = """
The baseline of a task are the runs with the fewest settings of their own; changes are counted from
it. The IQM over seeds is the mean below 4. A run has failed if its summary says so, or if it
learned less than a tenth of what the best runs of its task did since the evaluation at step 0.
"""


# --- sides ----------------------------------------------------------------------------------------
@dataclass(eq=False)
class Side:
    """A group of runs that differ in their seeds and tasks only."""

    letter: str
    name: str  # as it was given
    tasks: dict[Task, list[Record]]

    @property
    def records(self):
        return [record for records in self.tasks.values() for record in records]

    @property
    def script(self):
        return representative(self.records).run.script


def read_records(names):
    """Return the records of all runs that names stand for; say what else is there."""
    records = []
    reasons = []
    for folder in find_runs(names):
        try:
            records.append(read_record(folder))
        except NO_RUN as error:
            reasons.append(f"{folder} is no run ({why_no_run(error)})")
    if not records:
        refuse(f"{reasons[0]}: name run folders, folders of runs, or quoted patterns")
    for reason in reasons:
        print(f"not counted: {reason}", file=sys.stderr)
    return records


def read_sides(names, until=None):
    """Return both sides, read up to a step if one is given; exit with 2 if one is of two kinds."""
    records = [read_records([name]) for name in names]
    if until:
        records = cut_both(*records, until)
    return [make_side(*side) for side in zip("AB", names, records, strict=True)]


def make_side(letter, name, records):
    """Return a side; exit with 2 if its runs are not of one kind."""
    tasks = defaultdict(list)
    for record in records:
        tasks[record.task].append(record)
    side = Side(letter, name, dict(sorted(tasks.items())))
    check_scripts(side)
    for records in side.tasks.values():
        records.sort(key=lambda record: record.run.seed)
        check_uniform(side, records)
    return side


def check_scripts(side):
    """Exit with 2 if a side holds runs of several scripts."""
    first = representative(side.records)
    for other in side.records:
        if differs_in_script(first, other):
            names = f"{first.run.script} and {other.run.script}"
            refuse(f"{side.letter} holds runs of several scripts, {names}: name those of one")


def check_uniform(side, records):
    """Exit with 2 if runs of one task differ in anything that counts."""
    first = representative(records)
    for other in records:
        changes = difference(first, other).changes
        if changes:
            words = "; ".join(map(str, changes))
            where = f"{first.folder} and {other.folder}"
            refuse(
                f"the runs of {side.letter} are not alike: between {where} differs {words}: "
                f"name runs of one kind, which --table {shlex.quote(side.name)} lists"
            )


def representative(records):
    """Return a record that stands for all of a task, with versions if any has them."""
    return next((record for record in records if record.versions), records[0])


# --- what changed ---------------------------------------------------------------------------------
class Cause(NamedTuple):
    """What counts as one change: a single one, or all those of the code that are one idea."""

    name: str
    changes: list[Change]


@dataclass(eq=False)
class Comparison:
    """Two sides, and all in which they differ."""

    a: Side
    b: Side
    tasks: list[Task]  # that both have
    by_task: dict[tuple, dict[Task, Change]]  # by kind and name
    causes: list[Cause]
    remarks: list[str]
    until: int | None  # the step up to which runs are read

    @property
    def is_confounded(self):
        return len(self.causes) > 1

    @property
    def is_complete(self):
        """Whether source and versions of both sides are known."""
        shown = [
            representative(side.tasks[task]) for side in (self.a, self.b) for task in self.tasks
        ]
        return all(record.source and record.versions for record in shown)

    @property
    def names(self):
        """The names of all causes, in words."""
        return ", ".join(cause.name for cause in self.causes)

    def records_on(self, task):
        """Return the records of both sides on a task."""
        return [*self.a.tasks[task], *self.b.tasks[task]]

    def title(self, task):
        """Return by what a task is called in tables."""
        alike = [other for other in self.tasks if other.env_id == task.env_id]
        return task.env_id if len(alike) == 1 else str(task)


def compare(a, b, bundle, until=None):
    """Return the comparison of two sides; exit with 2 if they share runs or no task."""
    check_apart(a, b)
    tasks = [task for task in a.tasks if task in b.tasks]
    if not tasks:
        words = f"A has {tasks_of(a)}; B has {tasks_of(b)}"
        remedy = f"name runs of one environment and length{or_until(a.records, b.records)}"
        refuse(f"A and B have no task in common ({words}): {remedy}")
    changes = defaultdict(dict)
    remarks = []
    for task in tasks:
        found = difference(representative(a.tasks[task]), representative(b.tasks[task]))
        for change in found.changes:
            changes[change.kind, change.name][task] = change
        remarks += found.remarks
    for by_task in changes.values():
        if len(by_task) < len(tasks) or len(set(map(str, by_task.values()))) > 1:
            words = "; ".join(f"{change} on {task}" for task, change in by_task.items())
            remarks.append(f"Not the same on all tasks: {words}.")
    remarks += remarks_on_lengths((a, b), until)
    remarks += remarks_on_runs(a, b, tasks)
    merged = [next(iter(by_task.values())) for by_task in changes.values()]
    causes = causes_of(merged, bundle)
    return Comparison(a, b, tasks, dict(changes), causes, list(dict.fromkeys(remarks)), until)


def check_apart(a, b):
    """Exit with 2 if a run is on both sides."""
    folders = {record.folder.resolve() for record in a.records}
    shared = [record.folder for record in b.records if record.folder.resolve() in folders]
    if shared:
        refuse(f"{shared[0]} is in A and in B: name it once")


def causes_of(changes, bundle):
    """Return the causes: each change, or all changes of the code as the one that bundle names."""
    code = [change for change in changes if change.kind == "code"]
    if bundle and code:
        others = [change for change in changes if change.kind != "code"]
        return [*(Cause(change.name, [change]) for change in others), Cause(bundle, code)]
    return [Cause(change.name, [change]) for change in changes]


def tasks_of(side):
    """Write the tasks of a side."""
    return "; ".join(map(str, side.tasks))


def remarks_on_runs(a, b, tasks):
    """Return sentences on tasks of one side only, on seeds, and on runs that did not finish."""
    remarks = []
    for side, other in ((a, b), (b, a)):
        for task in side.tasks:
            if task not in other.tasks:
                remarks.append(f"Only {side.letter} has {task}: left out.")
    for task in tasks:
        remarks += remarks_on_seeds(a, b, task)
        for side in (a, b):
            remarks += remarks_on_states(side, task)
    return remarks


def remarks_on_seeds(a, b, task):
    """Return sentences on seeds that are not the same, for tuning, or repeated."""
    remarks = []
    seeds = {side: [record.run.seed for record in side.tasks[task]] for side in (a, b)}
    if {*seeds[a]} != {*seeds[b]}:
        words = " and ".join(f"{list_of(seeds[side])} of {side.letter}" for side in (a, b))
        remarks.append(f"Seeds differ on {task}: {words}. Choose none after a look at its score.")
    if len({seed > 100 for side in (a, b) for seed in seeds[side]}) > 1:
        remarks.append(f"Seeds up to 100, for tuning, are mixed with later ones on {task}.")
    for side in (a, b):
        if len(seeds[side]) > len({*seeds[side]}):
            remarks.append(
                f"Runs of one seed of {side.letter} count once, as their mean, on {task}."
            )
    return remarks


def remarks_on_states(side, task):
    """Return a sentence for each run of a side that did not finish, or was never evaluated."""
    remarks = []
    for record in side.tasks[task]:
        run = record.run
        where = f"{record.folder} of {side.letter}"
        if not run.evaluations:
            fate = "a failure without a score" if run.state == "failed" else "left out"
            remarks.append(f"{where} ({run.state}) has no evaluation: {fate}.")
        elif run.state != "finished":
            remarks.append(f"{where}: {run.state}, {run.step:,} of {run.steps:,} steps.")
    return remarks


def list_of(seeds):
    """Write seeds: 1, 2, 5 to 9."""
    spans = []
    for seed in sorted({*seeds}):
        if spans and spans[-1][1] == seed - 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    words = []
    for first, last in spans:
        words += [str(first)] if first == last else [f"{first} to {last}"]
    return ", ".join(words)


# --- verdicts -------------------------------------------------------------------------------------
def scores_on(comparison, task):
    """Return the scores of A and of B on a task; exit with 2 if a side has none."""
    sides = comparison.a, comparison.b
    end = end_on(comparison, task)
    groups = [runs_until(side.tasks[task], end) for side in sides]
    for side, runs in zip(sides, groups, strict=True):
        if not runs:
            remedy = "train without --eval-every 0"
            if comparison.until:
                remedy = "name a later step, or " + remedy
            refuse(f"{side.letter} has no evaluations on {task}: {remedy}")
    least = least_score(groups) if math.isinf(end) else -math.inf  # too early to call it failed
    return [
        with_unscored(scores_of(runs, least), side.tasks[task])
        for side, runs in zip(sides, groups, strict=True)
    ]


def end_on(comparison, task):
    """Return the last step that all runs on a task have reached; infinity if all have ended."""
    return common_end(comparison.records_on(task))


class Report(NamedTuple):
    """What is said of a comparison; of a confounded one no scores, unless they were asked for."""

    verdict: str
    scores: dict[str, list[Scores]]  # by task, of A and of B
    lines: list[Line]
    is_judged: bool


def report_on(comparison, describe_only):
    """Return the report on a comparison."""
    verdict = ""
    if comparison.is_confounded:
        verdict = f"CONFOUNDED: {comparison.names}. No verdict, as each of them can be the cause."
        if not describe_only:
            return Report(verdict, {}, [], is_judged=False)
    scores = {comparison.title(task): scores_on(comparison, task) for task in comparison.tasks}
    ends = {task: Pair(a.ends, b.ends) for task, (a, b) in scores.items()}
    curves = {task: Pair(a.curves, b.curves) for task, (a, b) in scores.items()}
    lines = lines_of(ends, curves)
    sides = comparison.a, comparison.b
    unfinished = any(has_unfinished(side, comparison.tasks) for side in sides)
    if describe_only:
        verdict += " Described only: the numbers below say nothing of causes."
        if unfinished:
            verdict += f" {no_verdict_yet(comparison)}"
        return Report(verdict.strip(), scores, lines, is_judged=False)
    if unfinished:
        return Report(no_verdict_yet(comparison), scores, lines, is_judged=False)
    if apart := over_other_steps(comparison):
        return Report(f"No verdict: {apart}", scores, lines, is_judged=False)
    return Report(verdict_on(scores, lines), scores, lines, is_judged=True)


def verdict_on(scores, lines):
    """Return the verdict in a line."""
    *tasks, main = judged(lines)
    if main.verdict == TOO_FEW:
        text = too_few(scores)
    else:
        text = f"Verdict: {main.verdict}. {evidence_for(main)} {strength_of(scores)}{caution(main)}"
        text += not_judged_alone(tasks)
    for line in tasks:
        if line.verdict in (HIGHER, LOWER) and line.verdict != main.verdict:
            text += f" On {line.task} alone {line.verdict}."
    return text


def evidence_for(line):
    """Write the numbers that a verdict rests on."""
    one = line.estimate
    where = ""
    if len(line.pairs) > 1:
        where = f" over {len(line.pairs)} tasks, in standard deviations"
    numbers = f"B - A is {with_interval(one)}{where}"
    return f"{numbers}, p {p_text(line.p)}, P(B > A) {one.chance:.2f}."


def has_unfinished(side, tasks):
    """Tell whether a run of a side can still go on."""
    return any(record.run.state in UNFINISHED for task in tasks for record in side.tasks[task])


def no_verdict_yet(comparison):
    """Say that runs can still go on, and up to which steps scores are those of all runs."""
    ends = {task: end_on(comparison, task) for task in comparison.tasks}
    cut = [f"step {end:,} on {task}" for task, end in ends.items() if not math.isinf(end)]
    where = f"; the numbers are those up to {' and '.join(cut)}" if cut else ""
    return f"No verdict yet, as not all runs have ended{where}."


def over_other_steps(comparison):
    """Say where scores of runs that were cut are means over other steps; nothing if nowhere."""
    if not comparison.until:
        return ""
    for task in comparison.tasks:
        if apart := other_steps(comparison.records_on(task), comparison.until):
            remedy = "name another step, or train with the same --eval-every"
            return f"on {task}, scores are means over other steps, {apart}: {remedy}."
    return ""


def too_few(scores):
    """Say how many seeds are there, how many would do, and what may be said all the same."""
    task, pair = min(scores.items(), key=lambda item: min(len(one.ends) for one in item[1]))
    counts = seeds_of(pair)
    where = f" on {task}" if len(scores) > 1 else ""
    text = f"No verdict: too few seeds. A has {counts['A']} and B has {counts['B']}{where}; "
    text += f"a verdict takes {LEAST} a side ({seeds_to_add(scores, LEAST)}), "
    text += f"a claim {CLAIM} ({seeds_to_add(scores, CLAIM)}). "
    if len(scores) > 1:
        each = seeds_for_each(len(scores))
        text += f"{LEAST} on every task allow a verdict on all together, {each} one on each. "
    return text + "The numbers below describe these runs, and do not say what other seeds would do."


def seeds_of(pair):
    """Return the number of seeds of each side, by its letter."""
    return dict(zip("AB", [len(one.ends) for one in pair], strict=True))


def seeds_to_add(scores, needed):
    """Write how many seeds the sides lack, on which tasks."""
    lacking = {}
    for task, pair in scores.items():
        counts = seeds_of(pair).items()
        words = [f"{needed - n} more of {side}" for side, n in counts if n < needed]
        if words:
            lacking[task] = " and ".join(words)
    if len(scores) == 1:
        return lacking.get(task, "none")
    if len(lacking) == len(scores) and len({*lacking.values()}) == 1:
        return f"{lacking[task]} on each task"
    return "; ".join(f"{words} on {task}" for task, words in lacking.items())


def not_judged_alone(tasks):
    """Return a sentence on tasks that have too few seeds to be judged one by one, if there are."""
    names = [line.task for line in tasks if line.verdict == TOO_FEW]
    if not names:
        return ""
    whose = "no task is" if len(names) == len(tasks) else f"{' and '.join(names)} cannot be"
    return (
        f" This is said of all tasks together: {whose} judged alone, "
        f"which takes {seeds_for_each(len(tasks))} seeds a side on each."
    )


def strength_of(scores):
    """Say what the number of seeds allows, by the task and side that have the fewest."""
    counts = [len(one.ends) for pair in scores.values() for one in pair]
    least = min(counts)
    seeds = f"{least} seeds a side" if least == max(counts) else f"As few as {least} seeds a side"
    words = {
        "claim": "allow a claim",
        "exploratory": "are exploratory",
        "smoke": "are a smoke test",
    }
    return f"{seeds} {words[strength(least)]}."


def caution(line):
    """Return a sentence if a difference is smaller than its number of seeds can show well."""
    if line.verdict == NO_DIFFERENCE or len(line.pairs) > 1:
        return ""
    (pair,) = line.pairs
    small = abs(line.estimate.difference) < SMALL * abs(iqm(pair.a))
    if small and min(map(len, pair)) < MANY:
        return f" Effects below {100 * SMALL:g} % need {MANY} seeds a side."
    return ""


# --- text -----------------------------------------------------------------------------------------
def signed(value):
    """Write a difference."""
    return f"+{number(value)}" if value > 0 else number(value)


def with_interval(one):
    """Write an estimate with its interval, if it has one."""
    if math.isnan(one.low):
        return signed(one.difference)
    return f"{signed(one.difference)} [{signed(one.low)}, {signed(one.high)}]"


def p_text(p):
    """Write a p value."""
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def heading(comparison):
    """Return what the sides are, what changed, and remarks."""
    text = ""
    for side in (comparison.a, comparison.b):
        text += f"- {side.letter}: {count_of(side.records)} of {side.script} in {side.name}\n"
    text += f"- Tasks: {'; '.join(map(str, comparison.tasks))}\n"
    text += f"\n{changes_in_words(comparison)}\n\n"
    for cause in comparison.causes:
        for change in cause.changes:
            text += f"- {change.kind}: {change}\n"
    for remark in comparison.remarks:
        text += f"- {remark}\n"
    return text.rstrip("\n") + "\n"


def count_of(records):
    """Write a number of runs."""
    return f"{len(records)} {'run' if len(records) == 1 else 'runs'}"


def changes_in_words(comparison):
    """Say how many changes count, and what that means."""
    count = len(comparison.causes)
    known = "" if comparison.is_complete else ", as far as these folders tell"
    if count == 0:
        return f"Nothing that counts has changed{known}: this is A/A, and what differs is noise."
    if count > 1:
        return f"{count} changes count."
    (cause,) = comparison.causes
    if cause.changes[0].kind == "script":
        return f"1 change counts{known}: another algorithm as a whole, no part of it."
    if cause.name != cause.changes[0].name:
        return f'1 change counts{known}: "{cause.name}", which you declare to be one idea.'
    return f"1 change counts{known}: what differs is due to it, or to chance."


def table_of_sides(scores):
    """Return the lines of the table of scores."""
    lines = []
    for task, pair in scores.items():
        for letter, one in zip("AB", pair, strict=True):
            lines.append(
                {
                    "task": str(task),
                    "side": letter,
                    "seeds": f"{len(one.ends)}, {strength(len(one.ends))}",
                    "end": number(iqm(one.ends)),
                    "lowest": number(one.ends.min()),
                    "highest": number(one.ends.max()),
                    "whole curve": number(iqm(one.curves)),
                    "failed": f"{one.failed} of {one.runs}",
                }
            )
    return lines


def table_of_differences(report):
    """Return the lines of the table of differences."""
    cells = []
    for line in report.lines:
        row = {
            "task": line.task,
            "measured at": line.measure,
            "B - A": with_interval(line.estimate),
            "P(B > A)": f"{line.estimate.chance:.2f}",
        }
        if report.is_judged:
            row["p"] = "" if math.isnan(line.p) else p_text(line.p)
            row["verdict"] = line.verdict if line.measure == "end" else "not judged"
        cells.append(row)
    return cells


# --- the runs that would settle it ----------------------------------------------------------------
def slug(text):
    """Return a text as a name of a folder."""
    letters = [letter if letter.isalnum() else " " for letter in text.lower()]
    return "-".join("".join(letters).split())


@dataclass(eq=False)
class Variant:
    """Runs that are still to be trained: a side, with changes as the other side has them."""

    title: str
    base: Side
    donor: Side
    changes: list[Change]
    folder: str  # where the runs go

    @property
    def script(self):
        """What trains the base: a name in this checkout, or the path of a run's own copy."""
        return script_of(self.base)


def remedies(comparison):
    """Return the commands of runs that differ in one cause only, from A and from B."""
    texts = {}  # of causes that can be taken alone
    lost = defaultdict(list)  # what cannot be trained, by the reason
    for cause in comparison.causes:
        for variant, sides in variants_of(comparison, cause):
            reason = obstacle(comparison, variant)
            if reason:
                lost[reason].append(variant.title)
            else:
                text = training_of(comparison, variant, sides)
                texts[cause.name] = texts.get(cause.name, "") + text
    text = ""
    if texts:
        text = "These runs would settle it, each one change away from A, or from B:\n"
        text += "".join([*texts.values()][:MOST_CHANGES])
    rest = [*texts][MOST_CHANGES:]
    if rest:
        text += f"\nAnd in the same way for {', '.join(rest)}.\n"
    for reason, titles in lost.items():
        text += f"\nCannot be trained, as {reason}: {'; '.join(titles)}.\n"
    return text


def variants_of(comparison, cause):
    """Return pairs: the variants with and without a cause, and the sides to compare of each."""
    a, b = comparison.a, comparison.b
    variant = variant_of(comparison, a, cause)
    sides = [(a.name, variant.folder)]
    if len(comparison.causes) == 2:
        sides.append((variant.folder, b.name))
    found = [(variant, sides)]
    if not is_spared(comparison, cause):
        variant = variant_of(comparison, b, cause)
        found.append((variant, [(variant.folder, b.name)]))
    return found


def is_spared(comparison, cause):
    """Tell whether B without a cause is A with the only other one, which can be trained."""
    others = [one for one in comparison.causes if one is not cause]
    if len(others) > 1:
        return False
    return not obstacle(comparison, variant_of(comparison, comparison.a, others[0]))


def variant_of(comparison, side, cause):
    """Return what a side is with one cause as it is on the other side."""
    name = cause.name
    if side is comparison.a:
        other, title, folder = comparison.b, f"A with only {name} of B", f"runs/only-{slug(name)}"
    else:
        other, title, folder = comparison.a, f"B without {name}", f"runs/without-{slug(name)}"
    if cause.changes[0].kind == "script":  # the other script, and all else as it is here
        others = [one for one in comparison.causes if one is not cause]
        changes = [change for one in others for change in one.changes]
        return Variant(title, other, side, changes, folder)
    return Variant(title, side, other, cause.changes, folder)


def training_of(comparison, variant, sides):
    """Return how to train a variant and what to compare it with."""
    text = f"\n{variant.title}:\n\n{runs_with(comparison, variant)}"
    return text + "".join(comparing(comparison, one, other) for one, other in sides)


def comparing(comparison, one, other):
    """Return the command that compares two sides."""
    until = f" --until {comparison.until}" if comparison.until else ""
    return f"    python tools/compare.py {shlex.quote(one)} {shlex.quote(other)}{until}\n"


def obstacle(comparison, variant):
    """Say why a variant cannot be trained; return nothing if it can."""
    script = variant.script.removesuffix(".py") + ".py"
    source = source_of(variant.base)
    if source is None:
        return f"{script} is not here and the runs have no script.py"
    names = {change.name for change in variant.changes if change.kind in ("setting", "device")}
    for task in tasks_to_train(comparison, variant):
        names |= {*variant.base.tasks[task][0].run.config}  # which --config hands on
    known = fields_of(source)
    lacking = sorted(name for name in names if known and name not in known)
    if not lacking:
        return ""
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in lacking)
    return f"{script} has no {flags}"


def tasks_to_train(comparison, variant):
    """Return the tasks on which a variant is not what its base is."""
    by_task = [comparison.by_task[change.kind, change.name] for change in variant.changes]
    return [task for task in comparison.tasks if any(task in where for where in by_task)]


def runs_with(comparison, variant):
    """Return the commands that train a variant."""
    base, donor = variant.base, variant.donor
    code = [change.name for change in variant.changes if change.kind == "code"]
    script = variant.script
    needed = tasks_to_train(comparison, variant)
    spared = [str(task) for task in comparison.tasks if task not in needed]
    text = ""
    if spared:
        where = "; ".join(spared)
        text += f"Nothing has to be trained on {where}, where the runs of {base.letter} serve.\n\n"
    if code or len(str(script).split()) > 1:  # benchmark.sh takes no names with spaces
        own = shlex.quote(str(base.records[0].folder / "script.py"))
        script = f"mine/{slug(Path(variant.folder).name)}.py"
        text += f"    mkdir -p mine && cp {own} {script}\n"
    if code:
        there = donor.records[0].folder / "script.py"
        text += f"    # make these in {script} as they are in {there}: {', '.join(code)}\n"
    for change in variant.changes:
        if change.kind == "versions":
            wanted = of_side(change, donor)
            words = ", ".join(f"{name} {version}" for name, version in wanted.items())
            text += f"    # in an environment with {words}\n"
    alike = defaultdict(list)  # tasks that take the same seeds and flags
    for task in needed:
        seeds = tuple(sorted({record.run.seed for record in base.tasks[task]}))
        flags = ("--total-timesteps", str(task.steps), *flags_of(comparison, variant, task))
        alike[seeds, flags].append(task)
    for (seeds, flags), tasks in alike.items():
        text += sweep(base, tasks, script, variant.folder, seeds, flags)
    return text


def of_side(change, side):
    """Return what a side has where a change is."""
    return change.before if side.letter == "A" else change.after


def flags_of(comparison, variant, task):
    """Return the flags that give a run on a task what the donor has there."""
    flags = []
    for change in variant.changes:
        here = comparison.by_task[change.kind, change.name].get(task)
        if here and change.kind in ("setting", "device"):
            value = of_side(here, variant.donor)
            if not has_setting(variant.donor.tasks[task][0], change.name):
                value = variant.base.tasks[task][0].run.defaults.get(change.name, value)
            flags.append(flag(change.name, value))
    return flags


def script_of(side):
    """Return the script of a side: its name if it is as in this checkout, else a run's own copy."""
    here = ROOT / f"{side.script}.py"
    record = side.records[0]
    if not record.source:
        return side.script
    if here.exists() and hash_of(here.read_bytes()) == hash_of(record.source):
        return side.script
    return str(record.folder / "script.py")


def source_of(side):
    """Return the source of the script that trains a side; None if there is none."""
    record = side.records[0]
    here = ROOT / f"{side.script}.py"
    if record.source:
        return record.source
    return here.read_bytes() if here.exists() else None


def sweep(base, tasks, script, folder, seeds, flags):
    """Return the command that trains a script on tasks as a side was trained, with other flags."""
    environments = " ".join(task.env_id for task in tasks)
    text = f'    SCRIPTS={script} ENVS="{environments}" SEEDS="{" ".join(map(str, seeds))}" '
    text += f'OUT={folder} \\\n        CONFIGS="'
    files = [f"* {task.env_id} {base.tasks[task][0].folder}/config.toml" for task in tasks]
    text += "\n        ".join(files)
    return f'{text}" \\\n        ./benchmark.sh {" ".join(flags)}\n'


# --- journal --------------------------------------------------------------------------------------
def journal_entry(comparison, report):
    """Return an entry: date, question, change, runs and outcome; no claim that is not measured."""
    notes = [str(setting(record, "notes") or "").strip() for record in comparison.b.records]
    question = "; ".join(dict.fromkeys(note for note in notes if note)) or "none noted (--notes)"
    changes = [str(change) for cause in comparison.causes for change in cause.changes]
    text = f"\n## {time.strftime('%Y-%m-%d')}: {comparison.names or 'A/A'}\n\n"
    text += f"- Question: {' '.join(question.split())}\n"
    text += f"- Changed: {', '.join(changes) or 'nothing that counts'}\n"
    for side in (comparison.a, comparison.b):
        seeds = list_of([record.run.seed for record in side.records])
        text += f"- {side.letter}: `{side.name}`, {count_of(side.records)} of {side.script}, "
        text += f"seeds {seeds}; {tasks_of(side)}\n"
    text += f"- Outcome: {report.verdict.removeprefix('Verdict: ')}\n"
    for remark in comparison.remarks:
        text += f"- {remark}\n"
    return text + (markdown(table_of_differences(report)) if report.lines else "")


def add_to_journal(path, entry):
    """Append an entry unless it is there already, and return what was done, in a sentence.

    Exit with 2 if it cannot be written.
    """
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        there = [without_date(one) + "\n" for one in text.split("\n## ")]
        if any(one.startswith(without_date(entry) + "\n") for one in there):  # with a thought below
            return f"Already in {path}: nothing was written."
        with open(path, "a", encoding="utf-8") as file:
            file.write(entry if text else f"# Journal\n{entry}")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        refuse(f"--journal cannot write to {path} ({reason}): name another file")
    return f"Written to {path}."


def without_date(entry):
    """Return an entry after its date: what was compared on two days is one comparison."""
    return entry.partition(": ")[2].rstrip()


# --- all runs in tables ---------------------------------------------------------------------------
def grouped(records):
    """Sort records of a script into lists of one task that differ in nothing that counts."""
    groups = []
    for record in sorted(records, key=lambda one: (one.task, one.run.seed)):
        for group in groups:
            if group[0].task == record.task and not difference(group[0], record).changes:
                group.append(record)
                break
        else:
            groups.append([record])
    return groups


def columns_of(records):
    """Return the titles of all columns that could differ, each with a function of a record.

    A setting that some scripts have at its default, and others do not have, is none.
    """
    columns = dict(TASK_COLUMNS)
    for name in [*names_of_settings(*records), "device"]:
        owners = [record for record in records if has_setting(record, name)]
        if len(owners) < len(records) and all(is_default(owner, name) for owner in owners):
            continue
        columns[name] = lambda record, name=name: show(setting(record, name))
    columns["code"] = lambda record: hash_of(record.source)
    for name in dict.fromkeys(name for record in records for name in record.versions):
        columns[name] = lambda record, name=name: record.versions.get(name, "unknown")
    return columns


class Group(NamedTuple):
    """Runs of one task that differ in nothing that counts, and what they differ in from others."""

    records: list[Record]
    changes: list[Change]  # from the baseline
    is_baseline: bool
    least: float  # the score below which a run has learned next to nothing

    @property
    def shown(self):
        return representative(self.records)


def tables_of_runs(records, table):
    """Return a table of all runs for each script, equal ones in one line, with what differs."""
    scripts = defaultdict(list)
    for record in records:
        scripts[record.run.script].append(record)
    text = ""
    for _, group in sorted(scripts.items()):
        text += tables_of_script(groups_of(group), table)
    return text + prose(NOTES_ON_RUNS, table)


def tables_of_script(groups, table):
    """Return the table of a script's runs, or one for each task if it would be too wide."""
    lines = table_of_groups(groups)
    if fits_in_columns(lines, table):
        return titled(groups, table, table(lines))
    tasks = defaultdict(list)
    for group in groups:
        tasks[group.shown.task].append(group)
    text = ""
    for rivals in tasks.values():
        if len(rivals) > 1:
            text += table_of_task(rivals, table)
    alone = [group for group in groups if len(tasks[group.shown.task]) == 1]
    return text + (table_of_others(alone, table) if alone else "")


def table_of_others(groups, table):
    """Return the table of tasks on which all runs of a script are alike."""
    lines = []
    for group in groups:
        task = {title: cell(group.shown) for title, cell in TASK_COLUMNS.items()}
        line = task | result_of(group)
        del line["changes"]
        lines.append(line)
    words = f"{groups[0].shown.run.script}, tasks on which all runs are alike"
    return f"{heading_of_table(words, table)}{table(lines)}"


def table_of_task(groups, table):
    """Return the table of a script's runs on a task; of those with many settings a turned one."""
    lines = table_of_groups(groups)
    if fits_in_columns(lines, table):
        return titled(groups, table, table(lines))
    text = ""
    for place, (line, group) in enumerate(zip(lines, groups, strict=True), 1):
        if not group.is_baseline:
            line["changes"] = len(group.changes)
            words = f"Changes of {place}: {', '.join(change.name for change in group.changes)}."
            text += "\n" + prose(words, table) + "\n"
    return titled(groups, table, turned(lines, table) + text)


def titled(groups, table, text):
    """Return a text with a heading: the script, and the task if there is one only."""
    tasks = {group.shown.task for group in groups}
    words = [groups[0].shown.run.script]
    if len(tasks) == 1:
        words.append(str(*tasks))
    return heading_of_table(", ".join(words), table) + text


def heading_of_table(words, table):
    """Return the line above a table."""
    return f"\n### {words}\n" if table is markdown else f"\n{words}\n"


def groups_of(records):
    """Return the groups of a script's runs, on each task the baseline first, then by changes."""
    groups = grouped(records)
    found = []
    for task in dict.fromkeys(group[0].task for group in groups):
        rivals = [group for group in groups if group[0].task == task]
        baseline = min(rivals, key=lambda group: len(settings_of_its_own(group[0])))
        least = least_score([ended_runs(group) for group in rivals])
        own = []
        for group in rivals:
            changes = difference(representative(baseline), representative(group)).changes
            own.append(Group(group, changes, group is baseline, least))
        found += sorted(own, key=lambda group: len(group.changes))
    return found


def table_of_groups(groups):
    """Return the lines of a table of groups of one script, with the columns that differ."""
    shown = [group.shown for group in groups]
    columns = columns_of(shown)
    differing = [title for title, cell in columns.items() if len({cell(one) for one in shown}) > 1]
    lines = []
    for group in groups:
        line = {title: columns[title](group.shown) for title in differing}
        lines.append(line | result_of(group))
    return lines


def result_of(group):
    """Return the cells on the outcome of a group."""
    one = with_unscored(scores_of(ended_runs(group.records), group.least), group.records)
    words = f"{len(group.changes)}: {', '.join(change.name for change in group.changes)}"
    count = len(one.ends)
    seeds = f"{count}, {strength(count)}" if count else "0"
    unfinished = sum(record.run.state in UNFINISHED for record in group.records)
    if unfinished:
        seeds += f", {unfinished} unfinished"
    return {
        "seeds": seeds,
        "IQM": number(iqm(one.ends)) if count else "none",
        "lowest": number(one.ends.min()) if count else "none",
        "failed": f"{one.failed} of {one.runs}",
        "changes": "baseline" if group.is_baseline else words,
    }


def ended_runs(records):
    """Return the runs that have ended and were evaluated."""
    ended = [record for record in records if record.run.state not in UNFINISHED]
    return runs_until(ended, math.inf)


def settings_of_its_own(record):
    """Return the settings of a run that are not the defaults of its script."""
    return [name for name in names_of_settings(record) if not is_default(record, name)]


# --- main -----------------------------------------------------------------------------------------
def parse_arguments():
    """Return what the command line says; exit with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sides", nargs="*", metavar="A B", help="two runs, folders of runs, or quoted patterns"
    )
    parser.add_argument(
        "--bundle", default="", metavar="TEXT", help="declare all changed code to be one idea"
    )
    parser.add_argument("--describe-only", action="store_true", help="print numbers, no verdict")
    parser.add_argument(
        "--until",
        type=step_number,
        metavar="STEP",
        help="read runs of any length up to this step, as if they had been planned for it",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown on a terminal, too")
    parser.add_argument(
        "--table",
        nargs="+",
        metavar="RUNS",
        help="print a table of all runs instead, one for each script",
    )
    parser.add_argument(
        "--journal",
        nargs="?",
        type=Path,
        const=Path("JOURNAL.md"),
        metavar="FILE.md",
        help="append the outcome to FILE.md, by default JOURNAL.md, unless it is there already",
    )
    args = parser.parse_args()
    if args.journal and args.journal.suffix != ".md":
        refuse(
            f"--journal takes a file that ends in .md, not {args.journal}: write it after A and B"
        )
    if args.table and args.sides:
        refuse("--table takes all runs, and no A and B: leave them out")
    if args.table and (args.journal or args.bundle or args.describe_only or args.until):
        flags = "--journal, --bundle, --describe-only and --until"
        refuse(f"--table compares no A and B: leave out {flags}")
    if not args.table and len(args.sides) != 2:
        refuse(f"name two sides, A and B, not {len(args.sides)}: quote patterns such as 'runs/a/*'")
    return args


def step_number(text):
    """Read a step, also one that is written 3e5."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number.is_integer() and number > 0):
        raise argparse.ArgumentTypeError(f"takes a step such as 300000, not {text}")
    return int(number)


def main():
    """Compare two sides, or print the table of all runs."""
    args = parse_arguments()
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that lack a letter
    table = fitted if sys.stdout.isatty() and not args.markdown else markdown
    if args.table:
        say(tables_of_runs(read_records(args.table), table).strip())
        return
    a, b = read_sides(args.sides, args.until)
    comparison = compare(a, b, args.bundle, args.until)
    report = report_on(comparison, args.describe_only)
    written = ""
    if args.journal:  # first of all, since a reader may stop
        written = add_to_journal(args.journal, journal_entry(comparison, report))
    say(prose(heading(comparison), table))
    say(prose(report.verdict, table))
    if report.lines:
        say(table(table_of_sides(report.scores)).rstrip())
        say(table(table_of_differences(report)).rstrip())
        say(prose(NOTES.rstrip(), table))
    if comparison.is_confounded:
        say(prose(f"\n{remedies(comparison)}".rstrip(), table))
    if written:
        say(f"\n{written}")
    if comparison.is_confounded:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
