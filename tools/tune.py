"""Search good settings for a script with Optuna, and confirm the best ones on fresh seeds.

    python tools/tune.py pendulum.toml
    python tools/tune.py pendulum.toml --trials 60 --workers 4 --out runs/tune/long

A TOML file says what to search:

    script = "ppo_continuous.py"
    env_id = "Pendulum-v1"
    total_timesteps = 50_000
    seeds = [1, 2, 3]                          # of every trial
    fresh_seeds = [101, 102, 103, 104, 105]    # of the confirmation: others, five or more

    [search]                                   # any flags, by their names
    learning_rate = { low = 1e-4, high = 1e-2, log = true }
    gamma = { choices = [0.9, 0.95, 0.99] }
    hidden_size = { low = 32, high = 256, step = 32 }

    [fixed]                                    # may be left out: flags that all runs get
    num_envs = 8

Between two whole numbers only whole numbers are tried. Before the first trial the script is started
for a moment with the ends of each range and each choice. If it refuses one, the search does not
begin.

A trial trains one choice of settings with all seeds, a process each. Its value is the mean score of
its runs; a run's score is the mean return over the last tenth of its evaluations. At each twentieth
of the steps its mean return is held against those of finished trials: if it has never been above
their worst quarter, its runs are stopped (pruned). If a run fails or a return is NaN the trial ends
and counts as bad as the worst one so far, so that the search keeps away from there. Trial 0 has the
default settings, if the space holds them.

In the end the best trial and the default settings are both trained with the fresh seeds. The best
trial is called better only if the difference of their interquartile means has a 95 % bootstrap
interval above zero and a permutation test of means says p < 0.05. Otherwise the default is kept.

Ctrl-C and SIGTERM save all runs and end; the same command goes on, also after kill -9. Started
again in another terminal, or on a machine that shares the folder, it adds as many workers again.
With one worker the same command gives the same search, whether it was stopped or not.

The folder, runs/tune/<name of the file> by default, holds journal.log (Optuna's), trials/ and
confirm/ (run folders, for tools/report.py too), outcome.md, importance.png, history.png, slices.png
and best.toml, a file for the script's --config.
"""

import argparse
import fcntl
import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from run_folders import (
    NO_RUN,
    Evaluation,
    iqm,
    mean,
    mean_or_nan,
    metrics_file,
    read_evaluations,
    read_run,
    read_summary,
    reason_of,
    refuse,
    say,
    write_whole,
)
from search_space import (
    Search,
    check_flags,
    check_values,
    last_words,
    read_search,
    read_toml,
    require,
)
from text_tables import fitted, markdown_rows

NEEDED = ("optuna", "scipy", "matplotlib")
MISSING = [name for name in NEEDED if not importlib.util.find_spec(name)]
if not MISSING:  # else main says what to install
    import optuna
    from optuna.trial import TrialState
    from scipy import stats

STUDY = "tune"  # the name of the study in the journal
PAUSE = 0.1  # seconds between two looks at the runs
GRACE = 60  # seconds that a run has to save a checkpoint and end
TRIES = 3  # starts of a run that something else interrupts
POINTS = 20  # a trial is held against others at each of these parts of the steps
WARM_UP = 0.25  # the share of the steps before which no trial is pruned
KEPT = 75.0  # percent; the median would prune half of the good trials, too, as curves cross
NOT_FINITE = "a return is not finite"
UNPRUNED = 5  # trials that must be finished before one is pruned
HOPELESS = 3  # failed trials, and no other, after which the search ends
RANKED = 10  # trials in the table
ENOUGH_TO_WEIGH = 10  # trials from which on importances mean something


# --- signals and locks ----------------------------------------------------------------------------
class Stopped(Exception):
    """A signal asks to end."""


class Hopeless(Exception):
    """The search cannot go on: all trials have failed so far, or the script has changed."""


class Stop:
    """Remembers signals that ask to end, and passes them on to helpers."""

    def __init__(self, parent):
        self.count = 0
        self.number = signal.SIGTERM
        self.helpers = []
        self.parent = parent  # the process that this one helps, if any

    def listen(self):
        """Take SIGINT, SIGTERM and SIGHUP from here on, unless they are ignored as nohup asks."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.note)

    def note(self, number, frame):
        """Remember a signal."""
        self.count += 1
        self.number = number
        for helper in self.helpers:
            helper.terminate()

    def pause(self):
        """Wait a moment; raise Stopped if a signal came, or if whom this process helps is gone."""
        time.sleep(PAUSE)
        is_orphan = self.parent is not None and os.getppid() != self.parent
        if self.count or is_orphan:
            raise Stopped


def claim(path):
    """Lock a file until it is closed or this process ends; return None if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def turn(folder):
    """Wait for the turn of this worker, which lasts until the end of the block."""
    with open(folder / "lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class JournalLock:
    """Lets one process at a time append to Optuna's journal.

    Optuna's own lock is a file that a killed process leaves behind, for 30 seconds. This one is
    free at once, and what the killed process wrote of its last line is cut off.
    """

    def __init__(self, path):
        self.path = path
        self.file = None

    def acquire(self):
        """Wait for the lock."""
        self.file = open(self.path, "rb+")  # noqa: SIM115
        fcntl.flock(self.file, fcntl.LOCK_EX)
        content = self.file.read()
        if not content.endswith(b"\n"):
            self.file.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self):
        """Let others take the lock."""
        self.file.close()


# --- a run ----------------------------------------------------------------------------------------
@dataclass(eq=False)
class Training:
    """A run of the script with one seed, in a process of its own."""

    seed: int
    folder: Path
    command: list
    state: str = "waiting"  # waiting, living, finished or failed
    reason: str = ""  # why it failed
    process: subprocess.Popen | None = None
    starts: int = 0
    size: int = -1  # of the metrics when they were last read
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def log(self):
        """The file of what the script prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def ended(self):
        return self.state in ("finished", "failed")

    def begin(self, stop):
        """Start the process, which goes on from a checkpoint; not if the run has ended before."""
        if self.folder.exists():
            wait_until_free(self.folder, stop)
        summary = read_summary(self.folder)
        if summary.get("status") in ("finished", "failed"):
            self.state = summary["status"]
            self.reason = summary.get("reason", "")
            if self.has_nan():  # it has ended while no worker looked
                self.state = "failed"
                self.reason = self.reason or NOT_FINITE
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for this tool, which ends the runs
            )
        self.state = "living"
        self.starts += 1

    def look(self, stop):
        """Notice whether the run has ended; if something else has interrupted it, go on."""
        if self.state != "living":
            return
        code = self.process.poll()  # first: once it has ended, all that it wrote is read
        if not self.reason and self.has_nan():
            self.reason = NOT_FINITE
            self.process.terminate()
        if code is None:
            return
        summary = read_summary(self.folder)
        if self.reason:
            self.state = "failed"
        elif code == 0 and summary.get("status") == "finished":
            self.state = "finished"
        elif code in (0, 1, 2) or self.starts == TRIES:
            self.state = "failed"
            self.reason = summary.get("reason") or self.last_words()
        else:
            self.begin(stop)

    def has_nan(self):
        """Tell whether an evaluation is NaN or infinite."""
        return not all(math.isfinite(one.score) for one in self.read_evaluations())

    def last_words(self):
        """Return why the script says that it failed, without paths of this machine."""
        words = last_words(self.log.read_text("utf-8", "replace"))
        return words.replace(str(self.folder), self.folder.name)

    def read_evaluations(self):
        """Return all evaluations so far."""
        path = metrics_file(self.folder)
        with suppress(*NO_RUN):  # the run has not written any yet
            size = path.stat().st_size
            if size != self.size:
                self.evaluations = evaluations_in(path.read_bytes())
                self.size = size
        return self.evaluations

    def return_at(self, step):
        """Return the first evaluation from a step on, None if it is not there yet."""
        for evaluation in self.read_evaluations():
            if evaluation.step >= step:
                return evaluation.score
        return None

    def score(self):
        """Return the mean over the last tenth of the evaluations; NaN if the run has failed."""
        if self.state != "finished":
            return math.nan
        try:
            return read_run(self.folder).score
        except NO_RUN:
            return math.nan

    def delete_checkpoint(self):
        """Free the space of what a run that was stopped for good would go on from."""
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)


def evaluations_in(metrics):
    """Return the evaluations in metrics; lines without one are skipped unread, which is faster."""
    whole_lines = metrics[: metrics.rfind(b"\n") + 1].splitlines()
    rows = [json.loads(line) for line in whole_lines if b'"eval/return_mean"' in line]
    return read_evaluations(rows)


def wait_until_free(folder, stop):
    """End what a killed worker has left behind in a run folder; on another machine, wait for it."""
    for process in processes_of(folder):
        with suppress(psutil.Error):
            process.terminate()  # it saves a checkpoint
    deadline = time.monotonic() + GRACE
    while processes_of(folder) or is_in_use(folder):
        late = time.monotonic() > deadline
        for process in processes_of(folder) if late else ():
            with suppress(psutil.Error):
                process.kill()
        stop.pause()


def processes_of(folder):
    """Return the processes of this machine whose command names a run folder."""
    word = f"--run-dir={folder}"
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if word in (process.info["cmdline"] or ())]


def is_in_use(folder):
    """Tell whether a process, on whatever machine, writes to a run folder."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end(runs, stop):
    """Let runs save a checkpoint and end; kill those that linger, and all if Ctrl-C comes again."""
    processes = [run.process for run in runs if run.process]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or stop.count > 1:
            for process in processes:
                process.kill()
        time.sleep(PAUSE)


# --- a worker -------------------------------------------------------------------------------------
class Claimed(NamedTuple):
    """A trial that this worker trains while it holds the lock."""

    trial: Any  # optuna.trial.Trial
    lock: Any  # an open file
    goes_on: bool  # it was begun by a worker that is gone


class Confirmation(NamedTuple):
    """Scores with the fresh seeds."""

    winner: list
    default: list


def open_journal(path):
    """Return Optuna's storage in a journal, which is made if it is not there; or exit with 2."""
    journal = optuna.storages.journal
    backend = journal.JournalFileBackend(str(path), lock_obj=JournalLock(path))
    try:
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                json.loads(line)  # Optuna passes over a last line that is damaged, and then fails
        return journal.JournalStorage(backend)
    except (ValueError, LookupError, TypeError, AssertionError):
        return refuse(f"{os.path.relpath(path)} is damaged: put a copy back, or name a new --out")


class Worker:
    """Trains trials and the runs of the confirmation, beside others on the same folder."""

    def __init__(self, search, folder, options, stop):
        self.search = search
        self.folder = folder
        self.options = options
        self.stop = stop
        self.storage = open_journal(folder / "journal.log")
        self.study = self.open_study()

    def open_study(self):
        """Return the study of the folder, which is made if it is not there."""
        warm_up = round(WARM_UP * self.search.total_timesteps)
        pruner = optuna.pruners.PercentilePruner(KEPT, UNPRUNED, warm_up)
        if self.options.no_prune:
            pruner = optuna.pruners.NopPruner()
        with turn(self.folder):
            study = optuna.create_study(
                storage=self.storage,
                study_name=STUDY,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            default = self.search.default_settings()
            if default and not study.trials:
                study.enqueue_trial(default)
        return study

    def trials(self, *states):
        """Return all trials in the order of their numbers, or those in some states."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def training(self, parent, seed, settings):
        """Return a run that is still to begin."""
        folder = self.folder / parent / str(seed)
        return Training(seed, folder, self.search.command(seed, settings, folder))

    def check_script(self):
        """Raise Hopeless if the script is not what it was when the search began."""
        script = self.search.script
        kept = self.folder / "script.py"
        if not script.is_file() or script.read_bytes() != kept.read_bytes():
            remedy = f"put back what {os.path.relpath(kept)} holds, or name a new --out"
            raise Hopeless(f"{script.name} has changed since the search began: {remedy}")

    # --- trials
    def run_trials(self):
        """Train until all trials have ended, those of other workers included."""
        told = False
        while True:
            self.check_hope()
            claimed = self.next_trial()
            if claimed:
                with claimed.lock:
                    self.run_trial(claimed)
            elif self.trials(TrialState.RUNNING):
                if not told and not self.options.helper:
                    say("all trials have begun: waiting for those of other workers")
                told = True
                self.stop.pause()
            else:
                self.check_hope()  # again, since the last ones may have failed meanwhile
                return

    def check_hope(self):
        """Raise Hopeless if the first trials have all failed, and none is left."""
        if self.trials(TrialState.RUNNING):
            return  # it may be the one that works
        ended = [trial for trial in self.trials() if trial.state.is_finished()]
        failed = [trial for trial in ended if trial.state == TrialState.FAIL]
        first = min(HOPELESS, self.options.trials)
        if len(failed) >= first and len(failed) == len(ended):
            count = f"all {len(failed)} trials have" if len(failed) > 1 else "the trial has"
            why = self.why_failed(failed[0])
            raise Hopeless(f"{count} failed; {why}; mend it and name a new --out")

    def why_failed(self, trial):
        """Say why a trial failed, and how the log ends that tells more."""
        of_first_seed = f"trials/{trial.number}/{self.search.seeds[0]}.log"
        log = self.folder / trial.user_attrs.get("log", of_first_seed)
        lines = log.read_text("utf-8", "replace").split("\n") if log.exists() else []
        lines = [line.strip() for line in lines if line.strip()]
        words = f"trial {trial.number}, {trial.user_attrs['failed']}"
        if not lines:
            return words
        last = lines[-1].removeprefix("error: ")
        ending = "" if last in words else f", which ends with: {last:.200}"
        return f"{words}; read {os.path.relpath(log)}{ending}"

    def next_trial(self):
        """Return a trial whose worker is gone, else a new one; None if enough have begun."""
        with turn(self.folder):
            for running in self.trials(TrialState.RUNNING):
                lock = claim(self.lock_of(running.number))
                if lock:
                    return Claimed(self.take_up(running.number), lock, goes_on=True)
            number = len(self.trials()) - len(self.trials(TrialState.WAITING))
            if number >= self.options.trials:
                return None
            self.seed_sampler(number)
            trial = self.study.ask()
            return Claimed(trial, claim(self.lock_of(trial.number)), goes_on=False)

    def lock_of(self, number):
        """Return the file that the worker of a trial locks."""
        return self.folder / "trials" / str(number) / "lock"

    def take_up(self, number):
        """Return a trial that has begun, as Study.ask returned it then."""
        self.seed_sampler(number)
        study_id = self.storage.get_study_id_from_name(STUDY)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return optuna.trial.Trial(self.study, trial_id)

    def seed_sampler(self, number):
        """Let the sampler draw for a trial of that number, the same however often it is asked.

        One seed for a whole worker would draw the first trials again after each start.
        """
        seed = np.random.SeedSequence([self.options.seed, number]).generate_state(1)
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))

    def run_trial(self, claimed):
        """Train a trial, and tell Optuna how it ended."""
        self.check_script()
        trial = claimed.trial
        settings = {one.name: one.suggest(trial) for one in self.search.parameters}
        parent = f"trials/{trial.number}"
        runs = [self.training(parent, seed, settings) for seed in self.search.seeds]
        if claimed.goes_on:
            say(f"trial {trial.number} goes on; its worker was stopped")
            for run in runs:  # which live on where it was killed, also if none is begun again
                if run.folder.exists():
                    wait_until_free(run.folder, self.stop)
        twin = self.finished_twin(settings)
        if twin:
            trial.set_user_attr("scores", twin.user_attrs["scores"])
            self.study.tell(trial, twin.value)
            self.say_progress(trial.number, f"{twin.value:.4g}, as trial {twin.number}")
            for run in runs:
                run.delete_checkpoint()
            return
        try:
            is_pruned = self.follow(trial, runs)
        finally:
            end(runs, self.stop)
        if is_pruned:
            self.tell_pruned(trial)
        else:
            self.tell_ended(trial, runs)
        for run in runs:
            run.delete_checkpoint()

    def finished_twin(self, settings):
        """Return an earlier trial of the same settings, whose runs would be the same again."""
        for trial in self.trials(TrialState.COMPLETE):
            if trial.params == settings and "scores" in trial.user_attrs:
                return trial
        return None

    def follow(self, trial, runs):
        """Train until all runs have ended or one has failed; return whether to prune before."""
        if trial.should_prune():
            return True  # its worker was stopped before it could say so
        for run in runs:
            run.begin(self.stop)
        while True:
            for run in runs:
                run.look(self.stop)
            if self.report(trial, runs):
                return True
            any_failed = any(run.state == "failed" for run in runs)
            if any_failed or all(run.ended for run in runs):
                return False
            self.stop.pause()

    def report(self, trial, runs):
        """Report the mean returns that are new, in their order; return whether to prune."""
        reported = self.trials()[trial.number].intermediate_values
        for point in range(POINTS):
            step = point * self.search.total_timesteps // POINTS
            if step in reported:
                continue
            returns = [run.return_at(step) for run in runs]
            if None in returns or not math.isfinite(sum(returns)):
                return False
            trial.report(mean_or_nan(returns), step)
            if trial.should_prune():
                return True
        return False

    def tell_pruned(self, trial):
        """Tell Optuna of a trial that was stopped as too bad."""
        told = self.study.tell(trial, state=TrialState.PRUNED)
        self.say_progress(trial.number, f"pruned at step {told.last_step:,}, {told.value:.4g}")

    def tell_ended(self, trial, runs):
        """Tell Optuna of a trial whose runs have all ended, or one has failed.

        A failed trial counts as bad as the worst one so far: Optuna would forget it if it were told
        of a failure, and come back to such settings.
        """
        scores = [run.score() for run in runs]
        if math.isfinite(sum(scores)):
            value = mean_or_nan(scores)
            trial.set_user_attr("scores", scores)
            self.study.tell(trial, value)
            self.say_progress(trial.number, f"{value:.4g}")
            return
        reasons = [f"seed {run.seed}: {run.reason:.200}" for run in runs if run.reason]
        reason = "; ".join(reasons) or "a score is not finite"
        trial.set_user_attr("failed", reason)
        first = next((run for run in runs if run.reason), runs[0])
        trial.set_user_attr("log", str(first.log.relative_to(self.folder)))
        seen = [one.value for one in self.trials() if one.value is not None]
        if seen:
            self.study.tell(trial, min(seen))
        else:
            self.study.tell(trial, state=TrialState.FAIL)
        self.say_progress(trial.number, f"failed ({reason})")

    def say_progress(self, number, words):
        """Print a line about a trial that has ended."""
        trials = self.trials()
        done = sum(trial.state.is_finished() for trial in trials)
        settings = settings_text(trials[number].params)
        best = ranked(trials)[:1]
        best_words = f"; best {best[0].value:.4g}, trial {best[0].number}" if best else ""
        say(f"[{done}/{self.options.trials}] trial {number}: {words}; {settings}{best_words}")

    # --- confirmation
    def confirm(self, best):
        """Train the best trial and the default settings with fresh seeds; write down the scores."""
        winner = self.trials()[self.keep("winner", best)]
        winner_runs = []
        default_runs = []
        for seed in self.search.fresh_seeds:
            winner_runs.append(self.training("confirm/winner", seed, winner.params))
            default_runs.append(self.training("confirm/default", seed, {}))
        pairs = zip(winner_runs, default_runs, strict=True)
        runs = [run for pair in pairs for run in pair]  # in turns
        self.train(runs)
        scores = Confirmation(scores_of(winner_runs, runs), scores_of(default_runs, runs))
        self.keep("confirmation", scores._asdict())

    def keep(self, name, value):
        """Write a value down with the study, unless another worker has; return what is there."""
        with turn(self.folder):
            if name not in self.study.user_attrs:
                self.study.set_user_attr(name, value)
        return self.study.user_attrs[name]

    def train(self, runs):
        """Train runs, as many at a time as a trial has, until all have ended, here or elsewhere."""
        locks = {}  # of the runs that this worker trains
        try:
            while True:
                for run in runs:
                    if run.state == "waiting" and len(locks) < len(self.search.seeds):
                        self.take(run, locks)
                if all(run.ended for run in runs):
                    return
                self.stop.pause()
                for run in list(locks):
                    run.look(self.stop)
                    if run.ended:
                        locks.pop(run).close()
                        self.say_confirmed(run)
        finally:
            end(locks, self.stop)

    def take(self, run, locks):
        """Begin a run, unless another worker trains it."""
        self.check_script()
        lock = claim(run.folder.with_name(f"{run.folder.name}.lock"))
        if not lock:
            return
        run.begin(self.stop)
        if run.ended:
            lock.close()
        else:
            locks[run] = lock

    def say_confirmed(self, run):
        """Print a line about a run of the confirmation that has ended."""
        how = f"failed ({run.reason})" if run.state == "failed" else f"{run.score():.4g}"
        say(f"confirmation, {run.folder.parent.name}, seed {run.seed}: {how}")


def scores_of(runs, all_runs):
    """Return the scores of runs; one that failed counts as the worst evaluation of all runs."""
    seen = [one.score for run in all_runs for one in run.read_evaluations()]
    worst = min(filter(math.isfinite, seen), default=math.nan)
    scores = [run.score() for run in runs]
    return [score if math.isfinite(score) else worst for score in scores]


# --- the decision ---------------------------------------------------------------------------------
class Decision(NamedTuple):
    """What scores with fresh seeds say of the best trial and the default settings."""

    difference: float  # of interquartile means
    low: float  # of its 95 % interval
    high: float
    p: float

    @property
    def confirmed(self):
        return self.low > 0 and self.p < 0.05

    def __str__(self):
        interval = f"95 % interval {self.low:.4g} to {self.high:.4g}"
        return f"difference {self.difference:.4g}, {interval}, permutation test p = {self.p:.2g}"


def decide(winner, default):
    """Compare two lists of scores.

    The test permutes the difference of means. That of interquartile means hardly changes where many
    scores are equal, as on a task that is solved, and would find nothing there.
    """
    samples = (np.array(winner), np.array(default))
    options = {"vectorized": True, "n_resamples": 20_000, "rng": 0}
    drawn = stats.bootstrap(samples, difference_of_iqm, method="percentile", **options)
    permuted = stats.permutation_test(samples, difference_of_means, **options)
    low, high = map(float, drawn.confidence_interval)
    return Decision(float(difference_of_iqm(*samples)), low, high, float(permuted.pvalue))


def difference_of_iqm(one, other, axis=-1):
    """Return the difference of interquartile means along the last axis."""
    return iqm(one) - iqm(other)


def difference_of_means(one, other, axis=-1):
    """Return the difference of means along the last axis."""
    return mean(one) - mean(other)


# --- the outcome ----------------------------------------------------------------------------------
@dataclass
class Outcome:
    """What was found."""

    search: Search
    trials: list  # that have ended
    winner: Any  # the best trial
    confirmation: Confirmation | None
    decision: Decision | None

    @property
    def confirmed(self):
        return bool(self.decision and self.decision.confirmed)

    def ends(self):
        """Say how many trials ended in which way."""
        ends = Counter(how_it_ended(trial) for trial in self.trials)
        return ", ".join(f"{number} {how}" for how, number in ends.most_common())

    def title(self):
        """Say in a line what was done."""
        search = self.search
        task = f"{search.script.name} on {search.env_id}, {search.total_timesteps:,} steps"
        size = f"{len(self.trials)} trials of {len(search.seeds)} seeds"
        return f"{task}: {size}, {self.ends()}"

    def verdict(self):
        """Say in a sentence what to use."""
        name = f"trial {self.winner.number}"
        if self.search.is_default(self.winner.params):
            return "The default settings are the best of all trials: keep them."
        if not self.decision:
            return f"Not confirmed: {name} was not trained with fresh seeds. Keep the default."
        if self.confirmed:
            return f"Confirmed: {name} is better than the default settings ({self.decision})."
        return f"Not confirmed: {name} may be no better ({self.decision}). Keep the default."

    def settings(self):
        """Return the settings to use: of the best trial if it is confirmed, else the default."""
        search = self.search
        settings = {"env_id": search.env_id, "total_timesteps": search.total_timesteps}
        settings |= search.fixed
        return settings | self.winner.params if self.confirmed else settings


def outcome_of(search, study):
    """Return what a study has found."""
    kept = study.user_attrs
    winner = study.trials[kept["winner"]] if "winner" in kept else ranked(study.trials)[0]
    confirmation = Confirmation(**kept["confirmation"]) if "confirmation" in kept else None
    return Outcome(
        search=search,
        trials=[trial for trial in study.trials if trial.state.is_finished()],
        winner=winner,
        confirmation=confirmation,
        decision=decide(*confirmation) if confirmation else None,
    )


def how_it_ended(trial):
    """Return a word for the end of a trial."""
    if "failed" in trial.user_attrs:
        return "failed"
    return {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}[trial.state]


def ranked(trials):
    """Return the trials that are finished and have not failed, the best first."""
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    finished = [trial for trial in finished if "failed" not in trial.user_attrs]
    return sorted(finished, key=lambda trial: -trial.value)


def settings_text(settings):
    """Write settings in a line."""
    return ", ".join(f"{name} {short(value)}" for name, value in settings.items())


def short(value):
    """Write a value of a setting, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def list_of_scores(scores):
    """Write scores in a line."""
    return ", ".join(f"{score:.4g}" for score in scores)


def shown_trials(search, trials):
    """Return the trials for the table: the best ones, and that of the default settings."""
    found = ranked(trials)
    default = [trial for trial in found[RANKED:] if search.is_default(trial.params)]
    return found[:RANKED] + default[:1]


def table_of_best(search, trials):
    """Return a line, a dict by title, for each of the best trials."""
    seeds = ", ".join(map(str, search.seeds))
    lines = []
    for trial in shown_trials(search, trials):
        mark = " (default)" if search.is_default(trial.params) else ""
        line = {
            "trial": f"{trial.number}{mark}",
            "score": f"{trial.value:.4g}",
            f"seeds {seeds}": list_of_scores(trial.user_attrs["scores"]),
        }
        line |= {one.name: short(trial.params[one.name]) for one in search.parameters}
        lines.append(line)
    return lines


def with_values(trials):
    """Return a study in memory in which all trials that have a value count as finished.

    Pruned ones have that of their last report. Without them it would not be seen that a whole
    region is bad.
    """
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        if trial.value is not None:
            finished = optuna.trial.create_trial(
                value=trial.value, params=trial.params, distributions=trial.distributions
            )
            study.add_trial(finished)
    return study


def importance_evaluator():
    """Return the evaluator of Optuna that needs no other package.

    It asks what sets the better half of the trials apart from all. Its default, the best tenth,
    would be two or three trials.
    """
    return optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)


def importance_lines(study):
    """Return the importances of the parameters as lines, the largest first."""
    found = optuna.importance.get_param_importances(study, evaluator=importance_evaluator())
    width = max(map(len, found))
    lines = ["Importance for being among the better half of the trials, pruned ones included:", ""]
    for name, share in found.items():
        bar = "#" * round(20 * share)
        lines.append(f"    {name.ljust(width)}  {share:.2f}  {bar}".rstrip())
    return [*lines, ""]


def confirmation_lines(outcome):
    """Return the scores with fresh seeds as lines."""
    seeds = ", ".join(map(str, outcome.search.fresh_seeds))
    lines = [f"Interquartile mean of the scores, and the scores, of fresh seeds {seeds}:", ""]
    for side, scores in outcome.confirmation._asdict().items():
        centre = f"{iqm(np.array(scores)):.4g}"
        lines.append(f"    {side:7}  {centre:>7}  ({list_of_scores(scores)})")
    return [*lines, ""]


def outcome_text(outcome, study, write_table=markdown_rows):
    """Return all that was found, in Markdown; write_table makes text of a list of lines."""
    table = write_table(table_of_best(outcome.search, outcome.trials))
    lines = [f"{outcome.title()}.", "", table.strip("\n"), ""]
    if len(study.trials) >= ENOUGH_TO_WEIGH:
        lines += importance_lines(study)
    if outcome.confirmation:
        lines += confirmation_lines(outcome)
    lines.append(outcome.verdict())
    return "\n".join(lines) + "\n"


def best_toml(outcome):
    """Return the content of best.toml."""
    winner = outcome.winner
    comments = [outcome.title()]
    comments += [f"searched: {parameter}" for parameter in outcome.search.parameters]
    comments.append(f"trial {winner.number}: {winner.value:.4g}, {settings_text(winner.params)}")
    comments.append(outcome.verdict())
    lines = [f"# {comment}" for comment in comments]
    lines.append("")
    lines += [f"{name} = {json.dumps(value)}" for name, value in outcome.settings().items()]
    return "\n".join(lines) + "\n"


def draw(study, folder):
    """Write Optuna's figures of a study."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as figures

    drawn = {
        "importance": figures.plot_param_importances(study, evaluator=importance_evaluator()),
        "history": figures.plot_optimization_history(study, target_name="score"),
        "slices": figures.plot_slice(study, target_name="score"),
    }
    for name, axes in drawn.items():
        figure = np.ravel(axes)[0].figure
        figure.savefig(folder / f"{name}.png", dpi=80, bbox_inches="tight")
        pyplot.close(figure)


def conclude(outcome, folder):
    """Print what was found, and write it beside the trials."""
    study = with_values(outcome.trials)
    write_whole(folder / "outcome.md", outcome_text(outcome, study))
    write_whole(folder / "best.toml", best_toml(outcome))
    if len(study.trials) > 1:
        draw(study, folder)
    write_table = fitted if sys.stdout.isatty() else markdown_rows
    say(f"\n{outcome_text(outcome, study, write_table)}")
    script = os.path.relpath(outcome.search.script)
    config = os.path.relpath(folder / "best.toml")
    say(f"best.toml has the settings to use: python {shlex.join([script, '--config', config])}")


# --- main -----------------------------------------------------------------------------------------
def read_options(argv):
    """Return what the command line says."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("space", type=Path, metavar="FILE.toml", help="what to search")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of the search; default: runs/tune/<name of the file>",
    )
    parser.add_argument("--trials", type=int, default=30, help="how many; default: 30")
    parser.add_argument(
        "--workers",
        type=int,
        help="trials at a time, each of as many processes as there are seeds; default: as many as "
        "this machine has cores for",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search itself; default: 0")
    parser.add_argument("--no-prune", action="store_true", help="train all trials to their end")
    parser.add_argument(
        "--no-confirm", action="store_true", help="stop before the confirmation on fresh seeds"
    )
    parser.add_argument("--helper", type=int, help=argparse.SUPPRESS)  # of the process of that id
    return parser.parse_args(argv)


def check_options(options):
    """Refuse options that cannot work."""
    remedy = "pip install -r tests/requirements.txt"
    require(not MISSING, f"tune.py needs {', '.join(MISSING)}: {remedy}")
    for name in ("trials", "workers"):
        value = getattr(options, name)
        require(value is None or value >= 1, f"--{name} {value} must be 1 or more")
    require(options.seed >= 0, f"--seed {options.seed} must not be negative")


def folder_of(options):
    """Return the folder of the search."""
    return (options.out or Path("runs", "tune", options.space.stem)).resolve()


def open_folder(options, search):
    """Return the folder of the search, which keeps to one file and one source; else exit with 2."""
    folder = folder_of(options)
    shown = os.path.relpath(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begin_folder(folder, options.space, search.script)
    except OSError as error:
        refuse_folder(shown, error)
    name = options.space.name
    is_same = read_toml(folder / "space.toml") == read_toml(options.space)
    require(is_same, f"--out {shown} was begun with another {name}: name a new folder")
    name = search.script.name
    source = folder / "script.py"
    is_same = source.is_file() and source.read_bytes() == search.script.read_bytes()
    remedy = "name a new folder, or put its script.py back"
    require(is_same, f"--out {shown} was begun with another {name}: {remedy}")
    return folder


def check_is_ours(folder):
    """Refuse a folder of other files; a search may just be beginning in it."""
    shown = os.path.relpath(folder)
    try:
        is_begun = (folder / "space.toml").exists()
        there = {path.name for path in folder.glob("[!.]*")} - {"lock", "script.py"}
    except OSError as error:
        refuse_folder(shown, error)
    require(is_begun or not there, f"--out {shown} holds other files: name a new folder")


def refuse_folder(shown, error):
    """Say why a folder cannot be that of a search, and exit with 2."""
    refuse(f"--out {shown} cannot be used ({reason_of(error)}): name another folder")


def begin_folder(folder, space, script):
    """Copy the file and the source into a folder that is new."""
    with turn(folder):
        if not (folder / "space.toml").exists():
            shutil.copyfile(script, folder / "script.py")
            write_whole(folder / "space.toml", space.read_text("utf-8-sig"))


def check_begin(options, search, stop):
    """Refuse what no run can begin with, unless the search has begun, when it was asked before."""
    if (folder_of(options) / "space.toml").exists():
        return
    try:
        check_values(options.space, search, stop.pause)
    except Stopped:
        raise SystemExit(128 + stop.number) from None


def check_growth(worker):
    """Refuse more trials once the fresh seeds have been used."""
    begun = len(worker.trials())
    trials = worker.options.trials
    used = "winner" in worker.study.user_attrs
    sentence = f"--trials {trials}: the best of {begun} trials was confirmed already"
    remedy = "name another --out, and other fresh_seeds in the file"
    require(not used or trials <= begun, f"{sentence}: {remedy}")


def start_helpers(worker):
    """Start further workers as processes of their own."""
    options = worker.options
    command = [sys.executable, __file__, str(options.space), "--out", str(worker.folder)]
    command += ["--trials", str(options.trials), "--seed", str(options.seed)]
    command += ["--helper", str(os.getpid())]
    if options.no_prune:
        command.append("--no-prune")
    if options.no_confirm:
        command.append("--no-confirm")
    for _ in range(options.workers - 1):
        worker.stop.helpers.append(subprocess.Popen(command, start_new_session=True))
    if worker.stop.count:  # a signal came meanwhile, and may have missed the last ones
        for helper in worker.stop.helpers:
            helper.terminate()


def end_helpers(stop):
    """End the other workers; a signal has told them already, and a second one would be harsh."""
    for helper in stop.helpers:
        if not stop.count:
            helper.terminate()
    for helper in stop.helpers:
        helper.wait()


def work(worker):
    """Train all that is to do."""
    worker.run_trials()
    best = ranked(worker.trials())[0]
    is_default = worker.search.is_default(best.params)
    if not worker.options.no_confirm and not is_default:
        worker.confirm(best.number)


def say_plan(worker):
    """Print what is going to happen."""
    options = worker.options
    search = worker.search
    size = f"{options.trials} trials of {len(search.seeds)} seeds, {options.workers} at a time"
    say(f"{os.path.relpath(worker.folder)}: {size}")
    for parameter in search.parameters:
        say(f"searched: {parameter}")
    if not search.default_settings():
        say("the default settings are not in the space: no trial has them")


def lead(worker):
    """Work beside helpers, and say what was found or why the search ends."""
    stop = worker.stop
    say_plan(worker)
    try:
        start_helpers(worker)
        work(worker)
        for helper in stop.helpers:
            helper.wait()
    except Stopped:
        say("stopped; the same command goes on")
        raise SystemExit(128 + stop.number) from None
    except Hopeless as error:
        refuse(error)
    finally:
        end_helpers(stop)
    conclude(outcome_of(worker.search, worker.study), worker.folder)


def count_cores():
    """Return how many cores this process may use, which in a job of a cluster are not all."""
    if hasattr(os, "sched_getaffinity"):  # a Mac has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def main():
    """Search, confirm and conclude."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that lack a letter
    options = read_options(sys.argv[1:])
    check_options(options)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", module="optuna")  # of few trials, above all
    search = read_search(options.space)
    stop = Stop(options.helper)
    stop.listen()
    if not options.helper:
        check_flags(options.space, search)
        check_is_ours(folder_of(options))
        check_begin(options, search, stop)
    options.workers = options.workers or max(1, count_cores() // len(search.seeds))
    folder = open_folder(options, search)
    worker = Worker(search, folder, options, stop)
    check_growth(worker)
    if options.helper:
        with suppress(Stopped, Hopeless):  # the process that it helps says so
            work(worker)
    else:
        lead(worker)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before anything was begun
        sys.exit(130)
