# --- method ---------------------------------------------------------------------------------------
"""Proximal Policy Optimization (PPO-clip, arXiv 1707.06347) with GAE (arXiv 1506.02438).

The agent acts for rollout_steps transitions, then learns from them alone, in update_epochs passes
over shuffled minibatches. Observations are shifted by the mean and divided by the deviation of all
rollouts before, rewards divided by that of running discounted returns; both are cut at 10.

(1) action = actor(obs) + exp(log_std) * noise, noise ~ N(0, 1); environments get it cut to [-1, 1]
    logp = sum over dimensions of log N(action; actor(obs), exp(log_std))
(2) delta = reward + gamma * (1 - terminated) * critic(next_obs) - critic(obs)
(3) advantage[t] = delta[t] + gamma * gae_lambda * (1 - done[t]) * advantage[t + 1]
    returns = advantage + critic(obs), and done at termination and truncation
(4) ratio = exp(logp of the networks now - logp when acting)
(5) policy_loss = -mean(min(ratio * advantage, clip(ratio, 1 - c, 1 + c) * advantage)) c = clip_coef
(6) value_loss = mean((critic(obs) - returns)^2) / 2
(7) loss = policy_loss + vf_coef * value_loss - ent_coef * entropy, its gradient cut in norm
Differs from the paper: normalised obs, rewards, advantages; cut gradients, falling lr; time limits

python ppo_continuous.py --env-id Hopper-v4
python ppo_continuous.py --env-id InvertedPendulum-v4 --total-timesteps 50000
"""

# --- imports --------------------------------------------------------------------------------------
import copy
import gc
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import sys
import time
import tomllib
from collections import Counter, deque
from contextlib import AbstractContextManager
from ctypes.util import find_library
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import psutil
import torch
import tyro
from torch import nn
from torch.utils.tensorboard import SummaryWriter


# --- arguments ------------------------------------------------------------------------------------
@dataclass
class Args:
    """Train PPO; --evaluate scores and films a trained agent instead."""

    # task
    env_id: str = "Hopper-v4"  # Gymnasium id; my_module:MyEnv-v0 imports my_module
    total_timesteps: int = 1_000_000  # environment transitions, over all environments
    num_envs: int = 64  # environments stepped together
    async_envs: bool = False  # step each in a process of its own; gains if slow, on many cores
    seed: int = 1  # drives networks, environments, exploration and batches
    # algorithm
    rollout_steps: int = 2_048  # transitions per rollout, over all environments
    update_epochs: int = 10  # passes over a rollout
    batch_size: int = 64  # transitions per update
    hidden_size: int = 64  # units in each fully connected hidden layer
    norm_obs: bool = True  # normalise observations, cut at 10
    norm_reward: bool = True  # divide rewards by the deviation of returns, cut at 10
    log_std_init: float = -0.5  # (1) initial log_std
    gamma: float = 0.99  # (2) discount per step
    bootstrap_truncated: bool = True  # (2) with --no-..., truncation counts as termination
    gae_lambda: float = 0.95  # (3) weight of later deltas
    recompute_advantages: bool = False  # (3) before every pass, not before the first only
    clip_coef: float = 0.2  # (5) change of the ratio beyond which nothing is gained
    clip_vloss: bool = False  # (6) limit the change of values likewise
    ent_coef: float = 0.0  # (7) weight of the entropy
    vf_coef: float = 0.5  # (7) weight of the value loss
    max_grad_norm: float = 0.5  # (7) largest norm of a gradient
    learning_rate: float = 3e-4  # (7) Adam's step size
    anneal: bool = True  # (7) lower the step size linearly, towards 0 at the end
    target_kl: float | None = None  # no further pass after one with a mean approx_kl above this
    # run
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA if present, for PPO the CPU
    threads: int | None = 1  # CPU threads; None: all cores, at most 4
    compile: Literal["auto", "on", "off"] = "auto"  # auto: if the run is long enough to gain
    log_every: int = 2_048  # transitions between two rows of metrics; 0: none
    eval_every: int | None = None  # transitions between evaluations; default up to 25; 0: none
    eval_episodes: int = 5  # episodes per evaluation, with deterministic actions
    capture_video: bool = True  # film an episode of every eighth evaluation and of the last
    track: bool = False  # send metrics, source and videos to Weights & Biases
    notes: str = ""  # the hypothesis, kept beside the run
    run_dir: str | None = None  # folder of this run; default runs/<env>__<script>__<seed>__<id>
    config: str | None = None  # start from the config.toml of a run; flags override it
    evaluate: str | None = None  # run folder to score and film instead of training

    def check(self):
        """Refuse values that can not work."""
        positive = "total_timesteps num_envs rollout_steps update_epochs batch_size hidden_size "
        for name in (positive + "clip_coef max_grad_norm learning_rate eval_episodes").split():
            require(0 < getattr(self, name) < math.inf, name, "must be positive")
        for name in ["ent_coef", "vf_coef"]:
            require(0 <= getattr(self, name) < math.inf, name, "must not be negative")
        require(self.target_kl is None or self.target_kl > 0, "target_kl", "must be positive")
        for name in ["gamma", "gae_lambda"]:
            require(0 <= getattr(self, name) <= 1, name, "must be between 0 and 1")
        for name in ["seed", "log_every", "eval_every", "threads"]:
            require(0 <= (getattr(self, name) or 0) < 2**63, name, "must not be negative or huge")
        require(math.isfinite(self.log_std_init), "log_std_init", "must be finite")
        rows = self.rollout_steps
        for name, value in {"num_envs": self.num_envs, "batch_size": self.batch_size}.items():
            require(rows % value == 0, name, f"{value} must divide --rollout-steps {rows}")
        require(self.batch_size > 1, "batch_size", "must be above 1, to normalise advantages")
        require(self.total_timesteps >= rows, "total_timesteps", "must reach --rollout-steps")


# --- networks -------------------------------------------------------------------------------------
def tanh_mlp(inputs, hidden_size, outputs, gain):
    """Stack two hidden tanh layers and a linear output of that gain, all of them orthogonal."""
    first, second = nn.Linear(inputs, hidden_size), nn.Linear(hidden_size, hidden_size)
    net = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(hidden_size, outputs))
    for layer, scale in zip(net[::2], [2**0.5, 2**0.5, gain], strict=True):
        nn.init.orthogonal_(layer.weight, scale), nn.init.zeros_(layer.bias)
    return net


# --- experience -----------------------------------------------------------------------------------
class Moments(nn.Module):
    """Mean and variance of all rows seen, in float64."""

    def __init__(self, dim):
        super().__init__()
        zeros = torch.zeros(dim, dtype=torch.float64)
        self.mean, self.var, self.count = (nn.Buffer(zeros + x) for x in (0, 1, 0))

    def update(self, rows):
        """Take in an array [B, D]; variances merge as in Chan, Golub and LeVeque (1983)."""
        rows = torch.as_tensor(rows, dtype=torch.float64, device=self.mean.device)
        self.count += len(rows)
        share, change = len(rows) / self.count, rows.mean(0) - self.mean
        self.var.lerp_(rows.var(0, correction=0) + (1 - share) * change.square(), share)
        self.mean += share * change


def discounted_sum(x, keep):
    """Return y with y[t] = x[t] + keep[t] * y[t + 1], all [T, N], and 0 after the last."""
    y, following = np.empty(x.shape), np.zeros(x.shape[1])
    for t in reversed(range(len(x))):
        y[t] = following = x[t] + keep[t] * following
    return y


# --- agent ----------------------------------------------------------------------------------------
class Adam(nn.Module):
    """Adam (arXiv 1412.6980), whose averages over all parameters are one vector each."""

    def __init__(self, parameters, lr, beta1=0.9, beta2=0.999, eps=1e-8, max_norm=math.inf):
        super().__init__()
        self.leaves, self.lr, self.max_norm = [*parameters], lr, max_norm
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.sizes = [leaf.numel() for leaf in self.leaves]
        zeros = self.leaves[0].detach().new_zeros(sum(self.sizes))
        self.mean, self.square = nn.Buffer(zeros), nn.Buffer(zeros.clone())
        self.mean_seen, self.square_seen = (nn.Buffer(zeros.new_zeros(())) for _ in range(2))

    def step(self, loss):
        """Descend the loss in place, by a gradient cut to max_norm; return its norm before."""
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.leaves)])
        norm = gradient.norm()
        with torch.no_grad():
            gradient = gradient * (self.max_norm / (norm + 1e-6)).clamp(max=1)
            self.mean.lerp_(gradient, 1 - self.beta1)
            self.square.lerp_(gradient.square(), 1 - self.beta2)
            self.mean_seen.mul_(self.beta1).add_(1 - self.beta1)  # 1 - beta1^steps
            self.square_seen.mul_(self.beta2).add_(1 - self.beta2)
            scale = (self.square / self.square_seen).sqrt() + self.eps
            moves = (self.lr / self.mean_seen * self.mean / scale).split(self.sizes)
            for leaf, move in zip(self.leaves, moves, strict=True):
                leaf.sub_(move.view_as(leaf))
        return norm


class Agent(nn.Module):
    """PPO: networks, normalisers, optimizer and the update."""

    def __init__(self, args, obs_dim, low, high, device="cpu"):
        super().__init__()
        self.args, self.obs_dim, self.low, self.high, dim = args, obs_dim, low, high, low.size
        self.actor = tanh_mlp(obs_dim, args.hidden_size, dim, 0.01)
        self.critic = tanh_mlp(obs_dim, args.hidden_size, 1, 1.0)
        self.log_std = nn.Parameter(torch.full((dim,), args.log_std_init))
        self.obs_moments, self.return_moments, self.running = Moments(obs_dim), Moments(1), 0.0
        self.to(device)  # not later, since the optimizer keeps what it is given
        self.lr = nn.Buffer(torch.tensor(args.learning_rate, device=device))
        self.opt = Adam(self.parameters(), self.lr, eps=1e-5, max_norm=args.max_grad_norm)

    def tensor(self, array):
        """Put an array on the agent's device as float32."""
        return torch.as_tensor(np.float32(array), device=self.lr.device)

    def frozen(self):
        """Return the arrays that acting needs until the next update; looking them up is slow."""
        mean, var = self.obs_moments.mean.numpy(force=True), self.obs_moments.var.numpy(force=True)
        return mean, np.sqrt(var + 1e-8), *(x.numpy(force=True) for x in self.actor.parameters())

    def normalize(self, obs, frozen=None):
        """Map raw obs [..., O] to what the networks see."""
        if self.args.norm_obs:
            mean, sd, *_ = frozen or self.frozen()
            obs = ((obs - mean) / sd).clip(-10, 10)
        return np.float32(obs)

    def scale(self, action):
        """Map actions [N, A], cut to [-1, 1], to the environment's units [N, *action shape]."""
        action = np.float32(action).reshape(-1, *self.low.shape).clip(-1, 1)
        return np.minimum(self.low + (self.high - self.low) / 2 * (1 + action), self.high)

    def policy_mean(self, obs, frozen=None):
        """Return the actor's output [N, A] for obs [N, O], in NumPy, faster for a few rows."""
        _, _, w1, b1, w2, b2, w3, b3 = frozen = frozen or self.frozen()
        x = np.tanh(self.normalize(obs, frozen) @ w1.T + b1)
        return np.tanh(x @ w2.T + b2) @ w3.T + b3

    def explore(self, obs, frozen=None):
        """Sample actions [N, A] for obs [N, O]; return them, not cut, and their logp [N]."""
        mean, log_std = self.policy_mean(obs, frozen), self.log_std.numpy(force=True)
        noise = np.random.standard_normal(mean.shape)
        logp = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        return mean + np.exp(log_std) * noise, logp.sum(1)  # (1)

    def act(self, obs, deterministic=True):
        """Choose actions [N, *action shape] in the environment's units for obs [N, O]."""
        return self.scale(self.policy_mean(obs) if deterministic else self.explore(obs)[0])

    def value(self, obs):
        """Estimate the return [N] from obs [N, O], in units of the raw reward."""
        value = self.critic(self.tensor(self.normalize(obs))).squeeze(-1).numpy(force=True)
        return value * math.sqrt(self.return_moments.var + 1e-8)

    @torch.no_grad()
    def compute_gae(self, rollout):
        """Return obs, action, logp, advantage, returns, value, each [T * N, ...], and metrics."""
        columns = map(np.stack, zip(*rollout, strict=True))
        obs, action, logp, reward, terminated, done, next_obs = columns  # [T, N, ...]
        args, inputs = self.args, [self.tensor(self.normalize(x)) for x in (obs, next_obs)]
        value, next_value = (self.critic(x).squeeze(-1).cpu().numpy() for x in inputs)
        found = describe("env/obs", self.tensor(obs)) | describe("env/reward", self.tensor(reward))
        reward = reward / math.sqrt(self.return_moments.var + 1e-8)
        reward = reward.clip(-10, 10) if args.norm_reward else reward
        ended = terminated if args.bootstrap_truncated else done
        delta = reward + args.gamma * (1 - ended) * next_value - value  # (2)
        advantage = discounted_sum(delta, args.gamma * args.gae_lambda * (1 - done))  # (3)
        columns = action, logp, advantage, advantage + value, value
        batch = [column.flatten(0, 1) for column in (inputs[0], *map(self.tensor, columns))]
        found |= describe("ppo/adv", batch[3])
        known = np.logical_or.accumulate(done[::-1])[::-1]  # the end of the episode was seen
        tail = args.gamma * done * (1 - ended) * next_value  # what a time limit cut off
        mc = discounted_sum(reward + tail, args.gamma * (1 - done))[known]  # Monte-Carlo returns
        if known.any() and mc.var() > 1e-8:
            found["ppo/explained_var_mc"] = self.tensor(1 - (mc - value[known]).var() / mc.var())
        return batch, found

    def update_minibatch(self, index, *batch):
        """Descend the loss of the rows index [B] of a batch; return metrics, approx_kl first."""
        obs, action, logp, advantage, returns, value = (column[index] for column in batch)
        log_std, clip = self.log_std, self.args.clip_coef
        noise = (action - self.actor(obs)) / log_std.exp()
        log_ratio = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1) - logp
        ratio = log_ratio.exp()  # (4)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gains = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        new_value = self.critic(obs).squeeze(-1)
        assert new_value.shape == returns.shape == gains.shape == obs.shape[:1]
        errors = (new_value - returns).square()
        if self.args.clip_vloss:
            value_clipped = value + (new_value - value).clamp(-clip, clip)
            errors = torch.maximum(errors, (value_clipped - returns).square())
        policy_loss, value_loss = -gains.mean(), errors.mean() / 2  # (5), (6)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        loss = policy_loss + self.args.vf_coef * value_loss - self.args.ent_coef * entropy  # (7)
        gap = (ratio - 1).abs()
        metrics = {"ppo/approx_kl": (ratio - 1 - log_ratio).mean(), "ppo/ratio_gap": gap.max()}
        metrics |= {"ppo/clipfrac": (gap > clip).float().mean(), "policy/entropy": entropy}
        metrics |= {"losses/policy_loss": policy_loss, "losses/value_loss": value_loss}
        metrics |= {"policy/log_std": log_std.mean(), "charts/learning_rate": self.lr}
        metrics |= {"grad/norm": self.opt.step(loss)}
        return {name: metric.detach() for name, metric in metrics.items()}

    def update(self, rollout, learn):
        """Learn from a rollout; return metrics [M] of each call of learn, and (names, [others])."""
        seen, rows = [], []
        for _, _, _, reward, _, done, _ in rollout:
            seen.append(reward + self.args.gamma * self.running)  # discounted, from the reset on
            self.running = seen[-1] * (1 - done)
        if self.args.norm_reward:
            self.return_moments.update(np.concatenate(seen)[:, None])
        for epoch in range(self.args.update_epochs):
            if epoch == 0 or self.args.recompute_advantages:
                batch, metrics = self.compute_gae(rollout)
            order = torch.randperm(len(batch[0]), device=self.lr.device)
            pass_rows = [learn(index, *batch) for index in order.split(self.args.batch_size)]
            rows += pass_rows
            if torch.stack(pass_rows)[:, 0].mean() > (self.args.target_kl or math.inf):
                break
        self.obs_moments.update(np.concatenate([obs for obs, *_ in rollout]))
        metrics["ppo/ratio_first_mb"] = rows[0][1]
        return rows, ([*metrics], [torch.stack([*metrics.values()])])

    @classmethod
    def load(cls, folder, device="cpu"):
        """Read the agent of a run folder, or exit with 2 if it is none of this script."""
        return load_agent(cls, Args, folder, device)


# --- plumbing -------------------------------------------------------------------------------------
TRAIN, EVALUATE = 0, 1  # streams of seeds
VIDEO = "video (needs rgb_array frames; apt-get install libegl1 libgl1, or pip install pygame)"


def require(condition, name, sentence):
    """Unless the condition holds, say what is wrong with the flag of that name and exit with 2."""
    if not condition:
        print(f"error: --{name.replace('_', '-')} {sentence}", file=sys.stderr)
        raise SystemExit(2)


def attempt(what, call, *inputs, **options):
    """Call what training can do without; if it fails, say so and return False."""
    try:
        call(*inputs, **options)
        return True
    except Exception as error:
        print(f"warning: {what} is off from here on: {error!r:.300}", flush=True)
        return False


def parse_args(cls, argv):
    """Read flags into cls; --config FILE stands for the flags in FILE, put before all others."""
    number = r"(?<![^=])\d+(\.\d+)?e\+?\d+$"  # 1e6, alone or as in --total-timesteps=1e6
    argv = [re.sub(number, lambda match: f"{float(match[0]):.17g}", flag) for flag in argv]
    file, flags = tyro.cli(cls, args=argv).config, []
    try:
        saved = tomllib.loads(Path(file).read_text("utf-8")) if file else {}
    except (OSError, ValueError) as error:
        require(False, "config", f"{file} can not be read ({error}): name a config.toml")
    for name, value in saved.items():
        flag = f"--no-{name}" if value is False else f"--{name}"
        flags += [flag] if isinstance(value, bool) else [flag, str(value)]
    return tyro.cli(cls, args=[*flags, *argv])


def resolve(args, preferred, compile_from, stored, row_bytes, eval_gap=2_000):
    """Return args settled; compile_from, eval_gap: least steps; stored: the flag counting rows."""
    cuda, total, rows = torch.cuda.is_available(), args.total_timesteps, getattr(args, stored)
    require(cuda or args.device != "cuda", "device", "cuda finds no CUDA device: use --device cpu")
    device = args.device if args.device != "auto" else preferred if cuda else "cpu"
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    fits, need = int(0.8 * free / row_bytes), f"needs {rows * row_bytes / 1e9:.1f} GB"
    require(rows <= fits, stored, f"{need}: --{stored.replace('_', '-')} {fits} fits")
    torch.set_flush_denormal(True)  # averages of zero gradients decay to slow, tiny numbers
    torch.set_num_threads(args.threads or min(torch.get_num_threads(), 4))
    gains = total >= compile_from and shutil.which(os.environ.get("CXX", "c++"))
    compile = {"auto": "on" if gains else "off"}.get(args.compile, args.compile)
    every = max(math.ceil(total / 24), eval_gap) if args.eval_every is None else args.eval_every
    threads, horizon = torch.get_num_threads(), 1 / max(1 - args.gamma, 1e-9)
    print(f"device {device}, {threads} threads; effective horizon {horizon:.0f} steps", flush=True)
    return replace(args, device=device, threads=threads, compile=compile, eval_every=every)


def prepare(agent, method, *example):
    """Return the metrics' names, and a method of the agent with these as one tensor [M], fast."""

    def update(*inputs):
        return torch.stack([*getattr(agent, method)(*inputs).values()])

    state = copy.deepcopy(agent.state_dict())
    names = [*getattr(copy.deepcopy(agent), method)(*example)]
    if agent.args.compile == "on":
        print(f"compiling {method}: 20 to 60 s, less if cached, or --compile off", flush=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{Path.home()}/.cache/deep-rl-baselines")
        torch._dynamo.config.load_config({"trace_autograd_ops": True, "recompile_limit": 200})
        fast = torch.compile(update, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
        works = attempt(f"compilation of {method}", fast, *example)
        agent.args.compile, update = ("on", fast) if works else ("off", update)
    agent.load_state_dict(state)
    return names, update


def require_finite(**arrays):
    """Raise FloatingPointError for a NaN or an infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FloatingPointError(f"{name} {array} is not finite")


def make_envs(env_id, num_envs, seed, film=False, vector=gym.vector.SyncVectorEnv):
    """Seed all generators; return environments that do not reset themselves, and low and high."""

    def make(**options):
        env = gym.make(env_id, disable_env_checker=True, **options)
        flat = gym.spaces.flatten_space(env.observation_space) == env.observation_space
        env = env if flat else gym.wrappers.FlattenObservation(env)
        return gym.wrappers.RecordEpisodeStatistics(env, stats_key="finished")

    random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    gym.logger.min_level = gym.logger.ERROR  # no word on Hopper-v4 being out of date
    try:
        envs = vector([make] * num_envs, autoreset_mode="Disabled")
    except (gym.error.Error, ImportError, ValueError) as error:
        require(False, "env_id", f"{env_id} fails: {' '.join(str(error).split())}")
    envs.episodes, space = np.zeros(num_envs, int), envs.single_action_space
    bounded = isinstance(space, gym.spaces.Box) and space.is_bounded()
    require(bounded, "env_id", f"{env_id} needs a Box of actions with finite low and high")
    if film and "rgb_array" in envs.metadata.get("render_modes", []):
        envs.envs[0] = make(render_mode="rgb_array")
        if renderer := getattr(env := envs.envs[0].unwrapped, "mujoco_renderer", None):
            renderer.width = renderer.height = 256
            env.model.vis.quality.shadowsize = env.model.vis.quality.offsamples = 0  # costly
            renderer.camera_id = min(env.model.ncam, 1) - 1  # the free one loses HalfCheetah
    return envs, np.float32(space.low), np.float32(space.high)


def reset(envs, done, *key):
    """Begin episodes where done [N], seeded by key, index and episode; return all obs [N, O]."""
    keys = [done[i] and [*key, i, episode] for i, episode in enumerate(envs.episodes)]
    seeds = [int(np.random.SeedSequence(key).generate_state(1)[0]) if key else None for key in keys]
    envs.episodes += done
    return envs.reset(seed=seeds, options={"reset_mask": done})[0]


def describe(name, values):
    """Return mean, standard deviation, minimum and maximum of a tensor."""
    found = {f"{name}_mean": values.mean(), f"{name}_sd": values.std(correction=0)}
    return found | {f"{name}_min": values.min(), f"{name}_max": values.max()}


def evaluate(agent, envs, key, video=None):
    """Return metrics of a deterministic episode in each environment; film the first into video."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    ends, frames, fps = {}, [], envs.envs[0].metadata.get("render_fps", 30)
    envs.episodes[:] = 0
    obs = reset(envs, np.ones(envs.num_envs, bool), *key)
    while len(ends) < envs.num_envs:
        if video and 0 not in ends and len(frames) < 500:
            video = attempt(VIDEO, lambda: frames.append(envs.envs[0].render())) and video
        obs, _, terminated, truncated, infos = envs.step(agent.act(obs))
        done = terminated | truncated
        for i in np.flatnonzero(done):
            ends.setdefault(i, (infos["finished"]["r"][i], infos["finished"]["l"][i]))
        obs = reset(envs, done, *key) if done.any() else obs
    random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])
    if video and not attempt(VIDEO, imageio.mimwrite, video, frames, fps=fps, macro_block_size=2):
        video.unlink(missing_ok=True)
    returns, lengths = torch.tensor([*ends.values()], dtype=torch.float64).T
    return describe("eval/return", returns) | {"eval/length_mean": lengths.mean()}


def load_agent(cls, args_class, folder, device):
    """Read the agent of a run folder, or exit with 2."""
    try:
        saved = torch.load(Path(folder, "model.pt"), map_location=device, weights_only=True)
        args, bounds = args_class(**saved["args"]), np.float32(saved["bounds"])
        agent = cls(args, saved["obs_dim"], *bounds, device)
        agent.load_state_dict(saved["state"])
    except Exception as error:  # torch.load raises many kinds
        require(False, "evaluate", f"{folder} is no run folder of this script: {error!r:.200}")
    return agent


class Run(AbstractContextManager):
    """The run folder and every logging sink behind one log call; leaving it writes the summary."""

    def __init__(self, args, agent):
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{time.time_ns() // 10**6}"
        self.folder = Path(args.run_dir or f"runs/{re.sub('[/:]', '_', name)}")
        require(not self.folder.exists(), "run_dir", f"{self.folder} is there: name a new folder")
        (self.folder / "videos").mkdir(parents=True)
        self.args, self.agent, self.start = args, agent, time.perf_counter()
        self.global_step = self.updates = self.logged = 0
        self.last, self.spent, self.scores = self.start, Counter(), []
        self.recent = deque(maxlen=100)  # (return, length, truncated) of finished episodes
        config = {k: v for k, v in vars(args).items() if v is not None and k != "run_dir"}
        lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in config.items()]
        (self.folder / "config.toml").write_text("".join(lines), "utf-8")
        shutil.copy(__file__, self.folder / "script.py")
        self.file = open(self.folder / "metrics.jsonl", "w", buffering=1)  # noqa: SIM115
        self.board, self.tracker = SummaryWriter(self.folder / "tb"), None
        if args.track and not attempt("W&B", self.track, config):
            self.tracker = None  # it may have failed halfway
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def track(self, config):
        """Start a W&B run with the config and the source; offline without an account."""
        import wandb

        mode = None if "WANDB_MODE" in os.environ or wandb.login(prompt=False) else "offline"
        names = {"name": self.folder.name, "notes": self.args.notes, "config": config}
        names |= {"settings": wandb.Settings(init_timeout=20, finish_timeout=120)}
        self.tracker, self.media = wandb.init(**names, mode=mode), wandb.Video
        self.tracker.define_metric("*", step_metric="global_step")
        self.tracker.log_code(str(self.folder), include_fn=lambda path: path.endswith("script.py"))

    def log(self, metrics, video=None):
        """Send scalars and a video to every sink, with global_step and seconds since the start."""
        metrics = {name: float(value) for name, value in metrics.items()}
        require_finite(**metrics)
        row = {"global_step": self.global_step, "seconds": time.perf_counter() - self.start}
        self.file.write(json.dumps(row | metrics) + "\n")
        for name, value in metrics.items():
            self.board.add_scalar(name, value, self.global_step)
        if self.tracker:
            row |= {"videos": self.media(str(video))} if video else {}
            self.tracker = attempt("W&B", self.tracker.log, row | metrics) and self.tracker

    def save(self):
        """Write what load_agent reads, free of pickle, to model.pt."""
        bounds, state = [self.agent.low.tolist(), self.agent.high.tolist()], self.agent.state_dict()
        saved = {"args": vars(self.args), "obs_dim": self.agent.obs_dim, "bounds": bounds}
        torch.save(saved | {"state": state}, self.folder / "model.pt")

    def due(self, every):
        """Tell whether a period of that many transitions, or the run, ended in the latest step."""
        ended = self.global_step >= self.args.total_timesteps
        return every > 0 and (ended or self.global_step % every < self.args.num_envs)

    def clock(self, activity):
        """Count the time since the last call as spent on an activity."""
        since, self.last = self.last, time.perf_counter()
        self.spent[activity] += self.last - since

    def episodes(self, infos, truncated):
        """Log the episodes that ended in the latest step."""
        for i in np.flatnonzero(infos["_finished"]) if "_finished" in infos else ():
            score, length = infos["finished"]["r"][i], infos["finished"]["l"][i]
            self.recent.append((score, length, truncated[i]))
            self.log({"charts/episodic_return": score, "charts/episodic_length": length})

    def progress(self, *tables):
        """Log means of an interval's (names, rows), rates, the last 100 episodes; print a line."""
        step, seconds, total = self.global_step, self.spent.total(), self.args.total_timesteps
        metrics = {f"time/{name}": spent / seconds for name, spent in self.spent.items()}
        sps, self.logged = (step - self.logged) / (seconds - self.spent["eval"]), step
        self.spent.clear()
        metrics |= {"charts/SPS": sps, "charts/updates": self.updates}
        metrics |= {f"charts/{k}": v for k, v in vars(self.args).items() if k.endswith("_lr")}
        for names, rows in tables:
            if rows:  # one transfer from the device
                metrics |= dict(zip(names, torch.stack(rows).mean(0).tolist(), strict=True))
                rows.clear()
        if self.recent:
            returns, lengths, cut = torch.tensor(self.recent, dtype=torch.float64).T
            metrics |= describe("train/return", returns) | describe("train/length", lengths)
            metrics |= {"charts/average_return": returns.mean(), "env/time_limit_frac": cut.mean()}
        self.log(metrics)
        eta, seen = (total - step) / sps / 60, metrics.get("charts/average_return", math.nan)
        print(f"step {step}/{total} SPS {sps:.0f} left {eta:.0f} min return {seen:.4g}", flush=True)

    def evaluate(self, envs):
        """Score the agent; film every eighth evaluation and the last."""
        step, number, film = self.global_step, len(self.scores), self.args.capture_video
        film = film and (number % 8 == 0 or step >= self.args.total_timesteps)
        video = self.folder / "videos" / f"step-{step}.mp4"
        found = evaluate(self.agent, envs, (EVALUATE, self.args.seed, number), film and video)
        self.args.capture_video &= video.exists() or not film  # failing twice, OpenGL aborts
        video = video if video.exists() else ""
        self.log(found, video)
        self.scores.append(float(found["eval/return_mean"]))
        print(f"step {step} eval {self.scores[-1]:.4g} {video}", flush=True)
        self.clock("eval")

    def __exit__(self, kind, error, trace):
        """Write model and summary; an interrupt or a failed check ends in one sentence."""
        status = {None: "finished", KeyboardInterrupt: "interrupted"}.get(kind, "failed")
        reason = f"{error!r} at step {self.global_step}" if error else ""
        attempt("model.pt", self.save)
        summary = {"status": status, "reason": reason, "global_step": self.global_step}
        if tail := self.scores[-math.ceil(len(self.scores) / 10) :]:
            summary |= {"eval_last": tail[-1], "eval_last_tenth": sum(tail) / len(tail)}
        seconds = time.perf_counter() - self.start
        summary |= {"updates": self.updates, "seconds": seconds, "SPS": self.global_step / seconds}
        summary |= {"command": sys.argv, "hardware": f"{platform.platform()} {os.cpu_count()} CPUs"}
        summary["versions"] = {d.name: d.version for d in distributions()} | {"python": sys.version}
        self.file.close(), self.board.close()
        (self.folder / "summary.part").write_text(json.dumps(summary, indent=1), "utf-8")
        os.replace(self.folder / "summary.part", self.folder / "summary.json")
        if self.tracker:
            attempt("W&B", self.tracker.finish, int(status != "finished"))
        print(f"{status} {reason}".strip() + f": python tools/report.py {self.folder}", flush=True)
        if kind in (KeyboardInterrupt, FloatingPointError):
            raise SystemExit(130 if status == "interrupted" else 1) from None


# --- main -----------------------------------------------------------------------------------------
def main(args):
    """Train as args say, or evaluate, and return the agent."""
    args.check()
    if args.evaluate:
        agent = Agent.load(args.evaluate)
        envs, *_ = make_envs(agent.args.env_id, args.eval_episodes, args.seed, args.capture_video)
        video = Path(args.evaluate, "videos", f"evaluate-{args.seed}.mp4")
        found = evaluate(agent, envs, (EVALUATE, args.seed, 10**6), args.capture_video and video)
        print({k: round(float(v), 4) for k, v in found.items()}, video if video.exists() else "")
        return agent
    eval_envs, *_ = make_envs(args.env_id, args.eval_episodes, args.seed, args.capture_video)
    vector = gym.vector.AsyncVectorEnv if args.async_envs else gym.vector.SyncVectorEnv
    envs, low, high = make_envs(args.env_id, args.num_envs, args.seed, vector=vector)  # last: seeds
    merge, ends = envs._add_info, {"finished", "r"}  # slow: keep only infos of ended episodes
    envs._add_info = lambda infos, info, i: merge(infos, info, i) if ends & info.keys() else infos
    obs_dim, dim = envs.single_observation_space.shape[0], low.size
    args = resolve(args, "cpu", 100_000, "rollout_steps", 24 * (2 * obs_dim + dim + 6))
    agent = Agent(args, obs_dim, low, high, args.device)
    n, index = args.num_envs, torch.arange(args.batch_size, device=args.device)
    blank = np.zeros((n, obs_dim)), np.zeros((n, dim)), *np.zeros((4, n)), np.zeros((n, obs_dim))
    blank, _ = agent.compute_gae([blank] * (args.rollout_steps // n))
    with Run(args, agent) as run:
        names, learn = prepare(agent, "update_minibatch", index, *blank)
        gc.collect(), gc.freeze()  # searching all that was imported for garbage stalls steps
        run.clock("update")
        if args.eval_every:
            run.evaluate(eval_envs)
        obs, rollout = reset(envs, np.ones(n, bool), TRAIN, args.seed), []  # of T steps
        rows, latest, frozen = [], ([], []), agent.frozen()
        while run.global_step < args.total_timesteps:
            action, logp = agent.explore(obs, frozen)
            run.clock("act")

            next_obs, reward, terminated, truncated, infos = envs.step(agent.scale(action))
            require_finite(obs=obs, action=action, next_obs=next_obs, reward=reward)
            run.global_step += args.num_envs
            done = terminated | truncated
            rollout.append((obs, action, logp, reward, terminated, done, next_obs))
            obs = reset(envs, done, TRAIN, args.seed) if done.any() else next_obs
            run.clock("env")

            if run.global_step % args.rollout_steps == 0:
                before = (run.global_step - args.rollout_steps) / args.total_timesteps
                agent.lr.fill_(args.learning_rate * (1 - args.anneal * before))
                found, latest = agent.update(rollout, learn)
                frozen = agent.frozen()
                rollout.clear()
                rows += found if args.log_every else []
                run.updates += len(found)
            run.clock("update")

            run.episodes(infos, truncated)
            if run.due(args.log_every):
                run.progress((names, rows), latest)
            run.clock("log")
            if run.due(args.eval_every):
                run.evaluate(eval_envs)
    return agent


if __name__ == "__main__":
    main(parse_args(Args, sys.argv[1:]))
