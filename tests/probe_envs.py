"""Tiny environments whose values and best actions are known exactly.

A wrong answer on one of these is a bug and no bad luck. Any script runs on them, for instance

    python sac_continuous.py --env-id tests.probe_envs:Chain3-v0 --total-timesteps 2000 \\
        --learning-starts 100 --batch-size 64 --gamma 0.5

A probe is a small Markov decision process: `starts` are its first states, all equally likely, and
`model` says what an action leads to, so that `solve` finds the answer without any learning. The
observation after a terminal step is the last state's own, which makes bootstrapping there visible.
"""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

UNIT = Box(-1, 1, (1,), np.float32)


class Probe(gym.Env):
    """A Markov decision process that ends after `limit` steps, if it is not terminated before."""

    starts: list = [0]
    actions = UNIT
    limit = None

    def __init__(self, discrete=False, scale=1.0):
        self.action_space = Discrete(2) if discrete else self.actions
        low, high = (f([self.obs(state) for state in self.states()], 0) for f in (np.min, np.max))
        self.observation_space = Box(low, high, dtype=np.float32)
        self.scale = scale

    def states(self):
        """Return all states."""
        return self.starts

    def obs(self, state):
        """Return the observation of a state."""
        return np.float32([state])

    def model(self, state, action):
        """Return the reward and the next states, equally likely; none: terminated."""
        raise NotImplementedError

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.t = self.draw(self.starts), 0
        return self.obs(self.state), {}

    def step(self, action):
        reward, following = self.model(self.state, action)
        self.t += 1
        if following:
            self.state = self.draw(following)
        cut = self.limit is not None and self.t >= self.limit
        return self.obs(self.state), self.scale * float(reward), not following, cut, {}

    def draw(self, states):
        return states[self.np_random.integers(len(states))]


class Const(Probe):
    """V1. Reward 1, then the end: is the loss right, and does an end stop bootstrapping?"""

    def model(self, state, action):
        return 1, []


class ObsValue(Probe):
    """V2. The reward is the observation, -1 or 1: do values depend on what is seen?"""

    starts = [-1, 1]

    def model(self, state, action):
        return state, []


class Chain3(Probe):
    """V3. Three states in a row, reward 1 for leaving the last: discount and bootstrapping."""

    def states(self):
        return [0, 1, 2]

    def obs(self, state):
        return np.eye(3, dtype=np.float32)[state]

    def model(self, state, action):
        return state == 2, [state + 1] if state < 2 else []


class CycleTrunc(Probe):
    """V4. A ring of four states, cut after three steps: truncation is no termination."""

    starts = [0, 1, 2, 3]
    limit = 3

    def obs(self, state):
        return np.eye(4, dtype=np.float32)[state]

    def model(self, state, action):
        return state == 3, [(state + 1) % 4]


class Bandit2(Probe):
    """D1. Action 0 costs 1, action 1 pays 1: the sign of the policy's gradient."""

    actions = Discrete(2)

    def model(self, state, action):
        return 2 * int(action) - 1, []


class Match(Probe):
    """D2. Pays for action 1 where 1 is seen and action 0 where -1 is: observation and action."""

    starts = [-1, 1]
    actions = Discrete(2)
    limit = 10

    def model(self, state, action):
        return int(action) == (state > 0), self.starts


class Delayed2(Probe):
    """D3. The first action, which the second state shows, pays one step later."""

    starts = ["start"]
    actions = Discrete(2)

    def states(self):
        return ["start", 0, 1]

    def obs(self, state):
        return np.float32([state == "start", state == 1])

    def model(self, state, action):
        return (0, [int(action)]) if state == "start" else (state, [])


class Idle4(Probe):
    """D4. Four actions, no reward: an entropy bonus makes the policy uniform."""

    actions = Discrete(4)

    def model(self, state, action):
        return 0, []


class ActScale(Probe):
    """C1. Best action 3 in [0, 4]: scale and middle of the bounds."""

    actions = Box(0, 4, (1,), np.float32)

    def model(self, state, action):
        return -(((action[0] - 3) / 2) ** 2), []


class ObsAct(Probe):
    """C2. Best action half of the observation: does the policy see what the critic sees?"""

    starts = [-1, 1]
    limit = 10

    def model(self, state, action):
        return -((action[0] - state / 2) ** 2), self.starts


class Delayed(Probe):
    """C3. The first action, which the second state shows, is judged one step later; best 0.5."""

    starts = [None]
    grid = np.linspace(-1, 1, 41)

    def states(self):
        return [None, *self.grid]

    def obs(self, state):
        return np.float32([1, 0] if state is None else [0, state])

    def model(self, state, action):
        return (0, [float(action[0])]) if state is None else (-((state - 0.5) ** 2), [])


class TwoDim(Probe):
    """C4. Best actions 3 in [0, 4] and -0.6 in [-1, 0.1]: every dimension has its own bounds."""

    actions = Box(np.float32([0, -1]), np.float32([4, 0.1]))

    def model(self, state, action):
        return -(((action[0] - 3) / 2) ** 2) - ((action[1] + 0.6) / 0.55) ** 2, []


class SoftBandit(Probe):
    """C5, C6. Best action 0.3, and an entropy that follows from the temperature."""

    def model(self, state, action):
        return -((action[0] - 0.3) ** 2), []


class Idle(Probe):
    """C8. No reward: an entropy bonus widens the policy."""

    def model(self, state, action):
        return 0, []


def solve(probe, gamma):
    """Return the best value of every state and the best action there, by value iteration.

    Actions in a Box are tried on a grid of 41 points per dimension.
    """
    if isinstance(probe.action_space, Discrete):
        actions = [*range(probe.action_space.n)]
    else:
        axes = [np.linspace(*ends, 41) for ends in zip(probe.actions.low, probe.actions.high)]  # noqa: B905
        actions = np.stack(np.meshgrid(*axes), -1).reshape(-1, len(axes))
    key = lambda state: tuple(np.round(probe.obs(state), 4))  # noqa: E731
    outcomes = {
        key(state): [
            (probe.scale * float(reward), [key(one) for one in following])
            for reward, following in (probe.model(state, action) for action in actions)
        ]
        for state in probe.states()
    }
    values = dict.fromkeys(outcomes, 0.0)
    for _ in range(200):
        returns = {
            state: [r + gamma * np.mean([values[s] for s in then]) if then else r for r, then in of]
            for state, of in outcomes.items()
        }
        values = {state: max(of) for state, of in returns.items()}
    best = {state: actions[int(np.argmax(of))] for state, of in returns.items()}
    return values, best


for probe in (Const, ObsValue, Chain3, CycleTrunc):
    gym.register(f"{probe.__name__}-v0", probe)
    gym.register(f"{probe.__name__}-discrete-v0", probe, kwargs={"discrete": True})
for probe in (Bandit2, Match, Delayed2, Idle4):
    gym.register(f"{probe.__name__}-v0", probe)
for probe in (ActScale, ObsAct, Delayed, TwoDim, SoftBandit, Idle):
    gym.register(f"{probe.__name__}-v0", probe)
for probe in (Match, ActScale):  # C7
    for scale in (0.03, 30):
        gym.register(f"{probe.__name__}-times{scale}-v0", probe, kwargs={"scale": scale})
