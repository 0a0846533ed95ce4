"""The mathematics of TD3 against references that share no code with it.

Names test_t15_... refer to known bugs of published implementations.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import need, need_own_networks
from tests.reference import (
    A,
    B,
    O,
    arguments,
    assert_gradient,
    forward,
    moved,
    network,
    recorded,
    weights,
)

LOW, HIGH = np.float32([-1, 0, -2]), np.float32([1, 4, -0.5])
PARTS = ["actor", "critic", "actor_target", "critic_target"]


@pytest.fixture
def agent(S, batch):
    """An agent of four different networks, whose critics are each the lower somewhere."""
    need(S, "Args.policy_delay", "Agent.update_critic", "Agent.update_actor")
    changes = {"policy_noise": 0.5, "noise_clip": 0.4, "exploration_noise": 0.3}
    *_, next_obs = batch[0]
    for seed in range(3, 100):
        torch.manual_seed(seed)
        agent = S.Agent(arguments(S, gamma=0.8, tau=0.1, **changes), O, LOW, HIGH)
        for part in PARTS:
            for parameter in getattr(agent, part).parameters():
                nn.init.normal_(parameter, 0, 0.4)
        with torch.no_grad():
            q = agent.critic_target(next_obs, agent.actor_target(next_obs))
        if 2 <= (q[0] < q[1]).sum() <= B - 2:
            return agent
    raise AssertionError("one critic is always the lower one")


def numbers(columns):
    return [column.double().numpy() for column in columns]


def reference(agent, columns, noise):
    """Return the target, and the critics' loss as a function of their parameters."""
    obs, action, reward, terminated, next_obs = numbers(columns)
    mean = forward(agent, "actor_target", weights(agent, "actor_target"), next_obs)
    smoothed = mean + np.minimum(np.maximum(0.5 * noise.double().numpy(), -0.4), 0.4)
    assert (abs(0.5 * noise) > 0.4).any() and (abs(smoothed) > 1).any(), "nothing is clipped"
    smoothed = np.minimum(np.maximum(smoothed, -1), 1)
    q = forward(agent, "critic_target", weights(agent, "critic_target"), next_obs, smoothed)
    assert 0 < (q[0] < q[1]).sum() < B, "the test needs both critics to be the lower one"
    target = [reward[i] + (0 if terminated[i] else 0.8 * min(q[0, i], q[1, i])) for i in range(B)]

    def critic_loss(w):
        q = forward(agent, "critic", w, obs, action)
        return sum(np.mean([(q[k, i] - target[i]) ** 2 for i in range(B)]) for k in (0, 1))

    return np.array(target), critic_loss


def actor_loss(agent, obs):
    """Return the actor's loss as a function of its parameters."""

    def loss(w):
        action = forward(agent, "actor", w, obs)
        return -np.mean(forward(agent, "critic", weights(agent, "critic"), obs, action)[0])

    return loss


# --- losses and targets ---------------------------------------------------------------------------
def test_t15_critic_loss_and_gradient(agent, batch):
    """Target: smoothed and clipped action of the actor's target, lower of both critics' targets."""
    columns, noise = batch
    target, loss = reference(agent, columns, noise[0])
    w = weights(agent, "critic")
    recorded(agent.critic_opt)
    metrics = agent.update_critic(columns, noise[0])
    assert metrics["q/target_mean"].item() == pytest.approx(target.mean(), rel=1e-5)
    assert metrics["q/target_sd"].item() == pytest.approx(target.std(), rel=1e-5)
    assert agent.critic_opt.loss == pytest.approx(loss(w), rel=1e-5)
    assert_gradient(loss, w, agent.critic_opt.seen_gradient)


def test_t15_smoothing_knows_no_units(S, batch):
    """Noise and clip are of the action in [-1, 1], whatever the bounds of each dimension are."""
    need(S, "Args.policy_delay")
    columns, noise = batch
    found = []
    for low, high in [(LOW, HIGH), (np.full(A, -1, np.float32), np.ones(A, np.float32))]:
        torch.manual_seed(0)
        args = arguments(S, policy_noise=2.0, noise_clip=3.0)  # far beyond all bounds
        found.append(S.Agent(args, O, low, high).update_critic(columns, noise[0]))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_actor_loss_and_gradient(agent, batch):
    """The first critic judges the actor's own actions."""
    columns, _ = batch
    obs = columns[0].double().numpy()
    loss, w = actor_loss(agent, obs), weights(agent, "actor")
    recorded(agent.actor_opt)
    agent.update_actor(columns[0])
    assert agent.actor_opt.loss == pytest.approx(loss(w), rel=1e-5)
    assert_gradient(loss, w, agent.actor_opt.seen_gradient)


def test_permuted_batch_gives_the_same_losses(agent, batch):
    columns, noise = batch
    order, found = torch.randperm(B), []
    for rows, draws in ((columns, noise[0]), ([c[order] for c in columns], noise[0][order])):
        state = {k: v.clone() for k, v in agent.state_dict().items()}
        found.append(agent.update_critic(rows, draws) | agent.update_actor(rows[0]))
        agent.load_state_dict(state)
    for name, value in found[0].items():
        assert value.shape == () and not value.requires_grad, name
        assert value.item() == pytest.approx(found[1][name].item(), rel=1e-4, abs=1e-5), name


# --- delay and targets ----------------------------------------------------------------------------
def test_t17_each_step_moves_only_its_own_parameters(agent, batch):
    """Critic step: critic. Actor step: actor and both targets, but never the critic."""
    columns, noise = batch
    assert moved(agent, PARTS, lambda: agent.update_critic(columns, noise[0])) == ["critic"]
    assert moved(agent, PARTS, lambda: agent.update_actor(columns[0])) == [
        "actor",
        "actor_target",
        "critic_target",
    ]


def test_t17_targets_follow_the_closed_form(agent, batch):
    """Each actor step moves them a tenth of the way to what the networks are after it."""
    columns, noise = batch
    expected = {part: weights(agent, f"{part}_target") for part in ("actor", "critic")}
    for _ in range(3):
        for _ in range(2):
            agent.update_critic(columns, noise[0])
        agent.update_actor(columns[0])
        for part, old in expected.items():
            pairs = zip(old, weights(agent, part), strict=True)
            expected[part] = [0.9 * target + 0.1 * new for target, new in pairs]
    for part, values in expected.items():
        for found, value in zip(weights(agent, f"{part}_target"), values, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)


def test_t17_targets_start_as_the_networks_and_take_no_gradient(S):
    need(S, "Args.policy_delay")
    agent = S.Agent(arguments(S), O, LOW, HIGH)
    for part in ("actor", "critic"):
        both = getattr(agent, part), getattr(agent, f"{part}_target")
        for p, target in zip(*(module.parameters() for module in both), strict=True):
            assert torch.equal(p, target) and p.data_ptr() != target.data_ptr()
            assert p.requires_grad and not target.requires_grad


@pytest.mark.parametrize("delay, utd, envs", [(2, 1.0, 1), (3, 1.0, 1), (2, 2.0, 3), (1, 0.5, 1)])
def test_t17_the_actor_steps_after_every_second_critic_step(
    S, spied, monkeypatch, delay, utd, envs
):
    """Counted over the whole run, on the batch of that critic step."""
    need(S, "Args.policy_delay", "compile_update")
    calls = []

    def compile_update(agent, method, *inputs):
        update, compiled = compiled_update(agent, method, *inputs)

        def spy(*inputs):
            calls.append((method.__name__, inputs[0][0] if len(inputs) > 1 else inputs[0]))
            return update(*inputs)

        return spy, compiled

    compiled_update = S.compile_update
    monkeypatch.setattr(S, "compile_update", compile_update)
    spied(env_id="Target-v0", policy_delay=delay, utd=utd, num_envs=envs)
    kinds = [method for method, _ in calls]
    assert kinds.count("update_critic") == 200 * utd
    one = ["update_critic"] * delay + ["update_actor"]
    assert kinds == (one * 400)[: len(kinds)] and len(kinds) == 200 * utd + 200 * utd // delay
    for i in [i for i, method in enumerate(kinds) if method == "update_actor"]:
        assert torch.equal(calls[i][1], calls[i - 1][1])


# --- networks and policy --------------------------------------------------------------------------
def test_actor_is_two_hidden_layers_and_tanh(agent, script):
    need_own_networks(script)
    w, obs = weights(agent, "actor"), np.random.default_rng(0).normal(size=(B, O))
    out = np.tanh(network([v.T for v in w], obs))
    np.testing.assert_allclose(forward(agent, "actor", w, obs), out)


def test_t15_actions_are_scaled_per_dimension(agent):
    """Asymmetric bounds; deterministic is the network's output; exploring stays in bounds."""
    obs = np.random.default_rng(0).normal(size=(50, O)) * 30
    mode = forward(agent, "actor", weights(agent, "actor"), obs)
    expected = LOW + (mode + 1) / 2 * (HIGH - LOW)
    np.testing.assert_allclose(agent.act(obs, deterministic=True), expected, rtol=1e-4, atol=1e-5)
    for action in (agent.act(obs, deterministic=False), agent.act(obs)):
        assert (action >= LOW).all() and (action <= HIGH).all()


def test_value_is_the_lower_critic_at_the_actors_action(agent):
    obs = np.random.default_rng(0).normal(size=(B, O))
    mode = forward(agent, "actor", weights(agent, "actor"), obs)
    expected = forward(agent, "critic", weights(agent, "critic"), obs, mode).min(0)
    np.testing.assert_allclose(agent.value(obs), expected, rtol=1e-4, atol=1e-5)


def test_t16_exploration_noise_is_independent(agent):
    """Of every environment and dimension, normal, 0.3 of the half-range, clipped to the bounds."""
    np.random.seed(0)
    for parameter in agent.actor.parameters():
        nn.init.zeros_(parameter)
    action = agent.explore(np.ones((20_000, O)))
    assert action.shape == (20_000, A) and abs(action).max() == 1
    assert (action != agent.explore(np.ones((20_000, O)))).mean() > 0.99  # of every step, too
    inside = action[(abs(action) < 1).all(1)]
    np.testing.assert_allclose(action.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(action.std(0), 0.3, rtol=0.03)
    np.testing.assert_allclose((abs(inside) < 0.3).mean(), 0.683, atol=0.01)
    assert len(np.unique(inside)) == inside.size  # no two share a draw
    assert abs(np.corrcoef(action.T) - np.eye(A)).max() < 0.04
    pair = np.corrcoef(action[:-1].ravel(), action[1:].ravel())
    assert abs(pair[0, 1]) < 0.04


def test_exploration_is_around_the_actors_action(agent):
    np.random.seed(0)
    obs = np.ones((20_000, O))
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter *= 0.3  # far from the bounds, so that nothing is clipped
    mode = forward(agent, "actor", weights(agent, "actor"), obs[:1])[0]
    assert abs(mode).min() > 1e-3
    np.testing.assert_allclose(agent.explore(obs).mean(0), mode, atol=0.02)


# --- metrics --------------------------------------------------------------------------------------
def test_metrics_of_the_updates(agent, batch):
    """Each against its formula in docs/metrics.md, in NumPy."""
    columns, noise = batch
    with torch.no_grad():
        [*agent.actor.parameters()][-1][0] += 3  # one action saturates
    target, _ = reference(agent, columns, noise[0])
    obs, action, reward, *_ = numbers(columns)
    q = forward(agent, "critic", weights(agent, "critic"), obs, action)
    error = q - target
    found = agent.update_critic(columns, noise[0])
    expected = {
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[1].mean(),
        "losses/qf1_loss": np.square(error[0]).mean(),
        "losses/qf2_loss": np.square(error[1]).mean(),
        "losses/qf_loss": np.square(error).mean(),
        "q/td_rel": np.sqrt(np.square(error).mean()) / target.std(),
        "q/twin_gap": np.abs(q[0] - q[1]).mean() / q.std(),
    }
    described = {"env/obs": obs, "env/reward": reward, "q/value": q, "q/target": target}
    for name, values in described.items():
        expected |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std()}
        expected |= {f"{name}_min": values.min(), f"{name}_max": values.max()}
    new_action = forward(agent, "actor", weights(agent, "actor"), obs)
    loss = actor_loss(agent, obs)(weights(agent, "actor"))
    found |= agent.update_actor(columns[0])
    expected |= {
        "losses/actor_loss": loss,
        "policy/saturation": (np.abs(new_action) > 0.99).mean(),
        "policy/action_sd": new_action.std(0).mean(),
    }
    assert 0 < expected["policy/saturation"] < 1
    assert found.keys() >= expected.keys() | {"grad/norm_critic", "grad/norm_actor"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert not [name for name, value in found.items() if value.requires_grad]
