"""Tell which runs are sick: by which sign, since when, what it means, and what to look at next.

python tools/doctor.py runs                    all runs in a folder, finished or living
python tools/doctor.py 'runs/Hopper*'          some
python tools/doctor.py runs/NAME --watch       print findings as they come, until the run ends
python tools/doctor.py runs/NAME --why         list also the checks that could not be made
python tools/doctor.py runs --markdown         a table, to paste
python tools/doctor.py --checks                the table of all checks
python tools/doctor.py --calibrate results     how often each check alarms in runs that are healthy

Three levels: FATAL ended the run, ERROR cannot be in a healthy run, WARN is rare in one. A run is
called healthy if nothing was found by all the checks that are for its method, task and settings. A
run that is short, or lacks metrics, allows only some: then their number is printed.

The exit code is 0 if nothing was found, 1 if something was, 2 if a name is no run or an option is
wrong.
"""

# A check is a function over the metrics of a run, and a record in CHECKS at the end. It returns an
# Alarm, the first step at which it fires with the value that it saw there; None if all is well; or
# Unmade if it cannot judge. It looks at no row after that step, so that a living run gets the same
# alarms at the same steps as a finished one.

import argparse
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from run_folders import (
    NO_RUN,
    NoRun,
    find_runs,
    has_updates,
    is_number,
    metrics_file,
    read_all,
    read_config,
    read_metrics,
    read_summary,
    say,
    state_without_summary,
)
from text_tables import fitted, markdown_rows

# Names that metrics have in runs of earlier scripts
FORMER = {
    "ppo/approx_kl": "losses/approx_kl",
    "ppo/clipfrac": "losses/clipfrac",
}
ACTIVITIES = ("act", "env", "update", "log")  # what takes time in every step, of time/*
RECENT_EPISODES = 100  # over which the scripts take means
ATARI_PATIENCE = 2_500_000  # steps, 10 million frames, before DQN must have learned a game

# Thresholds. Those of ERROR follow from what the metric is; those of WARN leave room to the worst
# of the healthy runs in results/: python tools/doctor.py --calibrate results
IN_A_ROW = 5  # rows of metrics for which most signs must last
UPDATES_OFF = 0.01  # share by which the number of updates may differ from what it should be
BOUND_USE = 1.5  # largest |Q| in units of the largest that rewards allow; healthy: 0.6
GROWN = 2.0  # times the first values
FIRST_RATIO = 1e-3  # healthy: 4e-5
SAME_TWINS = 1e-4  # difference of two critics in units of the deviation of Q; healthy: 0.009
TWINS_APART = 1.0  # the same; healthy: 0.3, and 2 of constants
CONSTANT = 1e-6  # relative deviation below which a reward, or the temperature, is constant
EPISODES_SEEN = 5  # before a constant reward is believed
GAP_TO_MOVE = 0.1  # nat per dimension of entropy off target, from which the temperature must react
STILL_UPDATES = 10  # updates * tau after which targets must have followed
STILL_COPIES = 60  # copies of DQN's target after which they must have
LOOKS_AHEAD = 2.0  # |what is bootstrapped| in units of rewards; healthy: 5, or the next one
SPREADS = 1.5  # deviation of targets in units of that of rewards; healthy: 4
LEAST_HORIZON = 3  # steps that an episode must have for these two
ALIVE = 0.1  # deviation of Q in units of that of the targets
LEAST_LIMIT = 20  # steps from which equal lengths look like a time limit
LEARNED_BY = 0.4  # share of the run by which evaluations must be above the first; healthy: 0.3
POOR_FIT = 1.0  # error of the critic in units of the deviation of its targets; healthy: 0.3
FIT_FROM, FIT_UPDATES = 0.2, 2000  # share of the run, and updates, after which it must fit
LARGE_KL, TINY_KL = 0.05, 1e-4  # median of KL_ROWS rows; healthy: 0.0006 to 0.035
KL_ROWS = 10
BLIND = 1e-3  # |explained variance| of a critic that ignores its input
BLIND_ROWS = 10  # healthy: 1
HARMFUL_ROWS = 20  # healthy: 13
SATURATED = 0.9  # share of actions at their bounds, not above the untrained agent
STILL_ACTOR = 0.01  # deviation of actions over a batch
LONG_UPDATES = 2_500  # updates that these two must last; healthy: 2,000
NOISE = (-4.0, 1.0)  # log_std; healthy: -2.1 to 0.01
ALPHA = (1e-5, 10.0)  # temperature; healthy: 0.007 to 0.6
ALPHA_STEPS, ALPHA_CHANGE = 10_000, 100.0  # healthy: 60 times within so many steps
ENTROPY_OFF = 0.5  # nat per dimension off target, late; healthy: 0.22
ALPHA_REACH = 3.0  # updates * alpha_lr after which the temperature can be anywhere
OBS_SCALE = (0.01, 50.0)  # deviation without a normaliser; healthy: 0.36 to 7.1
TARGET_SCALE = 1e4  # healthy: 813
SLOWER = 0.7  # of the earlier speed
SLOW_ROWS = 24  # before a run is judged
RECENT_ROWS = 10  # whose median is compared with that of the first half
TO_BLAME = 0.85  # share of the lost time that one activity explains
TIMES_AS_LONG = 2.0  # what it takes, against the others; healthy, beside other programs: 1.8


# --- what is known of a run -----------------------------------------------------------------------
class Alarm(NamedTuple):
    """What a check returns if it fires."""

    step: int  # the first one at which it does
    value: float | str


class Unmade(Enum):
    """What a check returns if it cannot judge: why."""

    TOO_EARLY = "too few steps or rows"
    NOT_LOGGED = "metrics not logged"
    NOT_MEANT = "not for this method, task or settings"


TOO_EARLY, NOT_LOGGED, NOT_MEANT = Unmade

# Settings that only scripts of a method have
PPO = "update_epochs"
DQN = "target_every"
TD3 = "policy_delay"
SAC = "autotune"  # TQC, too
METHODS = (PPO, DQN, TD3, SAC)


class NoSetting(KeyError):
    """A script has no setting of that name: it is a copy that has renamed it."""


class Settings(dict):
    """The settings of a run by name."""

    def __missing__(self, name):
        raise NoSetting(name)


@dataclass(eq=False)
class Logs:
    """What checks see of a run."""

    folder: Path
    config: Settings
    state: str  # finished, interrupted, failed, killed or living
    reason: str  # why it failed
    step: int  # the last one
    intervals: list[dict]  # rows of metrics of an interval
    evaluations: list[dict]  # rows of evaluations
    episodes: list[dict]  # rows of episodes of training

    @property
    def total(self):
        """The number of steps that was asked for."""
        return self.config["total_timesteps"]

    @property
    def starts(self):
        """The steps before learning; PPO has none."""
        return self.config.get("learning_starts", 0)

    @property
    def discount(self):
        return self.config.get("gamma", 0.99)

    def progress(self, steps):
        """Return which share of the time for learning has gone by at steps."""
        return (steps - self.starts) / max(self.total - self.starts, 1)

    @property
    def method(self):
        """The setting that tells the method, one of METHODS; "" of a script with none of them."""
        return next((name for name in METHODS if name in self.config), "")

    @cached_property
    def metrics(self):
        """The names of all metrics that were logged."""
        return set().union(*self.intervals, *self.evaluations, *self.episodes)

    @cached_property
    def untrained(self):
        """The evaluation at step 0, or None."""
        if self.evaluations and self.evaluations[0]["global_step"] == 0:
            return self.evaluations[0]
        return None


def read_logs(folder):
    """Return the logs of a run folder; raise one of NO_RUN if it holds none."""
    folder = folder.resolve()  # also if it is given as "."
    config = read_config(folder)
    metrics = metrics_file(folder)
    rows = [with_todays_names(row) for row in read_metrics(metrics)]
    summary = read_summary(folder)
    return Logs(
        folder=folder,
        config=Settings(config),
        state=summary.get("status") or state_without_summary(metrics),
        reason=str(summary.get("reason", "")),
        step=int(rows[-1]["global_step"]) if rows else 0,
        intervals=[row for row in rows if "charts/SPS" in row],
        evaluations=[row for row in rows if "eval/return_mean" in row],
        episodes=[row for row in rows if "charts/episodic_return" in row],
    )


def with_todays_names(row):
    """Return a row with the names that metrics have today; raise NoRun for what is no number."""
    for name, value in row.items():
        if not is_number(value):
            raise NoRun(f"{name} is no number at step {row['global_step']:,}")
    return {FORMER.get(name, name): float(value) for name, value in row.items()}


def columns(rows, *names):
    """Return the steps and each metric of those rows that have all of them, arrays [R]."""
    table = [
        [row["global_step"], *[row[name] for name in names]]
        for row in rows
        if all(name in row for name in names)
    ]
    numbers = np.array(table, float).reshape(len(table), 1 + len(names))
    steps, *values = numbers.T
    return steps.astype(int), *values


# --- helpers of checks ----------------------------------------------------------------------------
def lasting(steps, values, bad, rows=IN_A_ROW, updates=None, could=None):
    """Return the alarm of the row by which so many rows in a row have been bad, or None.

    With the updates that were made by each row it takes LONG_UPDATES of them, too. Where only some
    rows could be bad, as no other is late enough, could says which. Return TOO_EARLY if there
    would be no alarm even if all of them had been bad.
    """
    row = first_lasting(bad, rows, updates)
    if row is not None:
        return Alarm(int(steps[row]), float(values[row]))
    if could is None:
        could = np.ones(len(steps), bool)
    if first_lasting(could, rows, updates) is None:
        return TOO_EARLY
    return None


def first_lasting(bad, rows, updates):
    """Return the first row by which so many rows have been bad, and long enough; else None."""
    in_a_row = 0
    good_until = 0  # updates
    for row, is_bad in enumerate(bad):
        in_a_row = in_a_row + 1 if is_bad else 0
        if updates is not None:
            good_until = good_until if is_bad else updates[row]
            if updates[row] - good_until < LONG_UPDATES:
                continue
        if in_a_row >= rows:
            return row
    return None


def medians(values, rows):
    """Return the median of each row with those before it, as soon as there are so many."""
    if len(values) < rows:
        return np.zeros(0)
    return np.median(np.lib.stride_tricks.sliding_window_view(values, rows), -1)


def dimensions(logs):
    """Return the dimensions of SAC's actions: its target of entropy, unless one was set."""
    _, entropy, gap = columns(logs.intervals, "policy/entropy", "policy/entropy_gap")
    return max(abs(entropy[0] - gap[0]), 1.0)


def above_untrained(logs):
    """Return the steps of evaluations, and whether any up to there was above the first.

    Above means by two standard errors of the difference, which are taken from the deviations of
    both. Without an evaluation at step 0 there are none.
    """
    if not logs.untrained:
        return np.zeros(0, int), np.zeros(0, bool)
    names = ("eval/return_mean", "eval/return_sd")
    steps, mean, deviation = columns(logs.evaluations, *names)
    episodes = logs.config.get("eval_episodes", 10)
    error = np.sqrt((deviation**2 + logs.untrained.get("eval/return_sd", 0) ** 2) / episodes)
    above = mean > logs.untrained["eval/return_mean"] + 2 * error
    return steps, np.maximum.accumulate(above)


def learned_by(logs, steps):
    """Return whether an evaluation up to each of the steps was above the untrained agent."""
    evaluated, above = above_untrained(logs)
    if not any(above):
        return np.zeros(len(steps), bool)
    return steps >= evaluated[above][0]


def episodes_before(logs, steps):
    """Return how many episodes of training had ended at each of the steps."""
    (ended,) = columns(logs.episodes)
    return np.searchsorted(ended, steps, side="right")


# --- checks: how the run ended --------------------------------------------------------------------
def not_finite(logs):
    """A NaN or an infinity, which ends a run of ours, or is in the metrics of others."""
    if logs.state == "failed" and logs.reason.startswith("FloatingPointError"):
        return Alarm(logs.step, textwrap.shorten(logs.reason, 200))
    rows = [*logs.intervals, *logs.evaluations, *logs.episodes]
    for row in sorted(rows, key=lambda row: row["global_step"]):
        for name, value in row.items():
            if not math.isfinite(value):
                return Alarm(int(row["global_step"]), f"{name} is {value}")
    return None


def crash(logs):
    """Any other error."""
    if logs.state != "failed" or logs.reason.startswith("FloatingPointError"):
        return None
    return Alarm(logs.step, textwrap.shorten(logs.reason, 200) or "no reason is given")


def killed(logs):
    """No summary, and nothing logged for long."""
    if logs.state != "killed":
        return None
    return Alarm(logs.step, f"step {logs.step:,} of {logs.total:,}")


# --- checks: the program --------------------------------------------------------------------------
def update_count(logs):
    """The number of updates is not what settings and steps make it."""
    steps, updates = columns(logs.intervals, "charts/updates")
    if "update_epochs" in logs.config:
        expected, most_off = updates_of_ppo(logs.config, steps)
    elif "utd" in logs.config:
        expected = np.ceil(logs.config["utd"] * (steps - logs.starts).clip(min=0))
        most_off = max(2, logs.config["utd"] * logs.config["num_envs"])
    elif "train_every" in logs.config:
        expected = np.ceil((steps - logs.starts).clip(min=0) / logs.config["train_every"])
        most_off = 2
    else:
        return NOT_MEANT
    if logs.config.get("target_kl") is not None:  # passes may be left out, but not all
        off = (updates == 0) & (expected > most_off)
    else:
        off = abs(updates - expected) > np.maximum(most_off, UPDATES_OFF * expected)
    return lasting(steps, updates - expected, off, rows=1, could=expected > most_off)


def updates_of_ppo(config, steps):
    """Return how many updates PPO has made at steps, and by how many that may be wrong."""
    num_envs = config["num_envs"]
    rollout = config["rollout_steps"] // num_envs * num_envs
    per_rollout = config["update_epochs"] * math.ceil(rollout / config["batch_size"])
    return steps // rollout * per_rollout, per_rollout


def impossible_values(logs):
    """Values beyond the largest reward, received for ever, with SAC's bonus for entropy.

    They must have grown, since those of a new network may be large beside tiny rewards; and there
    is no limit before there is a reward.
    """
    names = ["q/value_min", "q/value_max", "env/reward_min", "env/reward_max"]
    steps, lowest, highest, least, most = columns(logs.intervals, *names)
    largest = np.maximum.accumulate(np.maximum(abs(least), abs(most)))
    if logs.config.get("clip_rewards"):
        largest = np.sign(largest)
    _, alpha, *_ = columns(logs.intervals, "losses/alpha", "policy/entropy", "policy/entropy_gap")
    if len(alpha) == len(steps) > 0:
        largest = largest + np.maximum.accumulate(alpha) * dimensions(logs) * math.log(2)
    values = np.maximum(abs(lowest), abs(highest))
    use = values * (1 - logs.discount) / np.maximum(largest, 1e-9)
    grown = values > GROWN * values[:1]
    could = largest > 0
    could[:1] = False  # nothing has grown yet
    return lasting(steps, use, (use > BOUND_USE) & (largest > 0) & grown, could=could)


def first_ratio(logs):
    """The first minibatch sees another policy than the one that acted."""
    steps, ratio = columns(logs.intervals, "ppo/ratio_first_mb")
    return lasting(steps, ratio, ratio > FIRST_RATIO, rows=1)


def constant_reward(logs):
    """All rewards are the same, and not because each step survived is worth the same."""
    steps, mean, deviation = columns(logs.intervals, "env/reward_mean", "env/reward_sd")
    constant = np.logical_and.accumulate(deviation <= CONSTANT * abs(mean))
    could = episodes_before(logs, steps) >= EPISODES_SEEN
    return lasting(steps, mean, constant & ~pays_for_length(logs, steps), could=could)


def pays_for_length(logs, steps):
    """Return at which steps returns differ so far, and follow from the lengths of episodes alone.

    They do in a task such as InvertedPendulum-v4, where staying alive is all. Before there are a
    few episodes any task may be one.
    """
    names = ("charts/episodic_return", "charts/episodic_length")
    _, returns, lengths = columns(logs.episodes, *names)
    per_step = returns / lengths
    size = np.maximum.accumulate(abs(per_step))
    pays = (range_so_far(per_step) <= CONSTANT * size) & (size > 0) & (range_so_far(lengths) > 0)
    pays = np.concatenate([[True], pays])  # by the number of episodes
    count = episodes_before(logs, steps)
    return pays[count] | (count < EPISODES_SEEN)


def range_so_far(values):
    """Return by how much each value and those before it differ at most."""
    return np.maximum.accumulate(values) - np.minimum.accumulate(values)


def constant_obs(logs):
    """All entries of all observations are the same number."""
    steps, mean, deviation = columns(logs.intervals, "env/obs_mean", "env/obs_sd")
    return lasting(steps, mean, deviation <= CONSTANT * abs(mean))


def same_critics(logs):
    """Two critics are one."""
    if logs.config.get("num_critics") == 1:
        return NOT_MEANT  # there is one by intention
    steps, gap = columns(logs.intervals, "q/twin_gap")
    return lasting(steps, gap, gap < SAME_TWINS)


def frozen_temperature(logs):
    """A temperature that should be learned stays as it is."""
    steps, alpha, updates = columns(logs.intervals, "losses/alpha", "charts/updates")
    if not logs.config.get("autotune"):
        return NOT_MEANT
    still = np.logical_and.accumulate(abs(alpha / alpha[:1] - 1) < CONSTANT)
    late = updates >= 100
    return lasting(steps, alpha, still & late, could=late)


def temperature_wrong_way(logs):
    """The temperature rises where there is too much entropy, or falls where there is too little."""
    steps, alpha, gap = columns(logs.intervals, "losses/alpha", "policy/entropy_gap")
    if not logs.config.get("autotune"):
        return NOT_MEANT
    if len(steps) < 2:
        return TOO_EARLY
    change = np.diff(np.log(alpha))
    gap = (gap[1:] + gap[:-1]) / 2
    wrong = (change * np.sign(gap) > CONSTANT) & (abs(gap) > GAP_TO_MOVE * dimensions(logs))
    return lasting(steps[1:], gap, wrong)


def still_target(logs):
    """Targets hold one reward and no more, long after the target network should have followed."""
    steps, mean, spread, learned, reward, reward_spread, updates = columns(logs.intervals, *TARGETS)
    size = np.maximum(abs(reward), reward_spread)
    ahead = abs(mean - reward) / np.maximum(size, 1e-9)
    narrow = (spread < SPREADS * reward_spread) | (reward_spread <= CONSTANT * abs(reward))
    alive = learned > ALIVE * spread  # or there is nothing to follow
    could = (reach(logs, steps) > 0) & has_followed(logs, steps, updates)
    bad = could & (ahead < reach(logs, steps)) & narrow & alive
    return lasting(steps, ahead, bad, could=could)


def has_followed(logs, steps, updates):
    """Return where a target network must have come near the network."""
    config = logs.config
    if "target_every" in config:
        return steps - logs.starts >= STILL_COPIES * config["target_every"]
    tau = max(config.get("tau", 0.005), 1e-3) / config.get("policy_delay", 1)
    return updates * tau >= STILL_UPDATES


def reach(logs, steps):
    """Return how many rewards of the future targets must hold: a tenth of an episode, at most 2.

    None where discount or episodes end all after a few steps.
    """
    logged, length = columns(logs.intervals, "train/length_mean")
    if len(logged) == 0:  # no episode has ended
        logged, length = np.array([0]), np.array([np.inf])
    horizon = np.minimum(np.interp(steps, logged, length), 1 / max(1 - logs.discount, 1e-9))
    return np.where(horizon < LEAST_HORIZON, 0, np.minimum(horizon / 10, LOOKS_AHEAD))


def limit_as_end(logs):
    """Episodes last as long as the time limit of the task allows, and none counts as cut."""
    steps, cut = columns(logs.intervals, "env/time_limit_frac")
    if not any(cut == 0):
        return None
    limit = time_limit(logs.config)
    if limit is None:
        return NOT_MEANT
    _, length = columns(logs.episodes, "charts/episodic_length")
    whole_so_far = np.concatenate([[0], np.cumsum(length == limit)])  # by the number of episodes
    count = episodes_before(logs, steps)
    whole = whole_so_far[count] - whole_so_far[(count - RECENT_EPISODES).clip(min=0)]
    return lasting(steps, whole, (whole >= 3) & (cut == 0), rows=1, could=count >= 3)


def time_limit(config):
    """Return the time limit of an environment that Gymnasium has by itself, or None.

    Environments of other packages are not imported. Among them are Atari's games, whose limit
    counts frames.
    """
    import gymnasium  # few runs need it, and it takes a while

    spec = gymnasium.registry.get(config["env_id"])
    return spec.max_episode_steps if spec else None


def equal_lengths(logs):
    """All episodes are equally long, none counts as cut, and no time limit is known."""
    names = ["env/time_limit_frac", "train/length_min", "train/length_max"]
    steps, cut, shortest, longest = columns(logs.intervals, *names)
    equal = (cut == 0) & (shortest == longest) & (longest >= LEAST_LIMIT)
    if any(equal) and time_limit(logs.config) is not None:
        return NOT_MEANT
    enough = episodes_before(logs, steps) >= EPISODES_SEEN
    equal = np.logical_and.accumulate(equal)
    return lasting(steps, longest, equal & enough, rows=1, could=enough)


# --- checks: learning -----------------------------------------------------------------------------
def not_learning(logs):
    """No evaluation is above that of the untrained agent."""
    if not logs.untrained:
        return NOT_LOGGED
    steps, above = above_untrained(logs)
    late = logs.progress(steps) >= LEARNED_BY
    if "clip_rewards" in logs.config:
        late &= steps >= ATARI_PATIENCE
    _, returns = columns(logs.evaluations, "eval/return_mean")
    best = np.maximum.accumulate(returns[: len(steps)])
    return lasting(steps, best, late & ~above, rows=1, could=late)


def no_bootstrap(logs):
    """A setting lets time limits count as ends, and there are some."""
    steps, cut = columns(logs.intervals, "env/time_limit_frac")
    if logs.config.get("bootstrap_truncated", True):
        return None
    return lasting(steps, cut, cut > 0, rows=1)


def poor_fit(logs):
    """The critic's error is larger than the deviation of what it should learn."""
    loss_name = "losses/qf_loss"
    if "target_every" in logs.config:
        loss_name = "losses/td_loss"
    if logs.config.get("huber") or "num_quantiles" in logs.config:
        return NOT_MEANT  # that loss is no square
    if loss_name not in logs.metrics:
        return NOT_LOGGED
    names = (loss_name, "q/target_sd", "charts/updates")
    steps, loss, deviation, updates = columns(logs.intervals, *names)
    error = np.sqrt(loss) / np.maximum(deviation, 1e-9)
    late = (logs.progress(steps) > FIT_FROM) & (updates >= FIT_UPDATES)
    return lasting(steps, error, (error > POOR_FIT) & late, could=late)


def critics_apart(logs):
    """Two critics differ more from each other than states do."""
    steps, gap, updates = columns(logs.intervals, "q/twin_gap", "charts/updates")
    late = updates >= 1000
    return lasting(steps, gap, (gap > TWINS_APART) & late, could=late)


def target_scale(logs):
    """Targets, or PPO's advantages, are huge."""
    steps, lowest, highest = columns(logs.intervals, "q/target_min", "q/target_max")
    if len(steps) == 0:
        steps, lowest, highest = columns(logs.intervals, "ppo/adv_min", "ppo/adv_max")
    if len(steps) == 0:
        return why_not_logged(logs, "q/target_max")
    largest = np.maximum(abs(lowest), abs(highest))
    return lasting(steps, largest, largest > TARGET_SCALE, rows=1)


def obs_scale(logs):
    """Observations that nothing normalises are tiny or huge."""
    steps, deviation = columns(logs.intervals, "env/obs_sd")
    if logs.config.get("norm_obs"):
        return NOT_MEANT
    low, high = OBS_SCALE
    return lasting(steps, deviation, (deviation < low) | (deviation > high))


def large_kl(logs):
    """A rollout moves the policy too far."""
    steps, kl = columns(logs.intervals, "losses/approx_kl")
    usual = medians(kl, KL_ROWS)
    return lasting(steps[KL_ROWS - 1 :], usual, usual > LARGE_KL, rows=1)


def tiny_kl(logs):
    """A rollout hardly moves the policy."""
    steps, kl, clipped = columns(logs.intervals, "losses/approx_kl", "losses/clipfrac")
    usual = medians(kl, KL_ROWS)
    tiny = (usual < TINY_KL) & (medians(clipped, KL_ROWS) == 0)
    return lasting(steps[KL_ROWS - 1 :], usual, tiny, rows=1)


def blind_critic(logs):
    """PPO's critic explains nothing, neither well nor badly: it says the same of all it sees."""
    steps, explained = columns(logs.intervals, "losses/explained_variance")
    return lasting(steps, explained, abs(explained) < BLIND, rows=BLIND_ROWS)


def harmful_critic(logs):
    """PPO's critic is further from the outcomes than a constant would be."""
    steps, explained = columns(logs.intervals, "ppo/explained_var_mc")
    late = logs.progress(steps) > 0.1
    return lasting(steps, explained, late & (explained < 0), rows=HARMFUL_ROWS, could=late)


def saturation(logs):
    """Nearly all actions are at their bounds, and nothing has been learned."""
    steps, share, updates = columns(logs.intervals, "policy/saturation", "charts/updates")
    bad = (share > SATURATED) & ~learned_by(logs, steps)
    return lasting(steps, share, bad, updates=updates)


def still_actor(logs):
    """The actor does the same whatever it sees, and nothing has been learned."""
    steps, deviation, updates = columns(logs.intervals, "policy/action_sd", "charts/updates")
    bad = (deviation < STILL_ACTOR) & ~learned_by(logs, steps)
    return lasting(steps, deviation, bad, updates=updates)


def noise_size(logs):
    """The policy has hardly any noise left, or is little else."""
    steps, log_std = columns(logs.intervals, "policy/log_std")
    low, high = NOISE
    return lasting(steps, log_std, (log_std < low) | (log_std > high))


def temperature_range(logs):
    """The temperature is far from where tasks of usual rewards need it."""
    steps, alpha = columns(logs.intervals, "losses/alpha")
    low, high = ALPHA
    return lasting(steps, alpha, (alpha < low) | (alpha > high), rows=1)


def temperature_speed(logs):
    """The temperature changes by orders of magnitude at once."""
    steps, alpha = columns(logs.intervals, "losses/alpha")
    for row, step in enumerate(steps):
        recent = alpha[: row + 1][steps[: row + 1] >= step - ALPHA_STEPS]
        change = recent.max() / max(recent.min(), 1e-30)
        if change > ALPHA_CHANGE:
            return Alarm(int(step), float(change))
    return TOO_EARLY if len(steps) < 2 else None


def entropy_off_target(logs):
    """The temperature had the time to bring the entropy to its target, and has not."""
    names = ["policy/entropy", "policy/entropy_gap", "charts/updates"]
    steps, _, gap, updates = columns(logs.intervals, *names)
    if not logs.config.get("autotune"):
        return NOT_MEANT
    if len(steps) == 0:
        return TOO_EARLY
    gap = gap / dimensions(logs)
    ready = updates * logs.config["alpha_lr"] >= ALPHA_REACH
    late = ready & (logs.progress(steps) >= 0.5)
    return lasting(steps, gap, late & (abs(gap) > ENTROPY_OFF), could=late)


def slowing(logs):
    """The run has become slower, and one activity is to blame.

    Other programs on the machine slow down all activities alike; that is no disease of the run.
    """
    steps, costs = seconds_per_step(logs)
    for row in range(SLOW_ROWS, len(costs) + 1):
        before = np.median(costs[: row // 2], 0)
        now = np.median(costs[row - RECENT_ROWS : row], 0)
        speed = before.sum() / now.sum()
        if speed >= SLOWER:
            continue
        for place, name in enumerate(ACTIVITIES):
            growth = now[place] / max(before[place], 1e-12)
            grows = growth > TIMES_AS_LONG * growth_of_others(before, now, place)
            if grows and blame(before, now, place) > TO_BLAME:
                text = f"{speed:.2f} of the earlier speed; {name} takes {growth:.1f} times as long"
                return Alarm(int(steps[row - 1]), text)
    return TOO_EARLY if len(costs) < SLOW_ROWS else None


def blame(before, now, place):
    """Return which share of lost time is that of one activity, beyond what slowed the others."""
    expected = growth_of_others(before, now, place) * before[place]
    return (now[place] - expected) / (now.sum() - before.sum())


def growth_of_others(before, now, place):
    """Return how many times as long as before all activities but one take."""
    return (now.sum() - now[place]) / max(before.sum() - before[place], 1e-12)


def seconds_per_step(logs):
    """Return the steps of the rows with updates, and the seconds a step takes [R, ACTIVITIES].

    DQN's acts become slower as epsilon falls: its rows before that has ended are left out.
    """
    names = [f"time/{name}" for name in ACTIVITIES]
    rows = [row for row in logs.intervals if has_updates(row)]
    last_epsilon = logs.config.get("end_e", 0) + 1e-4
    rows = [row for row in rows if row.get("charts/epsilon", 0) <= last_epsilon]
    steps, sps, *shares = columns(rows, "charts/SPS", *names)
    shares = np.transpose(shares)  # [R, ACTIVITIES]
    total = np.maximum(shares.sum(1, keepdims=True), 1e-12)
    return steps, shares / total / sps[:, None]


# --- the table of checks --------------------------------------------------------------------------
FATAL, ERROR, WARN = LEVELS = ("FATAL", "ERROR", "WARN")
EVAL = ("eval/return_mean", "eval/return_sd")
TARGETS = ("q/target_mean", "q/target_sd", "q/value_sd")
TARGETS += ("env/reward_mean", "env/reward_sd", "charts/updates")


@dataclass(eq=False)
class Check:
    """A check, and what there is to say of it."""

    name: str
    level: str
    function: Callable  # maps Logs to an Alarm or None
    needs: tuple[str, ...]  # metrics without which it cannot judge
    value: str  # what its value is
    limit: str  # when it fires
    meaning: str
    next_step: str
    methods: tuple[str, ...] = METHODS  # that log these metrics


CHECKS = [
    Check(
        name="not-finite",
        level=FATAL,
        function=not_finite,
        needs=(),
        value="what was not finite",
        limit="a NaN or an infinity",
        meaning="A number overflowed or became undefined, and the run ended.",
        next_step="Look at the rows before it: values or gradients that explode ask for a smaller "
        "step size or reward scale; if the environment sent it, mend the environment.",
    ),
    Check(
        name="crash",
        level=FATAL,
        function=crash,
        needs=(),
        value="the error",
        limit="an error ended the run",
        meaning="The run did not finish.",
        next_step="Read the error. What you have mended can go on with --resume.",
    ),
    Check(
        name="update-count",
        level=ERROR,
        function=update_count,
        needs=("charts/updates",),
        value="updates more or less than settings and steps ask for",
        limit=f"off by more than {UPDATES_OFF:.0%}",
        meaning="The program learns less or more often than its settings say, perhaps never.",
        next_step="Look at the loop around the update: its condition, and where updates are "
        "counted.",
    ),
    Check(
        name="impossible-values",
        level=ERROR,
        function=impossible_values,
        methods=(DQN, TD3, SAC),
        needs=("q/value_min", "q/value_max", "env/reward_min", "env/reward_max"),
        value="largest |Q| (1 - gamma) / largest |reward|",
        limit=f"above {BOUND_USE:g} in {IN_A_ROW} rows, and |Q| has grown {GROWN:g} times",
        meaning="No policy can earn what the critic promises: its values feed on themselves.",
        next_step="Lower the step size of the critic. If that does not help look at the target: "
        "termination, the minimum of both critics, the pace of the target network.",
    ),
    Check(
        name="first-ratio",
        level=ERROR,
        function=first_ratio,
        methods=(PPO,),
        needs=("ppo/ratio_first_mb",),
        value="largest |ratio - 1| of the first minibatch",
        limit=f"above {FIRST_RATIO:g}",
        meaning="Before the first update the ratio must be 1: learning sees another policy than "
        "the one that acted.",
        next_step="Compare how logp is computed when acting and when learning: observations that "
        "are normalised anew, actions that were clipped, noise that was drawn again.",
    ),
    Check(
        name="constant-reward",
        level=ERROR,
        function=constant_reward,
        needs=("env/reward_mean", "env/reward_sd"),
        value="the reward",
        limit=f"the only one in {IN_A_ROW} rows and {EPISODES_SEEN} episodes, and returns do not "
        "follow from lengths",
        meaning="There is nothing to learn from, or not yet.",
        next_step="Print rewards where the environment makes them and where they are stored. Is "
        "there a wrapper that drops or clips them? If rewards are rare, explore more.",
    ),
    Check(
        name="constant-obs",
        level=ERROR,
        function=constant_obs,
        methods=(PPO, TD3, SAC),
        needs=("env/obs_mean", "env/obs_sd"),
        value="mean observation",
        limit=f"no deviation at all in {IN_A_ROW} rows",
        meaning="The agent sees nothing.",
        next_step="Print observations of the environment, then after each wrapper.",
    ),
    Check(
        name="same-critics",
        level=ERROR,
        function=same_critics,
        methods=(TD3, SAC),
        needs=("q/twin_gap",),
        value="mean |Q1 - Q2| / sd(Q)",
        limit=f"below {SAME_TWINS:g} in {IN_A_ROW} rows",
        meaning="Both critics are the same, so that a second one prevents no over-estimation.",
        next_step="Give each critic weights of its own.",
    ),
    Check(
        name="frozen-temperature",
        level=ERROR,
        function=frozen_temperature,
        methods=(SAC,),
        needs=("losses/alpha", "charts/updates"),
        value="temperature",
        limit="the same from the first row on, after 100 updates",
        meaning="The temperature should be learned and does not move.",
        next_step="See whether its optimizer steps, has a step size above 0, and holds the "
        "parameter that the losses read.",
    ),
    Check(
        name="temperature-wrong-way",
        level=ERROR,
        function=temperature_wrong_way,
        methods=(SAC,),
        needs=("losses/alpha", "policy/entropy", "policy/entropy_gap"),
        value="entropy - target",
        limit=f"the temperature moves the wrong way in {IN_A_ROW} rows, {GAP_TO_MOVE:g} nat per "
        "dimension off",
        meaning="Too much entropy must lower the temperature, too little must raise it; here it "
        "is the other way round.",
        next_step="Look at the signs in the temperature's loss, and at the target's sign.",
    ),
    Check(
        name="still-target",
        level=ERROR,
        function=still_target,
        methods=(DQN, TD3, SAC),
        needs=TARGETS,
        value="|mean target - mean reward| / size of rewards",
        limit=f"below {LOOKS_AHEAD:g}, or a tenth of an episode, and the targets spread like "
        f"single rewards, in {IN_A_ROW} rows after {STILL_UPDATES} / tau updates or "
        f"{STILL_COPIES} copies",
        meaning="The targets hold one reward and nothing of what follows: the target network "
        "still is as it was made.",
        next_step="See whether the target is updated, in place, with tau above 0, and whether it "
        "is the one that the loss uses. A gamma that is lost shows the same.",
    ),
    Check(
        name="limit-as-end",
        level=ERROR,
        function=limit_as_end,
        needs=("env/time_limit_frac",),
        value="recent episodes as long as the time limit",
        limit="3 or more, none of which counts as cut",
        meaning="Time limits are taken for ends, so that the agent learns that nothing follows.",
        next_step="Look for a wrapper or a line that merges terminated and truncated.",
    ),
    Check(
        name="equal-lengths",
        level=WARN,
        function=equal_lengths,
        needs=("env/time_limit_frac", "train/length_min", "train/length_max"),
        value="length of every episode",
        limit=f"the same, {LEAST_LIMIT} or more, in {EPISODES_SEEN} episodes, none cut, and "
        "Gymnasium knows no time limit",
        meaning="It seems that the environment has a time limit and reports it as termination.",
        next_step="Let the environment return truncated, not terminated, when time is over; if "
        "the task really ends there, all is well.",
    ),
    Check(
        name="no-bootstrap",
        level=WARN,
        function=no_bootstrap,
        needs=("env/time_limit_frac",),
        value="share of episodes that were cut",
        limit="above 0 with --no-bootstrap-truncated",
        meaning="By your setting the agent learns that nothing follows a time limit.",
        next_step="Use --bootstrap-truncated, unless you compare with a program that has this bug.",
    ),
    Check(
        name="not-learning",
        level=WARN,
        function=not_learning,
        needs=EVAL,
        value="best evaluation so far",
        limit=f"not above the first by 2 standard errors after {LEARNED_BY:.0%} of the run; in "
        f"Atari's games after {ATARI_PATIENCE:,} steps at the earliest",
        meaning="At that step the agent was no better than before it learned.",
        next_step="Heed other findings first. Is the run too short for its task? Try a simpler "
        "one, and see that actions reach the environment in its units. Where |targets| exceed 10, "
        "scaled rewards may help.",
    ),
    Check(
        name="poor-fit",
        level=WARN,
        function=poor_fit,
        methods=(DQN, TD3, SAC),
        needs=("q/target_sd", "charts/updates"),
        value="rms(Q - target) / sd(target)",
        limit=f"above {POOR_FIT:g} in {IN_A_ROW} rows after {FIT_FROM:.0%} of the run and "
        f"{FIT_UPDATES:,} updates",
        meaning="The critic fits its targets worse than a constant would: it is dead, or its "
        "targets run away, or rows are mispaired.",
        next_step="Look at q/value_sd: near 0 the network is dead. Else compare q/target_max with "
        "the rewards, and check that obs, action and reward of a row belong together.",
    ),
    Check(
        name="critics-apart",
        level=WARN,
        function=critics_apart,
        methods=(TD3, SAC),
        needs=("q/twin_gap", "charts/updates"),
        value="mean |Q1 - Q2| / sd(Q)",
        limit=f"above {TWINS_APART:g} in {IN_A_ROW} rows after 1,000 updates",
        meaning="The critics differ more than states do. At 2 each is a constant, so its "
        "units are dead; below, one of them diverges.",
        next_step="Look at q/value_sd and grad/norm_critic, then at initialisation, activation and "
        "step size of the critic.",
    ),
    Check(
        name="target-scale",
        level=WARN,
        function=target_scale,
        needs=(),
        value="largest |target|; PPO: |advantage|",
        limit=f"above {TARGET_SCALE:g}",
        meaning="Networks learn numbers of such size slowly or not at all.",
        next_step="Scale or normalise the rewards; if they are small, the values diverge.",
    ),
    Check(
        name="obs-scale",
        level=WARN,
        function=obs_scale,
        methods=(PPO, TD3, SAC),
        needs=("env/obs_sd",),
        value="sd of observations",
        limit="below {:g} or above {:g} in {} rows, without --norm-obs".format(
            *OBS_SCALE, IN_A_ROW
        ),
        meaning="The networks see numbers of a size that they were not made for.",
        next_step="Normalise observations, or scale those entries that stand out.",
    ),
    Check(
        name="large-kl",
        level=WARN,
        function=large_kl,
        methods=(PPO,),
        needs=("losses/approx_kl",),
        value=f"median of approx_kl in {KL_ROWS} rows",
        limit=f"above {LARGE_KL:g}",
        meaning="The policy moves too far in a rollout, away from the data it learns from.",
        next_step="Lower --learning-rate or --update-epochs, or use --desired-kl 0.01 --no-anneal "
        "or --target-kl. If that changes little see that the ratio is clipped.",
    ),
    Check(
        name="tiny-kl",
        level=WARN,
        function=tiny_kl,
        methods=(PPO,),
        needs=("losses/approx_kl", "losses/clipfrac"),
        value=f"median of approx_kl in {KL_ROWS} rows",
        limit=f"below {TINY_KL:g}, and nothing is clipped",
        meaning="The policy hardly moves.",
        next_step="See whether the value loss, of rewards that are too large, takes all of the "
        "clipped gradient; whether the actor is dead; then raise --learning-rate.",
    ),
    Check(
        name="blind-critic",
        level=WARN,
        function=blind_critic,
        methods=(PPO,),
        needs=("losses/explained_variance",),
        value="explained variance",
        limit=f"within {BLIND:g} of 0 in {BLIND_ROWS} rows",
        meaning="The critic gives the same value whatever it sees.",
        next_step="Its units may be dead, or rewards so large that it cannot follow: look at "
        "losses/value_loss and ppo/adv_sd.",
    ),
    Check(
        name="harmful-critic",
        level=WARN,
        function=harmful_critic,
        methods=(PPO,),
        needs=("ppo/explained_var_mc",),
        value="explained variance of outcomes",
        limit=f"below 0 in {HARMFUL_ROWS} rows after 10% of the run",
        meaning="The critic predicts what comes worse than a constant would, so advantages "
        "mislead.",
        next_step="Lower the step size, raise --vf-coef, or look for observations that do not show "
        "how long the episode goes on.",
    ),
    Check(
        name="saturation",
        level=WARN,
        function=saturation,
        methods=(TD3, SAC),
        needs=("policy/saturation", "charts/updates", *EVAL),
        value="share of |actions| > 0.99",
        limit=f"above {SATURATED:g} in {IN_A_ROW} rows and {LONG_UPDATES:,} updates, and no "
        "evaluation above the first",
        meaning="The actor pushes to the bounds, where tanh has no gradient to bring it back.",
        next_step="Lower --actor-lr, look for rewards that are too large and for bounds that are "
        "too wide.",
    ),
    Check(
        name="still-actor",
        level=WARN,
        function=still_actor,
        methods=(TD3,),
        needs=("policy/action_sd", "charts/updates", *EVAL),
        value="sd of actions over a batch",
        limit=f"below {STILL_ACTOR:g} in {IN_A_ROW} rows and {LONG_UPDATES:,} updates, and no "
        "evaluation above the first",
        meaning="The actor does the same whatever it sees: it is saturated or dead.",
        next_step="Lower --actor-lr and --critic-lr; look at grad/norm_actor, which is near 0 if "
        "the actor cannot recover.",
    ),
    Check(
        name="noise-size",
        level=WARN,
        function=noise_size,
        methods=(PPO, SAC),
        needs=("policy/log_std",),
        value="mean log_std",
        limit="below {:g} or above {:g} in {} rows".format(*NOISE, IN_A_ROW),
        meaning="The policy no longer explores, or is little else but noise.",
        next_step="Collapse: a smaller step size, more entropy (--ent-coef, --target-entropy). "
        "Explosion: look for a sign of the entropy's term, and for rewards that do not "
        "depend on actions.",
    ),
    Check(
        name="temperature-range",
        level=WARN,
        function=temperature_range,
        methods=(SAC,),
        needs=("losses/alpha",),
        value="temperature",
        limit="below {:g} or above {:g}".format(*ALPHA),
        meaning="Rewards are tiny or huge, or the entropy cannot reach its target.",
        next_step="Scale the rewards; look at policy/entropy_gap and at --target-entropy.",
    ),
    Check(
        name="temperature-speed",
        level=WARN,
        function=temperature_speed,
        methods=(SAC,),
        needs=("losses/alpha",),
        value=f"largest / smallest temperature within {ALPHA_STEPS:,} steps",
        limit=f"above {ALPHA_CHANGE:g}",
        meaning="The temperature runs away faster than the policy can follow.",
        next_step="Lower --alpha-lr, and look at policy/entropy_gap.",
    ),
    Check(
        name="entropy-off-target",
        level=WARN,
        function=entropy_off_target,
        methods=(SAC,),
        needs=("policy/entropy", "policy/entropy_gap", "charts/updates"),
        value="(entropy - target) / dimensions",
        limit=f"more than {ENTROPY_OFF:g} nat off in {IN_A_ROW} rows, late and after "
        f"{ALPHA_REACH:g} / alpha_lr updates",
        meaning="The temperature does not control the entropy.",
        next_step="Too much entropy: do rewards depend on actions, does the actor learn? Too "
        "little: is log_std at its bounds, are rewards too large?",
    ),
    Check(
        name="slowing",
        level=WARN,
        function=slowing,
        needs=("charts/SPS", *[f"time/{name}" for name in ACTIVITIES]),
        value="speed",
        limit=f"below {SLOWER:g} of what it was in the first half so far, and one activity is to "
        f"blame for {TO_BLAME:.0%} of that: beside the others it takes {TIMES_AS_LONG:g} times as "
        "long",
        meaning="Something grows with the run. (Other programs slow down all activities.)",
        next_step="Look in that activity for lists, buffers or files that grow, and at the memory "
        "of the process.",
    ),
    Check(
        name="killed",
        level=WARN,
        function=killed,
        needs=(),
        value="how far it came",
        limit="no summary, and no metric for half an hour",
        meaning="The process is gone, or it hangs.",
        next_step="If it is gone go on with --resume, and look in the system's log for a lack of "
        "memory.",
    ),
]


class Finding(NamedTuple):
    """A check that fired."""

    check: Check
    alarm: Alarm

    @property
    def evidence(self):
        """What it saw, and its limit."""
        value = self.alarm.value
        shown = value if isinstance(value, str) else f"{value:.4g}"
        return f"{self.check.value}: {shown} (alarm: {self.check.limit})"


def why_not_logged(logs, metric):
    """Return why a metric is not there that scripts of the run's method log."""
    if logs.config.get("log_every") == 0 or not logs.method:
        return NOT_LOGGED
    if metric in EVAL:
        may_come = not logs.intervals and logs.config.get("eval_every") != 0
    elif metric.startswith(("train/", "env/time_limit", "ppo/explained_var_mc")):
        may_come = not logs.episodes
    else:  # updates log it
        may_come = not any(name.startswith("losses/") for name in logs.metrics)
    return TOO_EARLY if may_come else NOT_LOGGED


def judge(check, logs):
    """Return the Alarm of a check, None if all is well, or Unmade if it cannot tell."""
    missing = [metric for metric in check.needs if metric not in logs.metrics]
    if missing and logs.method and logs.method not in check.methods:
        return NOT_MEANT
    if missing:
        return why_not_logged(logs, missing[0])
    try:
        return check.function(logs)
    except NoSetting:
        return NOT_MEANT


@dataclass(eq=False)
class Examination:
    """What all checks say of a run."""

    findings: list[Finding]  # the gravest first
    unmade: dict[Unmade, list[str]]  # names of the checks that could not be made, by reason

    @property
    def meant(self):
        """The number of checks that are for such a run."""
        return len(CHECKS) - len(self.unmade[NOT_MEANT])

    @property
    def made(self):
        return self.meant - len(self.unmade[TOO_EARLY]) - len(self.unmade[NOT_LOGGED])

    @property
    def is_healthy(self):
        """Whether all checks that are for such a run were made, and nothing was found."""
        return not self.findings and self.made == self.meant


def examine(logs):
    """Return what all checks say of a run."""
    findings = []
    unmade = {reason: [] for reason in Unmade}
    for check in CHECKS:
        result = judge(check, logs)
        if isinstance(result, Alarm):
            findings.append(Finding(check, result))
        elif result is not None:
            unmade[result].append(check.name)
    findings.sort(key=lambda one: (LEVELS.index(one.check.level), one.alarm.step))
    return Examination(findings, unmade)


# --- printing -------------------------------------------------------------------------------------
def outcome(examination):
    """Say in a few words what was found."""
    if examination.findings:
        return ", ".join(finding.check.name for finding in examination.findings)
    if examination.is_healthy:
        return "healthy"
    reasons = []
    for reason in (TOO_EARLY, NOT_LOGGED):
        names = examination.unmade[reason]
        if names:
            reasons.append(f"{reason.value} for {len(names)}")
    checks = f"{examination.made} of {examination.meant} checks could be made"
    return f"nothing found, {checks}: {', '.join(reasons)}"


def verdict(folder, logs, examination):
    """Return the line about a run."""
    state = f"{logs.state} at step {logs.step:,} of {logs.total:,}"
    if examination.is_healthy:
        state += f", all {examination.meant} checks made"
    elif examination.findings:
        state += f", {examination.made} of {examination.meant} checks made"
    return f"{folder}: {outcome(examination)} ({state})"


def unmade_lines(examination, width):
    """Return the names of checks that could not be made, by reason, as lines of this width."""
    lines = []
    for reason, names in examination.unmade.items():
        if names:
            text = f"not made, {reason.value}: {', '.join(names)}"
            lines += wrapped(text, width, "  ", "    ")
    return lines


def wrapped(text, width, first="    ", others="    "):
    """Return a text as lines of this width, with these indents."""
    indents = {"initial_indent": first, "subsequent_indent": others}
    return textwrap.wrap(text, max(width, 40), break_on_hyphens=False, **indents)


def paragraph(finding, width):
    """Return a finding as lines of this width."""
    check = finding.check
    lines = [f"  {check.level} {check.name}, since step {finding.alarm.step:,}"]
    for text in (finding.evidence, check.meaning, f"Next: {check.next_step}"):
        lines += wrapped(text, width)
    return "\n".join(lines)


def text_of(folder, logs, examination, why=False):
    """Return a run's verdict and findings, and why checks are missing, as they fit the terminal."""
    width = shutil.get_terminal_size().columns
    lines = [verdict(folder, logs, examination)]
    lines += [paragraph(finding, width) for finding in examination.findings]
    if why:
        lines += unmade_lines(examination, width)
    return "\n".join(lines)


def markdown_lines(folder, examination):
    """Return the lines of a run in the Markdown table."""
    nothing = {"since step": "", "what it saw": "", "meaning": "", "next": ""}
    lines = []
    for finding in examination.findings:
        check = finding.check
        line = {
            "finding": f"{check.level} {check.name}",
            "since step": f"{finding.alarm.step:,}",
            "what it saw": finding.evidence,
            "meaning": check.meaning,
            "next": check.next_step,
        }
        lines.append(line)
    if not lines:
        lines = [{"finding": outcome(examination), **nothing}]
    return [{"run": f"`{folder}`", **line} for line in lines]


def total_line(examinations, lost):
    """Return the line about all runs; lost are the names that are none."""
    counted = []
    healthy = [folder for folder, one in examinations.items() if one.is_healthy]
    if healthy:
        counted.append(f"{len(healthy)} healthy")
    alarmed = [folder for folder, one in examinations.items() if one.findings]
    unsure = len(examinations) - len(healthy) - len(alarmed)
    if unsure:
        words = "with nothing found, but not all checks made (--why lists them)"
        counted.append(f"{unsure} {words}")
    if alarmed:
        words = "1 with an alarm" if len(alarmed) == 1 else f"{len(alarmed)} with alarms"
        counted.append(f"{words}: {', '.join(map(str, alarmed))}")
    runs = "1 run" if len(examinations) == 1 else f"{len(examinations)} runs"
    text = f"{runs}: {', '.join(counted)}"
    if lost:
        text += f"; not examined: {', '.join(map(str, lost))}"
    return text


def table_of_checks():
    """Return a line, a dict by title, for each check."""
    lines = []
    for check in CHECKS:
        line = {
            "check": f"`{check.name}`",
            "level": check.level,
            "fires": f"{check.value}: {check.limit}",
            "meaning": check.meaning,
            "look at next": check.next_step,
        }
        lines.append(line)
    return lines


def calibration(runs):
    """Return how often each check alarms in runs {folder: Logs} that are taken for healthy.

    These are a line, a dict by title, for each check, and the number of runs with an alarm.
    """
    lines = []
    alarmed = set()
    for check in CHECKS:
        results = {folder: judge(check, logs) for folder, logs in runs.items()}
        judged = [one for one in results.values() if not isinstance(one, Unmade)]
        fired = [folder for folder, one in results.items() if isinstance(one, Alarm)]
        alarmed |= {*fired}
        line = {
            "check": f"`{check.name}`",
            "level": check.level,
            "runs that it can judge": len(judged),
            "alarms": len(fired),
            "in": ", ".join(f"`{folder}`" for folder in fired),
        }
        lines.append(line)
    return lines, len(alarmed)


def calibration_text(runs, as_markdown):
    """Return the table of how often each check alarms, and their number."""
    lines, alarmed = calibration(runs)
    sentence = f"Of {len(runs)} runs {alarmed} have an alarm of any kind."
    return f"{table_text(lines, as_markdown)}\n\n{sentence}"


def table_text(lines, as_markdown):
    """Return a table in Markdown, or in columns that fit the terminal."""
    if as_markdown:
        return markdown_rows(lines)
    plain = [{title: str(cell).replace("`", "") for title, cell in line.items()} for line in lines]
    return fitted(plain).strip("\n")


# --- main -----------------------------------------------------------------------------------------
def show(runs, lost, args):
    """Print what is found in runs {folder: Logs}; return whether there is any alarm."""
    examinations = {folder: examine(logs) for folder, logs in runs.items()}
    if args.markdown:
        lines = []
        for folder, examination in examinations.items():
            lines += markdown_lines(folder, examination)
        say(f"{markdown_rows(lines)}\n")
    else:
        for folder, examination in examinations.items():
            say(text_of(folder, runs[folder], examination, args.why))
    return conclude(examinations, lost)


def conclude(examinations, lost):
    """Print the line about all runs, if they are several; return whether there is any alarm."""
    if len(examinations) + len(lost) > 1:
        say(total_line(examinations, lost))
    return any(one.findings for one in examinations.values())


@dataclass(eq=False)
class Watched:
    """A run that is watched."""

    folder: Path
    told: set[str] = field(default_factory=set)  # checks whose alarms were printed
    examination: Examination | None = None  # the last one
    is_living: bool = True

    def news(self):
        """Look at the run; return lines about what is new.

        A run that cannot be read for a moment, since it is being written, is read again later.
        """
        if not self.folder.exists():
            self.is_living = False
            return [f"{self.folder} is gone"]
        try:
            logs = read_logs(self.folder)
        except NO_RUN:
            return []
        self.examination = examine(logs)
        lines = []
        new = [one for one in self.examination.findings if one.check.name not in self.told]
        if new:
            self.told |= {one.check.name for one in new}
            lines.append(text_of(self.folder, logs, replace(self.examination, findings=new)))
        if logs.state != "living":
            self.is_living = False
            lines.append(verdict(self.folder, logs, self.examination))
        return lines


def watch(folders, lost, seconds):
    """Print findings as they come, until all runs have ended; return whether there are any."""
    runs = [Watched(folder) for folder in folders]
    while True:
        lines = []
        for run in runs:
            if run.is_living:
                lines += run.news()
        if lines and not say("\n".join(lines)):
            break  # nobody reads any more
        if not any(run.is_living for run in runs):
            conclude({run.folder: run.examination for run in runs if run.examination}, lost)
            break
        time.sleep(seconds)
    return any(run.told for run in runs)


def run(args):
    """Do what was asked; return the exit code."""
    if args.checks:
        say(table_text(table_of_checks(), args.markdown))
        return 0
    folders = find_runs(args.runs)
    runs = read_all(folders, read_logs, "not examined")
    lost = [folder for folder in folders if folder not in runs]
    if args.calibrate:
        say(calibration_text(runs, args.markdown))
        return 2 if lost else 0
    is_sick = watch(runs, lost, args.every) if args.watch else show(runs, lost, args)
    return 2 if lost else int(is_sick)


def main():
    """Read the command line, examine, and exit with 0, 1 or 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", help="run folders, folders of runs, or patterns such as 'runs/*'"
    )
    parser.add_argument("--watch", action="store_true", help="follow living runs until they end")
    parser.add_argument(
        "--every", type=float, default=10, metavar="SECONDS", help="between looks of --watch"
    )
    parser.add_argument(
        "--why", action="store_true", help="list the checks that could not be made, and why"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--checks", action="store_true", help="print the table of all checks")
    parser.add_argument(
        "--calibrate", action="store_true", help="count alarms in runs that are taken for healthy"
    )
    args = parser.parse_args()
    if not (args.runs or args.checks):
        parser.error("name run folders, or --checks")
    if not 0.1 <= args.every <= 3600:
        parser.error("--every must be between 0.1 and 3600 seconds")
    if args.watch and (args.why or args.markdown):
        parser.error("--watch prints findings as they come: leave --why and --markdown out")
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that lack a letter
    try:
        code = run(args)
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


if __name__ == "__main__":
    main()
