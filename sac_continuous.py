# --- method ---------------------------------------------------------------------------------------
"""Soft Actor-Critic (SAC, arXiv 1801.01290) with a learned temperature (arXiv 1812.05905).

Every environment step stores one transition (obs, action, reward, terminated, next_obs), and one
update follows, on a batch drawn uniformly from all that is stored. Actions are in [-1, 1] here:

(1) action = tanh(u), u = mean + exp(log_std) * noise, noise ~ N(0, 1), (mean, log_std) = actor(obs)
    logp = sum over dimensions of log N(u; mean, exp(log_std)) - log(1 - tanh(u)^2)
(2) td_target = reward + gamma * (1 - terminated)
                * (min over both of critic_target(next_obs, next_action) - alpha * next_logp)
(3) critic_loss = sum over both critics of mean((critic(obs, action) - td_target)^2)
(4) actor_loss = mean(alpha * logp - min over both of critic(obs, new_action))
(5) alpha_loss = -mean(log_alpha * (logp + target_entropy)), alpha = exp(log_alpha)
(6) critic_target = critic_target + tau * (critic - critic_target)

Differs from the paper: critic_lr 1e-3, alpha starts at 0.1; no factor 1/2 in (3), log_alpha in (5);
random actions at first; episodes cut by a time limit bootstrap; (4) and (5) share one logp.

python sac_continuous.py --env-id Hopper-v4
python sac_continuous.py --env-id InvertedPendulum-v4 --total-timesteps 5000 --learning-starts 1000
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
    """Train Soft Actor-Critic; --evaluate scores and films a trained agent instead."""

    # task
    env_id: str = "Hopper-v4"  # Gymnasium id; my_module:MyEnv-v0 imports my_module
    total_timesteps: int = 1_000_000  # environment transitions, over all environments
    num_envs: int = 1  # environments stepped together
    seed: int = 1  # drives networks, environments, exploration and batches
    # algorithm
    buffer_size: int = 1_000_000  # transitions kept for replay
    learning_starts: int = 5_000  # transitions of exploration before the updates
    batch_size: int = 256  # transitions per update
    utd: float = 1.0  # updates per environment transition
    hidden_size: int = 256  # units in each fully connected hidden layer
    log_std_min: float = -20.0  # (1) log_std is clamped to this minimum
    log_std_max: float = 2.0  # (1) and to this maximum
    gamma: float = 0.99  # (2) discount per step
    critic_lr: float = 1e-3  # (3) Adam's step size
    actor_lr: float = 3e-4  # (4) Adam's step size
    alpha: float = 0.1  # (5) initial temperature; with --no-autotune it stays
    autotune: bool = True  # (5) learn the temperature
    alpha_lr: float = 3e-4  # (5) Adam's step size
    target_entropy: float | None = None  # (5) in nats, of the action in [-1, 1]; default -dim(A)
    tau: float = 0.005  # (6) target smoothing
    # run
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA if present, for PPO the CPU
    threads: int | None = None  # CPU threads; None: all cores, at most 4
    compile: Literal["auto", "on", "off"] = "auto"  # auto: if the run is long enough to gain
    log_every: int = 1_000  # transitions between two rows of metrics; 0: none
    eval_every: int | None = None  # transitions between evaluations; default up to 25; 0: none
    eval_episodes: int = 10  # episodes per evaluation, with deterministic actions
    capture_video: bool = True  # film an episode of every eighth evaluation and of the last
    track: bool = False  # send metrics, source and videos to Weights & Biases
    notes: str = ""  # the hypothesis, kept beside the run
    run_dir: str | None = None  # folder of this run; default runs/<env>__<script>__<seed>__<id>
    config: str | None = None  # start from the config.toml of a run; flags override it
    evaluate: str | None = None  # run folder to score and film instead of training

    def check(self):
        """Refuse values that can not work."""
        positive = "total_timesteps num_envs buffer_size batch_size hidden_size eval_episodes "
        for name in (positive + "utd alpha critic_lr actor_lr alpha_lr").split():
            require(0 < getattr(self, name) < math.inf, name, "must be positive")
        for name in ["gamma", "tau"]:
            require(0 <= getattr(self, name) <= 1, name, "must be between 0 and 1")
        for name in ["seed", "log_every", "eval_every", "threads"]:
            require(0 <= (getattr(self, name) or 0) < 2**63, name, "must not be negative or huge")
        require(math.isfinite(self.target_entropy or 0), "target_entropy", "must be finite")
        ordered = -math.inf < self.log_std_min < self.log_std_max < math.inf
        require(ordered, "log_std_min", "must be finite and below --log-std-max")
        starts = self.learning_starts
        require(self.batch_size <= starts, "batch_size", "must be at most --learning-starts")
        require(self.total_timesteps > starts, "total_timesteps", "must be above --learning-starts")


# --- networks -------------------------------------------------------------------------------------
def mlp(inputs, hidden_size, outputs, layer=nn.Linear):
    """Stack two hidden ReLU layers and a linear output."""
    first, second = layer(inputs, hidden_size), layer(hidden_size, hidden_size)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), layer(hidden_size, outputs))


class TwinLinear(nn.Module):
    """Two independent linear layers in one batched matrix product."""

    def __init__(self, inputs, outputs):
        super().__init__()
        twins = [nn.Linear(inputs, outputs) for _ in range(2)]
        self.weight = nn.Parameter(torch.stack([twin.weight.T for twin in twins]))  # [2, I, O]
        self.bias = nn.Parameter(torch.stack([twin.bias[None] for twin in twins]))  # [2, 1, O]

    def forward(self, x):
        """Map x [T, B, I] to [T, B, O] by the first T layers."""
        return x @ self.weight[: len(x)] + self.bias[: len(x)]


class Critic(nn.Module):
    """Two independent action-value networks, evaluated together."""

    def __init__(self, obs_dim, action_dim, hidden_size):
        super().__init__()
        self.net = mlp(obs_dim + action_dim, hidden_size, 1, TwinLinear)

    def forward(self, obs, action, twins=2):
        """Map obs [B, O] and action [B, A] in [-1, 1] to values [T, B] of the first T critics."""
        return self.net(torch.cat([obs, action], -1).expand(twins, -1, -1)).squeeze(-1)


class Actor(nn.Module):
    """Gaussian policy, to be squashed by tanh."""

    def __init__(self, obs_dim, action_dim, hidden_size, log_std_min, log_std_max):
        super().__init__()
        self.net = mlp(obs_dim, hidden_size, 2 * action_dim)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max

    def forward(self, obs):
        """Map obs [B, O] to mean and log_std before squashing, each [B, A]."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)


def squash(mean, log_std, noise):
    """Return actions [B, A] in [-1, 1] and their log-probability [B] for noise ~ N(0, 1) [B, A]."""
    u = mean + log_std.exp() * noise  # (1)
    log_normal = -0.5 * noise.pow(2) - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
    return torch.tanh(u), (log_normal - log_slope).sum(-1)


# --- experience -----------------------------------------------------------------------------------
class ReplayBuffer:
    """Ring of transitions, one packed row each: obs, action, reward, terminated, next_obs."""

    def __init__(self, capacity, obs_dim, action_dim, device):
        self.widths = [obs_dim, action_dim, 1, 1, obs_dim]
        self.rows = torch.empty(capacity, sum(self.widths), device=device)
        self.added = 0  # rows ever written

    def add(self, obs, action, reward, terminated, next_obs):
        """Copy N transitions in, arrays [N, O], [N, A], [N], [N], [N, O]; the oldest fall out."""
        columns = [obs, action, reward[:, None], terminated[:, None], next_obs]
        rows = torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32, casting="unsafe"))
        for row in rows.to(self.rows.device):
            self.rows[self.added % len(self.rows)] = row
            self.added += 1

    def sample(self, batch_size):
        """Draw B transitions uniformly, with replacement: [B, O], [B, A], [B], [B], [B, O]."""
        filled = min(self.added, len(self.rows))
        index = torch.randint(filled, (batch_size,), device=self.rows.device)
        return self.unpack(self.rows.index_select(0, index))

    def unpack(self, rows):
        """Split packed rows [B, D] into the five columns of a batch."""
        obs, action, reward, terminated, next_obs = rows.split(self.widths, 1)
        return obs, action, reward.squeeze(1), terminated.squeeze(1), next_obs


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
    """SAC: networks, temperature, optimizers and the update."""

    def __init__(self, args, obs_dim, low, high, device="cpu"):
        super().__init__()
        self.args, self.obs_dim, self.low, self.high, dim = args, obs_dim, low, high, low.size
        self.actor = Actor(obs_dim, dim, args.hidden_size, args.log_std_min, args.log_std_max)
        self.critic = Critic(obs_dim, dim, args.hidden_size)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor([math.log(args.alpha)]))
        self.to(device)
        self.critic_opt = Adam(self.critic.parameters(), args.critic_lr)
        self.actor_opt = Adam(self.actor.parameters(), args.actor_lr)
        self.alpha_opt = Adam([self.log_alpha], args.alpha_lr)
        self.target_entropy = -dim if args.target_entropy is None else args.target_entropy

    def tensor(self, obs):
        """Put observations on the agent's device as float32."""
        return torch.as_tensor(np.float32(obs), device=next(self.parameters()).device)

    def scale(self, action):
        """Map actions [N, A] in [-1, 1] to the environment's units [N, *action shape]."""
        units = (self.high - self.low) / 2 * (1 + np.float32(action).reshape(-1, *self.low.shape))
        return np.minimum(self.low + units, self.high)

    @torch.inference_mode()
    def explore(self, obs):
        """Sample actions [N, A] in [-1, 1] for obs [N, O], to learn from."""
        mean, log_std = (out.cpu().numpy() for out in self.actor(self.tensor(obs)))
        return np.tanh(mean + np.exp(log_std) * np.random.standard_normal(mean.shape))  # (1)

    @torch.inference_mode()
    def act(self, obs, deterministic=True):
        """Choose actions [N, *action shape] in the environment's units for obs [N, O]."""
        if not deterministic:
            return self.scale(self.explore(obs))
        return self.scale(torch.tanh(self.actor(self.tensor(obs))[0]).cpu().numpy())

    @torch.inference_mode()
    def value(self, obs):
        """Estimate the return [N] from obs [N, O]: min over critics of Q(s, pi(s)), no entropy."""
        obs = self.tensor(obs)
        return self.critic(obs, torch.tanh(self.actor(obs)[0])).min(0).values.cpu().numpy()

    def update(self, batch, noise):
        """Step critics, actor, temperature, target; noise ~ N(0, 1) [2, B, A]; return metrics."""
        alpha = self.log_alpha.detach().exp()  # [1]
        metrics = self.update_critic(*batch, alpha, noise[0])
        metrics |= self.update_actor(batch[0], alpha, noise[1])
        with torch.no_grad():
            pairs = zip(self.critic_target.parameters(), self.critic.parameters(), strict=True)
            for target, parameter in pairs:
                target.lerp_(parameter, self.args.tau)  # (6)
        return metrics

    def update_critic(self, obs, action, reward, terminated, next_obs, alpha, noise):
        """Fit both critics to the bootstrapped target; noise [B, A]."""
        with torch.no_grad():
            next_action, next_logp = squash(*self.actor(next_obs), noise)  # (1)
            next_q = self.critic_target(next_obs, next_action).min(0).values - alpha * next_logp
            td_target = reward + self.args.gamma * (1 - terminated) * next_q  # (2)
        q = self.critic(obs, action)
        assert q.shape == (2, *reward.shape) and td_target.shape == reward.shape
        losses = (q - td_target).square().mean(1)  # [2]
        grad_norm = self.critic_opt.step(losses.sum())  # (3)
        q, losses = q.detach(), losses.detach()
        names = [f"losses/qf{i}_{what}" for what in ("loss", "values") for i in (1, 2)]
        metrics = dict(zip(names, [*losses, *q.mean(1)], strict=True))
        metrics |= describe("env/obs", obs) | describe("env/reward", reward)
        metrics |= describe("q/value", q) | describe("q/target", td_target)
        metrics["q/td_rel"] = losses.mean().sqrt() / (metrics["q/target_sd"] + 1e-8)
        metrics["q/twin_gap"] = (q[0] - q[1]).abs().mean() / (metrics["q/value_sd"] + 1e-8)
        return metrics | {"losses/qf_loss": losses.mean(), "grad/norm_critic": grad_norm}

    def update_actor(self, obs, alpha, noise):
        """Improve the policy against the critics, then set the temperature; noise [B, A]."""
        mean, log_std = self.actor(obs)
        action, logp = squash(mean, log_std, noise)  # (1)
        q = self.critic(obs, action).min(0).values
        assert q.shape == logp.shape == obs.shape[:1]
        loss = (alpha * logp - q).mean()
        grad_norm = self.actor_opt.step(loss)  # (4)
        entropy_gap = -logp.detach().mean() - self.target_entropy
        alpha_loss = self.log_alpha.squeeze() * entropy_gap
        if self.args.autotune:
            self.alpha_opt.step(alpha_loss)  # (5)
        metrics = {"losses/actor_loss": loss.detach(), "losses/alpha_loss": alpha_loss.detach()}
        metrics |= {"losses/alpha": alpha.squeeze(), "grad/norm_actor": grad_norm}
        metrics |= {"policy/entropy": -logp.detach().mean(), "policy/entropy_gap": entropy_gap}
        metrics |= {"policy/saturation": (action.detach().abs() > 0.99).float().mean()}
        return metrics | {"policy/log_std": log_std.detach().mean()}

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
    envs, low, high = make_envs(args.env_id, args.num_envs, args.seed)  # last: what follows draws
    obs_dim, dim = envs.single_observation_space.shape[0], low.size
    args = resolve(args, "cuda", 10_000, "buffer_size", 4 * (2 * obs_dim + dim + 2))
    agent = Agent(args, obs_dim, low, high, args.device)
    buffer = ReplayBuffer(args.buffer_size, obs_dim, dim, args.device)
    noise = torch.zeros(2, args.batch_size, dim, device=args.device)
    blank = buffer.unpack(noise.new_zeros(args.batch_size, sum(buffer.widths)))
    with Run(args, agent) as run:
        names, update = prepare(agent, "update", blank, noise)
        gc.collect(), gc.freeze()  # searching all that was imported for garbage stalls steps
        run.clock("update")
        if args.eval_every:
            run.evaluate(eval_envs)
        obs, rows = reset(envs, np.ones(args.num_envs, bool), TRAIN, args.seed), []
        while run.global_step < args.total_timesteps:
            warm = run.global_step >= args.learning_starts
            action = agent.explore(obs) if warm else np.random.uniform(-1, 1, (args.num_envs, dim))
            run.clock("act")

            next_obs, reward, terminated, truncated, infos = envs.step(agent.scale(action))
            require_finite(obs=obs, action=action, next_obs=next_obs, reward=reward)
            run.global_step += args.num_envs
            buffer.add(obs, action, reward, terminated, next_obs)
            done = terminated | truncated
            obs = reset(envs, done, TRAIN, args.seed) if done.any() else next_obs
            run.clock("env")

            while run.updates < args.utd * (run.global_step - args.learning_starts):
                batch = buffer.sample(args.batch_size)
                metrics = update(batch, noise.normal_())  # [M]
                rows += [metrics] if args.log_every else []
                run.updates += 1
            run.clock("update")

            run.episodes(infos, truncated)
            if run.due(args.log_every):
                run.progress((names, rows))
            run.clock("log")
            if run.due(args.eval_every):
                run.evaluate(eval_envs)
    return agent


if __name__ == "__main__":
    main(parse_args(Args, sys.argv[1:]))
