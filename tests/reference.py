"""Environments, fixtures and references that the tests of several algorithms share."""

import copy
import types

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.conftest import apply, known, need, on_policy

B, O, A = 8, 5, 3  # noqa: E741


# --- environments ---------------------------------------------------------------------------------
class Counter(gym.Env):
    """obs = (t, T): T is drawn at reset, and the episode ends at t = T as `ending` says."""

    observation_space = gym.spaces.Box(0, 100, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": []}

    def __init__(self, ending, reuse=False, pay=1.0):
        self.ending, self.reuse, self.obs = ending, reuse, np.zeros(2, np.float32)
        self.pay = pay

    def observe(self):
        self.obs[:] = self.t, self.T
        return self.obs if self.reuse else self.obs.copy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.T = 0, int(self.np_random.integers(2, 9))
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.T
        terminated, truncated = (
            over and "terminated" in self.ending,
            over and "trunc" in self.ending,
        )
        return self.observe(), self.pay * self.t, terminated, truncated, {}


class Target(gym.Env):
    """obs is noise; reward is the squared distance of action / scale from a target; ten steps."""

    metadata = {"render_modes": []}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, scale=1.0):
        self.scale = scale
        self.action_space = gym.spaces.Box(
            np.float32([-scale, 0]), np.float32([scale, 2 * scale]), dtype=np.float32
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=2), {}

    def step(self, action):
        self.t += 1
        reward = -float(np.square(action / np.float32(self.scale) - np.float32(0.5)).sum())
        return self.np_random.normal(size=2), reward, False, self.t == 10, {}


for ending in ("terminated", "trunc", "terminated-trunc"):
    gym.register(f"Counter-{ending}-v0", Counter, kwargs={"ending": ending})
gym.register("Counter-reuse-v0", Counter, kwargs={"ending": "trunc", "reuse": True})
gym.register("Counter-unpaid-v0", Counter, kwargs={"ending": "terminated", "pay": 0.0})
gym.register("Target-v0", Target)
gym.register("Target-times4-v0", Target, kwargs={"scale": 4.0})
clip = gym.wrappers.ClipAction.wrapper_spec()
gym.register("Target-clipped-v0", Target, additional_wrappers=(clip,))


def learners(S, batch, noise):
    """Return the methods of the agent that main prepares, with inputs for noise [2, B, A]."""
    if hasattr(S.Agent, "update"):
        return {"update": (batch, noise)}
    return {"update_critic": (batch, noise[0]), "update_actor": (batch[0],)}


def arguments(S, **changes):
    quick = {"total_timesteps": 300, "learning_starts": 100, "batch_size": 32, "hidden_size": 16}
    quick |= {"buffer_size": 1000, "eval_every": 0, "capture_video": False, "threads": 1}
    quick |= {"num_envs": 1, "rollout_steps": 96, "log_std_init": 0.0}
    # what the references take for granted, whatever the defaults of a user's script are
    quick |= {"seed": 1, "utd": 1.0, "policy_delay": 2, "autotune": True, "target_entropy": None}
    quick |= {"train_every": 4, "start_e": 1.0, "end_e": 0.01, "double": False, "huber": False}
    quick |= {"clip_rewards": True, "life_loss": "auto", "frame_size": 84, "update_epochs": 10}
    quick |= {"norm_obs": True, "norm_reward": True, "bootstrap_truncated": True, "anneal": True}
    quick |= {"recompute_advantages": False, "clip_coef": 0.2, "clip_vloss": False}
    quick |= {"ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5}
    quick |= {"desired_kl": None, "target_kl": None}
    need(S, *(f"Args.{name}" for name in changes))
    return S.Args(**known(S, quick | {"compile": "off", "device": "cpu"}) | changes)


def recording(call, results):
    """Return a function that does the same, and puts what it returns into a list."""

    def record(*inputs, **options):
        results.append(call(*inputs, **options))
        return results[-1]

    return record


def watch_buffer(S, seen, patch):
    """Keep the replay buffer and the batches; return a function that returns its columns."""

    class Buffer(S.ReplayBuffer):
        def __init__(self, *inputs, **options):
            super().__init__(*inputs, **options)
            seen.buffer = self

        def sample(self, *inputs, **options):
            batch = super().sample(*inputs, **options)
            seen.batches.append(torch.cat([column.reshape(-1) for column in batch]))
            return batch

    def columns():
        filled = min(seen.buffer.added, len(seen.buffer.rows))
        rows = seen.buffer.rows[:filled]
        return [column.numpy(force=True) for column in seen.buffer.unpack(rows)]

    patch.setattr(S, "ReplayBuffer", Buffer)
    return columns


def watch_rollouts(S, seen, patch):
    """Keep the rollouts and what is drawn from them; return a function that returns the columns."""
    update, rollouts = S.Agent.update, []

    def spy(agent, rollout, learn):
        def draw(batch, index):
            seen.batches.append(index)
            return learn(batch, index)

        rollouts.append(rollout)
        return update(agent, rollout, draw)

    def columns():
        found = []
        for name in ["obs", "action", "reward", "terminated", "next_obs"]:
            parts = [getattr(rollout, name) for rollout in rollouts]  # each [T, N, ...]
            column = np.concatenate(parts)
            found.append(column.reshape(-1, *column.shape[2:]))
        return found

    patch.setattr(S.Agent, "update", spy)
    return columns


@pytest.fixture
def spied(S, spaces, monkeypatch, tmp_path):
    """Run main in an empty folder; return the agent with its buffer, the batches, rows and logs."""
    apply(spaces, "box")
    need(S, "Agent.update" if on_policy(S) else "ReplayBuffer", "Run.log")

    def run(**changes):
        seen = types.SimpleNamespace(batches=[], logs=[])
        log = S.Run.log

        def spy(run, metrics, *rest):
            seen.logs.append({"global_step": run.global_step, "updates": run.updates, **metrics})
            return log(run, metrics, *rest)

        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            columns = (watch_rollouts if on_policy(S) else watch_buffer)(S, seen, patch)
            patch.setattr(S.Run, "log", spy)
            seen.agent = S.main(arguments(S, **changes))
        names = ["obs", "action", "reward", "terminated", "next_obs"]
        seen.rows = dict(zip(names, columns(), strict=True))
        return seen

    return run


@pytest.fixture
def batch():
    """Obs, action, reward, terminated, next_obs, and noise, with every kind of ending."""
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(B, O)), rng.uniform(-1, 1, (B, A)), rng.normal(size=B)]
    columns += [np.arange(B) % 2, rng.normal(size=(B, O)), rng.normal(size=(2, B, A))]
    *columns, noise = [torch.tensor(column, dtype=torch.float32) for column in columns]
    return columns, noise


# --- networks and gradients in float64, around whatever networks the script has ------------------
def weights(agent, part):
    """Copy the parameters of a part of the agent, such as critic_target."""
    named = agent.named_parameters()
    return [p.detach().double().numpy().copy() for name, p in named if name.split(".")[0] == part]


def moved(agent, parts, call):
    """Return those parts of the agent that a call changes."""
    before = {part: weights(agent, part) for part in parts}
    call()
    pairs = {part: zip(before[part], weights(agent, part), strict=True) for part in parts}
    return [part for part in parts if any((a != b).any() for a, b in pairs[part])]


def forward(agent, part, w, *inputs):
    """Run a network of the agent with parameters w."""
    module = copy.deepcopy(getattr(agent, part)).double()
    names = [name for name, _ in module.named_parameters()]
    state = {name: torch.tensor(value) for name, value in zip(names, w, strict=True)}
    inputs = tuple(torch.tensor(x, dtype=torch.float64) for x in inputs)
    with torch.no_grad():
        found = torch.func.functional_call(module, state, inputs)
    return found.numpy() if torch.is_tensor(found) else [x.numpy() for x in found]


def network(w, x):
    """Two hidden layers of ReLU in NumPy, each weight [I, O]."""
    for i in (0, 2, 4):
        x = x @ w[i] + w[i + 1]
        x = np.maximum(x, 0) if i < 4 else x
    return x


def recorded(opt):
    """Make an optimizer keep the loss and the gradient that it is given."""
    name = "gradient" if hasattr(opt, "gradient") else "minimize"
    descend = getattr(opt, name)
    leaves = opt.params if hasattr(opt, "params") else opt.leaves

    def spy(loss):
        opt.loss, gradient = loss.item(), torch.autograd.grad(loss, leaves, retain_graph=True)
        opt.seen_gradient = [g.double().numpy() for g in gradient]
        return descend(loss)

    setattr(opt, name, spy)


def prepared(S, agent, method, *example):
    """Return the metrics' names, and the method of the agent, compiled or not, that returns [M]."""
    names = list(getattr(copy.deepcopy(agent), method)(*example))
    update, _ = S.compile_update(agent, getattr(S.Agent, method), example, agent.args.compile)

    def call(*inputs):
        metrics = update(*inputs)
        assert list(metrics.names) == names
        return metrics.values

    return names, call


def assert_gradient(function, w, gradient, checks=40, eps=1e-5):
    """Compare a gradient with central differences at random places of the parameters w."""
    rng = np.random.default_rng(1)
    for _ in range(checks):
        part = rng.integers(len(w))
        place = tuple(rng.integers(n) for n in w[part].shape)
        shifted = []
        for sign in (1, -1):
            near = [v.copy() for v in w]
            near[part][place] += sign * eps
            shifted.append(function(near))
        slope = (shifted[0] - shifted[1]) / (2 * eps)
        assert gradient[part][place] == pytest.approx(slope, rel=2e-3, abs=2e-5)
