"""The tools that measure speed and list bugs; report.py has a file of its own."""

import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from tests.conftest import HOUSE, ROOT, WALL_CLOCK
from tests.test_copies import density

ENVIRON = os.environ | {"PYTHONPATH": str(ROOT)}

spec = importlib.util.spec_from_file_location("speed_tool", ROOT / "tools" / "speed.py")
speed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(speed)
spec = importlib.util.spec_from_file_location("tables_tool", ROOT / "tools" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def tool(name, *arguments, cwd=ROOT):
    """Run a tool and return its exit code, stdout and stderr."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRON, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


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


IDLER = """from __future__ import annotations
import dataclasses
import numpy as np

@dataclasses.dataclass
class Args:
    env_id: str = "ENV"

class Agent:
    args = Args()
    @classmethod
    def load(cls, folder):
        return cls()
    def act(self, obs):
        return np.full((len(obs), SIZE), 0.1)
"""


def idle_run(folder, env_id, size, script=IDLER):
    """Make a run folder, whose agent knows one action."""
    folder.mkdir(parents=True)
    for name in ("config.toml", "model.pt"):
        (folder / name).touch()
    (folder / "script.py").write_text(script.replace("ENV", env_id).replace("SIZE", str(size)))
    return folder


def test_forward_speed_is_the_way_over_the_time(tmp_path):
    """The way is that of the simulator's own position. Hopper falls, HalfCheetah cannot."""
    runs = [idle_run(tmp_path / "a" / "1", "Hopper-v4", 3)]
    runs.append(idle_run(tmp_path / "b" / "1", "HalfCheetah-v4", 6))
    (runs[1] / "summary.json").write_text('{"status": "interrupted", "global_step": 1234}')
    file = tmp_path / "walk.json"
    for run in runs:  # the second is added to the first
        code, out, err = tool("walk.py", "--file", file, "--episodes", 2, run, cwd=tmp_path)
        assert code == 0, err
    found = json.loads(file.read_text())
    assert list(found) == ["a/1", "b/1"]
    for name, env_id, size, falls in (("a/1", "Hopper-v4", 3, 2), ("b/1", "HalfCheetah-v4", 6, 0)):
        env = gym.make(env_id)
        for number in range(2):
            env.reset(seed=10**6 + number)
            before = env.unwrapped.data.qpos[0]
            rewards, over = [], False
            while not over:
                _, reward, terminated, truncated, _ = env.step(np.full(size, 0.1))
                rewards.append(reward)
                over = terminated or truncated
            seconds = len(rewards) * env.unwrapped.dt
            speed = (env.unwrapped.data.qpos[0] - before) / seconds
            assert found[name]["speeds"][number] == pytest.approx(speed, abs=0.001)
            assert found[name]["returns"][number] == pytest.approx(sum(rewards), abs=0.1)
            assert found[name]["lengths"][number] == len(rewards)
        assert found[name]["falls"] == falls
    assert "| a/1 | Hopper-v4 | unknown, unfinished | 2 |" in out
    assert "| b/1 | HalfCheetah-v4 | 1,234, interrupted | 2 |" in out
    code, again, _ = tool("walk.py", "--file", file)
    assert code == 0 and again == out


def test_walk_says_what_does_not_walk(tmp_path):
    """It goes on with the other runs."""
    good = idle_run(tmp_path / "good", "Hopper-v4", 3)
    pendulum = idle_run(tmp_path / "pendulum", "Pendulum-v1", 1)
    broken = idle_run(tmp_path / "broken", "Hopper-v4", 3, "not Python")
    young = idle_run(tmp_path / "young", "Hopper-v4", 3)
    (young / "model.pt").unlink()
    bare = idle_run(tmp_path / "bare", "Hopper-v4", 3)
    (bare / "script.py").unlink()
    runs = [good, pendulum, broken, young, bare]
    code, out, err = tool("walk.py", "--file", tmp_path / "walk.json", "--episodes", 1, *runs)
    assert code == 0 and out.count("Hopper-v4") == 1 and "Traceback" not in err
    for run, words in (
        (pendulum, "reports no x_velocity"),
        (broken, "its agent cannot be loaded: NameError"),
        (young, "no checkpoint yet"),
        (bare, "no script.py"),
    ):
        assert re.search(f"not played: {run} is no run .*{words}", err), err


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (None, [], "is not there: name run folders to play"),
        (None, ["--episodes", "0", "."], "--episodes must be at least 1"),
        (None, ["nowhere"], "no run among what you named"),
        (None, ["."], "cannot be written"),
        ("{", [], "cannot be read"),
        ("{}", [], "holds no figures"),
        ('{"a": 1}', ["."], "holds no figures"),
    ],
)
def test_walk_refuses_bad_input(tmp_path, content, arguments, words):
    file = tmp_path / "walk.json"
    if words == "cannot be written":
        file = tmp_path / "no" / "walk.json"
    if content is not None:
        file.write_text(content)
    code, _, err = tool("walk.py", "--file", file, *arguments, cwd=tmp_path)
    assert code == 2 and words in err and "Traceback" not in err


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


def test_walk_goes_on_after_an_environment_that_cannot_be_made(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("walk_tool", ROOT / "tools" / "walk.py")
    walk = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec.loader.exec_module(walk)
    agent = SimpleNamespace(args=SimpleNamespace(env_id="gone_module:Gone-v0"))
    monkeypatch.setattr(walk, "load_agent", lambda folder: agent)
    with pytest.raises(walk.NoRun, match="gone_module:Gone-v0 cannot be made"):
        walk.measure(tmp_path, 1)


@pytest.mark.slow
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


LAUNCHES = """import os, time, gymnasium
cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]
assert " " not in cache, "PyTorch compiles nothing there"
headers = os.path.join(os.environ["TMPDIR"], "headers")  # what PyTorch keeps there
assert os.path.exists(headers) == os.path.exists(cache)
with open({launches!r}, "a") as file:
    file.write("warm " if os.path.exists(cache) else "cold ")
if len(open({launches!r}).read().split()) % {copies}:
    while len(open({launches!r}).read().split()) % {copies}:
        time.sleep(0.01)  # for the other copy
    time.sleep(0.5)  # which has stepped a while before this one begins
os.makedirs(cache, exist_ok=True)
open(headers, "w").close()
env = gymnasium.make("speed:Counted-v0")
env.reset()
while True:
    env.step([0])
    time.sleep(0.002)
"""


@pytest.mark.parametrize("copies", [1, 2])
def test_speed_of_copies_that_were_launched_before(tmp_path, copies):
    """Without windows, what counts is the second launch; nothing is left."""
    noted = tmp_path / "launches"
    (tmp_path / "loop.py").write_text(LAUNCHES.format(launches=str(noted), copies=copies))
    options = ["--first", 800, "--windows", 0, "--copies", copies, "--warm", "--file", "a.json"]
    options += ["--env-id", "Pendulum-v1"]
    code, out, err = tool("speed.py", *options, f"a b={sys.executable} loop.py", cwd=tmp_path)
    assert code == 0, err
    assert noted.read_text() == "cold " * copies + "warm " * copies
    assert ("2 copies at a time" in out) == (copies == 2) and "compiled before, to step 800" in out
    assert out.count("| a b / this") == 1 and "window" not in out
    found = json.loads((tmp_path / "a.json").read_text())["programs"]["a b"]
    assert found["windows"] == [] and len(found["launches"]) == 1
    assert 0 < found["launches"][0] < 500 * copies
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout


@pytest.mark.parametrize("warm, states", [([], "cold cold "), (["--warm"], "cold warm warm ")])
def test_speed_of_several_launches_each(tmp_path, warm, states):
    """They take turns, and find what was compiled only where they are to."""
    commands = []
    for name in "ab":
        text = LAUNCHES.format(launches=str(tmp_path / name), copies=1)
        (tmp_path / f"loop_{name}.py").write_text(text)
        commands.append(f"{name}={sys.executable} loop_{name}.py")
    options = ["--first", 50, "--launches", 2, "--windows", 0, *warm, "--file", "found.json"]
    options += ["--env-id", "Pendulum-v1"]
    code, out, err = tool("speed.py", *options, *commands, cwd=tmp_path)
    assert code == 0, err
    assert [line[0] for line in err.splitlines()] == ["a", "b", "a", "b"]
    assert [(tmp_path / name).read_text() for name in "ab"] == [states, states]
    found = json.loads((tmp_path / "found.json").read_text())["programs"]
    assert [len(found[name]["launches"]) for name in "ab"] == [2, 2]
    assert ": median and range of 2 launches in turns. Ratios are taken in each round" in out
    assert re.search(r"^a \| \d+ \(\d+ to \d+\) \| 1.00 \(1.00 to 1.00\)$", out, re.M)
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout


def test_speed_says_which_program_has_ended(tmp_path):
    options = ["--first", 20, "--file", "found.json", f"a={sys.executable} -c 'raise OSError(7)'"]
    code, _, err = tool("speed.py", *options, cwd=tmp_path)
    assert code == 1 and err == "error: a has ended: OSError: 7\n"


COPIES = """import multiprocessing, pickle, gymnasium

STEPS = 20_000


def step(env):
    env.reset(seed=1)
    for _ in range(STEPS):
        env.step([0])


def made_there():
    step(gymnasium.make("speed:Counted-v0"))


if __name__ == "__main__":
    env = gymnasium.make("speed:Counted-v0")
    step(env)
    context = multiprocessing.get_context({method!r})
    workers = [context.Process(target=step, args=(env,)) for _ in range(3)]
    workers += [context.Process(target=made_there) for _ in range(3)]
    for worker in workers:
        worker.start()
    step(env)  # at the same time
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_speed_counts_all_steps_of_all_processes(tmp_path, method):
    """Of environments that are made there, and of copies of one that has stepped."""
    counters = tmp_path / "counters"
    counters.mkdir()
    (tmp_path / "copies.py").write_text(COPIES.format(method=method))
    environ = ENVIRON | {"PYTHONPATH": str(ROOT / "tools"), "SPEED_ENV": "Pendulum-v1"}
    environ |= {"SPEED_COUNTERS": str(counters)}
    subprocess.run([sys.executable, tmp_path / "copies.py"], env=environ, check=True)
    assert speed.Counters(counters).total() == 8 * 20_000


def looks(phases, rounds, per_look):
    """Yield the counts that are seen while phases, {environment: steps}, take turns."""
    counts = {}
    for _ in range(rounds):
        for phase in phases:
            left = dict(phase)
            while any(left.values()):
                for name, steps in left.items():
                    made = min(steps, per_look)
                    counts[name] = counts.get(name, 0) + made
                    left[name] -= made
                yield dict(counts)


def share(phases, rounds=3, per_look=7):
    """Return the share of steps aside in what is seen while phases take turns."""
    strides = speed.Strides({})
    for counts in looks(phases, rounds, per_look):
        strides.add(counts)
    return strides.share_not_training()


@pytest.mark.parametrize("per_look", [1, 7, 99, 100, 101, 500])
@pytest.mark.parametrize("envs", [1, 2, 64])
def test_speed_sees_evaluations(envs, per_look):
    """Of any length, whether they make most of the steps or few, if training takes two looks."""
    train = {f"train {i}": 1000 for i in range(envs)}
    assert share([train], per_look=per_look) == 0
    for evaluators in (1, 10):
        for steps in (30, 200, 1000, 5000):
            evaluation = {f"evaluate {i}": steps for i in range(evaluators)}
            expected = evaluators * steps / (evaluators * steps + envs * 1000)
            if expected > 2 * speed.NEGLIGIBLE:
                for phases in ([train, evaluation], [evaluation, train]):
                    found = share(phases, per_look=per_look)
                    assert found > speed.NEGLIGIBLE, (evaluators, steps)


@pytest.mark.parametrize("per_look", [1, 40, 500])
def test_speed_takes_no_harmless_steps_for_evaluations(per_look):
    """A trial, environments that do not step at all, and those that step in turns, some more."""
    train = {"a": 400, "b": 396, "c": 430}
    assert share([train], per_look=per_look) == 0
    trial, idle = speed.Strides({}), speed.Strides({"idle": 10**6})
    for counts in looks([train], 10, per_look):
        trial.add({"trial": 2, **counts})
        idle.add({"idle": 10**6, **counts})
    assert trial.share_not_training() < speed.NEGLIGIBLE and idle.share_not_training() == 0
    in_turns = [{"a": 4}, {"b": 4}, {"c": 4}]  # frames that are skipped
    assert share(in_turns, rounds=500, per_look=per_look) == 0
    assert speed.Strides({}).share_not_training() == 0


@pytest.mark.slow
def test_speed_refuses_evaluations(tmp_path):
    """Those of our own scripts, which are on by default."""
    command = f"ours={sys.executable} {ROOT / 'sac_continuous.py'} --env-id speed:Counted-v0"
    command += " --no-capture-video --compile off --threads 1"
    options = ["--env-id", "Pendulum-v1", "--first", 3000, "--file", "found.json"]
    code, _, err = tool("speed.py", *options, command, cwd=tmp_path)
    assert code == 2 and err.startswith("error: ours has environments that stand still while")
    options += ["--windows", 1, "--seconds", 1]
    code, out, err = tool("speed.py", *options, f"{command} --eval-every 0", cwd=tmp_path)
    assert code == 0, err
    assert "ours | " in out


@pytest.mark.parametrize(
    "word, is_path",
    [
        ("1", False),
        ("0.9", False),
        ("1.e6", False),
        ("1e-3", False),
        ("python", False),
        ("runs", False),
        ("--seed=1", False),
        ("--seed", False),
        ("Hopper-v4", False),
        ("missing.py", False),
        ("x=y", False),
        ("train.py", True),
        ("--config=a.toml", True),
        ("configs/a.toml", True),
        ("--config=configs/a.toml", True),
        ("./1", True),
        ("bin/python", True),
    ],
)
def test_speed_makes_paths_of_files_only(tmp_path, monkeypatch, word, is_path):
    """Beside each of these words there is a file, or a folder, of that name."""
    for folder in ("configs", "bin", "runs"):
        (tmp_path / folder).mkdir()
    names = "1 0.9 1.e6 1e-3 python --seed Hopper-v4 train.py a.toml y configs/a.toml bin/python"
    for name in names.split():
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    flag, equals, value = word.rpartition("=")
    path = f"{flag}{equals}{os.path.normpath(tmp_path / value)}"
    assert speed.located(word) == (path if is_path else word)


def test_speed_hands_values_over_as_they_are(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "say.py").write_text("import sys; sys.exit(' '.join(sys.argv[1:]))")
    command = f"a={sys.executable} say.py --seed 1 --config a.toml"
    code, _, err = tool("speed.py", "--file", "found.json", command, cwd=tmp_path)
    assert code == 1 and err == f"error: a has ended: --seed 1 --config {tmp_path / 'a.toml'}\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["python train.py"], "write name=command"),
        (["a="], "write name=command"),
        (["=python train.py"], "write name=command"),
        (["../a=python train.py"], "write name=command"),
        (["a=python 'train.py"], "close what is quoted"),
        (["a=python x.py", "a=python y.py"], "a name of its own"),
        (["a=no-such-program x.py"], "name an installed program"),
        (["--first", "0", "a=python x.py"], "--first must be positive"),
        (["--windows", "-1", "a=python x.py"], "--windows must not be negative"),
        (["--copies", "0", "a=python x.py"], "--copies must be positive"),
        (["--seconds", "0", "a=python x.py"], "--seconds must be positive"),
        (["--file", "no/such/file.json", "a=python x.py"], "a folder that exists"),
        (["--file", ".", "a=python x.py"], "a folder that exists"),
        ([], "name what this tool wrote"),
        (["--file", "empty.json"], "name what this tool wrote"),
        (["--file", "other.json"], "name what this tool wrote"),
        (["--file", "none.json"], "name what this tool wrote"),
    ],
)
def test_speed_refuses_bad_input(tmp_path, arguments, words):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "none.json").write_text('{"programs": {}}')
    code, out, err = tool("speed.py", "--file", "found.json", *arguments, cwd=tmp_path)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def figures(**windows):
    """Return what speed.py writes: windows of each program, whose one launch made 10 steps/s."""
    programs = {
        name: {
            "command": f"python {name}.py --num-envs 4",
            "launches": [10.0],
            "windows": list(values),
        }
        for name, values in windows.items()
    }
    about = {"date": "today", "cpus": 2, "system": "Linux", "load": 0.1, "note": ""}
    return about | {"env_id": "Hopper-v4", "first": 9, "seconds": 5.0, "programs": programs}


def test_speed_sums_up_files(tmp_path):
    """A line for each file, a column for each peer; ratios are taken within complete rounds."""
    (tmp_path / "a.json").write_text(json.dumps(figures(ours=[20, 30, 60, 99], Slow=[10] * 3)))
    (tmp_path / "b.json").write_text(json.dumps(figures(mine=[50], Slow=[50], Fast=[100])))
    code, out, _ = tool("speed.py", "--summary", "a.json", "b.json", cwd=tmp_path)
    assert code == 0 and out.splitlines() == [
        "| program | steps/s | times Fast | times Slow |",
        "|---|---|---|---|",
        "| `ours.py --num-envs 4` | 30 (20 to 60) | not run | 3.00 (2.00 to 6.00) |",
        "| `mine.py --num-envs 4` | 50 | 0.50 | 1.00 |",
    ]


def test_speed_compares_launches_within_complete_rounds(tmp_path):
    found = figures(ours=[], Slow=[])
    found["programs"]["ours"]["launches"] = [10, 20, 30]
    found["programs"]["Slow"]["launches"] = [5, 5]
    (tmp_path / "a.json").write_text(json.dumps(found))
    code, out, _ = tool("speed.py", "--file", "a.json", cwd=tmp_path)
    assert code == 0 and "median and range of 2 launches in turns" in out
    assert "\nours | 15 (10 to 20) | 1.00 (1.00 to 1.00)\n" in out
    assert "\nSlow | 5 (5 to 5) | 3.00 (2.00 to 4.00)\n" in out


@pytest.mark.parametrize("arguments", [["missing.json"], ["a.json", "--", "x=python x.py"]])
def test_speed_refuses_what_it_cannot_sum_up(tmp_path, arguments):
    (tmp_path / "a.json").write_text(json.dumps(figures(ours=[20], Slow=[10])))
    code, out, err = tool("speed.py", "--summary", *arguments, cwd=tmp_path)
    assert code == 2 and out == "" and err.startswith("error: --summary") and err.count("\n") == 1


MADE = [
    str(path.relative_to(ROOT))
    for pattern in tables.PAGES
    for path in sorted(ROOT.glob(pattern))
    if tables.BLOCK.search(path.read_text("utf-8"))
]


@pytest.mark.parametrize("page", MADE)
def test_tables_of_pages_are_what_their_commands_print(page):
    text = (ROOT / page).read_text("utf-8")
    assert tables.remake(text) == text, "run: make tables"


def test_all_figures_of_results_are_on_a_page():
    """Whatever a tool wrote is shown by a command of a page."""
    commands = " ".join(
        command
        for page in ROOT.glob("results/*.md")
        for _, command, _ in tables.BLOCK.findall(page.read_text("utf-8"))
    )
    others = {"blind.json": "tests/blind.py --report", "mutants.json": "tests/mutate.py --report"}
    for file in ROOT.glob("results/*.json"):
        assert others.get(file.name, f"results/{file.name}") in commands, file.name
    patterns = [f"{script}/*/*" for script in sorted(HOUSE)]
    patterns += [
        "sac_cuda/HalfCheetah-v4/*",
        "sac_short/*/*",
        "ppo_choices/*/*/*",
        "ppo_config/*/*",
        "ppo_trials/*",
        "tqc_critics/*/*",
    ]
    for pattern in patterns:
        assert f"tools/report.py results/{pattern}" in commands


def test_every_command_of_a_page_has_a_table():
    for pattern in tables.PAGES:
        for path in ROOT.glob(pattern):
            text = path.read_text("utf-8")
            begun = re.findall(r"^<!-- python (.+) -->$", text, re.M)
            assert begun == [command for _, command, _ in tables.BLOCK.findall(text)], path.name


def test_tables_are_remade(tmp_path, monkeypatch):
    """What is between a command and the end is replaced, in each block, and nothing else is."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "count.py").write_text("import sys; print('\\n| a |\\n', len(sys.argv))\n")
    page = "# one\n<!-- python count.py 'x y' -->\nold\n<!-- end -->\ntwo\n"
    page += "<!-- python count.py -->\n<!-- end -->\n<!-- made by hand -->\n<!-- end -->\n"
    first, second = "\n| a |\n 2\n", "\n| a |\n 1\n"
    new = f"# one\n<!-- python count.py 'x y' -->\n{first}<!-- end -->\ntwo\n"
    new += f"<!-- python count.py -->\n{second}<!-- end -->\n<!-- made by hand -->\n<!-- end -->\n"
    assert tables.remake(page) == new == tables.remake(new)
    with pytest.raises(SystemExit, match="python gone.py .*failed"):
        tables.remake(page.replace("count.py", "gone.py"))


def test_tables_are_checked_and_rewritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "count.py").write_text("print(7)\n")
    old = "<!-- python count.py -->\n<!-- end -->\n"
    for path in (tmp_path / "README.md", tmp_path / "docs" / "a.md"):
        path.write_text(old)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match="1"):
        tables.main()
    assert (tmp_path / "README.md").read_text() == old
    assert capsys.readouterr().out.splitlines()[:2] == ["README.md: old", "docs/a.md: old"]
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert "\n7\n" in (tmp_path / "docs" / "a.md").read_text()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    tables.main()


TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("name", TOOLS)
def test_tools_have_one_statement_a_line(name):
    found, tuples = density(ROOT / "tools" / name)
    assert found <= 11 and not tuples
