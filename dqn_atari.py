# --- method ---------------------------------------------------------------------------------------
"""Deep Q-Network (DQN, Mnih et al. 2015, doi 10.1038/nature14236) for Atari games.

The agent sees four grey frames of 84 x 84 pixels and learns from transitions that are drawn from a
replay buffer. For learning, rewards are cut to their sign, and a lost life may end an episode; the
game goes on, and the return that is reported is that of the full game, of raw rewards.

(1) action = argmax q(obs), with probability epsilon a random one; epsilon falls linearly
(2) td_target = reward + gamma * (1 - terminated) * max q_target(next_obs)
    with --double (arXiv 1509.06461): ... * q_target(next_obs)[argmax q(next_obs)]
(3) q_loss = mean(error^2), error = q(obs)[action] - td_target
    with --huber: mean(error^2 / 2 where |error| < 1, |error| - 1/2 elsewhere)
(4) q_target <- q, every target_every transitions

Differs from the paper: Adam; no cut of errors; epsilon falls to 0.01, not 0.1; the target is copied
every 250 updates, not 10,000: all as CleanRL; in evaluations epsilon is 0.001, not 0.05

python dqn_atari.py --env-id BreakoutNoFrameskip-v4
python dqn_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 4000 --learning-starts 2000 \
    --buffer-size 4000 --eval-every 0
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
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

import ale_py
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
    """Train DQN; --evaluate scores and films a trained agent instead."""

    # task
    env_id: str = "BreakoutNoFrameskip-v4"  # Gymnasium id; my_module:MyEnv-v0 imports my_module
    total_timesteps: int = 10_000_000  # environment transitions, over all environments
    num_envs: int = 1  # environments stepped together
    async_envs: bool = False  # step each in a process of its own; gains if slow, on many cores
    seed: int = 1  # drives networks, environments, exploration and batches
    life_loss: Literal["auto", "on", "off"] = "auto"  # lost lives end episodes; auto: if not sticky
    clip_rewards: bool = True  # learn from the sign of rewards
    frame_size: int = 84  # pixels a side that it sees of an Atari game; fewer are faster
    # algorithm
    buffer_size: int = 1_000_000  # transitions kept for replay
    learning_starts: int = 80_000  # transitions of exploration before the updates
    batch_size: int = 32  # transitions per update
    train_every: int = 4  # transitions per update step
    hidden_size: int = 512  # units in each fully connected hidden layer
    start_e: float = 1.0  # (1) first epsilon
    end_e: float = 0.01  # (1) last epsilon
    exploration_fraction: float = 0.1  # (1) share of the run in which epsilon falls
    eval_e: float = 0.001  # (1) epsilon of evaluations
    gamma: float = 0.99  # (2) discount per step
    double: bool = False  # (2) let q choose the action that q_target values
    huber: bool = False  # (3) Huber loss
    learning_rate: float = 1e-4  # (3) Adam's step size
    target_every: int = 1_000  # (4) transitions between two copies
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
        positive = "total_timesteps num_envs buffer_size batch_size train_every hidden_size "
        positive += "exploration_fraction learning_rate target_every eval_episodes"
        for name in positive.split():
            require(0 < getattr(self, name) < math.inf, name, "must be positive")
        for name in ["gamma", "start_e", "end_e", "eval_e"]:
            require(0 <= getattr(self, name) <= 1, name, "must be between 0 and 1")
        for name in ["seed", "log_every", "eval_every", "threads"]:
            require(0 <= (getattr(self, name) or 0) < 2**63, name, "must not be negative or huge")
        require(36 <= self.frame_size <= 160, "frame_size", "must be between 36 and 160")
        starts = self.learning_starts
        require(self.batch_size <= starts, "batch_size", "must be at most --learning-starts")
        require(self.total_timesteps > starts, "total_timesteps", "must be above --learning-starts")
        least = 8 * self.num_envs
        fits = self.buffer_size >= least
        require(fits, "buffer_size", f"must be {least} or more: 8 an environment")


# --- networks -------------------------------------------------------------------------------------
class NatureCNN(nn.Sequential):
    """Three convolutions and two linear layers: frames [B, 4, H, W] uint8 to values [B, A]."""

    def __init__(self, shape, hidden_size, actions):
        require(min(shape[1:]) >= 36, "env_id", "has frames below 36 x 36: resize them")
        layers = [nn.Conv2d(shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten()]
        features = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]  # 3136 for 84 x 84
        layers += [nn.Linear(features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, actions)]
        super().__init__(*layers)
        self.to(memory_format=torch.channels_last)  # convolutions take two thirds of the time

    def forward(self, frames):
        """Scale bytes to [0, 1], here and nowhere else."""
        return super().forward((frames / 255).contiguous(memory_format=torch.channels_last))


def pick(values, action):
    """Return those of values [B, A] that belong to actions [B], without indices: see README."""
    chosen = torch.arange(values.shape[1], device=values.device) == action[:, None]
    return (values * chosen).sum(1)


# --- experience -----------------------------------------------------------------------------------
class Game(gym.wrappers.AtariPreprocessing):
    """An Atari game in grey pixels, each the larger of the last two of four frames."""

    seeded, metadata = False, {"render_modes": ["rgb_array"], "render_fps": 15}  # 60 frames / 4

    def reset(self, seed=None, options=None):
        """Begin with 1 to 30 no-ops, then FIRE where there is one: some games wait for it."""
        if self.seeded and seed is not None:  # not the emulator again: that loads its ROM, 0.2 s
            self.unwrapped.np_random, seed = gym.utils.seeding.np_random(seed)[0], None
        self.seeded = True
        obs, info = super().reset(seed=seed, options=options)
        fire = self.unwrapped.get_action_meanings()[1] == "FIRE"
        return self.step(1)[::4] if fire else (obs, info)


class FrameBuffer:
    """A ring of single frames [T, H, W] uint8 for each of N environments, with what was done there.

    A row is a frame; if it is `acted` upon, action, reward and terminated are kept beside it, and
    the next row is the next frame. The last frame of an episode is a row too, never acted upon.
    """

    def __init__(self, capacity, num_envs, shape, device):
        self.length = capacity // num_envs
        size = num_envs, self.length
        shape = num_envs * self.length, *shape
        self.frames = torch.ones(shape, dtype=torch.uint8, device=device)  # takes its memory now
        self.columns = np.zeros((3, *size), np.float32)  # action, reward, terminated
        self.acted, self.age = np.zeros(size, bool), np.zeros(size, np.uint8)
        self.head, self.over = np.full(num_envs, -1), np.ones(num_envs, bool)
        self.filled = 0  # rows of the fullest ring

    def push(self, envs, frames, age):
        """Write frames [M, H, W] into the next rows of M rings; age: frames before them, to 3."""
        self.head[envs] = (self.head[envs] + 1) % self.length
        self.filled = max(self.filled, self.head.max() + 1)
        rows = self.head[envs]
        self.acted[envs, rows], self.age[envs, rows] = False, age
        self.frames[envs * self.length + rows] = torch.from_numpy(frames).to(self.frames.device)

    def add(self, obs, action, reward, terminated, next_obs, done):
        """Copy N transitions in, obs [N, 4, H, W], others [N]; the oldest fall out."""
        first, every = np.flatnonzero(self.over), np.arange(len(done))
        if len(first):
            self.push(first, obs[first, -1], 0)
        self.columns[:, every, self.head] = action, reward, terminated
        self.acted[every, self.head] = True
        self.push(every, next_obs[:, -1], np.minimum(self.age[every, self.head] + 1, 3))
        self.over = done

    def sample(self, batch_size):
        """Draw B transitions uniformly, with replacement: frames [B, 5, H, W], columns [3, B]."""
        env, row = np.zeros((2, 0), int)
        while len(env) < batch_size:
            more = np.random.randint([[len(self.head)], [self.filled]], size=(2, 2 * batch_size))
            since = (self.head[more[0]] - more[1]) % self.length  # rows written after
            whole = since + self.age[*more] < self.length  # none of its frames is overwritten
            keep = more[:, self.acted[*more] & whole]
            env, row = np.concatenate([[env, row], keep], 1)
        env, row = env[:batch_size], row[:batch_size]
        back = np.minimum(np.array([3, 2, 1, 0])[:, None], self.age[env, row])  # [4, B]
        index = env * self.length + (row + np.vstack([-back, np.ones_like(row)])) % self.length
        index = torch.from_numpy(index.T.ravel()).to(self.frames.device)
        frames = self.frames.index_select(0, index).view(batch_size, 5, *self.frames.shape[1:])
        columns = np.ascontiguousarray(self.columns[:, env, row])  # or it is compiled twice
        return frames, torch.from_numpy(columns).to(self.frames.device)


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
    """DQN: networks, optimizer and the update."""

    def __init__(self, args, obs_dim, low, high, device="cpu"):
        super().__init__()
        self.args, self.obs_dim, self.low, self.high = args, obs_dim, low, high
        self.q = NatureCNN(obs_dim, args.hidden_size, int(high) + 1)
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)
        self.to(device)
        self.opt = Adam(self.q.parameters(), args.learning_rate)

    @torch.inference_mode()
    def values(self, obs):
        """Return action values [N, A] for obs [N, 4, H, W] uint8."""
        return self.q(torch.as_tensor(obs, device=self.q[0].weight.device))

    def explore(self, obs, epsilon):
        """Choose actions [N] for obs [N, 4, H, W], each with probability epsilon at random."""
        random = np.random.random(len(obs)) < epsilon
        action = np.random.randint(int(self.high) + 1, size=len(obs))
        if random.all():  # spares the network while it is not needed
            return action
        return np.where(random, action, self.values(obs).argmax(1).cpu().numpy())  # (1)

    def act(self, obs, deterministic=True):
        """Choose actions [N] for obs [N, 4, H, W]; epsilon is eval_e if deterministic."""
        return self.explore(obs, self.args.eval_e if deterministic else self.args.end_e)

    def value(self, obs):
        """Estimate the return [N] from obs [N, 4, H, W], of rewards as they are learned from."""
        return self.values(obs).amax(1).cpu().numpy()

    def epsilon(self, step):
        """Return the probability of a random action at a step of training."""
        share = min(step / (self.args.exploration_fraction * self.args.total_timesteps), 1)
        return self.args.start_e + share * (self.args.end_e - self.args.start_e)

    def update(self, frames, columns):
        """Step q on frames [B, 5, H, W] and columns [3, B] of the buffer; return metrics."""
        obs, next_obs = frames[:, :-1], frames[:, 1:]
        action, reward, terminated = columns
        with torch.no_grad():
            next_q = self.q_target(next_obs)  # [B, A]
            best = (self.q(next_obs) if self.args.double else next_q).argmax(1)
            next_value = pick(next_q, best)
            td_target = reward + self.args.gamma * (1 - terminated) * next_value  # (2)
        q = pick(self.q(obs), action)
        assert q.shape == td_target.shape == reward.shape
        loss_of = nn.functional.smooth_l1_loss if self.args.huber else nn.functional.mse_loss
        loss = loss_of(q, td_target)  # (3)
        grad_norm, q, loss = self.opt.step(loss), q.detach(), loss.detach()
        metrics = {"losses/td_loss": loss, "losses/q_values": q.mean(), "grad/norm": grad_norm}
        metrics |= describe("q/value", q) | describe("q/target", td_target)
        error = (q - td_target).square().mean().sqrt()
        metrics["q/td_rel"] = error / (metrics["q/target_sd"] + 1e-8)
        return metrics | describe("env/reward", reward)

    def copy_target(self):
        """Set q_target to q."""
        self.q_target.load_state_dict(self.q.state_dict())  # (4)

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


def make_games(args, num_envs, film, vector=gym.vector.SyncVectorEnv, limit=18_000):
    """Seed all generators; return games that do not reset themselves, first and last action."""

    def make(**options):
        options |= {"frameskip": 1, "max_episode_steps": limit} if atari else {}
        env = gym.make(args.env_id, disable_env_checker=True, **options)
        env = Game(env, screen_size=args.frame_size) if atari else env
        space, actions = env.observation_space, env.action_space
        fits = space.dtype == np.uint8 and len(space.shape) == 2
        fits = fits and isinstance(actions, gym.spaces.Discrete) and actions.start == 0
        require(fits, "env_id", f"{args.env_id} needs frames [H, W] uint8, Discrete actions from 0")
        env = gym.wrappers.TransformObservation(env, np.copy, None)  # it may write into one array
        env = gym.wrappers.FrameStackObservation(env, 4)
        return gym.wrappers.RecordEpisodeStatistics(env, stats_key="finished")

    random.seed(args.seed), np.random.seed(args.seed % 2**32), torch.manual_seed(args.seed)
    gym.logger.min_level = gym.logger.ERROR
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    try:
        atari = hasattr(gym.make(args.env_id, disable_env_checker=True).unwrapped, "ale")
        envs = vector([make] * num_envs, autoreset_mode="Disabled")
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        require(False, "env_id", f"{args.env_id} fails: {' '.join(str(error).split())}")
    envs.episodes = np.zeros(num_envs, int)
    if film and "rgb_array" in envs.metadata.get("render_modes", []):
        envs.envs[0] = make(render_mode="rgb_array")
    return envs, np.float32(0), np.float32(envs.single_action_space.n - 1)


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
        task = replace(agent.args, seed=args.seed)
        envs, *_ = make_games(task, args.eval_episodes, args.capture_video)
        video = Path(args.evaluate, "videos", f"evaluate-{args.seed}.mp4")
        found = evaluate(agent, envs, (EVALUATE, args.seed, 10**6), args.capture_video and video)
        print({k: round(float(v), 4) for k, v in found.items()}, video if video.exists() else "")
        return agent
    eval_envs, *_ = make_games(args, args.eval_episodes, args.capture_video)
    vector = gym.vector.AsyncVectorEnv if args.async_envs else gym.vector.SyncVectorEnv
    envs, low, high = make_games(args, args.num_envs, False, vector, 108_000)
    shape = envs.single_observation_space.shape  # 4, H, W
    emulator = getattr(eval_envs.envs[0].unwrapped, "ale", None)
    sticky = emulator.getFloat("repeat_action_probability") if emulator else 0
    auto = "off" if sticky else "on"
    args = replace(args, life_loss=auto if args.life_loss == "auto" else args.life_loss)
    pays, pixels = args.learning_starts + 20_000, math.prod(shape[1:])
    args = resolve(args, "cuda", pays, "buffer_size", pixels + 14, 50_000)  # games are long
    rules = f"sticky actions {sticky}, life loss {args.life_loss}, frame skip 4, max over 2 frames"
    rules += f", {shape[1]} x {shape[2]} pixels, 1 to 30 no-ops, FIRE if any; full games' returns"
    print(rules if emulator else "no Atari game: frames and lives are taken as they come")
    print(f"replay needs {args.buffer_size * pixels / 1e9:.2g} GB on {args.device}", flush=True)
    agent = Agent(args, shape, low, high, args.device)
    buffer = FrameBuffer(args.buffer_size, args.num_envs, shape[1:], args.device)
    blank = torch.zeros(args.batch_size, 5, *shape[1:], dtype=torch.uint8, device=args.device)
    with Run(args, agent) as run:
        names, update = prepare(agent, "update", blank, blank.new_zeros(3, len(blank)).float())
        gc.collect(), gc.freeze()  # searching all that was imported for garbage stalls steps
        run.clock("update")
        if args.eval_every:
            run.evaluate(eval_envs)
        obs, rows = reset(envs, np.ones(args.num_envs, bool), TRAIN, args.seed), []
        lives = np.zeros(args.num_envs)
        while run.global_step < args.total_timesteps:
            epsilon = agent.epsilon(run.global_step)
            action = agent.explore(obs, epsilon)
            run.clock("act")

            next_obs, reward, terminated, truncated, infos = envs.step(action)
            require_finite(reward=reward)
            run.global_step += args.num_envs
            left, lives = lives, infos.get("lives", lives)
            ended = terminated | ((lives < left) & (args.life_loss == "on"))
            kept = np.sign(reward) if args.clip_rewards else reward
            done = terminated | truncated
            lives = lives * ~done  # those of a game say nothing of the next
            buffer.add(obs, action, kept, ended, next_obs, done)
            obs = reset(envs, done, TRAIN, args.seed) if done.any() else next_obs
            run.clock("env")

            while run.updates * args.train_every < run.global_step - args.learning_starts:
                metrics = update(*buffer.sample(args.batch_size))  # [M]
                rows += [metrics] if args.log_every else []
                run.updates += 1
            if run.global_step % args.target_every < args.num_envs:
                agent.copy_target()
            run.clock("update")

            run.episodes(infos, truncated)
            if run.due(args.log_every):
                rates = torch.tensor([epsilon, args.learning_rate])
                run.progress((names, rows), (["charts/epsilon", "charts/learning_rate"], [rates]))
            run.clock("log")
            if run.due(args.eval_every):
                run.evaluate(eval_envs)
    return agent


if __name__ == "__main__":
    main(parse_args(Args, sys.argv[1:]))
