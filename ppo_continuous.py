"""Proximal Policy Optimization (PPO-clip, arXiv 1707.06347) with GAE (arXiv 1506.02438).

The agent acts for rollout_steps transitions, then learns from them alone, in update_epochs passes
over shuffled minibatches. Observations are normalised by mean and standard deviation of those of
earlier rollouts, rewards by the standard deviation of discounted returns, this rollout's included;
both are clipped at 10.

(1) action = actor(obs) + exp(log_std) * noise, noise ~ N(0, 1); clipped to [-1, 1] when it is taken
    logp = sum over dimensions of log N(action; actor(obs), exp(log_std))
(2) delta = reward + gamma * (1 - terminated) * critic(next_obs) - critic(obs)
(3) advantage[t] = delta[t] + gamma * gae_lambda * (1 - done[t]) * advantage[t + 1]
    returns = advantage + critic(obs); done is 1 at termination and at truncation
(4) ratio = exp(logp of the networks now - logp when acting)
(5) policy_loss = -mean(min(ratio * advantage, clip(ratio, 1 - c, 1 + c) * advantage)) of advantages
    that are normalised in each minibatch, c = clip_coef
(6) value_loss = mean((critic(obs) - returns)^2) / 2
(7) loss = policy_loss + vf_coef * value_loss - ent_coef * entropy, its gradient clipped in norm

Differs from arXiv 1707.06347: observations, rewards and advantages are normalised; gradients are
clipped; the step size falls linearly; 64 environments of 32 steps, not one of 2,048; truncated
episodes bootstrap.

python ppo_continuous.py --env-id Hopper-v4
python ppo_continuous.py --env-id InvertedPendulum-v4 --total-timesteps 50000
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
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import pickle
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
from collections import Counter, deque
from collections.abc import Callable
from contextlib import chdir, contextmanager, suppress
from ctypes.util import find_library
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import distributions
from itertools import chain, pairwise
from pathlib import Path
from shlex import quote
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import psutil
import torch
import tyro
from gymnasium.vector.utils import batch_space, create_empty_array
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


# --- arguments ------------------------------------------------------------------------------------
@dataclass
class Args:
    """Train PPO; --evaluate scores and films a trained agent instead.

    Numbers in brackets are those of the equations at the top of the script.
    """

    # task
    env_id: str = "Hopper-v4"  # Gymnasium id; my_module:MyEnv-v0 imports my_module
    total_timesteps: int = 1_000_000  # environment transitions, over all environments
    num_envs: int = 64  # environments stepped together
    num_workers: int = 0  # processes that step a share of the environments each; 0: none
    seed: int = 1  # drives networks, environments, exploration and batches

    # algorithm
    rollout_steps: int = 2_048  # transitions per rollout, num_envs at a time
    update_epochs: int = 10  # passes over a rollout
    batch_size: int = 64  # transitions that an update learns from
    hidden_size: int = 64  # units in each fully connected hidden layer
    norm_obs: bool = True  # normalise observations, clipped at 10
    norm_reward: bool = True  # divide rewards by the sd of returns, clipped at 10
    log_std_init: float = -0.5  # (1) initial log_std
    gamma: float = 0.99  # (2) discount per step
    bootstrap_truncated: bool = True  # (2) with --no-..., truncation counts as termination
    gae_lambda: float = 0.95  # (3) weight of later deltas
    recompute_advantages: bool = False  # (3) before every pass, not before the first only
    clip_coef: float = 0.2  # (5) distance of the ratio from 1 beyond which nothing is gained
    clip_vloss: bool = False  # (6) limit the change of values by clip_coef, too
    ent_coef: float = 0.0  # (7) weight of the entropy
    vf_coef: float = 0.5  # (7) weight of the value loss
    max_grad_norm: float = 0.5  # (7) largest norm of a gradient
    learning_rate: float = 3e-4  # (7) Adam's step size
    anneal: bool = True  # (7) lower the step size linearly, towards 0 at the end
    desired_kl: float | None = None  # (7) step size keeps approx_kl near this; needs --no-anneal
    target_kl: float | None = None  # no more passes after one whose mean approx_kl is above this

    # run
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one (PPO: cpu)
    threads: int | None = 1  # CPU threads; None: all cores, at most 4
    compile: Literal["auto", "on", "off"] = "auto"  # auto: if the run is long enough to gain
    log_every: int = 2_048  # transitions between two rows of means; 0: no such rows
    eval_every: int | None = None  # default total / 24, at least 2,000 transitions; 0: never
    eval_episodes: int = 5  # per evaluation, of deterministic actions and at most 30,000 steps
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
def mlp(inputs, hidden_size, outputs, gain):
    """Stack two hidden tanh layers and a linear output of that gain, all of them orthogonal."""
    layers = []
    for _ in range(2):  # hidden layers
        layers.append(nn.Linear(inputs, hidden_size))
        layers.append(nn.Tanh())
        inputs = hidden_size
    layers.append(nn.Linear(inputs, outputs))

    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain if layer is layers[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def in_numpy(net):
    """Return a network as a function of NumPy arrays, which is faster for a few rows.

    It is valid until a parameter changes. A network with a layer that is not known here is called
    as it is.
    """
    known = {nn.Tanh: np.tanh, nn.ReLU: lambda x: np.maximum(x, 0)}
    functions = []
    layers = list(net) if type(net) is nn.Sequential else [net]
    for layer in layers:
        if type(layer) is nn.Linear and layer.bias is not None:
            weight = layer.weight.numpy(force=True)
            bias = layer.bias.numpy(force=True)
            functions.append(partial(affine, weight, bias))
        elif type(layer) in known:
            functions.append(known[type(layer)])
        else:
            return partial(call_network, net)

    def call(x):
        for function in functions:
            x = function(x)
        return x

    return call


def affine(weight, bias, x):
    """Map x [N, I] to [N, O]."""
    return x @ weight.T + bias


@torch.no_grad()
def call_network(net, x):
    """Map an array by a network."""
    device = next(net.parameters()).device
    return net(torch.as_tensor(x, device=device)).cpu().numpy()


def log_density(noise, log_std):
    """Return logp [...] of mean + exp(log_std) * noise [..., A], of arrays or tensors."""
    return (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)  # (1)


class Moments(nn.Module):
    """Mean and variance of all rows seen, in float64."""

    def __init__(self, dim):
        super().__init__()
        zeros = torch.zeros(dim, dtype=torch.float64)
        self.mean = nn.Buffer(zeros.clone())
        self.var = nn.Buffer(zeros + 1)
        self.count = nn.Buffer(zeros.clone())

    def update(self, rows):
        """Take in an array [B, D]; variances merge as in Chan, Golub and LeVeque (1983)."""
        rows = torch.as_tensor(rows, dtype=torch.float64, device=self.mean.device)
        self.count += len(rows)
        share = len(rows) / self.count
        change = rows.mean(0) - self.mean
        self.var.lerp_(rows.var(0, correction=0) + (1 - share) * change.square(), share)
        self.mean += share * change

    def std(self):
        """Return the standard deviation as an array [D], never zero."""
        return np.sqrt(self.var.numpy(force=True) + 1e-8)


# --- rollout --------------------------------------------------------------------------------------
class Rollout:
    """T steps of N environments, arrays [T, N, ...].

    T is rollout_steps / num_envs. The row after the end of an episode is the first of the next one.
    """

    def __init__(self, args, obs_dim, action_dim):
        num_envs = args.num_envs
        steps = args.rollout_steps // num_envs
        self.obs = np.zeros((steps, num_envs, obs_dim))  # raw, not normalised
        self.action = np.zeros((steps, num_envs, action_dim))  # not clipped to [-1, 1]
        self.logp = np.zeros((steps, num_envs))
        self.reward = np.zeros((steps, num_envs))  # raw
        self.terminated = np.zeros((steps, num_envs), bool)
        self.truncated = np.zeros((steps, num_envs), bool)
        self.next_obs = np.zeros((steps, num_envs, obs_dim))  # of the same episode, at its end too
        self.length = 0  # steps that are there

    def add(self, obs, action, logp, reward, terminated, truncated, next_obs):
        """Copy one step of all environments in, arrays [N, ...]."""
        t = self.length
        self.obs[t] = obs
        self.action[t] = action
        self.logp[t] = logp
        self.reward[t] = reward
        self.terminated[t] = terminated
        self.truncated[t] = truncated
        self.next_obs[t] = next_obs
        self.length += 1

    def is_full(self):
        """Tell whether all T steps are there."""
        return self.length == len(self.obs)

    def done(self):
        """Return where an episode ended, for whatever reason, [T, N]."""
        return self.terminated | self.truncated


class Batch(NamedTuple):
    """What there is to learn from a rollout, one row for each transition."""

    obs: torch.Tensor  # [B, O], normalised
    action: torch.Tensor  # [B, A], not clipped
    logp: torch.Tensor  # [B], when acting
    advantage: torch.Tensor  # [B]
    returns: torch.Tensor  # [B]
    value: torch.Tensor  # [B], of the critic when advantages were computed

    def rows(self, index):
        """Return the rows of a minibatch, index [M]."""
        return Batch(*[column[index] for column in self])


# --- agent ----------------------------------------------------------------------------------------
class Snapshot(NamedTuple):
    """What acting needs of an agent, looked up once for each rollout, which is faster.

    It is valid until the agent learns: on the CPU all but obs_std share memory with the agent.
    """

    obs_mean: np.ndarray  # [O]
    obs_std: np.ndarray  # [O]
    actor: Callable  # maps normalised observations [N, O] to the mean [N, A] of actions
    log_std: np.ndarray  # [A]


class Agent(nn.Module):
    """Networks, normalisers and optimizer; it acts and learns.

    Checkpoints save parameters and buffers (nn.Buffer), those of the optimizer included; whatever
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
        self.obs_dim = obs_dim
        self.low, self.high = float32_within(low, high)  # of the environment, [*action shape]
        self.action_dim = self.low.size

        self.actor = mlp(obs_dim, args.hidden_size, self.action_dim, gain=0.01)
        self.critic = mlp(obs_dim, args.hidden_size, 1, gain=1.0)
        self.log_std = nn.Parameter(torch.full((self.action_dim,), args.log_std_init))
        self.obs_moments = Moments(obs_dim)
        self.return_moments = Moments(1)
        # discounted rewards of each environment's episode so far, whose sd scales rewards
        self.running_return = nn.Buffer(torch.zeros(args.num_envs, dtype=torch.float64))
        self.to(device)  # first, so that the optimizer's averages are made there

        # not torch.optim, which would break up the one compiled graph of an update; to use another
        # optimizer copy Adam, from below, and change its step()
        self.opt = Adam(self.parameters(), args.learning_rate, eps=1e-5)

    @classmethod
    def load(cls, folder, device="cpu"):
        """Read the agent of a run folder, or exit with 2 if it holds none of this script."""
        return load_agent(cls, Args, folder, device)

    # acting
    def tensor(self, array):
        """Put an array on the agent's device as float32."""
        return torch.as_tensor(np.float32(array), device=self.log_std.device)

    def scale(self, action):
        """Map actions [N, A], clipped to [-1, 1], to the environment's units [N, *action shape]."""
        action = np.float32(action).reshape(-1, *self.low.shape).clip(-1, 1)
        units = self.low + (self.high - self.low) / 2 * (1 + action)
        return np.minimum(units, self.high)  # rounding may exceed it, which some refuse

    def snapshot(self):
        """Return what acting needs, until the agent learns."""
        return Snapshot(
            obs_mean=self.obs_moments.mean.numpy(force=True),
            obs_std=self.obs_moments.std(),
            actor=in_numpy(self.actor),
            log_std=self.log_std.numpy(force=True),
        )

    def normalize(self, obs, snapshot=None):
        """Map raw observations [..., O] to what the networks see."""
        if self.args.norm_obs:
            snapshot = snapshot or self.snapshot()
            obs = ((obs - snapshot.obs_mean) / snapshot.obs_std).clip(-10, 10)
        return np.float32(obs)

    def explore(self, obs, snapshot=None):
        """Sample actions [N, A] for obs [N, O], to learn from; return them and their logp [N]."""
        snapshot = snapshot or self.snapshot()
        mean = snapshot.actor(self.normalize(obs, snapshot))
        noise = np.random.standard_normal(mean.shape)
        action = mean + np.exp(snapshot.log_std) * noise  # (1)
        return action, log_density(noise, snapshot.log_std)

    def act(self, obs, deterministic=True):
        """Choose actions [N, *action shape] in the environment's units for obs [N, O]."""
        snapshot = self.snapshot()
        if deterministic:
            return self.scale(snapshot.actor(self.normalize(obs, snapshot)))
        action, _ = self.explore(obs, snapshot)
        return self.scale(action)

    @torch.no_grad()
    def value(self, obs):
        """Estimate the return [N] from obs [N, O], in units of the raw reward.

        Training does not need it; it is there to look at what an agent has learned.
        """
        value = self.critic(self.tensor(self.normalize(obs))).squeeze(-1)
        return value.cpu().numpy() * np.float32(self.return_moments.std())

    # learning
    def update(self, rollout, update_minibatch):
        """Learn from a rollout; return Metrics of each minibatch, and Metrics of the rollout.

        The function update_minibatch is the method of that name, perhaps compiled: it returns its
        metrics as Metrics, not as a dict.
        """
        self.update_return_moments(rollout)  # first, since it scales the rewards
        batch, rollout_metrics = self.compute_advantages(rollout)
        minibatches = []
        for epoch in range(self.args.update_epochs):
            if epoch > 0 and self.args.recompute_advantages:
                batch, _ = self.compute_advantages(rollout)
            order = torch.randperm(len(batch.obs), device=self.log_std.device)
            epoch_metrics = []
            for index in order.split(self.args.batch_size):
                epoch_metrics.append(update_minibatch(batch, index))
            minibatches += epoch_metrics
            target_kl = self.args.target_kl
            if target_kl is not None and mean_kl(epoch_metrics) > target_kl:
                break
        if self.args.desired_kl is not None:
            self.adapt_step_size(mean_kl(minibatches))
        # last, since acting and all minibatches must see the same observations
        self.obs_moments.update(rollout.obs.reshape(-1, self.obs_dim))
        rollout_metrics["ppo/ratio_first_mb"] = value_of(minibatches[0], "ppo/ratio_gap")
        # Run.record averages those of the same names; explained_var_mc is not in every rollout
        of_rollout = [Metrics((name,), value[None]) for name, value in rollout_metrics.items()]
        return minibatches, of_rollout

    def anneal(self, progress):
        """Lower the step size linearly with the progress of the run, which goes from 0 to 1."""
        if self.args.anneal:
            self.opt.lr.fill_(self.args.learning_rate * (1 - progress))

    def adapt_step_size(self, kl):
        """Divide the step size by 1.5 if a rollout moved the policy too far, multiply if hardly."""
        lr = self.opt.lr.item()
        if kl > 2 * self.args.desired_kl:
            lr /= 1.5
        elif kl < self.args.desired_kl / 2:
            lr *= 1.5
        self.opt.lr.fill_(min(max(lr, 1e-6), 1e-2))

    def update_return_moments(self, rollout):
        """Take in the running discounted returns, which begin anew with each episode."""
        running = self.running_return.numpy(force=True)
        returns = np.zeros(rollout.reward.shape)
        done = rollout.done()
        for t in range(len(returns)):
            running = rollout.reward[t] + self.args.gamma * running
            returns[t] = running
            running = running * (1 - done[t])
        self.running_return.copy_(torch.from_numpy(running))
        if self.args.norm_reward:
            self.return_moments.update(returns.reshape(-1, 1))

    @torch.no_grad()
    def compute_advantages(self, rollout):
        """Estimate advantages and returns of a rollout; return them as a batch, and metrics."""
        gamma = self.args.gamma
        done = rollout.done()
        # a truncated episode still has reward ahead: only termination stops the bootstrap
        no_future = rollout.terminated if self.args.bootstrap_truncated else done
        # by the statistics that the actor saw: they move at the end of update()
        obs = self.tensor(self.normalize(rollout.obs))
        next_obs = self.tensor(self.normalize(rollout.next_obs))
        value = self.critic(obs).squeeze(-1).cpu().numpy()  # [T, N]
        next_value = self.critic(next_obs).squeeze(-1).cpu().numpy()
        reward = rollout.reward / self.return_moments.std()  # 1 without --norm-reward
        if self.args.norm_reward:
            reward = reward.clip(-10, 10)

        delta = reward + gamma * (1 - no_future) * next_value - value  # (2)
        advantage = self.sum_of_deltas(delta, done)
        batch = Batch(
            obs=obs.flatten(0, 1),
            action=self.tensor(rollout.action).flatten(0, 1),
            logp=self.tensor(rollout.logp).flatten(),
            advantage=self.tensor(advantage).flatten(),
            returns=self.tensor(advantage + value).flatten(),
            value=self.tensor(value).flatten(),
        )
        # what a time limit cut off, as the critic sees it
        cut_off = gamma * done * (1 - no_future) * next_value
        return batch, self.rollout_metrics(rollout, batch, reward + cut_off, value)

    def sum_of_deltas(self, delta, done):
        """Sum up each delta and the later ones of its episode, decayed; all are [T, N]."""
        advantage = np.zeros(delta.shape)
        next_advantage = np.zeros(len(delta[0]))  # 0 after the last step
        for t in reversed(range(len(delta))):
            trace = self.args.gamma * self.args.gae_lambda * (1 - done[t])
            next_advantage = delta[t] + trace * next_advantage  # (3)
            advantage[t] = next_advantage
        return advantage

    def update_minibatch(self, batch, index):
        """Take one gradient step on the rows index [M] of a batch; return metrics by name."""
        obs, action, logp, advantage, returns, value = batch.rows(index)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss, ratio_metrics = self.policy_loss(obs, action, logp, advantage)
        value_loss = self.value_loss(obs, returns, value)
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        mean_log_std = self.log_std.detach().mean()  # before the step
        loss = policy_loss + self.args.vf_coef * value_loss - self.args.ent_coef * entropy  # (7)

        gradient = self.opt.gradient(loss)
        grad_norm = gradient.norm()
        shrink = (self.args.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1)
        self.opt.step(gradient * shrink)
        return {
            "losses/policy_loss": policy_loss.detach(),
            "losses/value_loss": value_loss.detach(),
            **ratio_metrics,
            "losses/entropy": entropy.detach(),
            "policy/log_std": mean_log_std,
            "grad/norm": grad_norm,
        }

    def policy_loss(self, obs, action, logp, advantage):
        """Return the loss of the actor, and metrics of how far it has moved since it acted."""
        clip = self.args.clip_coef
        noise = (action - self.actor(obs)) / self.log_std.exp()
        log_ratio = log_density(noise, self.log_std) - logp
        ratio = log_ratio.exp()  # (4)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        assert gain.shape == logp.shape == advantage.shape == obs.shape[:1]

        gap = (ratio - 1).abs().detach()
        metrics = {
            "losses/approx_kl": (ratio - 1 - log_ratio).mean().detach(),
            "ppo/ratio_gap": gap.max(),
            "losses/clipfrac": (gap > clip).float().mean(),
        }
        return -gain.mean(), metrics  # (5)

    def value_loss(self, obs, returns, value):
        """Return the loss of the critic."""
        new_value = self.critic(obs).squeeze(-1)
        assert new_value.shape == returns.shape == obs.shape[:1]  # [M] - [M, 1] would be [M, M]
        error = (new_value - returns).square()
        if self.args.clip_vloss:
            clip = self.args.clip_coef
            clipped_value = value + (new_value - value).clamp(-clip, clip)
            error = torch.maximum(error, (clipped_value - returns).square())
        return error.mean() / 2  # (6)

    def example(self):
        """Return inputs of update_minibatch, of zeros, to try and compile it with."""
        zeros = partial(torch.zeros, device=self.log_std.device)
        rows = self.args.rollout_steps
        batch = Batch(
            obs=zeros(rows, self.obs_dim),
            action=zeros(rows, self.action_dim),
            logp=zeros(rows),
            advantage=zeros(rows),
            returns=zeros(rows),
            value=zeros(rows),
        )
        return batch, torch.arange(self.args.batch_size, device=self.log_std.device)

    # metrics; a NaN or an infinity in a mean that is logged ends the run
    def rollout_metrics(self, rollout, batch, reward, value):
        """Describe a rollout; see explained_by_outcomes for reward and value [T, N]."""
        error = batch.returns - batch.value
        metrics = {
            **mean_sd_min_max("env/obs", self.tensor(rollout.obs)),
            **mean_sd_min_max("env/reward", self.tensor(rollout.reward)),
            **mean_sd_min_max("ppo/adv", batch.advantage),
            # of what the critic learns, which holds its own predictions; compare explained_var_mc
            "losses/explained_variance": 1 - error.var() / (batch.returns.var() + 1e-8),
        }
        explained = self.explained_by_outcomes(rollout.done(), reward, value)
        if explained is not None:
            metrics["ppo/explained_var_mc"] = self.tensor(explained)
        return metrics

    def explained_by_outcomes(self, done, reward, value):
        """Return the share of the outcomes' variance that the critic explains, 1 at most, or None.

        Only episodes whose end was seen count. All inputs are [T, N], the reward as the critic
        learns it, at a time limit with the value of what that cut off.
        """
        outcome = np.zeros(reward.shape)
        end_seen = np.zeros(reward.shape, bool)
        next_outcome = np.zeros(len(reward[0]))
        next_seen = np.zeros(len(reward[0]), bool)
        for t in reversed(range(len(reward))):
            next_outcome = reward[t] + self.args.gamma * (1 - done[t]) * next_outcome
            next_seen = done[t] | next_seen
            outcome[t] = next_outcome
            end_seen[t] = next_seen
        outcome = outcome[end_seen]
        if len(outcome) == 0 or outcome.var() <= 1e-8:
            return None
        error = outcome - value[end_seen]
        return 1 - error.var() / outcome.var()

    def learning_rates(self):
        """Return the step size in use, which a schedule may have changed by lr.fill_(x)."""
        return {"charts/learning_rate": self.opt.lr}


def value_of(metrics, name):
    """Return the metric of that name."""
    return metrics.values[metrics.names.index(name)]


def mean_kl(minibatches):
    """Return the mean change of the policy over Metrics of minibatches, as KL divergence."""
    kl = [value_of(metrics, "losses/approx_kl") for metrics in minibatches]
    return torch.stack(kl).mean()


# --- training -------------------------------------------------------------------------------------
def main(args):
    """Train as args say and return the agent; with --evaluate score a trained one instead."""
    check(args)
    if args.evaluate:
        return evaluate_run(Agent, args, make_eval_envs, box_sizes)
    refuse_more_steps(args)
    args = resolve(args, "cpu", least_steps_to_compile=100_000, least_eval_period=2_000)
    vector = gym.vector.SyncVectorEnv
    if args.num_workers:
        vector = partial(WorkerEnvs, workers=args.num_workers, threads=args.threads)
    envs = make_envs(args.env_id, args.num_envs, vector=vector)
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
    obs_dim = sizes["obs_dim"]
    action_dim = np.size(sizes["low"])
    row_bytes = 24 * (2 * obs_dim + action_dim + 6)  # three copies in float64
    # the rollout is in the host's memory, whatever the device
    check_memory("cpu", "rollout_steps", args.rollout_steps, row_bytes)
    if args.device == "cuda":  # there is the batch, and what the critic makes of it
        batch_bytes = 4 * (2 * obs_dim + action_dim + 4 + 3 * args.hidden_size)
        check_memory("cuda", "rollout_steps", args.rollout_steps, batch_bytes)

    seed_everything(args.seed)  # after building environments, which may draw random numbers
    agent = Agent(args, **sizes, device=args.device)
    with Run(args, agent, envs, eval_envs) as run:  # --resume loads the agent here
        # which leaves agent as it is
        update_minibatch = run.compile(Agent.update_minibatch, *agent.example())
        obs = run.begin()  # the first observations, or those of the checkpoint
        for index, lost in enumerate(envs.call("lost")):
            if lost:  # after --resume its episode could not be repeated, and a new one has begun
                agent.running_return[index] = 0
        if run.evaluation_due():  # at step 0 it is
            run.evaluate()
            run.checkpoint()  # which spares --resume this evaluation
        while run.global_step < args.total_timesteps:
            rollout = Rollout(args, obs_dim, action_dim)
            snapshot = agent.snapshot()  # the policy is the same until agent.update() below
            while not rollout.is_full() and run.global_step < args.total_timesteps:
                action, logp = agent.explore(obs, snapshot)
                run.lap("act")  # counts the time since the last lap as acting

                # no environment resets itself: next_obs is the true one, at an episode's end too
                next_obs, reward, terminated, truncated, infos = envs.step(agent.scale(action))
                require_finite(obs=obs, action=action, next_obs=next_obs, reward=reward)
                run.global_step += args.num_envs
                rollout.add(obs, action, logp, reward, terminated, truncated, next_obs)
                obs = reset_finished(envs, terminated | truncated, next_obs)
                run.lap("env")
                run.log_episodes(infos, truncated)

            if rollout.is_full():  # the run may end before
                start_step = run.global_step - args.rollout_steps
                agent.anneal(start_step / args.total_timesteps)
                minibatches, of_rollout = agent.update(rollout, update_minibatch)
                run.updates += len(minibatches)
                for metrics in minibatches + of_rollout:
                    run.record(metrics)
            run.lap("update")

            if run.log_due():
                run.log_interval()
            if run.evaluation_due():
                run.evaluate()
            if run.checkpoint_due():
                run.checkpoint()  # and end here, if a signal came
    return agent


def check(args):
    """Refuse settings that cannot work, in one sentence."""
    positive = ["total_timesteps", "num_envs", "rollout_steps", "update_epochs", "batch_size"]
    positive += ["hidden_size", "clip_coef", "max_grad_norm", "learning_rate", "eval_episodes"]
    for name in positive:
        require(0 < getattr(args, name) < math.inf, name, "must be positive and finite")
    require(args.hidden_size <= 16_384, "hidden_size", "must be at most 16,384")
    fits = 0 <= args.num_workers <= args.num_envs
    require(fits, "num_workers", f"must be 0, or up to --num-envs, {args.num_envs}")
    for name in ["ent_coef", "vf_coef"]:
        require(0 <= getattr(args, name) < math.inf, name, "must not be negative")
    for name in ["desired_kl", "target_kl"]:
        kl = getattr(args, name)
        require(kl is None or 0 < kl < math.inf, name, "must be positive and finite")
    alone = args.desired_kl is None or not args.anneal
    require(alone, "desired_kl", "sets the step size, and so does --anneal: add --no-anneal")
    for name in ["gamma", "gae_lambda"]:
        require(0 <= getattr(args, name) <= 1, name, "must be between 0 and 1")
    for name in ["seed", "threads", "log_every", "eval_every", "checkpoint_every"]:
        require(0 <= (getattr(args, name) or 0) < 2**63, name, "must not be negative or huge")
    require(math.isfinite(args.log_std_init), "log_std_init", "must be finite")
    rows = args.rollout_steps
    for name in ["num_envs", "batch_size"]:
        value = getattr(args, name)
        require(rows % value == 0, name, f"{value} must divide --rollout-steps {rows}")
    require(args.batch_size > 1, "batch_size", "must be above 1, to normalise advantages")
    sentence = f"{args.total_timesteps} must reach --rollout-steps, {rows}"
    least = math.lcm(args.num_envs, args.batch_size)
    if args.total_timesteps >= least:
        shorter = args.total_timesteps // least * least
        sentence += f": for a short run add --rollout-steps {shorter}"
    require(args.total_timesteps >= rows, "total_timesteps", sentence)


def refuse_more_steps(args):
    """With --resume, refuse more steps than the run began with if the step size falls over them."""
    folder = args.run_dir if args.resume == "auto" else args.resume
    if folder and args.anneal and Path(folder, "config.toml").exists():
        saved = read_config(Args, folder)
        grows = args.total_timesteps > saved.total_timesteps
        sentence = f"cannot grow in {folder}, where --anneal lowers the step size over all steps"
        require(not (grows and saved.anneal), "total_timesteps", sentence)


# ==================================================================================================
# Plumbing: each function and class is identical in every script that has it; none is about PPO.
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


CLOSING = 30  # seconds that workers have to close their environments


class Request(NamedTuple):
    """A method that a worker is to call of its SyncVectorEnv."""

    method: str
    inputs: tuple = ()
    options: dict | None = None


class Answer(NamedTuple):
    """What came of a request: its result, or the exception that it raised."""

    result: object = None
    error: Exception | None = None


class WorkerEnvs(gym.vector.VectorEnv):
    """Steps environments in worker processes, a share of them in each, all at the same time.

    Gymnasium's AsyncVectorEnv has a process for each environment, which takes longer than to step
    fast simulators in this process. Results are those of SyncVectorEnv, bit for bit: the seeds of
    an environment depend on its index among all, not on its process. Workers leave Ctrl-C and
    SIGTERM to this process, which saves the run, and end when it does, however it ends.
    """

    def __init__(self, makers, workers, threads, **options):
        env = makers[0]()  # in this process, to see its spaces
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.metadata = {**env.metadata, "autoreset_mode": gym.vector.AutoresetMode.DISABLED}
        close_envs(env)
        self.num_envs = len(makers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        # the latest observations [N, ...]: where only some are reset, those of all are returned
        self.obs = create_empty_array(self.single_observation_space, self.num_envs)

        bounds = [self.num_envs * worker // workers for worker in range(workers + 1)]
        self.shares = [slice(first, end) for first, end in pairwise(bounds)]
        self.pipes = []
        self.processes = []
        self.answers_pending = False
        # When Python exits, multiprocessing sends SIGTERM to daemon processes and waits for them.
        # Workers ignore it, so they are killed before. Not by atexit, which does not run where
        # this process was itself started by multiprocessing. It is done for a lost object, too.
        self.at_exit = multiprocessing.util.Finalize(
            self, kill_all, [self.processes], exitpriority=0
        )
        try:
            for share in self.shares:
                self.start(partial(gym.vector.SyncVectorEnv, makers[share], **options), threads)
            self.check_spaces()
        except BaseException as error:
            self.close(terminate=not isinstance(error, Exception))  # after Ctrl-C nobody waits
            raise

    def start(self, build, threads):
        """Start a worker, which builds its environments when it gets its first request."""
        pipe, pipe_of_worker = multiprocessing.Pipe()
        self.pipes.append(pipe)
        inputs = (build, pipe_of_worker, list(self.pipes), threads)
        process = multiprocessing.Process(target=serve_environments, args=inputs, daemon=True)
        process.start()
        pipe_of_worker.close()
        self.processes.append(process)

    def check_spaces(self):
        """Raise RuntimeError if environments differ in their spaces; the first request to all."""
        for name in ["observation_space", "action_space"]:
            for space in self.call(name):
                if space != getattr(self, f"single_{name}"):
                    raise RuntimeError(f"its copies differ in {name}")

    def step(self, actions):
        """Step all environments."""
        results = self.ask([Request("step", (actions[share],)) for share in self.shares])
        obs, rewards, terminated, truncated, infos = zip(*results, strict=True)
        self.obs = np.concatenate(obs)
        return (
            self.obs.copy(),
            np.concatenate(rewards),
            np.concatenate(terminated),
            np.concatenate(truncated),
            self.merge(infos),
        )

    def reset(self, *, seed=None, options=None):
        """Reset all environments, or those of options["reset_mask"]; no infos."""
        options = options or {}
        mask = options.get("reset_mask")
        requests = []
        for share in self.shares:
            # the other options are for all: an environment finds its own by its index
            own = options if mask is None else options | {"reset_mask": mask[share]}
            none_begins = mask is not None and not mask[share].any()
            requests.append(None if none_begins else Request("reset", options={"options": own}))
        for share, result in zip(self.shares, self.ask(requests), strict=True):
            if result is not None:
                self.obs[share], _ = result
        return self.obs.copy(), {}

    def call(self, name, *inputs, **options):
        """Call a method of every environment; return the results of all."""
        request = Request("call", (name, *inputs), options)
        return tuple(chain(*self.ask([request] * len(self.shares))))

    def merge(self, infos):
        """Return one dictionary of arrays [N, ...], zero where a worker has none.

        Infos are arrays, one value for each environment of a worker; there are no nested ones.
        """
        merged = {}
        for share, info in zip(self.shares, infos, strict=True):
            for name, values in info.items():
                zeros = np.zeros((self.num_envs, *values.shape[1:]), values.dtype)
                merged.setdefault(name, zeros)[share] = values
        return merged

    def ask(self, requests):
        """Send each worker its request and return all results.

        A worker whose request is None is left alone, and its result is None.
        """
        if self.answers_pending:  # they would be taken for those of these requests
            raise RuntimeError("a request was interrupted: close these environments")
        self.answers_pending = True
        answers = []
        with self.dead_workers_reported():
            for pipe, request in zip(self.pipes, requests, strict=True):
                if request:
                    pipe.send(request)
            for pipe, request in zip(self.pipes, requests, strict=True):
                answers.append(pipe.recv() if request else Answer())
        self.answers_pending = False
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return [answer.result for answer in answers]

    @contextmanager
    def dead_workers_reported(self):
        """If a worker is gone, end the run by a sentence that says which."""
        try:
            yield
        except (EOFError, OSError):  # the latter where one dies while it sends, too
            ends = {process.sentinel: index for index, process in enumerate(self.processes)}
            gone = multiprocessing.connection.wait(ends, timeout=5)
            if not gone:
                raise
            index = ends[gone[0]]
            self.processes[index].join()  # else its exit code is not there yet
            code = self.processes[index].exitcode
            first, last = self.shares[index].start, self.shares[index].stop - 1
            whose = f"environments {first} to {last}" if first < last else f"environment {first}"
            sentence = f"the process of {whose} has ended: exit code {code}"
            if code == -signal.SIGKILL:
                sentence += ", as where memory is short"
            # no traceback: it would lead to this line, not to what has ended the worker
            raise SystemExit(sentence) from None

    def close_extras(self, terminate=False):
        """Let workers close their environments in time, or end them at once; close() calls it."""
        if terminate:
            kill_all(self.processes)
        for pipe in self.pipes:
            with suppress(OSError):  # it has died
                pipe.send(None)
            pipe.close()
        deadline = time.perf_counter() + CLOSING
        for process in self.processes:
            process.join(max(0, deadline - time.perf_counter()))
        if not terminate and any(process.is_alive() for process in self.processes):
            say(f"warning: environments that do not close within {CLOSING} s are killed")
        kill_all(self.processes)
        for process in self.processes:
            process.join()
        self.at_exit.cancel()


def kill_all(processes):
    """End processes at once."""
    for process in processes:
        process.kill()


def serve_environments(build, pipe, parent_pipes, threads):
    """Answer requests to environments, in a worker, until None comes or the parent has ended."""
    # a forked worker has copies of the parent's ends of pipes: while one is open, no worker
    # notices that the parent has closed its own
    for other in parent_pipes:
        other.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # left to the parent; not SIG_IGN, which programs that the environment starts would inherit
        signal.signal(number, lambda number, frame: None)
    # the pipe tells of the parent's end between two requests, this thread in the middle of one
    parent = multiprocessing.parent_process()
    threading.Thread(target=end_with, args=[parent], daemon=True).start()
    limit_threads(threads)
    envs = None
    with suppress(OSError, EOFError):  # the parent has ended
        while request := pipe.recv():
            try:
                if envs is None:  # here, so that its errors reach the parent like all others
                    envs = build()
                method = getattr(envs, request.method)
                answer = Answer(method(*request.inputs, **request.options or {}))
                pipe.send(answer)
            except Exception as error:  # SystemExit ends this worker, which is reported
                pipe.send(Answer(error=portable(error)))
    close_envs(envs)


def portable(error):
    """Return an error that can go to another process, and tells there where it was raised."""
    note = f"in the process of an environment:\n{traceback.format_exc()}"
    place = place_of(error)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(repr(error))
    error.add_note(note)
    error.place_in_worker = place  # for place_of, since no traceback can go to another process
    return error


def end_with(process):
    """Wait until a process has ended, by kill -9 perhaps, and end this one."""
    process.join()
    os._exit(1)


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
# The settings that --resume may change, since no weight and no metric depends on them. More steps
# move a step size that is annealed over them, see refuse_more_steps.
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
