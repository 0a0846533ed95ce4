"""Every script learns every probe that its action space allows: values, then policies.

Budgets are about three times the steps that correct agents need.
"""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests import probe_envs
from tests.conftest import read

LAB = {"hidden_size": 64, "batch_size": 64, "learning_starts": 100, "tau": 0.05, "gamma": 0.5}
LAB |= {"critic_lr": 1e-3, "actor_lr": 1e-3, "alpha_lr": 1e-3, "alpha": 1e-3, "autotune": False}
LAB |= {"eval_every": 0, "capture_video": False, "threads": 1, "compile": "off", "device": "cpu"}
LAB |= {"log_every": 100, "run_dir": "run"}
SLOW = pytest.mark.slow
SEEDS = [1, *(pytest.param(seed, marks=SLOW) for seed in (2, 3))]
ENVS = [2, *(pytest.param(envs, marks=SLOW) for envs in (1, 3))]


@pytest.fixture
def learn(S, tmp_path, monkeypatch):
    """Train on a probe in an empty folder, with the flags of LAB that the script has."""
    monkeypatch.chdir(tmp_path)

    def learn(name, total_timesteps, **changes):
        flags = LAB | {"env_id": f"tests.probe_envs:{name}", "total_timesteps": total_timesteps}
        known = {field.name for field in dataclasses.fields(S.Args)}
        return S.main(S.Args(**{k: v for k, v in (flags | changes).items() if k in known}))

    return learn


def answers(name, gamma):
    """Return observations [S, O], best values [S] and best actions [S, A] of a probe."""
    values, best = probe_envs.solve(
        gym.make(f"tests.probe_envs:{name}", disable_env_checker=True).unwrapped, gamma
    )
    return np.float32([*values]), np.array([*values.values()]), np.array([*best.values()])


# --- the probes themselves ------------------------------------------------------------------------
KNOWN = {
    "Const": (0.5, [1], None),
    "ObsValue": (0.5, [-1, 1], None),
    "Chain3": (0.5, [0.25, 0.5, 1], None),
    "CycleTrunc": (0.8, [0.867, 1.084, 1.355, 1.694], None),
    "Bandit2": (0.5, [1], [1]),
    "Match": (0.5, [2, 2], [0, 1]),
    "ActScale": (0.5, [0], [[3]]),
    "ObsAct": (0.5, [0, 0], [[-0.5], [0.5]]),
    "TwoDim": (0.5, [0], [[3], [-0.6]]),
    "SoftBandit": (0.5, [0], [[0.3]]),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", KNOWN)
def test_solutions(name):
    """The solver finds what follows from the definition by hand."""
    gamma, values, best = KNOWN[name]
    _, found, actions = answers(f"{name}-v0", gamma)
    np.testing.assert_allclose(found, values, atol=2e-3)
    if best is not None:
        np.testing.assert_allclose(actions.ravel(), np.ravel(best), atol=0.03)


@pytest.mark.quick
def test_solutions_of_delayed_rewards():
    obs, values, best = answers("Delayed2-v0", 0.5)
    assert dict(zip(map(tuple, obs), values, strict=True)) == {(1, 0): 0.5, (0, 0): 0, (0, 1): 1}
    assert best[0] == 1
    obs, values, best = answers("Delayed-v0", 0.5)
    assert values[0] == 0 and best[0] == pytest.approx(0.5) and len(obs) == 42
    np.testing.assert_allclose(values[1:], -((obs[1:, 1] - 0.5) ** 2), atol=1e-6)


@pytest.mark.quick
def test_probes_stay_in_their_spaces():
    names = [name for name, spec in gym.registry.items() if "probe_envs" in str(spec.entry_point)]
    assert len(names) == 22
    for name in names:
        env = gym.make(name, disable_env_checker=True).unwrapped
        env.action_space.seed(0)
        for seed in range(5):
            obs, _ = env.reset(seed=seed)
            for _ in range(12):
                assert env.observation_space.contains(obs)
                obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                assert env.observation_space.contains(obs) and isinstance(reward, float)
                if terminated or truncated:
                    break
            assert terminated or truncated or env.limit is None


# --- values: V1 to V4 -----------------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("envs", ENVS)
@pytest.mark.parametrize(
    "name, gamma", [("Const", 0.5), ("ObsValue", 0.5), ("Chain3", 0.5), ("CycleTrunc", 0.8)]
)
def test_values(learn, name, gamma, envs, seed):
    agent = learn(f"{name}-v0", 600, gamma=gamma, num_envs=envs, seed=seed)
    obs, values, _ = answers(f"{name}-v0", gamma)
    np.testing.assert_allclose(agent.value(obs), values, atol=0.05)


# --- policies: C1 to C4, C7 -----------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name, steps, tolerance",
    [
        ("ObsAct", 900, 0.15),
        ("Delayed", 1200, 0.1),
        pytest.param("ActScale", 2700, 0.2, marks=SLOW),
        pytest.param("TwoDim", 2700, [0.2, 0.055], marks=SLOW),
        pytest.param("ActScale-times0.03", 2700, 0.2, marks=SLOW),
        pytest.param("ActScale-times30", 2700, 0.2, marks=SLOW),
    ],
)
def test_policies(learn, name, steps, tolerance, seed):
    """Best actions, and values in units of the rewards' scale."""
    scale = float(name.partition("times")[2] or 1)
    agent = learn(f"{name}-v0", steps, alpha=1e-3 * scale, seed=seed)
    obs, values, best = answers(f"{name}-v0", 0.5)
    shown = 1 if name == "Delayed" else len(obs)  # its second states have no better action
    assert (abs(agent.act(obs) - best)[:shown] < tolerance).all()
    np.testing.assert_allclose(agent.value(obs)[:shown] / scale, values[:shown], atol=0.06)


# --- entropy: C5, C6 ------------------------------------------------------------------------------
def soft_entropy(alpha):
    """Return the entropy of the best policy on SoftBandit, a Gaussian of variance alpha / 2."""
    return 0.5 * math.log(math.pi * math.e * alpha)


def last(name):
    """Return the mean of a metric over the last five rows that have it."""
    return np.mean([row[name] for row in read("run") if name in row][-5:])


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fixed_temperature(S, learn, seed):
    if not hasattr(S.Args(), "alpha"):
        pytest.skip("no temperature")
    agent = learn("SoftBandit-v0", 3000, alpha=0.02, seed=seed)
    assert last("policy/entropy") == pytest.approx(soft_entropy(0.02), abs=0.08)
    assert agent.act(torch.zeros(1, 1)).item() == pytest.approx(0.3, abs=0.05)


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_learned_temperature(S, learn, seed):
    """Entropy fits the temperature, which goes where the entropy is its target, -1."""
    if not hasattr(S.Args(), "autotune"):
        pytest.skip("no temperature to learn")
    learn("SoftBandit-v0", 4000, alpha=0.1, autotune=True, target_entropy=-1.0, seed=seed)
    assert last("policy/entropy") == pytest.approx(soft_entropy(last("losses/alpha")), abs=0.1)
    assert last("losses/alpha") == pytest.approx(math.exp(-2) / (math.pi * math.e), rel=0.3)
