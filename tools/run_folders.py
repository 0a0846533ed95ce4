"""Find run folders, read them, and the statistics of their scores: what all tools share.

The score of a run is the mean return over the last tenth of its evaluations.
"""

import ast
import glob
import gzip
import hashlib
import json
import math
import os
import re
import shlex
import sys
import time
import tomllib
import zlib
from collections import deque
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("update", "env", "act", "eval", "log")  # what time/* of the metrics measures
SILENT = 1800  # seconds without a metric after which a run without a summary is taken for killed

# What reading raises where a file is missing, damaged, or not that of a run
NO_RUN = (
    OSError,
    EOFError,
    zlib.error,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    ValueError,
)

# What all tools read of a row of metrics
NUMBERS = ("global_step", "seconds", "eval/return_mean", "charts/episodic_return")

# Settings on which no weight depends: runs that differ in them share a row
ASIDE = {
    "seed",
    "log_every",
    "checkpoint_every",
    "capture_video",
    "track",
    "wandb_project_name",
    "wandb_entity",
    "notes",
    "run_dir",
    "resume",
    "config",
    "evaluate",
}
# Settings that are columns, or that scripts settle by themselves: a name has them only where runs
# of one task differ in them
UNNAMED = {
    "env_id",
    "total_timesteps",
    "device",
    "threads",
    "compile",
    "eval_every",
    "life_loss",
}


# --- bad input ------------------------------------------------------------------------------------
def refuse(sentence):
    """Say what is wrong and exit with 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


class NoRun(ValueError):
    """A folder holds no run; its text says why, for people."""


def why_no_run(error):
    """Return in words for people why a folder holds no run; error is one of NO_RUN."""
    if isinstance(error, NoRun):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name} cannot be read: {reason_of(error)}"
    return "its files hold what a run does not write"


def reason_of(error):
    """Return in words for people why a file cannot be read or written."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def write_whole(path, text):
    """Write a file of text whole or not at all; several processes may do so at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, "utf-8")
    os.replace(part, path)


# --- finding --------------------------------------------------------------------------------------
def find_runs(names):
    """Return the run folders that names or patterns stand for, each once.

    A name that stands for none is returned as it is: who reads it says so.
    """
    found = {}
    for name in names:
        if name == "":  # as a path it would be this folder
            refuse("a name is empty: name run folders, or folders of runs")
        for path in paths_of(name):
            for folder in runs_within(Path(path)):
                found.setdefault(folder.resolve(), folder)
    return sorted(found.values())


def paths_of(name):
    """Return the paths that a name or a pattern stands for: of a pattern only folders, if any."""
    if os.path.exists(name):
        return [name]
    matches = sorted(glob.glob(name, recursive=True))
    folders = [path for path in matches if os.path.isdir(path)]
    return folders or matches or [name]


def runs_within(path):
    """Return all run folders in a folder, at any depth; itself if it is one, or has none.

    Hidden folders are left out. Links are followed when all else was searched; each folder counts
    once.
    """
    found = []
    walked = set()
    links = deque([path])
    while links:
        for folder, subfolders, files in os.walk(links.popleft(), onerror=say_unread):
            place = os.path.realpath(folder)
            if place in walked:  # a link may lead to a folder that it is in
                subfolders.clear()
                continue
            walked.add(place)
            if "config.toml" in files:
                found.append(Path(folder))
                subfolders.clear()
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            paths = [Path(folder, name) for name in subfolders]
            links += [path for path in paths if path.is_symlink()]  # os.walk does not follow them
    return found or [path]


def say_unread(error):
    """Say which folder may not be searched, which os.walk would pass over."""
    if isinstance(error, PermissionError):
        print(f"not searched: {error.filename} ({reason_of(error)})", file=sys.stderr)


# --- runs -----------------------------------------------------------------------------------------
class Evaluation(NamedTuple):
    """The mean return of the episodes that were played at a step."""

    step: int
    score: float


@dataclass(eq=False)
class Run:
    """What the tables need of a run folder, whether the run has ended or not."""

    script: str
    config: dict  # config.toml
    defaults: dict  # of the script's settings, as far as they are known
    source: str | None  # the beginning of a hash of script.py
    state: str  # finished, interrupted, failed, killed or living
    step: int  # the last one
    seconds: float
    evaluations: list[Evaluation]
    training: float  # mean of the last 100 episodes of training
    shares: np.ndarray  # of the time, [TIMES]
    pace: float  # steps per second in the last quarter of its steps over those in the first
    versions: dict  # of what the task depends on; empty while a run lives
    machine: str

    @property
    def seed(self):
        return self.config["seed"]

    @property
    def env_id(self):
        return self.config["env_id"]

    @property
    def steps(self):
        """The number of steps that was asked for."""
        return self.config["total_timesteps"]

    @property
    def sps(self):
        return self.step / max(self.seconds, 1e-9)

    @property
    def ended_early(self):
        return self.state not in ("finished", "living")

    @property
    def scored(self):
        """The last tenth of the evaluations."""
        tenth = math.ceil(len(self.evaluations) / 10)
        return self.evaluations[-tenth:]

    @property
    def score(self):
        """The mean over the last tenth of the evaluations; NaN if there are none."""
        return mean_or_nan([evaluation.score for evaluation in self.scored])


def mean_or_nan(values):
    """Return the mean of a list, NaN if it is empty."""
    if not values:
        return math.nan
    return sum(values) / len(values)


def read_run(folder):
    """Return the run of a folder; raise OSError, ValueError or the like if it holds none."""
    folder = folder.resolve()  # its name counts, also if it is given as "."
    config = read_config(folder)
    metrics = metrics_file(folder)
    rows = read_metrics(metrics)
    summary = read_summary(folder)
    source = b""
    if (folder / "script.py").exists():
        source = (folder / "script.py").read_bytes()
    script = script_name(folder, config, summary, source)
    logged = rows[-1] if rows else {"global_step": 0, "seconds": 0}
    versions = summary.get("versions", {})
    return Run(
        script=script,
        config=config,
        defaults=defaults_of(script, config, source),
        source=hashlib.sha256(source).hexdigest()[:7] if source else None,
        state=summary.get("status") or state_without_summary(metrics),
        step=int(summary.get("global_step", logged["global_step"])),  # a run may log nothing
        seconds=float(summary.get("seconds", logged["seconds"])),
        evaluations=read_evaluations(rows),
        training=mean_or_nan(column(rows, "charts/episodic_return")[-100:]),
        shares=shares_of_time(rows),
        pace=pace_of(rows),
        versions=versions_of_task(config, versions),
        machine=describe_machine(config, summary.get("hardware", "unknown"), versions),
    )


def read_all(folders, read, lost):
    """Return what read makes of each run folder; exit with 2 if none is a run.

    The words in lost say what happens to the others: "not counted".
    """
    found = {}
    for folder in folders:
        try:
            found[folder] = read(folder)
        except NO_RUN as error:
            print(f"{lost}: {folder} is no run ({why_no_run(error)})", file=sys.stderr)
    if not found:
        refuse("no run among what you named: name run folders, or folders of runs")
    return found


def read_config(folder):
    """Return the settings of a run; raise NoRun if there are none, or not those of a run."""
    if not folder.exists():
        raise NoRun("nothing has this name or matches it")
    if not folder.is_dir():
        raise NoRun("it is a file: name the folder of a run")
    path = folder / "config.toml"
    if not path.exists():
        raise NoRun("no config.toml in it: is it a run folder?")
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise NoRun(f"config.toml is damaged: {reason_of(error)}") from error
    for name in ("env_id", "seed", "total_timesteps"):
        if name not in config:
            raise NoRun(f"config.toml lacks {name}: is it a run folder?")
    if not isinstance(config["env_id"], str):
        raise NoRun("env_id in config.toml is no text")
    if not isinstance(config["seed"], int):
        raise NoRun("seed in config.toml is no whole number")
    if not isinstance(config["total_timesteps"], int) or config["total_timesteps"] < 1:
        raise NoRun("total_timesteps in config.toml is no positive whole number")
    return config


def metrics_file(folder):
    """Return the path of a run's metrics, compressed or not."""
    plain = folder / "metrics.jsonl"
    packed = folder / "metrics.jsonl.gz"
    if packed.exists() and not plain.exists():
        return packed
    return plain


def read_metrics(path):
    """Return the rows of a run's metrics; a line that is half written does not count.

    Raise NoRun if there are none, or if one is damaged.
    """
    if not path.exists():
        raise NoRun("no metrics yet: it has no metrics.jsonl")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise NoRun(f"{path.name} is damaged: it cannot be unpacked") from error
    whole_lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [read_row(line, f"line {n} of {path.name}") for n, line in enumerate(whole_lines, 1)]


def read_row(line, where):
    """Return a row of metrics; raise NoRun, which says where, if it is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise NoRun(f"{where} is damaged") from error
    if not isinstance(row, dict) or "global_step" not in row:
        raise NoRun(f"{where} is no row of metrics")
    for name in NUMBERS:
        if not is_number(row.get(name, 0)):
            raise NoRun(f"{name} is no number in {where}")
    if not math.isfinite(row["global_step"]):
        raise NoRun(f"global_step is {row['global_step']} in {where}")
    return row


def is_number(value):
    """Tell whether a value is a number; true is none."""
    return type(value) in (int, float)


def read_summary(folder):
    """Return the summary of a run that has ended; one that a crash cut short does not count."""
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(summary, dict) or "status" not in summary:
        return {}
    return summary


def state_without_summary(metrics):
    """Return whether a run without a summary lives."""
    silence = time.time() - metrics.stat().st_mtime
    return "killed" if silence > SILENT else "living"


def column(rows, name):
    """Return the values of a metric."""
    return [row[name] for row in rows if name in row]


def read_evaluations(rows):
    """Return all evaluations of a run."""
    name = "eval/return_mean"
    return [Evaluation(row["global_step"], float(row[name])) for row in rows if name in row]


def shares_of_time(rows):
    """Return the shares of the time that went into TIMES, between the first row and the last.

    The seconds before the first row are mostly those of the start, which is in no share.
    """
    timed = [row for row in rows if "charts/SPS" in row]
    if not timed:
        return np.zeros(len(TIMES))
    shares = [[row.get(f"time/{name}", 0) for name in TIMES] for row in timed]
    if len(timed) == 1:
        return np.array(shares[0], float)
    return np.average(shares[1:], 0, np.diff(column(timed, "seconds")))


def pace_of(rows):
    """Return the speed in the last quarter of a run's steps over that in the first.

    Speeds are medians of the rows with updates; NaN if one of the quarters has none.
    """
    trained = [row for row in rows if "charts/SPS" in row and has_updates(row)]
    if not trained:
        return math.nan
    last_step = trained[-1]["global_step"]
    first = [row for row in trained if row["global_step"] <= last_step / 4]
    last = [row for row in trained if row["global_step"] > last_step * 3 / 4]
    if not first:
        return math.nan
    return median(column(last, "charts/SPS")) / max(median(column(first, "charts/SPS")), 1e-9)


def has_updates(row):
    """Tell whether a row of metrics is from a time in which the agent learned."""
    return any(name.startswith("losses/") for name in row)


def simulator_of(config):
    """Return the package that steps the environment."""
    return "ale-py" if rules(config) else "mujoco"


def versions_of_task(config, versions):
    """Return the versions on which the task depends; none if a run says nothing of them."""
    if not versions:
        return {}
    return {name: versions.get(name) for name in ("gymnasium", simulator_of(config))}


def describe_machine(config, hardware, versions):
    """Return on what a run ran."""
    words = [hardware]
    if config.get("device"):
        words.append(config["device"])
    words.append("Python " + versions.get("python", "unknown").split()[0])
    for name in ("torch", "gymnasium", simulator_of(config)):
        words.append(f"{name} {versions.get(name, 'unknown')}")
    return ", ".join(words)


def rules(config):
    """Return the protocol of an Atari game, which is part of what is solved; else nothing."""
    name = config["env_id"]
    size = config.get("frame_size", 84)
    old = "life_loss" in config and not re.search("[:/]", name)  # Breakout-v4; not a module's own
    if not (name.startswith("ALE/") or "NoFrameskip" in name or old):
        return ""
    sticky = name.startswith("ALE/") or name.endswith("-v0")
    lives = {"on": True, "off": False}.get(config.get("life_loss"), not sticky)
    words = ["sticky actions" if sticky else "no sticky actions"]
    words.append("lost lives end" if lives else "lost lives do not end")
    if size != 84:
        words.append(f"{size} x {size} pixels")
    whose = ""
    if lives != sticky and size == 84:
        whose = "Machado's: " if sticky else "Nature's: "
    return f" ({whose}{', '.join(words)})"


# --- the script of a run, and its settings --------------------------------------------------------
def script_name(folder, config, summary, source):
    """Return the name of the script that trained.

    Its summary tells, in runs of today. In older ones, or without a summary, the command is that of
    the program, which may be one that calls the script's main. It counts if it is the script that
    the docstring names, or if it was given this folder; what is left is a copy of a script, or a
    program that calls it, and the docstring counts.
    """
    if "script" in summary:
        return str(summary["script"])
    by_default = name_in_default_folder(folder, config)
    documented = name_in_docstring(source)
    command = [str(word) for word in summary.get("command", [])]
    program = Path(command[0]).stem if command else ""
    if by_default:
        return by_default
    if program and (not documented or names_folder(command, folder)):
        return program
    if not program and folder.parent.name == safe(config["env_id"]):
        return folder.parent.parent.name  # benchmark.sh's OUT/<script>/<env>/<seed>
    return documented or "unknown"


def safe(env_id):
    """Return the name of an environment as it is written in names of folders."""
    return re.sub("[/:]", "_", env_id)


def name_in_default_folder(folder, config):
    """Return the script in <env>__<script>__<seed>__<time>, which scripts name by themselves."""
    before = re.escape(safe(config["env_id"])) + "__"
    match = re.fullmatch(rf"{before}(.+)__{config['seed']}__\d+", folder.name)
    return match[1] if match else ""


@cache
def syntax_tree(source):
    """Return the syntax tree of a source; an empty one if it cannot be parsed."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.parse("")


def name_in_docstring(source):
    """Return the script that the docstring of a source tells you to run."""
    text = ast.get_docstring(syntax_tree(source)) or ""
    found = re.search(r"\bpython ([\w./-]+)\.py\b", text)
    return Path(found[1]).name if found else ""


def names_folder(command, folder):
    """Tell whether a command says that the run is to be in this folder."""
    for word, following in pairwise([*command, ""]):
        flag, equals, value = word.partition("=")
        if flag in ("--run-dir", "--run_dir", "--resume"):
            named = value if equals else following
            if Path(named).name == folder.name:
                return True
    return False


def defaults_of(script, config, source):
    """Return the defaults of all settings that a run has, or could have had.

    Without its source they are those of the script in this checkout, for what the run has, and for
    what is None by default, which config.toml leaves out.
    """
    if source:
        return read_defaults(source)
    here = ROOT / f"{script}.py"
    if not here.exists():
        return {}
    defaults = read_defaults(here.read_bytes())
    return {name: value for name, value in defaults.items() if name in config or value is None}


def read_defaults(source):
    """Return the defaults in the class Args of a source, as far as they are plain values."""
    defaults = {}
    for node in syntax_tree(source).body:
        if not (isinstance(node, ast.ClassDef) and node.name == "Args"):
            continue
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and field.value:
                try:
                    value = ast.literal_eval(field.value)
                except ValueError:
                    continue  # it is computed
                # as config.toml has it
                defaults[field.target.id] = list(value) if isinstance(value, tuple) else value
    return defaults


def flag(name, value):
    """Write a setting as on the command line."""
    return shlex.join(flag_words(name, value))


def flag_words(name, value):
    """Return a setting as words of a command: --no-anneal, or --gamma and 0.9."""
    name = name.replace("_", "-")
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *[str(one) for one in values]]


def changed_settings(run, varied):
    """Return as flags the settings that a name has to tell; varied are those of the task's runs."""
    names = dict.fromkeys([*run.defaults, *run.config, *varied])
    return [flag(name, run.config.get(name)) for name in names if is_named(run, name, varied)]


def is_named(run, name, varied):
    """Tell whether a setting differs from its default, or where none is known, among runs."""
    if name in ASIDE:
        return False
    if name in UNNAMED and name not in varied:
        return False
    if name in run.defaults:
        return run.config.get(name) != run.defaults[name]
    return name in varied


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


def enough_for_interval(*tasks):
    """Tell whether there are runs enough, of every task, for an interval to mean something."""
    return all(len(task) >= 5 for task in tasks)


def strength(seeds):
    """Return what a number of seeds amounts to."""
    if seeds >= 10:
        return "claim"
    if seeds >= 5:
        return "exploratory"
    return "smoke" if seeds >= 2 else "anecdote"


# --- printing -------------------------------------------------------------------------------------
def say(text):
    """Print, and return whether anybody reads: head may have seen enough."""
    try:
        print(text, flush=True)
        return True
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return False
