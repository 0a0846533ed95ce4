"""Tiny environments whose values and best actions are known exactly.

A wrong answer on one of these is a bug, not bad luck. Any script runs on them, for instance

    python sac_continuous.py --env-id tests.probe_envs:Chain3-v0 --total-timesteps 2000 \\
        --learning-starts 100 --batch-size 64 --gamma 0.5

A probe is a small Markov decision process: `starts` are its first states, all equally likely, and
`model` says what an action leads to, so that `solve` finds the answer without any learning. The
observation after a terminal step is the last state's own, which makes bootstrapping there visible.
"""

from types import SimpleNamespace

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
        self.observation_space = self.observations()
        self.scale = scale

    def observations(self):
        """Return the space of what is seen."""
        low, high = (f([self.obs(state) for state in self.states()], 0) for f in (np.min, np.max))
        return Box(low, high, dtype=np.float32)

    def states(self):
        """Return all states."""
        return self.starts

    def obs(self, state):
        """Return the observation of a state."""
        return np.float32([state])

    def seen(self, state):
        """Return what of a state a learner can tell apart."""
        return tuple(np.round(self.obs(state), 4))

    def model(self, state, action):
        """Return the reward and the next states, equally likely; none: terminated."""
        raise NotImplementedError

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.t = self.draw(self.starts), 0
        return self.obs(self.state), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
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
    """V4. A ring of four states, cut after three steps: truncation is not termination."""

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


# --- pixels: one grey frame [size, size] a step, uint8; the script stacks the latest four ---------
class Pixels(Probe):
    """A probe that is seen. Small frames make learning fast; Atari's are of size 84."""

    actions = Discrete(2)

    def __init__(self, size=36, **options):
        self.size = size
        super().__init__(**options)

    def observations(self):
        return Box(0, 255, (self.size, self.size), np.uint8)

    def obs(self, state):
        frame = np.zeros((self.size, self.size), np.uint8)
        self.draw_frame(frame, state)
        return frame

    def seen(self, state):
        return state  # in the latest four frames together

    def draw_frame(self, frame, state):
        """Show a state in a black frame: here the k-th as a bright quadrant k."""
        row, column = divmod(self.states().index(state), 2)
        half = self.size // 2
        frame[row * half :, column * half :][:half, :half] = 255


class ConstPixels(Pixels, Const):
    """X1. V1, all black."""

    def draw_frame(self, frame, state):
        pass


class ObsValuePixels(Pixels, ObsValue):
    """X2. V2 with frames of two shades of grey: are pixels scaled, and scaled once?"""

    def __init__(self, shades=(0, 255), **options):
        self.shades = dict(zip(self.starts, shades, strict=True))
        super().__init__(**options)

    def draw_frame(self, frame, state):
        frame[:] = self.shades[state]


class MatchPixels(Pixels, Match):
    """X3. D2 with the left or the right half bright: the convolutions' view and its axes."""

    def draw_frame(self, frame, state):
        half = self.size // 2
        frame[:, :half] = 255 * (state < 0)
        frame[:, half:] = 255 * (state > 0)


class Chain3Pixels(Pixels, Chain3):
    """V3, seen."""


class CycleTruncPixels(Pixels, CycleTrunc):
    """V4, seen, and cut later, so that the last four frames of an episode occur within it too."""

    limit = 6


class Motion(Pixels):
    """X4. A dot moves left or right by its own width; pays for the action of its direction."""

    starts = [(direction, column) for direction in (0, 1) for column in range(10)]
    limit = 8

    def draw_frame(self, frame, state):
        width = self.size // 10
        frame[self.size // 2 :, state[1] * width :][:width, :width] = 255

    def model(self, state, action):
        direction, column = state
        return action == direction, [(direction, (column + 2 * direction - 1) % 10)]


class Recall(Pixels):
    """X5. A cue in frame 0, then black; action k must name it. Four frames see k = 3."""

    def __init__(self, k=3, **options):
        self.k, self.starts = k, [(0, 0), (1, 0)]
        super().__init__(**options)

    def states(self):
        return [(cue, t) for cue in (0, 1) for t in range(self.k + 1)]

    def draw_frame(self, frame, state):
        cue, t = state
        half = self.size // 2
        if t == 0:
            frame[:, half * cue :][:, :half] = 255

    def model(self, state, action):
        cue, t = state
        return (0, [(cue, t + 1)]) if t < self.k else (2 * (action == cue) - 1, [])


class Frames(Pixels):
    """X6. Frame t is filled with 10 + t; 5 to 9 steps, the odd ones terminated, the even cut."""

    starts = [(0, end) for end in range(5, 10)]

    def states(self):
        return [(t, end) for _, end in self.starts for t in range(end + 1)]

    def draw_frame(self, frame, state):
        frame[:] = 10 + state[0]

    def model(self, state, action):
        return state[0], [(state[0] + 1, state[1])]

    def step(self, action):
        obs, reward, *_ = super().step(action)
        t, end = self.state
        return obs, reward, t == end and end % 2 == 1, t == end and end % 2 == 0, {}


class FakeALE(gym.Env):
    """X7. A game for tests of Atari's wrappers, which need no more of ale-py than it has.

    Raw frames are 210 x 160 x 3. Frame n of a game pays 5 if n % 4 == 1 and -1 otherwise, so that
    four frames pay 2, clipped 1, but -2 if clipped one by one. Lives end at frames 40, 80 and 120,
    and with the third the game. Red, green and blue blocks are there always, one on odd frames
    only, and one on frames with n % 4 == 1, which the latest two of four frames never show.
    """

    metadata = {"render_modes": ["rgb_array"]}
    action_space = Discrete(4)
    observation_space = Box(0, 255, (210, 160, 3), np.uint8)
    blocks = {(255, 0, 0): 10, (0, 255, 0): 50, (0, 0, 255): 90}  # color: first row

    def __init__(self, render_mode=None, frameskip=1, repeat_action_probability=0.0):
        self.render_mode, self.ale, self._frameskip = render_mode, self, frameskip
        self.sticky = repeat_action_probability
        self.games = self.n = 0  # games begun, and frames of the latest

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "RIGHT", "LEFT"]

    def getFloat(self, key):  # noqa: N802
        return {"repeat_action_probability": self.sticky}[key]

    def cloneState(self, include_rng):  # noqa: N802
        return SimpleNamespace(serialize=lambda: bytes([self.n]))

    def lives(self):
        return 3 - self.n // 40

    def getScreenRGB(self, out):  # noqa: N802, ale-py's name
        out[:] = self.render()

    def getScreenGrayscale(self, out):  # noqa: N802
        out[:] = (self.render() @ [0.299, 0.587, 0.114]).round()

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.games, self.n = self.games + 1, 0
        return self.render(), {"lives": self.lives()}

    def step(self, action):
        assert self.n < 120, "the game is over: reset it"
        self.n += 1
        reward = 5.0 if self.n % 4 == 1 else -1.0
        return self.render(), reward, self.n == 120, False, {"lives": self.lives()}

    def render(self):
        frame = np.zeros((210, 160, 3), np.uint8)
        for color, row in self.blocks.items():
            frame[row : row + 30, 20:60] = color
        frame[150:190, 90:130] = 255 * (self.n % 2 == 1)
        frame[10:50, 90:130] = 255 * (self.n % 4 == 1)
        return frame


def solve(probe, gamma):
    """Return the best value of every state and the best action there, by value iteration.

    Actions in a Box are tried on a grid of 41 points per dimension.
    """
    if isinstance(probe.action_space, Discrete):
        actions = [*range(probe.action_space.n)]
    else:
        axes = [np.linspace(*ends, 41) for ends in zip(probe.actions.low, probe.actions.high)]  # noqa: B905
        actions = np.stack(np.meshgrid(*axes), -1).reshape(-1, len(axes))
    outcomes = {
        probe.seen(state): [
            (probe.scale * float(reward), [probe.seen(one) for one in following])
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


VECTORS = Const, ObsValue, Chain3, CycleTrunc
POLICIES = Bandit2, Match, Delayed2, Idle4, ActScale, ObsAct, Delayed, TwoDim, SoftBandit, Idle
SEEN = ConstPixels, ObsValuePixels, MatchPixels, Chain3Pixels, CycleTruncPixels, Motion, Recall
for probe in (*VECTORS, *POLICIES, *SEEN, Frames, FakeALE):
    gym.register(f"{probe.__name__}-v0", probe)
for probe in VECTORS:
    gym.register(f"{probe.__name__}-discrete-v0", probe, kwargs={"discrete": True})
for probe in (Chain3, Match, ActScale):  # C7
    for scale in (0.03, 30):
        gym.register(f"{probe.__name__}-times{scale}-v0", probe, kwargs={"scale": scale})
gym.register("MatchPixels-84-v0", MatchPixels, kwargs={"size": 84})
gym.register("ObsValuePixels-grey-v0", ObsValuePixels, kwargs={"shades": (96, 160)})
gym.register("Recall-k4-v0", Recall, kwargs={"k": 4})
