"""The tools that read run folders and measure speed."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ENVIRON = os.environ | {"PYTHONPATH": str(ROOT)}


def tool(name, *arguments, cwd=ROOT):
    """Run a tool and return its exit code, stdout and stderr."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRON, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def make_run(folder, seed, scores, env_id="HalfCheetah-v4", steps=60_000, more=""):
    """Write what the report reads of a run."""
    folder.mkdir(parents=True)
    summary = {
        "command": ["here/sac_continuous.py", "--seed", "1"],
        "global_step": steps + 63,
        "SPS": 100.0,
    }
    summary["status"] = "finished"
    (folder / "summary.json").write_text(json.dumps(summary))
    config = f'env_id = "{env_id}"\nseed = {seed}\ntotal_timesteps = {steps}\n{more}'
    (folder / "config.toml").write_text(config)
    rows = [{"global_step": i, "eval/return_mean": x} for i, x in enumerate(scores)]
    times = [{"seconds": 10, "time/update": 0.7, "time/env": 0.3}]
    times += [{"seconds": 40, "time/update": 0.9, "time/env": 0.1}]
    times[1] |= {"charts/average_return": seed}
    rows += [{"charts/SPS": 1.0} | time for time in times]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.quick
def test_report(tmp_path):
    runs = [make_run(tmp_path / str(s), s, [0, 10 * s, 9 * s]) for s in (20, 3)]
    runs += [make_run(tmp_path / "pole", 1, [5], "InvertedPendulum-v4")]
    text = (runs[1] / "metrics.jsonl").read_bytes()
    (runs[1] / "metrics.jsonl.gz").write_bytes(gzip.compress(text))
    (runs[1] / "metrics.jsonl").unlink()
    code, out, err = tool("report.py", *runs)
    assert (code, err) == (0, "")
    lines = [line.split(" | ") for line in out.splitlines()]
    cheetah = ["sac_continuous", "HalfCheetah-v4", "60,000", "3: 27, 20: 180", "104"]
    assert lines[2] == [*cheetah, "3: 30, 20: 200", "12", "4507 (3761 to 5152, 10 seeds)"]
    assert lines[3][3:] == ["1: 5", "5", "1: 5", "1", ""]
    assert lines[-2][2:5] == ["3: 100, 20: 100", "85.0 %", "15.0 %"]


@pytest.mark.quick
def test_report_keeps_settings_apart(tmp_path):
    """A label names the settings in which runs of one task differ; notes are none."""
    aside = 'notes = "a"\ntrack = true\ncapture_video = false\nlog_every = 7\nconfig = "c.toml"\n'
    runs = [make_run(tmp_path / "1.2", 2, [2], more=f"lr = 1\n{aside}")]
    runs += [make_run(tmp_path / "1.1", 1, [1], more="lr = 1\n")]
    runs += [make_run(tmp_path / f"2.{s}", s, [10 * s], more="lr = 2\n") for s in (1, 2)]
    runs += [make_run(tmp_path / "none", 1, [7])]
    runs += [make_run(tmp_path / "pole", 1, [5], "InvertedPendulum-v4", more="lr = 3\n")]
    code, out, _ = tool("report.py", *runs)
    lines = [line.split(" | ")[:5] for line in out.splitlines()]
    assert code == 0 and {line[0]: line[1:] for line in lines[2:6]} == {
        "sac_continuous lr=1": ["HalfCheetah-v4", "60,000", "1: 1, 2: 2", "2"],
        "sac_continuous lr=2": ["HalfCheetah-v4", "60,000", "1: 10, 2: 20", "15"],
        "sac_continuous lr=None": ["HalfCheetah-v4", "60,000", "1: 7", "7"],
        "sac_continuous": ["InvertedPendulum-v4", "60,000", "1: 5", "5"],
    }


@pytest.mark.quick
def test_report_refuses_what_is_no_run(tmp_path):
    for scores, status in (([], "finished"), ([1], "failed"), (None, None)):
        run = tmp_path / str(status)
        if scores is not None:
            path = make_run(run, 1, scores) / "summary.json"
            path.write_text(path.read_text().replace("finished", status))
        code, _, err = tool("report.py", run)
        assert code == 2 and err.startswith(f"error: {run} is no finished run")
        assert err.count("\n") == 1


TABLES = "sac_continuous/*/* sac_cuda/HalfCheetah-v4/* td3_continuous/*/*"
TABLES += " ppo_continuous/*/* ppo_choices/*/*/*"


@pytest.mark.parametrize("pattern", TABLES.split())
def test_committed_tables_are_those_of_the_committed_runs(pattern):
    runs = sorted((ROOT / "results").glob(pattern))
    code, out, _ = tool("report.py", *[run.relative_to(ROOT) for run in runs])
    text = (ROOT / "results" / f"{pattern[:3]}_continuous.md").read_text()
    assert code == 0 and out in text and f"python tools/report.py results/{pattern}\n" in text


@pytest.mark.parametrize("name", ["speed", "td3_speed", "ppo_speed", "ppo_speed_64"])
def test_committed_speed_is_that_of_the_committed_figures(name):
    code, out, _ = tool("speed.py", "--file", f"results/{name}.json")
    assert code == 0 and out in (ROOT / "results" / f"{name.removesuffix('_64')}.md").read_text()


def test_committed_mutants_are_those_of_the_committed_file():
    code, out, _ = tool("../tests/mutate.py", "--report")
    assert code == 0 and out in (ROOT / "results" / "mutants.md").read_text()


LOOP = """import time, gymnasium
env, old = gymnasium.make("speed:Counted-v0"), time.monotonic()
env.reset(seed=1)
while True:
    time.sleep({pause})
    any(env.step([0])[2:4]) and env.reset()
    now = time.monotonic()
    if now - old > 3:  # the window of the other takes 4
        open({gaps!r}, "a").write("gap ")
    old = now
"""


def test_speed(tmp_path):
    """A program that sleeps 20 ms a step is slower than one that sleeps 2, and nothing is left."""
    for pause in (0.002, 0.02):
        Path(tmp_path, f"loop{pause}.py").write_text(
            LOOP.format(pause=pause, gaps=str(tmp_path / f"gaps{pause}"))
        )
    programs = [
        f"{name}={sys.executable} loop{p}.py" for name, p in {"a": 0.002, "b": 0.02}.items()
    ]
    options = ["--first", 20, "--windows", 2, "--seconds", 1, "--note", "a note"]
    options += ["--env-id", "Pendulum-v1", "--file", "found.json"]
    code, out, err = tool("speed.py", *options, *programs, cwd=tmp_path)
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())["programs"]
    assert len(found["a"]["windows"]) == len(found["b"]["windows"]) == 2
    for a, b in zip(found["a"]["windows"], found["b"]["windows"], strict=True):
        assert 0 < b <= 60 and b < a <= 600
    assert "Pendulum-v1" in out and "a note" in out and f"b: {sys.executable} loop0.02.py" in out
    for pause in (0.002, 0.02):
        assert (tmp_path / f"gaps{pause}").read_text().count("gap") >= 1
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout


def test_speed_says_which_program_has_ended(tmp_path):
    options = ["--first", 20, "--file", "found.json", f"a={sys.executable} -c 'raise OSError(7)'"]
    code, _, err = tool("speed.py", *options, cwd=tmp_path)
    assert code == 1 and err == "error: a has ended: OSError: 7\n"
