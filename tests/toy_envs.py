"""Small environments for the tests: python sac_continuous.py --env-id tests.toy_envs:Counter-v0."""

import json
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import threadpoolctl
import torch
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Text,
    Tuple,
)

ended = []  # (return, length) of every episode that ended, in any Toy of this process
born = []  # length of every Ragged episode that began


class Toy(gym.Env):
    """obs = step of the episode, reward = obs + the sum of the action / 100, fixed length."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, length=7, action_space=None, render_mode=None):
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = action_space or Box(-2, 2, (2,), np.float32)
        self.length, self.render_mode = length, render_mode
        self.born = 0  # steps since this environment was made

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.total = 0, 0.0
        return self.obs(), {}

    def obs(self):
        return np.array([self.t], np.float64)

    def step(self, action):
        self.t, self.born = self.t + 1, self.born + 1
        reward = self.t + float(np.sum(action)) / 100
        self.total += reward
        if done := self.t == self.length:
            ended.append((self.total, self.t))
        return self.obs(), reward, done, False, {}

    def render(self):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[:, 8 * self.t % 64 :][:, :8] = 255
        return frame


class Ragged(Toy):
    """Episode lengths 2 to 9, drawn by the seed of the reset."""

    def reset(self, seed=None, options=None):
        found = super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 10))
        born.append(self.length)
        return found


class Rude(Ragged):
    """Draws noise from the global generators, as careless environments do."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + random.random() + np.random.rand() + float(torch.rand(())), *rest


class Hidden(Toy):
    """A random walk that no observation shows moves the reward and ends the episode by chance."""

    def reset(self, seed=None, options=None):
        found = super().reset(seed=seed)
        self.hidden = self.np_random.normal()
        return found

    def obs(self):
        return np.array([self.np_random.normal()])

    def step(self, action):
        self.hidden += self.np_random.normal() + float(np.mean(action))
        obs, _, _, truncated, info = super().step(action)
        return obs, self.hidden, bool(self.np_random.random() < 0.03), truncated, info


class Threads(Toy):
    """Writes how many threads PyTorch and each pool of its process may use, and how it counts."""

    def reset(self, seed=None, options=None):
        pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        tiny = (torch.tensor([1e-40]) * torch.ones(1)).item()  # 0 where denormal numbers are
        found = {"pools": [torch.get_num_threads(), *pools], "tiny": tiny}
        Path(f"threads-{os.getpid()}").write_text(json.dumps(found))
        return super().reset(seed=seed)


class Restless(Toy):
    """No seed repeats it."""

    def obs(self):
        return np.array([random.SystemRandom().random()])


class Mangler(Hidden):
    """Changes the actions that it is given."""

    def step(self, action):
        action *= 0.5
        return super().step(action)


class Stuck(Toy):
    """Takes a minute for step 150 of its life."""

    def step(self, action):
        if self.born == 150:
            print("stuck", flush=True)
            time.sleep(60)
        return super().step(action)


class Quits(Toy):
    """Ends the program at some step of its life, as simulators do whose window is closed."""

    def __init__(self, at=150, **kwargs):
        super().__init__(**kwargs)
        self.at = int(os.environ.get("QUITS_AT", at))

    def step(self, action):
        if self.born == self.at:
            sys.exit(0)
        return super().step(action)


class Faulty(Toy):
    """NaN or an enormous reward at the given step of its life, or NaN at all resets after it."""

    def __init__(self, fault, at=150, **kwargs):
        super().__init__(**kwargs)
        self.fault, self.at = fault, at

    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs * (np.nan if self.fault == "reset" and self.born >= self.at else 1), info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.born == self.at:
            reward = {"reward": np.nan, "huge": 1e30}.get(self.fault, reward)
            obs = obs * np.nan if self.fault == "observation" else obs
        return obs, reward, *rest


class Killer(Toy):
    """Kills the W&B service in the middle of the run."""

    def step(self, action):
        if self.born == 150:
            killed = 0
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                    if "wandb" in child.name():
                        child.kill()
                        killed += 1
            print("killed", killed, "at step 150 of process", os.getpid(), flush=True)
        return super().step(action)


class Endless(Toy):
    """Episodes without an end."""

    def __init__(self, **kwargs):
        super().__init__(length=-1, **kwargs)

    def step(self, action):
        assert self.born < 100_000, "nobody cuts this episode"
        return super().step(action)


class Listed(Toy):
    """Rewards in an array of one number, as batched simulators give them."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward]), *rest


class Strict(Toy):
    """Refuses actions beyond its bounds, which are no float32 numbers."""

    def __init__(self, **kwargs):
        bound = np.array([0.1, 0.3])
        super().__init__(action_space=Box(-bound, bound, dtype=np.float64), **kwargs)

    def step(self, action):
        assert self.action_space.contains(np.float64(action)), action
        return super().step(10 * action)


class Wanderer(Toy):
    """Works in a folder of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        os.makedirs("wandered", exist_ok=True)
        os.chdir("wandered")


class Blind(Toy):
    """Says that it renders, and cannot be built to do so."""

    def __init__(self, length=7):
        super().__init__(length)


class Demanding(Toy):
    """Needs an argument that nobody gives."""

    def __init__(self, wanted, **kwargs):
        super().__init__(**kwargs)


class Broken(Toy):
    """Cannot be built."""

    def __init__(self, **kwargs):
        raise RuntimeError("out of order")


class Sequential(Toy):
    """Observations of no fixed length."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = Sequence(Box(-1, 1, (2,)))


# --- environments that ordinary people have ------------------------------------------------------
class Half(Strict):
    """Actions and bounds of 16 bits."""

    def __init__(self, **kwargs):
        Toy.__init__(self, action_space=Box(-0.1, 0.1, (2,), np.float16), **kwargs)

    def step(self, action):
        assert self.action_space.contains(action), action
        return Toy.step(self, action)


class Talkative(Toy):
    """Infos of every kind and varying shape, with names that vector environments use."""

    def info(self):
        return {
            "finished": self.t > 2,
            "_finished": "no",
            "episode": {"r": [self.t] * self.t},
            "final_obs": None,
            "episode_return": "mine",
            "step": np.zeros((self.t, 2)),
            str(self.t): self,
        }

    def reset(self, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, self.info()

    def step(self, action):
        *result, _ = super().step(action)
        return *result, self.info()


class SmallSeeds(Toy):
    """Takes a C int as a seed, and expects no options."""

    def reset(self, seed=None, options=None):
        assert options is None
        assert seed is None or 0 <= seed < 2**31
        return super().reset(seed=seed)


class Lonely(Toy):
    """There can be one at a time, as with simulators that listen at a port."""

    alive = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        assert Lonely.alive == 0, "the port is taken"
        Lonely.alive += 1

    def close(self):
        Lonely.alive -= 1


class Served(Toy):
    """Counts those that were opened and closed in the file served."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.opened = True
        self.write("opened")

    def write(self, word):
        with open(os.environ["SERVED"], "a") as file:
            file.write(f"{word}\n")

    def close(self):
        if self.opened:
            self.write("closed")
        self.opened = False


class ServedFailing(Served):
    """One of them whose reward is no number after a while."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.nan if self.born > 120 else reward, *rest


class Unclosable(Toy):
    """Cannot be closed."""

    def close(self):
        raise RuntimeError("close failed")


class Global(Toy):
    """A simulator whose state all its copies share."""

    shared = 0.0

    def obs(self):
        return np.array([Global.shared])

    def reset(self, seed=None, options=None):
        Global.shared = 0.0
        return super().reset(seed=seed)

    def step(self, action):
        Global.shared += 1 + float(np.sum(action))
        return super().step(action)


class Plain(Toy):
    """Results in the plainest types of Python."""

    def obs(self):
        return [float(self.t)]

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, int(reward), int(terminated), np.bool_(truncated), info


class Thrifty(Toy):
    """Writes every observation into the same array."""

    memory = np.zeros(1)

    def obs(self):
        self.memory[:] = self.t
        return self.memory


class Spaced(Toy):
    """Spaces of any kind, with observations drawn from them."""

    def __init__(self, observation=None, action=None, **kwargs):
        super().__init__(action_space=action, **kwargs)
        if observation is not None:
            self.observation_space = observation

    def reset(self, seed=None, options=None):
        self.observation_space.seed(seed)
        return super().reset(seed=seed)

    def obs(self):
        return self.observation_space.sample()


class Own(gym.Space):
    """A space that Gymnasium does not know, such as minigrid's of missions."""

    def sample(self, mask=None, probability=None):
        return "go"


class Shared(Ragged):
    """All copies have the spaces of their class, as many environments are written."""

    actions = Box(-2, 2, (2,), np.float32)

    def __init__(self, **kwargs):
        super().__init__(action_space=Shared.actions, **kwargs)


class Wrong(Toy):
    """Breaks Gymnasium's rules in the way that is asked for."""

    def __init__(self, way, **kwargs):
        super().__init__(**kwargs)
        self.way = way

    def obs(self):
        wrong = self.way == "shape" or (self.way == "shape_later" and self.t > 0)
        return np.zeros(2 if wrong else 1)

    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        if self.way == "crash":
            raise ValueError("no connection")
        if self.way == "silent":
            raise AssertionError
        if self.way == "key":
            raise KeyError("goal")
        return obs if self.way == "reset" else (obs, info)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.way == "step":
            return obs, reward, terminated, info
        if self.way == "vector":
            reward = np.array([reward, reward])
        if self.way == "crash_later":
            raise ValueError("no connection")
        return obs, reward, terminated, truncated, info


class Artist(Toy):
    """Renders in the way that is asked for."""

    def __init__(self, way="", **kwargs):
        super().__init__(**kwargs)
        self.way = way
        if way == "renderer":
            self.mujoco_renderer = "mine"

    def render(self):
        if self.way == "fails" or (self.way == "fails_later" and self.t == 3):
            raise RuntimeError("no screen")
        if self.way == "nothing":
            return None
        if self.way == "list":
            return [super().render()]
        if self.way in ("grey", "float", "rgba"):
            frame = super().render()
            return {"grey": frame[..., 0], "float": frame / 255, "rgba": frame[..., [0, 1, 2, 0]]}[
                self.way
            ]
        if self.way == "grows":
            return np.zeros((64 + 2 * self.t, 64, 3), np.uint8)
        return super().render()


class Mixed(Toy):
    """Ends after 4 or 8 steps, by termination or by a time limit: all four kinds in turn."""

    made = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kind = Mixed.made % 4
        Mixed.made += 1

    def step(self, action):
        obs, reward, *_, info = super().step(action)
        over = self.t == (8 if self.kind % 2 else 4)
        return obs, reward, over and self.kind < 2, over and self.kind >= 2, info


class Fractions(Toy):
    """Rewards that are no whole numbers, of either sign."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, [-0.5, 0.25, 0, 7.5, -3, 0.001, 0][self.t - 1], *rest


class DictToy(Toy):
    """obs = a dict of the step and its square."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        part = Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = Dict({"step": part, "square": part})

    def obs(self):
        return {"step": super().obs(), "square": super().obs() ** 2}


class Shown(gym.Wrapper):
    """A toy in grey frames [36, 36], the t-th with t bright rows, and three discrete actions."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = Box(0, 255, (36, 36), np.uint8)
        self.action_space = Discrete(3)

    def frame(self):
        frame = np.zeros((36, 36), np.uint8)
        frame[: 5 * self.unwrapped.t] = 255
        if isinstance(self.unwrapped, Restless):
            frame[:, -1] = 255 * self.unwrapped.obs()
        return frame

    def reset(self, **options):
        _, info = self.env.reset(**options)
        return self.frame(), info

    def step(self, action):
        units = np.full(2, 2.0 * action - 2, np.float32)  # -2, 0 or 2
        _, *others = self.env.step(units)
        return self.frame(), *others


def register(name, cls, **kwargs):
    gym.register(f"{name}-v0", lambda **given: cls(**given), **kwargs)
    gym.register(f"{name}-shown-v0", lambda **given: Shown(cls(**given)), **kwargs)


class Strange(Shown):
    """Frames or actions of another kind."""

    def __init__(self, env, space=None, actions=None):
        super().__init__(env)
        self.observation_space = space or self.observation_space
        self.action_space = actions or self.action_space

    def frame(self):
        frame = super().frame()
        return frame[:, :35] if self.observation_space.shape == (36, 35) else frame


STRANGE = {
    "Coloured": {"space": Box(0, 255, (36, 36, 3), np.uint8)},
    "Small": {"space": Box(0, 255, (36, 35), np.uint8)},
    "Dictionary": {"space": Dict({"frame": Box(0, 255, (36, 36), np.uint8)})},
    "FromOne": {"actions": Discrete(3, start=1)},
    "Multi": {"actions": MultiDiscrete([3, 3])},
}
for name, kind in STRANGE.items():
    gym.register(f"{name}-shown-v0", lambda kind=kind, **_: Strange(Toy(), **kind))
register("Counter", Toy)
register("Limited", Toy, kwargs={"length": 10**9}, max_episode_steps=7)
register("Ragged", Ragged)
register("Threads", Threads)
register("Rude", Rude)
register("Hidden", Hidden, kwargs={"length": 60})
register("Restless", Restless)
register("Stuck", Stuck)
register("Quits_at_once", Quits, kwargs={"at": 0})
register("Mangler", Mangler, kwargs={"length": 60})
register("DictObs", DictToy)
register("Killer", Killer)
for cls in (Endless, Listed, Strict, Wanderer, Blind, Demanding, Broken, Sequential):
    register(cls.__name__, cls)
register("Whole", Toy, kwargs={"action_space": Box(-2, 2, (2,), np.int64)})
for cls in (
    Half,
    Talkative,
    SmallSeeds,
    Lonely,
    Quits,
    Served,
    Shared,
    Unclosable,
    ServedFailing,
    Global,
    Plain,
    Thrifty,
    Mixed,
    Fractions,
):
    register(cls.__name__, cls)
for way in (
    "shape",
    "shape_later",
    "crash",
    "reset",
    "step",
    "vector",
    "crash_later",
    "silent",
    "key",
):
    register(f"Wrong_{way}", Wrong, kwargs={"way": way})
for way in (
    "renderer",
    "fails",
    "fails_later",
    "nothing",
    "list",
    "grows",
    "grey",
    "float",
    "rgba",
):
    register(f"Artist_{way}", Artist, kwargs={"way": way})
OBSERVATIONS = {
    "discrete": Discrete(5),
    "binary": MultiBinary(3),
    "multi": MultiDiscrete([3, 4]),
    "matrix": Box(-1, 1, (2, 3), np.float32),
    "bytes": Box(0, 255, (4,), np.uint8),
    "scalar": Box(-1, 1, (), np.float32),
    "tuple": Tuple([Discrete(2), Box(-1, 1, (2,))]),
    "nested": Dict({"a": Dict({"b": Discrete(2)}), "c": Box(-1, 1, (1, 2))}),
    "text": Text(5),
    "own": Own(),
    "mixed": Dict({"mission": Own(), "place": Box(-1, 1, (2,))}),
    "graph": Graph(Box(-1, 1, (2,)), None),
    "empty": Box(-1, 1, (0,)),
    "nothing": Dict({}),
}
ACTIONS = {
    "scalar": Box(-1, 1, (), np.float32),
    "matrix": Box(-1, 1, (2, 3), np.float32),
    "uneven": Box(np.float32([-1, 0]), np.float32([0.5, 1000])),
    "still": Box(1, 1, (2,), np.float32),
    "double": Box(-0.3, 0.1, (2,), np.float64),
    "none": Box(-1, 1, (0,)),
    "endless": Box(-np.float32(3e38), np.float32(3e38), (2,)),
    "wide": Box(-1e300, 1e300, (2,), np.float64),
    "one_sided": Box(0, np.inf, (2,)),
    "whole": Box(0, 5, (2,), np.int32),
    "binary": MultiBinary(2),
    "dict": Dict({"a": Box(-1, 1, (1,))}),
    "tuple": Tuple([Box(-1, 1, (1,)), Discrete(2)]),
}
for name, space in OBSERVATIONS.items():
    gym.register(f"Observes_{name}-v0", Spaced, kwargs={"observation": space})
for name, space in ACTIONS.items():
    gym.register(f"Acts_{name}-v0", Spaced, kwargs={"action": space})
for fault in ("reward", "observation", "reset"):
    register(f"Nan{fault.title()}", Faulty, kwargs={"fault": fault})
register("NanEarly", Faulty, kwargs={"fault": "reward", "at": 3})
register("Huge", Faulty, kwargs={"fault": "huge", "at": 50})
register("Discrete", Toy, kwargs={"action_space": Discrete(3)})
register("Unbounded", Toy, kwargs={"action_space": Box(-np.inf, np.inf, (2,), np.float32)})
register("Clipped", Toy, additional_wrappers=(gym.wrappers.ClipAction.wrapper_spec(),))
