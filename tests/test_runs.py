"""The script as a user runs it: real environments, complete folders, bad luck of all kinds."""

import ast
import base64
import errno
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import imageio.v3 as imageio
import numpy as np
import psutil
import pytest
import torch

from tests import toy_envs
from tests.conftest import (
    ENVIRON,
    ROOT,
    apply,
    environments,
    finish,
    framed,
    has,
    known,
    need,
    no_film,
    on_policy,
    read,
    same,
    shown,
    steady,
    summary,
    tiny,
    warnings,
    weights,
)

REAL = "--total-timesteps 1500 --learning-starts 300 --batch-size 64 --train-every 40"
REAL += " --rollout-steps 320 --hidden-size 32 --log-every 500 --eval-every 500"
REAL += " --eval-episodes 1 --capture-video --frame-size 44"
REAL += " --utd 1 --update-epochs 10 --anneal --norm-reward --autotune"  # whatever the defaults
EVERY = "charts/average_return charts/SPS charts/updates train/length_mean train/length_min"
EVERY += " train/return_mean train/return_sd train/return_min train/return_max"
EVERY += " env/time_limit_frac env/reward_mean env/reward_sd"
EVERY += " time/act time/env time/update time/log time/eval"
VECTORS = " env/obs_mean env/obs_sd env/obs_max"
DISCRETE = " losses/td_loss losses/q_values charts/learning_rate charts/epsilon grad/norm"
DISCRETE += " q/value_mean q/value_max q/target_mean q/target_sd q/td_rel"
CRITICS = " losses/actor_loss losses/qf_loss charts/actor_lr charts/critic_lr policy/saturation"
CRITICS += " losses/qf1_loss losses/qf2_loss losses/qf1_values losses/qf2_values"
CRITICS += " q/value_mean q/value_max q/target_mean q/target_sd q/td_rel q/twin_gap"
CRITICS += " grad/norm_critic grad/norm_actor"
ENTROPY = " policy/entropy policy/entropy_gap policy/log_std"
ENTROPY += " charts/alpha_lr losses/alpha losses/alpha_loss"
ROLLOUTS = " losses/policy_loss losses/value_loss charts/learning_rate grad/norm"
ROLLOUTS += " losses/entropy policy/log_std losses/approx_kl ppo/ratio_gap ppo/ratio_first_mb"
ROLLOUTS += " losses/explained_variance losses/clipfrac"
ROLLOUTS += " ppo/adv_mean ppo/adv_sd ppo/adv_min ppo/adv_max ppo/explained_var_mc"
FILES = {"config.toml", "script.py", "metrics.jsonl", "summary.json", "model.pt", "tb", "videos"}


def keys(S):
    """Return metrics that the script must log."""
    if on_policy(S):
        return {*(EVERY + VECTORS + ROLLOUTS).split()}
    if framed(S):
        return {*(EVERY + DISCRETE).split()}
    policy = ENTROPY if hasattr(S.Args, "alpha") else " policy/action_sd"
    return {*(EVERY + VECTORS + CRITICS + policy).split()}


def due(S):
    """Return how many updates REAL asks for."""
    off_policy = (1500 - 300) // (40 if hasattr(S.Args, "train_every") else 1)
    return 4 * 10 * 5 if on_policy(S) else off_policy  # rollouts, passes, batches


def steps_at(S, total, every, rollout):
    """Return the steps at which something is due that is so every so many steps.

    On-policy scripts look after each rollout of that many steps, and at the end.
    """
    if not on_policy(S):
        return [*range(every, total, every), total]
    ends = [*range(0, total, rollout), total]
    return [b for a, b in itertools.pairwise(ends) if b // every > a // every or b == total]


def updates(agent):
    """Return how many updates the critic's optimizer has made, right up to a few thousand."""
    names = [name for name in ("critic_opt", "q_opt", "opt") if hasattr(agent, name)]
    opt = getattr(agent, names[0]) if names else None
    seen = getattr(opt, "square_seen", getattr(opt, "bias_correction2", None))  # 1 - 0.999^steps
    if seen is None:
        pytest.skip("counts the steps of critic_opt, where it is of our class Adam")
    return round(math.log1p(-seen.item()) / math.log(0.999))


# --- a real environment, the script alone in an empty folder, in its own process ------------------
@pytest.fixture(scope="module")
def task(S):
    """The id of a real environment."""
    return "MsPacmanNoFrameskip-v4" if framed(S) else "Hopper-v4"


@pytest.fixture(scope="module")
def real(launch, S, task, tmp_path_factory):
    """A run on a real environment with offline tracking."""
    folder = tmp_path_factory.mktemp("alone")
    flags = " ".join(tiny(S, f"--env-id {task} {REAL} --track --run-dir runs/a"))
    code, out, err = finish(launch(folder, flags, WANDB_MODE="offline"))
    assert code == 0 and not warnings(out), out + err
    assert out.splitlines()[-1].endswith("runs/a") and "videos/step-1500.mp4" in out
    return folder / "runs" / "a"


def test_folder(real, script):
    assert {path.name for path in real.iterdir()} == FILES
    assert {path.name for path in real.parents[1].iterdir()} == {script.name, "runs", "wandb"}
    assert (real / "script.py").read_bytes() == script.read_bytes()
    found = {path.name for path in (real / "videos").iterdir()}
    assert found == {f"step-{step}.mp4" for step in (0, 1500)}


def test_learning(real, S, task):
    found, saved = summary(real), torch.load(real / "model.pt", weights_only=True)
    assert found["updates"] == due(S)
    args = S.Args(**saved["args"])
    made, *sizes = environments(S, args, 1)
    shape = made.single_observation_space.shape
    agent = S.Agent(args, shape if framed(S) else shape[0], *sizes)
    fresh = agent.state_dict()
    state = weights(real)
    assert fresh.keys() == state.keys()
    still = {name for name in fresh if re.search(r"(^|_)opt\.lr$", name)}  # a schedule may move it
    for name, parameter in agent.named_parameters():
        if not parameter.requires_grad and "target" not in name:
            still.add(name)  # frozen
    for name, _ in agent.named_buffers():
        if not re.search(r"opt\.|moments|running", name):
            still.add(name)  # a constant of a user's own
    assert not [name for name in fresh.keys() - still if torch.equal(fresh[name], state[name])]
    delay = getattr(S.Args, "policy_delay", 1)
    for name in [name for name in fresh if re.search("square_seen|bias_correction2", name)]:
        steps = due(S) / (delay if name.startswith("actor") else 1)
        assert state[name] == pytest.approx(1 - 0.999**steps, rel=1e-5)


def test_metrics(real, S):
    rows = read(real)
    for name in ("global_step", "seconds"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
    logs = [row for row in rows if "charts/SPS" in row]
    steps = steps_at(S, 1500, 500, 320)
    assert [row["global_step"] for row in logs] == steps and len(steps) == 3
    for old, last in itertools.pairwise(logs):
        made = last["global_step"] - old["global_step"]
        assert made / last["charts/SPS"] < last["seconds"] - old["seconds"] + 0.5
    learned = logs[-2] | last if on_policy(S) else last  # after the last whole rollout
    assert not keys(S) - learned.keys()
    found = [row["global_step"] for row in rows if "eval/return_mean" in row]
    assert found == [0, *steps]
    assert sum(v for k, v in last.items() if k.startswith("time/")) == pytest.approx(1)
    assert last["charts/updates"] == due(S)
    assert learned.get("ppo/ratio_first_mb", 0) < 1e-5


def test_summary(real, S, task):
    found, score = summary(real), read(real)[-1]["eval/return_mean"]
    expected = {"status": "finished", "reason": "", "global_step": 1500, "updates": due(S)}
    expected |= {"eval_last": score, "eval_last_tenth": score}
    assert {k: found[k] for k in expected} == expected
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == sys.version
    assert "--env-id" in found["command"] and task in found["command"]
    assert min(found[k] for k in ("seconds", "SPS")) > 0
    assert f"{platform.platform()} {os.cpu_count()} CPUs" in found["hardware"]


@pytest.mark.quick
def test_hardware_names_processor_and_cuda_device(S, monkeypatch):
    """The processor decides the last bits of a run, so whoever repeats it must know it."""
    need(S, "hardware")
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    monkeypatch.setattr(S.platform, "processor", lambda: "arm")
    monkeypatch.setattr(S.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    expected = " ".join([platform.platform(), f"{os.cpu_count()} CPUs", *(models or ["arm"])[:1]])
    assert S.hardware("cpu") == expected
    assert S.hardware("cuda") == f"{expected} NVIDIA H200"


def test_videos(real, S):
    total, least = 0, 0.001 if on_policy(S) else 0.01  # PPO's actor begins with actions near 0
    least = -1 if framed(S) else least  # a game may wait
    for row in read(real):
        if "eval/length_mean" in row and row["global_step"] in (0, 1500):
            frames = imageio.imread(real / "videos" / f"step-{row['global_step']}.mp4")
            moved = (np.diff(frames.astype(int), axis=0) != 0).mean(axis=(1, 2, 3))
            assert len(frames) == min(row["eval/length_mean"], 500)
            assert frames.shape[1:3] == ((210, 160) if framed(S) else (256, 256))
            assert min(moved) > least and frames.std() > 10
            total += len(frames)
    assert total > 10


def test_tensorboard(real):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(real / "tb"), size_guidance={"scalars": 0}).Reload()
    rows = read(real)
    assert events.Tags()["tensors"] == ["hyperparameters/text_summary"]
    (settings,) = events.Tensors("hyperparameters/text_summary")
    assert b"|seed|1|" in settings.tensor_proto.string_val[0]
    tags = {tag for row in rows for tag in row} - {"global_step", "seconds"}
    assert {*events.Tags()["scalars"]} == tags
    for tag in tags:
        expected = [(row["global_step"], row[tag]) for row in rows if tag in row]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert np.float32(found) == pytest.approx(np.float32(expected))


def test_tracking(real, script):
    (folder,) = real.parents[1].glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRON, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    history = [record["history"]["item"] for record in records if "history" in record]
    rows = read(real)
    own = re.compile(r"_.*|videos\..*")  # added by W&B
    assert [{k: row[k] for k in row if not own.fullmatch(k)} for row in history] == rows
    config = next(record["run"]["config"]["update"] for record in records if "run" in record)
    saved = tomllib.loads((real / "config.toml").read_text())
    saved["script"] = script.stem
    assert {k: v for k, v in config.items() if k != "_wandb"} == saved
    code = next(record["artifact"] for record in records if "artifact" in record)
    digest = base64.b64encode(hashlib.md5(script.read_bytes()).digest()).decode()
    assert code["type"] == "code"
    assert [file["digest"] for file in code["manifest"]["contents"]] == [digest]
    filmed = {row["global_step"]: row["videos.path"] for row in history if "videos.path" in row}
    assert len(filmed) == 2
    for step, path in filmed.items():
        video = real / "videos" / f"step-{step}.mp4"
        assert (folder / "files" / path).read_bytes() == video.read_bytes()
    assert any("exit" in record for record in records)


@pytest.mark.slow
def test_untracked_run_is_the_same(real, launch, S, task, tmp_path):
    flags = " ".join(tiny(S, f"--env-id {task} {REAL} --run-dir b"))
    code, _, imported = finish(launch(tmp_path, flags, python="-X importtime"))
    assert code == 0 and "torch" in imported and "wandb" not in imported
    assert steady(tmp_path / "b") == steady(real)
    assert same(weights(tmp_path / "b"), weights(real))
    assert {path.name for path in (tmp_path / "b").iterdir()} == FILES


def test_evaluate_as_a_user(real, S, task, launch, tmp_path):
    for name in ("model.pt", "config.toml"):
        (tmp_path / "a" / "videos").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes((real / name).read_bytes())
    code, out, err = finish(
        launch(tmp_path, "--evaluate a --eval-episodes 3 --seed 5 --capture-video")
    )
    assert code == 0, err
    found = dict(re.findall(r"'(eval/\w+)': ([-\d.]+)", out))
    agent = S.Agent.load(real)  # another process, whose normalisers are those of the file
    envs, *_ = environments(S, replace(agent.args, seed=5), 3)
    here = S.evaluate(agent, envs, (S.EVALUATE, 5, 10**6), no_film(S, envs))
    assert float(found["eval/return_mean"]) == pytest.approx(
        float(here["eval/return_mean"]), rel=1e-3
    )
    assert {"eval/return_mean", "eval/return_sd", "eval/length_mean"} <= found.keys()
    least, most = float(found["eval/return_min"]), float(found["eval/return_max"])
    assert 0 < least < most or (framed(S) and 0 < least == most)
    assert len(imageio.imread(tmp_path / out.split()[-1])) > 2


def test_import_does_nothing(script, tmp_path):
    code = f"""import os, random, signal, sys, numpy, torch
def state():
    environ = {{k: v for k, v in os.environ.items() if "PYGAME" not in k}}  # set by Gymnasium
    found = [environ, sys.path, os.listdir(), signal.getsignal(15)]
    found += [random.getstate(), numpy.random.get_state(), torch.initial_seed()]
    return str([*found, torch.get_num_threads()])
torch.manual_seed(7)
import importlib
old = state()
importlib.import_module({script.stem!r})
assert old == state()"""
    environ = ENVIRON | {"PYTHONPATH": str(script.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- what repeats and what changes nothing --------------------------------------------------------
RUDE = "--env-id tests.toy_envs:Rude-v0"  # an environment that draws from the global generators


@pytest.mark.quick
@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_same_command_same_bits(train, compile, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # cold, then warm
    for name in "ab":
        train(f"{RUDE} --compile {compile} --run-dir {name}")
    assert steady("a") == steady("b") and same(weights("a"), weights("b"))
    assert not warnings(capfd.readouterr().out)


@pytest.mark.quick
@pytest.mark.parametrize(
    "switch", ["--eval-every 0", "--eval-every 7", "--capture-video", "--log-every 0", "--track"]
)
def test_switches_change_no_weight(train, switch, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(f"{RUDE} --run-dir a")
    train(f"{RUDE} --run-dir b {switch}")
    assert same(weights("a"), weights("b"))
    logged = {key for row in read("b") for key in row}
    assert ("eval/return_mean" in logged) == (switch != "--eval-every 0")
    assert ("charts/SPS" in logged) == (switch != "--log-every 0")
    assert any(Path("b/videos").iterdir()) == (switch == "--capture-video")
    assert Path("wandb").exists() == (switch == "--track") and summary("b")["SPS"] > 0
    assert not warnings(capfd.readouterr().out)


def test_environments_in_processes_of_their_own_give_the_same_bits(train, S, monkeypatch):
    need(S, "Args.num_workers")
    made, init = [], S.WorkerEnvs.__init__

    def spy(envs, makers, workers, **options):
        made.append((len(makers), workers))
        init(envs, makers, workers, **options)

    monkeypatch.setattr(S.WorkerEnvs, "__init__", spy)
    for name, flags in {"a": "", "b": "--num-workers 2"}.items():
        train(f"--num-envs 3 {flags} --run-dir {name}")
    assert made == [(3, 2)]
    assert steady("a") == steady("b") and same(weights("a"), weights("b"))


@pytest.mark.quick
def test_every_episode_has_a_seed_of_its_own(untried, train, monkeypatch):
    """Of every environment, frames or not."""
    seeds = []
    reset = toy_envs.Toy.reset

    def spy(env, seed=None, options=None):
        seeds.append(seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(toy_envs.Toy, "reset", spy)
    train("--num-envs 3 --eval-every 0")
    assert len(seeds) > 20 and None not in seeds
    assert len({*seeds}) == len(seeds)


@pytest.mark.quick
def test_seeds_differ(train):
    lengths, actors = [], []
    for seed in "012":
        train(f"--env-id tests.toy_envs:Ragged-v0 --seed {seed} --run-dir ragged{seed}")
        lengths += [[row.get("charts/episodic_length") for row in read(f"ragged{seed}")]]
        train(f"--seed {seed} --run-dir {seed}")  # no seed matters to this environment
        actors += [next(w for name, w in weights(seed).items() if re.match(r"(actor|q)\.", name))]
    assert all(one != other for one, other in itertools.combinations(lengths, 2))
    assert not any(torch.equal(*pair) for pair in itertools.combinations(actors, 2))


@pytest.mark.quick
def test_config_repeats_a_run(train, S, spaces):
    odd = 'a "b" \\ é # = 1e6'
    off = "--no-autotune" if hasattr(S.Args, "autotune") else ""
    rate = "learning_rate" if hasattr(S.Args, "learning_rate") else "actor_lr"
    flags = f"{off} --{rate} 0.2 --gamma 0.9 {RUDE} --run-dir a"
    words = shown(spaces, [*tiny(S), *flags.split()])
    agent = S.main(replace(S.parse_args(S.Args, words), notes=odd))
    S.main(S.parse_args(S.Args, "--config a/config.toml --run-dir b".split()))
    S.main(S.parse_args(S.Args, f"--{rate} 0.3 --config a/config.toml --run-dir c".split()))
    a, b, c = (tomllib.loads(Path(run, "config.toml").read_text("utf-8")) for run in "abc")
    left_out = {"run_dir", "resume"}
    args = {k: v for k, v in vars(agent.args).items() if v is not None and k not in left_out}
    assert a == args and a["notes"] == odd
    assert a["compile"] == "off" and a["device"] in ("cpu", "cuda")  # resolved
    assert b == a | {"config": "a/config.toml"} and c == b | {rate: 0.3}
    assert steady("a") == steady("b") and same(weights("a"), weights("b"))
    assert not same(weights("a"), weights("c"))


# --- counting -------------------------------------------------------------------------------------
@pytest.mark.quick
@pytest.mark.parametrize("n, utd", [(1, 1.0), (3, 1.0), (3, 0.5), (4, 0.5), (2, 2.0)])
def test_counts(untried, train, S, n, utd):
    from tests import toy_envs

    need(S, *["Args.utd"] * (utd != 1))
    toy_envs.ended.clear()
    flags = f"--eval-every 0 --log-every 7 --num-envs {n} --utd {utd} --total-timesteps 301"
    flags += " --update-epochs 10"
    agent = train(f"--env-id tests.toy_envs:Ragged-v0 {' '.join(tiny(S, flags))} --run-dir run")
    found, steps, rows = summary("run"), math.ceil(301 / n) * n, read("run")
    assert found["global_step"] == rows[-1]["global_step"] == steps
    utd /= getattr(S.Args, "train_every", 1)
    expected = 3 * 10 * 3 if on_policy(S) else math.ceil(utd * (steps - 100))
    assert found["updates"] == updates(agent) == expected
    ends = [row for row in rows if "charts/episodic_return" in row]
    logged = [(row["charts/episodic_return"], row["charts/episodic_length"]) for row in ends]
    assert np.allclose(logged, toy_envs.ended) and len(logged) > 30
    assert steps - 9 * n <= sum(length for _, length in logged) <= steps
    assert rows[-1]["charts/average_return"] == pytest.approx(np.mean(logged[-100:], 0)[0])
    logs = [row["global_step"] for row in rows if "charts/SPS" in row]
    expected = len(steps_at(S, steps, 7, 96))
    assert len(logs) in (expected - 1, expected) and logs[-1] == steps


@pytest.mark.quick
def test_scores_of_the_last_tenth(train, S):
    flags = " ".join(tiny(S, "--eval-every 20 --rollout-steps 20 --batch-size 20"))
    train(f"--env-id tests.toy_envs:Ragged-v0 {flags} --no-capture-video --run-dir run")
    scores = [row["eval/return_mean"] for row in read("run") if "eval/return_mean" in row]
    assert len(scores) == 16 and len({*scores}) > 5 and summary("run")["eval_last"] == scores[-1]
    assert summary("run")["eval_last_tenth"] == pytest.approx(np.mean(scores[-2:]))


@pytest.mark.quick
def test_evaluation_counts_first_episodes(S, spaces):
    """Environments that end early begin again, which does not count; every seed is its own."""
    from tests import toy_envs

    need(S, "evaluate", "EVALUATE")
    (name,) = shown(spaces, ["tests.toy_envs:Ragged-v0"])
    envs, *sizes = environments(S, S.Args(env_id=name), 5)
    agent = S.Agent(S.Args(hidden_size=16), (4, 36, 36) if framed(S) else 1, *sizes)
    lengths = []
    for number in (7, 7, 8):  # where the first episode is not the longest
        toy_envs.born.clear()
        found = S.evaluate(agent, envs, (S.EVALUATE, 1, number), no_film(S, envs))
        lengths.append(toy_envs.born[:5])
        assert lengths[-1][0] < max(lengths[-1])
        assert found["eval/length_mean"] == np.mean(lengths[-1]) and len(toy_envs.born) > 5
    assert lengths[0] == lengths[1] != lengths[2] and len({*lengths[0]}) > 1


@pytest.mark.quick
def test_sps_excludes_evaluation(train, S, monkeypatch):
    evaluate = S.evaluate
    monkeypatch.setattr(S, "evaluate", lambda *a, **b: (time.sleep(1), evaluate(*a, **b))[1])
    train("--eval-every 100 --run-dir run")
    logs = [row for row in read("run") if "charts/SPS" in row]
    for old, last in itertools.pairwise(logs):
        between = last["seconds"] - old["seconds"]
        made = last["global_step"] - old["global_step"]
        assert made / last["charts/SPS"] < between - 0.5 and last["time/eval"] > 0.5 / between


@pytest.mark.quick
def test_sps_excludes_the_start(train, S, monkeypatch):
    """Compilation above all: it would make the first estimates of the time left absurd."""
    need(S, "compile_update")
    compile_update = S.compile_update
    slow = lambda *a, **b: (time.sleep(3), compile_update(*a, **b))[1]  # noqa: E731
    monkeypatch.setattr(S, "compile_update", slow)
    train("--eval-every 0 --run-dir run")
    row = next(row for row in read("run") if "charts/SPS" in row)
    assert row["global_step"] / row["charts/SPS"] < row["seconds"] - 2.9


@pytest.mark.slow
def test_a_second_compilation_says_why(S, capfd):
    """It would look like a hang in the middle of a run."""
    need(S, "compile_update")

    class Agent(torch.nn.Module):
        factor = 1.0

        def update(self, x):
            return {"x": x.mean() * self.factor}

    agent, x = Agent(), torch.ones(3)
    update, compiled = S.compile_update(agent, Agent.update, [x], "on")
    assert compiled and update(x).values.item() == 1
    assert "Recompiling" not in capfd.readouterr().err
    agent.factor = 2.0
    assert update(x).values.item() == 2
    assert "Recompiling" in capfd.readouterr().err


@pytest.mark.plumbing
@pytest.mark.quick
def test_what_changed_since_the_run_before(train, S, capfd):
    """Each run says it of the latest one in its environment; seeds and comments are no change."""
    need(S, "say_changes")

    def since():
        return re.findall(r"^since (.*)$", capfd.readouterr().out, re.M)

    train("--run-dir runs/a")
    train("--run-dir runs/b --env-id tests.toy_envs:Limited-v0")
    assert since() == []
    train("--run-dir runs/c --seed 2")
    assert since() == [f"{Path('runs/a')}: 0 changes"]
    train("--run-dir runs/d --gamma 0.5 --batch-size 24")
    found = since()
    assert found == ["runs/c: batch_size 32 -> 24, gamma 0.99 -> 0.5, 2 changes"], found
    earlier = Path("runs/d/script.py")
    earlier.write_bytes(earlier.read_bytes() + b"# a comment\nEARLIER = 1\n")
    train("--run-dir runs/e --gamma 0.5 --batch-size 24")
    assert since() == ["runs/d: EARLIER, 1 change"]
    other = Path("runs/e/script.py")  # the run of another method, whose settings are the same
    other.write_bytes(b'"""Another"""\n' + other.read_bytes().partition(b"\n")[2])
    earlier.write_bytes(earlier.read_bytes().partition(b"\n")[0])  # no whole source
    train("--run-dir runs/f --gamma 0.5 --batch-size 24")
    assert since() == ["runs/d: the source, 1 change"]
    steps = summary("runs/a")["global_step"]  # a schedule may depend on how many there will be
    train(f"--run-dir runs/g --gamma 0.5 --batch-size 24 --total-timesteps {2 * steps}")
    assert since() == [f"runs/f: total_timesteps {steps} -> {2 * steps}, 1 change"]


@pytest.mark.plumbing
@pytest.mark.quick
def test_what_changed_in_a_source(S):
    """Functions, methods and constants count, each by its name."""
    need(S, "changed_code")
    old = '''"""A script."""
import os
RATE = 1
class Args:
    gamma: float = 0.9
class Agent(Base):
    """An agent."""
    size = 3
    def act(self):
        """Act."""
        return 1
def main():
    return RATE
'''

    def changes(before, after):
        assert before in old
        return S.changed_code(old.encode(), old.replace(before, after).encode())

    assert changes("1", "1") == changes("RATE = 1", "RATE = 1  # a comment") == []
    assert changes("A script", "Another") == changes("Act.", "Acts.") == []
    assert changes("An agent", "The agent") == changes("0.9", "0.8") == changes("os", "re") == []
    assert changes("return 1", "return 2") == ["Agent.act"]
    assert changes("(Base)", "") == changes("size = 3", "size = 4") == ["Agent"]
    assert changes("RATE = 1", "RATE = 2") == ["RATE"]
    assert changes("RATE = 1", "RATE: int = 1") == ["RATE"]
    assert changes("RATE = 1", "RATE = 1\nset_default(2)") == ["set_default(2)"]
    assert changes("return RATE", "return 2 * RATE") == ["main"]
    assert changes("def main", "def start") == ["start", "main"]
    # what is new, or gone, counts with what calls it
    helper = "def helper():\n    return 2\ndef main"
    assert changes("def main", helper) == ["helper"]  # nothing calls it
    assert changes("def main():\n    return RATE", f"{helper}():\n    return helper()") == ["main"]
    holder = "class New:\n    def one(self):\n        return New\ndef main"
    assert changes("def main():\n    return RATE", f"{holder}():\n    return New()") == ["main"]
    assert changes("def main", holder) == ["New"]  # only itself calls it
    assert changes("RATE = 1\n", "") == ["RATE"]  # main names it, and is the same
    known = "def act():\n    return 2\ndef main"  # a method has this name
    found = changes("def main():\n    return RATE", f"{known}():\n    return act()")
    assert found == ["act", "main"]


@pytest.mark.plumbing
@pytest.mark.quick
@pytest.mark.parametrize("load, threads, advised", [(9e9, 2, 1), (9e9, 1, 0), (0, 2, 0)])
def test_a_busy_machine(train, S, monkeypatch, capfd, load, threads, advised):
    need(S, "limit_threads")
    monkeypatch.setattr(S.os, "getloadavg", lambda: (load, load, load))
    train(f"--eval-every 0 --threads {threads} --run-dir run")
    assert capfd.readouterr().out.count("--threads 1 may be faster") == advised


@pytest.mark.quick
def test_defaults_of_a_run(train, S, monkeypatch):
    """Compilation if it pays; an evaluation in eight is filmed, and the last; 100 episodes."""
    need(S, "compile_update")
    tried, filmed, told = [], [], []
    monkeypatch.setattr(S.torch, "compile", lambda update, **_: (tried.append(1), update)[1])
    monkeypatch.setattr(S.Film, "add", lambda film, frame: film.rolling)

    def close(film):
        if film.rolling:
            filmed.append(film.path.name)
            return film.path
        return None

    monkeypatch.setattr(S.Film, "close", close)
    resolve = S.resolve
    spy = lambda args, *rest, **names: (told.append(names), resolve(args, *rest, **names))[1]  # noqa: E731
    monkeypatch.setattr(S, "resolve", spy)
    total, every, few = 12_000, 600, "--learning-starts 11990 --eval-every 600"
    expected = {"least_steps_to_compile": 10_000, "least_eval_period": 2_000}
    if on_policy(S):
        total, every = 100_800, 7_200
        few = "--num-envs 48 --rollout-steps 7200 --batch-size 7200 --update-epochs 1"
        expected["least_steps_to_compile"] = 100_000
    if framed(S):
        total, every = 24_000, 1_200
        few = "--learning-starts 4000 --train-every 2000 --eval-every 1200 --end-e 1"
        expected = {"least_steps_to_compile": 24_000, "least_eval_period": 50_000}
    train(f"--total-timesteps {total} {few} --capture-video --run-dir run")
    assert told == [expected]
    assert 'compile = "on"' in Path("run/config.toml").read_text() and tried
    assert filmed == [f"step-{step}.mp4" for step in (*range(0, total, 8 * every), total)]
    evaluations = [row for row in read("run") if "eval/return_mean" in row]
    assert len(evaluations) == total / every + 1
    rest = {"preferred_device": "cpu", "least_steps_to_compile": 10_000, "least_eval_period": 4_000}
    usual = S.Args(eval_every=None, checkpoint_every=None, compile="auto")
    long = S.resolve(replace(usual, total_timesteps=1_000_000), **rest)
    short = S.resolve(replace(usual, total_timesteps=9_000), **rest)
    assert (long.eval_every, long.checkpoint_every) == (math.ceil(1_000_000 / 24), 50_000)
    assert (long.compile, short.compile) == ("on", "off")
    assert (short.eval_every, short.checkpoint_every) == (4_000, 2_000)
    last = [row for row in read("run") if "charts/average_return" in row][-1]
    ends = [row["charts/episodic_return"] for row in read("run") if "charts/episodic_return" in row]
    assert last["charts/average_return"] == pytest.approx(np.mean(ends[-100:]))


# --- using an agent, environments of the user's own -----------------------------------------------
@pytest.mark.quick
def test_load_and_evaluate(train, S, spaces, capfd):
    apply(spaces, "box")
    agent, obs = train("--run-dir run --eval-every 0"), np.arange(5.0)[:, None]
    loaded = S.Agent.load("run")
    assert np.array_equal(loaded.act(obs), agent.act(obs)) and loaded.act(obs).shape == (5, 2)
    assert np.array_equal(loaded.value(obs), agent.value(obs)) and loaded.value(obs).shape == (5,)
    assert np.ptp(loaded.act(obs), axis=0).min() > 0 and np.abs(loaded.act(obs)).max() <= 2
    capfd.readouterr()
    S.main(S.parse_args(S.Args, ["--evaluate", "run"]))
    expected = 28 + loaded.act(np.arange(7.0)[:, None]).sum() / 100
    out = capfd.readouterr().out
    found = float(re.search("'eval/return_mean': ([0-9.]+)", out)[1])  # to four decimals
    assert found == pytest.approx(expected, abs=2e-4)
    assert "'eval/length_mean': 7.0" in out
    frames = imageio.imread(out.split()[-1])
    assert [frame.mean((0, 2)).argmax() // 8 for frame in frames] == [*range(7)]


@pytest.mark.quick
@pytest.mark.parametrize("name, width", [("DictObs", 2), ("Limited", 1)])
def test_environments(train, spaces, name, width):
    apply(spaces, "box")
    agent = train(f"--env-id tests.toy_envs:{name}-v0 --run-dir run")
    assert summary("run")["status"] == "finished" and agent.high.tolist() == [2, 2]
    obs = np.random.default_rng(0).normal(0, 9, (100, width))
    assert np.abs(agent.act(obs, deterministic=False)).max() > 1
    assert read("run")[-2]["env/time_limit_frac"] == (name == "Limited")


@pytest.mark.quick
def test_module_of_the_users_own(train, spaces, tmp_path, script, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)  # that of another script's test
    toy = "toy_envs.Toy" if "box" in spaces else "lambda: toy_envs.Shown(toy_envs.Toy())"
    text = f"import gymnasium\nfrom tests import toy_envs\ngymnasium.register('MyEnv-v0', {toy})\n"
    (tmp_path / "my_module.py").write_text(text)
    for _ in "ab":
        train("--env-id my_module:MyEnv-v0")
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2 and {summary(run)["status"] for run in runs} == {"finished"}
    assert all(run.name.startswith(f"my_module_MyEnv-v0__{script.stem}__1__") for run in runs)


# --- bad luck -------------------------------------------------------------------------------------
@pytest.mark.parametrize("more", ["", "--num-workers 2 --num-envs 2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupt(launch, S, tmp_path, number, more):
    """A terminal sends Ctrl-C, which is SIGINT, to the processes of environments, too."""
    need(S, *["Args.num_workers"] * bool(more))
    flags = f"--total-timesteps 1e7 --eval-every 0 --compile off --run-dir run {more}"
    process = launch(tmp_path, flags, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    for line in process.stdout:
        if re.match(r"step \d{3}/", line):
            break
    children = psutil.Process(process.pid).children() if more else []
    assert len(children) == 2 * bool(more)
    for pid in [*(child.pid for child in children if number == signal.SIGINT), process.pid]:
        os.kill(pid, number)
    code, _, err = finish(process)
    found = summary(tmp_path / "run")
    assert code == 130 and "Traceback" not in err and not psutil.wait_procs(children, 10)[1]
    assert found["status"] == "interrupted" and found["reason"] and found["global_step"] >= 100
    loaded = S.Agent.load(tmp_path / "run")
    uncounted = 30 if on_policy(S) else 1  # a rollout's updates count when all are done
    assert found["updates"] <= updates(loaded) <= found["updates"] + uncounted
    assert read(tmp_path / "run")


@pytest.mark.quick
@pytest.mark.parametrize(
    "env, name, steps",
    [
        ("NanReward", "reward", {149}),
        ("NanObservation", "next_obs", {149}),
        ("NanReset", "obs", {154}),  # the step after the first reset after step 150
        ("NanEarly", "eval", {0}),
        ("Huge", "losses", range(101, 150)),
    ],
)
def test_not_finite(untried, train, S, env, name, steps, capfd):
    if framed(S) and name in ("obs", "next_obs"):
        pytest.skip("frames are whole numbers")
    flags = f"--env-id tests.toy_envs:{env}-v0 --log-every 1 --no-norm-reward --run-dir run"
    flags += " --no-clip-rewards"
    steps = {96} if on_policy(S) and env == "Huge" else steps  # when the rollout is complete
    if env == "Huge" and has(S, "Args.num_quantiles"):
        name = "q/td_rel"  # a square, which TQC's loss of large errors is not
    with pytest.raises(SystemExit) as stop:
        train(" ".join(tiny(S, flags)))
    found, (out, err) = summary("run"), capfd.readouterr()
    assert stop.value.code == 1 and found["status"] == "failed" and "Traceback" not in err
    assert f"'{name}" in found["reason"] and found["global_step"] in steps
    assert out.count("failed") == out.count(found["reason"]) == 1
    assert all(math.isfinite(value) for row in read("run") for value in row.values())
    assert re.search(rf"\b{found['global_step']}\b", found["reason"])  # says when


SEARCH = """
import importlib
import threading

SCRIPT = importlib.import_module("NAME")

def attempt(**changes):
    try:
        SCRIPT.main(SCRIPT.Args(**(FLAGS | changes)))
        outcomes.append("trained")
    except Exception as error:
        outcomes.append(str(error))

outcomes = []
attempt(run_dir="a")
attempt(gamma=2)
attempt(env_id=FLAGS["env_id"].replace("Counter", "NanReward"))
thread = threading.Thread(target=attempt, kwargs={"run_dir": "b"})
thread.start()
thread.join()
print(outcomes)
"""


@pytest.mark.plumbing
def test_called_by_a_program(S, script, spaces, tmp_path):
    """As by a search over settings: it goes on after a failure, and trains in a thread, too."""
    need(S, "Exit")
    shutil.copy(script, tmp_path)
    flags = {"total_timesteps": 300, "learning_starts": 100, "batch_size": 32, "threads": 1}
    flags |= {"eval_every": 0, "rollout_steps": 96, "num_envs": 1, "buffer_size": 1000}
    flags = known(S, flags)
    (flags["env_id"],) = shown(spaces, ["tests.toy_envs:Counter-v0"])
    text = SEARCH.replace("NAME", script.stem).replace("FLAGS", repr(flags))
    (tmp_path / "search.py").write_text(text)
    out = run_in(tmp_path, "search.py")
    first, refused, failed, last = ast.literal_eval(out.splitlines()[-1])
    assert first == last == "trained" and summary(tmp_path / "b")["status"] == "finished"
    assert "--gamma must be between 0 and 1" in refused and "is not finite" in failed


@pytest.mark.plumbing
@pytest.mark.quick
def test_failures_pass_between_processes(S):
    need(S, "Exit")
    again = pickle.loads(pickle.dumps(S.Exit(2, "a reason")))
    assert type(again) is S.Exit and (again.code, str(again)) == (2, "a reason")
    assert isinstance(again, Exception) and isinstance(again, SystemExit)


@pytest.mark.plumbing
@pytest.mark.parametrize("how", ["stdin", "cell"])
def test_a_script_without_a_file(S, script, spaces, tmp_path, how):
    """Piped into Python, or pasted into a notebook's cell, it trains and goes on."""
    need(S, "source")
    words = ["-", *shown(spaces, tiny(S)), "--run-dir", "run"]
    if how == "cell":
        words[0] = "cell.py"
        text = f"exec(open({str(script)!r}).read(), {{'__name__': '__main__'}})"
        (tmp_path / "cell.py").write_text(text)
    assert "finished" in run_in(tmp_path, *words, text=script.read_text("utf-8"))
    assert summary(tmp_path / "run")["global_step"] == 300
    again = run_in(tmp_path, *words, "--resume", "auto", text=script.read_text("utf-8"))
    assert "is finished" in again


def run_in(folder, *words, text=""):
    """Run Python in a folder, without an error, and return what it prints."""
    options = {"cwd": folder, "env": ENVIRON | {"PYTHONPATH": str(ROOT)}, "input": text}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.plumbing
@pytest.mark.parametrize("redirection", ["| head -n 1", ">&- 2>&-"])
def test_nobody_listens(S, script, spaces, launch, tmp_path, redirection):
    """A pipe that closes after a line, or no terminal at all, is not worth a run."""
    need(S, "say", "compile_update")
    shutil.copy(script, tmp_path)
    words = shown(spaces, [*tiny(S), "--run-dir", "run"])
    command = f"{shlex.join([sys.executable, script.name, *words])} {redirection}"
    environ = ENVIRON | {"PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True)
    for _ in range(300):  # the end of the pipe is not that of the run
        if (tmp_path / "run" / "summary.json").exists():
            break
        time.sleep(0.1)
    assert summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.plumbing
def test_git_commit_and_changes(S, script, spaces, tmp_path):
    """The summary names the commit; what differs from it, in the whole checkout, is kept."""
    need(S, "git_state")

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(script, folder)
    (tmp_path / "module.py").write_text("one = 1\n")
    git("init")
    git("add", "module.py", f"folder/{script.name}")
    git("commit", "-m", "a")
    words = shown(spaces, [*tiny(S), "--eval-every", "0", "--run-dir"])
    for name, text in {"clean": "one = 1\n", "dirty": "one = 2\n", "staged": "one = 3\n"}.items():
        (tmp_path / "module.py").write_text(text)
        os.utime(tmp_path / "module.py", (1, 1))  # Git looks into it
        if name == "staged":
            git("add", "module.py")
        command = [sys.executable, script.name, *words, name]
        environ = ENVIRON | {"PYTHONPATH": str(ROOT)}
        index = (tmp_path / ".git" / "index").read_bytes()
        subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True)
        # it was not rewritten, which locks it: a user's commit would fail
        assert (tmp_path / ".git" / "index").read_bytes() == index
        found = summary(folder / name)
        assert found["git_commit"] == git("rev-parse", "HEAD").strip()
        assert found["git_dirty"] == (name != "clean")
    assert not (folder / "clean" / "changes.diff").exists()
    assert "+one = 2" in (folder / "dirty" / "changes.diff").read_text()
    assert "+one = 3" in (folder / "staged" / "changes.diff").read_text()


def test_what_a_run_says(S, train, capfd):
    """What it runs on, where it writes, why nothing is learned yet, how long it takes, its end."""
    need(S, "Args.total_timesteps", "Run")
    train("--run-dir run")
    said = capfd.readouterr().out
    assert re.search(r"^device cpu, 1 threads, compile (on|off)$", said, re.M)
    assert "\nrun folder run; to watch it: tensorboard --logdir run\n" in said
    if hasattr(S.Args, "learning_starts") and not framed(S):  # games are played by epsilon
        assert "\nactions are random until step 100, then updates begin\n" in said
    if hasattr(S.Args, "learning_starts"):  # before the first update nobody knows how long
        assert re.search(r"^step 100/300 SPS \d+ return ", said, re.M)
    assert re.search(r"^step 300/300 SPS \d+ left 0 min ", said, re.M)
    assert said.splitlines()[-1].startswith("finished: ")
    train("--total-timesteps 301 --num-envs 2 --run-dir beyond")
    assert re.search(r"^step 302/301 SPS \d+ left 0 min ", capfd.readouterr().out, re.M)
    S.main(S.parse_args(S.Args, "--evaluate run --no-capture-video".split()))
    assert capfd.readouterr().out.rstrip().endswith("}")  # a film that was not made is not named


@pytest.mark.quick
def test_letters_that_a_terminal_does_not_know(S, monkeypatch):
    """Cost the line, not the run."""
    need(S, "say")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    S.say("é")


NO_OPENGL = """import ctypes.util
ctypes.util.find_library, load = lambda name: None, ctypes.CDLL.__init__
def refuse(self, name, *rest, **options):
    if "GL" in str(name).rpartition("/")[2]:
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *rest, **options)
ctypes.CDLL.__init__ = refuse
"""


@pytest.mark.plumbing
def test_no_opengl(launch, spaces, tmp_path):
    apply(spaces, "box")  # games draw themselves
    (tmp_path / "sitecustomize.py").write_text(NO_OPENGL)
    environ = {"PYTHONPATH": str(tmp_path), "MUJOCO_GL": None, "DISPLAY": None}
    code, out, err = finish(
        launch(tmp_path, "--env-id Hopper-v4 --capture-video --run-dir run", **environ)
    )
    assert code == 0 and "Traceback" not in err, err
    assert len(warnings(out)) == 1 and "apt-get install" in out
    assert summary(tmp_path / "run")["status"] == "finished" and len(read(tmp_path / "run")) > 3


@pytest.mark.plumbing
@pytest.mark.quick
def test_full_disk_for_the_video(train, S, monkeypatch, capfd):
    def write(path, *inputs, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    from moviepy.video.io import ffmpeg_writer

    monkeypatch.setattr(ffmpeg_writer, "FFMPEG_VideoWriter", write)
    train("--capture-video --run-dir run")
    warned = warnings(capfd.readouterr().out)
    assert (
        len(warned) == 1 and "No space left" in warned[0] and summary("run")["status"] == "finished"
    )
    assert not [*Path("run/videos").iterdir()]


@pytest.mark.plumbing
@pytest.mark.quick
def test_t37_moviepy_is_not_installed(train, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.split(".")[0] == "moviepy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "moviepy", None)  # importing it fails
    train("--capture-video --run-dir run")
    assert len(warnings(capfd.readouterr().out)) == 1
    assert summary("run")["status"] == "finished"
    assert not [*Path("run/videos").iterdir()]


@pytest.mark.plumbing
@pytest.mark.quick
def test_a_film_shows_frames_as_they_are(S, tmp_path):
    """Those of Atari are higher than wide."""
    need(S, "Film")
    frame = np.zeros((64, 32, 3), np.uint8)
    frame[:32] = 255
    env = SimpleNamespace(render_mode="rgb_array", render=lambda: frame)
    envs = SimpleNamespace(envs=[env], metadata={"render_fps": 20})
    film = S.Film(tmp_path / "film.mp4", envs, wanted=True)
    for _ in range(5):
        film.shoot()
    shown = imageio.imread(film.close())
    assert shown.shape == (5, *frame.shape)
    assert shown[:, :28].min() > 200 and shown[:, 36:].max() < 55


@pytest.mark.plumbing
@pytest.mark.quick
def test_a_video_that_wandb_refuses(S, capfd):
    need(S, "Tracker")

    def refuse(path):
        raise ValueError("no video")

    tracker = S.Tracker(S.Args(), None, None)
    tracker.run, tracker.video = "a run", refuse
    tracker.log({"global_step": 1}, "a video")
    assert tracker.run is None and "no W&B from here on" in capfd.readouterr().out


@pytest.mark.plumbing
@pytest.mark.quick
@pytest.mark.parametrize(
    "flag, environment, project",
    [("mine", "yours", "mine"), (None, "yours", "yours"), (None, None, "deep-rl-baselines")],
)
def test_where_wandb_puts_a_run(S, monkeypatch, tmp_path, flag, environment, project):
    """The flag goes before the variable of W&B's own, and what else was asked for arrives."""
    need(S, "Tracker")
    asked = {}

    def init(**options):
        asked.update(options)
        return SimpleNamespace(define_metric=Mock(), log_code=Mock())

    fake = SimpleNamespace(init=init, login=Mock(return_value=True), Settings=Mock(), Video=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_PROJECT", environment)
    args = S.Args(track=True, wandb_project_name=flag, wandb_entity="us", notes="why")
    assert S.Tracker(args, tmp_path, "id1").run
    assert asked["project"] == project
    assert (asked["entity"], asked["notes"], asked["id"]) == ("us", "why", "id1")
    assert asked["group"] == f"{args.env_id}__{S.SCRIPT.stem}"
    assert asked["name"] == tmp_path.name and asked["config"]["notes"] == "why"


@pytest.mark.plumbing
@pytest.mark.quick
def test_wandb_is_not_installed(train, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train("--run-dir a")
    assert not warnings(capfd.readouterr().out)
    train("--run-dir b --track")
    assert len(warnings(capfd.readouterr().out)) == 1 and summary("b")["status"] == "finished"


ONLINE = {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": "http://127.0.0.1:9"}
SILENT = ONLINE | {"WANDB_BASE_URL": "http://127.0.0.1:{port}"}  # connects, but never answers
TROUBLE = [
    pytest.param("Counter", 0, {"HOME": "."}, id="no-account"),
    pytest.param("Counter", 1, ONLINE, id="no-network", marks=pytest.mark.slow),
    pytest.param("Counter", 1, SILENT, id="no-answer", marks=pytest.mark.slow),
    pytest.param("Killer", 1, {"WANDB_MODE": "offline"}, id="killed"),
]


@pytest.mark.plumbing
@pytest.mark.parametrize("env, warned, environ", TROUBLE)
def test_tracking_in_trouble(launch, tmp_path, env, warned, environ):
    flags = f"--env-id tests.toy_envs:{env}-v0 --track --run-dir run"
    with socket.create_server(("127.0.0.1", 0)) as server:
        environ = {k: v.format(port=server.getsockname()[1]) for k, v in environ.items()}
        code, out, err = finish(launch(tmp_path, flags, PYTHONPATH=str(ROOT), **environ))
    assert code == 0 and len(warnings(out)) == warned, out + err
    assert all("W&B" in line for line in warnings(out))
    assert env == "Killer" or "Traceback" not in err  # there W&B ends with one of its own
    assert summary(tmp_path / "run")["status"] == "finished" and len(read(tmp_path / "run")) > 40
    assert ("killed" in out) == (env == "Killer") and "killed 0" not in out
    online = "WANDB_BASE_URL" in environ
    assert online or [*tmp_path.glob("wandb/offline-run-*/*.wandb")]


# --- unfamiliar environments ----------------------------------------------------------------------
@pytest.mark.plumbing
@pytest.mark.quick
def test_a_module_in_the_working_directory(S, spaces, train, tmp_path, monkeypatch):
    """A run's own copy of the script, in another folder, finds it as the script beside it did."""
    need(S, "compile_update")
    monkeypatch.delitem(sys.modules, "module_beside", raising=False)  # another script's test's
    apply(spaces, "box")
    text = "from tests import toy_envs; toy_envs.register('Beside', toy_envs.Toy)"
    (tmp_path / "module_beside.py").write_text(text)
    assert str(tmp_path) not in sys.path
    train("--env-id module_beside:Beside-v0 --run-dir run")
    assert summary("run")["status"] == "finished"


@pytest.mark.plumbing
@pytest.mark.quick
def test_a_video_stays_when_another_evaluation_makes_none(S, train):
    need(S, "compile_update")
    train("--eval-every 0 --run-dir run")
    train("--evaluate run --capture-video")
    (video,) = Path("run/videos").glob("*.mp4")
    train("--evaluate run --no-capture-video")
    assert video.exists()


@pytest.mark.plumbing
@pytest.mark.quick
@pytest.mark.parametrize("notes", ["a\x7fb", 'a "b" \\ ü\n\t', "\U0001f600"])
def test_notes_come_back(S, train, notes):
    need(S, "compile_update")
    train("--run-dir run")
    args = replace(S.Args(), notes=notes)
    folder = S.RunFolder(replace(args, run_dir="b"))
    folder.write_config(args)
    assert tomllib.loads(Path("b/config.toml").read_text("utf-8"))["notes"] == notes
