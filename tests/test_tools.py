"""The tools that measure speed and list bugs; report.py has a file of its own."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, WALL_CLOCK

ENVIRON = os.environ | {"PYTHONPATH": str(ROOT)}


def tool(name, *arguments, cwd=ROOT):
    """Run a tool and return its exit code, stdout and stderr."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRON, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["speed", "td3_speed", "ppo_speed", "ppo_speed_64", "dqn_speed"])
def test_committed_speed_is_that_of_the_committed_figures(name):
    code, out, _ = tool("speed.py", "--file", f"results/{name}.json")
    assert code == 0 and out in (ROOT / "results" / f"{name.removesuffix('_64')}.md").read_text()


def test_committed_mutants_are_those_of_the_committed_file():
    code, out, _ = tool("../tests/mutate.py", "--report")
    assert code == 0 and out in (ROOT / "results" / "mutants.md").read_text()


def test_committed_costs_of_checkpoints_are_those_of_the_committed_figures():
    code, out, _ = tool("checkpoints.py", "--file", "results/checkpoints.json")
    assert code == 0 and out in (ROOT / "results" / "checkpoints.md").read_text()


def test_costs_of_checkpoints(tmp_path):
    """A small buffer: its file is as large as its rows, and the run goes on."""
    options = ["--file", tmp_path / "found.json", "--rows", 2000, "--every", 500]
    code, out, err = tool("checkpoints.py", *options, "InvertedPendulum-v4")
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())["environments"]["InvertedPendulum-v4"]
    width = 4 * (4 + 1 + 1 + 1 + 4) + 4  # obs, action, reward, terminated, next_obs; checksum
    (size,) = [size for name, size in found["sizes"].items() if name.startswith("rows-")]
    assert 2000 * width <= size <= (2000 + 2001) * width
    assert len(found["seconds"]) >= 3 and 0 < min(found["seconds"]) < found["resume"] < 60
    assert "| InvertedPendulum-v4 | 2,000 |" in out


def test_the_run_that_was_killed_equals_the_other():
    rows = []
    for name in ("whole", "killed"):
        with gzip.open(ROOT / "results" / "resume" / name / "metrics.jsonl.gz", "rt") as file:
            found = [json.loads(line) for line in file]
        kept = [{k: v for k, v in row.items() if not WALL_CLOCK.fullmatch(k)} for row in found]
        rows.append(kept)
    assert rows[0] == rows[1] and len(rows[0]) == 145


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
