"""What a run says of itself, to the second and to the last flag: rates, defaults, counts, ends."""

import dataclasses
import itertools
import math
import sys
import time
import typing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import (
    HOUSE,
    apply,
    environments,
    framed,
    need,
    on_policy,
    read,
    shown,
    summary,
    tiny,
)

# --- time -----------------------------------------------------------------------------------------
SECONDS = {"act": 0.02, "env": 0.04, "eval": 7, "update": 0.3, "compile": 50}


class Clock:
    """Stands in for the module time: seconds pass only where a test says so."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def __getattr__(self, name):
        return getattr(time, name)


@pytest.fixture
def clock(S, monkeypatch):
    """Let each activity take the seconds that are given for it, and everything else none."""
    need(S, "Agent.explore", "reset_finished", "evaluate", "compile_update", "Run.record")
    clock = Clock()
    monkeypatch.setattr(S, "time", clock)

    def slow(holder, name, activity):
        call = getattr(holder, name)

        def slow_call(*inputs, **options):
            end = clock.now + SECONDS[activity]
            result = call(*inputs, **options)
            clock.now = end
            return result

        monkeypatch.setattr(holder, name, slow_call)

    slow(S.Agent, "explore", "act")
    slow(S, "reset_finished", "env")
    slow(S, "evaluate", "eval")
    slow(S.Run, "record", "update")
    slow(S, "compile_update", "compile")
    return clock


@pytest.mark.quick
def test_rates_and_shares_of_time(clock, train, S):
    """Of intervals of uneven lengths, some with evaluations, which rates leave out."""
    flags = "--total-timesteps 120 --learning-starts 60 --num-envs 3 --log-every 20 --eval-every 40"
    flags += " --rollout-steps 12 --batch-size 12 --update-epochs 1"
    flags += " --eval-episodes 1 --run-dir run"
    begun = clock.now
    train(" ".join(tiny(S, flags)))
    rows = [row for row in read("run") if "charts/SPS" in row]
    evaluations = [row for row in read("run") if "eval/return_mean" in row]
    assert len(rows) >= 5
    steps = [row["global_step"] for row in rows]
    assert len({b - a for a, b in itertools.pairwise(steps)}) > 1  # or nothing is shown
    for old, row in itertools.pairwise(rows):
        seconds = row["seconds"] - old["seconds"]
        made = row["global_step"] - old["global_step"]
        spent = {name: row.get(f"time/{name}", 0) * seconds for name in SECONDS}
        # an evaluation comes after the row of its step
        evaluated = [r for r in evaluations if old["seconds"] < r["seconds"] <= row["seconds"]]
        assert spent["eval"] == pytest.approx(SECONDS["eval"] * len(evaluated))
        assert spent["env"] == pytest.approx(SECONDS["env"] * made / 3)
        if on_policy(S) or framed(S) or old["global_step"] >= 60:  # else actions are random
            assert spent["act"] == pytest.approx(SECONDS["act"] * made / 3)
        assert sum(spent.values()) == pytest.approx(seconds)
        assert row["charts/SPS"] == pytest.approx(made / (seconds - spent["eval"]))
    assert sum(row.get("time/update", 0) > 0.5 for row in rows) >= 2
    found = summary("run")
    assert found["seconds"] == pytest.approx(clock.now - begun)
    assert found["SPS"] == pytest.approx(found["global_step"] / found["seconds"])
    first = rows[0]
    assert first["seconds"] > SECONDS["compile"]  # is counted from the launch
    assert first["charts/SPS"] > first["global_step"] / SECONDS["compile"]  # and in no rate


# --- flags ----------------------------------------------------------------------------------------
DEFAULTS = {
    "sac_continuous": {
        "total_timesteps": 1_000_000,
        "num_envs": 1,
        "seed": 1,
        "buffer_size": 1_000_000,
        "learning_starts": 5_000,
        "batch_size": 256,
        "utd": 1.0,
        "hidden_size": 256,
        "log_std_min": -20.0,
        "log_std_max": 2.0,
        "gamma": 0.99,
        "critic_lr": 1e-3,
        "actor_lr": 3e-4,
        "alpha": 0.1,
        "autotune": True,
        "alpha_lr": 3e-4,
        "target_entropy": None,
        "tau": 0.005,
        "eval_episodes": 10,
    },
    "td3_continuous": {
        "total_timesteps": 1_000_000,
        "num_envs": 1,
        "seed": 1,
        "buffer_size": 1_000_000,
        "learning_starts": 25_000,
        "batch_size": 256,
        "utd": 1.0,
        "hidden_size": 256,
        "exploration_noise": 0.1,
        "policy_noise": 0.2,
        "noise_clip": 0.5,
        "gamma": 0.99,
        "critic_lr": 3e-4,
        "actor_lr": 3e-4,
        "policy_delay": 2,
        "tau": 0.005,
        "eval_episodes": 10,
    },
    "ppo_continuous": {
        "total_timesteps": 1_000_000,
        "num_envs": 64,
        "num_workers": 0,
        "seed": 1,
        "rollout_steps": 2_048,
        "update_epochs": 10,
        "batch_size": 64,
        "hidden_size": 64,
        "norm_obs": True,
        "norm_reward": True,
        "log_std_init": -0.5,
        "gamma": 0.99,
        "bootstrap_truncated": True,
        "gae_lambda": 0.95,
        "recompute_advantages": False,
        "clip_coef": 0.2,
        "clip_vloss": False,
        "ent_coef": 0.0,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
        "learning_rate": 3e-4,
        "anneal": True,
        "desired_kl": None,
        "target_kl": None,
        "eval_episodes": 5,
    },
    "dqn_atari": {
        "total_timesteps": 10_000_000,
        "num_envs": 1,
        "num_workers": 0,
        "seed": 1,
        "life_loss": "auto",
        "clip_rewards": True,
        "frame_size": 84,
        "buffer_size": 1_000_000,
        "learning_starts": 80_000,
        "batch_size": 32,
        "train_every": 4,
        "hidden_size": 512,
        "start_e": 1.0,
        "end_e": 0.01,
        "exploration_fraction": 0.1,
        "eval_e": 0.001,
        "gamma": 0.99,
        "double": False,
        "huber": False,
        "learning_rate": 1e-4,
        "target_every": 1_000,
        "eval_episodes": 10,
    },
}
DEFAULTS["tqc_continuous"] = DEFAULTS["sac_continuous"] | {
    "num_critics": 2,
    "num_quantiles": 25,
    "drop_atoms": 2,
}
RUN = {"device": "auto", "threads": None, "compile": "auto", "log_every": 1_000, "eval_every": None}
RUN |= {"capture_video": True, "checkpoint_every": None, "resume": None, "track": False}
RUN |= {"wandb_project_name": None, "wandb_entity": None, "notes": "", "run_dir": None}
RUN |= {"config": None, "evaluate": None}


@pytest.mark.quick
@pytest.mark.every_script
def test_defaults(S, script):
    """The results that we publish were made with these: whoever changes one makes them anew."""
    if script.stem not in HOUSE:
        pytest.skip("your defaults are yours")
    found = dataclasses.asdict(S.Args())
    found.pop("env_id")
    expected = DEFAULTS[script.stem] | RUN
    if on_policy(S):
        expected |= {"log_every": 2_048, "threads": 1}
    assert found == expected


OPTIMIZERS = {
    "sac_continuous": {"critic_opt": 1e-3, "actor_opt": 3e-4, "alpha_opt": 3e-4},
    "td3_continuous": {"critic_opt": 3e-4, "actor_opt": 3e-4},
    "tqc_continuous": {"critic_opt": 1e-3, "actor_opt": 3e-4, "alpha_opt": 3e-4},
    "ppo_continuous": {"opt": 3e-4},
    "dqn_atari": {"q_opt": 1e-4},
}


@pytest.mark.quick
@pytest.mark.every_script
def test_constants_of_the_optimizers(S, script, spaces):
    if script.stem not in HOUSE:
        pytest.skip("your optimizers are yours")
    agent = S.Agent(S.Args(), *sizes_of_a_toy(S, spaces))
    found = {name: opt for name, opt in vars(agent)["_modules"].items() if isinstance(opt, S.Adam)}
    assert {name: opt.lr.item() for name, opt in found.items()} == pytest.approx(
        OPTIMIZERS[script.stem]
    )
    eps = 1e-5 if on_policy(S) else 1e-8
    for opt in found.values():
        assert (opt.beta1, opt.beta2, opt.weight_decay) == (0.9, 0.999, 0)
        assert opt.eps == pytest.approx(eps)


def sizes_of_a_toy(S, spaces):
    """Return the sizes of an agent for a toy."""
    (name,) = shown(spaces, ["tests.toy_envs:Counter-v0"])
    envs, *sizes = environments(S, S.Args(env_id=name), 1)
    shape = envs.single_observation_space.shape
    envs.close()
    return [shape if framed(S) else shape[0], *sizes]


def other_values(field, kind):
    """Return values of a field that are not its default: of either sign, 0, and odd ones."""
    kinds = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is typing.Literal:
        return [value for value in kinds if value != field.default]
    values = []
    if bool in kinds:
        return [not field.default]
    if int in kinds:
        values += [0, 1, 12_345]
    elif float in kinds:
        values += [0.0, -0.5, 1e-9, 123.5]
    elif str in kinds:
        values += ["other", "-1"]
    return [value for value in values if value != field.default]


@pytest.mark.quick
def test_every_setting_comes_back(S, tmp_path):
    """By config.toml and --config, whatever its value: 0 is not nothing, and False is not true."""
    need(S, "RunFolder", "parse_args")
    kinds = typing.get_type_hints(S.Args)
    aside = {"run_dir", "resume", "config", "evaluate"}
    for number, field in enumerate(fields(S.Args)):
        for value in other_values(field, kinds[field.name]) if field.name not in aside else ():
            args = replace(S.Args(), **{field.name: value, "run_dir": str(tmp_path / f"{number}")})
            folder = S.RunFolder(replace(args, run_dir=str(tmp_path / f"{number}-{value}")))
            folder.write_config(args)
            folder.metrics.file.close()
            path = folder.path / "config.toml"
            found = S.parse_args(S.Args, ["--config", str(path)])
            assert getattr(found, field.name) == value and type(getattr(found, field.name)) is type(
                value
            )
            same = replace(found, config=None, run_dir=None)
            assert same == replace(S.Args(), **{field.name: value})


@pytest.mark.quick
@pytest.mark.parametrize("name", ["log_every", "eval_every", "checkpoint_every"])
def test_a_period_of_0_is_never(S, train, name):
    need(S, "resolve")
    train(f"--{name.replace('_', '-')} 0 --run-dir run")
    rows = read("run")
    assert any("eval/return_mean" in row for row in rows) == (name != "eval_every")
    assert any("charts/SPS" in row for row in rows) == (name != "log_every")
    assert f"{name} = 0\n" in Path("run/config.toml").read_text()


@pytest.mark.quick
@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_a_target_entropy_of_any_sign(S, spaces, value):
    need(S, "Args.target_entropy")
    agent = S.Agent(S.Args(target_entropy=value), *sizes_of_a_toy(S, spaces))
    assert agent.target_entropy == value


@pytest.mark.quick
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 2**40])
def test_flags_at_their_limits(S, train, gamma, seed):
    train(f"--gamma {gamma} --seed {seed} --run-dir run")
    assert summary("run")["status"] == "finished"


# --- several environments, several dimensions -----------------------------------------------------
def assert_independent(columns):
    """Columns [T, K] of numbers: no two of them go together, and none is a constant."""
    columns = np.asarray(columns, float)
    assert columns.std(0).min() > 0
    found = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(found).max() < 6 / math.sqrt(len(columns))


@pytest.fixture
def actions(S, train, monkeypatch):
    """Train and return the actions [T, N, ...] that the environments of training were given."""

    def actions(flags):
        given = []
        begin = S.Run.begin

        def spy(run):
            step = run.envs.step

            def step_and_note(action):
                given.append(np.array(action))
                return step(action)

            run.envs.step = step_and_note
            return begin(run)

        monkeypatch.setattr(S.Run, "begin", spy)
        train(" ".join(tiny(S, flags)))
        return np.stack(given)

    return actions


def test_environments_and_dimensions_act_independently(S, spaces, actions):
    """At random at first, by chance later; the observations of all environments are the same."""
    need(S, "Run.begin")
    flags = "--env-id tests.toy_envs:Counter-v0 --num-envs 3 --eval-every 0 --log-every 0"
    flags += " --total-timesteps 3000 --learning-starts 1500 --start-e 1 --end-e 1"
    flags += " --utd 0.01 --train-every 100 --rollout-steps 1500 --batch-size 1500"
    flags += " --update-epochs 1 --exploration-noise 0.1 --run-dir run"
    given = actions(flags)
    first, later = given[:500], given[500:1000]
    for part in (first, later):
        flat = part.reshape(len(part), -1)
        # what a policy does at a step of an episode is the same everywhere: chance is left
        flat = flat - np.stack([flat[t::7].mean(0) for t in range(7)])[np.arange(len(flat)) % 7]
        assert_independent(flat)
    if not on_policy(S) and not framed(S):  # bounds of -2 and 2
        assert first.min() < -1.9 and first.max() > 1.9 and abs(first).max() <= 2
        assert np.abs(np.quantile(first, [0.25, 0.5, 0.75]) - [-1, 0, 1]).max() < 0.15


@pytest.mark.quick
def test_exploration_is_independent(S, spaces):
    """For the same observation, over environments and over dimensions."""
    apply(spaces, "box")
    need(S, "Agent.explore", "Args.hidden_size")
    low, high = np.float32([-1, 0, -2]), np.float32([1, 4, -0.5])
    torch.manual_seed(0)
    np.random.seed(0)
    agent = S.Agent(S.Args(hidden_size=16), 2, low, high)
    found = agent.explore(np.zeros((4000, 2)))
    action = found[0] if isinstance(found, tuple) else found
    assert_independent(action.reshape(4000, 3))


def test_ends_of_every_kind_in_the_same_step(S, train, monkeypatch, spaces):
    """Each environment's episodes are counted for themselves, with their own kind of end."""
    need(S, "Run.log_episodes")
    told = []
    log_episodes = S.Run.log_episodes

    def spy(run, infos, truncated):
        told.append((run.global_step, np.array(truncated)))
        return log_episodes(run, infos, truncated)

    monkeypatch.setattr(S.Run, "log_episodes", spy)
    flags = " ".join(tiny(S, "--num-envs 4 --eval-every 0 --log-every 50 --run-dir run"))
    train(f"--env-id tests.toy_envs:Mixed-v0 {flags}")
    rows = read("run")
    ends = [row for row in rows if "charts/episodic_return" in row]
    # environments 0, 1, 2, 3 end after 4, 8, 4, 8 steps: 0 and 1 by termination, 2 and 3 by time
    last = [row for row in rows if "env/time_limit_frac" in row][-1]
    lengths = [row["charts/episodic_length"] for row in ends]
    assert {*lengths} == {4, 8} and lengths.count(4) >= 2 * lengths.count(8) > 0
    recent = ends[-100:]
    assert last["env/time_limit_frac"] == pytest.approx(0.5, abs=0.02)
    values = np.array([[r["charts/episodic_return"], r["charts/episodic_length"]] for r in recent])
    for column, name in enumerate(["train/return", "train/length"]):
        assert last[f"{name}_mean"] == pytest.approx(values[:, column].mean(), rel=1e-6)
        assert last[f"{name}_sd"] == pytest.approx(values[:, column].std(), rel=1e-6, abs=1e-9)
        assert last[f"{name}_min"] == pytest.approx(values[:, column].min(), rel=1e-6)
        assert last[f"{name}_max"] == pytest.approx(values[:, column].max(), rel=1e-6)
    assert last["charts/average_return"] == pytest.approx(values[:, 0].mean(), rel=1e-6)


# --- evaluation -----------------------------------------------------------------------------------
@pytest.mark.parametrize("episodes", [1, 2, 5])
def test_as_many_episodes_as_asked_for(S, train, monkeypatch, episodes):
    """All begin at once, each in an environment of its own; the first is filmed to its end."""
    need(S, "Film")
    from tests import toy_envs

    flags = f"--eval-episodes {episodes} --capture-video --eval-every 300 --run-dir run"
    frames = []
    add = S.Film.add
    monkeypatch.setattr(S.Film, "add", lambda film, frame: (frames.append(1), add(film, frame)))
    widths = []
    evaluate = S.evaluate

    def spy(agent, envs, *inputs, **options):
        toy_envs.born.clear()
        metrics = evaluate(agent, envs, *inputs, **options)
        widths.append((envs.num_envs, toy_envs.born[:episodes], metrics["eval/length_mean"]))
        return metrics

    monkeypatch.setattr(S, "evaluate", spy)
    train(f"--env-id tests.toy_envs:Ragged-v0 {flags}")
    assert len(widths) == 2
    for number, lengths, mean in widths:
        assert number == episodes == len(lengths) and mean == np.mean(lengths)
    assert len(frames) == sum(lengths[0] for _, lengths, _ in widths)


def test_the_seed_of_evaluate_names_its_episodes(S, train, capfd):
    train("--env-id tests.toy_envs:Ragged-v0 --eval-every 0 --run-dir run")
    said = []
    for seed in (1, 1, 2, 3):
        capfd.readouterr()
        train(f"--evaluate run --eval-episodes 20 --seed {seed}")
        said.append(capfd.readouterr().out)
    assert said[0] == said[1] and len({*said}) == 3


# --- the end --------------------------------------------------------------------------------------
class Finished:
    """Stands in for W&B's module, and remembers how a run of it ends."""

    def __init__(self, codes):
        self.codes = codes
        self.Settings = self.Video = lambda *inputs, **options: None
        self.login = lambda **options: True
        self.teardown = lambda: None

    def init(self, **options):
        return self

    def define_metric(self, *inputs, **options):
        pass

    log_code = log = define_metric

    def finish(self, exit_code=0):
        self.codes.append(exit_code)


@pytest.mark.quick
@pytest.mark.parametrize("env, code", [("Counter", 0), ("NanReward", 1)])
def test_exit_codes_at_wandb(S, train, monkeypatch, env, code):
    codes = []
    monkeypatch.setitem(sys.modules, "wandb", Finished(codes))
    try:
        train(f"--env-id tests.toy_envs:{env}-v0 --track --run-dir run")
        assert code == 0
    except SystemExit as stop:
        assert stop.code == code == 1
    assert codes == [code]


@pytest.mark.quick
def test_a_model_of_uneven_bounds(S, spaces, train):
    """It acts as it did when it was trained, whoever loads it."""
    apply(spaces, "box")
    agent = train("--env-id tests.toy_envs:Acts_uneven-v0 --run-dir run")
    loaded = S.Agent.load("run")
    obs = np.linspace(-3, 3, 50)[:, None]
    assert np.array_equal(agent.act(obs), loaded.act(obs))
    assert np.array_equal(agent.value(obs), loaded.value(obs))
    sampled = np.concatenate([loaded.act(obs, deterministic=False) for _ in range(40)])
    assert (sampled >= [-1, 0]).all() and (sampled <= [0.5, 1000]).all()
    assert sampled[:, 1].max() > 300


@pytest.mark.quick
def test_a_model_that_lacks_a_tensor(S, train, capfd):
    """Each is needed, those of optimizers and normalisers too."""
    train("--eval-every 0 --run-dir run")
    path = Path("run/model.pt")
    whole = torch.load(path, weights_only=True)
    for name in whole["agent"]:
        part = {key: value for key, value in whole["agent"].items() if key != name}
        torch.save(whole | {"agent": part}, path)
        with pytest.raises(SystemExit) as stop:
            S.Agent.load("run")
        assert stop.value.code == 2 and name in capfd.readouterr().err


@pytest.mark.quick
def test_rewards_that_are_no_whole_numbers(S, spaces, train, monkeypatch):
    """Of them DQN learns the sign, and the others learn what they are; returns are raw sums."""
    name = "FrameBuffer" if framed(S) else "ReplayBuffer"
    need(S, name)
    stored = []
    add = getattr(S, name).add

    def spy(buffer, obs, action, reward, *rest):
        stored.append(np.array(reward))
        return add(buffer, obs, action, reward, *rest)

    monkeypatch.setattr(getattr(S, name), "add", spy)
    train("--env-id tests.toy_envs:Fractions-v0 --run-dir run")
    rewards = np.array([-0.5, 0.25, 0, 7.5, -3, 0.001, 0])
    stored = np.concatenate(stored)[:7]
    assert stored == pytest.approx(np.sign(rewards) if framed(S) else rewards)
    ends = [row["charts/episodic_return"] for row in read("run") if "charts/episodic_return" in row]
    assert len(ends) > 40 and ends == pytest.approx([rewards.sum()] * len(ends))
