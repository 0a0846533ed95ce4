"""The commands and modules that docs/environments.md prints work as they are."""

import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
import pytest

from tests.conftest import ENVIRON, ROOT, inside, read, summary

PAGE = (ROOT / "docs" / "environments.md").read_text("utf-8")
MODULES = {  # by name of the file, which is in the first line
    block.split("\n")[0].removeprefix("# "): block
    for block in re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
}
SHORT = "--total-timesteps 600 --eval-every 600 --eval-episodes 1 --log-every 300"
SHORT += " --checkpoint-every 0 --compile off --threads 1 --device cpu --run-dir run"
MORE = {  # flags that shorten a script's own settings
    "sac_continuous.py": "--learning-starts 300 --utd 0.2",
    "td3_continuous.py": "--learning-starts 300 --utd 0.2",
    "ppo_continuous.py": "--num-envs 4 --rollout-steps 128",
    "dqn_atari.py": "--learning-starts 300 --buffer-size 2000",
}


class Row(NamedTuple):
    """A row of the page's table of commands."""

    pins: list[str]  # such as panda-gym==3.0.7
    words: list[str]  # of the command
    repeats: str  # whether a run that goes on has the same bits: yes or no

    @property
    def env_id(self):
        return self.words[self.words.index("--env-id") + 1]


def table():
    """Return the rows of the table of commands."""
    rows = []
    for line in PAGE.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and cells[2].startswith("python "):
            rows.append(Row(shlex.split(cells[1]), shlex.split(cells[2]), cells[3].strip("| ")))
    return rows


ROWS = table()
REPEAT = [row for row in ROWS if row.repeats == "yes"]


def need_packages(row):
    """Skip the test of a row whose packages are not installed in these versions."""
    for pin in row.pins:
        name, version = re.sub(r"\[.*\]", "", pin).split("==")
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed != version:
            pytest.skip(f"needs {pin}")


def run(folder, words):
    """Run a command of the page in a folder, as a user does; return what it printed."""
    shutil.copy(ROOT / words[1], folder)
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    command = [sys.executable, *words[1:]]
    process = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def train_and_evaluate(folder, words):
    """Run a training command, shortened, and --evaluate; look at metrics and films."""
    script = words[1]
    said = run(folder, [*words, *SHORT.split(), *MORE[script].split()])
    assert "warning" not in said, said
    end = summary(folder / "run")
    assert end["status"] == "finished" and end["global_step"] >= 600 and end["updates"] > 0
    rows = read(folder / "run")
    assert np.isfinite([value for row in rows for value in row.values()]).all()
    assert sum("eval/return_mean" in row for row in rows) == 2
    assert any(name.startswith("losses/") for row in rows for name in row)
    run(folder, ["python", script, "--evaluate", "run", "--eval-episodes", "1"])
    films = sorted((folder / "run" / "videos").iterdir())
    assert len(films) == 3 and films[0].name == "evaluate-1.mp4"
    for film in films:
        frames = imageio.imread(film)
        assert len(frames) > 1 and frames.std() > 10, film


def load(script):
    """Import a script."""
    spec = importlib.util.spec_from_file_location(f"{script.stem}_of_third_party", script)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_one(S, env_id):
    """Make an environment as the script does."""
    if hasattr(S, "make_games"):
        return S.make_games(S.Args(env_id), 1).envs[0]
    return S.make_envs(env_id, 1).envs[0]


def play(env, steps, generator):
    """Take random steps, through ends of episodes; return all that they give."""
    outcomes = []
    for _ in range(steps):
        env.action_space.seed(int(generator.integers(2**31)))
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        outcomes.append((np.array(obs).tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            env.reset()
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.words[1]}-{row.env_id}" for row in ROWS])
def test_commands(tmp_path, row):
    need_packages(row)
    train_and_evaluate(tmp_path, row.words)


@pytest.mark.slow
@pytest.mark.parametrize("row", REPEAT, ids=[row.env_id for row in REPEAT])
def test_episodes_repeat_in_another_copy(tmp_path, monkeypatch, row):
    """What the page says goes on with the same bits does so, and draws on alike."""
    need_packages(row)
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    S = load(ROOT / row.words[1])
    with inside(tmp_path):
        for steps in (30, 150):
            one, other = make_one(S, row.env_id), make_one(S, row.env_id)
            one.reset(options={"stream": (S.TRAIN, 1)})
            play(one, steps, np.random.default_rng(0))
            other.reset(options={"stream": (S.TRAIN, 1), "states": [one.state()]})
            futures = [play(env, 60, np.random.default_rng(1)) for env in (one, other)]
            assert futures[0] == futures[1]
            one.close()
            other.close()


def test_the_environment_of_ones_own(tmp_path):
    """No package is needed."""
    (command,) = re.findall(r"    (python .+ my_module:MyEnv-v0 .+)", PAGE)
    train_and_evaluate(tmp_path, shlex.split(command))


@pytest.mark.quick
def test_the_table_names_what_is_installed():
    """All packages of the table are in tests/third_party.txt, but those that go with no other."""
    assert len(ROWS) > 10 and {row.repeats for row in ROWS} == {"yes", "no"}
    installed = (ROOT / "tests" / "third_party.txt").read_text().split()
    pins = {pin for row in ROWS for pin in row.pins if not pin.startswith("mujoco==")}
    assert pins <= {*installed}
    assert {word for word in installed if "==" in word} <= pins
    modules = {row.env_id.split(":")[0] for row in ROWS if row.env_id.startswith("grey")}
    assert {f"{module}.py" for module in modules} < {*MODULES}
