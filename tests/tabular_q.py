"""Tabular Q-learning (Watkins, 1989): the smallest script that the tests accept.

pytest --script=tests/tabular_q.py
"""

import sys
from collections import defaultdict
from dataclasses import dataclass

import gymnasium as gym
import numpy as np


@dataclass
class Args:
    """Learn action values from uniformly random actions."""

    env_id: str  # Gymnasium id, of an environment with discrete actions and few observations
    total_timesteps: int = 600  # environment transitions, over all environments
    num_envs: int = 1  # environments stepped in turns
    seed: int = 1  # drives actions and environments
    gamma: float = 0.5  # discount per step


class Agent:
    """One value for each observation and action."""

    def __init__(self, actions):
        self.q = defaultdict(lambda: np.zeros(actions))

    def act(self, obs):
        """Choose the best actions [N] for obs [N, O]."""
        return np.array([self.q[row.tobytes()].argmax() for row in np.float32(obs)])

    def value(self, obs):
        """Estimate the return [N] from obs [N, O]."""
        return np.array([self.q[row.tobytes()].max() for row in np.float32(obs)])


def main(args):
    """Learn as args say and return the agent."""
    rng = np.random.default_rng([args.seed, 1])  # not the stream of the first environment
    envs = [gym.make(args.env_id, disable_env_checker=True) for _ in range(args.num_envs)]
    if not isinstance(envs[0].action_space, gym.spaces.Discrete):
        print(f"error: {args.env_id} needs discrete actions", file=sys.stderr)
        raise SystemExit(2)
    agent = Agent(envs[0].action_space.n)
    seen = [env.reset(seed=args.seed + i)[0] for i, env in enumerate(envs)]
    for step in range(args.total_timesteps):
        i = step % args.num_envs
        action = rng.integers(envs[i].action_space.n)
        obs, reward, terminated, truncated, _ = envs[i].step(action)
        target = reward + args.gamma * (1 - terminated) * agent.value(obs[None])[0]
        row = agent.q[np.float32(seen[i]).tobytes()]
        row[action] += 0.5 * (target - row[action])
        seen[i] = envs[i].reset()[0] if terminated or truncated else obs
    return agent


if __name__ == "__main__":
    main(Args(*sys.argv[1:2]))
