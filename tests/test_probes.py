"""Every script learns every probe that its action space allows: values, then policies.

Budgets are about three times the steps that correct agents need.
"""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests import probe_envs
from tests.conftest import apply, need, read

SLOW = pytest.mark.slow
SEEDS = [1, *(pytest.param(seed, marks=SLOW) for seed in (2, 3))]
ENVS = [2, *(pytest.param(envs, marks=SLOW) for envs in (1, 3))]


def probe(name):
    return gym.make(f"tests.probe_envs:{name}-v0", disable_env_checker=True).unwrapped


def answers(name, gamma):
    """Return observations [S, O], best values [S] and best actions [S, A] of a probe."""
    values, best = probe_envs.solve(probe(name), gamma)
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
    _, found, actions = answers(name, gamma)
    np.testing.assert_allclose(found, values, atol=2e-3)
    if best is not None:
        np.testing.assert_allclose(actions.ravel(), np.ravel(best), atol=0.03)


@pytest.mark.quick
def test_solutions_of_delayed_rewards():
    obs, values, best = answers("Delayed2", 0.5)
    assert dict(zip(map(tuple, obs), values, strict=True)) == {(1, 0): 0.5, (0, 0): 0, (0, 1): 1}
    assert best[0] == 1
    obs, values, best = answers("Delayed", 0.5)
    assert values[0] == 0 and best[0] == pytest.approx(0.5) and len(obs) == 42
    np.testing.assert_allclose(values[1:], -((obs[1:, 1] - 0.5) ** 2), atol=1e-6)


SEEN = {  # the state of each pixel probe, and the states' values and best actions
    "ConstPixels": ([1], None),
    "ObsValuePixels": ([-1, 1], None),
    "ObsValuePixels-grey": ([-1, 1], None),
    "MatchPixels": ([2, 2], [0, 1]),
    "Chain3Pixels": ([0.25, 0.5, 1], None),
    "CycleTruncPixels": ([2 / 15, 4 / 15, 8 / 15, 16 / 15], None),
    "Motion": ([2] * 20, [0] * 10 + [1] * 10),
    "Recall": ([0.125, 0.25, 0.5, 1] * 2, None),
    "Recall-k4": ([0.0625, 0.125, 0.25, 0.5, 1] * 2, None),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", SEEN)
def test_solutions_of_pixel_probes(name):
    """For one who knows the state; no frame is that of another state, where one is enough."""
    values, best = SEEN[name]
    env = probe(name)
    found, actions = probe_envs.solve(env, 0.5)
    np.testing.assert_allclose([found[state] for state in env.states()], values, atol=1e-6)
    assert best is None or [actions[state] for state in env.states()] == best
    if name.endswith(("Pixels", "grey")):
        assert len({env.obs(state).tobytes() for state in env.states()}) == len(values)


def watch(env, seed, actions):
    """Return the frames of an episode from its reset on, with rewards and both kinds of ending."""
    frames, steps = [env.reset(seed=seed)[0]], []
    for action in actions:
        obs, *step, _ = env.step(action)
        frames.append(obs)
        steps.append(step)
        if any(step[1:]):
            break
    return frames, steps


@pytest.mark.quick
def test_motion_is_seen_in_two_frames_and_in_none_alone():
    env = probe("Motion")
    alone = [{env.obs((direction, c)).tobytes() for c in range(10)} for direction in (0, 1)]
    assert alone[0] == alone[1] and len(alone[0]) == 10
    pairs = [set(), set()]
    for seed in range(40):
        frames, steps = watch(env, seed, [0] * 99)
        assert len(steps) == 8 and steps[-1][1:] == [False, True]
        direction = int(steps[0][0] == 0)
        pairs[direction] |= {a.tobytes() + b.tobytes() for a, b in itertools.pairwise(frames)}
    assert not pairs[0] & pairs[1] and len(pairs[0]) == len(pairs[1]) == 10


@pytest.mark.quick
@pytest.mark.parametrize("name, seen", [("Recall", True), ("Recall-k4", False)])
def test_four_frames_remember_three_steps(name, seen):
    """When the action counts, the latest four frames tell the cue, or they do not."""
    env, stacks = probe(name), {}
    for seed in range(20):
        frames, steps = watch(env, seed, [1] * 99)
        assert [step[0] for step in steps[:-1]] == [0] * env.k and steps[-1][1]
        stacks.setdefault(steps[-1][0], set()).add(np.stack(frames[:-1][-4:]).tobytes())
    assert len(stacks) == 2 and (stacks[1] != stacks[-1]) == seen


@pytest.mark.quick
def test_frames_count():
    ends = set()
    for seed in range(60):
        frames, steps = watch(probe("Frames"), seed, [0] * 99)
        assert all((frame == t).all() for t, frame in enumerate(frames))
        ends.add((len(steps), *steps[-1][1:]))
    assert ends == {(n, n % 2 == 1, n % 2 == 0) for n in range(5, 10)}


@pytest.mark.quick
def test_fake_ale():
    env = probe("FakeALE")
    for _ in range(2):
        frames, steps = watch(env, 0, [0] * 999)
        assert [reward for reward, *_ in steps[:4]] == [0, 1, -1, 0] and len(steps) == 120
        assert steps[-1][1:] == [True, False] and env.lives() == 0
        with pytest.raises(AssertionError, match="reset it"):
            env.step(0)
    assert env.games == 2 and env.reset()[1] == {"lives": 3}
    assert [env.step(0)[-1]["lives"] for _ in range(41)][38:] == [3, 2, 2]
    flicker = [frame[170, 110].max() for frame in frames]
    assert flicker[:4] == [255, 0, 255, 0]
    for color, row in env.blocks.items():
        assert all((frame[row : row + 30, 20:60] == color).all() for frame in frames)


@pytest.mark.quick
def test_probes_stay_in_their_spaces():
    names = [name for name, spec in gym.registry.items() if "probe_envs" in str(spec.entry_point)]
    assert len(names) == 33
    for name in names:
        env = gym.make(name, disable_env_checker=True).unwrapped
        env.action_space.seed(0)
        for seed in range(5):
            obs, _ = env.reset(seed=seed)
            for _ in range(12):
                assert env.observation_space.contains(obs)
                obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                assert env.observation_space.contains(obs) and type(reward) is float
                if terminated or truncated:
                    break
            assert terminated or truncated or name == "FakeALE-v0"


# --- which probes apply ---------------------------------------------------------------------------
def test_some_probes_apply(S, spaces):
    """A script that refused all would pass all tests below."""
    assert spaces == {"box"} if S.__name__ == "sac_continuous" else spaces


# --- values: V1 to V4 -----------------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("envs", ENVS)
@pytest.mark.parametrize(
    "name, gamma", [("Const", 0.5), ("ObsValue", 0.5), ("Chain3", 0.5), ("CycleTrunc", 0.8)]
)
@pytest.mark.parametrize("space", ["box", "discrete"])
def test_values(learn, spaces, space, name, gamma, envs, seed):
    apply(spaces, space)
    variant = name + "-discrete" * (space == "discrete")
    agent = learn(variant, 600, gamma=gamma, num_envs=envs, seed=seed)
    obs, values, _ = answers(name, gamma)
    np.testing.assert_allclose(agent.value(obs), values, atol=0.05)


# --- policies: C1 to C4, D1 to D3, C7 -------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "space, name, steps, tolerance",
    [
        ("box", "ObsAct", 900, 0.15),
        ("box", "Delayed", 1200, 0.1),
        ("discrete", "Bandit2", 600, 0),
        ("discrete", "Match", 900, 0),
        pytest.param("box", "ActScale", 2700, 0.2, marks=SLOW),
        pytest.param("box", "TwoDim", 2700, [0.2, 0.055], marks=SLOW, id="box-TwoDim"),
        pytest.param("box", "ActScale-times0.03", 2700, 0.2, marks=SLOW),
        pytest.param("box", "ActScale-times30", 2700, 0.2, marks=SLOW),
        pytest.param("discrete", "Delayed2", 600, 0, marks=SLOW),
        pytest.param("discrete", "Match-times0.03", 900, 0, marks=SLOW),
        pytest.param("discrete", "Match-times30", 900, 0, marks=SLOW),
    ],
)
def test_policies(learn, spaces, space, name, steps, tolerance, seed):
    """Best actions, and values in units of the rewards' scale."""
    apply(spaces, space)
    scale = float(name.partition("times")[2] or 1)
    agent = learn(name, steps, alpha=1e-3 * scale, seed=seed)
    obs, values, best = answers(name, 0.5)
    shown = 1 if "Delayed" in name else len(obs)  # its second states have no better action
    assert (abs(agent.act(obs) - best)[:shown] <= tolerance).all()
    found = agent.value(obs)[:shown]
    np.testing.assert_allclose(found / scale, values[:shown] / scale, atol=0.06)


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
    need(S, "Args.alpha")
    agent = learn("SoftBandit", 3000, alpha=0.02, seed=seed)
    assert last("policy/entropy") == pytest.approx(soft_entropy(0.02), abs=0.08)
    assert agent.act(torch.zeros(1, 1)).item() == pytest.approx(0.3, abs=0.05)


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_learned_temperature(S, learn, seed):
    """Entropy fits the temperature, which goes where the entropy is its target, -1."""
    need(S, "Args.autotune")
    learn("SoftBandit", 4000, alpha=0.1, autotune=True, target_entropy=-1.0, seed=seed)
    assert last("policy/entropy") == pytest.approx(soft_entropy(last("losses/alpha")), abs=0.1)
    assert last("losses/alpha") == pytest.approx(math.exp(-2) / (math.pi * math.e), rel=0.3)


# --- entropy bonus: C8 ----------------------------------------------------------------------------
@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entropy_widens_an_idle_policy(S, learn, seed):
    """Without rewards the policy widens, towards the uniform one, of log 2 nats, where squashed."""
    need(S, "Args.alpha")
    learn("Idle", 1500, alpha=0.1, seed=seed)
    assert last("policy/entropy") == pytest.approx(math.log(2), abs=0.05)
