"""Truncated Quantile Critics (TQC, arXiv 2005.04269): SAC with critics of quantiles.

Each critic predicts M = num_quantiles atoms, the quantiles of the return at the levels
level[m] = (m + 1/2) / M. The largest atoms of the target are dropped, against overestimation.
Every environment step stores one transition (obs, action, reward, terminated, next_obs). After the
first learning_starts of them, an update follows each step by default, on a batch drawn uniformly
from all that is stored. Actions are in [-1, 1] here:

(1) action = tanh(u), u = mean + exp(log_std) * noise, noise ~ N(0, 1), (mean, log_std) = actor(obs)
    logp = sum over dimensions of (log N(u; mean, exp(log_std)) - log(1 - tanh(u)^2))
(2) target_atoms = reward + gamma * (1 - terminated) * (next_atoms - alpha * next_logp)
    next_atoms = the atoms of all critic_target(next_obs, next_action) but the largest
                 num_critics * drop_atoms; next_action and next_logp by (1) for next_obs
(3) critic_loss = sum over critics of the mean over their atoms[m] and all target_atoms[k] of
                  |level[m] - (1 if error < 0 else 0)| * huber(error),
    error = target_atoms[k] - atoms[m], huber(x) = x^2 / 2 if |x| < 1 else |x| - 1/2
(4) actor_loss = mean(alpha * logp - mean of all atoms of all critics), of a new action by (1)
(5) alpha_loss = -mean(log_alpha * (logp + target_entropy)), alpha = exp(log_alpha)
    target_atoms and alpha are constants in (2) to (4), and logp is one in (5)
(6) critic_target = critic_target + tau * (critic - critic_target)

Differs from arXiv 2005.04269: two critics with two layers of 256 units, not five with three of 512;
drop_atoms is always 2, not 0 on HalfCheetah and 5 on Hopper; critic_lr is 1e-3, not 3e-4; alpha
starts at 0.1, not 1; the first learning_starts actions are uniform; (3) is no mean over critics.

python tqc_continuous.py --env-id Hopper-v4
python tqc_continuous.py --env-id InvertedPendulum-v4 --total-timesteps 5000 --learning-starts 1000
"""

# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "gymnasium[mujoco]==1.4.0",
#     "mujoco==3.17.0",
#     "pygame-ce==2.5.8",
#     "numpy==2.4.6",
#     "tyro==1.0.17",
#     "wandb==0.31.0",
#     "tensorboard==2.21.0",
#     "moviepy==2.2.1",
#     "tqdm==4.70.1",
#     "psutil==7.2.2",
#     "threadpoolctl==3.8.0",
# ]
# ///

import ast
import copy
import fcntl
import gc
import io
import json
import math
import os
import platform
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
import zipfile
import zlib
from collections import Counter, deque
from contextlib import chdir, contextmanager, suppress
from ctypes.util import find_library
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from shlex import quote
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import psutil
import torch
import tyro
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


# --- arguments ------------------------------------------------------------------------------------
@dataclass
class Args:
    """Train Truncated Quantile Critics; --evaluate scores and films a trained agent instead.

    Numbers in brackets are those of the equations at the top of the script.
    """

    # task
    env_id: str = "Hopper-v4"  # Gymnasium id; my_module:MyEnv-v0 imports my_module
    total_timesteps: int = 1_000_000  # environment transitions, over all environments
    num_envs: int = 1  # environments stepped together
    seed: int = 1  # drives networks, environments, exploration and batches

    # algorithm
    buffer_size: int = 1_000_000  # transitions kept for replay
    learning_starts: int = 5_000  # transitions of random actions before the updates
    batch_size: int = 256  # transitions that an update learns from
    utd: float = 1.0  # updates per environment transition
    hidden_size: int = 256  # units in each fully connected hidden layer
    log_std_min: float = -20.0  # (1) log_std is clamped to this minimum
    log_std_max: float = 2.0  # (1) log_std is clamped to this maximum
    num_critics: int = 2  # (2) independent networks, each with num_quantiles atoms
    num_quantiles: int = 25  # (2, 3) atoms of a critic
    drop_atoms: int = 2  # (2) the largest num_critics * drop_atoms of the pool are dropped
    gamma: float = 0.99  # (2) discount per step
    critic_lr: float = 1e-3  # (3) Adam's step size
    actor_lr: float = 3e-4  # (4) Adam's step size
    alpha: float = 0.1  # (5) initial temperature; with --no-autotune it stays
    autotune: bool = True  # (5) learn the temperature
    alpha_lr: float = 3e-4  # (5) Adam's step size
    target_entropy: float | None = None  # (5) in nats, of the action in [-1, 1]; default -dim(A)
    tau: float = 0.005  # (6) target smoothing

    # run
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one (PPO: cpu)
    threads: int | None = None  # CPU threads; None: all cores, at most 4
    compile: Literal["auto", "on", "off"] = "auto"  # auto: if the run is long enough to gain
    log_every: int = 1_000  # transitions between two rows of means; 0: no such rows
    eval_every: int | None = None  # default total / 24, at least 2,000 transitions; 0: never
    eval_episodes: int = 10  # per evaluation, of deterministic actions and at most 30,000 steps
    capture_video: bool = True  # film an episode of every eighth evaluation and of the last
    checkpoint_every: int | None = None  # default total / 20, at least 2,000; 0: on signals
    resume: str | None = None  # run folder to go on with; auto: --run-dir, if it holds a run
    track: bool = False  # send metrics, source and videos to Weights & Biases
    wandb_project_name: str | None = None  # default $WANDB_PROJECT, else deep-rl-baselines
    wandb_entity: str | None = None  # team there; default $WANDB_ENTITY
    notes: str = ""  # what this run is to show; kept in its config.toml, and sent to W&B
    run_dir: str | None = None  # folder of this run; default runs/<env>__<script>__<seed>__<time>
    config: str | None = None  # file of settings, such as a run's config.toml; flags override it
    evaluate: str | None = None  # score and film the agent of this run folder, do not train


# --- networks -------------------------------------------------------------------------------------
def mlp(inputs, hidden_size, outputs, layer=nn.Linear):
    """Stack two hidden ReLU layers and a linear output."""
    return nn.Sequential(
        layer(inputs, hidden_size),
        nn.ReLU(),
        layer(hidden_size, hidden_size),
        nn.ReLU(),
        layer(hidden_size, outputs),
    )


class ParallelLinear(nn.Module):
    """A linear layer for each of C critics, in one batched matrix product.

    Any layer with parameters that is put between these needs a copy for each critic, too.
    """

    def __init__(self, critics, inputs, outputs):
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(critics)]
        self.weight = nn.Parameter(torch.stack([layer.weight.T for layer in layers]))  # [C, I, O]
        self.bias = nn.Parameter(torch.stack([layer.bias[None] for layer in layers]))  # [C, 1, O]

    def forward(self, x):
        """Map x [C, B, I] to [C, B, O], the first part by the first layer."""
        return x @ self.weight + self.bias


class Critic(nn.Module):
    """Independent networks of the return's quantiles, evaluated together."""

    def __init__(self, num_critics, num_quantiles, obs_dim, action_dim, hidden_size):
        super().__init__()
        self.num_critics = num_critics
        layer = partial(ParallelLinear, num_critics)
        self.net = mlp(obs_dim + action_dim, hidden_size, num_quantiles, layer)

    def forward(self, obs, action):
        """Map obs [B, O] and action [B, A] in [-1, 1] to the atoms [C, B, M] of all critics."""
        x = torch.cat([obs, action], -1).expand(self.num_critics, -1, -1)  # [C, B, O + A]
        return self.net(x)


class Actor(nn.Module):
    """Gaussian policy, to be squashed by tanh."""

    def __init__(self, obs_dim, action_dim, hidden_size, log_std_min, log_std_max):
        super().__init__()
        self.net = mlp(obs_dim, hidden_size, 2 * action_dim)
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max

    def forward(self, obs):
        """Map obs [B, O] to mean and log_std before squashing, each [B, A]."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)


def squash(mean, log_std, noise):
    """Return actions [B, A] in [-1, 1] and their log-probability [B] for noise ~ N(0, 1) [B, A]."""
    u = mean + log_std.exp() * noise  # (1)
    log_normal = -0.5 * noise.pow(2) - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2), written so that it stays finite where tanh(u) rounds to 1
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return torch.tanh(u), (log_normal - log_slope).sum(-1)


def quantile_huber_loss(atoms, target_atoms):
    """Return the loss [C] of atoms [C, B, M] as quantiles of target_atoms [B, K], see (3)."""
    num_quantiles = atoms.shape[-1]
    levels = (torch.arange(num_quantiles, device=atoms.device) + 0.5) / num_quantiles  # [M]
    error = target_atoms[:, None, :] - atoms[..., None]  # [C, B, M, K]
    size = error.abs()
    huber = torch.where(size < 1, 0.5 * error.square(), size - 0.5)
    # the weight is level for an atom below its target, and 1 - level for one above
    weight = (levels[:, None] - (error < 0).float()).abs()
    return (weight * huber).mean((1, 2, 3))  # (3)


# --- replay buffer --------------------------------------------------------------------------------
class Batch(NamedTuple):
    """Transitions; terminated is 1 where the episode really ended, not where time ran out."""

    obs: torch.Tensor  # [B, O]
    action: torch.Tensor  # [B, A] in [-1, 1]
    reward: torch.Tensor  # [B]
    terminated: torch.Tensor  # [B]
    next_obs: torch.Tensor  # [B, O], of the same episode, at its end too


class ReplayBuffer:
    """Ring of the latest transitions, each one row of numbers, so that a batch is one gather.

    Checkpoints save rows and added; whatever else you keep here is lost with --resume.
    """

    def __init__(self, capacity, obs_dim, action_dim, device):
        self.widths = [obs_dim, action_dim, 1, 1, obs_dim]
        # full() writes all of it now; zeros() would ask for memory late, when it may be gone
        self.rows = torch.full((capacity, sum(self.widths)), 0.0, device=device)
        self.added = 0  # rows ever added; the next one goes to added % capacity

    def add(self, obs, action, reward, terminated, next_obs):
        """Copy N transitions in, arrays [N, O], [N, A], [N], [N], [N, O]; the oldest fall out."""
        columns = [obs, action, reward[:, None], terminated[:, None], next_obs]
        rows = torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32, casting="unsafe"))
        for row in rows.to(self.rows.device):
            self.rows[self.added % len(self.rows)] = row
            self.added += 1

    def sample(self, batch_size):
        """Draw B transitions uniformly, with replacement."""
        filled = min(self.added, len(self.rows))
        index = torch.randint(filled, (batch_size,), device=self.rows.device)
        return self.unpack(self.rows.index_select(0, index))

    def example(self, batch_size):
        """Return a batch of zeros, to compile an update with."""
        return self.unpack(self.rows.new_zeros(batch_size, sum(self.widths)))

    def unpack(self, rows):
        """Split rows [B, D] into the columns of a batch."""
        obs, action, reward, terminated, next_obs = rows.split(self.widths, 1)
        return Batch(obs, action, reward.squeeze(1), terminated.squeeze(1), next_obs)

    def checkpoint_file(self, folder, room, salt, number):
        """Return the file in which checkpoints keep the rows, see BufferFile."""
        return BufferFile(folder, self, room, salt, number)


# --- agent ----------------------------------------------------------------------------------------
class Agent(nn.Module):
    """Networks, temperature and optimizers; it acts and learns.

    Checkpoints save parameters and buffers (nn.Buffer), those of the optimizers included; whatever
    else you keep here is lost with --resume.
    """

    def __init__(self, args, obs_dim, low, high, device="cpu"):
        super().__init__()
        self.args = args
        self.sizes = {  # with these a saved agent is built anew, see load_agent
            "obs_dim": obs_dim,
            "low": np.array(low).tolist(),
            "high": np.array(high).tolist(),
        }
        self.low, self.high = float32_within(low, high)  # of the environment, [*action shape]
        self.action_dim = self.low.size

        self.actor = Actor(
            obs_dim, self.action_dim, args.hidden_size, args.log_std_min, args.log_std_max
        )
        self.critic = Critic(
            args.num_critics, args.num_quantiles, obs_dim, self.action_dim, args.hidden_size
        )
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor([math.log(args.alpha)]))
        self.target_entropy = args.target_entropy
        if self.target_entropy is None:
            self.target_entropy = -self.action_dim
        self.to(device)  # first, so that the optimizers' averages are made there

        # not torch.optim, which would break up the one compiled graph of an update; to use another
        # optimizer copy Adam, from below, and change its step()
        self.critic_opt = Adam(self.critic.parameters(), args.critic_lr)
        self.actor_opt = Adam(self.actor.parameters(), args.actor_lr)
        self.alpha_opt = Adam([self.log_alpha], args.alpha_lr)

    @classmethod
    def load(cls, folder, device="cpu"):
        """Read the agent of a run folder, or exit with 2 if it holds none of this script."""
        return load_agent(cls, Args, folder, device)

    # acting
    def tensor(self, obs):
        """Put observations on the agent's device as float32."""
        return torch.as_tensor(np.float32(obs), device=self.log_alpha.device)

    def scale(self, action):
        """Map actions [N, A] in [-1, 1] to the environment's units [N, *action shape]."""
        fraction = (1 + np.float32(action).reshape(-1, *self.low.shape)) / 2
        units = self.low + (self.high - self.low) * fraction
        return np.minimum(units, self.high)  # rounding may exceed it, which some refuse

    @torch.inference_mode()
    def explore(self, obs):
        """Sample actions [N, A] in [-1, 1] for obs [N, O], to learn from."""
        mean, log_std = self.actor(self.tensor(obs))
        mean = mean.cpu().numpy()
        std = np.exp(log_std.cpu().numpy())
        noise = np.random.standard_normal(mean.shape)  # NumPy's is the same on all devices
        return np.tanh(mean + std * noise)  # (1), as in squash(): change both together

    @torch.inference_mode()
    def act(self, obs, deterministic=True):
        """Choose actions [N, *action shape] in the environment's units for obs [N, O]."""
        if not deterministic:
            return self.scale(self.explore(obs))
        mean, _ = self.actor(self.tensor(obs))
        return self.scale(torch.tanh(mean).cpu().numpy())

    @torch.inference_mode()
    def value(self, obs):
        """Estimate the value [N] of obs [N, O]: the mean atom of Q(s, pi(s)).

        By (2) it is the discounted return plus alpha times the entropy of all later steps. Training
        does not need it; it is there to look at what an agent has learned.
        """
        obs = self.tensor(obs)
        mean, _ = self.actor(obs)
        return self.critic(obs, torch.tanh(mean)).mean((0, 2)).cpu().numpy()

    # learning
    def update(self, batch, noise):
        """Take one gradient step with everything; return metrics, tensors of one number by name.

        The noise ~ N(0, 1) [2, B, A], for next actions and new ones, comes from outside, so that
        plain and compiled code see the same numbers.
        """
        obs, action, reward, terminated, next_obs = batch
        alpha = self.log_alpha.detach().exp()  # [1], the same for all that follows
        critic_metrics = self.update_critic(
            obs, action, reward, terminated, next_obs, alpha, noise[0]
        )
        actor_metrics, entropy = self.update_actor(obs, alpha, noise[1])
        alpha_metrics = self.update_alpha(entropy)
        self.update_target()
        return {**critic_metrics, **actor_metrics, **alpha_metrics}

    def update_critic(self, obs, action, reward, terminated, next_obs, alpha, noise):
        """Fit all critics to the bootstrapped target; noise [B, A]."""
        with torch.no_grad():
            mean, log_std = self.actor(next_obs)
            next_action, next_logp = squash(mean, log_std, noise)  # (1)
            next_atoms = self.lowest_atoms(self.critic_target(next_obs, next_action))  # [B, K]
            soft_value = next_atoms - alpha * next_logp[:, None]
            # a truncated episode still has reward ahead: only termination stops the bootstrap
            discount = self.args.gamma * (1 - terminated)
            target_atoms = reward[:, None] + discount[:, None] * soft_value  # (2)

        atoms = self.critic(obs, action)
        assert atoms.shape[1] == len(target_atoms) and target_atoms.dim() == 2
        losses = quantile_huber_loss(atoms, target_atoms)  # [C]
        grad_norm = self.critic_opt.minimize(losses.sum())  # (3)
        q = atoms.detach().mean(2)
        td_target = target_atoms.mean(1)
        return self.describe_critic(obs, reward, q, losses.detach(), td_target, grad_norm)

    def lowest_atoms(self, atoms):
        """Pool the atoms [C, B, M] of all critics and drop the largest: [B, K]."""
        pooled = atoms.transpose(0, 1).flatten(1)  # [B, C * M]
        num_kept = pooled.shape[1] - self.args.num_critics * self.args.drop_atoms  # K
        return pooled.sort(1).values[:, :num_kept]

    def update_actor(self, obs, alpha, noise):
        """Move the actor towards actions of high value and, as alpha weighs it, high entropy.

        Take noise [B, A]; return metrics and the entropy, a tensor of one number.
        """
        mean, log_std = self.actor(obs)
        action, logp = squash(mean, log_std, noise)  # (1)
        q = self.critic(obs, action).mean((0, 2))
        assert q.shape == logp.shape == obs.shape[:1]
        actor_loss = (alpha * logp - q).mean()
        grad_norm = self.actor_opt.minimize(actor_loss)  # (4), which moves the actor alone
        entropy = -logp.detach().mean()
        metrics = self.describe_actor(
            actor_loss.detach(), alpha, action.detach(), log_std.detach(), entropy, grad_norm
        )
        return metrics, entropy

    def update_alpha(self, entropy):
        """Adapt the temperature to the policy's entropy: below its target, alpha grows."""
        # (5), where -mean(logp) is the entropy
        alpha_loss = self.log_alpha.squeeze() * (entropy - self.target_entropy)
        if self.args.autotune:
            self.alpha_opt.minimize(alpha_loss)  # (5)
        return {
            "losses/alpha_loss": alpha_loss.detach(),
            "policy/entropy_gap": entropy - self.target_entropy,
        }

    def update_target(self):
        """Let the target critics follow the critics slowly."""
        with torch.no_grad():
            for target, parameter in zip(
                self.critic_target.parameters(), self.critic.parameters(), strict=True
            ):
                target.lerp_(parameter, self.args.tau)  # (6)

    # metrics; a NaN or an infinity in a mean that is logged ends the run
    def describe_critic(self, obs, reward, q, losses, td_target, grad_norm):
        """Describe the critics' step: their mean atoms q [C, B], losses [C], td_target [B].

        Of more than two critics the first and the last one are logged by themselves.
        """
        return {
            "losses/qf1_loss": losses[0],
            "losses/qf2_loss": losses[-1],
            "losses/qf1_values": q[0].mean(),
            "losses/qf2_values": q[-1].mean(),
            "losses/qf_loss": losses.mean(),
            "grad/norm_critic": grad_norm,
            # error of the critics relative to the spread of what they should learn
            "q/td_rel": (q - td_target).square().mean().sqrt()
            / (td_target.std(correction=0) + 1e-8),
            "q/twin_gap": (q[0] - q[-1]).abs().mean() / (q.std(correction=0) + 1e-8),
            **mean_sd_min_max("q/value", q),
            **mean_sd_min_max("q/target", td_target),
            **mean_sd_min_max("env/obs", obs),
            **mean_sd_min_max("env/reward", reward),
        }

    def describe_actor(self, actor_loss, alpha, action, log_std, entropy, grad_norm):
        """Describe the actor's step: action and log_std [B, A]."""
        return {
            "losses/actor_loss": actor_loss,
            "losses/alpha": alpha.squeeze(),
            "grad/norm_actor": grad_norm,
            "policy/entropy": entropy,
            "policy/saturation": (action.abs() > 0.99).float().mean(),
            "policy/log_std": log_std.mean(),
        }

    def learning_rates(self):
        """Return the step sizes in use, which a schedule may have changed by lr.fill_(x)."""
        return {
            "charts/critic_lr": self.critic_opt.lr,
            "charts/actor_lr": self.actor_opt.lr,
            "charts/alpha_lr": self.alpha_opt.lr,
        }


# --- training -------------------------------------------------------------------------------------
def main(args):
    """Train as args say and return the agent; with --evaluate score a trained one instead."""
    check(args)
    if args.evaluate:
        return evaluate_run(Agent, args, make_eval_envs, box_sizes)
    args = resolve(args, "cuda", least_steps_to_compile=10_000, least_eval_period=2_000)
    envs = make_envs(args.env_id, args.num_envs)
    eval_envs = None
    try:
        if args.eval_every:
            eval_envs = make_eval_envs(args)
        return train(args, envs, eval_envs)
    finally:
        close_envs(envs, eval_envs)


def train(args, envs, eval_envs):
    """Train in environments, as args say, and return the agent."""
    sizes = box_sizes(envs, args.env_id)
    try_out(envs, eval_envs, args.env_id)
    action_dim = np.size(sizes["low"])
    row_bytes = 4 * (2 * sizes["obs_dim"] + action_dim + 2)
    check_memory(args.device, "buffer_size", args.buffer_size, row_bytes)

    seed_everything(args.seed)  # after building environments, which may draw random numbers
    agent = Agent(args, **sizes, device=args.device)
    buffer = ReplayBuffer(args.buffer_size, sizes["obs_dim"], action_dim, args.device)
    noise = torch.zeros(2, args.batch_size, action_dim, device=args.device)  # refilled each update
    example = buffer.example(args.batch_size)

    with Run(args, agent, envs, eval_envs, [buffer]) as run:  # --resume loads agent, buffer here
        update = run.compile(Agent.update, example, noise)  # which leaves agent as it is
        obs = run.begin()  # the first observations, or those of the checkpoint
        say(f"actions are random until step {args.learning_starts:,}, then updates begin")
        if run.evaluation_due():  # at step 0 it is
            run.evaluate()
            run.checkpoint()  # which spares --resume this evaluation
        while run.global_step < args.total_timesteps:
            if run.global_step < args.learning_starts:
                action = np.random.uniform(-1, 1, (args.num_envs, action_dim))
            else:
                action = agent.explore(obs)
            run.lap("act")  # counts the time since the last lap as acting

            # no environment resets itself: next_obs is the true one, at the end of an episode too
            next_obs, reward, terminated, truncated, infos = envs.step(agent.scale(action))
            require_finite(obs=obs, action=action, next_obs=next_obs, reward=reward)
            run.global_step += args.num_envs
            # truncated is not stored, since (2) bootstraps past a time limit
            buffer.add(obs, action, reward, terminated, next_obs)
            obs = reset_finished(envs, terminated | truncated, next_obs)
            run.lap("env")

            # none, one or several, until there are utd updates per transition since learning_starts
            while run.updates < args.utd * (run.global_step - args.learning_starts):
                batch = buffer.sample(args.batch_size)
                metrics = update(batch, noise.normal_())  # Agent.update, perhaps compiled
                run.record(metrics)
                run.updates += 1
            run.lap("update")

            run.log_episodes(infos, truncated)
            if run.log_due():
                run.log_interval()
            if run.evaluation_due():
                run.evaluate()
            if run.checkpoint_due():
                run.checkpoint()  # and end here, if a signal came
    return agent


def check(args):
    """Refuse settings that cannot work, in one sentence."""
    positive = ["total_timesteps", "num_envs", "buffer_size", "batch_size", "utd", "hidden_size"]
    positive += ["num_critics", "num_quantiles"]
    positive += ["critic_lr", "actor_lr", "alpha", "alpha_lr", "eval_episodes"]
    for name in positive:
        require(0 < getattr(args, name) < math.inf, name, "must be positive and finite")
    require(args.hidden_size <= 16_384, "hidden_size", "must be at most 16,384")
    require(args.utd <= 1_000, "utd", "must be at most 1,000")
    for name in ["gamma", "tau"]:
        require(0 <= getattr(args, name) <= 1, name, "must be between 0 and 1")
    for name in ["seed", "threads", "log_every", "eval_every", "checkpoint_every"]:
        require(0 <= (getattr(args, name) or 0) < 2**63, name, "must not be negative or huge")
    require(args.num_critics <= 100, "num_critics", "must be at most 100")
    at_most = 1_000 // args.num_critics
    remedy = f"must be at most {at_most} with --num-critics {args.num_critics}"
    require(args.num_quantiles <= at_most, "num_quantiles", remedy)
    fits = 0 <= args.drop_atoms < args.num_quantiles
    remedy = f"{args.drop_atoms} must be at least 0 and below --num-quantiles, {args.num_quantiles}"
    require(fits, "drop_atoms", remedy)
    require(math.isfinite(args.target_entropy or 0), "target_entropy", "must be finite")
    ordered = -math.inf < args.log_std_min < args.log_std_max < math.inf
    require(ordered, "log_std_min", "must be finite and below --log-std-max")
    starts = args.learning_starts
    require(args.batch_size <= starts, "batch_size", f"must be at most --learning-starts, {starts}")
    earlier = max(args.batch_size, args.total_timesteps // 2)
    remedy = f"for a short run add --learning-starts {earlier}"
    if args.total_timesteps <= args.batch_size:
        remedy = f"with --batch-size {args.batch_size} use at least {args.batch_size + 1} steps"
        remedy += f" and --learning-starts {args.batch_size}"
    sentence = f"{args.total_timesteps} must be above --learning-starts, {starts}: {remedy}"
    require(args.total_timesteps > starts, "total_timesteps", sentence)


# ==================================================================================================
# Plumbing: each function and class is identical in every script that has it; none is about TQC.
# ==================================================================================================
SCRIPT = Path(globals().get("__file__", "pasted.py")).resolve()  # a notebook's cell has no file
TRAIN, EVALUATE = 0, 1  # streams of seeds
EVALUATION_STEPS = 30_000  # at most, in an episode of an evaluation
FILM_STEPS = 500  # at most, in a video
NO_FILM = "no videos (they need rgb_array frames; apt-get install libegl1 libgl1)"


# --- messages -------------------------------------------------------------------------------------
def say(text, file=None):
    """Print a line above the progress bar; a closed pipe must not end a run."""
    file = file or sys.stdout
    if file is None:
        return  # the program was started without one
    try:
        tqdm.write(text, file=file)
        file.flush()
    except (OSError, ValueError, RuntimeError):  # the last where a signal interrupts a print
        pass


class Exit(SystemExit, RuntimeError):
    """Ends the program with an exit code, unless one that called main() catches it as an error.

    A search over settings, for example, goes on with `except Exception`; SystemExit would end it.
    """

    def __init__(self, code, sentence):
        super().__init__(code)
        self.sentence = sentence

    def __str__(self):
        """Return the reason."""
        return self.sentence

    def __reduce__(self):
        """Let processes pass it on."""
        return Exit, (self.code, self.sentence)


def refuse(name, sentence):
    """Say what is wrong with the flag of that name and exit with 2."""
    sentence = f"--{name.replace('_', '-')} {sentence}"
    say(f"error: {sentence}", sys.stderr)
    raise Exit(2, sentence)


def require(condition, name, sentence):
    """Refuse the flag of that name unless the condition holds."""
    if not condition:
        refuse(name, sentence)


def attempt(sentence, call, *inputs, **options):
    """Call what training can do without; if it fails, warn with the sentence and return False."""
    try:
        call(*inputs, **options)
        return True
    except Exception as error:
        say(f"warning: {sentence}: {error!r:.300}")
        return False


def require_finite(**arrays):
    """Raise FloatingPointError for a NaN or an infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FloatingPointError(f"{name} {array} is not finite")


# --- settings -------------------------------------------------------------------------------------
def whole_number(kind):
    """Teach tyro to read 1e6 as an integer."""
    if kind.type is not int:
        return None

    def read(words):
        try:
            return int(words[0])
        except ValueError:
            number = float(words[0])
        if not number.is_integer():
            raise ValueError(f"{words[0]} is not a whole number")
        return int(number)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def parse_args(cls, argv):
    """Read flags into cls; those of --config FILE or --resume FOLDER count where none is given."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(whole_number)
    args = tyro.cli(cls, args=argv, registry=registry)
    check_text(args)
    flag = "config"
    file = args.config
    remedy = "name a config.toml"
    if args.resume and args.resume != "auto":
        sentence = "cannot go with --resume, which takes the settings of the run: leave it out"
        require(not file, "config", sentence)
        flag = "resume"
        file = Path(args.resume, "config.toml")
        remedy = "name a run folder"
    if not file:
        return args
    try:
        saved = tomllib.loads(Path(file).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        refuse(flag, f"{file} cannot be read ({error}): {remedy}")
    flags = []
    for name, value in saved.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif str(value).startswith("-"):
            flags.append(f"--{name}={value}")  # or it would be taken for a flag
        else:
            flags += [f"--{name}", str(value)]
    args = tyro.cli(cls, args=[*flags, *argv], registry=registry)
    check_text(args)
    return args


def check_text(args):
    """Refuse names that are empty, and text that no file could hold."""
    for name, value in vars(args).items():
        require(value != "" or name == "notes", name, "must not be empty")
        is_text = str(value).encode("utf-8", "ignore").decode() == str(value)
        require(is_text and "\0" not in str(value), name, "must be text in UTF-8")


def resolve(args, preferred_device, least_steps_to_compile, least_eval_period):
    """Return args with all that they leave open settled; with --resume take those of the run."""
    args = adopt_settings(args)
    long_enough = args.total_timesteps >= least_steps_to_compile
    return replace(
        args,
        device=choose_device(args.device, preferred_device),
        threads=limit_threads(args.threads),
        compile=choose_compile(args.compile, long_enough),
        eval_every=period(args.eval_every, args.total_timesteps, 24, least_eval_period),
        checkpoint_every=period(args.checkpoint_every, args.total_timesteps, 20, 2_000),
    )


def choose_device(device, preferred):
    """Return "cpu" or "cuda"."""
    present = torch.cuda.is_available()
    require(present or device != "cuda", "device", "cuda finds no CUDA device: use --device cpu")
    if device == "auto":
        device = preferred if present else "cpu"
    return device


def limit_threads(threads):
    """Limit every pool of threads in this process and return their number; round denormals to 0.

    The number is saved with the run, since results depend on it in the last bits.
    """
    import threadpoolctl  # here, since it changes os.environ

    threads = threads or min(torch.get_num_threads(), 4)
    require(threads <= 1024, "threads", "must be at most 1024")
    threadpoolctl.threadpool_limits(threads)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # averages of zero gradients decay to slow, tiny numbers
    return threads


def choose_compile(mode, long_enough):
    """Return "on" or "off"; compilation takes a minute, and needs a C++ compiler."""
    if mode == "auto":
        mode = "on" if long_enough and shutil.which(os.environ.get("CXX", "c++")) else "off"
    return mode


def period(every, total, times, least):
    """Return every, or by default the period that fits so many times into the run."""
    if every is None:
        every = max(math.ceil(total / times), least)
    return every


def check_memory(device, name, rows, row_bytes):
    """Refuse a number of rows, set by the flag of that name, that does not fit into memory."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = psutil.virtual_memory().available
    fits = int(0.8 * free / row_bytes)
    flag = f"--{name.replace('_', '-')}"
    require(rows <= fits, name, f"needs {rows * row_bytes / 1e9:.1f} GB: {flag} {fits} fits")


# --- random numbers -------------------------------------------------------------------------------
def seed_everything(seed):
    """Seed all global generators; environments have seeds of their own, see episode_seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator_states():
    """Return the states of all global random generators, in a form that torch.save writes."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_generator_states(states):
    """Put all global generators into states that generator_states() returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])  # of the one device that a run uses


@contextmanager
def undisturbed_generators():
    """Let what happens inside draw random numbers without changing those drawn later."""
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)


def episode_seed(*key):
    """Derive a seed from (stream, ..., environment, episode), as a C int for old simulators."""
    return int(np.random.SeedSequence(key).generate_state(1)[0]) % 2**31


# --- optimizer and compilation --------------------------------------------------------------------
class Adam(nn.Module):
    """Adam (arXiv 1412.6980), written anew since torch.optim breaks the one graph of an update.

    All averages are one vector each, which takes few operations. The step size lr is a tensor:
    optimizer.lr.fill_(x) is a schedule that recompiles nothing. All of it is in the state_dict.
    """

    def __init__(self, parameters, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__()
        self.params = list(parameters)  # a plain list: they are the network's, not ours
        self.sizes = [param.numel() for param in self.params]
        self.beta1, self.beta2 = betas
        self.eps = eps
        self.weight_decay = weight_decay  # decoupled from the gradient, as in AdamW
        zeros = self.params[0].detach().new_zeros(sum(self.sizes))
        self.lr = nn.Buffer(zeros.new_tensor(lr))
        self.exp_avg = nn.Buffer(zeros.clone())
        self.exp_avg_sq = nn.Buffer(zeros.clone())
        self.bias_correction1 = nn.Buffer(zeros.new_zeros(()))  # 1 - beta1^steps
        self.bias_correction2 = nn.Buffer(zeros.new_zeros(()))  # 1 - beta2^steps

    def minimize(self, loss):
        """Do what zero_grad, backward and step do; return the gradient's norm."""
        gradient = self.gradient(loss)
        self.step(gradient)
        return gradient.norm()

    def gradient(self, loss):
        """Return the gradient of the loss with respect to all parameters as one vector."""
        gradients = torch.autograd.grad(loss, self.params)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    @torch.no_grad()
    def step(self, gradient):
        """Move the parameters in place."""
        self.exp_avg.lerp_(gradient, 1 - self.beta1)
        self.exp_avg_sq.lerp_(gradient.square(), 1 - self.beta2)
        self.bias_correction1.mul_(self.beta1).add_(1 - self.beta1)
        self.bias_correction2.mul_(self.beta2).add_(1 - self.beta2)
        scale = (self.exp_avg_sq / self.bias_correction2).sqrt() + self.eps
        lr = self.lr * self.bias_correction1.reciprocal()
        moves = (lr * self.exp_avg / scale).split(self.sizes)
        for param, move in zip(self.params, moves, strict=True):
            if self.weight_decay:
                param.mul_(1 - self.lr * self.weight_decay)
            param.sub_(move.view_as(param))


class Metrics(NamedTuple):
    """Metrics of an update, left on its device, since reading them would wait for the update."""

    names: tuple
    values: torch.Tensor  # [M]


def keep_compiled_code():
    """Choose the folder of compiled code, for later runs to use; one for this run if that fails."""
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path.home() / ".cache" / "deep-rl-baselines"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        say(f"warning: compiled code is not kept for the next run: {error!r:.300}")
        folder = tempfile.mkdtemp()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def compile_update(agent, method, example, mode):
    """Make a method of the agent fast; mode: "on" or "off".

    Return a function of inputs like the example that returns Metrics, and whether it is compiled.
    The method is tried on the example, after which the agent is as before.
    """

    def update(*inputs):
        return torch.stack(list(method(agent, *inputs).values()))

    names = tuple(method(copy.deepcopy(agent), *example).keys())
    compiled = False
    if mode == "on":
        say(f"compiling {method.__name__}: 20 to 60 s, less if cached; --compile off does without")
        keep_compiled_code()
        # trace_autograd_ops: the backward pass is in the same graph; recompile_limit: a process
        # may compile many updates, as tests do
        torch._dynamo.config.load_config({"trace_autograd_ops": True, "recompile_limit": 200})
        # cpp_wrapper: the graph is called without Python. Precompiling C++ headers takes 5 s, more
        # than it saves for one or two graphs
        options = {"cpp_wrapper": True, "cpp_cache_precompile_headers": False}
        torch._logging.set_logs()
        fast = torch.compile(update, fullgraph=True, dynamic=False, options=options)
        state = copy.deepcopy(agent.state_dict())
        compiled = attempt(f"{method.__name__} is not compiled", fast, *example)
        agent.load_state_dict(state)
    if compiled:
        update = fast
        # to compile again in the middle of a run looks like a hang: then PyTorch says why
        torch._logging.set_logs(recompiles=True)

    def update_to_metrics(*inputs):
        return Metrics(names, update(*inputs))

    return update_to_metrics, compiled


# --- environments ---------------------------------------------------------------------------------
class Episodes(gym.Wrapper):
    """Seeds and counts the episodes of an environment, and can repeat the current one.

    Each begins with a seed of its own, derived from (*stream, environment, episode), where stream
    is (TRAIN, seed) or (EVALUATE, seed, evaluation). A run that goes on repeats the actions since
    then, for most environments cannot save their state; so an episode without end costs memory and
    time. Infos, which nobody reads, are left out: an episode tells its return and length at its
    end.
    """

    def __init__(self, env, index):
        super().__init__(env)
        self.action_dtype = env.action_space.dtype
        self.index = index  # among the environments that are stepped together
        self.stream = None
        self.episode = 0
        self.lost = False  # whether repeat() could not go on with an episode

    def reset(self, *, seed=None, options=None):
        """Begin the next episode; options may name a new stream, or states to go on from."""
        options = options or {}
        if "stream" in options:
            self.stream = options["stream"]
            self.episode = 0
        if "states" in options:
            return self.repeat(options["states"][self.index]), {}
        return self.begin(), {}

    def begin(self):
        """Begin the next episode and return its first observation."""
        self.actions = []
        self.total_reward = 0.0
        self.obs, _ = self.env.reset(seed=episode_seed(*self.stream, self.index, self.episode))
        self.episode += 1
        return self.obs

    def step(self, action):
        """Step and remember the action."""
        self.actions.append(action.copy())  # the environment may change what it is given
        if action.dtype != self.action_dtype:
            action = action.astype(self.action_dtype)
        self.obs, reward, terminated, truncated, _ = self.env.step(action)
        reward = np.asarray(reward).item()  # some give an array of one number
        self.total_reward += reward
        info = {}
        if terminated or truncated:
            info = {"episode_return": self.total_reward, "episode_length": len(self.actions)}
        return self.obs, reward, terminated, truncated, info

    def check_interface(self):
        """Reset and step once; raise TypeError if the results are not those of Gymnasium."""
        env = self.unwrapped  # wrappers would fail to unpack them, with a message of their own
        result = env.reset(seed=0)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError("its reset() must return obs, info")
        result = env.step(env.action_space.sample())
        if len(result) != 5:
            raise TypeError("its step() must return obs, reward, terminated, truncated, info")
        if np.size(result[1]) != 1:
            raise TypeError(f"its reward must be one number, not {result[1]}")

    def state(self):
        """Return the actions that repeat the current episode, and what they must lead to."""
        return {
            "episode": self.episode,
            "actions": np.array(self.actions),
            "obs": np.array(self.obs),
            "total_reward": self.total_reward,
        }

    def repeat(self, state):
        """Bring the environment to a state by its seed and actions; return the observation."""
        self.episode = state["episode"] - 1
        self.begin()
        try:
            for action in state["actions"]:
                self.step(action)
            same = np.array_equal(self.obs, state["obs"])
            same = same and self.total_reward == state["total_reward"]
        except Exception:  # some refuse to be stepped after an end, which comes too early here
            same = False
        if not same:
            say(f"warning: environment {self.index} does not repeat itself: a new episode begins")
            self.lost = True
            self.begin()
        return self.obs


def make_env(env_id, index, film=False, max_steps=None):
    """Build one environment of flat observations; filmed, it renders rgb_array frames if it can."""
    env = build_env(env_id, film)
    if env.render_mode == "rgb_array":
        render_cheaply(env.unwrapped)
    try:
        flat_space = gym.spaces.flatten_space(env.observation_space)
    except NotImplementedError:  # a space that is none of Gymnasium's
        close_envs(env)
        refuse("env_id", f"{env_id} has observations that cannot be flattened into a Box")
    if flat_space != env.observation_space:
        env = gym.wrappers.FlattenObservation(env)
    if max_steps:
        env = gym.wrappers.TimeLimit(env, max_steps)
    return Episodes(env, index)


def build_env(env_id, film, **options):
    """Build an environment; filmed, it renders frames, or a warning says why it does not."""
    options["disable_env_checker"] = True
    env = gym.make(env_id, **options)
    if not film or "rgb_array" not in (env.metadata.get("render_modes") or []):
        return env
    close_envs(env)  # it had to be built to tell how it renders
    try:
        return gym.make(env_id, render_mode="rgb_array", **options)
    except Exception as error:  # environments raise all kinds
        say(f"warning: {NO_FILM}: {error!r:.300}")
        return gym.make(env_id, **options)


@contextmanager
def refusing(env_id, several=False):
    """Refuse an environment that cannot be built; find modules in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # my_module is found from a run's copy of the script, too
    try:
        with chdir("."):  # puts the working directory back afterwards
            yield
    except Exit:
        raise
    except (Exception, SystemExit) as error:  # environments raise all kinds
        reason = " ".join(str(error).split()) or repr(error)
        if isinstance(error, SystemExit):
            reason = f"it ends the program by {error!r}"
        reason += place_of(error)
        if ":" in env_id and isinstance(error, gym.error.UnregisteredEnv):
            reason += f" Does {env_id.split(':')[0]} call gymnasium.register for it?"
        elif several and not isinstance(error, ImportError | gym.error.Error):
            reason += "; if there can be only one at a time: --num-envs 1 --eval-every 0"
            reason += ", and with --evaluate: --eval-episodes 1"
        refuse("env_id", f"{env_id} fails: {reason}")


def place_of(error):
    """Name the file and line of an environment's code that raised an error, if it is known."""
    if hasattr(error, "place_in_worker"):  # where it was raised, in another process
        return error.place_in_worker
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        ours = Path(frame.filename).name == SCRIPT.name
        gymnasiums = Path(gym.__file__).parent in Path(frame.filename).parents
        if ours or gymnasiums:
            break  # it says itself what is wrong
        if not frame.filename.startswith("<"):  # <frozen importlib._bootstrap> and the like
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def make_envs(env_id, num_envs, film=False, max_steps=None, vector=gym.vector.SyncVectorEnv):
    """Build environments that are stepped together and reset by us; film: the first one renders."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # render without a screen
    gym.logger.min_level = gym.logger.ERROR  # no word on Hopper-v4 being out of date
    limit_mujoco_warnings()
    makers = [partial(make_env, env_id, i, film and i == 0, max_steps) for i in range(num_envs)]
    # only evaluation sets max_steps, and its environments live beside those of training
    several = num_envs > 1 or max_steps is not None
    with refusing(env_id, several):
        return vector(makers, autoreset_mode="Disabled")


def limit_mujoco_warnings():
    """Let MuJoCo say each warning once, not for every environment, and write no log file."""
    said = set()

    def warn(text):
        text = text.partition(" Time =")[0]
        if text not in said:
            said.add(text)
            say(f"MuJoCo: {text}")

    with suppress(Exception):  # it may not be there, or not find OpenGL
        import mujoco

        mujoco.set_mju_user_warning(warn)


def make_eval_envs(args):
    """Build an environment for each episode of an evaluation; one without end is cut."""
    return make_envs(args.env_id, args.eval_episodes, args.capture_video, EVALUATION_STEPS)


def render_cheaply(env):
    """Render Gymnasium's MuJoCo tasks small and plain, 16 times faster.

    The free camera would lose HalfCheetah. Robots of others have views of their own.
    """
    if type(env).__module__.startswith("gymnasium.envs.mujoco"):
        renderer = env.mujoco_renderer
        renderer.width = renderer.height = 256
        env.model.vis.quality.shadowsize = 0
        env.model.vis.quality.offsamples = 0
        renderer.camera_id = 0 if env.model.ncam else -1  # -1: the free one


def try_out(envs, eval_envs, env_id):
    """Reset and step environments once, so that a run does not begin with one that fails."""
    with refusing(env_id):
        envs.call("check_interface")
        envs.reset(options={"stream": (TRAIN, 0)})
        envs.step(envs.action_space.sample())
        warn_if_dependent(envs, eval_envs)


def warn_if_dependent(envs, eval_envs):
    """Warn if copies of the environment in this process change each other."""
    copies = [*getattr(envs, "envs", []), *getattr(eval_envs, "envs", [])]  # workers have others
    if len(copies) > 1 and not independent(copies[0], copies[1]):
        sentence = "copies of this environment change each other, as where a simulator is global"
        say(f"warning: {sentence}: evaluation and --num-envs change what is trained")


def independent(env, other):
    """Tell whether an environment goes on alike while another one is stepped, as far as we see.

    One that does not repeat itself, or is slow, counts as independent.
    """
    start = time.perf_counter()
    alone = play(env)
    if time.perf_counter() - start > 1:
        return True
    return play(env) != alone or play(env, other) == alone


def play(env, other=None):
    """Return what the first steps of an episode give; step another environment between them."""
    space = copy.deepcopy(env.action_space)  # copies of an environment may share it
    space.seed(0)
    actions = [space.sample() for _ in range(5)]
    env.reset(options={"stream": (0,)})
    if other:
        other.reset(options={"stream": (1,)})
    outcomes = []
    for action in actions:
        if other:
            *_, terminated, truncated, _ = other.step(copy.deepcopy(actions[0]))
            if terminated or truncated:
                other.reset()
        obs, reward, terminated, truncated, _ = env.step(copy.deepcopy(action))
        outcomes.append((np.array(obs).tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            break
    return outcomes


def box_sizes(envs, env_id):
    """Return what an agent of continuous actions must know: obs_dim, low and high."""
    space = envs.single_action_space
    sentence = f"{env_id} has discrete actions: dqn_atari.py learns those of games, from frames"
    require(not isinstance(space, gym.spaces.Discrete), "env_id", sentence)
    bounded = isinstance(space, gym.spaces.Box) and space.is_bounded() and np.size(space.low)
    sentence = f"{env_id} needs a Box of actions, of floats with finite low and high"
    require(bounded and np.issubdtype(space.dtype, np.floating), "env_id", sentence)
    with np.errstate(over="ignore"):
        spans = np.float32(space.high) - np.float32(space.low)
    require(np.isfinite(spans).all(), "env_id", f"{env_id} has bounds of actions beyond float32")
    obs_space = envs.single_observation_space
    flat = isinstance(obs_space, gym.spaces.Box) and np.size(obs_space.low)
    require(flat, "env_id", f"{env_id} has observations that cannot be flattened into a Box")
    return {"obs_dim": obs_space.shape[0], "low": space.low, "high": space.high}


def float32_within(low, high):
    """Return bounds as float32, rounded inwards: some environments refuse what exceeds them."""
    inner_low = np.float32(low)
    inner_high = np.float32(high)
    inner_low = np.where(inner_low < low, np.nextafter(inner_low, np.float32(np.inf)), inner_low)
    inner_high = np.where(
        inner_high > high, np.nextafter(inner_high, np.float32(-np.inf)), inner_high
    )
    return inner_low, inner_high


def close_envs(*all_envs):
    """Close environments, so that servers behind them end and files of theirs are written."""
    for envs in all_envs:
        if envs:
            attempt("environments cannot be closed", envs.close)


def reset_finished(envs, done, next_obs):
    """Begin new episodes where done [N]; return the observations [N, O] to act on."""
    if not done.any():
        return next_obs
    obs, _ = envs.reset(options={"reset_mask": done})
    return obs


# --- evaluation and video -------------------------------------------------------------------------
def evaluate(agent, envs, stream, film, stopped=lambda: False):
    """Play one deterministic episode in each environment; return metrics, or None if stopped.

    The stream names the seeds, see Episodes; no random number of training is used up. The first
    episode is filmed.
    """
    returns, lengths = {}, {}
    with undisturbed_generators():
        obs, _ = envs.reset(options={"stream": stream})
        while len(returns) < envs.num_envs:
            if stopped():
                return None
            if 0 not in returns:
                film.shoot()
            obs, _, terminated, truncated, infos = envs.step(agent.act(obs))
            done = terminated | truncated
            for i in np.flatnonzero(done):  # an environment that ends early begins again, uncounted
                returns.setdefault(i, infos["episode_return"][i])
                lengths.setdefault(i, infos["episode_length"][i])
            obs = reset_finished(envs, done, obs)
    if max(lengths.values()) >= EVALUATION_STEPS:
        say(f"warning: an episode of this evaluation was cut after {EVALUATION_STEPS:,} steps")
    return {
        **mean_sd_min_max("eval/return", torch.tensor(list(returns.values()), dtype=torch.float64)),
        "eval/length_mean": np.mean(list(lengths.values())),
    }


class Film:
    """An MP4 of an episode, written frame by frame; if that fails, one warning and no video."""

    def __init__(self, path, envs, wanted):
        self.path = path
        self.env = envs.envs[0]
        self.fps = envs.metadata.get("render_fps", 30)
        self.rolling = wanted and self.env.render_mode == "rgb_array"
        self.frames = 0
        self.shape = None  # of the first frame
        self.writer = None

    def shoot(self):
        """Add what the environment shows; once that has failed, OpenGL would abort the process."""
        if not self.rolling or self.frames >= FILM_STEPS:
            return
        try:
            frame = self.env.render()
        except Exception as error:  # environments raise all kinds
            say(f"warning: {NO_FILM}: {error!r:.300}")
            self.rolling = False
        else:
            self.rolling = attempt("no video, since it cannot be encoded", self.add, frame)

    def add(self, frame):
        """Encode a frame [H, W, 3]; moviepy's ImageSequenceClip would lose some to rounding."""
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

        if np.ndim(frame) != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError("a frame must be an array [H, W, 3] of uint8")
        if self.shape is None:
            self.shape = frame.shape
            height, width, _ = frame.shape
            self.path.parent.mkdir(exist_ok=True)
            self.writer = FFMPEG_VideoWriter(str(self.path), (width, height), self.fps)
        if frame.shape != self.shape:
            raise ValueError(f"a frame has shape {frame.shape}, and the first had {self.shape}")
        self.writer.write_frame(frame)
        self.frames += 1

    def close(self):
        """Return the path of the video, or None if there is none."""
        if self.writer:
            complete = attempt("no video, since it cannot be encoded", self.writer.close)
            self.rolling = self.rolling and complete
        if self.rolling and self.frames:
            return self.path
        if self.shape:
            attempt(f"{self.path} is no video", self.path.unlink, missing_ok=True)
        return None


def evaluate_run(cls, args, build_envs, sizes_of):
    """Score and film the agent of the run folder --evaluate; print what is found.

    build_envs(args) returns environments, whose sizes_of(envs, env_id) an agent is built with.
    """
    limit_threads(args.threads)
    agent = cls.load(args.evaluate, choose_device(args.device, "cpu"))
    asked = {"eval_episodes": args.eval_episodes, "capture_video": args.capture_video}
    env_id = agent.args.env_id
    number = 10**6  # no evaluation in training has this number, so the episodes are new ones
    path = Path(args.evaluate, "videos", f"evaluate-{args.seed}.mp4").absolute()
    envs = build_envs(replace(agent.args, **asked))
    try:
        sentence = f"{args.evaluate} was trained on another {env_id}, with other sizes or bounds"
        require(same_sizes(agent.sizes, sizes_of(envs, env_id)), "evaluate", sentence)
        try_out(envs, None, env_id)
        seed_everything(args.seed)
        film = Film(path, envs, args.capture_video)
        try:
            metrics = evaluate(agent, envs, (EVALUATE, args.seed, number), film)
        finally:
            video = film.close()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exit:
        raise
    except SystemExit as error:
        refuse("evaluate", f"{args.evaluate}: {env_id} ends the program by {error!r}")
    finally:
        close_envs(envs)
    scores = {name: round(float(value), 4) for name, value in metrics.items()}
    say(f"{scores} {video or ''}")
    return agent


def same_sizes(one, other):
    """Tell whether two environments have observations and actions of the same sizes and bounds."""
    return all(np.array_equal(one[name], other[name]) for name in other)


# --- logging --------------------------------------------------------------------------------------
def mean_sd_min_max(name, values):
    """Return mean, standard deviation, minimum and maximum of a tensor."""
    return {
        f"{name}_mean": values.mean(),
        f"{name}_sd": values.std(correction=0),
        f"{name}_min": values.min(),
        f"{name}_max": values.max(),
    }


class Board:
    """TensorBoard, which training can do without."""

    def __init__(self, folder, purge_step):
        self.writer = None
        self.hook = threading.excepthook
        threading.excepthook = self.ignore_full_disk
        self.attempt(lambda: self.start(folder, purge_step))

    def start(self, folder, purge_step):
        """Begin a file of events, which hides older ones from a step on, or raise OSError."""
        self.writer = SummaryWriter(folder, purge_step=purge_step)

    def ignore_full_disk(self, problem):
        """Leave out the traceback of the writer's thread: the next call tells what is wrong."""
        if not issubclass(problem.exc_type, OSError):
            self.hook(problem)

    def attempt(self, call):
        """Call something of the writer, and do without it once that has failed."""
        if not attempt("no TensorBoard from here on", call):
            self.writer = None

    def write_settings(self, settings):
        """Write a table of settings."""
        lines = [f"|{name}|{value}|" for name, value in settings.items()]
        table = "\n".join(["|setting|value|", "|-|-|", *lines])
        if self.writer:
            self.attempt(lambda: self.writer.add_text("hyperparameters", table))

    def log(self, metrics, step):
        """Write scalars."""
        if self.writer:
            self.attempt(lambda: self.add_scalars(metrics, step))

    def add_scalars(self, metrics, step):
        """Write scalars, or raise what the writer raises."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def flush(self):
        """Put on the disk what was written."""
        if self.writer:
            self.attempt(self.writer.flush)

    def close(self):
        """Write what is left."""
        if self.writer:
            self.attempt(self.writer.close)
        threading.excepthook = self.hook


class Tracker:
    """Weights & Biases, online or offline; whatever happens to it, training goes on."""

    def __init__(self, args, folder, run_id):
        self.run = None
        if args.track:
            self.attempt(lambda: self.start(args, folder, run_id))

    def attempt(self, call):
        """Call something of W&B, and do without it once that has failed."""
        if not attempt("no W&B from here on", call):
            self.run = None

    def start(self, args, folder, run_id):
        """Begin the run, or go on with it; offline where there is no account."""
        import wandb

        mode = None
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
            mode = "offline"
        run = wandb.init(
            project=args.wandb_project_name or os.environ.get("WANDB_PROJECT", "deep-rl-baselines"),
            entity=args.wandb_entity,
            group=f"{args.env_id}__{SCRIPT.stem}",
            name=folder.name,
            id=run_id,
            resume="allow",
            notes=args.notes,
            config={"script": SCRIPT.stem, **config_of(args)},
            mode=mode,
            settings=wandb.Settings(init_timeout=20, finish_timeout=120),
        )
        run.define_metric("*", step_metric="global_step")
        run.log_code(str(folder), include_fn=lambda path: path.endswith("script.py"))
        self.video = wandb.Video
        self.run = run

    def log(self, row, video=None):
        """Send a row of metrics and a video."""
        if self.run:
            self.attempt(lambda: self.send(row, video))

    def send(self, row, video):
        """Send a row, or raise whatever W&B raises."""
        if video:
            row = {**row, "videos": self.video(str(video))}
        self.run.log(row)

    def finish(self, exit_code):
        """Upload what is left."""
        if self.run:
            self.attempt(lambda: self.run.finish(exit_code))


class Progress:
    """A live bar on a terminal; elsewhere a plain line for each row of metrics."""

    def __init__(self, step, total):
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=total, initial=step, unit="step", dynamic_ncols=True, disable=not on_terminal
        )
        self.notes = {}

    def update(self, step, **notes):
        """Move the bar to a step; notes, such as a return, are shown beside it."""
        if notes and not self.bar.disable:
            self.notes.update(notes)
            shown = [f"{name} {value:.4g}" for name, value in self.notes.items()]
            self.bar.set_postfix_str(" ".join(shown), refresh=False)
        self.bar.update(step - self.bar.n)

    def line(self, text):
        """Print a line, unless the bar tells the same."""
        if self.bar.disable:
            say(text)

    def close(self):
        """Leave the bar as it is."""
        self.bar.close()


def git_state():
    """Return the commit of the checkout that the script is in, and what differs from it."""

    def git(*words):
        command = ["git", "-C", str(SCRIPT.parent), *words]
        return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout

    try:
        commit = git("rev-parse", "HEAD").decode().strip()
        # without refreshing the index, since its lock would be in the way of a user's commit
        changes = git("-c", "diff.autoRefreshIndex=false", "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None, b""
    return commit, changes


def hardware(device):
    """Name the system, the processors and, if the run is on it, the CUDA device."""
    model = platform.processor()
    with suppress(OSError):  # Linux names the model only here
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        line = re.search(r"^model name\s*: (.+)$", cpuinfo, re.M)
        model = line[1] if line else model
    words = [platform.platform(), f"{os.cpu_count()} CPUs", model]
    if device == "cuda":
        words.append(torch.cuda.get_device_name())
    return " ".join(word for word in words if word)


# --- run folder -----------------------------------------------------------------------------------
# The settings that --resume may change, since no weight and no metric depends on them. A script
# with a schedule over total_timesteps must not list it here.
FREE = {
    "total_timesteps",
    "checkpoint_every",
    "capture_video",
    "track",
    "wandb_project_name",
    "wandb_entity",
    "notes",
    "run_dir",
    "config",
    "evaluate",
}
# The settings that resolve() settles where they are left open
SETTLED = {"eval_every", "threads", "compile"}
# What a run leaves that died before its config.toml was written
BEGUN = {"metrics.jsonl", "script.py", "script.part", "changes.diff", "changes.part", "config.part"}


def write_atomically(path, write):
    """Let write(file) fill a file beside, then rename it: others see all of it or nothing."""
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path):
    """Put on the disk which files a folder holds, where the file system can do that."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_tensors(path, content):
    """Write what torch.load reads; torch.save itself would hide the OSError of a full disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def with_tensors(state):
    """Return a dict with tensors for arrays, which torch.save writes free of pickled code."""
    converted = {}
    for name, value in state.items():
        converted[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    return converted


def with_arrays(state):
    """Return a dict with arrays for tensors, which processes pass on as plain bytes."""
    converted = {}
    for name, value in state.items():
        converted[name] = value.numpy() if isinstance(value, torch.Tensor) else value
    return converted


def config_of(args):
    """Return the settings that config.toml holds: all that have a value, without the folder."""
    settings = {name: value for name, value in vars(args).items() if value is not None}
    for name in ["run_dir", "resume"]:
        settings.pop(name, None)
    return settings


def read_config(cls, folder):
    """Return the settings of a run as cls, or exit with 2."""
    try:
        return cls(**tomllib.loads(Path(folder, "config.toml").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        refuse("resume", f"{folder} is no run folder of this script ({error!r:.200}): name another")


def is_finished(folder):
    """Tell whether a run has ended as it should; a summary cut short by a crash does not count."""
    try:
        return json.loads(Path(folder, "summary.json").read_text("utf-8"))["status"] == "finished"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def end_if_finished(folder):
    """If the run in a folder is finished, say so and exit with 0."""
    if is_finished(folder):
        say(f"{folder} is finished")
        raise SystemExit(0)


def adopt_settings(args):
    """With --resume, return the settings of the run that goes on; refuse what differs from them.

    If that run is finished, say so and exit with 0. If "auto" finds no run, return args.
    """
    if not args.resume:
        return args
    if args.resume != "auto":
        same = args.run_dir is None or Path(args.run_dir) == Path(args.resume)
        require(same, "run_dir", f"must be {args.resume}, or be left out with --resume")
        args = replace(args, run_dir=args.resume)
    require(args.run_dir, "resume", "auto needs --run-dir FOLDER")
    folder = Path(args.run_dir)
    if args.resume == "auto" and not (folder / "config.toml").exists():
        return args

    saved = read_config(type(args), folder)
    refuse_changes(args, saved, folder)
    end_if_finished(folder)
    free = {name: getattr(args, name) for name in FREE}
    if args.checkpoint_every is None:
        free["checkpoint_every"] = saved.checkpoint_every
    if args.device != "auto":
        free["device"] = args.device
    return replace(saved, **free, resume=args.run_dir)


def refuse_changes(asked, saved, folder):
    """Exit with 2 unless a run with the settings asked for is the one in the folder.

    What is not asked for, and was settled when the run began, stays as it is.
    """
    for field in fields(asked):
        asked_value = getattr(asked, field.name)
        saved_value = getattr(saved, field.name)
        left_open = field.name in SETTLED and asked_value in (None, "auto")
        if field.name == "compile" and saved_value == "off":
            left_open = True  # a compilation that failed is not tried again
        may_change = field.name in FREE | {"resume", "device"}
        agrees = asked_value == saved_value or left_open or may_change
        remedy = "ask for that, or begin a new run in another folder"
        sentence = f"is {saved_value} in {folder} and must stay so: {remedy}"
        require(agrees, field.name, sentence)
    grown = asked.total_timesteps - saved.total_timesteps
    sentence = f"can only grow in {folder}: ask for {saved.total_timesteps} or more"
    require(grown >= 0, "total_timesteps", sentence)
    sentence = f"cannot grow: {folder} is finished, and its checkpoint is gone: begin a new run"
    require(not (grown and is_finished(folder)), "total_timesteps", sentence)
    script = folder / "script.py"
    same = script.exists() and script.read_bytes() == source()
    command = f"python {quote(str(script))} --resume {quote(str(folder))}"
    remedy = f"go on with {command}, or begin a new run in another folder"
    require(same, "resume", f"{SCRIPT.name} is not the source that began {folder}: {remedy}")


def source():
    """Return the bytes of this script: none where it was pasted or piped into Python."""
    return SCRIPT.read_bytes() if SCRIPT.is_file() else b""


class MetricsFile:
    """metrics.jsonl, a JSON object a line; rows that find the disk full wait in memory."""

    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115
        self.waiting = b""
        self.warned = False

    def write(self, row):
        """Append a row, after those that wait."""
        self.waiting += json.dumps(row).encode() + b"\n"
        try:
            self.flush()
        except OSError as error:
            if not self.warned:
                say(f"warning: metrics.jsonl waits in memory for space on the disk: {error}")
            self.warned = True

    def flush(self):
        """Write what waits, or raise OSError."""
        while self.waiting:
            written = self.file.write(self.waiting)
            self.waiting = self.waiting[written:]

    def sync(self):
        """Put all rows on the disk, or raise OSError; return the size of the file."""
        self.flush()
        os.fsync(self.file.fileno())
        return self.size()

    def size(self):
        """Return the bytes on the disk."""
        return os.fstat(self.file.fileno()).st_size


class RunFolder:
    """A folder that belongs to one run and, while it lives, to one process."""

    def __init__(self, args):
        self.shown = args.run_dir or f"runs/{self.new_name(args)}"  # as people see it
        self.parent = Path.cwd()  # an environment may change the working directory
        self.path = self.parent / self.shown
        # adopt_settings has put the folder's name in the place of "auto" where there is a run
        self.resumed = args.resume not in (None, "auto")
        self.check_content(args)
        try:
            self.path.mkdir(parents=True, exist_ok=bool(args.resume))
            self.metrics = MetricsFile(self.path / "metrics.jsonl")
        except OSError as error:
            refuse("run_dir", f"{self.shown} cannot be written ({error}): name another")
        self.lock()
        if self.resumed:  # again, since the process that used it may have ended meanwhile
            end_if_finished(self.shown)

    def new_name(self, args):
        """Return a name that no other folder in runs/ has."""
        name = f"{args.env_id}__{SCRIPT.stem}__{args.seed}__{time.time_ns() // 10**6}"
        name = re.sub("[/:]", "_", name)
        while Path("runs", name).exists():  # of two runs that begin in the same millisecond
            name += "b"
        return name

    def check_content(self, args):
        """Refuse a folder that exists, unless its run goes on, or died as it began."""
        try:
            self.is_new = not self.path.exists()
            file_names = {path.name for path in self.path.glob("*")}
        except OSError as error:  # a name that is too long, a folder that may not be read
            refuse("run_dir", f"{self.shown:.200} cannot be used ({error.strerror}): name another")
        died_at_once = args.resume == "auto" and file_names <= BEGUN
        usable = self.resumed or self.is_new or died_at_once
        require(usable, "run_dir", f"{self.shown} is there: name a new folder, or --resume a run")
        complete = not self.resumed or "metrics.jsonl" in file_names
        sentence = f"fails: {self.shown} has no metrics.jsonl: delete it to begin anew"
        require(complete, "resume", sentence)

    def lock(self):
        """Refuse a folder that another living process writes to.

        The lock is on metrics.jsonl, which is open until the end. Whatever ends a process frees it.
        """
        try:
            fcntl.flock(self.metrics.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refuse("run_dir", f"{self.shown} is in use by a living process: name another")
        except OSError:
            pass  # a file system without locks

    def path_to(self, file):
        """Return the shorter name of a file, as seen from where the program was started."""
        if file.is_relative_to(self.parent):
            file = file.relative_to(self.parent)
        return str(file)

    def write(self, name, content):
        """Write a file of bytes, whole or not at all."""
        write_atomically(self.path / name, lambda file: file.write(content))

    def write_config(self, args):
        """Write config.toml, last of all that a run begins with."""
        lines = []
        for name, value in config_of(args).items():
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{name} = {text}\n")
        self.write("config.toml", "".join(lines).encode())


# --- what changed ---------------------------------------------------------------------------------
# Settings that are no change from one run to the next. The number of steps does count.
NO_CHANGE = (FREE | SETTLED | {"seed", "resume", "log_every"}) - {"total_timesteps"}


def say_changes(args, folder):
    """Say what changed since the latest run beside a run folder, if there is one.

    That is a run in the same environment, of this script or of a copy that begins as it does.
    """
    others = [path for path in folder.parent.glob("[!.]*/config.toml") if path.parent != folder]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    own = source()
    for path in others[:200]:  # reading thousands would take seconds
        try:
            saved = type(args)(**tomllib.loads(path.read_text("utf-8")))
            if saved.env_id != args.env_id:
                continue
            script = (path.parent / "script.py").read_bytes()
        except (OSError, ValueError, TypeError):
            continue  # the run of another script
        if method_of(script) == method_of(own):
            changes = changed_settings(saved, args) + changed_code(script, own)
            number = f"{len(changes)} changes" if len(changes) != 1 else "1 change"
            say(f"since {os.path.relpath(path.parent)}: {', '.join([*changes[:8], number])}")
            return


def method_of(script):
    """Return the first line of a script, which names the method: a copy has the same."""
    return script.partition(b"\n")[0]


def changed_settings(old, new):
    """Name the settings that differ, with both values."""
    changes = []
    for field in fields(new):
        before = getattr(old, field.name)
        after = getattr(new, field.name)
        if before != after and field.name not in NO_CHANGE:
            changes.append(f"{field.name} {before} -> {after}")
    return changes


def changed_code(old, new):
    """Name what differs between two sources, but for comments, docstrings and imports."""
    if old == new:
        return []  # spares reading both
    try:
        before = code_by_name(old)
        after = code_by_name(new)
    except (SyntaxError, ValueError):
        return ["the source"]
    names = dict.fromkeys([*after, *before])
    changed = [name for name in names if before.get(name) != after.get(name)]
    return [name for name in changed if not is_helper(name, changed, before, after)]


def is_helper(name, changed, before, after):
    """Tell whether code is new, or gone, and called by code that is listed as changed itself.

    If you move two lines of Agent.update to a new function, say, only Agent.update is listed.
    """
    if name in before and name in after:
        return False
    own, other = before, after
    if name in after:
        own, other = after, before
    holder, _, last = name.rpartition(".")
    if holder in own and holder not in other:
        return True  # a method of a class that is as new
    call = f"attr='{last}'" if holder else f"id='{last}'"
    for other_name, code in other.items():
        if call in code or other_name.rpartition(".")[2] == last:
            return False  # it may take the place of something
    for caller in changed:
        is_itself = name in (caller, caller.partition(".")[0])  # or a class and its own method
        if not is_itself and call in own.get(caller, ""):
            return True
    return False


def code_by_name(text):
    """Return the syntax of each method, function and constant; not Args, whose values count."""
    code = {}
    for node in ast.parse(text).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or is_text:
            continue
        if isinstance(node, ast.FunctionDef):
            code[node.name] = without_docstring(node)
        elif isinstance(node, ast.AnnAssign):
            code[ast.unparse(node.target)] = ast.dump(node)
        elif not isinstance(node, ast.ClassDef):
            code[ast.unparse(node).splitlines()[0].partition(" =")[0]] = ast.dump(node)
        elif node.name != "Args":
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            for method in methods:
                code[f"{node.name}.{method.name}"] = without_docstring(method)
            node.body = [part for part in node.body if part not in methods]
            code[node.name] = without_docstring(node)
    return code


def without_docstring(node):
    """Return the syntax of a function or a class without the sentence that describes it."""
    if node.body and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    return ast.dump(node)


# --- checkpoints ----------------------------------------------------------------------------------
# A checkpoint is checkpoint/state.pt and the rows of the replay buffer, in a file beside it. Those
# are too many to be written anew each time, so that file is a ring as well, of as many rows as the
# buffer holds plus those that are added between two checkpoints. A checkpoint
#   1. writes the rows added since the last one, over rows that had left the buffer by then
#   2. renames a new state.pt to its place; it says which rows are the buffer's
# Killed in 1, the state.pt of before is there with all its rows; killed in 2, one or the other is.
# The run goes on from there, with all random generators, and so to the same bits.
class BufferFile:
    """The rows of a replay buffer on the disk, each with a checksum of its content and number.

    The buffer has rows, a tensor [capacity, ...], and added, the number of rows ever added.
    """

    def __init__(self, folder, buffer, room, salt, number=0):
        self.folder = folder
        self.number = number  # among the buffers of the run
        self.buffer = buffer
        self.room = room  # rows in the file beyond those of the buffer
        self.salt = salt  # of the run, so that rows of another one are noticed
        self.saved = None  # where the last checkpoint finds its rows: name, length, added

    def save(self):
        """Write the rows added since the last checkpoint; return where to find all of them."""
        capacity = len(self.buffer.rows)
        added = self.buffer.added
        start = max(0, added - capacity)
        if self.has_space(added):
            place = self.saved
            start = max(start, place["added"])
        else:
            name = f"rows-{self.number}-{added}.bin"
            place = {"name": name, "length": capacity + self.room}
        path = self.folder / place["name"]
        with open(path, "r+b" if path.exists() else "w+b") as file:
            for first, count in self.chunks(start, added, place["length"]):
                rows = self.with_checksums(first, count)
                file.seek(first % place["length"] * rows.shape[1])
                file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        return {**place, "added": added}

    def has_space(self, added):
        """Tell whether the file has space for the new rows beside those of the last checkpoint.

        It has none at the first checkpoint, nor after some that failed: then a new file begins.
        """
        if self.saved is None:
            return False
        return added - self.saved["added"] <= self.saved["length"] - len(self.buffer.rows)

    def restore(self, place):
        """Read the rows that a checkpoint names into the buffer, or raise ValueError."""
        width = self.with_checksums(0, 1).shape[1]
        start = max(0, place["added"] - len(self.buffer.rows))
        with open(self.folder / place["name"], "rb") as file:
            for first, count in self.chunks(start, place["added"], place["length"]):
                file.seek(first % place["length"] * width)
                content = file.read(count * width)
                if len(content) < count * width:
                    raise ValueError(f"{place['name']} is too short")
                rows = np.frombuffer(content, np.uint8).reshape(count, width)
                self.put(first, rows[:, :-4].copy())
                # with_checksums takes the rows from the buffer, so they are put there first
                if not np.array_equal(rows, self.with_checksums(first, count)):
                    raise ValueError(f"{place['name']} is damaged")
        self.buffer.added = place["added"]
        self.saved = place

    def delete_others(self):
        """Delete the files that the last checkpoint does not name."""
        for path in self.folder.glob(f"rows-{self.number}-*.bin"):
            if self.saved is None or path.name != self.saved["name"]:
                path.unlink()

    def with_checksums(self, first, count):
        """Return rows of the buffer as bytes, uint8 [count, W + 4], with a CRC-32 at their ends."""
        rows = self.buffer.rows[self.buffer_index(first, count)].cpu().numpy()
        rows = rows.reshape(count, -1).view(np.uint8)
        sums = [zlib.crc32(row, self.salt ^ (first + i)) for i, row in enumerate(rows)]
        return np.concatenate([rows, np.array(sums, "<u4")[:, None].view(np.uint8)], 1)

    def put(self, first, rows):
        """Put rows of bytes, uint8 [count, W], into the buffer."""
        stored = self.buffer.rows
        rows = torch.from_numpy(rows).view(stored.dtype).reshape(len(rows), *stored.shape[1:])
        stored[self.buffer_index(first, len(rows))] = rows.to(stored.device)

    def buffer_index(self, first, count):
        """Return where in the buffer rows are, the first-th of the run and those that follow."""
        return torch.arange(first, first + count) % len(self.buffer.rows)

    def chunks(self, start, stop, length):
        """Split rows into (first, count) of at most 10,000, none across the end of the file."""
        chunks = []
        while start < stop:
            count = min(stop - start, 10_000, length - start % length)
            chunks.append((start, count))
            start += count
        return chunks


def read_checked(path, device="cpu"):
    """Return what torch.save wrote, or raise; torch.load alone misses most flipped bits."""
    with zipfile.ZipFile(path) as file:
        # one flipped bit there makes torch.load skip a tensor's data, without an error
        has_attributes = any(part.external_attr for part in file.infolist())
        if file.testzip() or has_attributes:
            raise ValueError(f"{path.name} is damaged")
    return torch.load(path, map_location=device, weights_only=True)


def model_of(agent):
    """Return what load_agent needs, free of pickled code."""
    return {"args": vars(agent.args), "sizes": agent.sizes, "agent": agent.state_dict()}


def load_agent(cls, args_class, folder, device):
    """Read the agent of a finished run, or of the last checkpoint of another, or exit with 2."""
    path = Path(folder, "model.pt")
    if not path.exists():
        path = Path(folder, "checkpoint", "state.pt")
    try:
        saved = read_checked(path, device)
        agent = cls(args_class(**saved["args"]), **saved["sizes"], device=device)
        agent.load_state_dict(saved["agent"])
    except Exception as error:  # torch.load raises many kinds
        sentence = f"{folder} is no run folder of this script, or has no checkpoint yet"
        refuse("evaluate", f"{sentence}: {error!r:.200}")
    return agent


# --- run ------------------------------------------------------------------------------------------
class Run:
    """All of a run but the algorithm: counters, logs, evaluations, checkpoints and its end.

    What decides how a run goes on is in the agent, the buffers, the environments and here. A
    counter that you add goes on with --resume if __init__, state_dict and load_state_dict name it.
    """

    def __init__(self, args, agent, envs, eval_envs=None, buffers=()):
        self.args = args
        self.agent = agent
        self.envs = envs
        self.eval_envs = eval_envs
        self.buffers = buffers
        # saved in checkpoints
        self.global_step = 0  # environment transitions, over all environments
        self.updates = 0  # gradient steps
        self.scores = []  # mean return of every evaluation
        self.last_evaluation_step = -1
        self.recent = deque(maxlen=100)  # (return, length, truncated) of finished episodes
        self.pending = {}  # metrics of the updates since the last row: {their names: values}
        self.id = secrets.token_hex(4)  # of the run, at W&B too
        # not saved
        self.loaded = None  # the checkpoint that --resume has loaded
        self.stopping = ""  # the signal that came
        self.phase = "starting"
        self.warned = False  # that there is no space for checkpoints
        self.has_compiled = False  # a method of the agent
        self.may_film = args.capture_video  # until a video fails
        self.spent = Counter()  # seconds by activity, since the last row
        self.last_log_step = 0
        self.last_checkpoint_step = 0
        self.board = self.tracker = self.progress = None  # not there before begin()

    # --- begin and end
    def __enter__(self):
        """Take the folder, and what a checkpoint in it holds."""
        self.folder = RunFolder(self.args)
        self.path = self.folder.path
        self.start = self.last_lap = time.perf_counter()
        self.handlers = {}
        self.commit, changes = git_state()
        self.dirty = bool(changes)
        self.hardware = hardware(self.args.device)  # now, since CUDA may be what fails later
        # room for the rows between two checkpoints; 2,000 if none are due but those of signals
        room = max(self.args.checkpoint_every, 2_000) + self.args.num_envs
        self.buffer_files = []
        for number, buffer in enumerate(self.buffers):
            folder = self.path / "checkpoint"
            file = buffer.checkpoint_file(folder, room, salt=int(self.id, 16), number=number)
            self.buffer_files.append(file)
        try:
            if self.folder.resumed:
                self.restore()
            else:
                self.folder.write("script.py", source())
                if changes:
                    self.folder.write("changes.diff", changes)
            self.folder.write_config(self.args)
        except OSError as error:
            self.release()
            if self.folder.is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            refuse("run_dir", f"{self.folder.shown} cannot be written: {error}")
        except BaseException:
            self.release()
            raise
        self.catch_signals()
        return self

    def catch_signals(self):
        """Let SIGTERM, SIGHUP and Ctrl-C end the run where it can next be saved."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers there only
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # which nohup asks for
                self.handlers[number] = signal.signal(number, self.stop)

    def stop(self, number, frame):
        """Remember a signal; before the first step there is nothing to wait for."""
        if self.phase == "ending":
            return  # a run writes its end undisturbed, but by a second Ctrl-C
        self.stopping = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.phase == "starting":
            raise KeyboardInterrupt
        more = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        say(f"{self.stopping}: saving a checkpoint, which ends the run{more}")

    def compile(self, method, *example):
        """Return a method of the agent, compiled if --compile says so, that returns Metrics.

        If the first one fails config.toml says "off", so that a run that goes on does the same. If
        only a later one fails it still says "on", and a run that goes on compiles the first, too.
        """
        update, compiled = compile_update(self.agent, method, example, self.args.compile)
        self.has_compiled = self.has_compiled or compiled
        if self.args.compile == "on" and not self.has_compiled:
            self.args = replace(self.args, compile="off")
            attempt("config.toml still has compile on", self.folder.write_config, self.args)
        return update

    def begin(self):
        """Start where the checkpoint stopped, or at the beginning; return the first obs [N, O]."""
        saved = self.loaded
        self.clear_folder()
        self.start_logs()
        self.say_settings()
        options = {"stream": (TRAIN, self.args.seed)}
        if saved:
            options["states"] = [with_arrays(state) for state in saved["envs"]]
        obs, _ = self.envs.reset(options=options)
        if saved:
            set_generator_states(saved["generators"])
            say(f"going on at step {self.global_step}")
        self.last_lap = time.perf_counter()  # no row counts the start, compilation above all
        gc.collect()
        gc.freeze()  # searching all that was imported for garbage stalls steps
        self.progress = Progress(self.global_step, self.args.total_timesteps)
        self.phase = "training"  # from here on signals wait, also for the checkpoint that follows
        if not saved:
            self.checkpoint()
        return obs

    def clear_folder(self):
        """Cut the metrics after the checkpoint, and delete what an earlier end has written."""
        saved = self.loaded
        self.folder.metrics.file.truncate(saved["metrics_bytes"] if saved else 0)
        for name in ["summary.json", "model.pt"]:
            (self.path / name).unlink(missing_ok=True)
        for name in ["videos", "checkpoint"]:
            (self.path / name).mkdir(exist_ok=True)

    def start_logs(self):
        """Begin TensorBoard and W&B, or go on with them."""
        # a run that goes on hides what was written after its checkpoint, and nothing before that
        has_logged = self.global_step > 0 or len(self.scores) > 0
        self.board = Board(self.path / "tb", self.global_step + 1 if has_logged else 0)
        self.tracker = Tracker(self.args, self.path, self.id)
        if not has_logged:
            self.board.write_settings(config_of(self.args))

    def say_settings(self):
        """Print what changed since the run before, what the run works with, and where it is."""
        args = self.args
        folder = self.folder.shown
        if not self.loaded:
            attempt("no word on what changed", say_changes, args, self.path)
        if args.threads > 1 and os.getloadavg()[0] > os.cpu_count() / 2:
            say("other programs use this machine: --threads 1 may be faster")
        say(f"device {args.device}, {args.threads} threads, compile {args.compile}")
        say(f"run folder {folder}; to watch it: tensorboard --logdir {quote(folder)}")

    def __exit__(self, kind, error, trace):
        """Write model and summary; an interrupt or a failed check ends in one sentence."""
        self.phase = "ending"
        if self.progress:
            self.progress.close()
        status = "finished"
        reason = ""
        if kind is KeyboardInterrupt:
            status = "interrupted"
            reason = f"{self.stopping or 'KeyboardInterrupt'} at step {self.global_step}"
        elif error:
            status = "failed"
            reason = f"{error!r} at step {self.global_step}"
        elif not attempt("the last metrics cannot be written", self.folder.metrics.sync):
            status = "failed"
            reason = "metrics.jsonl cannot be written"
        elif not attempt("model.pt cannot be written", self.write_model):
            status = "failed"
            reason = "model.pt cannot be written"
        if self.board:
            self.board.close()
        written = attempt("no summary.json", self.write_summary, status, reason)
        if status == "finished" and written:
            # last, since until the summary says so the run can go on from here
            shutil.rmtree(self.path / "checkpoint", ignore_errors=True)
        if self.tracker:
            self.tracker.finish(int(status != "finished"))
        self.release()
        self.say_farewell(status, reason)
        if status == "interrupted":
            raise SystemExit(130) from None
        in_one_sentence = kind in (FloatingPointError, SystemExit)
        if in_one_sentence or (kind is None and not (status == "finished" and written)):
            raise Exit(1, reason or "summary.json cannot be written") from None

    def say_farewell(self, status, reason):
        """Print how the run ended, and what to do next."""
        if status == "interrupted" and SCRIPT.exists():
            script = self.folder.path_to(SCRIPT)
            say(f"to go on: python {quote(script)} --resume {quote(self.folder.shown)}")
        report = SCRIPT.parent / "tools" / "report.py"
        command = ""
        if report.exists():
            command = f"python {quote(self.folder.path_to(report))} "
        say(f"{status} {reason}".strip() + f": {command}{quote(self.folder.shown)}")

    def release(self):
        """Let others take the folder and the signals."""
        self.folder.metrics.file.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def write_model(self):
        """Write what load_agent reads."""
        write_tensors(self.path / "model.pt", model_of(self.agent))

    def write_summary(self, status, reason):
        """Write summary.json, by which others know that the run has ended."""
        summary = {"status": status, "reason": reason, "global_step": self.global_step}
        if self.scores:
            tenth = self.scores[-math.ceil(len(self.scores) / 10) :]
            summary["eval_last"] = self.scores[-1]
            summary["eval_last_tenth"] = sum(tenth) / len(tenth)
        seconds = time.perf_counter() - self.start
        summary["updates"] = self.updates
        summary["seconds"] = seconds
        summary["SPS"] = self.global_step / seconds
        summary["script"] = SCRIPT.stem
        summary["command"] = sys.argv
        summary["git_commit"] = self.commit
        summary["git_dirty"] = self.dirty
        summary["hardware"] = self.hardware
        versions = {package.name: package.version for package in distributions()}
        summary["versions"] = {**versions, "python": sys.version}
        text = json.dumps(summary, indent=1).encode()
        write_atomically(self.path / "summary.json", lambda file: file.write(text))

    def is_complete(self):
        """Tell whether all transitions have been made."""
        return self.global_step >= self.args.total_timesteps

    def due(self, every, since):
        """Tell whether a period of that many transitions, or the run, ended after a step."""
        return every > 0 and (self.is_complete() or self.global_step // every > since // every)

    # --- checkpoints
    def checkpoint_due(self):
        """Tell whether it is time to save, or a signal asks for it."""
        if self.is_complete():  # then model.pt is written
            return bool(self.stopping)
        return bool(self.stopping) or self.due(
            self.args.checkpoint_every, self.last_checkpoint_step
        )

    def checkpoint(self):
        """Save all that decides how the run goes on; if a signal came, end by KeyboardInterrupt."""
        weights = self.agent.named_parameters()
        require_finite(**{name: weight.detach().cpu().numpy() for name, weight in weights})
        try:
            self.write_checkpoint()
            self.warned = False
        except OSError as error:
            step = self.global_step
            if not self.warned:
                say(f"warning: no checkpoint at step {step}, the last one stays: {error}")
            self.warned = True
        self.last_checkpoint_step = self.global_step
        self.lap("checkpoint")
        if self.stopping:
            raise KeyboardInterrupt

    def write_checkpoint(self):
        """Write the buffers' new rows, then state.pt, then delete what it does not name."""
        try:
            rows = [file.save() for file in self.buffer_files]
            metrics_bytes = self.folder.metrics.sync()
            self.board.flush()
            state = {
                **model_of(self.agent),
                "rows": rows,
                "envs": [with_tensors(state) for state in self.envs.call("state")],
                "generators": generator_states(),
                "run": self.state_dict(),
                "metrics_bytes": metrics_bytes,
                "seconds": time.perf_counter() - self.start,
            }
            path = self.path / "checkpoint" / "state.pt"
            write_tensors(path, state)
            for file, place in zip(self.buffer_files, rows, strict=True):
                file.saved = place
        finally:
            for file in self.buffer_files:
                file.delete_others()

    def state_dict(self):
        """Return what of this object decides how the run goes on."""
        return {
            "id": self.id,
            "global_step": self.global_step,
            "updates": self.updates,
            "scores": self.scores,
            "last_evaluation_step": self.last_evaluation_step,
            "recent": list(self.recent),
            # those without rows, too: the order of names is that of a row in metrics.jsonl
            "pending": [
                (names, torch.stack(rows) if rows else torch.empty(0))
                for names, rows in self.pending.items()
            ],
        }

    def load_state_dict(self, state):
        """Take over what state_dict returned."""
        self.id = state["id"]
        self.global_step = self.last_log_step = self.last_checkpoint_step = state["global_step"]
        self.updates = state["updates"]
        self.scores = state["scores"]
        self.last_evaluation_step = state["last_evaluation_step"]
        self.recent.extend(state["recent"])
        for names, rows in state["pending"]:
            self.pending[names] = list(rows.to(self.args.device))

    def restore(self):
        """Load the checkpoint, or exit with 2 and leave all as it is."""
        path = self.path / "checkpoint" / "state.pt"
        size = self.folder.metrics.size()
        if not path.exists() and size == 0:
            return  # it died before its first step
        try:
            saved = read_checked(path)
            if size < saved["metrics_bytes"]:
                raise ValueError("metrics.jsonl is too short")
            if not same_sizes(saved["sizes"], self.agent.sizes):
                raise ValueError("the environment has other observations or actions by now")
            for name in vars(self.args).keys() - FREE - {"resume", "device", "compile"}:
                if saved["args"][name] != getattr(self.args, name):
                    raise ValueError(f"its checkpoint is of a run with another {name}")
            self.agent.load_state_dict(saved["agent"])
            self.load_state_dict(saved["run"])
            for file, place in zip(self.buffer_files, saved["rows"], strict=True):
                file.salt = int(self.id, 16)
                file.restore(place)
        except Exception as error:  # torch.load raises many kinds
            sentence = f"fails ({error!r:.200}); {self.folder.shown} is left as it is"
            refuse("resume", f"{sentence}: delete it to begin anew")
        self.start -= saved["seconds"]
        self.loaded = saved

    # --- logs
    def lap(self, activity):
        """Count the time since the last lap as spent on an activity."""
        now = time.perf_counter()
        self.spent[activity] += now - self.last_lap
        self.last_lap = now

    def record(self, metrics):
        """Keep the metrics of an update for the next row."""
        if self.args.log_every:
            self.pending.setdefault(metrics.names, []).append(metrics.values)

    def log(self, metrics, video=None):
        """Send scalars to every sink, with global_step and seconds since the start; W&B a video."""
        metrics = {name: float(value) for name, value in metrics.items()}
        require_finite(**metrics)
        row = {"global_step": self.global_step, "seconds": time.perf_counter() - self.start}
        row.update(metrics)
        self.folder.metrics.write(row)
        self.board.log(metrics, self.global_step)
        self.tracker.log(row, video)

    def log_due(self):
        """Tell whether it is time for a row of metrics."""
        return self.due(self.args.log_every, self.last_log_step)

    def log_episodes(self, infos, truncated):
        """Log the episodes that ended in the latest step, and move the bar."""
        # Gymnasium's infos have, for each key, a mask of the environments that gave it a value
        for i in np.flatnonzero(infos.get("_episode_return", [])):
            episode_return = float(infos["episode_return"][i])
            length = int(infos["episode_length"][i])
            self.recent.append((episode_return, length, bool(truncated[i])))
            self.log({"charts/episodic_return": episode_return, "charts/episodic_length": length})
        self.progress.update(self.global_step)
        self.lap("log")

    def log_interval(self):
        """Log means over the interval's updates, rates, shares of time and the last episodes."""
        seconds = self.spent.total()
        sps = (self.global_step - self.last_log_step) / (seconds - self.spent["eval"])
        metrics = {
            "charts/SPS": sps,
            "charts/updates": self.updates,
            **{f"time/{name}": spent / seconds for name, spent in self.spent.items()},
            **self.agent.learning_rates(),
        }
        self.spent.clear()
        self.last_log_step = self.global_step
        for names, rows in self.pending.items():
            if rows:
                means = torch.stack(rows).mean(0).tolist()  # one transfer from the device
                metrics.update(zip(names, means, strict=True))
                rows.clear()
        mean_return = math.nan
        if self.recent:
            returns, lengths, truncated = torch.tensor(self.recent, dtype=torch.float64).T
            mean_return = returns.mean()
            metrics["charts/average_return"] = mean_return  # is train/return_mean, too
            metrics["env/time_limit_frac"] = truncated.mean()
            metrics |= mean_sd_min_max("train/return", returns)
            metrics |= mean_sd_min_max("train/length", lengths)
        self.log(metrics)
        total = self.args.total_timesteps
        minutes = max(total - self.global_step, 0) / sps / 60
        left = f" left {minutes:.0f} min" if self.updates else ""
        self.progress.update(self.global_step, **{"return": mean_return})
        self.progress.line(
            f"step {self.global_step}/{total} SPS {sps:.0f}{left} return {mean_return:.4g}"
        )
        self.lap("log")

    # --- evaluation
    def evaluation_due(self):
        """Tell whether it is time to evaluate, which a signal may have cut short before."""
        done = self.last_evaluation_step == self.global_step
        return self.due(self.args.eval_every, self.last_evaluation_step) and not done

    def evaluate(self):
        """Score the agent, unless a signal ends the run; film every eighth time and the last."""
        number = len(self.scores)
        path = self.path / "videos" / f"step-{self.global_step}.mp4"
        film = Film(path, self.eval_envs, self.may_film and (number % 8 == 0 or self.is_complete()))
        filming = film.rolling
        stream = (EVALUATE, self.args.seed, number)
        try:
            metrics = evaluate(
                self.agent, self.eval_envs, stream, film, stopped=lambda: bool(self.stopping)
            )
        finally:
            video = film.close()
        if metrics is None:
            path.unlink(missing_ok=True)
            self.checkpoint()  # which ends the run; --resume evaluates again
            return
        if filming and not video:
            self.may_film = False  # trying again might abort the process
        self.log(metrics, video)
        self.scores.append(float(metrics["eval/return_mean"]))
        self.last_evaluation_step = self.global_step
        self.progress.update(self.global_step, eval=self.scores[-1])
        shown = f"{self.folder.shown}/videos/{video.name}" if video else ""
        say(f"step {self.global_step} eval {self.scores[-1]:.4g} {shown}".rstrip())
        self.lap("eval")


if __name__ == "__main__":
    main(parse_args(Args, sys.argv[1:]))
