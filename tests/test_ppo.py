"""The mathematics of PPO against references that share no code with it.

Names test_t18_... refer to known bugs of published implementations.
"""

import copy
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import foreign, need, need_own_networks, need_own_optimizer
from tests.reference import A, O, arguments, assert_gradient, forward, recorded, weights

LOW, HIGH = np.float32([-1, 0, -2]), np.float32([1, 4, -0.5])
T, N = 12, 2  # steps, environments
SEEN_OBS = np.random.default_rng(5).normal(2, 3, (50, O))  # by the normalisers
SEEN_RETURNS = np.random.default_rng(6).normal(1, 4, (50, 1))


@pytest.fixture
def agent(S):
    """An agent with a policy and values of some size, and normalisers that have seen something."""
    need(S, "Args.rollout_steps", "Agent.compute_advantages", "Agent.update_minibatch")
    return build(S)


def build(S, **changes):
    torch.manual_seed(3)
    changes = {"gamma": 0.9, "gae_lambda": 0.8, "log_std_init": -0.3, "batch_size": 8} | changes
    agent = S.Agent(arguments(S, rollout_steps=T * N, num_envs=N, **changes), O, LOW, HIGH)
    with torch.no_grad():
        for parameter in [*agent.actor.parameters(), *agent.critic.parameters()]:
            parameter += 0.3 * torch.randn(parameter.shape)
        agent.log_std += torch.linspace(-0.5, 0.5, A)
    agent.obs_moments.update(SEEN_OBS)
    if agent.args.norm_reward:
        agent.return_moments.update(SEEN_RETURNS)
    return agent


@pytest.fixture
def rollout(S, agent):
    return collect(S, agent)


def collect(S, agent, seed=0):
    """Return a rollout.

    Every kind of ending occurs, at the first, the last and middle steps; one episode goes on.
    """
    rng, found = np.random.default_rng(seed), S.Rollout(agent.args, O, A)
    np.random.seed(seed)
    obs = rng.normal(2, 3, (N, O))
    for t in range(T):
        assert not found.is_full()
        action, logp = agent.explore(obs)
        reward, next_obs = 30 * rng.normal(size=N), rng.normal(2, 3, (N, O))
        terminated = np.array([t in (0, 5), t in (3, T - 1)])
        truncated = np.array([t in (2, 5), t in (7, 8, T - 1)])  # both at (5, 0), (-1, 1)
        found.add(obs, action, logp, reward, terminated, truncated, next_obs)
        done = terminated | truncated
        obs = np.where(done[:, None], rng.normal(2, 3, (N, O)), next_obs)
    assert found.is_full()
    return found


def joined(rollouts, name):
    """Return a column of several rollouts, one after another."""
    return np.concatenate([getattr(rollout, name) for rollout in rollouts])


def test_a_rollout_holds_copies_of_what_it_is_given(S, rollout):
    one = S.Rollout(arguments(S, rollout_steps=2), 3, 2)
    given = [np.ones((1, 3)), 2 * np.ones((1, 2)), np.ones(1), np.ones(1)]
    given += [np.ones(1, bool), np.zeros(1, bool), 3 * np.ones((1, 3))]
    one.add(*given)
    for array in given:
        array[:] = 0
    names = ["obs", "action", "logp", "reward", "terminated", "truncated", "next_obs"]
    assert [getattr(one, name)[0].max() for name in names] == [1, 2, 1, 1, 1, 0, 3]
    assert one.done()[0, 0] and not one.is_full()


def scaled(obs):
    """Normalise by the mean and deviation of all rows that the moments have seen."""
    return np.clip((obs - SEEN_OBS.mean(0)) / SEEN_OBS.std(0), -10, 10)


def critic(agent, obs):
    """The critic in float64 on normalised observations."""
    return forward(agent, "critic", weights(agent, "critic"), scaled(obs))[..., 0]


def ends_of(rollout):
    return np.logical_or(rollout.terminated, rollout.truncated)


def reference(agent, rollout, gamma=0.9, lam=0.8, bootstrap_truncated=True):
    """Advantages [T, N] by the sum over all later steps of the episode, O(T^2); values [T, N]."""
    terminated, done, next_obs = rollout.terminated, ends_of(rollout), rollout.next_obs
    reward = np.clip(rollout.reward / SEEN_RETURNS.std(), -10, 10)
    assert (abs(reward) == 10).any() and (abs(reward) < 10).any()
    value, advantage = critic(agent, rollout.obs), np.zeros((T, N))
    for i in range(N):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                ends = terminated[k, i] if bootstrap_truncated else done[k, i]
                later = 0 if ends else gamma * critic(agent, next_obs[k, i])
                advantage[t, i] += weight * (reward[k, i] + later - value[k, i])
                if done[k, i]:
                    break
                weight *= gamma * lam
    return advantage, value


# --- advantages -----------------------------------------------------------------------------------
@pytest.mark.parametrize("bootstrap", [True, False])
def test_t05_t07_advantages_equal_the_sum_over_the_episode(S, bootstrap):
    """Endings at the first, last and middle steps; next_obs is the true one, normalised alike."""
    need(S, "Args.rollout_steps", "Agent.compute_advantages")
    agent = build(S, bootstrap_truncated=bootstrap)
    rollout = collect(S, agent)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    batch, _ = agent.compute_advantages(rollout)
    for name, value in agent.state_dict().items():
        assert torch.equal(value, before[name]), name  # normalisers included
    advantage, value = reference(agent, rollout, bootstrap_truncated=bootstrap)
    obs, action, logp, *rest = (x.double().numpy() for x in batch)
    for found, expected in zip(rest, (advantage, advantage + value, value), strict=True):
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(obs, scaled(rollout.obs).reshape(-1, O), atol=1e-5)
    np.testing.assert_allclose(action, rollout.action.reshape(-1, A), rtol=1e-6)
    np.testing.assert_allclose(logp, rollout.logp.ravel(), rtol=1e-5, atol=1e-6)
    assert all(x.dtype == torch.float32 for x in batch)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_lambda_from_one_step_to_the_whole_episode(S, lam):
    need(S, "Args.gae_lambda", "Agent.compute_advantages")
    agent = build(S, gae_lambda=lam)
    rollout = collect(S, agent)
    advantage, _ = reference(agent, rollout, lam=lam)
    found = agent.compute_advantages(rollout)[0].advantage.numpy()
    np.testing.assert_allclose(found, advantage.ravel(), rtol=1e-4, atol=1e-5)


# --- loss -----------------------------------------------------------------------------------------
def loss_of(agent, rows, clip_vloss=False, ent=0.03, vf=0.7, clip=0.2):
    """The loss as a function of log_std, actor's and critic's parameters, in float64."""
    obs, action, logp, advantage, returns, value = (x.double().numpy() for x in rows)
    advantage = (advantage - advantage.mean()) / advantage.std(ddof=1)
    names = [name for name, _ in agent.named_parameters()]
    actors = [i for i, name in enumerate(names) if name.startswith("actor.")]
    critics = [i for i, name in enumerate(names) if name.startswith("critic.")]
    order = [names.index("log_std"), *actors, *critics]
    assert sorted(order) == [*range(len(names))]

    def loss(w):
        log_std, actor, net = w[0], w[1 : 1 + len(actors)], w[1 + len(actors) :]
        mean = forward(agent, "actor", actor, obs)
        normal = torch.distributions.Normal(torch.tensor(mean), torch.tensor(np.exp(log_std)))
        ratio = np.exp(normal.log_prob(torch.tensor(action)).sum(1).numpy() - logp)
        new_value = forward(agent, "critic", net, obs)[:, 0]
        total = 0.0
        for i in range(len(obs)):
            cut = min(max(ratio[i], 1 - clip), 1 + clip)
            total -= min(ratio[i] * advantage[i], cut * advantage[i])
            error = (new_value[i] - returns[i]) ** 2
            if clip_vloss:
                near = value[i] + min(max(new_value[i] - value[i], -clip), clip)
                error = max(error, (near - returns[i]) ** 2)
            total += vf * error / 2
        return total / len(obs) - ent * normal.entropy().sum(-1)[0].item()

    parameters = dict(agent.named_parameters())
    w = [parameters[names[i]].detach().double().numpy().copy() for i in order]
    return loss, w, [names[i] for i in order]


def sides_of(agent, rows, clip=0.2):
    """Return on which sides of the clip there are ratios, of good and of bad actions."""
    obs, action, logp, advantage, *_ = (x.double().numpy() for x in rows)
    mean = forward(agent, "actor", weights(agent, "actor"), obs)
    std = agent.log_std.detach().double().exp()
    normal = torch.distributions.Normal(torch.tensor(mean), std)
    ratio = np.exp(normal.log_prob(torch.tensor(action)).sum(1).numpy() - logp)
    is_good = advantage > advantage.mean()
    return {*zip(ratio > 1 + clip, ratio < 1 - clip, is_good, strict=True)}


def moved_since(S, **changes):
    """Return an agent that has moved since it acted, its batch, and rows on all sides of the clip.

    With which random move there are such rows depends on the networks.
    """
    for seed in range(100):
        agent = build(S, **changes)
        batch, _ = agent.compute_advantages(collect(S, agent))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
        index = torch.randperm(T * N)[:20]
        if len(sides_of(agent, [x[index] for x in batch])) == 6:
            return agent, batch, index
    raise AssertionError("no move gives ratios on all sides of the clip")


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_t18_t23_loss_and_gradient(S, clip_vloss):
    """Ratios inside and outside of the clip on both sides; value clip; entropy; by brute force."""
    need(S, "Args.rollout_steps", "Agent.update_minibatch")
    changes = {"ent_coef": 0.03, "vf_coef": 0.7, "max_grad_norm": 1e9}
    agent, batch, index = moved_since(S, clip_vloss=clip_vloss, **changes)
    rows = [x[index] for x in batch]
    loss, w, names = loss_of(agent, rows, clip_vloss)
    recorded(agent.opt)
    leaves = [name for name, _ in agent.named_parameters()]
    metrics = agent.update_minibatch(batch, index)
    assert 0 < metrics["losses/clipfrac"].item() < 1
    assert agent.opt.loss == pytest.approx(loss(w), rel=1e-4, abs=1e-5)
    gradient = [agent.opt.seen_gradient[leaves.index(name)] for name in names]
    assert_gradient(loss, w, gradient)


def test_t18_the_density_is_that_of_the_action_before_it_is_cut(agent):
    """Environments get what is stored, cut to [-1, 1] and scaled; logp knows of no cut."""
    obs = np.random.default_rng(1).normal(2, 3, (500, O))
    np.random.seed(0)
    action, logp = agent.explore(obs)
    assert (abs(action) > 1).mean() > 0.1 and action.shape == (500, A) and logp.shape == (500,)
    mean = forward(agent, "actor", weights(agent, "actor"), scaled(obs))
    std = agent.log_std.detach().double().exp()
    normal = torch.distributions.Normal(torch.tensor(mean), std)
    expected = normal.log_prob(torch.tensor(action)).sum(1)
    np.testing.assert_allclose(logp, expected, rtol=1e-4, atol=1e-4)
    units = LOW + (np.clip(action, -1, 1) + 1) / 2 * (HIGH - LOW)
    np.testing.assert_allclose(agent.scale(action), units, rtol=1e-5, atol=1e-6)


def test_explored_actions_follow_the_policy(agent):
    """Mean, deviation, and noise of every environment, dimension and step of its own."""
    np.random.seed(0)
    obs = np.ones((20_000, O))
    action, _ = agent.explore(obs)
    mean = forward(agent, "actor", weights(agent, "actor"), scaled(obs[:1]))
    std = agent.log_std.detach().double().exp().numpy()
    np.testing.assert_allclose(action.mean(0), mean[0], atol=0.04)
    np.testing.assert_allclose(action.std(0), std, rtol=0.03)
    assert abs(np.corrcoef(action.T) - np.eye(A)).max() < 0.04
    assert (action != agent.explore(obs)[0]).mean() > 0.99


def test_act_is_the_mean_within_bounds(agent):
    obs = np.random.default_rng(0).normal(size=(50, O)) * 30
    mean = forward(agent, "actor", weights(agent, "actor"), scaled(obs))
    expected = LOW + (np.clip(mean, -1, 1) + 1) / 2 * (HIGH - LOW)
    np.testing.assert_allclose(agent.act(obs), expected, rtol=1e-4, atol=1e-5)
    action = agent.act(obs, deterministic=False)
    assert (action >= LOW).all() and (action <= HIGH).all() and (action != agent.act(obs)).any()


def test_value_is_in_raw_units(agent):
    obs = np.random.default_rng(0).normal(2, 3, (7, O))
    expected = critic(agent, obs) * SEEN_RETURNS.std()
    np.testing.assert_allclose(agent.value(obs), expected, rtol=1e-4, atol=1e-4)


# --- networks and optimizer -----------------------------------------------------------------------
def test_networks_are_orthogonal_with_their_gains(S, script):
    """Two hidden layers of tanh, gain sqrt 2; 0.01 for the policy, 1 for the value; no biases."""
    need(S, "Args.rollout_steps", "Agent.update_minibatch")
    need_own_networks(script)
    agent = S.Agent(arguments(S, log_std_init=-0.7, hidden_size=32), O, LOW, HIGH)
    assert agent.log_std.tolist() == pytest.approx([-0.7] * A)
    x = np.random.default_rng(0).normal(size=(4, O))
    for part, outputs, gain in (("actor", A, 0.01), ("critic", 1, 1.0)):
        w = weights(agent, part)
        assert [v.shape for v in w] == [(32, O), (32,), (32, 32), (32,), (outputs, 32), (outputs,)]
        for weight, size in zip(w[::2], [2**0.5, 2**0.5, gain], strict=True):
            least = min(weight.shape)
            product = weight @ weight.T if len(weight) == least else weight.T @ weight
            np.testing.assert_allclose(product, size**2 * np.eye(least), atol=1e-5 * size)
        assert not any(bias.any() for bias in w[1::2])
        w = [v + 0.1 for v in w]
        hidden = np.tanh(np.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3])
        np.testing.assert_allclose(forward(agent, part, w, x), hidden @ w[4].T + w[5])


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_the_step_of_the_optimizer(S, script, max_norm):
    """One Adam over all, its eps 1e-5, its rate lr, its gradient cut at max_grad_norm."""
    need_own_optimizer(script)
    need(S, "Args.rollout_steps", "Agent.update_minibatch")
    agent = build(S, max_grad_norm=max_norm, learning_rate=2e-3)
    batch, _ = agent.compute_advantages(collect(S, agent))
    names = [name for name, _ in agent.named_parameters()]
    old = {name: p.detach().clone() for name, p in agent.named_parameters()}
    recorded(agent.opt)
    norm = agent.update_minibatch(batch, torch.arange(8))["grad/norm"].item()
    gradient = dict(zip(names, agent.opt.seen_gradient, strict=True))
    whole = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    assert norm == pytest.approx(whole, rel=1e-4) and norm > 0.1
    for name, p in agent.named_parameters():
        g = gradient[name] * min(1, max_norm / whole)
        moved = (old[name] - p.detach()).numpy()
        decay = agent.opt.weight_decay * old[name].numpy()  # none, unless you have added some
        expected = 2e-3 * (g / (abs(g) + 1e-5) + decay)
        np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=2e-6)


def activations():
    """Return the names of all activations of PyTorch that can stand between two layers."""
    found = []
    for name, kind in vars(nn.modules.activation).items():
        if isinstance(kind, type) and kind.__module__ == nn.modules.activation.__name__:
            try:
                layer = kind()
                fits = "dim" not in vars(layer) and layer(torch.zeros(2, 16)).shape == (2, 16)
            except (TypeError, ValueError, RuntimeError):  # it needs arguments, or other inputs
                continue
            if fits:
                found.append(name)
    return found


def assert_acts_as_learned(agent, rows):
    """Require that acting and learning have the same policy, for few rows and for many."""
    obs = np.random.default_rng(rows).normal(2, 3, (rows, O))
    torch.manual_seed(0)  # an activation may be random
    with torch.no_grad():
        expected = agent.actor(torch.as_tensor(agent.normalize(obs))).numpy()
    torch.manual_seed(0)
    np.testing.assert_allclose(agent.act(obs), agent.scale(expected), rtol=1e-5, atol=2e-6)
    torch.manual_seed(0)
    np.random.seed(0)
    action, logp = agent.explore(obs)
    np.random.seed(0)
    noise = np.random.standard_normal(action.shape)
    std = agent.log_std.detach().exp().numpy()
    np.testing.assert_allclose(action, expected + std * noise, rtol=1e-5, atol=2e-6)
    assert action.shape == expected.shape == (rows, A) and logp.shape == (rows,)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("name", activations())
def test_acting_is_the_network_whatever_its_activation(S, name, rows):
    """Every activation of PyTorch, known to the copy of the network in NumPy or not."""
    need(S, "in_numpy")
    agent = build(S, hidden_size=16)
    for i, layer in enumerate(agent.actor):
        if not isinstance(layer, nn.Linear):
            agent.actor[i] = getattr(nn, name)()
    assert_acts_as_learned(agent, rows)


class Doubled(nn.Linear):
    """A linear layer of another kind."""

    def forward(self, x):
        return 2 * super().forward(x)


class Residual(nn.Sequential):
    """A network of another kind."""

    def forward(self, x):
        for layer in self:
            y = layer(x)
            x = x + y if x.shape == y.shape else y
        return x


LAYERS = {
    "third": [nn.Linear(O, 8), nn.Tanh(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh()],
    "norm": [nn.Linear(O, 8), nn.LayerNorm(8), nn.Tanh()],
    "scaled": [Doubled(O, 8), nn.Tanh()],
    "no biases": [nn.Linear(O, 8, bias=False), nn.Tanh()],
    "nested": [nn.Sequential(nn.Linear(O, 8), nn.Tanh())],
    "residual": [nn.Linear(O, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()],
}


@pytest.mark.parametrize("name", LAYERS)
def test_acting_is_the_network_whatever_its_layers(S, name):
    need(S, "in_numpy")
    agent = build(S)
    kind = Residual if name == "residual" else nn.Sequential
    torch.manual_seed(0)
    agent.actor = kind(*LAYERS[name], nn.Linear(8, A))
    assert_acts_as_learned(agent, 3)


def test_acting_follows_the_network(S, agent):
    """A snapshot is of the moment; without one acting sees each change at once."""
    need(S, "in_numpy")
    for _ in range(2):
        assert_acts_as_learned(agent, 3)
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)


# --- normalisers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_moments_are_those_of_all_rows(S, kind):
    """In float64, whatever comes in."""
    need(S, "Moments")
    moments, rng, rows = S.Moments(3), np.random.default_rng(0), []
    assert (moments.mean.tolist(), moments.var.tolist()) == ([0] * 3, [1] * 3)
    for size in (1, 7, 100, 2):
        rows.append(rng.normal([1e4, 0, -5], [1, 0.1, 100], (size, 3)).astype(kind))
        moments.update(rows[-1])
        every = np.concatenate(rows).astype(np.float64)
        np.testing.assert_allclose(moments.mean.numpy(), every.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.var.numpy(), every.var(0), rtol=1e-9, atol=1e-12)


def test_observations_are_normalised_and_cut(S, agent):
    obs = np.random.default_rng(1).normal(2, 60, (40, O))
    np.testing.assert_allclose(agent.normalize(obs), scaled(obs), rtol=1e-4, atol=1e-5)
    assert abs(agent.normalize(obs)).max() == 10 and agent.normalize(obs).dtype == np.float32
    assert (build(S, norm_obs=False).normalize(obs) == np.float32(obs)).all()


def test_t21_rewards_are_scaled_by_the_running_return(S):
    """Discounted by gamma, from reset to reset whatever the ending, on through rollouts."""
    need(S, "Args.norm_reward", "Agent.update")
    for norm in (True, False):
        agent = build(S, norm_reward=norm, gamma=0.7)
        past, every = np.zeros(N), [SEEN_RETURNS]
        for seed in (0, 1):
            rollout = collect(S, agent, seed=seed)
            for reward, done in zip(rollout.reward, ends_of(rollout), strict=True):
                past = np.array([reward[i] + 0.7 * past[i] for i in range(N)])
                every.append(past[:, None].copy())
                past[done] = 0
            agent.update(rollout, agent_step(S, agent))
            np.testing.assert_allclose(agent.running_return.numpy(), past, rtol=1e-12)
            deviation = np.concatenate(every).std() if norm else 1.0
            assert agent.return_moments.var.item() == pytest.approx(deviation**2, rel=1e-6)


def agent_step(S, agent):
    """What main has from compilation: a step on rows of a batch that returns its metrics."""

    def step(batch, index):
        metrics = agent.update_minibatch(batch, index)
        return S.Metrics(tuple(metrics), torch.stack([*metrics.values()]))

    return step


def test_rewards_are_neither_shifted_nor_scaled_twice(S, agent, rollout):
    """With values of zero and lambda 0, the advantage is the scaled reward; without, the raw."""
    for norm in (True, False):
        agent = build(S, norm_reward=norm, gae_lambda=0.0)
        for parameter in agent.critic.parameters():
            nn.init.zeros_(parameter)
        advantage = agent.compute_advantages(rollout)[0].advantage.numpy()
        reward = rollout.reward.ravel()
        unit = SEEN_RETURNS.std()
        expected = np.clip(reward / unit, -10, 10) if norm else reward
        np.testing.assert_allclose(advantage, expected, rtol=1e-5)


def test_t07_t20_observations_count_once_and_after_the_updates(S, agent, rollout):
    """Those acted upon, of all environments, next_obs never; all minibatches see the old ones."""
    seen = []

    def learn(batch, index):
        seen.append(batch.obs.clone())
        assert agent.obs_moments.count.tolist() == [50] * O
        return agent_step(S, agent)(batch, index)

    old = torch.as_tensor(agent.normalize(rollout.obs.reshape(-1, O)))
    agent.update(rollout, learn)
    assert all(torch.equal(obs, old) for obs in seen)
    every = np.concatenate([SEEN_OBS, rollout.obs.reshape(-1, O)])
    np.testing.assert_allclose(agent.obs_moments.mean.numpy(), every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(agent.obs_moments.var.numpy(), every.var(0), rtol=1e-10)


def test_t20_normalisers_are_saved_and_frozen_in_use(S, agent):
    fresh = S.Agent(agent.args, O, LOW, HIGH)
    fresh.load_state_dict(agent.state_dict())
    obs = np.random.default_rng(0).normal(2, 30, (9, O))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    assert np.array_equal(fresh.act(obs), agent.act(obs))
    assert np.array_equal(fresh.value(obs), agent.value(obs))
    agent.act(obs, deterministic=False), agent.explore(obs)
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())


def test_a_model_has_the_same_names_on_every_device(S, agent):
    """So that what a GPU trained can be loaded on a CPU; meta is a device that is always there."""
    other = S.Agent(agent.args, O, LOW, HIGH, "meta")
    assert [*other.state_dict()] == [*agent.state_dict()]
    assert other.opt.lr.device == other.running_return.device == torch.device("meta")
    assert other.opt.params[0] is next(other.parameters())


def test_a_probe_with_normalisers(learn, S, spaces):
    """Values are in raw units although observations and rewards were normalised to learn them."""
    need(S, "Args.norm_obs", "Args.norm_reward")
    agent = learn(
        "CycleTrunc", 2400, gamma=0.8, num_envs=2, seed=1, norm_obs=True, norm_reward=True
    )
    values = [0.867, 1.084, 1.355, 1.694]  # see PROBES of test_probes.py
    np.testing.assert_allclose(agent.value(np.eye(4)), values, atol=0.05)


# --- passes over a rollout ------------------------------------------------------------------------
def test_t22_every_pass_uses_every_row_once_in_a_new_order(S):
    need(S, "Args.update_epochs", "Agent.update")
    agent, orders = build(S, update_epochs=5, batch_size=8), []

    def learn(batch, index):
        assert len(index) == 8 and all(len(x) == T * N for x in batch)
        orders.append(index.tolist())
        return S.Metrics(("ppo/ratio_gap",), torch.zeros(1))

    rows, _ = agent.update(collect(S, agent), learn)
    assert len(rows) == len(orders) == 15
    passes = [sum(orders[i : i + 3], []) for i in range(0, 15, 3)]
    assert all(sorted(order) == [*range(T * N)] for order in passes)
    assert len({tuple(order) for order in [*passes, range(T * N)]}) == 6


@pytest.mark.parametrize(
    "target, passes", [(None, 4), (0.25, 4), (0.2499, 1), (0.15, 1), (0.05, 1), (1e9, 4)]
)
def test_t23_target_kl_ends_after_a_pass_whose_mean_is_above(S, target, passes):
    """Its mean over all minibatches of the pass, not that of the last one."""
    need(S, "Args.target_kl", "Agent.update")
    agent, calls = build(S, target_kl=target, update_epochs=4), []

    def learn(batch, index):
        calls.append(index)
        kl = [0.125, 0.625, 0.0][len(calls) % 3]  # mean 0.25, last 0.125, exactly
        names = ("other", "ppo/ratio_gap", "losses/approx_kl")  # whatever their order
        return S.Metrics(names, torch.tensor([9.0, 0.7, kl]))

    rows, _ = agent.update(collect(S, agent), learn)
    assert len(calls) == len(rows) == 3 * passes


def test_t23_target_kl_looks_at_one_pass_at_a_time(S):
    """The first passes move the policy little, and must not hide what later ones do."""
    need(S, "Args.target_kl", "Agent.update")
    agent = build(S, target_kl=0.3, update_epochs=4)
    calls = []

    def learn(batch, index):
        calls.append(index)
        kl = [0.0, 0.2, 0.4, 0.6][(len(calls) - 1) // 3]  # of a pass; of all: 0, 0.1, 0.2, 0.3
        return S.Metrics(("losses/approx_kl", "ppo/ratio_gap"), torch.tensor([kl, 0.7]))

    agent.update(collect(S, agent), learn)
    assert len(calls) == 3 * 3


STEPS = [
    (0.2001, 1e-3, 1e-3 / 1.5),  # (mean KL of the rollout, step size before, after)
    (0.1999, 1e-3, 1e-3),
    (0.0501, 1e-3, 1e-3),
    (0.0499, 1e-3, 1.5e-3),
    (9.0, 1.2e-6, 1e-6),
    (0.0, 8e-3, 1e-2),
    (-0.01, 1e-3, 1.5e-3),  # an estimate may be below 0
]


@pytest.mark.parametrize("kl, before, after", STEPS, ids=["{}-{}".format(*step) for step in STEPS])
def test_t23_the_step_size_follows_the_change_of_the_policy(S, kl, before, after):
    """By the mean over all minibatches of a rollout, those of passes before the last too."""
    need(S, "Args.desired_kl", "Agent.update")
    agent, calls = build(S, desired_kl=0.1, learning_rate=before, update_epochs=2), []

    def learn(batch, index):
        calls.append(index)
        part = kl + (1 if len(calls) <= 3 else -1)  # the passes differ
        return S.Metrics(("losses/approx_kl", "ppo/ratio_gap"), torch.tensor([part, 0.7]))

    agent.update(collect(S, agent), learn)
    assert len(calls) == 6 and agent.opt.lr.item() == pytest.approx(after)
    assert agent.opt.lr.item() == agent.state_dict()["opt.lr"].item()  # checkpoints have it


def test_t23_a_run_steers_its_step_size(run):
    seen = run(desired_kl=1e9, anneal=False, learning_rate=1e-4, log_every=96)
    assert seen.rates == pytest.approx([1e-4, 1.5e-4, 2.25e-4])
    logged = [row["charts/learning_rate"] for row in seen.logs if "losses/value_loss" in row]
    assert logged == pytest.approx([1.5e-4, 2.25e-4, 3.375e-4])


@pytest.mark.parametrize("recompute", [False, True])
def test_advantages_are_of_the_first_networks_or_of_every_pass(S, recompute):
    need(S, "Args.recompute_advantages", "Agent.update")
    agent, batches = build(S, recompute_advantages=recompute, update_epochs=3), []
    rollout = collect(S, agent)

    def learn(batch, index):
        batches.append(batch)
        return agent_step(S, agent)(batch, index)

    agent.update(rollout, learn)
    for name in ("advantage", "returns", "value"):
        firsts = [getattr(batches[i], name) for i in (0, 3, 6)]
        assert torch.equal(firsts[0], getattr(batches[2], name)), name
        assert all(torch.equal(firsts[0], x) != recompute for x in firsts[1:]), name
    for batch in batches:
        assert torch.equal(batch.logp, batches[0].logp)  # logp stays that of acting


# --- a whole run ----------------------------------------------------------------------------------
class Drift(gym.Env):
    """obs = (t, T) far from zero; reward = t; episodes end in all ways."""

    metadata = {"render_modes": []}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 2]), dtype=np.float32)
    got = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.T = 0, int(self.np_random.integers(2, 9))
        return np.array([1000.0, self.T]), {}

    def step(self, action):
        self.t += 1
        self.got.append(action)
        over, kind = self.t == self.T, self.T % 3
        obs = np.array([1000.0 + self.t, self.T])
        return obs, float(self.t), over and kind != 1, over and kind != 0, {}


gym.register("Drift-v0", Drift)


@pytest.fixture
def run(S, spaces, tmp_path, monkeypatch):
    """Run main on Drift; return the agent, the rollouts it learned from, and what was logged."""
    need(S, "Args.rollout_steps", "Agent.update", "Rollout")
    monkeypatch.chdir(tmp_path)

    def run(**changes):
        seen = types.SimpleNamespace(rollouts=[], rates=[], logs=[], rows=[])
        update, log = S.Agent.update, S.Run.log
        Drift.got.clear()

        def spy(agent, rollout, learn):
            assert rollout.is_full()
            seen.rollouts.append(rollout)
            seen.rates.append(agent.opt.lr.item())
            minibatches, others = update(agent, rollout, learn)
            rows = [dict(zip(names, values.tolist(), strict=True)) for names, values in minibatches]
            seen.rows.append(rows)
            return minibatches, others

        def spy_log(run, metrics, *rest):
            row = {"global_step": run.global_step, "updates": run.updates}
            seen.logs.append(row | {k: float(v) for k, v in metrics.items()})
            return log(run, metrics, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(S.Agent, "update", spy)
            patch.setattr(S.Run, "log", spy_log)
            changes = {"rollout_steps": 96, "batch_size": 32, "log_every": 96} | changes
            args = arguments(S, env_id="Drift-v0", total_timesteps=300, **changes)
            seen.agent = S.main(args)
        seen.got = np.array(Drift.got).reshape(-1, args.num_envs, 2)
        return seen

    return run


@pytest.mark.parametrize("envs", [1, 3, 32])
def test_t01_t02_t03_t08_t18_rollouts_are_true(untried, run, envs):
    """Every row is a real step of t to t + 1, none is missing, and logp is that of acting."""
    seen = run(num_envs=envs)
    assert [rollout.length for rollout in seen.rollouts] == [96 // envs] * 3
    names = ["obs", "action", "logp", "reward", "terminated", "truncated", "next_obs"]
    columns = [joined(seen.rollouts, name) for name in names]
    obs, action, logp, reward, terminated, truncated, next_obs = columns
    done = terminated | truncated
    assert (next_obs == obs + [1, 0]).all() and (reward == next_obs[..., 0] - 1000).all()
    over, kind = reward == obs[..., 1], obs[..., 1] % 3
    assert (done == over).all() and over.sum() > 30
    assert (terminated == (over & (kind != 1))).all() and (done & ~terminated).any()
    assert (truncated == (over & (kind != 0))).all()
    assert (obs[1:] == next_obs[:-1])[~over[:-1]].all()
    assert (obs[1:, :, 0] == 1000)[over[:-1]].all()
    clipped = np.clip(action, -1, 1) + [0, 1]
    np.testing.assert_allclose(seen.got[: len(obs)], clipped, atol=1e-6)
    assert (abs(action) > 1).mean() > 0.1 and logp.shape == (3 * 96 // envs, envs)


@pytest.mark.parametrize("envs, epochs", [(1, 10), (3, 2)])
def test_t19_t30_steps_updates_and_ratios(untried, run, S, script, monkeypatch, envs, epochs):
    """Nothing has changed in a rollout's first minibatch; the last, partial rollout is left out."""
    in_numpy = S.in_numpy  # arrays of a GPU's tensors are copies
    monkeypatch.setattr(S, "in_numpy", lambda net: in_numpy(copy.deepcopy(net)))
    seen = run(num_envs=envs, update_epochs=epochs)
    last = seen.logs[-1]
    assert last["global_step"] == 300 and last["updates"] == 3 * 3 * epochs
    steps = 9 * epochs
    count = getattr(seen.agent.opt, "bias_correction2", None)  # of our class Adam
    assert count is not None or foreign(script)
    assert count is None or count.item() == pytest.approx(1 - 0.999**steps, rel=1e-4)
    logged = [row for row in seen.logs if "ppo/ratio_first_mb" in row]
    assert [row["global_step"] for row in logged] == [96, 192, 288]
    for rows, row in zip(seen.rows, logged, strict=True):
        assert row["ppo/ratio_first_mb"] == pytest.approx(rows[0]["ppo/ratio_gap"])
        assert row["ppo/ratio_first_mb"] < 1e-5
        assert abs(rows[0]["losses/approx_kl"]) < 1e-6 < rows[-1]["ppo/ratio_gap"]
        assert row["losses/approx_kl"] == pytest.approx(mean_of(rows, "losses/approx_kl"))


def test_t23_the_learning_rate_falls_linearly(run):
    """From its first value to what is left of the run when the last rollout began."""
    seen = run(learning_rate=1e-3, log_every=96)
    assert seen.rates == pytest.approx([1e-3 * (1 - 96 * k / 300) for k in range(3)])
    logged = [row["charts/learning_rate"] for row in seen.logs if "losses/value_loss" in row]
    assert logged == pytest.approx(seen.rates)
    assert seen.agent.opt.lr.item() == pytest.approx(seen.rates[-1])
    assert run(learning_rate=1e-3, anneal=False, run_dir="b").rates == pytest.approx([1e-3] * 3)


def test_t20_observations_are_counted_once_in_a_run(untried, run):
    seen = run(num_envs=3)
    every = joined(seen.rollouts, "obs").reshape(-1, 2)
    assert len(every) == 288
    moments = seen.agent.obs_moments
    np.testing.assert_allclose(moments.mean.numpy(force=True), every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.var.numpy(force=True), every.var(0), rtol=1e-8)


def test_a_row_is_the_mean_over_the_rollouts_since_the_last(run):
    seen = run(log_every=192)
    logs = [row for row in seen.logs if "losses/value_loss" in row]
    assert [row["global_step"] for row in logs] == [192, 300]
    for row, rows in zip(logs, (seen.rows[0] + seen.rows[1], seen.rows[2]), strict=True):
        assert row["losses/approx_kl"] == pytest.approx(mean_of(rows, "losses/approx_kl"))
    parts = [joined([rollout], "reward").mean() for rollout in seen.rollouts]
    assert [row["env/reward_mean"] for row in logs] == pytest.approx([np.mean(parts[:2]), parts[2]])


def mean_of(rows, name):
    return np.mean([row[name] for row in rows])


def test_a_row_comes_after_a_rollout_and_at_the_end(run):
    """A row after a rollout that is not complete says nothing of learning."""
    logs = [row for row in run(log_every=32).logs if "charts/SPS" in row]
    assert [row["global_step"] for row in logs] == [96, 192, 288, 300]
    told = [row["global_step"] for row in logs if "losses/value_loss" in row]
    assert told == [row["global_step"] for row in logs if "ppo/adv_mean" in row] == [96, 192, 288]


# --- metrics --------------------------------------------------------------------------------------
def test_metrics_of_a_minibatch(S):
    """Each against its formula in docs/metrics.md, in NumPy."""
    need(S, "Args.rollout_steps", "Agent.update_minibatch")
    agent = build(S)
    batch, _ = agent.compute_advantages(collect(S, agent))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    index = torch.tensor([3, 0, 17, 9, 23, 12, 5, 8])
    obs, action, logp, advantage, returns, _ = (x[index].double().numpy() for x in batch)
    log_std = agent.log_std.detach().double().numpy().copy()
    mean = forward(agent, "actor", weights(agent, "actor"), obs)
    normal = torch.distributions.Normal(torch.tensor(mean), torch.tensor(np.exp(log_std)))
    ratio = np.exp(normal.log_prob(torch.tensor(action)).sum(1).numpy() - logp)
    value = forward(agent, "critic", weights(agent, "critic"), obs)[:, 0]
    advantage = (advantage - advantage.mean()) / advantage.std(ddof=1)
    found = agent.update_minibatch(batch, index)
    expected = {
        "losses/approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "ppo/ratio_gap": abs(ratio - 1).max(),
        "losses/clipfrac": (abs(ratio - 1) > 0.2).mean(),
        "losses/policy_loss": -np.minimum(
            ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage
        ).mean(),
        "losses/value_loss": np.square(value - returns).mean() / 2,
        "losses/entropy": normal.entropy().sum(1)[0].item(),
        "policy/log_std": log_std.mean(),
    }
    assert found.keys() >= expected.keys() | {"grad/norm"}
    for name, number in expected.items():
        assert found[name].item() == pytest.approx(number, rel=1e-4, abs=1e-5), name
        assert found[name].shape == () and not found[name].requires_grad


def test_metrics_of_a_rollout(agent, rollout):
    """Explained variance is that of what an episode that ended still gave, discounted."""
    obs, reward, next_obs = rollout.obs, rollout.reward, rollout.next_obs
    terminated, done = rollout.terminated, ends_of(rollout)
    batch, found = agent.compute_advantages(rollout)
    advantage, value = reference(agent, rollout)
    scaled_reward = np.clip(reward / SEEN_RETURNS.std(), -10, 10)
    seen, errors = [], []
    for i in range(N):
        for t in range(T):
            ends = [k for k in range(t, T) if done[k, i]]
            if ends:
                later, end = range(t, ends[0] + 1), ends[0]
                seen.append(sum(0.9 ** (k - t) * scaled_reward[k, i] for k in later))
                if not terminated[end, i]:  # cut: what the critic says of the rest
                    rest = critic(agent, next_obs[end, i])
                    seen[-1] += 0.9 ** (end + 1 - t) * rest
                errors.append(seen[-1] - value[t, i])
    expected = {"ppo/explained_var_mc": 1 - np.var(errors) / np.var(seen)}
    returns = batch.returns.double().numpy(force=True)
    error = returns - batch.value.double().numpy(force=True)
    expected["losses/explained_variance"] = 1 - np.var(error) / np.var(returns)
    for name, x in {"env/obs": obs, "env/reward": reward, "ppo/adv": advantage}.items():
        expected |= {f"{name}_mean": x.mean(), f"{name}_sd": x.std()}
        expected |= {f"{name}_min": x.min(), f"{name}_max": x.max()}
    assert found.keys() >= expected.keys()
    for name, number in expected.items():
        assert found[name].item() == pytest.approx(number, rel=1e-4, abs=1e-5), name
    rollout.terminated[:] = rollout.truncated[:] = False
    assert "ppo/explained_var_mc" not in agent.compute_advantages(rollout)[1]  # nothing has ended
    rollout.terminated[:], rollout.reward[:] = True, 0
    assert "ppo/explained_var_mc" not in agent.compute_advantages(rollout)[1]  # nor varies


# --- compiled and plain ---------------------------------------------------------------------------
def test_failed_compilation_falls_back_to_the_plain_update(S, monkeypatch, capsys):
    need(S, "compile_update", "Args.rollout_steps", "Agent.update_minibatch")

    def fail(*inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(S.torch, "compile", lambda *inputs, **options: fail)
    agent = build(S)
    example = agent.example()
    learn, compiled = S.compile_update(agent, S.Agent.update_minibatch, example, "on")
    metrics = learn(*example)
    assert not compiled and metrics.values.shape == (len(metrics.names),)
    assert "warning: update_minibatch is not compiled" in capsys.readouterr().out


def test_t36_compiled_and_plain_updates_agree(S):
    """Largest difference of any parameter after 30 steps; the trial changes nothing."""
    need(S, "compile_update", "Args.rollout_steps", "Agent.update_minibatch")
    states = []
    for compile in ("off", "on"):
        agent = build(S, ent_coef=0.01)
        rollout = collect(S, agent)
        start = {name: value.clone() for name, value in agent.state_dict().items()}
        inputs = S.Agent.update_minibatch, agent.example(), compile
        learn, compiled = S.compile_update(agent, *inputs)
        assert compiled == (compile == "on"), "compilation failed"
        for name, value in agent.state_dict().items():
            assert torch.equal(value, start[name]), name
        torch.manual_seed(0)
        for rate in (1e-3, 5e-4):  # a rate that changes is no constant of the compiled code
            agent.opt.lr.fill_(rate)
            agent.update(rollout, learn)
        states.append({n: p.detach().clone() for n, p in agent.named_parameters()})
    moved = max((states[0][n] - start[n]).abs().max().item() for n in states[0])
    gap = max((states[0][n] - states[1][n]).abs().max().item() for n in states[0])
    assert gap < 1e-5 < 1e-3 < moved
