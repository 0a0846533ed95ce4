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

Differs from the paper: no factor 1/2 in (3) and log_alpha in (5), nearly indifferent under Adam;
random actions at first; episodes cut by a time limit bootstrap; (4) and (5) share one logp.

python sac_continuous.py --env-id Hopper-v4
python sac_continuous.py --env-id InvertedPendulum-v4 --total-timesteps 5000 --learning-starts 1000
"""

# --- imports --------------------------------------------------------------------------------------
import copy
import difflib
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, deque
from ctypes.util import find_library
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import psutil
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from moviepy import ImageSequenceClip
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


# --- arguments ------------------------------------------------------------------------------------
@dataclass
class Args:
    """Train Soft Actor-Critic; --evaluate scores and films a trained agent instead."""

    # task
    env_id: str = "Hopper-v4"  # Gymnasium id; my_module:MyEnv-v0 imports my_module first
    total_timesteps: int = 1_000_000  # environment transitions, over all environments
    num_envs: int = 1  # environments stepped together
    seed: int = 1  # drives networks, environments, exploration and batches
    # algorithm
    buffer_size: int = 1_000_000  # transitions kept for replay
    learning_starts: int = 5_000  # transitions with uniformly random actions before the updates
    batch_size: int = 256  # transitions per update
    utd: float = 1.0  # updates per environment transition
    hidden_size: int = 256  # units in each of the two hidden layers
    log_std_min: float = -20.0  # (1) log_std is clamped to this minimum
    log_std_max: float = 2.0  # (1) and to this maximum
    gamma: float = 0.99  # (2) discount per step
    critic_lr: float = 3e-4  # (3) Adam's step size
    actor_lr: float = 3e-4  # (4) Adam's step size
    alpha: float = 1.0  # (5) initial temperature; with --no-autotune it stays
    autotune: bool = True  # (5) learn the temperature
    alpha_lr: float = 3e-4  # (5) Adam's step size
    target_entropy: float | None = None  # (5) in nats, of the action in [-1, 1]; default -dim(A)
    tau: float = 0.005  # (6) target smoothing
    adam_beta1: float = 0.9  # decay of Adam's mean of gradients
    adam_beta2: float = 0.999  # decay of Adam's mean of squared gradients
    adam_eps: float = 1e-8  # added to Adam's denominator
    # run
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA if present
    threads: int | None = None  # CPU threads; default: all cores, at most 4
    compile: Literal["auto", "on", "off"] = "auto"  # auto: if the run is long enough to gain
    log_every: int = 1_000  # transitions between two rows of metrics; 0: none
    eval_every: int | None = None  # transitions between evaluations; default up to 25; 0: none
    eval_episodes: int = 10  # episodes per evaluation, with deterministic actions
    capture_video: bool = True  # film the evaluations at the start, 1/3, 2/3 and the end
    track: bool = False  # send metrics, source and videos to Weights & Biases
    wandb_project: str = "deep-rl-baselines"  # Weights & Biases project
    notes: str = ""  # the hypothesis, kept beside the run
    run_dir: str | None = None  # folder of this run; default runs/<env>__<script>__<seed>__<id>
    config: str | None = None  # start from the config.toml of a run; flags override it
    evaluate: str | None = None  # run folder to score and film instead of training

    def check(self):
        """Refuse values that can not work."""
        positive = "total_timesteps num_envs buffer_size batch_size hidden_size eval_episodes "
        for name in (positive + "utd alpha critic_lr actor_lr alpha_lr adam_eps").split():
            require(0 < getattr(self, name) < math.inf, name, "must be positive")
        for name in ["gamma", "tau"]:
            require(0 <= getattr(self, name) <= 1, name, "must be between 0 and 1")
        for name in ["adam_beta1", "adam_beta2"]:
            require(0 < getattr(self, name) < 1, name, "must be above 0 and below 1")
        for name in ["seed", "log_every", "eval_every", "threads"]:
            require(0 <= (getattr(self, name) or 0) < 2**63, name, "must not be negative or huge")
        for name in ["log_std_min", "log_std_max", "target_entropy"]:
            require(math.isfinite(getattr(self, name) or 0), name, "must be finite")
        require(self.log_std_min < self.log_std_max, "log_std_min", "must be below --log-std-max")
        fills = f"must be at most --learning-starts, {self.learning_starts}, which fills a batch"
        require(self.batch_size <= self.learning_starts, "batch_size", fills)
        learns = f"must be above --learning-starts, {self.learning_starts}, or nothing is learned"
        require(self.total_timesteps > self.learning_starts, "total_timesteps", learns)


# --- networks -------------------------------------------------------------------------------------
def mlp(inputs, hidden_size, outputs):
    """Stack two hidden ReLU layers and a linear output."""
    first, second = nn.Linear(inputs, hidden_size), nn.Linear(hidden_size, hidden_size)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(hidden_size, outputs))


class Critic(nn.Module):
    """Two independent action-value networks, evaluated together."""

    def __init__(self, obs_dim, action_dim, hidden_size):
        super().__init__()
        self.q1 = mlp(obs_dim + action_dim, hidden_size, 1)
        self.q2 = mlp(obs_dim + action_dim, hidden_size, 1)

    def forward(self, obs, action):
        """Map obs [B, O] and action [B, A] in [-1, 1] to both values [2, B]."""
        x = torch.cat([obs, action], -1)
        return torch.stack([self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)])


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

    def __len__(self):
        return min(self.added, len(self.rows))

    def add(self, obs, action, reward, terminated, next_obs):
        """Copy N transitions in, arrays [N, O], [N, A], [N], [N], [N, O]; the oldest fall out."""
        columns = [obs, action, reward[:, None], terminated[:, None], next_obs]
        rows = torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32, casting="unsafe"))
        index = torch.arange(self.added, self.added + len(rows)) % len(self.rows)
        self.rows[index.to(self.rows.device)] = rows.to(self.rows.device)
        self.added += len(rows)

    def sample(self, batch_size):
        """Draw B transitions uniformly, with replacement: [B, O], [B, A], [B], [B], [B, O]."""
        self.drawn = torch.randint(len(self), (batch_size,), device=self.rows.device)
        return self.unpack(self.rows.index_select(0, self.drawn))

    def unpack(self, rows):
        """Split packed rows [B, D] into the five columns of a batch."""
        obs, action, reward, terminated, next_obs = rows.split(self.widths, 1)
        return obs, action, reward.squeeze(1), terminated.squeeze(1), next_obs


# --- agent ----------------------------------------------------------------------------------------
def flatten(parameters):
    """Move parameters into one new vector, of which they become views, and return it."""
    vector = nn.utils.parameters_to_vector(parameters).detach().clone()
    nn.utils.vector_to_parameters(vector, parameters)
    assert parameters[0].data_ptr() == vector.data_ptr()
    return vector


class Adam(nn.Module):
    """Adam (arXiv 1412.6980) on one vector, of which the parameters become views."""

    def __init__(self, parameters, lr, beta1, beta2, eps):
        super().__init__()
        self.leaves, self.lr = [*parameters], lr
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.vector = flatten(self.leaves)
        self.register_buffer("mean", torch.zeros_like(self.vector))
        self.register_buffer("square", torch.zeros_like(self.vector))
        self.register_buffer("steps", self.vector.new_zeros(()))

    def step(self, loss):
        """Descend the loss in place and return the norm of its gradient."""
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.leaves)])
        with torch.no_grad():
            self.steps.add_(1)
            self.mean.lerp_(gradient, 1 - self.beta1)
            self.square.lerp_(gradient.square(), 1 - self.beta2)
            mean_seen = -torch.expm1(self.steps * math.log(self.beta1))  # 1 - beta1^steps
            square_seen = -torch.expm1(self.steps * math.log(self.beta2))
            scale = (self.square / square_seen).sqrt() + self.eps
            self.vector.sub_(self.lr / mean_seen * self.mean / scale)
        return gradient.norm()

    def tied(self):
        """Tell whether the parameters are views of the vector: deepcopy and .to() break that."""
        home = self.vector.untyped_storage().data_ptr()
        return all(leaf.untyped_storage().data_ptr() == home for leaf in self.leaves)


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
        adam = (args.adam_beta1, args.adam_beta2, args.adam_eps)
        self.critic_opt = Adam(self.critic.parameters(), args.critic_lr, *adam)
        self.actor_opt = Adam(self.actor.parameters(), args.actor_lr, *adam)
        self.alpha_opt = Adam([self.log_alpha], args.alpha_lr, *adam)
        self.target_vector = flatten([*self.critic_target.parameters()])
        self.target_entropy = -dim if args.target_entropy is None else args.target_entropy

    def tensor(self, obs):
        """Put observations on the agent's device as float32."""
        return torch.as_tensor(obs, dtype=torch.float32, device=self.log_alpha.device)

    def scale(self, action):
        """Map actions [N, A] in [-1, 1] to the environment's units [N, *action shape]."""
        half, middle = (self.high - self.low) / 2, (self.high + self.low) / 2
        return np.clip(middle + half * action.reshape(-1, *half.shape), self.low, self.high)

    @torch.no_grad()
    def explore(self, obs):
        """Sample actions [N, A] in [-1, 1] for obs [N, O], to learn from."""
        mean, log_std = self.actor(self.tensor(obs))
        return torch.tanh(mean + log_std.exp() * torch.randn_like(mean)).cpu().numpy()

    @torch.no_grad()
    def act(self, obs, deterministic=True):
        """Choose actions [N, *action shape] in the environment's units for obs [N, O]."""
        if not deterministic:
            return self.scale(self.explore(obs))
        return self.scale(torch.tanh(self.actor(self.tensor(obs))[0]).cpu().numpy())

    @torch.no_grad()
    def value(self, obs):
        """Estimate the return [N] from obs [N, O]: min over critics of Q(s, pi(s)), no entropy."""
        obs = self.tensor(obs)
        return self.critic(obs, torch.tanh(self.actor(obs)[0])).min(0).values.cpu().numpy()

    def update(self, batch, noise):
        """Step critics, actor, temperature, target; noise ~ N(0, 1) [2, B, A]; return metrics."""
        alpha = self.log_alpha.detach().exp()  # [1]
        metrics = self.update_critic(*batch, alpha, noise[0])
        metrics |= self.update_actor(batch[0], alpha, noise[1])
        self.target_vector.lerp_(self.critic_opt.vector, self.args.tau)  # (6)
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
        return critic_metrics(q.detach(), td_target, losses.detach(), grad_norm)

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
        saturated = (action.detach().abs() > 0.99).float().mean(0)  # [A]
        metrics |= {"policy/saturation": saturated.mean(), "policy/saturation_max": saturated.max()}
        return metrics | {"policy/log_std": log_std.detach().mean()}

    @classmethod
    def load(cls, folder, device="cpu"):
        """Read the agent of a run folder; raises OSError, or ValueError for another's model."""
        return load_agent(cls, Args, folder, device)


# --- plumbing -------------------------------------------------------------------------------------
TRAIN, EVALUATE = 0, 1  # streams of seeds
MAX_EVAL_STEPS, MAX_FRAMES = 27_000, 500  # an evaluation episode and a video end here at the latest
STATISTICS = "mean", "std", "min", "max"
VIDEO = "video (try apt-get install libegl1 libgl1; for Gymnasium's classics pip install pygame)"


def say(text):
    """Print one line, above the progress bar if there is one."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(text, flush=True)


def require(condition, name, sentence):
    """Unless the condition holds, say what is wrong with the flag of that name and exit with 2."""
    if not condition:
        print(f"error: --{name.replace('_', '-')} {sentence}", file=sys.stderr)
        raise SystemExit(2)


def attempt(what, call, *inputs):
    """Call what training can do without; if it fails, say so and return False."""
    try:
        call(*inputs)
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        say(f"warning: {what} is off from here on: {type(error).__name__} {' '.join(reason)}")
        return False
    return True


def parse_args(cls, argv=None):
    """Read flags into cls; --config FILE stands for the flags in FILE, put before all others."""
    argv = sys.argv[1:] if argv is None else argv
    file = tyro.cli(cls, args=whole(argv)).config
    try:
        saved = tomllib.loads(Path(file).read_text("utf-8")) if file else {}
    except (OSError, ValueError) as error:
        require(False, "config", f"{file} can not be read ({error}): name a config.toml")
    saved.pop("run_dir", None)  # a repeated run has its own
    names = [field.name for field in fields(cls)]
    flags = []
    for name, value in saved.items():
        near = difflib.get_close_matches(name, names, 1, 0)[0]
        require(name in names, "config", f"{file} has no flag for {name}: did you mean {near}?")
        fits = isinstance(getattr(cls, name, None), bool) == isinstance(value, bool)
        require(fits, "config", f"{file}: {name} must be a value of the same kind as its default")
        flag = f"--no-{name}" if value is False else f"--{name}"
        flags.append(flag if isinstance(value, bool) else f"{flag}={value}")
    return tyro.cli(cls, args=whole([*flags, *argv]))


def whole(flags):
    """Write 1e6, alone or as in --total-timesteps=1e6, as 1000000, which an int field takes."""
    number = r"(?<![^=])\d+(\.\d+)?e\+?\d+$"
    return [re.sub(number, lambda match: f"{float(match[0]):.17g}", flag) for flag in flags]


def resolve(args, limit, preferred, updates, row_bytes):
    """Return args with what they leave open settled for the whole run.

    limit is the length of an episode, preferred the device of auto, if it is there; updates are
    those planned, row_bytes the size of a stored transition. Refuses what the machine lacks.
    """
    cuda = torch.cuda.is_available()
    require(cuda or args.device != "cuda", "device", "cuda finds no CUDA device: use --device cpu")
    device = args.device if args.device != "auto" else preferred if cuda else "cpu"
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    require(args.buffer_size >= args.num_envs, "buffer_size", "must be at least --num-envs")
    need, fits = args.buffer_size * row_bytes, int(0.8 * free / row_bytes)
    sentence = f"{args.buffer_size} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    require(need <= free, "buffer_size", f"{sentence}: --buffer-size {fits} fits")
    used = args.run_dir and Path(args.run_dir).exists()
    require(not used, "run_dir", f"{args.run_dir} is there already: name a new folder")
    torch.set_num_threads(args.threads or min(torch.get_num_threads(), 4))
    name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{time.strftime('%y%m%d-%H%M%S')}"
    gains = updates >= 10_000 and shutil.which(os.environ.get("CXX", "c++"))
    every = max(math.ceil(args.total_timesteps / 24), 2000)
    chosen = f"as --device {args.device} says, with CUDA {'present' if cuda else 'absent'}"
    say(f"device {device}, {chosen}; {torch.get_num_threads()} threads")
    say(f"horizon 1/(1-gamma) is {1 / max(1 - args.gamma, 1e-9):.0f} steps, episode limit {limit}")
    compile = {"auto": "on" if gains else "off"}.get(args.compile, args.compile)
    return replace(
        args,
        device=device,
        compile=compile,
        threads=torch.get_num_threads(),
        eval_every=every if args.eval_every is None else args.eval_every,
        run_dir=args.run_dir or f"runs/{re.sub('[/:]', '_', name)}-{time.time_ns() % 10**6}",
    )


def compiled(agent, *example):
    """Return agent.update, compiled if args say so and a trial, which changes nothing, works."""
    if agent.args.compile == "off":
        return agent.update
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deep-rl-baselines"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    say("compiling the update takes about 20 s, less if cached; --compile off does without")
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    update = torch.compile(agent.update, fullgraph=True, dynamic=False)
    state = {name: value.clone() for name, value in agent.state_dict().items()}
    works = attempt("compilation", update, *example)
    agent.load_state_dict(state)
    return update if works else agent.update


def derive_seed(*keys):
    """Mix whole numbers (stream, seed, ...) into one 32-bit seed."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def seed_everything(seed):
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def make_env(env_id, **kwargs):
    """Make one environment with flat observations; refuse what can not be made."""
    sys.path += {os.getcwd()} - {*sys.path}  # for my_module:MyEnv-v0
    gym.logger.min_level = gym.logger.ERROR  # no word on Hopper-v4 being out of date
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except (gym.error.Error, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0].split(" Did you mean")[0].rstrip(".")
        near = " or ".join(difflib.get_close_matches(env_id, {*gym.registry} - {env_id}, 3, 0))
        module = ", or is its module in another folder" if ":" in env_id else ""
        require(False, "env_id", f"{env_id} fails ({reason}): did you mean {near}{module}?")
    space = env.observation_space
    flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    return env if flat else gym.wrappers.FlattenObservation(env)


def require_finite(**arrays):
    """Raise FloatingPointError for a NaN or an infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0].tolist()
            raise FloatingPointError(f"{name} {place or ''} is not finite")


class Envs:
    """Environments stepped together, with true next observations and a seed for every episode."""

    def __init__(self, env_id, num_envs, seed):
        make = [lambda: make_env(env_id)] * num_envs
        self.envs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)
        env, self.seed = self.envs.envs[0], seed
        space = env.action_space
        require(isinstance(space, gym.spaces.Box), "env_id", f"{env_id} needs a Box of actions")
        if not np.isfinite([space.low, space.high]).all():  # ClipAction hides the true bounds
            space = env.unwrapped.action_space
        self.low, self.high = np.float32(space.low), np.float32(space.high)
        bounded = np.isfinite([self.low, self.high]).all()
        require(bounded, "env_id", f"{env_id} has unbounded actions: wrap it in RescaleAction")
        self.obs_dim, self.limit = env.observation_space.shape[0], env.spec.max_episode_steps
        self.episodes = np.zeros(num_envs, int)  # begun, per environment
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, int)
        self.recent = deque(maxlen=100)  # (return, length, truncated) of finished episodes
        self.peak = 1e-9  # the largest |reward| so far

    def reset(self, done):
        """Begin a new episode where done [N]; return the observations [N, O] of all."""
        seeds = [derive_seed(TRAIN, self.seed, i, int(k)) for i, k in enumerate(self.episodes)]
        obs, _ = self.envs.reset(seed=seeds, options={"reset_mask": done.copy()})
        self.episodes += done
        self.returns[done], self.lengths[done] = 0, 0
        require_finite(observation=obs)
        return obs

    def step(self, action):
        """Step with actions in the environment's units.

        Returns next_obs [N, O], reward, terminated, truncated [N] and the metrics of each episode
        that ended. Raises FloatingPointError for a NaN or an infinity.
        """
        next_obs, reward, terminated, truncated, _ = self.envs.step(action)
        require_finite(action=action, observation=next_obs, reward=reward)
        self.returns += reward
        self.lengths += 1
        self.peak = max(self.peak, np.abs(reward).max())
        ended = np.flatnonzero(terminated | truncated)
        self.recent += [(self.returns[i], self.lengths[i], truncated[i]) for i in ended]
        names = "charts/episodic_return", "charts/episodic_length"
        episodes = [{names[0]: self.returns[i], names[1]: self.lengths[i]} for i in ended]
        return next_obs, reward, terminated, truncated, episodes

    def metrics(self):
        """Describe the last 100 episodes."""
        if not self.recent:
            return {}
        returns, lengths, truncated = np.array(self.recent, float).T
        found = {"charts/average_return": returns.mean(), "env/time_limit_frac": truncated.mean()}
        for name, values in {"train/return": returns, "train/length": lengths}.items():
            found |= {f"{name}_{f}": getattr(values, f)() for f in STATISTICS}
        return found


def critic_metrics(q, td_target, losses, grad_norm):
    """Describe twin values q [2, B], their targets [B] and their losses [2]."""
    spread = td_target.std(correction=0).clamp_min(1e-6)
    metrics = {"losses/qf_loss": losses.mean(), "grad/norm_critic": grad_norm}
    for i in (0, 1):
        metrics |= {f"losses/qf{i + 1}_values": q[i].mean(), f"losses/qf{i + 1}_loss": losses[i]}
    metrics |= {"q/mean": q.mean(), "q/abs_max": q.abs().max()}
    metrics |= {"q/target_mean": td_target.mean(), "q/target_sd": spread}
    metrics["q/td_rel"] = losses.mean().sqrt() / spread
    gap = (q[0] - q[1]).abs().mean()
    return metrics | {"q/twin_gap": gap / q.std(correction=0).clamp_min(1e-6)}


def replay_metrics(buffer, batch, run, metrics, peak):
    """Describe the latest batch, the use of the buffer, and |Q| against what |reward| allows."""
    age = (buffer.added - 1 - buffer.drawn) % len(buffer.rows)
    found = {"replay/age": age.float().mean(), "replay/fill": len(buffer) / len(buffer.rows)}
    found |= {"replay/updates": run.updates, "replay/ratio": run.updates / run.global_step}
    for name, values in {"env/obs": batch[0], "env/reward": batch[2]}.items():
        found |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std(correction=0)}
        found[f"{name}_absmax"] = values.abs().max()
    run.alpha = max(run.alpha, metrics.get("losses/alpha", 0.0))  # the largest so far
    limit = peak + run.alpha * batch[1].shape[1] * math.log(2)  # of reward plus entropy bonus
    return found | {"q/bound_use": metrics["q/abs_max"] * (1 - run.args.gamma) / limit}


def reduce(rows):
    """Average dicts of scalar tensors, names in _max by maximum, and forget them."""
    columns = {name: torch.stack([row[name] for row in rows]) for name in (rows or [{}])[0]}
    found = [c.amax() if name.endswith("_max") else c.mean() for name, c in columns.items()]
    rows.clear()
    return dict(zip(columns, torch.stack(found).tolist(), strict=True)) if found else {}


class Evaluator:
    """Deterministic episodes in environments of their own, which touch no training randomness."""

    def __init__(self, env_id, episodes, seed, film):
        graphics = sys.platform == "linux" and find_library("EGL") and find_library("GL")
        if not graphics and os.environ.get("MUJOCO_GL") == "egl":
            del os.environ["MUJOCO_GL"]  # or importing mujoco fails
        elif graphics and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("LP_NUM_THREADS", "1")  # software rendering takes one core
        self.envs, self.seed = [make_env(env_id) for _ in range(episodes)], seed
        self.film = film and "rgb_array" in self.envs[0].metadata.get("render_modes", [])
        if self.film:
            self.envs[0] = make_env(env_id, render_mode="rgb_array")
            env = self.envs[0].unwrapped
            if hasattr(env, "mujoco_renderer"):  # 15 times faster without shadows
                env.mujoco_renderer.width = env.mujoco_renderer.height = 256
                env.model.vis.quality.shadowsize = env.model.vis.quality.offsamples = 0
                cameras = [env.model.camera(i).name for i in range(env.model.ncam)]
                if "track" in cameras:  # Gymnasium's free camera loses HalfCheetah
                    env.mujoco_renderer.camera_id = cameras.index("track")

    def __call__(self, agent, number, video=None):
        """Return metrics of one episode per environment, filming the first into the file video.

        number counts the evaluations of a run and sets the seeds.
        """
        count, frames, fps = len(self.envs), [], self.envs[0].metadata.get("render_fps", 30)
        skip = max(round(fps / 30), 1)  # about 30 frames for a second of the task's own time
        returns, lengths, active = np.zeros(count), np.zeros(count, int), [*range(count)]
        seeds = [derive_seed(EVALUATE, self.seed, number, i) for i in active]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        obs = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)]
        while active:
            wanted = video and 0 in active and not lengths[0] % skip and len(frames) < MAX_FRAMES
            if wanted and self.film:
                self.film = attempt(VIDEO, lambda: frames.append(self.envs[0].render()))
            actions = agent.act(np.stack([obs[i] for i in active]), deterministic=True)
            for i, action in zip([*active], actions, strict=True):
                obs[i], reward, terminated, truncated, _ = self.envs[i].step(action)
                returns[i] += reward
                lengths[i] += 1
                if terminated or truncated or lengths[i] == MAX_EVAL_STEPS:
                    active.remove(i)
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])
        if frames and self.film:
            self.film = attempt(VIDEO, write_video, frames, fps / skip, video)
        found = {f"eval/return_{f}": getattr(returns, f)() for f in STATISTICS}
        return found | {"eval/length_mean": lengths.mean()}


def write_video(frames, fps, path):
    """Encode frames as an mp4, which is there whole or not at all."""
    part = path.with_suffix(".part.mp4")
    clip = ImageSequenceClip(frames, fps=fps)
    clip.duration += 0.5 / fps  # rounding would lose the last frame
    try:
        clip.write_videofile(str(part), audio=False, logger=None)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def evaluate_run(cls, args):
    """Score and film the agent of the run folder args.evaluate, and return it."""
    try:
        agent = cls.load(args.evaluate)
    except (OSError, ValueError) as error:
        require(False, "evaluate", f"{args.evaluate}: {error}; name a run folder of this script")
    evaluator = Evaluator(agent.args.env_id, args.eval_episodes, args.seed, args.capture_video)
    fits = evaluator.envs[0].observation_space.shape[0] == agent.obs_dim
    require(fits, "evaluate", f"{args.evaluate} has other observations: name another run folder")
    video = Path(args.evaluate) / "videos" / f"evaluate-{args.seed}.mp4"
    for name, value in evaluator(agent, 10**6, video).items():  # no training run gets that far
        say(f"{name} {value:.1f}")
    say(f"video {video}" if video.exists() else "no video")
    return agent


def save_agent(agent, folder):
    """Write what load_agent reads to model.pt in the folder, atomically and free of pickle."""
    bounds = {"low": torch.as_tensor(agent.low), "high": torch.as_tensor(agent.high)}
    saved = {"args": asdict(agent.args), "obs_dim": agent.obs_dim, "state": agent.state_dict()}
    torch.save(saved | bounds, folder / "model.part")
    os.replace(folder / "model.part", folder / "model.pt")


def load_agent(agent_class, args_class, folder, device):
    """Read the agent of a run folder; raises OSError, or ValueError for another script's."""
    try:
        saved = torch.load(Path(folder) / "model.pt", map_location=device, weights_only=True)
        low, high = saved["low"].cpu().numpy(), saved["high"].cpu().numpy()
        agent = agent_class(args_class(**saved["args"]), saved["obs_dim"], low, high, device)
        agent.load_state_dict(saved["state"])
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds
        raise ValueError(f"{folder}/model.pt is not a model of this script") from error
    assert all(part.tied() for part in agent.children() if hasattr(part, "tied"))
    return agent


def git(*command):
    """Return what git says of the script's folder; nothing without git or a repository."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), *command]
    found = subprocess.run(command, capture_output=True).stdout if shutil.which("git") else b""
    return found.decode(errors="replace")


class Run:
    """The run folder and every logging sink behind one log call; leaving it writes the summary."""

    def __init__(self, args, agent):
        self.args, self.agent, self.folder = args, agent, Path(args.run_dir)
        self.global_step = self.updates = self.logged = self.said = 0
        self.start = self.last = time.perf_counter()
        self.scores, self.filmed, self.sps, self.spent = [], -1, 0.0, Counter()
        self.alpha = getattr(args, "alpha", 0.0)
        try:
            (self.folder / "videos").mkdir(parents=True)
        except OSError as error:
            require(False, "run_dir", f"{args.run_dir} can not be made ({error}): name another")
        config = {name: value for name, value in asdict(args).items() if value is not None}
        lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in config.items()]
        (self.folder / "config.toml").write_text("".join(lines), "utf-8")
        shutil.copy(__file__, self.folder / "script.py")
        self.commit = git("rev-parse", "HEAD").strip()
        if changes := git("diff", "--no-ext-diff", "--no-color", "HEAD"):
            (self.folder / "changes.diff").write_text(changes, "utf-8")
        self.file = open(self.folder / "metrics.jsonl", "w", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(self.folder / "tb")
        self.tracker = None
        if args.track:
            attempt("W&B", self.track, config)
        shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(total=args.total_timesteps, disable=None, bar_format=shown)

    def track(self, config):
        """Start a W&B run with the config and the source."""
        import wandb

        names = {"project": self.args.wandb_project, "name": self.folder.name, "config": config}
        names |= {"notes": self.args.notes}
        names["settings"] = wandb.Settings(init_timeout=20, finish_timeout=120)
        try:
            online = "WANDB_MODE" in os.environ or wandb.login(prompt=False)
            run = wandb.init(**names, mode=None if online else "offline")
        except Exception as error:
            say(f"warning: W&B logs offline, into the folder wandb: {error!r}")
            run = wandb.init(**names, mode="offline")
        run.define_metric("*", step_metric="global_step")
        run.log_code(str(self.folder), include_fn=lambda path: path.endswith("script.py"))
        self.tracker, self.wandb = run, wandb

    def __enter__(self):
        self.handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def log(self, metrics, video=None):
        """Send scalars and a video to every sink, with global_step and seconds since the start."""
        step, metrics = self.global_step, {name: float(value) for name, value in metrics.items()}
        require_finite(**metrics)
        row = {"global_step": step, "seconds": time.perf_counter() - self.start} | metrics
        self.file.write(json.dumps(row) + "\n")
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)
        if self.tracker and not attempt("W&B", self.send, row, video):
            self.tracker = None
            try:
                self.wandb.teardown()  # or it fails at the very end, with a traceback
            except (Exception, SystemExit):
                pass

    def send(self, row, video):
        """Send a row and a video to W&B."""
        self.tracker.log(row | ({"videos": self.wandb.Video(str(video))} if video else {}))

    def due(self, every):
        """Tell whether a period of that many transitions, or the run, ended in the latest step."""
        ended = self.global_step >= self.args.total_timesteps
        return every > 0 and (ended or self.global_step % every < self.args.num_envs)

    def clock(self, activity):
        """Count the time since the last call as spent on an activity."""
        now = time.perf_counter()
        self.spent[activity] += now - self.last
        self.last = now

    def progress(self, metrics):
        """Log metrics and show some: on a terminal in the bar, else in a line every ten seconds."""
        step, total, seconds = self.global_step, self.args.total_timesteps, self.spent.total()
        shares = {f"time/{name}": spent / seconds for name, spent in self.spent.items()}
        self.sps, self.logged = (step - self.logged) / (seconds - self.spent["eval"]), step
        self.spent.clear()
        rates = {f"charts/{k}": v for k, v in asdict(self.args).items() if k.endswith("_lr")}
        self.log(metrics | rates | {"charts/SPS": self.sps} | shares)
        text = f"SPS {self.sps:.0f} return {metrics.get('charts/average_return', math.nan):.1f} "
        text += f"eval {self.scores[-1] if self.scores else math.nan:.1f}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(step - self.bar.n)
        if self.bar.disable and time.perf_counter() - self.said > 10:
            self.said, left = time.perf_counter(), (total - step) / self.sps / 60
            say(f"step {step}/{total} {text} left {left:.0f} min")

    def evaluate(self, evaluator):
        """Score and save the agent; film it at the start, a third, two thirds and the end."""
        third, video = 3 * self.global_step // self.args.total_timesteps, None
        if third > self.filmed:
            self.filmed, video = third, self.folder / "videos" / f"step-{self.global_step}.mp4"
        found = evaluator(self.agent, len(self.scores), video)
        video = video if video and video.exists() else None
        self.log(found, video)
        self.scores.append(float(found["eval/return_mean"]))
        say(f"step {self.global_step} eval {self.scores[-1]:.1f} {video or ''}")
        save_agent(self.agent, self.folder)
        self.clock("eval")

    def __exit__(self, kind, error, trace):
        """Write model and summary; an interrupt or a failed check ends in one sentence."""
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "finished" if kind is None else "interrupted" if stopped else "failed"
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one loses nothing
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if status != "failed":
            attempt("model.pt", save_agent, self.agent, self.folder)
        tail = self.scores[-math.ceil(len(self.scores) / 10) :]
        self.sps = self.sps or self.global_step / (time.perf_counter() - self.start)
        summary = {
            "status": status,
            "reason": f"{error!r} at step {self.global_step}" if error else "",
            "global_step": self.global_step,
            "updates": self.updates,
            "SPS": self.sps,
            "seconds": time.perf_counter() - self.start,
            "parameters": sum(p.numel() for p in self.agent.parameters()),
            "python": sys.version,
            "versions": {package.name: package.version for package in distributions()},
            "hardware": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs",
            "git_commit": self.commit,
            "command": " ".join(sys.argv),
        }
        if self.scores:
            summary |= {"eval_last": tail[-1], "eval_last_tenth": sum(tail) / len(tail)}
        self.bar.close(), self.file.close(), self.board.close()
        (self.folder / "summary.part").write_text(json.dumps(summary, indent=1), "utf-8")
        os.replace(self.folder / "summary.part", self.folder / "summary.json")
        signal.signal(signal.SIGINT, previous), signal.signal(signal.SIGTERM, self.handler)
        if self.tracker:
            attempt("W&B", self.tracker.finish, int(status != "finished"))
        say(f"{status} {summary['reason']}".strip() + f": {self.folder}")
        if stopped or isinstance(error, FloatingPointError):
            raise SystemExit(130 if stopped else 1) from None


# --- main -----------------------------------------------------------------------------------------
def main(args):
    """Train as args say, or evaluate, and return the agent."""
    args.check()
    if args.evaluate:
        return evaluate_run(Agent, args)
    evaluator = Evaluator(args.env_id, args.eval_episodes, args.seed, args.capture_video)
    envs = Envs(args.env_id, args.num_envs, args.seed)
    dim, planned = envs.low.size, args.utd * (args.total_timesteps - args.learning_starts)
    args = resolve(args, envs.limit, "cuda", planned, 4 * (2 * envs.obs_dim + dim + 2))
    seed_everything(args.seed)
    agent = Agent(args, envs.obs_dim, envs.low, envs.high, args.device)
    buffer = ReplayBuffer(args.buffer_size, envs.obs_dim, dim, args.device)
    noise = torch.zeros(2, args.batch_size, dim, device=args.device)
    blank = noise.new_zeros(args.batch_size, sum(buffer.widths))
    update = compiled(agent, buffer.unpack(blank), noise)
    with Run(args, agent) as run:
        if args.eval_every:
            run.evaluate(evaluator)
        obs, rows = envs.reset(np.ones(args.num_envs, bool)), []
        while run.global_step < args.total_timesteps:
            if run.global_step < args.learning_starts:
                action = 2 * torch.rand(args.num_envs, dim).numpy() - 1
            else:
                action = agent.explore(obs)
            run.clock("act")

            next_obs, reward, terminated, truncated, episodes = envs.step(agent.scale(action))
            run.global_step += args.num_envs
            buffer.add(obs, action, reward, terminated, next_obs)
            obs = envs.reset(terminated | truncated) if episodes else next_obs
            run.clock("env")

            while run.updates < args.utd * (run.global_step - args.learning_starts):
                batch = buffer.sample(args.batch_size)
                metrics = update(batch, noise.normal_())
                rows += [metrics] if args.log_every else []
                run.updates += 1
            run.clock("update")

            for episode in episodes:
                run.log(episode)
            if run.due(args.log_every):
                metrics = reduce(rows)
                if metrics:  # else there was no update in the interval
                    metrics |= replay_metrics(buffer, batch, run, metrics, envs.peak)
                run.progress(metrics | envs.metrics())
            run.clock("log")
            if run.due(args.eval_every):
                run.evaluate(evaluator)
    return agent


if __name__ == "__main__":
    main(parse_args(Args))
