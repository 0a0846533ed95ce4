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
from tests.conftest import ROOT, apply, finish, need, on_policy, read

SLOW = pytest.mark.slow
MORE = [(1, 2), (3, 3)]  # environments stepped together, seed
VARIED = [(2, 1), *(pytest.param(*pair, marks=SLOW) for pair in MORE)]
FEW = [(2, 1), pytest.param(1, 2, marks=SLOW)]  # of frames, which are slower to learn


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
    "Idle": (0.5, [0], None),
    "Idle4": (0.5, [0], None),
    "Chain3-times30": (0.5, [7.5, 15, 30], None),
    "Match-times30": (0.5, [60, 60], [0, 1]),
    "Match-times0.03": (0.5, [0.06, 0.06], [0, 1]),
    "ActScale-times30": (0.5, [0], [[3]]),
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


SEEN = {  # values and best actions of the states of each pixel probe
    "ConstPixels": ([1], None),
    "ObsValuePixels": ([-1, 1], None),
    "ObsValuePixels-grey": ([-1, 1], None),
    "MatchPixels": ([2, 2], [0, 1]),
    "MatchPixels-84": ([2, 2], [0, 1]),
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
    if "Pixels" in name:
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
        assert all((frame == 10 + t).all() for t, frame in enumerate(frames))
        ends.add((len(steps), *steps[-1][1:]))
    assert ends == {(n, n % 2 == 1, n % 2 == 0) for n in range(5, 10)}


@pytest.mark.quick
def test_fake_ale():
    env = probe("FakeALE")
    for _ in range(2):
        frames, steps = watch(env, 0, [0] * 999)
        rewards = np.array([reward for reward, *_ in steps]).reshape(-1, 4)
        assert steps[-1][1:] == [True, False] and len(steps) == 120 and env.lives() == 0
        with pytest.raises(AssertionError, match="reset it"):
            env.step(0)
    assert (rewards.sum(1) == 2).all() and (np.sign(rewards).sum(1) == -2).all()
    assert env.games == 2 and env.reset()[1] == {"lives": 3}
    assert [env.step(0)[-1]["lives"] for _ in range(41)][38:] == [3, 2, 2]
    odd, early = (np.array([frame[y, 110, 0] for frame in frames[1:]]) for y in (170, 30))
    odd, early = odd.reshape(-1, 4), early.reshape(-1, 4)  # [skips, 4]
    assert (odd[:, 3] == 0).all() and (odd[:, 2:].max(1) == 255).all()
    assert (early[:, 2:] == 0).all() and (early.max(1) == 255).all()
    grey = np.zeros((210, 160), np.uint8)
    env.getScreenGrayscale(grey)
    for color, row in env.blocks.items():
        assert all((frame[row : row + 30, 20:60] == color).all() for frame in frames)
        assert grey[row : row + 30, 20:60].min() > 25


@pytest.mark.quick
def test_gymnasiums_atari_wrapper_takes_the_fake():
    """It sums rewards of four frames, takes the maximum of the last two, and ends with a life."""
    env = gym.wrappers.AtariPreprocessing(
        probe("FakeALE"), noop_max=0, terminal_on_life_loss=True, scale_obs=False
    )
    env.reset(seed=0)
    for _ in range(10):
        obs, reward, terminated, *_ = env.step(0)
        assert reward == 2 and obs.shape == (84, 84)
    assert terminated and env.unwrapped.games == 1
    assert obs[68, 57] > 200 and obs[12, 57] == 0  # on odd frames, and on the first of four


@pytest.mark.quick
def test_probes_stay_in_their_spaces():
    names = [name for name, spec in gym.registry.items() if "probe_envs" in str(spec.entry_point)]
    assert len(names) == 36
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
@pytest.mark.parametrize("space, name", [("box", "ObsAct"), ("discrete", "Match")])
def test_seeds(S, learn, spaces, space, name):
    """The same seed gives the same agent, another one another."""
    apply(spaces, space)
    need(S, "Args.seed")
    obs, *_ = answers(name, 0.5)
    values = []
    for run, seed in enumerate((1, 1, 2)):
        values.append(learn(name, 300, seed=seed, run_dir=f"run{run}").value(obs))
    assert np.array_equal(values[0], values[1]) and not np.array_equal(values[0], values[2])


def test_some_probes_apply(S, spaces):
    """A script that refused all would pass all tests below."""
    assert spaces == {"box"} if S.__name__.endswith("_continuous") else spaces


def vary(S, envs, seed):
    """Skip a test that varies what the script does not let one choose."""
    need(S, *["Args.num_envs"] * (envs != 1), *["Args.seed"] * (seed != 1))


def test_from_the_command_line(launch, spaces, tmp_path):
    name = "Chain3-v0" if "box" in spaces else "Chain3Pixels-v0"
    flags = f"--env-id tests.probe_envs:{name} --gamma 0.5 --run-dir run"
    code, _, err = finish(launch(tmp_path, flags, PYTHONPATH=str(ROOT)))
    assert code == 0 and (tmp_path / "run").is_dir(), err


# --- values: V1 to V4 -----------------------------------------------------------------------------
@pytest.mark.parametrize("envs, seed", VARIED)
@pytest.mark.parametrize(
    "name, gamma", [("Const", 0.5), ("ObsValue", 0.5), ("Chain3", 0.5), ("CycleTrunc", 0.8)]
)
@pytest.mark.parametrize("space", ["box", "discrete"])
def test_values(S, learn, spaces, space, name, gamma, envs, seed):
    apply(spaces, space)
    vary(S, envs, seed)
    variant = name + "-discrete" * (space == "discrete")
    steps = 2400 if on_policy(S) else 600
    agent = learn(variant, steps, gamma=gamma, num_envs=envs, seed=seed)
    obs, values, _ = answers(name, gamma)
    np.testing.assert_allclose(agent.value(obs), values, atol=0.05)


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.03, 30])
def test_values_grow_with_rewards(S, learn, spaces, scale, seed):  # C7
    apply(spaces, "box")
    name, steps = f"Chain3-times{scale}", 2400 if on_policy(S) else 600
    agent = learn(name, steps, alpha=1e-3 * scale, norm_reward=True, seed=seed)
    obs, values, _ = answers(name, 0.5)
    np.testing.assert_allclose(agent.value(obs) / scale, values / scale, atol=0.05)


# --- policies: C1 to C4, D1 to D3, C7 -------------------------------------------------------------
@pytest.mark.parametrize("envs, seed", VARIED)
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
def test_policies(S, learn, spaces, space, name, steps, tolerance, envs, seed):
    """Best actions, and values in units of the rewards' scale."""
    apply(spaces, space)
    vary(S, envs, seed)
    scale = float(name.partition("times")[2] or 1)
    steps = 18_000 if on_policy(S) else steps
    flags = {"alpha": 1e-3 * scale, "norm_reward": scale != 1}
    agent = learn(name, steps, **flags, num_envs=envs, seed=seed)
    obs, values, best = answers(name, 0.5)
    shown = 1 if "Delayed" in name else len(obs)  # its second states have no better action
    assert (abs(agent.act(obs) - best)[:shown] <= tolerance).all()
    found = agent.value(obs)[:shown]
    np.testing.assert_allclose(found / scale, values[:shown] / scale, atol=0.06)


# --- pixels: X1 to X5, V3 and V4 seen -------------------------------------------------------------
SLOWLY = {"batch_size": 32, "learning_rate": 5e-4}


def play(agent, name, games):
    """Let an agent play; return stacks of four frames, states and actions, each a list of games."""
    env = gym.wrappers.FrameStackObservation(probe(name), 4)
    seen = []
    for seed in range(games):
        obs, _ = env.reset(seed=seed)
        over, game = False, []
        while not over:
            state, action = env.unwrapped.state, int(agent.act(obs[None])[0])
            game.append((obs, state, action))
            obs, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            game[-1] += (reward,)
        seen.append([*zip(*game, strict=True)])
    return seen


@pytest.mark.parametrize("envs, seed", FEW)
@pytest.mark.parametrize(
    "name, gamma, steps, copied",
    [
        ("ConstPixels", 0.5, 400, 40),
        ("ObsValuePixels", 0.5, 400, 40),
        ("Chain3Pixels", 0.5, 900, 40),
        pytest.param("ObsValuePixels-grey", 0.5, 600, 40, marks=SLOW),
        pytest.param("CycleTruncPixels", 0.8, 4800, 160, marks=SLOW),
    ],
)
def test_values_of_what_is_seen(S, learn, spaces, name, gamma, steps, copied, envs, seed):
    apply(spaces, "pixels")
    need(S, "make_games")  # which stacks four frames
    vary(S, envs, seed)
    flags = SLOWLY | {"gamma": gamma, "target_every": copied}
    agent = learn(name, steps, num_envs=envs, seed=seed, **flags)
    values, _ = probe_envs.solve(probe(name), gamma)
    for obs, states, *_ in play(agent, name, 12):
        expected = [values[state] for state in states]
        np.testing.assert_allclose(agent.value(np.stack(obs)), expected, atol=0.05)


@pytest.mark.parametrize("envs, seed", FEW)
@pytest.mark.parametrize(
    "name, steps, shown",  # the last: frames that must be seen before the best action is known
    [
        ("MatchPixels", 1200, 1),
        pytest.param("Motion", 3000, 2, marks=SLOW),
        pytest.param("Recall", 2400, 4, marks=SLOW),
        pytest.param("MatchPixels-84", 900, 1, marks=SLOW),
    ],
)
def test_actions_on_what_is_seen(S, learn, spaces, name, steps, shown, envs, seed):
    apply(spaces, "pixels")
    need(S, "make_games")  # which stacks four frames
    vary(S, envs, seed)
    agent = learn(name, steps, num_envs=envs, seed=seed, **SLOWLY)
    env = probe(name)
    _, best = probe_envs.solve(env, 0.5)
    games = play(agent, name, 20)
    right = [a == best[s] for _, *game, _ in games for s, a in list(zip(*game))[shown - 1 :]]  # noqa: B905
    assert np.mean(right) >= 0.95


@SLOW
@pytest.mark.parametrize("seed", [1, 2])
def test_what_four_frames_do_not_show_stays_unknown(S, learn, spaces, seed):  # X5
    apply(spaces, "pixels")
    need(S, "make_games")  # which stacks four frames
    agent = learn("Recall-k4", 2400, seed=seed, **SLOWLY)
    assert abs(np.mean([rewards[-1] for *_, rewards in play(agent, "Recall-k4", 200)])) < 0.3


# --- entropy: C5, C6 ------------------------------------------------------------------------------
def soft_entropy(alpha):
    """Return the entropy of the best policy on SoftBandit, a Gaussian of variance alpha / 2."""
    return 0.5 * math.log(math.pi * math.e * alpha)


def last(name):
    """Return the mean of a metric over the last five rows that have it."""
    return np.mean([row[name] for row in read("run") if name in row][-5:])


@pytest.mark.quick
def test_entropy_of_the_soft_bandit():
    """The formula is that of the density exp(reward / alpha), which is inside the bounds."""
    actions = np.linspace(-1, 1, 20_001)
    density = np.exp(-((actions - 0.3) ** 2) / 0.02)
    density /= np.trapezoid(density, actions)
    entropy = -np.trapezoid(density * np.log(density + 1e-300), actions)
    assert entropy == pytest.approx(soft_entropy(0.02), abs=1e-3)


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fixed_temperature(S, learn, seed):
    need(S, "Args.alpha", "Run")
    agent = learn("SoftBandit", 3000, alpha=0.02, seed=seed)
    assert last("policy/entropy") == pytest.approx(soft_entropy(0.02), abs=0.08)
    assert agent.act(torch.zeros(1, 1)).item() == pytest.approx(0.3, abs=0.05)


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_learned_temperature(S, learn, seed):
    """Entropy fits the temperature, which goes where the entropy is its target, -1."""
    need(S, "Args.autotune", "Run")
    learn("SoftBandit", 4000, alpha=0.1, autotune=True, target_entropy=-1.0, seed=seed)
    assert last("policy/entropy") == pytest.approx(soft_entropy(last("losses/alpha")), abs=0.1)
    assert last("losses/alpha") == pytest.approx(math.exp(-2) / (math.pi * math.e), rel=0.3)


# --- entropy bonus: C8 ----------------------------------------------------------------------------
@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entropy_widens_an_idle_policy(S, learn, monkeypatch, seed):
    """From a narrow start log_std rises, and the squashed policy becomes the uniform one, log 2."""
    need(S, "Args.alpha", "Run", "Actor.forward")
    build = S.Actor.__init__

    def narrow(actor, *inputs):
        build(actor, *inputs)
        with torch.no_grad():
            [*actor.parameters()][-1][1:] -= 4  # bias of log_std, which starts at about -4

    monkeypatch.setattr(S.Actor, "__init__", narrow)
    learn("Idle", 1500, alpha=0.1, seed=seed)
    assert last("policy/log_std") > -1
    assert last("policy/entropy") == pytest.approx(math.log(2), abs=0.05)


@SLOW
def test_entropy_bonus_widens_an_idle_policy(S, learn):
    """From a narrow start log_std rises, which nothing else asks for, whatever the seed."""
    need(S, "Args.ent_coef", "Args.log_std_init", "Run")
    learn("Idle", 9600, ent_coef=0.1, log_std_init=-2.0, seed=1)
    assert last("policy/log_std") > -1
