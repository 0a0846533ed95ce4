"""tools/tune.py: searches that are killed and go on, prune, fail, and confirm what they found."""

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import TrialState

from tests.conftest import ENVIRON, ROOT, heed_signals

sys.path.insert(0, str(ROOT / "tools"))
tune = importlib.import_module("tune")
search_space = importlib.import_module("search_space")

quick = pytest.mark.quick


@quick
def test_a_script_that_changes_during_the_search_is_refused(tmp_path):
    (tmp_path / "script.py").write_text("x = 1\n")
    (tmp_path / "mine.py").write_text("x = 1\n")
    search = SimpleNamespace(script=tmp_path / "mine.py")
    worker = SimpleNamespace(search=search, folder=tmp_path)
    tune.Worker.check_script(worker)
    (tmp_path / "mine.py").write_text("x = 2\n")
    with pytest.raises(tune.Hopeless, match="mine.py has changed since the search began"):
        tune.Worker.check_script(worker)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(tune.Hopeless, match="mine.py has changed since the search began"):
        tune.Worker.check_script(worker)


@quick
def test_when_no_trial_is_left_its_hope_is_looked_at_again():
    """The last ones, of other workers, may have failed since."""
    looks = []
    worker = SimpleNamespace(check_hope=lambda: looks.append(1), next_trial=lambda: None)
    worker.trials = lambda *states: []
    tune.Worker.run_trials(worker)
    assert len(looks) == 2


@quick
def test_runs_of_a_killed_worker_are_waited_for(tmp_path, monkeypatch):
    """Also if their trial is not begun again, since another has the same settings."""
    waited = []
    monkeypatch.setattr(tune, "wait_until_free", lambda folder, stop: waited.append(folder))
    deleted = []
    runs = []
    for name in ("there", "not there"):
        delete = lambda name=name: deleted.append(name)  # noqa: E731
        runs.append(SimpleNamespace(folder=tmp_path / name, delete_checkpoint=delete))
    runs[0].folder.mkdir()
    twin = SimpleNamespace(user_attrs={"scores": [1]}, value=1.0, number=0)
    worker = SimpleNamespace(finished_twin=lambda settings: twin, stop=None)
    worker.search = SimpleNamespace(parameters=[], seeds=[0, 1])
    worker.check_script = lambda: None
    worker.training = lambda parent, seed, settings: runs[seed]
    worker.study = SimpleNamespace(tell=lambda trial, value: None)
    worker.say_progress = lambda number, words: None
    trial = SimpleNamespace(number=3, set_user_attr=lambda name, value: None)
    tune.Worker.run_trial(worker, SimpleNamespace(trial=trial, goes_on=True))
    assert waited == [runs[0].folder] and deleted == ["there", "not there"]


@quick
def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert tune.count_cores() == 2


# What a script does for a search, in less time. It scores 100 at x = 0.3 and size = 3, and the less
# the farther from there; x above 0.9 fails, 0.5 gives NaN, size 9 is refused, and size 7 but for
# x = 0.8. There are 21 evaluations.
TOY = """
import argparse, fcntl, json, math, os, signal, sys, time
from pathlib import Path


class Args:
    x: float = 0.8
    size: int = 3


def main():
    parser = argparse.ArgumentParser()
    for name in ("--run-dir", "--env-id", "--resume"):
        parser.add_argument(name)
    for name in ("--seed", "--threads", "--total-timesteps", "--size"):
        parser.add_argument(name, type=int, default=3)
    for name in ("--x", "--pause", "--noise", "--gain"):
        parser.add_argument(name, type=float, default={"--x": 0.8, "--gain": 1}.get(name, 0))
    for name in ("--capture-video", "--wide"):
        parser.add_argument(name, action=argparse.BooleanOptionalAction)
    args = parser.parse_args()
    assert args.threads == 1 and args.resume == "auto" and args.capture_video is False
    if args.env_id == "Gone-v0":
        print("error: --env-id Gone-v0 fails: there is no such environment", file=sys.stderr)
        sys.exit(2)
    if args.size == 7 and args.x != 0.8 or args.size == 9:
        print(f"error: --size {args.size} must not be {args.size}: try 6", file=sys.stderr)
        sys.exit(2)
    train(args, Path(args.run_dir))


def train(args, folder):
    folder.mkdir(parents=True, exist_ok=True)
    metrics = open(folder / "metrics.jsonl", "ab", buffering=0)
    try:
        fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("error: --run-dir is in use by a living process", file=sys.stderr)
        sys.exit(2)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    saved = folder / "checkpoint" / "state.json"
    state = json.loads(saved.read_text()) if saved.exists() else {"number": 0, "bytes": 0}
    print("going on at", state["number"], flush=True)
    metrics.truncate(state["bytes"])
    (folder / "summary.json").unlink(missing_ok=True)
    saved.parent.mkdir(exist_ok=True)
    names = ("env_id", "seed", "total_timesteps", "x", "size")
    lines = [f"{name} = {json.dumps(getattr(args, name))}" for name in names]
    (folder / "config.toml").write_text("\\\\n".join(lines))
    for number in range(state["number"], 21):
        time.sleep(args.pause)
        step = number * args.total_timesteps // 20
        if number == 3 and args.x > 0.9:
            end(folder, "failed", "FloatingPointError('x is not finite') at step 3", 1)
        score = 100 - args.gain * (300 * (args.x - 0.3) ** 2 + abs(args.size - 3))
        if args.x == 0.5 and number == 2:
            score = math.nan
        score = score * min(number / 15, 1) + args.noise * (args.seed * 7919 % 13 - 6)
        row = {"global_step": step, "seconds": 1.0, "eval/return_mean": score}
        metrics.write(json.dumps(row).encode() + b"\\\\n")
        part = saved.with_name("part")
        part.write_text(json.dumps({"number": number + 1, "bytes": metrics.tell()}))
        os.replace(part, saved)
        if stopped:
            end(folder, "interrupted", "SIGTERM", 130)
    end(folder, "finished", "", 0)


def end(folder, status, reason, code):
    summary = {"status": status, "reason": reason}
    (folder / "summary.json").write_text(json.dumps(summary))
    sys.exit(code)


main()
""".replace("\\\\", "\\")

SPACE = """
script = "toy.py"
env_id = "Toy-v0"
total_timesteps = 1000
seeds = [1, 2]
fresh_seeds = [11, 12, 13, 14, 15]

[search]
x = { low = 0.0, high = 0.9 }
"""


@pytest.fixture
def space(tmp_path, monkeypatch):
    """Return a function that writes a file of what to search, beside the toy script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(TOY)

    def write(text=SPACE, **changes):
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "toy.toml").write_text(text)
        return tmp_path / "toy.toml"

    return write


def command(*flags):
    """Return the command of a search in the current folder."""
    return [sys.executable, str(ROOT / "tools" / "tune.py"), "toy.toml", *map(str, flags)]


def start(*flags):
    """Start a search as a user does."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options |= {"start_new_session": True, "preexec_fn": heed_signals}
    return subprocess.Popen(command(*flags), env=ENVIRON, **options)


@contextmanager
def handlers_kept():
    """Put back the handlers of signals that a search in this process sets."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def search(monkeypatch, capsys):
    """Return a function that searches in this process, which is faster, and returns the output."""

    def run(*flags, draw=False):
        words = ["tune.py", "toy.toml", "--workers", "1", *map(str, flags)]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(tune, "PAUSE", 0.01)
        if not draw:
            monkeypatch.setattr(tune, "draw", lambda study, folder: None)  # it takes a second
        with handlers_kept():
            tune.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Return a function that searches and returns the one sentence that refuses it."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["tune.py", "toy.toml", *map(str, flags)])
        monkeypatch.setattr(tune, "PAUSE", 0.01)
        with handlers_kept(), pytest.raises(SystemExit) as end:
            tune.main()
        captured = capsys.readouterr()
        assert end.value.code == 2
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert not re.search(r"Errno|Path\(|<class|codec", captured.err), captured.err
        return captured.err

    return run


def toy_that_waits(condition):
    """Return the toy, which waits before a row while a condition holds: for SIGTERM, a minute."""
    place = "        step = number * args"
    waiting = "        late = time.time() + 60\n"
    waiting += f"        while {condition} and not stopped and time.time() < late:\n"
    waiting += "            time.sleep(0.01)\n"
    return TOY.replace(place, waiting + place)


def trials_in(folder):
    """Return all trials of a search."""
    journal = optuna.storages.journal
    storage = journal.JournalStorage(journal.JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(study_name="tune", storage=storage).trials


def processes_in(folder):
    """Return the processes whose command names something in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(f"{folder}/" in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def wait_for(condition, seconds=60):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def rows_of(run):
    """Return the metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- bad input ------------------------------------------------------------------------------------
FAULTS = {
    "unknown_key": ("seeds = [1, 2]", "seed = [1, 2]", "seed", "seeds"),
    "no_key": ('env_id = "Toy-v0"', "", "env_id"),
    "env_id": ('env_id = "Toy-v0"', "env_id = 3", "env_id"),
    "steps": ("= 1000", '= "many"', "total_timesteps"),
    "no_script": ('"toy.py"', '"gone.py"', "gone.py"),
    "no_seeds": ("seeds = [1, 2]", "seeds = []", "seeds"),
    "seed_twice": ("seeds = [1, 2]", "seeds = [1, 1]", "seeds"),
    "seed_is_text": ("seeds = [1, 2]", 'seeds = ["1"]', "seeds"),
    "few_fresh": ("[11, 12, 13, 14, 15]", "[11, 12, 13, 14]", "fresh_seeds", "5"),
    "used_fresh": ("[11, 12,", "[11, 2,", "seed 2", "fresh_seeds"),
    "empty": ("x = { low = 0.0, high = 0.9 }", "", "[search]"),
    "no_table": ("{ low = 0.0, high = 0.9 }", "0.3", "x", "choices"),
    "low_is_high": ("low = 0.0", "low = 0.9", "x", "0.9"),
    "no_high": (", high = 0.9", "", "high"),
    "low_is_text": ("low = 0.0", 'low = "0"', "low"),
    "unknown_word": ("high = 0.9", "high = 0.9, logs = true", "logs", "log?"),
    "log_of_zero": ("high = 0.9", "high = 0.9, log = true", "log", "low"),
    "log_and_step": ("low = 0.0, high = 0.9", "low = 1, high = 9, step = 2, log = true", "step"),
    "large_step": ("high = 0.9", "high = 0.9, step = 2", "step"),
    "one_choice": ("low = 0.0, high = 0.9", "choices = [1]", "choices"),
    "choice_twice": ("low = 0.0, high = 0.9", "choices = [1, 2, 1]", "choice 1"),
    "list_as_choice": ("low = 0.0, high = 0.9", "choices = [[1], [2]]", "choices"),
    "choices_and_low": ("high = 0.9", "choices = [1, 2]", "choices"),
    "unknown_flag": ("x = {", "sise = {", "toy.py", "sise", "size"),
    "switch": ("x = {", "wide = {", "wide", "true"),
    "no_switch": ("low = 0.0, high = 0.9", "choices = [true, false]", "x", "switch"),
    "seed_searched": ("x = {", "seed = {", "seed", "seeds"),
    "threads_fixed": ("[search]", "[fixed]\nthreads = 2\n[search]", "threads", "tune.py"),
    "config_fixed": ("[search]", '[fixed]\nconfig = "a.toml"\n[search]', "config", "[fixed]"),
    "list_fixed": ("[search]", "[fixed]\nsize = [2]\n[search]", "size"),
    "fixed_and_searched": ("[search]", "[fixed]\nx = 0.2\n[search]", "x", "[fixed]"),
    "unknown_fixed": ("[search]", "[fixed]\nsise = 2\n[search]", "sise", "size"),
    "no_environment": ('"Toy-v0"', '"Gone-v0"', "--env-id Gone-v0 fails: there is no such"),
    "text_for_a_number": (
        "low = 0.0, high = 0.9",
        'choices = ["abc", 0.2]',
        "[search] x",
        "does not take abc",
        "argument --x: invalid float value",
    ),
    "part_for_a_whole": (
        "[search]",
        "[search]\nsize = { low = 1.0, high = 2.5 }",
        "[search] size",
        "argument --size: invalid int value: '1.0'",
    ),
    "last_choice": (
        "x = { low = 0.0, high = 0.9 }",
        "size = { choices = [1, 2, 9] }",
        "[search] size",
        "--size 9 must not be 9: try 6",
    ),
    "highest_of_a_grid": (
        "x = { low = 0.0, high = 0.9 }",
        "size = { low = 1, high = 10, step = 4 }",
        "--size 9 must not be 9: try 6",
    ),
    "text_fixed": (
        "[search]",
        '[fixed]\nsize = "abc"\n[search]',
        "toy.py refuses it",
        "argument --size: invalid int value",
    ),
    "no_toml": ("[search]", "[search", "toy.toml", "read"),
}


@quick
@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_file_are_refused_in_one_sentence(name, space, refusal):
    old, new, *words = FAULTS[name]
    space(change=(old, new))
    sentence = refusal()
    assert all(word in sentence for word in words), sentence
    assert not os.path.exists("runs")


@quick
def test_faults_of_the_command_are_refused_in_one_sentence(space, refusal, tmp_path, monkeypatch):
    assert "toy.toml" in refusal()  # it is not there
    space()
    assert "--trials" in refusal("--trials", 0)
    assert "--workers" in refusal("--workers", 0)
    assert "--seed" in refusal("--seed", -1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert "mine" in refusal("--out", "mine")
    assert os.listdir("mine") == ["thesis.txt"]
    assert "thesis.txt" in refusal("--out", "mine/thesis.txt")
    assert "--out mine/thesis.txt cannot be used (" in refusal("--out", "mine/thesis.txt")
    assert "cannot be used (file name too long)" in refusal("--out", "x" * 300)
    (tmp_path / "toy.toml").write_bytes(b"\xff")
    assert "toy.toml cannot be read (it is no UTF-8 text): name a TOML file" in refusal()
    (tmp_path / "toy.toml").unlink()
    assert "toy.toml cannot be read (no such file or directory)" in refusal()
    (tmp_path / "toy.toml").mkdir()
    assert "toy.toml cannot be read (is a directory)" in refusal()
    monkeypatch.setattr(tune, "MISSING", ["optuna"])
    sentence = refusal()
    assert "optuna" in sentence and "pip install" in sentence


@quick
def test_a_script_that_cannot_start_or_lacks_what_is_needed_is_refused(space, refusal, tmp_path):
    space()
    (tmp_path / "toy.py").write_text("import gone_module")
    assert "gone_module" in refusal()
    (tmp_path / "toy.py").write_text(TOY.replace('"--resume"', '"--go-on"'))
    assert "--resume" in refusal()


ASKED = """
if __name__ == "__main__":
    with open("asked", "a") as file:
        file.write(" ".join(sys.argv[1:]) + "\\n")
"""


def asked(folder):
    """Return the settings with which the toy was started, but for those that all runs have."""
    starts = []
    for line in (folder / "asked").read_text().splitlines():
        flags = [word for word in line.split() if word.startswith(("--x=", "--size=", "--wide"))]
        starts.append(" ".join(flags) if "--run-dir=" in line else "")
    return starts


@quick
def test_each_end_and_choice_is_tried_once_before_a_search_begins(space, search, tmp_path):
    """Together; alone only what is refused together, as it may be that two do not go together."""
    text = SPACE.replace("{ low = 0.0, high = 0.9 }", "{ low = 0.1, high = 0.8 }")
    space(text + "size = { choices = [7, 3, 4] }\n")
    (tmp_path / "toy.py").write_text(TOY.replace("main()\n", f"{ASKED.strip()}\nmain()\n"))
    out = search("--trials", 1, "--no-confirm")
    assert out.startswith("asking toy.py whether it takes these settings\n")
    starts = asked(tmp_path)
    assert starts[:7] == [
        "",
        "",
        "--x=0.1 --size=7",
        "--x=0.1",
        "--size=7",
        "--x=0.8 --size=3",
        "--x=0.1 --size=4",
    ]
    assert len(starts) == 9  # with the trial's two
    search("--trials", 1, "--no-confirm")
    assert len(asked(tmp_path)) == 10  # it was asked for its flags, not for these settings


@quick
def test_defaults_that_cannot_be_trained_are_said_and_others_are_searched(
    space, search, refusal, tmp_path
):
    text = SPACE.replace("[search]", "[fixed]\nx = 0.2\n[search]")
    text = text.replace("x = {", "size = {")
    source = TOY.replace("type=int, default=3", "type=int, default=7")
    source = source.replace("size: int = 3", "size: int = 7")
    (tmp_path / "toy.py").write_text(source.replace("main()\n", f"{ASKED.strip()}\nmain()\n"))
    text = text.replace("{ low = 0.0, high = 0.9 }", "{ choices = [3, 4] }")
    space(text)
    out = search("--trials", 1, "--no-confirm")
    assert "the default settings cannot be trained, and will count as failed: --size 7" in out
    path = space(text.replace("[3, 4]", "[7, 3]"))
    search_space.check_values(path, search_space.read_search(path), lambda: time.sleep(0.01))
    space(text.replace("[3, 4]", "[9, 7]"))
    assert "toy.py refuses it: --size 7 must not" in refusal("--out", "other")
    (tmp_path / "asked").unlink()
    space(text.replace("Toy-v0", "Gone-v0"))
    assert "toy.py refuses it: --env-id Gone-v0" in refusal("--out", "other")
    assert len(asked(tmp_path)) == 3  # its flags, the defaults, the first choice


@quick
def test_a_script_that_says_nothing_is_taken_to_have_begun(space, monkeypatch, tmp_path):
    space()
    (tmp_path / "toy.py").write_text("import time; time.sleep(99)")
    monkeypatch.setattr(search_space, "PATIENCE", 0.2)
    search = search_space.read_search(tmp_path / "toy.toml")
    start = time.monotonic()
    assert search_space.refusal_of(search, {}, lambda: time.sleep(0.05)) == ""
    assert time.monotonic() - start < 30 and not processes_in(tmp_path)


def test_ctrl_c_while_the_script_is_asked_leaves_nothing_behind(space, tmp_path):
    space()
    slow = TOY.replace(
        "    parser = argparse",
        "    time.sleep(0 if '--help' in sys.argv else 99)\n" + "    parser = argparse",
        1,
    )
    (tmp_path / "toy.py").write_text(slow)
    process = start("--workers", 1, "--trials", 1)
    words = lambda: [word for one in processes_in(tmp_path) for word in one.info["cmdline"]]  # noqa: E731
    wait_for(lambda: any(word.startswith("--run-dir=") for word in words()))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in out
    assert not processes_in(tmp_path) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("gamma = 0.9", 'gamma = "abc"', "refuses it: Error parsing --gamma"),
        pytest.param(
            "Pendulum-v1",
            "Pendulu-v1",
            "refuses it: --env-id Pendulu-v1 fails: ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "high = 0.5",
            "high = 1.5",
            "[search] gae_lambda: ppo_continuous.py does not take 1.5: --gae-lambda must",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_our_scripts_are_asked(space, refusal, old, new, words):
    text = SPACE.replace("toy.py", "ppo_continuous.py").replace("Toy-v0", "Pendulum-v1")
    text = text.replace("x = {", "gae_lambda = {").replace("0.9 }", "0.5 }")
    space(text + "[fixed]\ngamma = 0.9\nrollout_steps = 640\nbatch_size = 320\n", change=(old, new))
    assert words in refusal()


@quick
def test_help_needs_no_optuna(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['optuna'] = None")
    environ = ENVIRON | {"PYTHONPATH": str(tmp_path)}
    help_command = [sys.executable, tune.__file__, "--help"]
    done = subprocess.run(help_command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[search]" in done.stdout and "--workers" in done.stdout


# --- searching ------------------------------------------------------------------------------------
def test_the_best_trial_is_found_and_confirmed(space, search, tmp_path):
    """The toy's default is x = 0.8, which scores 25; the best is 100 at 0.3."""
    space()
    out = search("--trials", 10, draw=True)
    folder = tmp_path / "runs" / "tune" / "toy"
    trials = trials_in(folder)
    assert len(trials) == 10 and all(trial.state.is_finished() for trial in trials)
    assert trials[0].params == {"x": 0.8} and trials[0].value == pytest.approx(25)
    best = tune.ranked(trials)[0]
    assert best.value == pytest.approx(100 - 300 * (best.params["x"] - 0.3) ** 2)
    assert best.user_attrs["scores"] == pytest.approx([best.value] * 2)
    found = tomllib.loads((folder / "best.toml").read_text())
    assert found == {"env_id": "Toy-v0", "total_timesteps": 1000, "x": best.params["x"]}
    runs = sorted(path.parent for path in folder.glob("confirm/*/*/summary.json"))
    assert [f"{run.parent.name}/{run.name}" for run in runs] == [
        f"{side}/{seed}" for side in ("default", "winner") for seed in range(11, 16)
    ]
    for run in runs:
        x = tomllib.loads((run / "config.toml").read_text())["x"]
        assert x == (best.params["x"] if run.parent.name == "winner" else 0.8)
    assert "\nConfirmed: " in out and (folder / "outcome.md").read_text().strip() in out
    for name in ("importance.png", "history.png", "slices.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not processes_in(tmp_path)


def test_chance_is_not_confirmed_and_the_default_is_kept(space, search, tmp_path):
    """All settings are as good; one looks best by rounding."""
    text = SPACE.replace("[search]", "[fixed]\ngain = 1e-9\nnoise = 1.0\n[search]")
    space(text)
    out = search("--trials", 3, "--out", "flat")
    folder = tmp_path / "flat"
    assert "\nNot confirmed: " in out
    found = tomllib.loads((folder / "best.toml").read_text())
    assert found == {"env_id": "Toy-v0", "total_timesteps": 1000, "gain": 1e-9, "noise": 1.0}
    assert len([*folder.glob("confirm/*/*/summary.json")]) == 10


@quick
def test_a_default_that_is_best_is_not_confirmed_against_itself(space, search, tmp_path):
    space(change=("{ low = 0.0, high = 0.9 }", "{ choices = [0.8, 0.85] }"))
    out = search("--trials", 2)
    assert "default settings are the best" in out
    folder = tmp_path / "runs" / "tune" / "toy"
    assert not (folder / "confirm").exists()
    assert "x" not in tomllib.loads((folder / "best.toml").read_text())


def test_settings_that_come_again_are_not_trained_again(space, search, tmp_path):
    space(change=("{ low = 0.0, high = 0.9 }", "{ choices = [0.2, 0.8] }"))
    search("--trials", 8, "--no-confirm", "--no-prune")
    folder = tmp_path / "runs" / "tune" / "toy"
    trials = trials_in(folder)
    assert [trial.value for trial in trials] == [
        pytest.approx({0.2: 97, 0.8: 25}[trial.params["x"]]) for trial in trials
    ]
    assert len([*folder.glob("trials/*/1/summary.json")]) == 2


def prune_step(trial, earlier):
    """Return the first step where a trial was never above the worst quarter of five or more."""
    finished = [one.intermediate_values for one in earlier if one.state == TrialState.COMPLETE]
    best = -math.inf
    for step, value in trial.intermediate_values.items():
        best = max(best, value)
        if len(finished) < 5 or step < 250:
            continue
        if best < np.percentile([values[step] for values in finished], 25):
            return step
    return None


def test_bad_trials_are_pruned_and_their_runs_are_gone(space, search, tmp_path):
    """A trial is pruned at the first twentieth after a quarter of the steps where it is bad."""
    text = SPACE.replace("[search]", "[fixed]\npause = 0.02\n[search]")
    space(text.replace("[1, 2]", "[1]"))
    # no run ends before all that it can be pruned for is reported
    told = """f'"trial_id":{folder.parent.name},"step":950,'"""
    journal = "Path('runs/tune/toy/journal.log').read_text()"
    source = toy_that_waits(f"number == 20 and {told} not in {journal}")
    (tmp_path / "toy.py").write_text(source)
    out = search("--trials", 10, "--no-confirm")
    folder = tmp_path / "runs" / "tune" / "toy"
    trials = trials_in(folder)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned and not processes_in(tmp_path)
    for trial in trials:
        assert prune_step(trial, trials[: trial.number]) == (
            trial.last_step if trial in pruned else None
        )
    for trial in pruned:
        assert f"trial {trial.number}: pruned at step {trial.last_step}" in out
        run = folder / "trials" / str(trial.number) / "1"
        assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
        assert not (run / "checkpoint").exists()
    for trial in trials:
        run = folder / "trials" / str(trial.number) / "1"
        returns = {row["global_step"]: row["eval/return_mean"] for row in rows_of(run)}
        for step, value in trial.intermediate_values.items():
            assert value == returns[step]


def test_without_pruning_all_trials_are_trained_to_their_end(space, search, tmp_path):
    space()
    search("--trials", 8, "--no-confirm", "--no-prune")
    states = {trial.state for trial in trials_in(tmp_path / "runs" / "tune" / "toy")}
    assert states == {TrialState.COMPLETE}


def test_failed_trials_count_as_the_worst_so_far(space, search, tmp_path):
    text = SPACE.replace("{ low = 0.0, high = 0.9 }", "{ choices = [0.2, 0.5, 0.8, 0.95] }")
    text += "size = { choices = [3, 7] }\n"
    space(text)
    out = search("--trials", 16, "--no-confirm", "--no-prune")
    trials = trials_in(tmp_path / "runs" / "tune" / "toy")
    failed = [trial for trial in trials if "failed" in trial.user_attrs]
    for trial in trials:
        x, size = trial.params["x"], trial.params["size"]
        is_bad = x in (0.5, 0.95) or (size == 7 and x != 0.8)
        assert is_bad == (trial in failed)
    reasons = " ".join(trial.user_attrs["failed"] for trial in failed)
    for words in ("x is not finite", "--size 7 must not be 7: try 6", "a return is not finite"):
        assert words in reasons
    for trial in failed:
        assert trial.value == min(one.value for one in trials[: trial.number])
    assert trials[tune.ranked(trials)[0].number].params == {"x": 0.2, "size": 3}
    assert "failed (seed 1: " in out
    assert not [*tmp_path.glob("runs/tune/toy/trials/*/*/checkpoint")]
    assert tune.how_it_ended(failed[0]) == "failed"


def test_a_search_whose_first_trials_all_fail_ends(space, refusal, tmp_path):
    choices = ("{ low = 0.0, high = 0.9 }", "{ choices = [0.95, 0.96, 0.97] }")
    space(one=choices, other=("seeds = [1, 2]", "seeds = [1]"))  # or either may fail first
    sentence = refusal("--workers", 1)
    assert "x is not finite" in sentence
    trials = trials_in(tmp_path / "runs" / "tune" / "toy")
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert "x is not finite" in refusal("--workers", 1)  # and does not begin anew
    assert sentence.startswith("error: all 3 trials have failed; trial 0, seed 1: FloatingPoint")
    log = tmp_path / "runs" / "tune" / "toy" / "trials" / "0" / "1.log"
    log.write_text(log.read_text() + "the last\n\n")
    assert "; read runs/tune/toy/trials/0/1.log, which ends with: the last; " in refusal()


def test_the_log_that_is_named_is_that_of_the_run_that_failed(space, refusal, tmp_path):
    space()
    broken = TOY.replace(
        "    stopped = []", "    assert args.seed != 2, 'not two'\n    stopped = []"
    )
    (tmp_path / "toy.py").write_text(broken)
    sentence = refusal("--workers", 1, "--trials", 1)
    assert sentence.startswith("error: the trial has failed; trial 0, seed 2: AssertionError: not")
    assert "two; read runs/tune/toy/trials/0/2.log; mend it" in sentence  # that is its last line


def test_a_folder_keeps_to_its_file_its_source_and_its_fresh_seeds(
    space, search, refusal, tmp_path
):
    space()
    assert "Confirmed: " in search("--trials", 3)
    before = [*tmp_path.glob("runs/**/[0-9]*.log")]
    times = [path.stat().st_mtime for path in before]
    assert "Confirmed: " in search("--trials", 3)  # again: nothing is trained
    assert [path.stat().st_mtime for path in before] == times
    assert "fresh_seeds" in refusal("--trials", 4)
    space(change=("high = 0.9", "high = 0.8"))
    assert "another toy.toml" in refusal("--trials", 2)
    space()
    (tmp_path / "toy.py").write_text(TOY + "# changed\n")
    assert "another toy.py" in refusal("--trials", 2)
    (tmp_path / "runs" / "tune" / "toy" / "script.py").unlink()
    assert "another toy.py" in refusal("--trials", 2)


@quick
@pytest.mark.parametrize("journal", ["no JSON\n", "[1]\n", '{"op_code": 99}\n', "{}\n"])
def test_a_damaged_journal_is_refused(space, refusal, tmp_path, journal):
    space()
    folder = tmp_path / "zu groß, 1"
    folder.mkdir()
    shutil.copy(tmp_path / "toy.py", folder / "script.py")
    shutil.copy(tmp_path / "toy.toml", folder / "space.toml")
    (folder / "journal.log").write_text(journal)
    sentence = refusal("--out", "zu groß, 1")
    assert "zu groß, 1/journal.log is damaged: " in sentence and "name a new --out" in sentence


# --- stopped and killed ---------------------------------------------------------------------------
def summary_of(trials):
    """Return what must be the same in two searches."""
    return [
        (trial.number, trial.state, trial.params, trial.value, trial.intermediate_values)
        for trial in trials
    ]


SLOWLY = SPACE.replace("[search]", "[fixed]\npause = 0.01\n[search]")


def test_ctrl_c_leaves_no_process_and_the_same_command_finds_the_same(space, search, tmp_path):
    space(SLOWLY)
    held = "number == 5 and '/trials/2/' in args.run_dir and os.path.exists('hold')"
    (tmp_path / "toy.py").write_text(toy_that_waits(held))
    search("--trials", 7, "--no-confirm", "--out", "whole")
    (tmp_path / "hold").touch()  # trial 2 does not end before the signal comes
    process = start("--workers", 1, "--trials", 7, "--no-confirm", "--out", "stopped")
    wait_for(lambda: (tmp_path / "stopped" / "trials" / "2" / "1" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in out
    assert not processes_in(tmp_path)
    (tmp_path / "hold").unlink()
    running = [one for one in trials_in(tmp_path / "stopped") if not one.state.is_finished()]
    assert len(running) == 1
    out = search("--trials", 7, "--no-confirm", "--out", "stopped")
    assert f"trial {running[0].number} goes on" in out
    whole, stopped = (trials_in(tmp_path / name) for name in ("whole", "stopped"))
    assert summary_of(stopped) == summary_of(whole)
    for run in (tmp_path / "stopped").glob("trials/*/1"):
        steps = [row["global_step"] for row in rows_of(run)]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("score", [1.0, math.nan])
def test_a_run_that_ended_while_no_worker_looked(tmp_path, score):
    """It counts, but one whose return was not finite has failed, as if a worker had seen it."""
    row = {"global_step": 100, "seconds": 1.0, "eval/return_mean": score}
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "1" / "summary.json").write_text('{"status": "finished"}')
    training = tune.Training(1, tmp_path / "1", [])
    training.begin(stop=lambda: False)
    found = training.state, training.reason
    assert found == (("finished", "") if score == 1 else ("failed", tune.NOT_FINITE))


def test_what_a_killed_worker_leaves_behind_goes_on_and_counts_once(space, search, tmp_path):
    space()
    source = toy_that_waits("number == 3 and state['number'] == 0")  # each run's first start
    (tmp_path / "toy.py").write_text(source)
    process = start("--workers", 1, "--trials", 1, "--no-confirm")
    trial = tmp_path / "runs" / "tune" / "toy" / "trials" / "0"
    runs = (trial / "1", trial / "2")
    made = lambda: [len(rows_of(run)) for run in runs if (run / "metrics.jsonl").exists()]  # noqa: E731
    wait_for(lambda: made() == [3, 3])
    process.kill()
    process.wait()
    orphans = processes_in(tmp_path)
    assert len(orphans) == 2
    search("--trials", 1, "--no-confirm")
    assert not processes_in(tmp_path)
    (told,) = trials_in(tmp_path / "runs" / "tune" / "toy")
    assert told.value == pytest.approx(25)
    for seed in ("1", "2"):
        begun = (trial / f"{seed}.log").read_text().split("going on at ")
        assert len(begun) == 3 and int(begun[2]) > 0
        steps = [row["global_step"] for row in rows_of(trial / seed)]
        assert steps == [*range(0, 1001, 50)]


def test_a_run_that_something_else_kills_goes_on(space, search, tmp_path):
    """The toy kills itself once in each run, and a run that always does so fails."""
    killing = "        if number == 5 and not (folder / 'killed').exists():\n"
    killing += "            (folder / 'killed').write_text('')\n"
    killing += "            os.kill(os.getpid(), 9)\n"
    place = "        step = number * args"
    space(SPACE.replace("[1, 2]", "[1]"))
    (tmp_path / "toy.py").write_text(TOY.replace(place, killing + place))
    search("--trials", 1, "--no-confirm", "--out", "once")
    assert trials_in(tmp_path / "once")[0].value == pytest.approx(25)
    always = killing.replace(" and not (folder / 'killed').exists()", "")
    (tmp_path / "toy.py").write_text(TOY.replace(place, always + place))
    with pytest.raises(SystemExit):
        search("--trials", 1, "--no-confirm", "--out", "always")
    assert trials_in(tmp_path / "always")[0].state == TrialState.FAIL
    assert (tmp_path / "always" / "trials" / "0" / "1.log").read_text().count("going on") == 3


def test_a_torn_line_of_the_journal_is_cut_off(space, search, tmp_path):
    space()
    search("--trials", 2, "--no-confirm")
    journal = tmp_path / "runs" / "tune" / "toy" / "journal.log"
    with open(journal, "ab") as file:
        file.write(b'{"op_code":4,"worker_id":"a')
    search("--trials", 3, "--no-confirm")
    assert len(trials_in(journal.parent)) == 3


def test_a_trial_whose_worker_died_before_it_said_pruned_is_pruned(space, search, tmp_path):
    space()
    search("--trials", 6, "--no-confirm", "--no-prune", "--out", "out")
    journal = optuna.storages.journal
    storage = journal.JournalStorage(journal.JournalFileBackend("out/journal.log"))
    trial = optuna.load_study(study_name="tune", storage=storage).ask()
    trial.suggest_float("x", 0.0, 0.9)
    trial.report(-1000, 250)
    out = search("--trials", 7, "--no-confirm", "--out", "out")
    assert "trial 6: pruned at step 250, -1000" in out
    assert trials_in(tmp_path / "out")[6].state == TrialState.PRUNED
    assert not (tmp_path / "out" / "trials" / "6" / "1").exists()


def kill_everything(process, folder):
    """Kill a search, its helpers and its runs."""
    process.kill()
    for other in processes_in(folder):
        with suppress(psutil.Error):  # it has ended meanwhile
            other.kill()
    process.wait()
    wait_for(lambda: not processes_in(folder))


@pytest.mark.slow
def test_two_workers_find_the_planted_optimum_killed_on_the_way(space, tmp_path):
    """Of two flags, in 40 trials; all is killed twice, at once."""
    space(SLOWLY + "size = { low = 1, high = 6 }\n")
    folder = tmp_path / "runs" / "tune" / "toy"
    flags = ("--workers", 2, "--trials", 40)
    for trial in (5, 15):
        process = start(*flags)
        wait_for(lambda trial=trial: (folder / "trials" / str(trial) / "1").exists(), 120)
        kill_everything(process, tmp_path)
    process = start(*flags)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    trials = trials_in(folder)
    assert [trial.number for trial in trials] == [*range(40)]
    assert all(trial.state.is_finished() for trial in trials)
    best = tune.ranked(trials)[0]
    assert best.params["size"] == 3 and best.params["x"] == pytest.approx(0.3, abs=0.05)
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            error = 300 * (trial.params["x"] - 0.3) ** 2 + abs(trial.params["size"] - 3)
            assert trial.value == pytest.approx(100 - error)
    assert "\nConfirmed: " in out and not processes_in(tmp_path)
    assert len([*folder.glob("confirm/*/*/summary.json")]) == 10


@pytest.mark.slow
def test_a_second_ctrl_c_kills_runs_that_do_not_end(space, tmp_path):
    space(SPACE.replace("[search]", "[fixed]\npause = 5.0\n[search]"))
    deaf = TOY.replace("lambda *_: stopped.append(1)", "signal.SIG_IGN")
    (tmp_path / "toy.py").write_text(deaf)
    process = start("--workers", 2, "--trials", 9)
    trials = tmp_path / "runs" / "tune" / "toy" / "trials"
    wait_for(lambda: len([*trials.glob("*/*/config.toml")]) == 4)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert len(processes_in(tmp_path)) == 5  # the runs, and a helper
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert not processes_in(tmp_path)


@pytest.mark.slow
def test_sigterm_ends_helpers_and_all_runs(space, tmp_path):
    space(SPACE.replace("[search]", "[fixed]\npause = 3.0\n[search]"))
    process = start("--workers", 3, "--trials", 9)
    trials = tmp_path / "runs" / "tune" / "toy" / "trials"
    wait_for(lambda: len([*trials.glob("*/*/config.toml")]) == 6)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert not processes_in(tmp_path)
    states = [json.loads(path.read_text())["status"] for path in trials.glob("*/*/summary.json")]
    assert states == ["interrupted"] * 6


@pytest.mark.slow
def test_a_helper_whose_search_is_killed_ends(space, tmp_path):
    space(SPACE.replace("[search]", "[fixed]\npause = 0.1\n[search]"))
    process = start("--workers", 2, "--trials", 9)
    trials = tmp_path / "runs" / "tune" / "toy" / "trials"
    helpers = lambda: [one for one in processes_in(tmp_path) if "--helper" in one.info["cmdline"]]  # noqa: E731
    wait_for(lambda: any(one.children() for one in helpers()))  # it trains
    process.kill()
    process.wait()
    wait_for(lambda: not processes_in(tmp_path))
    running = [one for one in trials_in(trials.parent) if not one.state.is_finished()]
    assert running  # it has not trained them all


SCRIPT_SPACE = """
script = "ppo_continuous.py"
env_id = "tests.probe_envs:ActScale-v0"
total_timesteps = 4800
seeds = [1, 2]

[search]
learning_rate = { low = 1e-7, high = 1e-1, log = true }

[fixed]
num_envs = 1
rollout_steps = 192
eval_every = 192
anneal = false
norm_obs = false
norm_reward = false
log_every = 960
compile = "off"
device = "cpu"
"""


@pytest.mark.slow
def test_the_step_size_of_a_probe_is_found_by_two_workers_killed_on_the_way(space, tmp_path):
    """The best action, 3, pays 0, the first one -0.25; too small a step size stays there."""
    (tmp_path / "toy.toml").write_text(SCRIPT_SPACE)
    os.symlink(ROOT / "tests", tmp_path / "tests")
    flags = ("--workers", 2, "--trials", 14)
    folder = tmp_path / "runs" / "tune" / "toy"
    process = start(*flags)
    wait_for(lambda: any(folder.glob("trials/3/1/checkpoint/state.pt")), 300)
    kill_everything(process, folder)
    process = start(*flags)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    trials = trials_in(folder)
    assert len(trials) == 14 and all(trial.state.is_finished() for trial in trials)
    best = tune.ranked(trials)[0]
    assert 3e-4 < best.params["learning_rate"] < 3e-2
    assert best.value > trials[0].value
    config = str(folder / "best.toml")
    command = [sys.executable, str(ROOT / "ppo_continuous.py"), "--config", config]
    command += ["--total-timesteps", "192", "--no-capture-video", "--run-dir", "again"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = tomllib.loads((tmp_path / "again" / "config.toml").read_text())
    assert again["num_envs"] == 1 and again["env_id"] == "tests.probe_envs:ActScale-v0"


# --- statistics -----------------------------------------------------------------------------------
@quick
def test_decision_on_planted_scores():
    default = [10.0, 12, 11, 9, 13]
    better = tune.decide([20.0, 22, 21, 19, 23], default)
    assert better.confirmed and better.difference == 10
    assert 0 < better.low < 10 < better.high and better.p < 0.05
    assert not tune.decide(default, [20.0, 22, 21, 19, 23]).confirmed  # it is worse
    assert not tune.decide(default, default).confirmed
    assert not tune.decide([11.0, 14, 10, 12, 13], default).confirmed  # they overlap
    same = tune.decide([5.0] * 5, [5.0] * 5)
    assert not same.confirmed and same.difference == 0
    assert tune.decide([6.0] * 5, [5.0] * 5).confirmed
    doubtful = tune.decide([10.0, 11, 12, 12, 12], [11.0, 9, 10, 9, 10])
    assert doubtful.low > 0 and doubtful.p > 0.05 and not doubtful.confirmed
    lucky = tune.decide([1000.0, 9, 10, 11, 12], default)  # one run alone
    assert not lucky.confirmed and lucky.difference < 1


@quick
def test_p_is_that_of_all_permutations():
    """Of the 252 splits of ten scores into halves, two have the largest difference."""
    decision = tune.decide([6.0, 7, 8, 9, 10], [1.0, 2, 3, 4, 5])
    assert decision.p == pytest.approx(2 / 252)


def test_equal_settings_are_seldom_called_better():
    random = np.random.default_rng(0)
    confirmed = [tune.decide(*random.normal(size=(2, 5))).confirmed for _ in range(60)]
    assert sum(confirmed) <= 4


@quick
def test_failed_runs_count_as_the_worst_evaluation_of_both_sides(tmp_path):
    runs = []
    for seed, (state, returns) in enumerate(
        [("finished", [1, 5]), ("failed", [0, 9]), ("finished", [-3, 4])]
    ):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "config.toml").write_text('env_id = "a"\nseed = 1\ntotal_timesteps = 1\n')
        rows = [
            {"global_step": step, "seconds": 1, "eval/return_mean": score}
            for step, score in enumerate(returns)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(tune.Training(seed, folder, [], state=state))
    assert tune.scores_of(runs[:2], runs) == [5, -3]


@quick
def test_importance_sees_regions_that_were_pruned():
    """All trials with a bad gamma were pruned, so that the finished ones have one gamma alone."""
    gammas = optuna.distributions.CategoricalDistribution([0.9, 0.99])
    rates = optuna.distributions.FloatDistribution(0, 1)
    random = np.random.default_rng(0)
    trials = []
    for number in range(20):
        is_good = number % 2 == 0
        value = random.uniform(0, 1) + 10 * is_good
        state = TrialState.COMPLETE if is_good else TrialState.PRUNED
        trials.append(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params={"gamma": 0.9 if is_good else 0.99, "rate": random.uniform()},
                distributions={"gamma": gammas, "rate": rates},
            )
        )
    lines = tune.importance_lines(tune.with_values(trials))
    assert [line.split()[0] for line in lines if "0." in line] == ["gamma", "rate"]


@quick
def test_defaults_are_in_the_space_or_not():
    parameter = search_space.Parameter
    assert parameter("x", low=1, high=9, step=4).holds(5)
    assert not parameter("x", low=1, high=9, step=4).holds(6)
    assert not parameter("x", low=1, high=9).holds(2.5)
    assert parameter("x", low=1.0, high=9.0).holds(2.5)
    assert not parameter("x", low=1.0, high=9.0).holds(0.5)
    assert not parameter("x", low=1.0, high=9.0).holds(None)
    assert parameter("x", choices=(True, False)).holds(False)
    assert not parameter("x", choices=(True, False)).holds(1)
    parameters = [parameter("x", choices=("3", 4)), parameter("y", low=0, high=1)]
    search = search_space.Search(ROOT, "a", 1, [1], [2], parameters, {}, {"x": 3, "y": 1})
    assert search.default_settings() == {"x": "3", "y": 1}  # 3 and "3" are the same flag


@quick
def test_tables_fit_the_terminal(monkeypatch):
    distributions = {
        f"parameter_{n}": optuna.distributions.FloatDistribution(0, 1) for n in range(9)
    }
    trial = optuna.trial.create_trial(
        value=1.0,
        params=dict.fromkeys(distributions, 0.5),
        distributions=distributions,
        user_attrs={"scores": [1.0, 1.0]},
    )
    parameters = [search_space.Parameter(name, low=0.0, high=1.0) for name in distributions]
    search = search_space.Search(ROOT, "a", 1, [1, 2], [3], parameters, {}, {})
    outcome = tune.Outcome(search, [trial], trial, None, None)
    monkeypatch.setenv("COLUMNS", "80")
    shown = tune.outcome_text(outcome, tune.with_values([trial]), tune.fitted)
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"\n{name} " in shown for name in distributions)
    written = tune.outcome_text(outcome, tune.with_values([trial]))
    assert [line.count("|") for line in written.splitlines()].count(13) == 3


# --- what the documentation shows -----------------------------------------------------------------
RESULTS = ROOT / "results" / "tune"
PAGE = (ROOT / "docs" / "tune.md").read_text("utf-8")


@quick
def test_committed_outcome_is_that_of_the_committed_journal(tmp_path):
    """The defaults are those of PPO when it was searched."""
    shutil.copy(RESULTS / "journal.log", tmp_path)
    journal = optuna.storages.journal
    backend = journal.JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.load_study(study_name="tune", storage=journal.JournalStorage(backend))
    search = search_space.read_search(RESULTS / "space.toml")
    search = replace(search, defaults={"learning_rate": 3e-4, "gamma": 0.99})
    outcome = tune.outcome_of(search, study)
    text = tune.outcome_text(outcome, tune.with_values(outcome.trials))
    assert text == (RESULTS / "outcome.md").read_text()
    assert tune.best_toml(outcome) == (RESULTS / "best.toml").read_text()


@quick
def test_page_shows_the_committed_search():
    (space,) = re.findall(r"```toml\n(.+?)```", PAGE, re.DOTALL)
    assert space == (RESULTS / "space.toml").read_text()
    (outcome,) = re.findall(r"outcome.md -->\n\n(.+?\n)\n<!-- end", PAGE, re.DOTALL)
    assert outcome == (RESULTS / "outcome.md").read_text()
    printed = (RESULTS / "progress.txt").read_text().splitlines()
    shown = re.findall(r"^    (\[\d+/.+|confirmation, .+|searched: .+)$", PAGE, re.MULTILINE)
    assert len(shown) > 10 and {*shown} <= {*printed}
