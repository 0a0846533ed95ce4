"""DQN and its games, against references that share no code with them.

Names test_t06_... refer to known bugs of published implementations.
"""

import copy
import math
import types

import cv2
import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tests.conftest import (
    alike,
    apply,
    environments,
    inside,
    need,
    need_own_networks,
    no_film,
    warnings,
)
from tests.probe_envs import FakeALE
from tests.reference import arguments, assert_gradient, forward, moved, recorded, weights

SHAPE, ACTIONS, ROWS = (4, 36, 36), 3, 8


class Cartridge(FakeALE):
    """X7 that keeps the raw actions of every game that was begun."""

    games_of: list = []  # one list of games for every environment that was ever reset

    def reset(self, seed=None, options=None):
        if not self.games:
            self.played = []
            Cartridge.games_of.append(self.played)
        self.played.append([])
        return super().reset(seed=seed)

    def step(self, action):
        self.played[-1].append(int(action))
        return super().step(action)


class Unarmed(Cartridge):
    """Without FIRE."""

    def get_action_meanings(self):
        return ["NOOP", "UP", "RIGHT", "LEFT"]


gym.register("Cartridge-v0", Cartridge)
gym.register("Unarmed-v0", Unarmed)
gym.register("Cartridge-skips-v0", Cartridge, kwargs={"frameskip": 4})
gym.register("Cartridge-sticky-v0", Cartridge, kwargs={"repeat_action_probability": 0.25})


def build(S, start=3, **changes):
    """Return an agent whose weights follow from a seed, and targets that are not its values."""
    need(S, "NatureCNN", "Agent.copy_target")
    torch.manual_seed(start)
    changes = {"gamma": 0.8, "learning_rate": 1e-3} | changes
    agent = S.Agent(arguments(S, **changes), SHAPE, ACTIONS)
    with torch.no_grad():  # targets are not the networks that learn
        for parameter in agent.q_target.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        for net in (agent.q, agent.q_target):
            [*net.parameters()][-2].mul_(20)  # the weight of the last layer
    return agent


def build_at_odds(S, batch, **changes):
    """Return an agent whose network and target prefer different actions somewhere."""
    for start in range(3, 100):
        agent = build(S, start, **changes)
        with torch.no_grad():
            best = [net(batch.frames[:, 1:]).argmax(1) for net in (agent.q, agent.q_target)]
        if ((best[0] != best[1]) & (batch.terminated == 0)).any():
            return agent
    raise AssertionError("network and target always prefer the same action")


@pytest.fixture
def agent(S):
    return build(S)


@pytest.fixture
def batch(S):
    """Return random transitions with every kind of ending."""
    need(S, "Batch", "make_games")
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (ROWS, 5, 36, 36), np.uint8))
    columns = [rng.integers(0, ACTIONS, ROWS), rng.integers(-1, 2, ROWS), np.arange(ROWS) % 3 == 0]
    return S.Batch(frames, *torch.from_numpy(np.float32(columns)))


def reference(agent, batch, double=False, huber=False):
    """Return the target [B], and the loss as a function of the parameters of q."""
    frames, action, reward, terminated = (column.double().numpy() for column in batch)
    obs, next_obs = frames[:, :4], frames[:, 1:]
    next_q = forward(agent, "q_target", weights(agent, "q_target"), next_obs)
    online = forward(agent, "q", weights(agent, "q"), next_obs)
    target = np.zeros(ROWS)
    for i in range(ROWS):
        value = next_q[i, online[i].argmax()] if double else max(next_q[i])
        target[i] = reward[i] + (0 if terminated[i] else 0.8 * value)

    def loss(w):
        q = forward(agent, "q", w, obs)
        errors = [abs(q[i, int(action[i])] - target[i]) for i in range(ROWS)]
        if huber:
            assert min(errors) < 1 < max(errors)
            return np.mean([e**2 / 2 if e < 1 else e - 0.5 for e in errors])
        return np.mean(np.square(errors))

    return target, loss


# --- the update -----------------------------------------------------------------------------------
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("huber", [False, True])
def test_loss_and_gradient(S, batch, double, huber):
    """Target by hand, termination included; loss; gradient by central differences."""
    agent = build_at_odds(S, batch, double=double, huber=huber)
    target, loss = reference(agent, batch, double, huber)
    w = weights(agent, "q")
    recorded(agent.q_opt)
    metrics = agent.update(batch)
    assert metrics["q/target_mean"].item() == pytest.approx(target.mean(), rel=1e-4)
    assert metrics["q/target_sd"].item() == pytest.approx(target.std(), rel=1e-4)
    assert agent.q_opt.loss == pytest.approx(loss(w), rel=1e-4)
    assert_gradient(loss, w, agent.q_opt.seen_gradient)


def test_metrics_of_an_update(agent, batch):
    target, loss = reference(agent, batch)
    w, reward = weights(agent, "q"), batch.reward.numpy()
    q = forward(agent, "q", w, batch.frames[:, :4].double().numpy())
    q = q[np.arange(ROWS), batch.action.long()]
    recorded(agent.q_opt)
    found = {name: value.item() for name, value in agent.update(batch).items()}
    norm = np.sqrt(sum(np.square(g).sum() for g in agent.q_opt.seen_gradient))
    expected = {"losses/td_loss": loss(w), "losses/q_values": q.mean(), "q/value_sd": q.std()}
    expected |= {"q/value_min": q.min(), "q/target_max": target.max(), "grad/norm": norm}
    expected |= {"q/td_rel": np.sqrt(np.square(q - target).mean()) / target.std()}
    expected |= {"env/reward_mean": reward.mean(), "env/reward_sd": reward.std()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_a_permuted_batch_gives_the_same_metrics(S, agent, batch):
    state = copy.deepcopy(agent.state_dict())
    first = agent.update(batch)
    agent.load_state_dict(state)
    order = torch.randperm(ROWS)
    permuted = S.Batch(*[column[order] for column in batch])
    for name, value in agent.update(permuted).items():
        assert value.shape == () and not value.requires_grad
        assert value.item() == pytest.approx(first[name].item(), rel=1e-3, abs=1e-6), name


def test_the_update_moves_q_and_copying_the_target(agent, batch):
    assert moved(agent, ["q", "q_target"], lambda: agent.update(batch)) == ["q"]
    assert moved(agent, ["q", "q_target"], agent.copy_target) == ["q_target"]
    pairs = zip(agent.q.parameters(), agent.q_target.parameters(), strict=True)
    assert all(torch.equal(*pair) and pair[0].data_ptr() != pair[1].data_ptr() for pair in pairs)
    assert not any(parameter.requires_grad for parameter in agent.q_target.parameters())


def test_the_target_starts_as_q(S):
    need(S, "NatureCNN")
    agent = S.Agent(arguments(S), SHAPE, 2)
    pairs = zip(agent.q.parameters(), agent.q_target.parameters(), strict=True)
    assert all(torch.equal(*pair) and pair[0].data_ptr() != pair[1].data_ptr() for pair in pairs)


@pytest.mark.parametrize("size, features", [(84, 3136), (36, 64)])
def test_t27_the_network_is_natures_and_divides_bytes_once(S, script, size, features):
    """Kernels, strides and widths of Mnih et al. (2015), by functions of torch in float64."""
    need(S, "NatureCNN")
    need_own_networks(script)
    torch.manual_seed(0)
    net = S.NatureCNN((4, size, size), 512, 6)
    frames = torch.randint(256, (2, 4, size, size), dtype=torch.uint8)
    w = [p.detach().double() for p in net.parameters()]
    shapes = [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, features), (6, 512)]
    assert [tuple(x.shape) for x in w[::2]] == shapes
    x = frames.double() / 255
    for i, stride in enumerate([4, 2, 1]):
        x = nn.functional.conv2d(x, w[2 * i], w[2 * i + 1], stride).relu()
    x = (x.flatten(1) @ w[6].T + w[7]).relu() @ w[8].T + w[9]
    torch.testing.assert_close(net(frames).double(), x, rtol=1e-4, atol=1e-5)


def test_t36_compiled_and_plain_updates_agree(S, agent, batch):
    need(S, "compile_update")
    rows, states = [], []
    for mode in ("off", "on"):
        fresh = build(S, compile=mode)
        start = copy.deepcopy(fresh.state_dict())
        update, compiled = S.compile_update(fresh, S.Agent.update, (batch,), mode)
        assert compiled == (mode == "on"), "compilation failed"
        assert all(torch.equal(value, start[name]) for name, value in fresh.state_dict().items())
        rows.append(torch.stack([update(batch).values for _ in range(5)]))
        states.append(torch.cat([p.detach().flatten() for p in fresh.q.parameters()]))
    torch.testing.assert_close(*rows, rtol=1e-2, atol=1e-3)
    gap = (states[0] - states[1]).abs()  # Adam makes steps of gradients that are next to nothing
    assert (gap > 1e-5).float().mean() < 1e-3 and rows[0][0, 0] > 1.2 * rows[0][-1, 0]


# --- acting ---------------------------------------------------------------------------------------
def test_t27_every_environment_draws_for_itself(agent):
    np.random.seed(0)
    obs = np.random.default_rng(0).integers(0, 256, (6000, *SHAPE), np.uint8)[:1].repeat(6000, 0)
    best = forward(agent, "q", weights(agent, "q"), obs[:1].astype(float)).argmax()
    for epsilon in (0.0, 0.3, 1.0):
        action = agent.explore(obs, epsilon)
        for a in range(ACTIONS):
            share = epsilon / ACTIONS + (1 - epsilon) * (a == best)
            assert (action == a).mean() == pytest.approx(share, abs=0.02)
        assert (epsilon == 0) or (action != agent.explore(obs, epsilon)).any()


def test_act_and_value(S, script):
    need_own_networks(script)  # whose last layer has a bias for each action
    np.random.seed(0)
    agent = build(S, eval_e=0.5, end_e=0.2)
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, (4000, *SHAPE)) * rng.integers(0, 2, (4000, 4, 1, 1))
    obs = np.uint8(obs)  # of stacks that are black in part
    with torch.no_grad():
        agent.q[-1].bias -= agent.q(torch.from_numpy(obs[:9])).mean(0)  # none is the best always
    q = forward(agent, "q", weights(agent, "q"), obs[:50].astype(float))
    np.testing.assert_allclose(agent.value(obs[:50]), q.max(1), rtol=1e-3)
    greedy = agent.explore(obs, 0.0)
    assert (greedy[:50] == q.argmax(1)).all() and len({*greedy}) > 1
    for deterministic, epsilon in ((True, 0.5), (False, 0.2)):
        others = (agent.act(obs, deterministic) != greedy).mean()
        assert others == pytest.approx(epsilon * (1 - 1 / ACTIONS), abs=0.03)


def test_t27_epsilon_falls_linearly_and_stays(S):
    agent = build(S, total_timesteps=1000, exploration_fraction=0.2, start_e=0.9, end_e=0.1)
    found = []
    for step in (0, 50, 100, 200, 201, 1000):
        agent.decay_epsilon(step)
        found.append(agent.epsilon)
    assert found == pytest.approx([0.9, 0.7, 0.5, 0.1, 0.1, 0.1])


# --- the replay buffer ----------------------------------------------------------------------------
@pytest.mark.parametrize("envs, capacity", [(1, 40), (3, 120), (2, 17)])
def test_t06_stacks_equal_those_of_a_list_of_transitions(S, envs, capacity):
    """Every transition whose frames are all there is drawn, equally often, and no other one.

    Before the ring is full, at every place of its head, and after several turns.
    """
    need(S, "FrameBuffer")
    rng, length = np.random.default_rng(envs), capacity // envs
    buffer = S.FrameBuffer(capacity, envs, (2, 2), "cpu")
    known = [[] for _ in range(envs)]  # row of the oldest frame, and the transition
    rows, frame = np.zeros(envs, int), np.zeros(envs, np.uint8)
    stacks, fresh, ages = np.zeros((envs, 4, 2, 2), np.uint8), np.ones(envs, bool), [0] * envs
    np.random.seed(0)
    for step in range(1, 5 * length):
        for i in np.flatnonzero(fresh):
            stacks[i], ages[i] = rng.integers(256, size=(1, 2, 2)), 0
            rows[i] += 1
        action, reward = rng.integers(4, size=envs), rng.integers(-1, 2, envs)
        done = rng.random(envs) < 0.15
        terminated = done & (rng.random(envs) < 0.5) | (rng.random(envs) < 0.1)  # lost lives
        frame = rng.integers(256, size=(envs, 1, 2, 2), dtype=np.uint8)
        following = np.concatenate([stacks[:, 1:], frame], 1)
        buffer.add(stacks, action, np.float64(reward), terminated, following, done)
        for i in range(envs):
            oldest = rows[i] - 1 - min(ages[i], 3)
            both = np.concatenate([stacks[i], frame[i]]).tobytes()
            known[i].append((oldest, both, action[i], reward[i], terminated[i]))
            ages[i], rows[i] = ages[i] + 1, rows[i] + 1
        stacks, fresh = following.copy(), done
        following[:], frame[:] = 0, 0  # the buffer has copies
        if step % 7 and step < 4 * length:
            continue
        expected = {
            (i, *row[1:]) for i in range(envs) for row in known[i] if row[0] >= rows[i] - length
        }
        frames, *columns = buffer.sample(60 * len(expected))
        assert frames.dtype == torch.uint8 and frames.shape[1:] == (5, 2, 2)
        assert {column.dtype for column in columns} == {torch.float32}
        found = {}
        for stack, *row in zip(frames.numpy(), *map(torch.Tensor.tolist, columns), strict=True):
            found[stack.tobytes(), *row] = found.get((stack.tobytes(), *row), 0) + 1
        assert found.keys() == {row[1:] for row in expected}
        assert len(found) == len(expected) and min(found.values()) > 20
        counts = np.array([*found.values()])
        assert np.square(counts - 60).sum() / 60 < len(counts) + 5 * np.sqrt(2 * len(counts))


def test_t06_the_buffer_holds_one_byte_a_pixel(S):
    need(S, "FrameBuffer")
    buffer = S.FrameBuffer(1000, 3, (84, 84), "cpu")
    assert buffer.frames.dtype == torch.uint8 and buffer.frames.nbytes == 999 * 84 * 84
    others = [value for name, value in vars(buffer).items() if name != "frames"]
    arrays = [value for value in others if isinstance(value, np.ndarray | torch.Tensor)]
    assert 999 * 14 <= sum(array.nbytes for array in arrays) < 999 * 15


def test_memory_is_taken_at_once(S):
    """Or a second run would count on it, and one of both be killed after hours."""
    need(S, "FrameBuffer")
    before = psutil.Process().memory_info().rss
    buffer = S.FrameBuffer(100_000, 1, (36, 36), "cpu")
    assert psutil.Process().memory_info().rss - before > 0.9 * buffer.frames.nbytes


# --- whole runs -----------------------------------------------------------------------------------
@pytest.fixture
def run(S, spaces, tmp_path, monkeypatch):
    """Run main; return the agent, what was stored, the batches, copies of the target, and logs."""
    apply(spaces, "pixels")
    need(S, "FrameBuffer", "Agent.copy_target")

    def run(**changes):
        seen = types.SimpleNamespace(stored=[], batches=[], copies=[], logs=[], updates=[])
        add, sample, log = S.FrameBuffer.add, S.FrameBuffer.sample, S.Run.log
        copies, run_init = S.Agent.copy_target, S.Run.__init__

        def spy_run(run, *inputs, **options):
            run_init(run, *inputs, **options)
            seen.run = run

        def spy_add(buffer, *columns):
            seen.stored.append([np.array(column) for column in columns])
            return add(buffer, *columns)

        def spy_sample(buffer, size):
            seen.batches.append(sample(buffer, size))
            return seen.batches[-1]

        def spy_copy(agent):
            seen.copies.append((seen.run.global_step, seen.run.updates))
            return copies(agent)

        def spy_log(run, metrics, *rest):
            row = {"global_step": run.global_step, "updates": run.updates}
            seen.logs.append(row | {k: float(v) for k, v in metrics.items()})
            return log(run, metrics, *rest)

        with monkeypatch.context() as patch, inside(tmp_path):
            patch.setattr(S.FrameBuffer, "add", spy_add)
            patch.setattr(S.FrameBuffer, "sample", spy_sample)
            patch.setattr(S.Agent, "copy_target", spy_copy)
            patch.setattr(S.Run, "log", spy_log)
            patch.setattr(S.Run, "__init__", spy_run)
            seen.agent = S.main(arguments(S, **changes))
        return seen

    return run


@pytest.mark.parametrize("envs", [1, 3])
def test_t01_t02_t03_t06_stacks_of_a_run(run, envs):
    """X6. Frame t shows 10 + t: four in a row, oldest first, then the next, in one episode."""
    seen = run(env_id="tests.probe_envs:Frames-v0", num_envs=envs, clip_rewards=False)
    steps = math.ceil(300 / envs) * envs
    assert len(seen.batches) == math.ceil((steps - 100) / 4)
    ends = set()
    for frames, _, reward, terminated in seen.batches:
        assert (frames == frames[..., :1, :1]).all()
        shown = frames[..., 0, 0].int() - 10  # [B, 5]
        now = shown[:, 3]
        for j in range(4):
            assert (shown[:, j] == (now - 3 + j).clamp(min=0)).all()
        assert (shown[:, 4] == now + 1).all() and (reward == now).all()
        ends |= {(int(t), bool(end)) for t, end in zip(now, terminated, strict=True)}
    assert ends == {(t, False) for t in range(8)} | {(t, True) for t in (4, 6, 8)}
    assert any("charts/episodic_return" in row for row in seen.logs)


@pytest.mark.parametrize("copies, envs", [(151, 1), (10, 1), (10, 4), (30, 3)])
def test_t24_the_target_is_copied_at_its_own_period(run, copies, envs):
    seen = run(
        env_id="tests.probe_envs:ConstPixels-v0", target_every=copies, num_envs=envs, train_every=3
    )
    total = math.ceil(300 / envs) * envs
    due = [
        step for step in range(envs, total + 1, envs) if step // copies > (step - envs) // copies
    ]
    assert [step for step, _ in seen.copies] == due
    for step, updates in seen.copies:
        assert updates == max(math.ceil((step - 100) / 3), 0)


def test_t27_epsilon_of_a_run(run):
    seen = run(env_id="tests.probe_envs:MatchPixels-v0", exploration_fraction=0.5, log_every=50)
    found = {
        row["global_step"]: row["charts/epsilon"] for row in seen.logs if "charts/epsilon" in row
    }
    expected = {s: max(1 - 0.99 * (s - 1) / 150, 0.01) for s in range(50, 301, 50)}
    assert found == pytest.approx(expected)
    rates = [row["charts/learning_rate"] for row in seen.logs if "charts/epsilon" in row]
    assert len(rates) == 6 and rates[-1] == seen.agent.q_opt.lr  # a schedule may move it


def grey(n):
    """What the emulator shows of frame n, in grey."""
    env, frame = FakeALE(), np.zeros((210, 160), np.uint8)
    env.n = n
    env.getScreenGrayscale(frame)
    return frame


@pytest.mark.parametrize(
    "name, life_loss, size",
    [("Cartridge", True, 84), ("Cartridge-skips", True, 44), ("Cartridge-sticky", False, 84)],
)
@pytest.mark.parametrize("envs", [1, 2])
def test_t25_t26_a_scripted_game_through_the_whole_pipeline(
    untried, run, name, life_loss, size, envs, capfd
):
    """X7. Frames, rewards, lives and returns, known from the raw actions that the game was given.

    A game is 1 to 30 no-ops, FIRE for four frames, then every action for four frames; it is reset
    where it is over and nowhere else. What is seen is the larger of a step's last two frames.
    """
    Cartridge.games_of.clear()
    flags = {"num_envs": envs, "total_timesteps": 240, "buffer_size": 960}
    seen = run(env_id=f"{name}-v0", frame_size=size, **flags)
    assert f"life loss {'on' if life_loss else 'off'}" in capfd.readouterr().out
    assert seen.agent.args.life_loss == ("on" if life_loss else "off")
    assert len(Cartridge.games_of) == envs
    starts, returns, lost = [], [], 0
    for i, games in enumerate(Cartridge.games_of):
        steps = iter(seen.stored)
        for game in games:
            noops = game.index(1)
            assert 1 <= noops <= 30 and game[:noops] == [0] * noops and game[noops:][:4] == [1] * 4
            starts.append(noops)
            n, score, stack = noops + 4, 0, None
            while n < len(game):
                obs, action, reward, terminated, next_obs, done = (x[i] for x in next(steps))
                raw = game[n : n + 4]
                assert raw == [action] * len(raw)
                first = grey_step(n, size)
                stack = np.stack([first] * 4) if stack is None else stack
                np.testing.assert_array_equal(obs, stack)
                gained = sum(5 if m % 4 == 1 else -1 for m in range(n + 1, n + 1 + len(raw)))
                lives = [3 - m // 40 for m in (n, n + len(raw))]
                score, n = score + gained, n + len(raw)
                assert reward == np.sign(gained) and done == (n == 120)
                assert terminated == (done or (life_loss and lives[1] < lives[0]))
                lost += lives[1] < lives[0] and not done
                if not done:
                    stack = np.concatenate([stack[1:], [grey_step(n, size)]])
                    np.testing.assert_array_equal(next_obs, stack)
            assert len(game) == 120 or game is games[-1]
            returns += [score] * (len(game) == 120)
        assert next(steps, None) is None
    logged = [row["charts/episodic_return"] for row in seen.logs if "charts/episodic_return" in row]
    assert sorted(logged) == sorted(returns) and len(returns) > 5 and len({*starts}) > 4
    assert lost > 10


def grey_step(n, size):
    """What is seen after a step whose last frame is n."""
    return cv2.resize(np.maximum(grey(n - 1), grey(n)), (size, size), interpolation=cv2.INTER_AREA)


def test_t26_nobody_presses_fire_where_there_is_none(untried, run):
    """A game is no-ops, then every action for four frames, until it is over."""
    Cartridge.games_of.clear()
    seen = run(env_id="Unarmed-v0", total_timesteps=240, buffer_size=960)
    steps, ((*games, _),) = iter(seen.stored), Cartridge.games_of
    for game in games:
        chosen, over = [], False
        while not over:
            _, action, _, _, _, over = (x[0] for x in next(steps))
            chosen += [int(action)] * 4
        assert any(game == [0] * noops + chosen[: 120 - noops] for noops in range(1, 31))
    assert len(games) > 5 and next(steps, None) is not None


def test_rewards_of_any_size_are_learned_from_if_asked(run):
    """The return is of raw rewards in both cases."""
    for clip, values in ((True, {-1, 0, 1}), (False, {0.0, *range(1, 9)})):
        seen = run(env_id="tests.probe_envs:Frames-v0", clip_rewards=clip, run_dir=f"run{clip}")
        assert {*np.concatenate([step[2] for step in seen.stored])} <= values
        scores = [
            row["charts/episodic_return"] for row in seen.logs if "charts/episodic_return" in row
        ]
        assert {*scores} == {n * (n - 1) / 2 for n in range(5, 10)}


def test_frames_that_fit_are_accepted(S, spaces, monkeypatch, tmp_path, capfd):
    need(S, "psutil", "make_games")
    memory = types.SimpleNamespace(available=1000 * (36 * 36 + 14) / 0.8)
    monkeypatch.setattr(S.psutil, "virtual_memory", lambda: memory)
    flags = {"env_id": "tests.probe_envs:ConstPixels-v0", "run_dir": "run"}
    with inside(tmp_path), pytest.raises(SystemExit) as stop:
        S.main(arguments(S, **flags, buffer_size=1001))
    assert stop.value.code == 2 and "--buffer-size 1000 fits" in capfd.readouterr().err
    with inside(tmp_path):
        S.main(arguments(S, **flags, buffer_size=1000))
    assert "replay needs 0.0013 GB on cpu" in capfd.readouterr().out


def test_load_and_evaluate(run, S, tmp_path, capfd):
    """A loaded agent is the same; --evaluate plays games of its own and films them."""
    name = "tests.toy_envs:Counter-shown-v0"
    agent = run(env_id=name, eval_e=0.0, run_dir="run", capture_video=True).agent
    obs = np.random.default_rng(0).integers(0, 256, (50, 4, 36, 36), np.uint8)
    capfd.readouterr()
    with inside(tmp_path):
        loaded = S.Agent.load("run")
        S.main(S.parse_args(S.Args, ["--evaluate", "run", "--eval-episodes", "2"]))
        said = capfd.readouterr().out
        assert np.array_equal(loaded.act(obs), agent.act(obs)) and loaded.act(obs).shape == (50,)
        assert np.array_equal(loaded.value(obs), agent.value(obs))
        frames = [np.zeros((36, 36), np.uint8) for _ in range(8)]
        for t, frame in enumerate(frames):
            frame[: 5 * t] = 255
        stacks = [np.stack([frames[max(t - k, 0)] for k in (3, 2, 1, 0)]) for t in range(7)]
        score = 28 + sum((2 * agent.act(np.stack(stacks)) - 2) * 2) / 100
        assert float(said.split("'eval/return_mean': ")[1].split(",")[0]) == pytest.approx(score)
        assert len(imageio.imread(said.split()[-1])) == 7


class Reused(gym.Env):
    """Frame t shows t; all are written into one array. Lives grow, and end with the fourth step."""

    observation_space = gym.spaces.Box(0, 255, (36, 36), np.uint8)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": []}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.frame = 0, getattr(self, "frame", np.zeros((36, 36), np.uint8))
        self.frame[:] = 0
        return self.frame, {"lives": 1}

    def step(self, action):
        self.t += 1
        self.frame[:] = self.t
        return self.frame, 0.0, False, self.t == 4, {"lives": self.t}


gym.register("Reused-v0", Reused)


class Quiet(Reused):
    """Tells its lives only where they change: three, and from the third step on two."""

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        info = {1: {"lives": 3}, 3: {"lives": 2}}.get(self.t, {})
        return obs, reward, terminated, truncated, info


def test_lives_that_are_told_when_they_change(S):
    """Silence is no lost life."""
    need(S, "Lives")
    env = S.Lives(Quiet())
    env.reset()
    lost = []
    for _ in range(4):
        env.step(0)
        lost.append(env.life_lost)
    assert lost == [False, False, True, False]


def test_t08_frames_are_copied_and_lives_are_forgotten_at_a_reset(run):
    """Acting sees what is learned from; a new game's fewer lives are none lost."""
    seen = run(env_id="Reused-v0", num_envs=2)
    for t, (obs, _, _, terminated, next_obs, done) in enumerate(seen.stored):
        shown = np.maximum(np.arange(t % 4 - 3, t % 4 + 2), 0)
        assert (obs[:, :, 0, 0] == shown[:4]).all() and (next_obs[:, :, 0, 0] == shown[1:]).all()
        assert not terminated.any() and (done == (t % 4 == 3)).all()


def test_batches_are_of_one_layout(run, S):
    """That of the example, or torch.compile compiles the update once more in the middle of it."""
    examples, compile_update = [], S.compile_update

    def spy(agent, method, example, compile):
        examples.extend(example)
        return compile_update(agent, method, example, compile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S, "compile_update", spy)
        batches = run(env_id="tests.probe_envs:ConstPixels-v0").batches
    assert len(examples) == 1 and len(batches) == 50
    for batch in [*examples, *batches]:
        assert [x.stride() for x in batch] == [x.stride() for x in examples[0]]
        assert [x.dtype for x in batch] == [torch.uint8, *[torch.float32] * 3]


@pytest.mark.parametrize("step", [130, 140])
def test_an_episode_that_cannot_be_repeated_ends(S, train, monkeypatch, capfd, step):
    """After --resume: with the frame that was seen last, so that no stack is of two episodes.

    Episodes have seven steps. At step 140 both environments have just been reset.
    """
    need(S, "FrameBuffer", "Args.resume")
    buffers, init, due = [], S.FrameBuffer.__init__, S.Run.checkpoint_due

    def spy(buffer, *inputs):
        init(buffer, *inputs)
        buffers.append(buffer)

    def stop(run):
        run.stopping = "SIGTERM" if run.global_step == step else ""
        return due(run)

    flags = "--env-id tests.toy_envs:Restless-v0 --num-envs 2 --buffer-size 1000 --compile off"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(S.Run, "checkpoint_due", stop)
        train(f"{flags} --run-dir run")
    monkeypatch.setattr(S.FrameBuffer, "__init__", spy)
    S.main(S.parse_args(S.Args, ["--resume", "run"]))
    assert len(warnings(capfd.readouterr().out)) == 2
    (buffer,) = buffers
    for env, added in enumerate(buffer.added):
        acted, age = buffer.notes["acted"][env, :added], buffer.notes["age"][env, :added]
        frames = buffer.frames.view(2, 500, 36, 36)[env, :added]
        time = (frames[:, :, 0] == 255).sum(1).numpy() // 5  # of the episode, as it is shown
        assert (age == np.minimum(time, 3)).all() and acted[0]
        assert (time[1:] == np.where(acted[:-1], time[:-1] + 1, 0)).all()
        lasts = [int(t) for t in time[~acted]]
        assert sorted(lasts) == [*[65 % 7] * (step == 130), *[7] * (len(lasts) - (step == 130))]


def test_files_have_room_for_the_last_frames_of_games(run):
    """A tenth more than transitions, which is enough for games of ten steps."""
    seen = run(env_id="tests.probe_envs:Frames-v0", num_envs=2, checkpoint_every=4000)
    rooms = [file.room for file in seen.run.buffer_files]
    assert len(rooms) == 2 and all(2200 <= room < 2210 for room in rooms)


# --- Atari ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, sticky, life_loss",
    [("BreakoutNoFrameskip-v4", 0.0, "on"), ("ALE/Breakout-v5", 0.25, "off")],
)
def test_protocols(run, name, sticky, life_loss, capfd, monkeypatch):
    """The id of the environment decides; both are told at the start, and skip frames once."""
    made, make = [], gym.make
    monkeypatch.setattr(gym, "make", lambda *x, **how: (made.append(how), make(*x, **how))[1])
    flags = {"total_timesteps": 150, "buffer_size": 200, "eval_every": 150, "eval_e": 1.0}
    seen = run(env_id=name, **flags, run_dir="run")
    assert {how["frameskip"] for how in made if "frameskip" in how} == {1}
    frames = [how["max_episode_steps"] for how in made if "max_episode_steps" in how]
    assert sorted(frames) == [18_000] * seen.agent.args.eval_episodes + [108_000]
    assert seen.agent.args.life_loss == life_loss
    assert seen.agent.sizes == {"obs_shape": [4, 84, 84], "num_actions": 4}
    said = capfd.readouterr().out
    assert f"sticky actions {sticky}, life loss {life_loss}" in said and "GB" in said


def test_t28_games_repeat_and_differ_and_load_their_rom_once(S, monkeypatch):
    need(S, "make_games")
    loads, load = [], S.ale_py.env.AtariEnv.load_game
    monkeypatch.setattr(
        S.ale_py.env.AtariEnv, "load_game", lambda env: (loads.append(1), load(env))[1]
    )

    def play(seed):
        envs, *_ = environments(S, S.Args(env_id="ALE/Pong-v5", seed=seed), 2)
        seen, made = [], len(loads)
        for episode in range(3):
            how = {"reset_mask": np.ones(2, bool)} if episode else {"stream": (S.TRAIN, seed)}
            seen.append(envs.reset(options=how)[0])
            seen += [envs.step(np.array([2, 3]))[0] for _ in range(30)]
        assert len(loads) == made + 2
        envs.close()
        return np.stack(seen)

    one, two, three = play(1), play(1), play(2)
    assert (one == two).all() and (one != three).any()
    assert (one[:, 0] != one[:, 1]).any() and (one[:31] != one[31:62]).any()


def test_t26_the_number_of_no_ops_follows_from_the_seed(S):
    """Of every later game too; nothing else differs without sticky actions."""
    need(S, "make_games")
    envs, *_ = environments(S, S.Args(env_id="PongNoFrameskip-v4", seed=1), 1)
    begun = []
    for episode in [*range(5), *range(5)]:
        how = {"reset_mask": np.ones(1, bool)} if episode else {"stream": (S.TRAIN, 1)}
        envs.reset(options=how)
        begun.append([envs.step(np.array([0]))[0].tobytes() for _ in range(25)][-1])
    envs.close()
    assert begun[:5] == begun[5:] and len({*begun[1:]}) > 2


@pytest.mark.parametrize("name", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
def test_games_are_repeated_by_other_emulators(S, name, capfd):
    """In the first game and in later ones, and by an emulator that had itself repeated one."""
    need(S, "make_games", "Episodes.repeat")

    def played():
        (state,) = envs.call("state")
        return state

    args = S.Args(env_id=name, frame_size=36)
    envs, actions = environments(S, args, 1)
    envs.reset(options={"stream": (S.TRAIN, 1)})
    rng, episodes = np.random.default_rng(1), set()
    for _ in range(7):
        for _ in range(90):
            _, _, terminated, truncated, _ = envs.step(rng.integers(actions, size=1))
            S.reset_finished(envs, terminated | truncated, None)
        before = played()
        episodes.add(before["episode"])
        envs.close()
        envs = S.make_games(args, 1)
        obs, _ = envs.reset(options={"stream": (S.TRAIN, 1), "states": [before]})
        assert alike(played(), before) and np.array_equal(obs[0], before["obs"])
    envs.close()
    assert len(episodes) > 2 and not warnings(capfd.readouterr().out)


def test_evaluations_do_not_depend_on_those_before(S):
    """A run that goes on has made none of them; with sticky actions the emulator draws, too."""
    need(S, "make_games")
    args = S.Args(env_id="ALE/Breakout-v5", frame_size=36)
    envs, actions = environments(S, args, 2)
    agent = S.Agent(arguments(S, eval_e=1.0), (4, 36, 36), actions)
    found = []
    for number in (0, 1, 0):
        S.seed_everything(1)
        metrics = S.evaluate(agent, envs, (S.EVALUATE, 1, number), no_film(S, envs))
        found.append([float(value) for value in metrics.values()])
    envs.close()
    assert found[0] == found[2] != found[1]


def test_evaluations_end_with_an_episode_limit(S):
    """18,000 frames, 4,500 steps, where the game would go on: nobody serves in Breakout."""
    need(S, "make_games")
    envs = S.make_eval_games(
        S.Args(env_id="BreakoutNoFrameskip-v4", eval_episodes=1, capture_video=False)
    )
    envs.reset(options={"stream": (S.EVALUATE, 1)})
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = envs.step(np.array([0]))
        steps, over = steps + 1, (terminated | truncated).any()
    assert truncated.all() and not terminated.any() and 4490 < steps < 4500
    envs.close()
