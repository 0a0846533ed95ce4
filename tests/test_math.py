"""The mathematics of SAC, and for every script the paths of its data, against references that
share no code with it.

Names test_t09_... refer to known bugs of published implementations.
"""

import itertools
import json
import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tests.conftest import environments, foreign, need, need_own_networks, on_policy
from tests.reference import (
    A,
    B,
    O,
    Target,
    arguments,
    assert_gradient,
    forward,
    learners,
    moved,
    network,
    prepared,
    recorded,
    recording,
    weights,
)
from tests.toy_envs import Toy


def has_quantiles(S):
    """Tell whether critics predict quantiles, atoms [C, B, M], as in TQC."""
    return "num_quantiles" in S.Args.__annotations__


def has_target(agent):
    """Tell whether the critics have a target network; not all methods take one."""
    return hasattr(agent, "critic_target")


def need_target(agent):
    """Skip a test of what only an agent with a target network has."""
    if not has_target(agent):
        pytest.skip("the agent has no critic_target")


def lower_critics(agent, batch):
    """Count where the first critic is lower than the second, before and after the update."""
    obs, action, *_, next_obs = batch
    with torch.no_grad():
        pairs = [agent.critic(obs, action)]
        if has_target(agent):
            pairs.append(agent.critic_target(next_obs, action))
        return [int((values(q)[0] < values(q)[1]).sum()) for q in pairs]


def drops(atoms, number):
    """Return how many of that number of the largest atoms [C, M] the first critic has."""
    largest = np.argsort(atoms.ravel())[-number:]
    return (largest < atoms.shape[1]).sum()


def values(q):
    """Return the values [C, B] of critics, which are the means of atoms [C, B, M]."""
    return q if q.ndim == 2 else q.mean(-1)


@pytest.fixture
def agent(S, batch):
    """An agent whose target is not its critic, and whose critics are each the lower somewhere."""
    need(S, "squash", "Agent.update_critic", "Agent.update_actor")
    few = {"num_critics": 2, "num_quantiles": 7, "drop_atoms": 2} if has_quantiles(S) else {}
    return make_agent(S, batch, few)


def make_agent(S, batch, sizes):
    """Return that agent, with flags for the sizes of its critics."""
    low, high = np.float32([-1, 0, -2]), np.float32([1, 4, -0.5])
    if "tau" in S.Args.__annotations__:
        sizes = sizes | {"tau": 0.1}
    for seed in range(100):
        torch.manual_seed(seed)
        agent = S.Agent(arguments(S, alpha=0.3, gamma=0.8, **sizes), O, low, high)
        modules = [agent.critic, *([agent.critic_target] if has_target(agent) else [])]
        for module in modules:
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0, 0.4)
        if has_quantiles(S):  # let one critic lose more atoms than the other
            [*agent.critic_target.parameters()][-1].data[0] += 0.5
        alone = sizes.get("num_critics") == 1
        if alone or all(2 <= count <= B - 2 for count in lower_critics(agent, batch[0])):
            return agent
    raise AssertionError("one critic is always the lower one")


# --- SAC once more, in NumPy and float64 ----------------------------------------------------------
def policy(agent, w, obs, noise):
    mean, log_std = forward(agent, "actor", w, obs)
    base = torch.distributions.Normal(torch.tensor(mean), torch.tensor(np.exp(log_std)))
    squashed = torch.distributions.TransformedDistribution(
        base, torch.distributions.TanhTransform(cache_size=1)
    )
    u = base.mean + base.stddev * torch.tensor(noise)
    action = squashed.transforms[0](u)
    return action.numpy(), squashed.log_prob(action).sum(1).numpy()


class Reference(NamedTuple):
    """What an update of SAC, or of TQC, has to come to."""

    target: np.ndarray  # [B], the mean of the target's atoms in TQC
    critic: list  # weights before the update
    losses: Callable  # of each critic, as a function of the weights
    actor: list  # weights before the update
    actor_loss: Callable  # a function of the weights

    def critic_loss(self, w):
        return sum(self.losses(w))


def reference(agent, batch, noise):
    """Return the target, and the losses as functions of their own parameters."""
    need_target(agent)
    obs, action, reward, terminated, next_obs = (c.double().numpy() for c in batch)
    noise, alpha = noise.double().numpy(), agent.log_alpha.exp().item()
    actor, critic, critic_target = (
        weights(agent, part) for part in ("actor", "critic", "critic_target")
    )
    next_action, next_logp = policy(agent, actor, next_obs, noise[0])
    next_q = forward(agent, "critic_target", critic_target, next_obs, next_action)
    atoms = next_q.ndim == 3

    dropped = len(next_q) * agent.args.drop_atoms if atoms else 0
    if dropped and len(next_q) > 1:
        ahead = {drops(next_q[:, i], dropped) for i in range(B) if not terminated[i]}
        assert ahead != {agent.args.drop_atoms}, "one critic must lose more atoms than the other"
    targets = []  # for each transition one, or all its atoms
    for i in range(B):
        ahead = lowest(next_q[:, i], dropped) if atoms else [min(next_q[0, i], next_q[1, i])]
        if not atoms:
            assert 0 < (next_q[0] < next_q[1]).sum() < B, "both must be the lower one somewhere"
        if terminated[i]:
            targets.append([reward[i] for _ in ahead])
        else:
            targets.append([reward[i] + 0.8 * (q - alpha * next_logp[i]) for q in ahead])

    def losses(w):
        q = forward(agent, "critic", w, obs, action)
        if atoms:
            return [np.mean([quantile_loss(one[i], targets[i]) for i in range(B)]) for one in q]
        return [np.mean([(one[i] - targets[i][0]) ** 2 for i in range(B)]) for one in q]

    def actor_loss(w):
        new_action, logp = policy(agent, w, obs, noise[1])
        critic = weights(agent, "critic")  # of the moment of the call
        q = forward(agent, "critic", critic, obs, new_action)
        q = q.mean((0, 2)) if atoms else q.min(0)
        return np.mean([alpha * logp[i] - q[i] for i in range(B)])

    target = np.array([np.mean(one) for one in targets])
    return Reference(target, critic, losses, actor, actor_loss)


def lowest(atoms, dropped):
    """Pool the atoms [C, M] of all critics and leave out that number of the largest."""
    pooled = sorted(atoms.ravel())
    return pooled[: len(pooled) - dropped]


def quantile_loss(atoms, targets):
    """Return the quantile Huber loss of arXiv 2005.04269, equation 14, pair by pair."""
    found = []
    for m, atom in enumerate(atoms, 1):
        level = (2 * m - 1) / (2 * len(atoms))
        for target in targets:
            u = target - atom
            huber = u * u / 2 if abs(u) <= 1 else abs(u) - 1 / 2
            found.append(level * huber if u >= 0 else (1 - level) * huber)
    return np.mean(found)


# --- losses and targets ---------------------------------------------------------------------------
def test_t04_t09_t14_critic_loss_and_gradient(agent, batch):
    """The target has pessimism, entropy and termination; loss and gradient by brute force."""
    columns, noise = batch
    known = reference(agent, columns, noise)
    recorded(agent.critic_opt)
    alpha = agent.log_alpha.detach().exp()
    metrics = agent.update_critic(*columns, alpha, noise[0])
    assert metrics["q/target_mean"].item() == pytest.approx(known.target.mean(), rel=1e-5)
    assert metrics["q/target_sd"].item() == pytest.approx(known.target.std(), rel=1e-5)
    assert agent.critic_opt.loss == pytest.approx(known.critic_loss(known.critic), rel=1e-5)
    assert_gradient(known.critic_loss, known.critic, agent.critic_opt.seen_gradient)


@pytest.mark.parametrize("terminated", [0.0, 1.0])
def test_t04_only_termination_stops_bootstrapping(agent, batch, terminated):
    """Truncation never reaches the update: each single transition has its hand-made target."""
    columns, noise = batch
    columns[3] = torch.full((B,), terminated)
    target = reference(agent, columns, noise).target
    for i in range(B):
        one = [column[i : i + 1] for column in columns]
        metrics = agent.update_critic(*one, agent.log_alpha.detach().exp(), noise[0, i : i + 1])
        assert metrics["q/target_mean"].item() == pytest.approx(target[i], rel=1e-4, abs=1e-5)
        if terminated:
            assert target[i] == columns[2][i]


def test_t09_t14_actor_loss_and_gradient(agent, batch):
    """The actor's loss has the critics' value; its gradient goes through action and logp."""
    columns, noise = batch
    known = reference(agent, columns, noise)
    recorded(agent.actor_opt)
    expected = known.actor_loss(known.actor)
    agent.update_actor(columns[0], agent.log_alpha.detach().exp(), noise[1])
    assert agent.actor_opt.loss == pytest.approx(expected, rel=1e-5)
    assert_gradient(known.actor_loss, known.actor, agent.actor_opt.seen_gradient)


def test_t09_the_loss_of_a_batch_is_the_mean_of_those_of_its_rows(agent, batch):
    """Of every pair of a value and a target, [B, B], it would be another number."""
    columns, noise = batch
    alpha = agent.log_alpha.detach().exp()
    state = {name: value.clone() for name, value in agent.state_dict().items()}
    whole = agent.update_critic(*columns, alpha, noise[0])["losses/qf_loss"].item()
    of_rows = []
    for i in range(B):
        agent.load_state_dict(state)
        row = [column[i : i + 1] for column in columns]
        metrics = agent.update_critic(*row, alpha, noise[0, i : i + 1])
        of_rows.append(metrics["losses/qf_loss"].item())
    assert whole == pytest.approx(np.mean(of_rows), rel=1e-4)


def test_t09_a_permuted_batch_gives_the_same_losses(S, agent, batch):
    columns, noise = batch
    order = torch.randperm(B)
    permuted = [column[order] for column in columns], noise[:, order]
    found = []
    for rows, draws in (batch, permuted):
        state = {k: v.clone() for k, v in agent.state_dict().items()}
        found.append(agent.update(rows, draws))
        agent.load_state_dict(state)
    for name, value in found[0].items():
        assert value.shape == () and not value.requires_grad, name
        assert value.item() == pytest.approx(found[1][name].item(), rel=1e-4, abs=1e-5), name


def test_each_step_moves_only_its_own_parameters(agent, batch):
    """Each of the steps of critics, actor and temperature leaves alone what the others move."""
    columns, noise = batch
    parts = ["actor", "critic", "log_alpha"]
    if has_target(agent):
        parts.append("critic_target")
    alpha = agent.log_alpha.detach().exp()
    critic_step = lambda: agent.update_critic(*columns, alpha, noise[0])  # noqa: E731
    assert moved(agent, parts, critic_step) == ["critic"]
    actor_step = lambda: agent.update_actor(columns[0], alpha, noise[1])  # noqa: E731
    assert moved(agent, parts, actor_step) == ["actor"]
    entropy = torch.tensor(0.7)
    assert moved(agent, parts, lambda: agent.update_alpha(entropy)) == ["log_alpha"]


def test_target_follows_the_closed_form(agent, batch):
    """After k updates the target is the exponential average of the critics after each update."""
    need_target(agent)
    expected = weights(agent, "critic_target")
    for _ in range(3):
        agent.update(*batch)
        critic = weights(agent, "critic")
        expected = [0.9 * t + 0.1 * c for t, c in zip(expected, critic, strict=True)]
    for found, value in zip(weights(agent, "critic_target"), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)


def test_update_order(agent, batch):
    """The actor is improved against the critics after their step, with the temperature before."""
    columns, noise = batch
    known = reference(agent, columns, noise)
    before = agent.log_alpha.exp().item()
    recorded(agent.actor_opt)
    steps = []
    way = "minimize"
    for name in ("critic_opt", "actor_opt", "alpha_opt"):
        opt = getattr(agent, name)
        descend = getattr(opt, way)
        spy = lambda x, name=name, descend=descend: (steps.append(name), descend(x))[1]  # noqa: E731
        setattr(opt, way, spy)
    critic_step = getattr(agent.critic_opt, way)
    expected = []
    after_critic_step = lambda: expected.append(known.actor_loss(known.actor))  # noqa: E731
    setattr(agent.critic_opt, way, lambda x: (critic_step(x), after_critic_step())[0])
    metrics = agent.update(columns, noise)
    assert steps == ["critic_opt", "actor_opt", "alpha_opt"]
    assert metrics["q/target_mean"].item() == pytest.approx(known.target.mean(), rel=1e-5)
    assert agent.actor_opt.loss == pytest.approx(expected[0], rel=1e-5)
    assert metrics["losses/alpha"].item() == pytest.approx(before)


# --- networks -------------------------------------------------------------------------------------
def test_actor_is_two_hidden_layers(agent, script):
    need_own_networks(script)
    w, obs = weights(agent, "actor"), np.random.default_rng(0).normal(size=(B, O))
    out = network([v.T for v in w], obs)
    mean, log_std = forward(agent, "actor", w, obs)
    np.testing.assert_allclose(mean, out[:, :A])
    np.testing.assert_allclose(log_std, np.clip(out[:, A:], -20, 2))


def test_critics_are_two_networks_of_two_hidden_layers(S, script):
    need(S, "Agent.update_critic")
    need_own_networks(script)
    agent = S.Agent(arguments(S), O, -np.ones(A, np.float32), np.ones(A, np.float32))
    rng = np.random.default_rng(0)
    w, obs, action = weights(agent, "critic"), rng.normal(size=(B, O)), rng.normal(size=(B, A))
    for k in (0, 1):
        out = network([v[k] for v in w], np.concatenate([obs, action], 1))
        out = out if has_quantiles(S) else out[:, 0]
        np.testing.assert_allclose(forward(agent, "critic", w, obs, action)[k], out)


# --- policy ---------------------------------------------------------------------------------------
def test_t10_logp_matches_float64_distributions_and_is_finite_far_out(S):
    need(S, "squash")
    rng = np.random.default_rng(2)
    mean, log_std, noise = (rng.normal(size=(500, A)) for _ in range(3))
    inputs = [torch.tensor(x, dtype=torch.float32) for x in (mean, log_std - 1, noise)]
    action, logp = S.squash(*inputs)
    base = torch.distributions.Normal(*(x.double() for x in (inputs[0], inputs[1].exp())))
    squashed = torch.distributions.TransformedDistribution(
        base, torch.distributions.TanhTransform(cache_size=1)
    )
    exact = squashed.transforms[0](base.mean + base.stddev * inputs[2].double())
    torch.testing.assert_close(action.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logp.double(), squashed.log_prob(exact).sum(1), rtol=1e-4, atol=1e-4)
    for far in (-300.0, -30.0, 30.0, 300.0):
        mean = torch.full((1, A), far, requires_grad=True)
        action, logp = S.squash(mean, torch.zeros(1, A), torch.ones(1, A))
        (slope,) = torch.autograd.grad(logp.sum(), mean)
        assert torch.isfinite(logp).all() and torch.isfinite(slope).all()
        assert slope[0, 0].item() == pytest.approx(2.0 * np.sign(far), abs=1e-3)


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.5)])
def test_t10_density_integrates_to_one_over_the_box(S, mean, log_std):
    """The density of the action in [-1, 1], not in the environment's units."""
    need(S, "squash")
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    noise = (u - mean) / np.exp(log_std)
    full = torch.full_like(u, mean), torch.full_like(u, log_std)
    action, logp = S.squash(*full, noise)
    assert torch.trapezoid(logp.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-3)


def test_log_std_is_clamped(S):
    need(S, "Actor", "Args.log_std_min")
    torch.manual_seed(0)
    actor = S.Actor(O, A, 16, -3.0, 0.5)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter *= 100
    _, log_std = actor(torch.randn(200, O))
    assert log_std.min() == -3 and log_std.max() == 0.5


def test_t10_t33_actions_are_scaled_per_dimension(agent):
    """Asymmetric bounds: ends, middle, both directions; deterministic is the mode; in bounds."""
    low, high = [-1, 0, -2], [1, 4, -0.5]
    ends = agent.scale(np.float32([[-1] * A, [1] * A, [0] * A]))
    np.testing.assert_allclose(ends, [low, high, [0, 2, -1.25]])
    obs = np.random.default_rng(0).normal(size=(50, O)) * 30
    mode = np.tanh(forward(agent, "actor", weights(agent, "actor"), obs)[0])
    expected = np.array(low) + (mode + 1) / 2 * (np.array(high) - low)
    np.testing.assert_allclose(agent.act(obs, deterministic=True), expected, rtol=1e-4, atol=1e-5)
    for action in (agent.act(obs, deterministic=False), agent.act(obs)):
        assert (action >= np.float32(low)).all() and (action <= np.float32(high)).all()
    assert np.std([agent.act(obs[:1], deterministic=False) for _ in range(20)], 0).min() > 0


def test_value_is_that_of_the_critics_at_the_mode(agent):
    """The lower of both, or in TQC the mean of all atoms."""
    obs = np.random.default_rng(0).normal(size=(B, O))
    mode = np.tanh(forward(agent, "actor", weights(agent, "actor"), obs)[0])
    q = forward(agent, "critic", weights(agent, "critic"), obs, mode)
    expected = q.min(0) if q.ndim == 2 else q.mean((0, 2))
    np.testing.assert_allclose(agent.value(obs), expected, rtol=1e-4, atol=1e-5)


def test_explored_actions_follow_the_policy(agent):
    """Mean and deviation of atanh(action) over many draws are those of the network."""
    np.random.seed(0)
    obs = np.ones((20_000, O))
    u = np.arctanh(agent.explore(obs).astype(np.float64).clip(-0.9999999, 0.9999999))
    mean, log_std = forward(agent, "actor", weights(agent, "actor"), obs[:1])
    np.testing.assert_allclose(u.mean(0), mean[0], atol=0.04)
    np.testing.assert_allclose(u.std(0), np.exp(log_std[0]), rtol=0.05)


# --- temperature ----------------------------------------------------------------------------------
@pytest.mark.parametrize("gap, direction", [(-2.0, -1), (2.0, 1)])
def test_t11_temperature_moves_against_the_entropy_gap(S, agent, batch, gap, direction):
    """Entropy above its target: alpha falls; below: it rises; the next update uses the new one."""
    columns, noise = batch
    _, logp = policy(agent, weights(agent, "actor"), columns[0].double().numpy(), noise[1].numpy())
    agent.target_entropy = -logp.mean() + gap
    before = agent.log_alpha.item()
    recorded(agent.alpha_opt)
    _, entropy = agent.update_actor(columns[0], agent.log_alpha.detach().exp(), noise[1])
    agent.update_alpha(entropy)
    assert agent.alpha_opt.loss == pytest.approx(
        -before * (logp.mean() + agent.target_entropy), rel=1e-4
    )
    assert agent.alpha_opt.seen_gradient[0].item() == pytest.approx(-gap, rel=1e-4)
    assert np.sign(agent.log_alpha.item() - before) == direction
    after = agent.log_alpha.exp().item()
    assert agent.update(columns, noise)["losses/alpha"].item() == pytest.approx(after)
    assert after != pytest.approx(np.exp(before), rel=1e-5)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
def test_t12_target_entropy_is_minus_the_number_of_dimensions(S, shape):
    need(S, "Args.target_entropy")
    bound = np.ones(shape, np.float32)
    assert S.Agent(arguments(S), O, -bound, bound).target_entropy == -np.prod(shape)
    given = S.Agent(arguments(S, target_entropy=-7.5), O, -bound, bound)
    assert given.target_entropy == -7.5


def test_t13_fixed_temperature_and_logs_before_the_first_update(spied):
    seen = spied(env_id="Target-v0", autotune=False, alpha=0.07, log_every=20)
    assert seen.agent.log_alpha.exp().item() == pytest.approx(0.07)
    logged = [row for row in seen.logs if "charts/SPS" in row]
    assert [row["global_step"] for row in logged] == list(range(20, 301, 20))
    assert "losses/alpha" not in logged[0] and logged[-1]["losses/alpha"] == pytest.approx(0.07)


# --- optimizer ------------------------------------------------------------------------------------
def small_network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_adam_equals_torch_adam(S):
    need(S, "Adam")
    torch.manual_seed(0)
    ours, theirs = small_network(), small_network()
    theirs.load_state_dict(ours.state_dict())
    opt = S.Adam(ours.parameters(), 1e-2, (0.8, 0.95), 1e-5)
    torch_opt = torch.optim.Adam(theirs.parameters(), 1e-2, (0.8, 0.95), 1e-5)
    x, y = torch.randn(32, 4), torch.randn(32, 2)
    for _ in range(50):
        norm = opt.minimize((ours(x) - y).square().mean())
        torch_opt.zero_grad()
        (theirs(x) - y).square().mean().backward()
        squares = [p.grad.square().sum() for p in theirs.parameters()]
        torch.testing.assert_close(norm, torch.stack(squares).sum().sqrt())
        torch_opt.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_adam_with_decay_and_a_schedule_equals_torch_adamw(S):
    """Weights decay by lr * weight_decay; lr.fill_ takes effect at once, compiled code included."""
    need(S, "Adam", "compile_update")
    torch.manual_seed(0)
    ours, theirs = small_network(), small_network()
    theirs.load_state_dict(ours.state_dict())
    opt = S.Adam(ours.parameters(), 1e-2, weight_decay=0.3)
    torch_opt = torch.optim.AdamW(theirs.parameters(), 1e-2, weight_decay=0.3)
    x, y = torch.randn(32, 4), torch.randn(32, 2)
    for step in range(30):
        rate = 1e-2 * (1 - step / 30)
        opt.lr.fill_(rate)
        torch_opt.param_groups[0]["lr"] = rate
        opt.minimize((ours(x) - y).square().mean())
        torch_opt.zero_grad()
        (theirs(x) - y).square().mean().backward()
        torch_opt.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_logged_rate_is_the_one_in_use(S, script):
    """A schedule shows, and a checkpoint keeps it."""
    need(S, "Agent.learning_rates", "Agent.scale")
    bound = np.ones(A, np.float32)
    one, other = (S.Agent(arguments(S), O, -bound, bound) for _ in range(2))
    optimizers = [name for name, part in one.named_children() if "lr" in dict(part.named_buffers())]
    keys = []
    for name in optimizers:
        rate = "learning_rate" if name == "opt" else name.replace("_opt", "_lr")
        keys.append(f"charts/{rate}")
    assert {*keys} <= {*one.learning_rates()} and (keys or foreign(script))
    for i, name in enumerate(optimizers):
        getattr(one, name).lr.fill_(i + 0.5)
    other.load_state_dict(one.state_dict())
    for i, key in enumerate(keys):
        assert one.learning_rates()[key] == other.learning_rates()[key] == i + 0.5


def test_bounds_are_rounded_inwards(S):
    """To the nearest float32 that the environment accepts; those that are float32 stay."""
    need(S, "float32_within")
    low, high = S.float32_within([-0.1, 0.3, -1, -0.7], [0.1, 0.6, 2, -0.3])
    for bound, inner, outwards in (
        (low, [-0.1, 0.3, -1, -0.7], -1),
        (high, [0.1, 0.6, 2, -0.3], 1),
    ):
        assert bound.dtype == np.float32
        exact = np.array(inner)
        assert (outwards * (bound - exact) <= 0).all()
        further = np.nextafter(bound, np.float32(outwards * np.inf))
        assert (outwards * (further - exact) > 0).all()


def test_an_agent_keeps_within_bounds_of_float64(S):
    """Rounded to float32, 0.1 would be above the bound 0.1 of float64."""
    need(S, "float32_within", "Agent.scale")
    low, high = np.array([-0.1, 0.3]), np.array([0.1, 0.6])
    agent = S.Agent(arguments(S), O, low, high)
    assert (np.float64(agent.low) >= low).all() and (np.float64(agent.high) <= high).all()


# --- replay buffer --------------------------------------------------------------------------------
def side_by_side(batch):
    """Return obs, action, reward, terminated and next_obs as one array [B, 2 O + A + 2]."""
    columns = [c if c.dim() == 2 else c[:, None] for c in batch[:5]]
    return torch.cat(columns, 1).numpy()


@pytest.mark.parametrize("envs", [1, 3])
def test_t01_t08_buffer_equals_a_list_of_the_latest(S, envs):
    """After several wraps it holds the newest rows, paired as they came, and copies of them."""
    need(S, "ReplayBuffer")
    capacity, rng, rows = 10, np.random.default_rng(0), []
    buffer = S.ReplayBuffer(capacity, 2, 1, "cpu")
    obs = np.zeros((envs, 2))
    for _ in range(11):
        obs[:] = rng.normal(size=obs.shape)  # the same array every time
        action, next_obs = rng.normal(size=(envs, 1)), rng.normal(size=(envs, 2))
        reward, terminated = rng.normal(size=envs), rng.random(envs) < 0.5
        buffer.add(obs, action, reward, terminated, next_obs)
        for i in range(envs):
            rows.append(np.r_[obs[i], action[i], reward[i], terminated[i], next_obs[i]])
        assert buffer.added == len(rows)
        newest = np.float32(rows[-capacity:])
        held = side_by_side(buffer.unpack(buffer.rows[: len(rows)]))
        assert sorted(map(tuple, held)) == sorted(map(tuple, newest))
    batch = buffer.sample(400)
    assert {*map(tuple, side_by_side(batch))} == {*map(tuple, newest)}
    assert [tuple(c.shape) for c in batch[:5]] == [(400, 2), (400, 1), (400,), (400,), (400, 2)]


@pytest.mark.parametrize("filled", [7, 16, 40])
def test_sampling_is_uniform_over_what_is_filled(S, filled):
    need(S, "ReplayBuffer")
    buffer = S.ReplayBuffer(16, 1, 1, "cpu")
    for step in range(filled):
        one = np.full((1, 1), step)
        buffer.add(one, one, one[0], one[0] < 0, one)
    torch.manual_seed(0)
    drawn = buffer.sample(20_000)[0][:, 0].numpy().astype(int)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == list(range(max(0, filled - 16), filled))
    expected = 20_000 / len(values)
    assert ((counts - expected) ** 2 / expected).sum() < len(values) + 5 * np.sqrt(2 * len(values))


# --- transitions, through main --------------------------------------------------------------------
@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("ending", ["terminated", "trunc", "terminated-trunc", "reuse"])
def test_t01_t02_t03_t04_t08_stored_transitions_are_true(S, spied, envs, ending):
    """Every row is a real step: t -> t + 1, final observations kept, no row from a reset."""
    seen = spied(env_id=f"Counter-{ending}-v0", num_envs=envs)
    obs, next_obs = seen.rows["obs"], seen.rows["next_obs"]
    assert len(obs) == (3 * 96 if on_policy(S) else 300)  # the last rollout is not complete
    assert (next_obs[:, 0] == obs[:, 0] + 1).all() and (next_obs[:, 1] == obs[:, 1]).all()
    assert (obs[:, 0] < obs[:, 1]).all()
    over = next_obs[:, 0] == next_obs[:, 1]
    assert (seen.rows["reward"] == next_obs[:, 0]).all() and over.sum() > 30
    assert (seen.rows["terminated"] == (over if "terminated" in ending else 0)).all()
    for i in range(envs):  # within an environment, rows follow one another
        goes_on = ~over[i:-envs:envs]
        assert (obs[i + envs :: envs] == next_obs[i:-envs:envs])[goes_on].all()


def test_t08_the_normalised_action_is_stored(S, spied):
    """The reward depends on the scaled action, the row holds the one in [-1, 1]."""
    need(S, "ReplayBuffer")  # a rollout holds the action before it is cut
    rows = spied(env_id="Target-v0").rows
    scaled = rows["action"] + np.float32([0, 1])  # bounds [-1, 1] and [0, 2]
    np.testing.assert_allclose(rows["reward"], -np.square(scaled - 0.5).sum(1), atol=1e-5)


def test_bounds_scaled_by_four_learn_the_same_bits(spied):
    a, b = (spied(env_id=env).agent for env in ("Target-v0", "Target-times4-v0"))
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_t33_infinite_bounds_are_refused(spied):
    """Those of ClipAction, which hides the true ones, never reach scaling or sampling."""
    with pytest.raises(SystemExit) as stop:
        spied(env_id="Target-clipped-v0", run_dir="run")
    assert stop.value.code == 2 and not Path("run").exists()


def test_actions_are_uniform_at_first_and_explored_later(S, spied, monkeypatch):
    """Before learning_starts uniform over [-1, 1]; afterwards what `explore` samples is stored."""
    need(S, "Agent.explore", "Args.learning_starts")
    explored = []
    monkeypatch.setattr(S.Agent, "explore", recording(S.Agent.explore, explored))
    action = spied(env_id="Target-v0").rows["action"]
    assert len(explored) == 200
    np.testing.assert_array_equal(action[100:], np.float32(np.concatenate(explored)))
    first = np.sort(action[:100], 0)
    uniform = np.linspace(-1, 1, 100)[:, None]
    assert np.abs(first - uniform).max() < 0.4 and first[0].max() < -0.9 and first[-1].min() > 0.9
    assert np.abs(np.corrcoef(action[:100].T)[0, 1]) < 0.4


def fresh_critics(S, batch):
    """Return a new critic and its values [2, B] of a batch."""
    bound = np.ones(A, np.float32)
    critic = S.Agent(arguments(S), O, -bound, bound).critic
    return critic, critic(*batch[0][:2])


def test_the_two_critics_start_different(S, batch):
    need(S, "Agent.update_critic")
    _, q = fresh_critics(S, batch)
    for i, j in itertools.combinations(range(len(q)), 2):
        assert not torch.isclose(q[i], q[j]).any()


def test_the_critics_share_no_parameter(S, batch):
    """A layer such as nn.LayerNorm, put between those of both critics, would tie them together."""
    need(S, "Agent.update_critic")
    critic, _ = fresh_critics(S, batch)
    with torch.no_grad():
        [*critic.parameters()][-2].add_(0.1)  # the last weight, which may begin at 0
    q = critic(*batch[0][:2])
    named = dict(critic.named_parameters())
    slopes = []
    for one in q:
        found = torch.autograd.grad(one.sum(), list(named.values()), retain_graph=True)
        slopes.append([slope != 0 for slope in found])
    for name, first, second in zip(named, slopes[0], slopes[1], strict=True):
        assert not (first & second).any(), f"both critics share critic.{name}"


def test_targets_start_as_the_critics(S):
    need(S, "Agent.update_critic")
    bound = np.ones(2, np.float32)
    agent = S.Agent(arguments(S), O, -bound, bound)
    need_target(agent)
    for p, target in zip(agent.critic.parameters(), agent.critic_target.parameters(), strict=True):
        assert torch.equal(p, target) and p.data_ptr() != target.data_ptr()


def test_scaled_actions_are_float32_and_within_any_bounds(S):
    need(S, "Agent.scale")
    rng = np.random.default_rng(0)
    for _ in range(2000):
        low, high = np.sort(rng.normal(0, 3, (2, 3)).astype(np.float32), 0)
        agent = types.SimpleNamespace(low=low, high=high)
        for action in (-np.ones((1, 3)), np.ones((1, 3)), rng.uniform(-1, 1, (1, 3))):
            units = S.Agent.scale(agent, action)
            assert units.dtype == np.float32 and (low <= units).all() and (units <= high).all()


def test_an_action_that_is_not_finite_stops_the_run(S, spied, monkeypatch):
    need(S, "Agent.explore")
    explore = S.Agent.explore

    def spoil(*inputs):
        found = explore(*inputs)
        return (np.nan * found[0], found[1]) if on_policy(S) else np.nan * found

    monkeypatch.setattr(S.Agent, "explore", spoil)
    with pytest.raises(SystemExit) as stop:
        spied(env_id="Target-v0", run_dir="run")
    found = json.loads(Path("run/summary.json").read_text())
    assert stop.value.code == 1 and found["reason"].startswith("FloatingPointError('action ")


# --- metrics --------------------------------------------------------------------------------------
def test_metrics_of_an_update(agent, batch):
    """Each against its formula in docs/metrics.md, in NumPy."""
    columns, noise = batch
    with torch.no_grad():
        [*agent.actor.parameters()][-1][0] += 3  # the mean of one action: it saturates
    known = reference(agent, columns, noise)
    obs, action = (columns[i].double().numpy() for i in (0, 1))
    q = values(forward(agent, "critic", known.critic, obs, action))
    losses = known.losses(known.critic)
    target = known.target
    found = agent.update_critic(*columns, agent.log_alpha.detach().exp(), noise[0])
    expected = {
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[-1].mean(),
        "losses/qf1_loss": losses[0],
        "losses/qf2_loss": losses[-1],
        "losses/qf_loss": np.mean(losses),
        "q/td_rel": np.sqrt(np.square(q - target).mean()) / target.std(),
        "q/twin_gap": np.abs(q[0] - q[-1]).mean() / q.std(),
    }
    reward = columns[2].double().numpy()
    described = {"env/obs": obs, "env/reward": reward, "q/value": q, "q/target": target}
    for name, x in described.items():
        expected |= {f"{name}_mean": x.mean(), f"{name}_sd": x.std()}
        expected |= {f"{name}_min": x.min(), f"{name}_max": x.max()}
    _, log_std = forward(agent, "actor", known.actor, obs)
    new_action, logp = policy(agent, known.actor, obs, noise[1].double().numpy())
    actor_loss = known.actor_loss(known.actor)  # with the critics after their step
    found_of_actor, entropy = agent.update_actor(
        columns[0], agent.log_alpha.detach().exp(), noise[1]
    )
    found |= found_of_actor | agent.update_alpha(entropy)
    expected |= {
        "losses/actor_loss": actor_loss,
        "losses/alpha_loss": -np.log(0.3) * (logp - A).mean(),
        "losses/alpha": 0.3,
        "policy/entropy": -logp.mean(),
        "policy/entropy_gap": -logp.mean() + A,
        "policy/saturation": (np.abs(new_action) > 0.99).mean(),
        "policy/log_std": log_std.mean(),
    }
    assert 0 < expected["policy/saturation"] < 1
    assert found.keys() >= expected.keys() | {"grad/norm_critic", "grad/norm_actor"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert not [name for name, value in found.items() if value.requires_grad]


@pytest.mark.parametrize(
    "test",
    [
        test_t04_t09_t14_critic_loss_and_gradient,
        test_t09_t14_actor_loss_and_gradient,
        test_metrics_of_an_update,
    ],
)
@pytest.mark.parametrize("critics, quantiles, dropped", [(1, 4, 0), (3, 5, 1), (5, 7, 3)])
def test_critics_and_quantiles_of_any_number(S, batch, test, critics, quantiles, dropped):
    """Two critics that drop two atoms each would hide which of both numbers counts."""
    need(S, "Args.num_quantiles", "squash", "Agent.update_critic", "Agent.update_actor")
    sizes = {"num_critics": critics, "num_quantiles": quantiles, "drop_atoms": dropped}
    test(make_agent(S, batch, sizes), batch)


def test_metrics_of_an_interval(S, spied, batch, monkeypatch):
    """Each row is the mean over the updates since the row before."""
    need(S, "Agent.update_critic", "compile_update")
    seen = {method: [] for method in learners(S, *batch)}
    for method, found in seen.items():
        monkeypatch.setattr(S.Agent, method, recording(getattr(S.Agent, method), found))
    rows = [row for row in spied(env_id="Target-v0", log_every=50).logs if "charts/SPS" in row]
    assert [row["global_step"] for row in rows] == [50, 100, 150, 200, 250, 300]
    for found in seen.values():
        del found[0]  # the trial
        count = len(found) // 4
        for name in found[0]:
            assert name not in rows[1]
            for i in range(4):
                mean = np.mean([float(metrics[name]) for metrics in found[count * i :][:count]])
                assert rows[2 + i][name] == pytest.approx(mean, rel=1e-4, abs=1e-6), name
    assert len(next(iter(seen.values()))) == 200


# --- seeds, counts, logs --------------------------------------------------------------------------
def test_t28_every_environment_and_episode_has_its_own_seed(untried, S, spied, monkeypatch):
    resets = []
    reset = Target.reset

    def spy(env, *, seed=None, options=None):
        resets.append((id(env), seed))
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(Target, "reset", spy)
    runs = {}
    for seed in (0, 1):
        resets.clear()
        seen = spied(env_id="Target-v0", num_envs=3, seed=seed, eval_every=150, eval_episodes=2)
        assert len(resets) >= 3 * 10 and None not in [s for _, s in resets]
        assert len({s for _, s in resets}) == len(resets)
        runs[seed] = seen, {s for _, s in resets}
    (a, seeds_a), (b, seeds_b) = runs.values()
    assert not seeds_a & seeds_b
    for name in ("obs", "action"):
        assert not np.isclose(a.rows[name][:90], b.rows[name][:90]).all(1).any()
    assert not torch.equal(a.batches[0], b.batches[0])


def test_generators_go_on_as_they_were(S):
    """All of them, with the second of two normal numbers that NumPy draws at once."""
    need(S, "generator_states")
    S.seed_everything(3)
    np.random.normal()

    def draw():
        return [random.random(), *np.random.normal(size=3), *torch.rand(2).tolist()]

    states = S.generator_states()
    drawn = draw()
    S.seed_everything(4)
    S.set_generator_states(states)
    assert draw() == drawn


def test_a_run_of_several_cuda_devices_goes_on_with_one(S, monkeypatch):
    need(S, "generator_states")
    cuda = S.torch.cuda
    monkeypatch.setattr(cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "get_rng_state", lambda: "the state of this device")
    monkeypatch.setattr(cuda, "get_rng_state_all", lambda: ["one", "two"])
    given = []
    monkeypatch.setattr(cuda, "set_rng_state", given.append)
    S.set_generator_states(S.generator_states())
    assert given == ["the state of this device"]


@pytest.mark.parametrize("seeds", [(0, 1), (1, 2)])
def test_t28_seeds_change_the_initial_networks(S, seeds):
    need(S, "load_agent", "make_envs")
    found = []
    for seed in seeds:
        environments(S, arguments(S, env_id="Target-v0", seed=seed), 1)
        bound = np.ones(2, np.float32)
        critic = S.Agent(arguments(S), O, -bound, bound).critic
        found.append(torch.cat([parameter.detach().flatten() for parameter in critic.parameters()]))
    assert (found[0] != found[1]).float().mean() > 0.5


@pytest.mark.parametrize("envs, utd", [(1, 1.0), (3, 1.0), (3, 2.0), (4, 0.5)])
def test_t30_steps_and_updates_are_counted_right(spied, script, envs, utd):
    seen = spied(env_id="Counter-trunc-v0", num_envs=envs, utd=utd, log_every=100)
    last = seen.logs[-1]
    assert last["global_step"] == seen.buffer.added == 300
    assert last["updates"] == len(seen.batches) == 200 * utd
    delay = getattr(seen.agent.args, "policy_delay", 1)
    ending = "opt.bias_correction2"  # of our class Adam
    counts = {name: x for name, x in seen.agent.named_buffers() if name.endswith(ending)}
    assert counts or foreign(script)
    for name, count in counts.items():
        steps = 200 * utd / (delay if name.startswith("actor") else 1)
        assert count.item() == pytest.approx(1 - 0.999**steps, rel=1e-4), name


def test_t14_every_update_draws_a_new_batch(spied):
    batches = spied(env_id="Target-v0", utd=3.0, total_timesteps=120).batches
    assert len(batches) == 60
    assert len({tuple(batch.tolist()) for batch in batches}) == 60


def test_every_update_gets_new_normal_noise(S, spied, monkeypatch):
    """Independent between updates, and between next and new actions where both have some."""
    need(S, "compile_update", "Agent.update_critic")
    seen = []
    methods = [name for name in learners(S, [None], [None, None]) if name != "update_actor"]

    def watch(update):
        def spy(agent, *inputs):
            seen.extend(noise.clone() for noise in inputs[1:])
            return update(agent, *inputs)

        return spy

    for name in methods:
        monkeypatch.setattr(S.Agent, name, watch(getattr(S.Agent, name)))
    spied(env_id="Target-v0", total_timesteps=200)
    del seen[0]  # the trial
    assert len(seen) == 100 and not torch.isclose(seen[0], seen[1]).any()
    draws = torch.stack(seen)
    assert draws.shape[-2:] == (32, 2)  # a number for each transition and dimension
    assert abs(draws.mean()) < 0.05 and abs(draws.std() - 1) < 0.05
    if draws.dim() == 4:  # [updates, 2, B, A]
        pair = torch.stack([draws[:, 0].flatten(), draws[:, 1].flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.05


def first_moves(S, batch, **changes):
    """Return how far the first update moves each part of an agent at most."""
    torch.manual_seed(0)
    bound = np.ones(A, np.float32)
    agent = S.Agent(arguments(S, **changes), O, -bound, bound)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    for method, inputs in learners(S, *batch).items():
        getattr(agent, method)(*inputs)
    moves = {}
    for name, parameter in agent.named_parameters():
        part, move = name.split(".")[0], (parameter - before[name]).abs().max().item()
        moves[part] = max(move, moves.get(part, 0))
    return moves


@pytest.mark.parametrize("name", ["critic_lr", "actor_lr", "alpha_lr"])
def test_every_optimizer_has_its_own_rate(S, batch, name):
    """Twice the rate moves its own part twice as far, and no other."""
    need(S, "Agent.update_critic", f"Args.{name}")
    rates = {"critic_lr": 1e-3, "actor_lr": 2e-3, "alpha_lr": 3e-3}
    rates = {key: rate for key, rate in rates.items() if key in S.Args.__annotations__}
    once = first_moves(S, batch, **rates)
    twice = first_moves(S, batch, **rates | {name: 2 * rates[name]})
    part = {"critic_lr": "critic", "actor_lr": "actor", "alpha_lr": "log_alpha"}[name]
    assert twice[part] == pytest.approx(2 * once[part], rel=1e-3)
    others = {"critic", "actor", "log_alpha"} & once.keys() - {part}
    for other in others if name != "critic_lr" else ():  # the actor is judged by the critics
        assert twice[other] == pytest.approx(once[other], rel=1e-3)


@pytest.mark.parametrize("envs, utd", [(1, 0.5), (3, 0.1)])
def test_intervals_without_an_update_are_logged(spied, envs, utd):
    seen = spied(env_id="Target-v0", num_envs=envs, utd=utd, log_every=1)
    rows = [row for row in seen.logs if "charts/SPS" in row]
    assert rows[-1]["global_step"] == 300 and len(rows) == 300 / envs


@pytest.mark.parametrize("envs", [1, 4])
def test_t31_every_finished_episode_is_logged(spied, envs):
    """Returns and lengths are those of the rows: sum of 1..T, and T."""
    seen = spied(env_id="Counter-trunc-v0", num_envs=envs)
    ends = seen.rows["next_obs"][seen.rows["next_obs"][:, 0] == seen.rows["next_obs"][:, 1], 0]
    stored = [row for row in seen.logs if row["global_step"] <= len(seen.rows["obs"])]
    logged = [row for row in stored if "charts/episodic_return" in row]
    assert sorted(row["charts/episodic_length"] for row in logged) == sorted(ends)
    for row in logged:
        length = row["charts/episodic_length"]
        assert row["charts/episodic_return"] == length * (length + 1) / 2


def test_t31_an_episode_without_reward_is_logged(spied):
    """As one that fails is, where only success pays."""
    seen = spied(env_id="Counter-unpaid-v0")
    ends = seen.rows["next_obs"][:, 0] == seen.rows["next_obs"][:, 1]
    logged = [row for row in seen.logs if "charts/episodic_return" in row]
    assert len(logged) >= ends.sum() > 0
    assert {row["charts/episodic_return"] for row in logged} == {0}


def test_memory_of_a_buffer_is_taken_at_once(S):
    """Or a second run would count on it, and one of both be killed after hours."""
    need(S, "ReplayBuffer")
    before = psutil.Process().memory_info().rss
    buffer = S.ReplayBuffer(500_000, 16, 6, "cpu")
    assert psutil.Process().memory_info().rss - before > 0.9 * buffer.rows.nbytes


def test_rewards_of_float32_are_summed_in_float64(S):
    need(S, "Episodes")

    class Single(Toy):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, np.float32(1e-3), *rest

    env = S.Episodes(Single(length=2000), 0)
    env.reset(options={"stream": (0, 1)})
    done = False
    while not done:
        _, _, done, _, info = env.step(np.zeros(2, np.float32))
    assert info["episode_return"] == pytest.approx(2000 * float(np.float32(1e-3)), rel=1e-12)


def test_denormal_numbers_are_taken_as_zero(S):
    need(S, "resolve")
    S.resolve(arguments(S), "cpu", 10_000, 2000)
    assert (torch.tensor([1e-40]) * torch.ones(1)).item() == 0


# --- compiled and plain ---------------------------------------------------------------------------
def test_t36_compiled_and_plain_updates_agree(S, batch, capsys):
    """50 updates, largest difference of any parameter below 1e-5; the trial changes nothing."""
    need(S, "compile_update", "Agent.update_critic")
    rng = torch.Generator().manual_seed(0)
    noises = [torch.randn(2, B, A, generator=rng) for _ in range(50)]
    states = []
    for compile in ("off", "on"):
        torch.manual_seed(0)
        bound = np.ones(A, np.float32)
        agent = S.Agent(arguments(S, compile=compile), O, -bound, bound)
        start = {name: value.clone() for name, value in agent.state_dict().items()}
        calls = learners(S, batch[0], noises[0])
        updates = {method: prepared(S, agent, method, *calls[method])[1] for method in calls}
        assert "not compiled" not in capsys.readouterr().out and agent.args.compile == compile
        for name, value in agent.state_dict().items():
            assert torch.equal(value, start[name]), name
        for noise in noises:
            for method, inputs in learners(S, batch[0], noise).items():
                updates[method](*inputs)
        states.append({n: v for n, v in agent.state_dict().items() if "_opt" not in n})
    moved = max((states[0][n] - start[n]).abs().max().item() for n in states[0])
    gap = max((states[0][n] - states[1][n]).abs().max().item() for n in states[0])
    assert gap < 1e-5 < 1e-3 < moved


def test_failed_compilation_falls_back_to_the_plain_update(S, batch, monkeypatch, capsys):
    need(S, "compile_update", "Agent.update_critic")

    def fail(*inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(S.torch, "compile", lambda *inputs, **options: fail)
    bound = np.ones(A, np.float32)
    agent = S.Agent(arguments(S, compile="on"), O, -bound, bound)
    for method, inputs in learners(S, *batch).items():
        names, update = prepared(S, agent, method, *inputs)
        assert update(*inputs).shape == (len(names),)
    first = next(iter(learners(S, *batch)))
    out = capsys.readouterr().out
    assert f"warning: {first} is not compiled" in out
