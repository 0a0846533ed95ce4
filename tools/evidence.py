"""Scores of two groups of runs, and whether they differ by more than chance.

tools/compare.py says in its first lines what is counted and how.
"""

import math
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from run_folders import interval, iqm, mean_or_nan, refuse
from scipy import stats

LEAST = 4  # seeds a side for a verdict: with 3 no permutation test can reject
LEVEL = 0.05
RESAMPLES = 20_000
UNFINISHED = ("living", "interrupted", "killed")
POOLED = "all tasks, in sd"
HIGHER = "B is higher"
LOWER = "B is lower"
NO_DIFFERENCE = "no difference seen"
TOO_FEW = "too few seeds"


# --- scores ---------------------------------------------------------------------------------------
class Scores(NamedTuple):
    """What the runs of a side reached on a task, a number for each seed."""

    ends: np.ndarray
    curves: np.ndarray
    failed: int
    runs: int


def common_end(records):
    """Return the last step that all unfinished runs have reached; infinity if all have ended."""
    unfinished = [record.run for record in records if record.run.state in UNFINISHED]
    last_steps = [run.evaluations[-1].step for run in unfinished if run.evaluations]
    return min(last_steps, default=math.inf)


def runs_until(records, end):
    """Return the runs that have evaluations, without those after a step."""
    runs = []
    for record in records:
        early = [one for one in record.run.evaluations if one.step <= end]
        for one in early:
            sentence = f"{record.folder} has a return of {one.score} at step {one.step:,}"
            if not math.isfinite(one.score):
                refuse(f"{sentence}, which no test can rank: find out why, or name the others")
        if early:
            runs.append(replace(record.run, evaluations=early))
    return runs


def mean_over_curve(evaluations):
    """Return the area under the curve of evaluations, by its length."""
    steps, scores = np.transpose(evaluations)
    if len(steps) == 1:
        return scores[0]
    return np.trapezoid(scores, steps) / (steps[-1] - steps[0])


def by_seed(runs, score):
    """Return the scores of runs, the mean of those of one seed, as an array."""
    found = defaultdict(list)
    for run in runs:
        found[run.seed].append(score(run))
    return np.array([mean_or_nan(scores) for scores in found.values()])


def least_score(groups):
    """Return the score below which a run has learned next to nothing; -infinity if none is known.

    It is a tenth of the way from the first evaluations, at step 0, to the best group's IQM.
    """
    starts = []
    for runs in groups:
        starts += [run.evaluations[0].score for run in runs if run.evaluations[0].step == 0]
    best = max((iqm(by_seed(runs, lambda run: run.score)) for runs in groups if runs), default=0)
    start = mean_or_nan(starts)
    return start + 0.1 * (best - start) if best > start else -math.inf


def scores_of(runs, least):
    """Return the scores of a side or group on a task."""
    return Scores(
        ends=by_seed(runs, lambda run: run.score),
        curves=by_seed(runs, lambda run: mean_over_curve(run.evaluations)),
        failed=sum(run.state == "failed" or run.score < least for run in runs),
        runs=len(runs),
    )


def with_unscored(scores, records):
    """Return scores with runs that failed before their first evaluation among the failures."""
    lost = sum(record.run.state == "failed" and not record.run.evaluations for record in records)
    return scores._replace(failed=scores.failed + lost, runs=scores.runs + lost)


# --- statistics -----------------------------------------------------------------------------------
class Pair(NamedTuple):
    """The scores of A and of B on one task, a number for each seed."""

    a: np.ndarray
    b: np.ndarray

    @property
    def deviation(self):
        """The standard deviation of all scores; 1 if they are all the same."""
        return float(np.concatenate(self).std(ddof=1)) or 1.0


class Estimate(NamedTuple):
    """By how much B is above A; what few seeds do not allow is NaN."""

    difference: float
    low: float  # ends of the 95 % interval
    high: float
    chance: float  # P(B > A)


def estimate(pairs, resamples=RESAMPLES):
    """Return the estimate for a task, or for several, each in units of its deviation."""
    units = [1.0] if len(pairs) == 1 else [pair.deviation for pair in pairs]
    scaled = [Pair(pair.a / unit, pair.b / unit) for pair, unit in zip(pairs, units, strict=True)]
    low = high = math.nan
    if enough(pairs):
        low, high = interval_of(scaled, resamples)
    chances = [chance_of_ranks(*ranks_of(pair)) for pair in pairs]
    return Estimate(mean_difference(scaled), low, high, float(np.mean(chances)))


def mean_difference(pairs):
    """Return the mean over tasks of the differences of IQMs, along the last axis."""
    return np.mean([iqm(pair.b) - iqm(pair.a) for pair in pairs], 0)


def enough(pairs):
    """Tell whether all tasks have the seeds that a verdict takes."""
    return min(len(scores) for pair in pairs for scores in pair) >= LEAST


def interval_of(pairs, resamples):
    """Return the 95 % interval of the mean difference, seeds drawn within each task and side."""
    groups = [scores for pair in pairs for scores in pair]
    places = np.cumsum([len(scores) for scores in groups])[:-1]

    def statistic(drawn):
        parts = np.split(drawn, places, axis=-1)
        return mean_difference(list(map(Pair, parts[::2], parts[1::2])))

    return interval(statistic, *groups, draws=resamples)


def ranks_of(pair):
    """Return the ranks of the scores of B and of A among all of them."""
    ranks = stats.rankdata(np.concatenate([pair.b, pair.a]))
    return ranks[: len(pair.b)], ranks[len(pair.b) :]


def chance_of_ranks(b, a, axis=-1):
    """Return P(B > A), a tie counted as half, from ranks: Mann and Whitney's U by its highest."""
    count, others = b.shape[axis], a.shape[axis]
    u = b.sum(axis) - count * (count + 1) / 2
    return u / (count * others)


def p_value(pairs, resamples):
    """Return the p value of a permutation test of P(B > A), two-sided.

    Of several tasks each is permuted by itself, so that values which are drawn from what its own
    permutations give, one of each task, make up the distribution of the mean.
    """
    options = {"n_resamples": resamples, "vectorized": True, "rng": 0}
    tests = [stats.permutation_test(ranks_of(pair), chance_of_ranks, **options) for pair in pairs]
    if len(tests) == 1:
        return float(tests[0].pvalue)
    random = np.random.default_rng(0)
    permuted = [random.choice(test.null_distribution, resamples) for test in tests]
    observed = abs(np.mean([test.statistic for test in tests]) - 0.5)
    as_far = np.abs(np.mean(permuted, 0) - 0.5) >= observed - 1e-9
    return float((as_far.sum() + 1) / (resamples + 1))


def holm(values):
    """Return p values corrected by Holm's method; NaN stays and does not count."""
    values = np.array(values, dtype=float)
    order = [place for place in np.argsort(values) if not math.isnan(values[place])]
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[place]))
        values[place] = highest
    return values.tolist()


def least_p(pairs, resamples):
    """Return the smallest p that so many runs can give: all those of one side are higher."""
    ways = math.prod(math.comb(len(pair.a) + len(pair.b), len(pair.b)) for pair in pairs)
    return 2 / min(ways, resamples + 1)


def seeds_for_each(tasks):
    """Return how many seeds a side it takes until each of several tasks can get a verdict.

    Holm's method multiplies the p of the first task by their number, as the pool comes before it.
    """
    seeds = LEAST
    while tasks * 2 / math.comb(2 * seeds, seeds) > LEVEL:
        seeds += 1
    return seeds


# --- lines ----------------------------------------------------------------------------------------
class Line(NamedTuple):
    """A line of the table of differences."""

    task: str
    measure: str  # end or whole curve
    pairs: list[Pair]
    estimate: Estimate
    p: float  # corrected; NaN where nothing is judged
    best: float = math.nan  # p, corrected, if all runs of one side were higher, on all tasks

    @property
    def verdict(self):
        """What may be said: the interval and p must agree, also on the direction."""
        if not enough(self.pairs) or self.best > LEVEL:
            return TOO_FEW
        difference, low, high, chance = self.estimate
        same_way = (difference > 0) == (chance > 0.5)
        if self.p > LEVEL or low <= 0 <= high or not same_way:
            return NO_DIFFERENCE
        return HIGHER if difference > 0 else LOWER


def lines_of(ends, curves, resamples=RESAMPLES):
    """Return the judged lines, of the pair of each task, then those of curves."""
    lines = judge(ends, resamples)
    for task, pairs in with_pooled(curves).items():
        one = estimate(pairs, resamples)
        lines.append(Line(task, "whole curve", pairs, one, math.nan))
    return lines


def judge(ends, resamples=RESAMPLES):
    """Return a line for each task and, if there are several, for all; their p is corrected."""
    groups = with_pooled(ends)
    p_values, best = [], []
    for pairs in groups.values():
        is_judged = enough(pairs)
        p_values.append(p_value(pairs, resamples) if is_judged else math.nan)
        best.append(least_p(pairs, resamples) if is_judged else math.nan)
    lines = []
    corrected = zip(holm(p_values), holm(best), strict=True)
    for (task, pairs), found in zip(groups.items(), corrected, strict=True):
        lines.append(Line(task, "end", pairs, estimate(pairs, resamples), *found))
    return lines


def with_pooled(pairs):
    """Return lists of pairs by task: each alone and, if there are several, all together."""
    groups = {task: [pair] for task, pair in pairs.items()}
    if len(pairs) > 1:
        groups[POOLED] = list(pairs.values())
    return groups


def judged(lines):
    """Return the lines that are judged; the last is that of all tasks, or of the only one."""
    return [line for line in lines if line.measure == "end"]
