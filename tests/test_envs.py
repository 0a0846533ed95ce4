"""Environments that ordinary people have: each trains, or is refused in one sentence."""

import json
import os
import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.conftest import apply, finish, framed, need, read, summary, tiny, warnings
from tests.toy_envs import Lonely

TRAINS = {  # whatever observations and actions the script takes
    "Half": 0,
    "Strict": 0,
    "Listed": 0,
    "Talkative": 0,
    "SmallSeeds": 0,
    "Plain": 0,
    "Thrifty": 0,
    "Wanderer": 0,
    "Blind": 1,
    "Global": 1,
    "Rude": 0,
    "Artist_renderer": 0,
    "Artist_fails": 1,
    "Artist_fails_later": 1,
    "Artist_nothing": 1,
    "Artist_list": 1,
    "Artist_grows": 1,
    "Artist_grey": 1,
    "Artist_float": 1,
    "Artist_rgba": 1,
    "Shared": 0,
    "Unclosable": 3,
}
OBSERVATIONS = "discrete binary multi matrix bytes scalar tuple nested text".split()
ACTIONS = "scalar matrix uneven still double".split()
TRAINS |= {f"Observes_{name}": 0 for name in OBSERVATIONS}
TRAINS |= {f"Acts_{name}": 0 for name in ACTIONS}


@pytest.mark.parametrize("name, warned", TRAINS.items())
def test_trains(S, spaces, train, tmp_path, capfd, name, warned):
    """To the end, filmed and evaluated, with as many lines that warn."""
    if framed(S) and name.startswith(("Observes", "Acts", "Half", "Strict", "Global")):
        pytest.skip("the script learns from frames, with discrete actions")
    train(f"--env-id tests.toy_envs:{name}-v0 --capture-video --run-dir run")
    said = capfd.readouterr().out
    run = tmp_path / "run"  # wherever the environment has gone
    assert summary(run)["status"] == "finished"
    if framed(S) and name == "Unclosable":
        warned += 1  # one more is built to see whether it is an Atari game
    assert len(warnings(said)) == warned, said
    films = {path.name for path in (run / "videos").iterdir()}
    no_film = name == "Blind" or (name.startswith("Artist") and name != "Artist_renderer")
    assert films == (set() if no_film else {"step-0.mp4", "step-300.mp4"})


REFUSED = {
    "Wrong_reset": r"reset\(\) must return obs, info",
    "Wrong_step": r"step\(\) must return obs, reward, terminated, truncated, info",
    "Wrong_vector": "reward must be one number",
    "Wrong_shape": "fails: .*shape",
    "Wrong_shape_later": "fails: .*shape",
    "Wrong_crash": "fails: no connection",
    "Wrong_crash_later": r"fails: no connection \(.*toy_envs.py, line \d+\)",
    "Wrong_silent": r"fails: AssertionError\(\) \(.*toy_envs.py, line \d+\)",
    "Wrong_key": r"fails: 'goal' \(.*toy_envs.py, line \d+\)",
    "Observes_graph": "cannot be flattened",
    "Observes_own": "cannot be flattened into a Box",
    "Observes_mixed": "cannot be flattened into a Box",
    "Observes_empty": "cannot be flattened",
    "Observes_nothing": "cannot be flattened|fails",
    "Sequential": "cannot be flattened",
    "Acts_none": "needs a Box of actions",
    "Acts_endless": "beyond float32",
    "Acts_wide": "beyond float32",
    "Acts_one_sided": "finite low and high",
    "Acts_whole": "of floats",
    "Whole": "of floats",
    "Acts_binary": "needs a Box",
    "Acts_dict": "needs a Box",
    "Acts_tuple": "needs a Box",
    "Discrete": "discrete actions: dqn_atari.py",
    "Demanding": "fails: .*wanted",
    "Broken": "fails: out of order",
    "Quits_at_once": r"fails: it ends the program by SystemExit\(0\)",
}


@pytest.mark.parametrize("name, sentence", REFUSED.items(), ids=REFUSED)
def test_refused(S, spaces, train, tmp_path, capfd, name, sentence):
    """Before there is a folder."""
    if framed(S) and name.startswith(("Observes", "Acts", "Discrete", "Sequential", "Whole")):
        pytest.skip("the script learns from frames, with discrete actions")
    if framed(S) and name.startswith("Wrong_shape"):
        pytest.skip("the frames of this toy are right")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        train(f"--env-id tests.toy_envs:{name}-v0 --run-dir run")
    said = capfd.readouterr().err
    assert stop.value.code == 2 and sorted(tmp_path.rglob("*")) == before
    suffix = "-shown" if framed(S) else ""
    assert re.fullmatch(
        f"error: --env-id tests.toy_envs:{name}{suffix}-v0 .*({sentence}).*\n", said
    )


def test_a_module_that_registers_nothing(S, train, tmp_path, capfd):
    (tmp_path / "forgetful.py").write_text("class MyEnv: pass")
    with pytest.raises(SystemExit) as stop:
        train("--env-id forgetful:NeverMade-v0 --run-dir run")
    said = capfd.readouterr().err
    assert stop.value.code == 2 and "gymnasium.register" in said and said.count("\n") == 1


def test_an_environment_that_is_there_once(S, spaces, train):
    """Without evaluation nothing but the environments of training is built."""
    apply(spaces, "box")
    try:
        train("--env-id tests.toy_envs:Lonely-v0 --eval-every 0 --capture-video --run-dir run")
        assert summary("run")["status"] == "finished" and Lonely.alive == 0
    finally:
        Lonely.alive = 0


def test_a_second_environment_that_cannot_be(S, spaces, train, capfd):
    """The sentence names the flag that trains without it."""
    apply(spaces, "box")
    try:
        with pytest.raises(SystemExit) as stop:
            train("--env-id tests.toy_envs:Lonely-v0 --run-dir run")
    finally:
        Lonely.alive = 0
    said = capfd.readouterr().err
    assert stop.value.code == 2 and "the port is taken" in said
    assert "; if there can be only one at a time: --num-envs 1 --eval-every 0" in said


def test_an_environment_that_quits(S, spaces, train, capfd):
    """By sys.exit(0), as some simulators do whose window is closed: the run has not finished."""
    apply(spaces, "box")
    with pytest.raises(SystemExit) as stop:
        train("--env-id tests.toy_envs:Quits-v0 --eval-every 0 --run-dir run")
    assert stop.value.code == 1 and summary("run")["status"] == "failed"
    assert "failed SystemExit(0) at step " in capfd.readouterr().out


def test_an_environment_that_quits_where_it_is_evaluated(S, spaces, train, capfd, monkeypatch):
    apply(spaces, "box")
    monkeypatch.setenv("QUITS_AT", "1000")
    train("--env-id tests.toy_envs:Quits-v0 --eval-every 0 --run-dir run")
    monkeypatch.setenv("QUITS_AT", "3")  # later than it is tried out
    with pytest.raises(SystemExit) as stop:
        S.main(S.parse_args(S.Args, ["--evaluate", "run"]))
    said = capfd.readouterr().err
    assert stop.value.code == 2 and "ends the program by SystemExit(0)" in said


ENDS = {
    "finished": ("", 0),
    "refused": ("--buffer-size 1e12 --rollout-steps 96e10 --total-timesteps 1e12", 2),
    "in use": ("--run-dir used", 2),
    "failed": ("--env-id tests.toy_envs:ServedFailing-v0", 1),
}


@pytest.mark.parametrize("more, code", ENDS.values(), ids=ENDS)
def test_environments_are_closed(S, launch, tmp_path, more, code):
    """Whatever the end, servers behind them stop, and their files are written."""
    (tmp_path / "used").mkdir()
    served = tmp_path / "served"
    flags = " ".join(tiny(S, f"--env-id tests.toy_envs:Served-v0 --run-dir run {more}"))
    process = launch(tmp_path, flags, PYTHONPATH=str(Path(__file__).parents[1]), SERVED=str(served))
    assert finish(process)[0] == code
    words = served.read_text().split()
    assert words.count("opened") == words.count("closed") > 1


@pytest.mark.parametrize("film", ["", "--capture-video"])
def test_an_evaluation_without_end_says_so(S, spaces, train, monkeypatch, capfd, film):
    """Where the first episode is filmed, it is cut as the others are."""
    monkeypatch.setattr(S, "EVALUATION_STEPS", 40)
    train(f"--env-id tests.toy_envs:Endless-v0 --run-dir run {film}")
    assert "was cut after 40 steps" in capfd.readouterr().out
    lengths = {row["eval/length_mean"] for row in read("run") if "eval/length_mean" in row}
    assert lengths == {40} and S.Args.eval_episodes


def test_films_are_written_as_they_come(S, spaces, train, monkeypatch):
    """A frame of 1080p has 6 MB, and 500 of them would not fit into every memory."""
    need(S, "Film")
    held = []
    add = S.Film.add

    def watch(film, frame):
        add(film, frame)
        parts = vars(film).values()
        held.append(sum(isinstance(part, list | np.ndarray) for part in parts))

    monkeypatch.setattr(S.Film, "add", watch)
    monkeypatch.setattr(S, "FILM_STEPS", 5)
    train("--capture-video --run-dir run")
    assert held == [0] * 10  # two films of five frames


@pytest.mark.every_script
@pytest.mark.parametrize("change", ["observations", "actions", "bounds"])
def test_an_environment_that_has_changed(S, spaces, train, tmp_path, capfd, monkeypatch, change):
    """Its agent is neither scored nor trained on."""
    if framed(S) and change == "bounds":
        pytest.skip("there are none")
    module = f"changing_{change}_{S.__name__}"  # earlier tests' folders are searched, too
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the second text may look like the first
    for name in ["before", "after"]:
        wider = name == "after"
        size = 3 if wider and change == "observations" else 2
        actions = 3 if wider and change == "actions" else 2
        high = 2.0 if wider and change == "bounds" else 1.0
        if framed(S):
            observation = f"Box(0, 255, (36, {34 + size}), np.uint8)"
            action = f"Discrete({actions})"
        else:
            observation = f"Box(-1, 1, ({size},))"
            action = f"Box(-1, {high}, ({actions},))"
        text = "import gymnasium as gym, numpy as np\nfrom gymnasium.spaces import Box, Discrete\n"
        text += "from tests.toy_envs import Spaced\n"
        kwargs = f"{{'observation': {observation}, 'action': {action}}}"
        text += f"gym.register('Changing-v0', Spaced, kwargs={kwargs})\n"
        (tmp_path / f"{module}.py").write_text(text)
        sys.modules.pop(module, None)
        gym.registry.pop("Changing-v0", None)
        if name == "before":
            train(f"--env-id {module}:Changing-v0 --run-dir run")
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        train("--evaluate run")
    said = capfd.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert f"was trained on another {module}:Changing-v0" in said.err


def test_an_environment_that_has_changed_is_not_gone_on_with(S):
    need(S, "same_sizes")
    one = {"obs_dim": 2, "low": [-1.0], "high": [1.0]}
    assert S.same_sizes(one, dict(one, low=np.array([-1.0])))
    for name, value in {"obs_dim": 3, "low": [-2.0], "high": [1.0, 1.0]}.items():
        assert not S.same_sizes(one, one | {name: value})


def test_mujoco_warns_once(S, spaces, launch, tmp_path):
    """HalfCheetah's model is of an old kind, which MuJoCo says whenever one is built."""
    apply(spaces, "box")
    need(S, "limit_mujoco_warnings")
    flags = "--env-id HalfCheetah-v4 --num-envs 2 --eval-every 0 --run-dir run"
    code, out, err = finish(launch(tmp_path, " ".join(tiny(S, flags))))
    assert code == 0 and (out + err).count("settotalmass") <= 1, out + err
    assert {path.name for path in tmp_path.iterdir()} == {S.SCRIPT.name, "run"}


def test_seeds_of_episodes_are_c_ints(S):
    need(S, "episode_seed")
    seeds = [S.episode_seed(S.TRAIN, 1, 0, episode) for episode in range(1000)]
    assert max(seeds) < 2**31 and min(seeds) >= 0 and len(set(seeds)) == 1000
    assert sum(seed > 2**30 for seed in seeds) > 400


def test_copies_that_are_independent_are_not_warned_of(S, spaces, train, capfd):
    for name in ["Counter", "Ragged", "Hidden", "Restless", "Rude", "Shared"]:
        train(f"--env-id tests.toy_envs:{name}-v0 --run-dir {name}")
        assert "change each other" not in capfd.readouterr().out


@pytest.mark.parametrize("home", ["missing", "file", "unset"])
def test_a_home_that_cannot_be_written(S, monkeypatch, tmp_path, capfd, home):
    need(S, "keep_compiled_code")
    (tmp_path / "file").touch()
    homes = {"missing": "/proc/nothing", "file": str(tmp_path / "file"), "unset": None}

    def find():
        if homes[home] is None:
            raise RuntimeError("Could not determine home directory.")
        return Path(homes[home])

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", find)
    S.keep_compiled_code()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_dir() and len(warnings(capfd.readouterr().out)) == 1
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    S.keep_compiled_code()
    assert tmp_path in Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parents
    assert json.dumps(capfd.readouterr().out) == '""'
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
