"""A run that is killed at any instant and resumed ends with the same bits."""

import errno
import fcntl
import importlib.util
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from tests.conftest import (
    ENVIRON,
    ROOT,
    alike,
    apply,
    environments,
    framed,
    need,
    read,
    same,
    shown,
    steady,
    summary,
    tiny,
    warnings,
)

HIDDEN = "--env-id tests.toy_envs:Hidden-v0 --buffer-size 150 --checkpoint-every 40"
HIDDEN += " --rollout-steps 24 --batch-size 12"
SAME = f"{HIDDEN} --compile off"
HOPPER = "--env-id Hopper-v4 --eval-episodes 1 --checkpoint-every 40"
slow = pytest.mark.slow
# by default all other tests are of the first script, since the code below the divider is shared
every_script = pytest.mark.every_script


# --- what runs leave ------------------------------------------------------------------------------
def agent_of(run):
    """Return all tensors of a finished run's agent, optimizers included."""
    return torch.load(Path(run, "model.pt"), weights_only=True)["agent"]


def state_of(run):
    """Return the checkpoint of a run."""
    return torch.load(Path(run, "checkpoint", "state.pt"), weights_only=True)


def latest_rows(buffer):
    """Return the rows of a buffer but the oldest, in whose place the next one may be begun."""
    count = min(buffer.added, len(buffer.rows) - 1)
    return buffer.rows[torch.arange(buffer.added - count, buffer.added) % len(buffer.rows)]


def with_ends(S):
    """Return a Run.write_model that also writes what a checkpoint at the end would hold.

    It goes to a file <run>.end in the working directory.
    """
    write_model = S.Run.write_model

    def write(run):
        write_model(run)
        end = {"generators": S.generator_states(), "run": run.state_dict()}
        end["envs"] = [S.with_tensors(state) for state in run.envs.call("state")]
        end["rows"] = [latest_rows(buffer) for buffer in run.buffers]
        torch.save(end, f"{run.path.name}.end")

    return write


def assert_equal(one, other, ends=True):
    """Require the same weights, optimizers, generators, counters, buffer and metrics."""
    assert same(agent_of(one), agent_of(other))
    assert steady(one) == steady(other)
    seconds = [row["seconds"] for row in read(other)]
    assert seconds == sorted(seconds)
    assert summary(other)["status"] == "finished"
    assert not Path(other, "checkpoint").exists()
    assert not [*Path(other).rglob("*.part")]
    if ends:
        first, second = (torch.load(f"{run}.end", weights_only=True) for run in (one, other))
        del first["run"]["id"], second["run"]["id"]
        for name in first:
            assert alike(first[name], second[name]), name


def contents(folder):
    """Return all files in a folder with their bytes."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_metrics_keep_their_order(S):
    """Names whose rows are logged already keep their place, which is that in the next row."""
    need(S, "Run")
    args = SimpleNamespace(device="cpu", capture_video=False)
    run, other = S.Run(args, None, None), S.Run(args, None, None)
    run.pending = {("logged",): [], ("new", "newer"): [torch.ones(2), torch.zeros(2)]}
    other.load_state_dict(run.state_dict())
    assert [*other.pending] == [*run.pending]
    assert other.pending["logged",] == []
    assert torch.stack(other.pending["new", "newer"]).tolist() == [[1, 1], [0, 0]]


# --- a process that forks runs --------------------------------------------------------------------
def spoiled_open(about, opening, after, spoil):
    """Return an open that calls spoil when so many bytes of a file are written.

    It is the file with a name about that, where it is opened to be written for the opening-th time.
    """
    opened = []

    def open_spoiled(path, *inputs, **options):
        file = open(path, *inputs, **options)  # noqa: SIM115
        if about not in Path(path).name or inputs[:1] == ("rb",):
            return file
        opened.append(path)
        if len(opened) != opening:
            return file
        write, written = file.write, []

        def spoiling(content):
            content = memoryview(content).cast("B")
            left = after - sum(written)
            written.append(len(content))
            if 0 <= left < len(content):
                write(content[:left])
                file.flush()
                spoil()
            return write(content)

        file.write = spoiling
        return file

    return open_spoiled


def die(holder, name, count=1, about=""):
    """Let a call be the last: the count-th with an argument that has the text about."""
    call, calls = getattr(holder, name), []

    def dying(*inputs, **options):
        if about in str(inputs):
            calls.append(inputs)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*inputs, **options)

    setattr(holder, name, dying)


def nurse(path):
    """Fork a run for each line: a folder, flags, and code that is executed before."""
    spec = importlib.util.spec_from_file_location("script", path)
    sys.modules["script"] = S = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(S)
    found = [*S.distributions()]
    found = [SimpleNamespace(name=one.name, version=one.version) for one in found]
    S.distributions = lambda: found
    S.Run.write_model = with_ends(S)
    importlib.import_module("tests.toy_envs")

    def tear(about, opening=1, after=20):
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        S.open = spoiled_open(about, opening, after, kill)

    def lower_room(rows):
        init = S.BufferFile.__init__

        def lowered(self, folder, buffer, room, *others):
            init(self, folder, buffer, rows, *others)

        S.BufferFile.__init__ = lowered

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for line in sys.stdin:
        folder, flags, code = json.loads(line)
        if child := os.fork():
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        os.chdir(folder)
        os.dup2(os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        names = {"S": S, "os": os, "signal": signal, "time": time, "torch": torch}
        exec(code, names | {"die": die, "tear": tear, "lower_room": lower_room})
        exit_code = 1
        try:
            S.main(S.parse_args(S.Args, flags))
            exit_code = 0
        except SystemExit as stop:
            exit_code = stop.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(exit_code)


class Nursery:
    """Runs in processes of their own, forked from one that has imported everything."""

    def __init__(self, S, script, spaces, kept):
        code = "import sys; from tests.test_resume import nurse; nurse(sys.argv[1])"
        command = [sys.executable, "-c", code, str(script)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environ = ENVIRON | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environ, **pipes)
        self.S = S
        self.spaces = spaces
        self.kept = kept  # the folder of undisturbed runs
        self.undisturbed = {}
        self.lowered = ""

    def start(self, flags, code="", folder=None):
        """Start a run in the folder and return its process number."""
        words = tiny(self.S, flags)
        if not flags.startswith("--resume"):
            words = shown(self.spaces, [*tiny(self.S), *words])
        line = json.dumps([str(folder or self.folder), words, code])
        print(line, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self):
        """Wait for the run and return its exit code."""
        return int(self.process.stdout.readline())

    def run(self, *inputs, **options):
        """Start a run, wait for it, and return its exit code."""
        self.start(*inputs, **options)
        return self.end()

    def whole(self, flags):
        """Return the folder of a run with those flags that nothing has disturbed."""
        if flags not in self.undisturbed:
            name = f"run{len(self.undisturbed)}"
            assert self.run(f"{flags} --run-dir {name}", folder=self.kept) == 0
            self.undisturbed[flags] = self.kept / name
        return self.undisturbed[flags]

    def said(self):
        """Return what runs in the folder have printed."""
        out = self.folder / "out"
        return out.read_text() if out.exists() else ""

    def wait(self, text):
        """Wait until a run has printed something, 60 seconds at most."""
        for _ in range(12_000):
            if text in self.said():
                return
            time.sleep(0.005)
        raise TimeoutError(text)


@pytest.fixture(scope="module")
def parent(resumable, S, script, spaces, tmp_path_factory):
    shown(spaces, [])
    nursery = Nursery(S, script, spaces, tmp_path_factory.mktemp("whole"))
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(60)


@pytest.fixture
def nursery(parent, tmp_path):
    parent.folder = tmp_path
    return parent


def reach(child, metrics, step):
    """Wait until a run has logged something of that step or a later one; tell if it has ended."""
    while True:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return False
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if any(int(re.search(r'"global_step": (\d+)', line)[1]) >= step for line in lines[:-1]):
            return True
        time.sleep(0.002)


def hold(condition):
    """Return code that lets a run wait after a step for as long as a condition is true."""
    return f"""
def held(run, due=S.Run.checkpoint_due):
    while {condition}:
        time.sleep(0.01)
    return due(run)


S.Run.checkpoint_due = held
"""


GAME = "--frame-size 36 --end-e 0.5 --eval-e 1 --log-every 20 --checkpoint-every 40 --compile off"
SMALL = "--buffer-size 150"  # the ring turns
NATURE = f"--env-id BreakoutNoFrameskip-v4 {GAME}"
STICKY = f"--env-id ALE/Breakout-v5 {GAME}"
RUNS = [
    pytest.param(f"{NATURE} {SMALL}", id="game", marks=slow),
    pytest.param(f"{NATURE} --num-envs 3", id="game-3", marks=slow),
    pytest.param(f"{STICKY}", id="sticky", marks=slow),
    pytest.param(f"{STICKY} {SMALL} --num-envs 3", id="sticky-3"),
    pytest.param(f"{STICKY} {SMALL} --num-envs 3 --num-workers 2", id="sticky-async", marks=slow),
    pytest.param(f"{SAME} --num-envs 3 --num-workers 2", id="hidden-async", marks=slow),
    pytest.param(f"{HOPPER} --compile off", id="MuJoCo", marks=slow),
    pytest.param(f"{HOPPER} --compile off --num-envs 3", id="MuJoCo-3", marks=slow),
    pytest.param(f"{SAME}", id="hidden", marks=slow),
    pytest.param(f"{SAME} --num-envs 3", id="hidden-3"),
    pytest.param(f"{SAME} --num-envs 3 --num-workers 2", id="async-3"),
    pytest.param(f"{HOPPER} --compile off --num-envs 4 --num-workers 2", id="async-4", marks=slow),
    pytest.param(f"{HIDDEN} --compile on", id="compiled", marks=slow),
    pytest.param(f"{HIDDEN} --compile on --num-envs 3", id="compiled-3", marks=slow),
]


@every_script
@pytest.mark.parametrize("flags", RUNS)
def test_killed_at_random_instants(nursery, S, spaces, flags):
    """Seven times each, twice while it starts; the rings in memory and on the disk wrap."""
    if "Hopper" in flags:
        apply(spaces, "box")
    if "Breakout" in flags and not framed(S):
        pytest.skip("games are for those who see")
    if "--num-workers 2" in flags:
        need(S, "Args.num_workers")
    flags += " --total-timesteps 600"
    whole = nursery.whole(flags)
    rng = random.Random(flags)
    resumed = f"{flags} --run-dir b --resume auto"
    stored = hasattr(nursery.S, "BufferFile") and "Hopper" not in flags
    code = "lower_room(60)" if stored else ""  # rows that the file has to spare
    for step in [0, 0, *sorted(rng.sample(range(1, 480), 5))]:  # well before a fast run ends
        child = nursery.start(
            resumed, code + hold("run.is_complete()")
        )  # however late it is killed
        if step:
            assert reach(child, nursery.folder / "b" / "metrics.jsonl", step)
        time.sleep(rng.uniform(0, 0.02 if step else 0.3))
        os.kill(child, signal.SIGKILL)
        assert nursery.end() == -signal.SIGKILL
    assert nursery.run(resumed, code) == 0
    assert_equal(whole, nursery.folder / "b")
    assert re.search(r"going on at step [1-9]", nursery.said())


@every_script
@pytest.mark.parametrize("every", [0, pytest.param(7, marks=slow)])
def test_checkpoints_change_no_bit(nursery, every):
    whole = nursery.whole(SAME)
    flags = SAME.replace("--checkpoint-every 40", f"--checkpoint-every {every}")
    assert nursery.run(f"{flags} --run-dir b") == 0
    assert_equal(whole, nursery.folder / "b")


DEATHS = {
    "the source": 'tear("script", 1, 9999)',
    "settings": 'tear("config")',
    "settings before they take their name": 'die(S.os, "replace", 1, "config.toml")',
    "the first checkpoint": 'tear("state", 1, 5000)',
    "the first row of metrics": 'tear("metrics")',
    "a row of metrics": 'tear("metrics", 1, 3000)',
    "rows": 'tear("rows-", 4, 200)',
    "rows in the ring's next turn": 'lower_room(48); tear("rows-", 6, 200)',
    "rows in a new file": 'lower_room(9); tear("rows-", 5, 200)',
    "a state": 'tear("state", 4, 9000)',
    "a state before it takes its name": 'die(S.os, "replace", 4, "state.pt")',
    "a state of rows in a new file": 'lower_room(9); die(S.os, "replace", 4, "state.pt")',
    "rows that are no longer needed": 'lower_room(9); die(S.Path, "unlink", 3, "rows-")',
    "the model": 'tear("model", 1, 9000)',
    "the model before it takes its name": 'die(S.os, "replace", 1, "model.pt")',
    "the summary": 'tear("summary")',
    "the summary before it takes its name": 'die(S.os, "replace", 1, "summary.json")',
    "the checkpoint that is no longer needed": 'die(S.shutil, "rmtree", 1, "checkpoint")',
}
OFTEN = "rows in the ring's next turn,rows in a new file,a state,the model,the summary".split(",")


@every_script
@pytest.mark.parametrize(
    "death",
    [
        pytest.param(death, id=name, marks=[] if name in OFTEN else slow)
        for name, death in DEATHS.items()
    ],
)
def test_killed_while_writing(nursery, S, death):
    """A file is torn, or has no name yet; the run that goes on leaves no trace of it."""
    if "rows-" in death or "lower_room" in death:
        need(S, "Args.buffer_size")
    whole = nursery.whole(SAME)
    assert nursery.run(f"{SAME} --run-dir b", death) == -signal.SIGKILL
    lowered = re.match(r"lower_room\(\d+\)|", death)[0]
    assert nursery.run(f"{SAME} --run-dir b --resume auto", lowered) == 0
    if "rmtree" in death:
        shutil.rmtree(nursery.folder / "b" / "checkpoint")
    assert_equal(whole, nursery.folder / "b")


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=slow)],
)
def test_signal_loses_nothing(nursery, number):
    """The run is saved at once, whatever --checkpoint-every says, and goes on from there."""
    flags = SAME.replace("--checkpoint-every 40", "--checkpoint-every 0")
    flags += " --total-timesteps 500 --log-every 50"
    whole = nursery.whole(flags)
    waiting = hold("run.global_step >= 400 and not run.stopping")
    child = nursery.start(f"{flags} --run-dir b", waiting)
    assert reach(child, nursery.folder / "b" / "metrics.jsonl", 200)
    os.kill(child, number)
    assert nursery.end() == 130
    found = summary(nursery.folder / "b")
    assert found["status"] == "interrupted" and 200 <= found["global_step"] < 500
    assert found["reason"].startswith(signal.Signals(number).name)
    assert nursery.run("--resume b") == 0
    assert f"going on at step {found['global_step']}\n" in nursery.said()
    assert_equal(whole, nursery.folder / "b")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_ends_at_once(nursery, first):
    """Even if the environment hangs; after SIGTERM the first one is asked for again."""
    child = nursery.start("--env-id tests.toy_envs:Stuck-v0 --compile off --run-dir run")
    nursery.wait("stuck")
    if first != signal.SIGINT:
        os.kill(child, first)
        nursery.wait("SIGTERM: saving")
    os.kill(child, signal.SIGINT)
    nursery.wait("Ctrl-C again ends at once")
    os.kill(child, signal.SIGINT)
    began = time.perf_counter()
    while Path(f"/proc/{child}").exists() and time.perf_counter() - began < 5:
        time.sleep(0.01)
    if Path(f"/proc/{child}").exists():
        os.kill(child, signal.SIGKILL)
    assert nursery.end() == -signal.SIGINT


# --- environments in processes of their own -------------------------------------------------------
def test_nohup(nursery):
    """A signal that is ignored stays so: a run behind nohup outlives its terminal."""
    flags = f"{SAME} --log-every 50 --run-dir b"
    waiting = hold("run.global_step >= 250 and not os.path.exists('sent')")
    child = nursery.start(flags, f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{waiting}")
    assert reach(child, nursery.folder / "b" / "metrics.jsonl", 150)
    os.kill(child, signal.SIGHUP)
    (nursery.folder / "sent").touch()
    assert nursery.end() == 0
    assert summary(nursery.folder / "b")["status"] == "finished"


# --- in this process ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def resumable(S):
    """Skip scripts that cannot resume, before anything is run."""
    need(S, "Args.resume", "parse_args")


@pytest.fixture
def begin(resumable, train, S, monkeypatch):
    """Train with flags after those of TINY, if the script has them; remember how the run ends."""
    monkeypatch.setattr(S.Run, "write_model", with_ends(S))
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

    def unheeded(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} finds no run")

    def begin(flags=""):
        try:
            return train(" ".join(tiny(S, flags)))
        except KeyboardInterrupt:  # which would end pytest
            raise AssertionError("a signal ends the run with KeyboardInterrupt") from None

    handlers = [signal.signal(number, unheeded) for number in numbers]
    yield begin
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def resume(begin, S):
    """Go on with flags alone, without those of TINY."""
    return lambda flags: S.main(S.parse_args(S.Args, flags.split()))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Return where runs that many tests need are kept, once there are any."""
    return tmp_path_factory.mktemp("usual")


@pytest.fixture
def whole(begin, usual, script):
    """Put an undisturbed run with the flags SAME, or SAME and others, into the folder whole."""

    def whole(flags=SAME):
        kept = usual / f"whole {script.stem} {flags}".replace("/", "_")
        if not kept.exists():
            begin(f"{flags} --run-dir whole")
            kept.mkdir()
            shutil.copytree("whole", kept / "whole")
            shutil.copy("whole.end", kept)
        elif not Path("whole").exists():
            shutil.copytree(kept, ".", dirs_exist_ok=True)

    return whole


@pytest.fixture
def interrupt(begin, S, monkeypatch, usual, script):
    """Train until a signal seems to come at a step."""

    def interrupt(flags, step):
        kept = usual / f"{script.stem} {flags} {step}".replace("/", "_")
        new = not Path(flags.split()[-1]).exists() and flags.split()[-2] == "--run-dir"
        if new and kept.exists():
            shutil.copytree(kept, flags.split()[-1])
            return
        due = S.Run.checkpoint_due

        def stop(run):
            if run.global_step >= step:
                run.stopping = "SIGTERM"
            return due(run)

        with monkeypatch.context() as patch:
            patch.setattr(S.Run, "checkpoint_due", stop)
            with pytest.raises(SystemExit) as end:
                begin(flags)
        assert end.value.code == 130
        if new and flags.startswith(SAME):
            shutil.copytree(flags.split()[-1], kept)

    return interrupt


@pytest.fixture
def refuse(begin, resume, S, tmp_path, capfd):
    """Train with flags that must be refused with nothing changed; return what stderr says."""

    def refuse(flags, call=None):
        files = contents(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            (call or resume)(flags)
        assert stop.value.code == 2
        assert contents(tmp_path) == files
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1 and said.startswith("error: --")
        return said

    return refuse


def flip(path, place, bit=16):
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


# --- the file of the buffer -----------------------------------------------------------------------
class Ring:
    """A replay buffer of any rows, and all rows that it ever held."""

    def __init__(self, capacity, kind):
        shape, dtype = {"numbers": ((3,), torch.float32), "frames": ((2, 3), torch.uint8)}[kind]
        self.rows = torch.randint(0, 99, (capacity, *shape)).to(dtype)
        self.added = 0

    def add(self, count):
        rows = torch.randint(0, 256, (count, *self.rows.shape[1:])).to(self.rows.dtype)
        for row in rows:
            self.rows[self.added % len(self.rows)] = row
            self.added += 1

    def content(self):
        """Return the rows that can be drawn, each at its place."""
        return self.added, self.rows[: self.added].clone()


@pytest.fixture
def unsynced(S, monkeypatch):
    """Spare the time to wait for the disk."""
    need(S, "BufferFile")
    monkeypatch.setattr(S.os, "fsync", lambda file: None)


def tear_file(rng, path, before):
    """Leave of the latest writes to a file what a crash can: any part of them, or garbage."""
    after = bytearray(path.read_bytes())
    changed = [
        i for i in range(len(after)) if i >= len(before) or after[i] != before[i]
    ]  # it is short
    how = rng.choice(["all", "none", "half", "garbage", "any"])
    if how == "none":
        after[: len(before)] = before
    for i in changed[len(changed) // 2 :] if how == "half" else []:
        after[i] = before[i] if i < len(before) else 0
    for i in changed if how in ("garbage", "any") else []:
        after[i] = (
            rng.choice([after[i], rng.randrange(256)]) if how == "any" else rng.randrange(256)
        )
    if rng.random() < 0.3 and len(after) > len(before):
        after = after[: rng.randrange(len(before), len(after))]
    path.write_bytes(after)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["numbers", "frames"])
def test_buffer_file_survives_all(S, unsynced, tmp_path, kind):
    """In thousands of saves, some torn and some with more rows than room, nothing is lost."""
    rng = random.Random(kind)
    torch.manual_seed(1)
    outcomes = []
    for trial in range(70):
        capacity, room = rng.randint(1, 30), rng.randint(1, 12)
        folder = tmp_path / str(trial)
        folder.mkdir()
        salt = rng.getrandbits(32)
        buffer = Ring(capacity, kind)
        file = S.BufferFile(folder, buffer, room, salt)
        state, good = file.save(), buffer.content()
        file.saved = state
        for _ in range(15):
            count = rng.randint(0, 3 * room) if rng.random() < 0.2 else rng.randint(0, room)
            buffer.add(count)
            before = contents(folder)
            found = file.save()
            outcome = rng.choice(["saved", "saved", "failed", "killed", "killed after"])
            outcomes.append((outcome, found["name"] != state["name"], count > room))
            path = folder / found["name"]
            if outcome in ("saved", "killed after"):
                state, good = found, buffer.content()
            else:
                tear_file(rng, path, before.get(path, b""))
            if outcome == "saved":
                file.saved = state
            if outcome in ("saved", "failed"):
                file.delete_others()
                assert {path.name for path in folder.iterdir()} == {state["name"]}
            # what would come back now
            other = Ring(capacity, kind)
            again = S.BufferFile(folder, other, room, salt)
            again.restore(state)
            assert alike(other.content(), good)
            if outcome.startswith("killed"):
                buffer, file = other, again
        length = (folder / state["name"]).stat().st_size
        assert length <= (capacity + room) * (buffer.rows[0].numel() * buffer.rows.itemsize + 4)
    assert len({*outcomes}) >= 10
    assert sum(new for _, new, _ in outcomes) < len(outcomes) / 2  # mostly the file stays


@pytest.mark.quick
def test_buffer_file_of_many_rows(S, unsynced, tmp_path):
    """Parts of 10,000 rows, across the ends of both rings."""
    buffer = Ring(25_000, "frames")
    file = S.BufferFile(tmp_path, buffer, 12_000, 7)
    for count in (20_000, 11_000, 12_000, 12_000):
        buffer.rows[(buffer.added + torch.arange(count)) % 25_000] = torch.randint(
            0, 256, (count, 2, 3), dtype=torch.uint8
        )
        buffer.added += count
        file.saved = file.save()
    assert [path.name for path in tmp_path.iterdir()] == ["rows-0-20000.bin"]
    other = Ring(25_000, "frames")
    S.BufferFile(tmp_path, other, 12_000, 7).restore(file.saved)
    assert alike(other.content(), buffer.content())


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["numbers", "frames"])
def test_buffer_file_notices_damage(S, unsynced, tmp_path, kind):
    """Flipped bits, rows of another run, of another turn of the ring or at another place."""
    buffer = Ring(10, kind)
    file = S.BufferFile(tmp_path, buffer, 10, 77)
    for _ in range(8):
        buffer.add(5)
        file.saved = file.save()
        if buffer.added == 20:
            older = (tmp_path / file.saved["name"]).read_bytes()
    path = tmp_path / file.saved["name"]
    content = path.read_bytes()
    width = len(content) // 20
    assert len(content) == 20 * width and buffer.added == 40

    def restored(salt=77):
        other = Ring(10, kind)
        S.BufferFile(tmp_path, other, 10, salt).restore(file.saved)
        return other

    assert alike(restored().content(), buffer.content())
    with pytest.raises(ValueError):
        restored(salt=78)
    live = [number % 20 for number in range(30, 40)]
    for place in live:
        for _ in range(8):
            flip(path, place * width + random.randrange(width), 1 << random.randrange(8))
            with pytest.raises(ValueError):
                restored()
            path.write_bytes(content)
        row = slice(place * width, (place + 1) * width)
        for other in (older[row], content[row.stop :][:width] or content[:width]):
            path.write_bytes(content[: row.start] + other + content[row.stop :])
            with pytest.raises(ValueError):
                restored()
        path.write_bytes(content)
    for size in (0, width, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError):
            restored()
    path.unlink()
    with pytest.raises((OSError, ValueError)):
        restored()


# --- damage ---------------------------------------------------------------------------------------
def tensor_part(file):
    """Return what a zip file says about the largest tensor in it."""
    parts = [part for part in file.infolist() if "/data/" in part.filename]
    return max(parts, key=lambda part: part.file_size)


def flip_tensor(state):
    """Flip a bit in the middle of the largest tensor of a file."""
    with zipfile.ZipFile(state) as file:
        largest = tensor_part(file)
    flip(state, largest.header_offset + largest.file_size // 2)


STATES = {
    "truncated": lambda state: state.write_bytes(state.read_bytes()[:-999]),
    "empty": lambda state: state.write_bytes(b""),
    "flipped": flip_tensor,
    "missing": lambda state: state.unlink(),
    "zeros": lambda state: state.write_bytes(bytes(state.stat().st_size)),
    "text": lambda state: state.write_bytes(b"no checkpoint"),
    "not a dictionary": lambda state: torch.save(torch.zeros(3), state),
}


@pytest.mark.quick
@pytest.mark.parametrize("spoil", STATES.values(), ids=STATES)
def test_damaged_state(interrupt, refuse, spoil):
    interrupt(f"{SAME} --run-dir a", 130)
    spoil(Path("a/checkpoint/state.pt"))
    said = refuse("--resume a")
    assert re.fullmatch(r"error: --resume fails .*; a is left as it is: .*\n", said)


@pytest.mark.quick
def test_state_with_weights_of_another_shape(interrupt, refuse):
    interrupt(f"{SAME} --run-dir a", 130)
    state = state_of("a")
    state["agent"] = {name: torch.stack([value] * 2) for name, value in state["agent"].items()}
    torch.save(state, "a/checkpoint/state.pt")
    refuse("--resume a")


ROWS = {
    "truncated": lambda rows: rows.write_bytes(rows.read_bytes()[:-9]),
    "empty": lambda rows: rows.write_bytes(b""),
    "flipped": lambda rows: flip(rows, rows.stat().st_size // 2),
    "a flipped sum": lambda rows: flip(rows, rows.stat().st_size - 1),
    "missing": lambda rows: rows.unlink(),
}


@pytest.mark.quick
@pytest.mark.parametrize("spoil", ROWS.values(), ids=ROWS)
def test_damaged_rows(S, interrupt, refuse, spoil):
    need(S, "Args.buffer_size")
    interrupt(f"{SAME} --run-dir a", 130)
    (rows,) = Path("a/checkpoint").glob("rows-*.bin")
    spoil(rows)
    assert "; a is left as it is: " in refuse("--resume a")


@pytest.mark.parametrize(
    "what, step", [("rows", 130), ("state", 130), ("both", 130), ("state", 0), ("both", 0)]
)
def test_checkpoint_of_another_run(S, interrupt, refuse, what, step):
    """Of another seed, at the same step or at the beginning."""
    if what == "rows":
        need(S, "Args.buffer_size")
    interrupt(f"{SAME} --run-dir a", 130)
    interrupt(f"{SAME} --seed 2 --run-dir b", 130)
    if step == 0:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(S.Run, "evaluation_due", lambda run: os.kill(os.getpid(), 15))
            with pytest.raises(SystemExit):
                S.main(replace(S.read_config(S.Args, "b"), seed=2, run_dir="c"))
        shutil.rmtree("b")
        shutil.move("c", "b")
    if what == "state":
        shutil.copy("b/checkpoint/state.pt", "a/checkpoint/state.pt")
    elif what == "rows":
        for rows in Path("b/checkpoint").glob("rows-*.bin"):
            shutil.copy(rows, "a/checkpoint")
    else:
        shutil.rmtree("a/checkpoint")
        shutil.copytree("b/checkpoint", "a/checkpoint")
        with open("a/metrics.jsonl", "a") as file:
            file.write("\n" * 9_999)  # as if it were longer
    refuse("--resume a")


OTHERS = {
    "another source": lambda: Path("a/script.py").write_text("another"),
    "no source": lambda: Path("a/script.py").unlink(),
    "short metrics": lambda: os.truncate("a/metrics.jsonl", 99),
    "no metrics": lambda: Path("a/metrics.jsonl").unlink(),
    "settings cut short": lambda: os.truncate("a/config.toml", 99),
    "no settings": lambda: Path("a/config.toml").unlink(),
    "unknown settings": lambda: Path("a/config.toml").write_text("beta = 3\n"),
}


@pytest.mark.quick
@pytest.mark.parametrize("spoil", OTHERS.values(), ids=OTHERS)
def test_damaged_folder(interrupt, refuse, spoil, request):
    interrupt(f"{SAME} --run-dir a", 130)
    spoil()
    if "unknown" in request.node.name:  # which tyro says in a box of its own
        refuse(f"{SAME} --run-dir a --resume auto", lambda flags: begin_auto(request, flags))
    else:
        refuse("--resume a")


def begin_auto(request, flags):
    """Train with the flags after those of TINY."""
    return request.getfixturevalue("begin")(flags)


def test_every_flipped_bit_is_seen_or_harmless(interrupt, S):
    interrupt(f"{SAME} --run-dir a", 130)
    path = Path("a/checkpoint/state.pt")
    rng = random.Random(1)
    content, before, seen = path.read_bytes(), state_of("a"), 0
    with zipfile.ZipFile(path) as file:
        name = content.index(tensor_part(file).filename.encode(), file.start_dir)
    places = [(rng.randrange(len(content)), 1 << rng.randrange(8)) for _ in range(100)]
    places += [(place, 1 << bit) for place in range(name - 18, name) for bit in range(8)]
    for place, bit in places:
        flip(path, place, bit)
        try:
            found = S.read_checked(path)
        except Exception:
            seen += 1
        else:
            assert alike(found, before), (place, bit)
        path.write_bytes(content)
    assert seen > 50


@pytest.mark.parametrize("text", ["", '{"status": "fini', pytest.param("null", marks=slow)])
def test_summary_that_a_crash_left(whole, interrupt, resume, text):
    whole()
    interrupt(f"{SAME} --run-dir a", 130)
    Path("a/summary.json").write_text(text)
    resume("--resume a")
    assert_equal("whole", "a")


# --- a full disk ----------------------------------------------------------------------------------
def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "about, after", [("rows-", 200), pytest.param("state", 0, marks=slow), ("state", 9000)]
)
def test_no_space(whole, begin, S, monkeypatch, capfd, about, after):
    """One checkpoint fails: a warning, the last good one stays, later ones work again."""
    if about == "rows-":
        need(S, "Args.buffer_size")
    whole()
    monkeypatch.setattr(S, "open", spoiled_open(about, 3, after, full), raising=False)
    checkpoint, steps = S.Run.checkpoint, {}

    def look(run):
        checkpoint(run)
        steps[run.global_step] = state_of("a")["run"]["global_step"]
        left = {path.name for path in Path("a/checkpoint").iterdir()}
        assert left == {"state.pt"} | {file.saved["name"] for file in run.buffer_files}
        for buffer, place in zip(run.buffers, state_of("a")["rows"], strict=True):
            rows = torch.zeros_like(buffer.rows[torch.arange(len(buffer.rows))])
            other = SimpleNamespace(rows=rows, added=0)
            found = S.BufferFile(run.path / "checkpoint", other, 9, int(run.id, 16))
            found.restore(place)

    monkeypatch.setattr(S.Run, "checkpoint", look)
    capfd.readouterr()
    begin(f"{SAME} --run-dir a")
    (warned,) = warnings(capfd.readouterr().out)
    assert "checkpoint" in warned and "No space left" in warned
    (failed,) = [step for step, saved in steps.items() if saved != step]
    good = [step for step in steps if step < failed]
    assert steps[failed] == max(good) and len(steps) > 3
    assert_equal("whole", "a")


def test_killed_after_checkpoints_that_failed(whole, interrupt, resume, S, monkeypatch, capfd):
    """More rows than the file has room for have come since the last good one."""
    need(S, "Args.buffer_size")
    whole()
    init = S.BufferFile.__init__
    lowered = lambda self, folder, buffer, room, *others: init(self, folder, buffer, 45, *others)  # noqa: E731
    monkeypatch.setattr(S.BufferFile, "__init__", lowered)
    write = S.write_atomically
    calls = []  # for state.pt

    def failing(path, fill):
        if path.name == "state.pt":
            calls.append(path)
        is_spoilt = path.name == "state.pt" and len(calls) >= 4
        write(path, fail if is_spoilt else fill)

    def fail(file):
        file.write(b"half")
        full()

    with monkeypatch.context() as patch:
        patch.setattr(S, "write_atomically", failing)
        interrupt(f"{SAME} --notes full --run-dir a", 250)
    assert len(calls) > 6
    assert state_of("a")["run"]["global_step"] <= 100
    assert len([*Path("a/checkpoint").iterdir()]) == 2
    assert len(warnings(capfd.readouterr().out)) <= len(calls)
    resume("--resume a")
    assert_equal("whole", "a")


@pytest.mark.parametrize("about", ["model", "summary"])
def test_end_cannot_be_saved(whole, begin, resume, S, monkeypatch, capfd, about):
    """The run has failed, keeps its last checkpoint, and ends when there is space again."""
    whole()
    with monkeypatch.context() as patch:
        patch.setattr(S, "open", spoiled_open(about, 1, 20, full), raising=False)
        code = 0
        try:
            begin(f"{SAME} --run-dir a")
        except SystemExit as stop:
            code = stop.code
    out = capfd.readouterr()
    assert "warning: " in out.out and "Traceback" not in out.err
    assert not S.is_finished("a") and Path("a/checkpoint/state.pt").exists()
    if about == "model":
        assert summary("a")["status"] == "failed"
    resume("--resume a")
    assert_equal("whole", "a")
    assert code == 1


def test_metrics_wait_for_space(whole, begin, S, monkeypatch, capfd):
    """Rows of metrics that find the disk full are written later, in order, with one warning."""
    whole()
    made, steps = S.MetricsFile.__init__, []

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            steps.append(len(content))
            if 5 < len(steps) < 12:
                if len(steps) == 6:
                    return self.file.write(content[:7])
                full()
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

    def opened(self, path):
        made(self, path)
        self.file = Full(self.file)

    monkeypatch.setattr(S.MetricsFile, "__init__", opened)
    monkeypatch.setattr(S.fcntl, "flock", lambda *inputs: None)
    begin(f"{SAME} --run-dir a")
    said = warnings(capfd.readouterr().out)
    assert len([line for line in said if "metrics.jsonl" in line]) == 1
    assert_equal("whole", "a")


@pytest.fixture
def small_disk(S, tmp_path):
    """Return a folder on a disk that is hardly large enough for a run."""
    (tmp_path / "disk").mkdir()
    size = "size=5M" if framed(S) else "size=500k"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(tmp_path / "disk")]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@slow
def test_full_disk(nursery, small_disk):
    """A truly full one: the run goes on and has failed; with space again it ends as it should."""
    flags = f"{SAME} --hidden-size 48 --buffer-size 2000 --total-timesteps 600 --log-every 50"
    whole = nursery.whole(flags)
    filler = small_disk / "filler"
    child = nursery.start(f"{flags} --run-dir disk/b")
    assert reach(child, small_disk / "b" / "metrics.jsonl", 150)
    with open(filler, "wb", buffering=0) as file:
        while not warnings(nursery.said()):  # a checkpoint that is half written frees some space
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                time.sleep(0.005)
    assert nursery.end() == 1
    said = nursery.said()
    assert 2 <= len(warnings(said)) <= 18 and "Traceback" not in said
    if (small_disk / "b" / "summary.json").exists():
        assert summary(small_disk / "b")["status"] == "failed"
    subprocess.run(["mount", "-o", "remount,size=20M", str(small_disk)], check=True)
    assert nursery.run("--resume disk/b") == 0
    found = re.findall(r"going on at step (\d+)", nursery.said())
    assert found and 0 < int(found[0]) < 600
    shutil.copytree(small_disk / "b", nursery.folder / "b")
    assert_equal(whole, nursery.folder / "b")


# --- one process a folder -------------------------------------------------------------------------
def states(pid):
    """Return the states of a process's threads where /proc tells them: T is stopped."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return {thread.read_text().rpartition(")")[2].split()[0] for thread in threads}


def test_folder_in_use(nursery, refuse, begin):
    """Another process is refused, whether it wants to go on, to begin or either."""
    flags = "--env-id tests.toy_envs:Stuck-v0 --compile off --checkpoint-every 40 --run-dir run"
    child = nursery.start(flags)
    try:
        nursery.wait("stuck")
        # or TensorBoard's thread writes while files are compared
        os.kill(child, signal.SIGSTOP)
        while psutil.Process(child).status() != psutil.STATUS_STOPPED or states(child) - {"T"}:
            time.sleep(0.01)
        assert "is in use by a living process" in refuse("--resume run")
        assert "is in use by a living process" in refuse(f"{flags} --resume auto", begin)
        assert "is there: " in refuse(flags, begin)
    finally:
        os.kill(child, signal.SIGKILL)
        nursery.end()


@pytest.mark.quick
def test_inherited_lock(whole, interrupt, refuse, resume):
    """A living child keeps the folder of a dead parent."""
    whole()
    interrupt(f"{SAME} --run-dir a", 130)
    code = "import fcntl, os, sys, time; file = open('a/metrics.jsonl', 'a');"
    code += "fcntl.flock(file, fcntl.LOCK_EX); child = os.fork();"
    code += "print(child, flush=True) if child else None; time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    for victim in (parent.pid, child):
        assert re.fullmatch("error: --run-dir a is in use .*\n", refuse("--resume a"))
        os.kill(victim, signal.SIGKILL)
        parent.wait()
    with open("a/metrics.jsonl") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits until the child is gone
    resume("--resume a")
    assert_equal("whole", "a")


# --- signals --------------------------------------------------------------------------------------
@pytest.fixture
def signalled(untried, begin, S, monkeypatch):
    """Train until a signal comes in the count-th call of something."""

    def signalled(flags, holder, name, count, number=signal.SIGTERM):
        call, calls = getattr(holder, name), []

        def signalling(*inputs, **options):
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return call(*inputs, **options)

        with monkeypatch.context() as patch:
            patch.setattr(holder, name, signalling)
            with pytest.raises(SystemExit) as end:
                begin(flags)
        assert end.value.code == 130
        run = flags.split("--run-dir ")[1].split()[0]
        assert summary(run)["status"] == "interrupted"
        assert summary(run)["reason"].startswith(number.name)
        assert state_of(run)["run"]["global_step"] == summary(run)["global_step"]

    return signalled


@every_script
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        pytest.param(signal.SIGTERM, marks=slow),
        pytest.param(signal.SIGINT, marks=slow),
    ],
)
def test_signal_in_the_first_step(whole, signalled, resume, S, number):
    flags = f"{SAME} --eval-every 0"
    whole(flags)
    signalled(f"{flags} --run-dir a", S.Episodes, "step", 1, number)
    if "rollout_steps" not in S.Args.__annotations__:
        assert summary("a")["global_step"] == 1
    resume("--resume a")
    assert_equal("whole", "a")


@every_script
def test_signal_in_the_last_step(whole, signalled, resume, S):
    flags = f"{SAME} --eval-every 0"
    whole(flags)
    steps = summary("whole")["global_step"]
    signalled(f"{flags} --run-dir a", S.Episodes, "step", steps)
    assert summary("a")["global_step"] == steps
    resume("--resume a")
    assert_equal("whole", "a")


@every_script
@pytest.mark.quick
@pytest.mark.parametrize(
    "number", [1, 2, pytest.param(3, marks=slow)], ids=["first", "middle", "last"]
)
def test_signal_in_an_evaluation(whole, begin, resume, S, monkeypatch, number):
    """It is cut short, and begins again when the run goes on."""
    whole()
    evaluate, acted = S.evaluate, []

    def signalling(agent, envs, *inputs, **options):
        acts = []
        acted.append(acts)

        def act(obs, **options):
            acts.append(1)
            if (len(acted), len(acts)) == (number, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            return agent.act(obs, **options)

        return evaluate(SimpleNamespace(act=act), envs, *inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(S, "evaluate", signalling)
        with pytest.raises(SystemExit) as end:
            begin(f"{SAME} --run-dir a")
    assert end.value.code == 130
    assert len(acted) == number and len(acted[-1]) == 2
    scores = [row for row in read("a") if "eval/return_mean" in row]
    assert len(scores) == number - 1
    assert state_of("a")["run"]["global_step"] == summary("a")["global_step"]
    resume("--resume a")
    assert_equal("whole", "a")


def test_signal_while_it_compiles(begin, resume, S, monkeypatch):
    """The run ends at once, and a run that goes on compiles anew."""
    compiling, whole = [], []

    def slow_compile(update, **options):
        compiling.append(update)
        if whole and len(compiling) == len(whole) + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(99)
        return update

    monkeypatch.setattr(S.torch, "compile", slow_compile)
    flags = f"{HIDDEN} --compile on"
    begin(f"{flags} --run-dir whole")
    whole.extend(compiling)
    began = time.perf_counter()
    with pytest.raises(SystemExit) as end:
        begin(f"{flags} --run-dir a")
    assert end.value.code == 130 and time.perf_counter() - began < 60
    assert summary("a")["status"] == "interrupted" and summary("a")["global_step"] == 0
    resume("--resume a")
    assert len(compiling) == 2 * len(whole) + 1
    assert_equal("whole", "a")


@pytest.mark.parametrize("step", [0, pytest.param(130, marks=slow)])
def test_signal_while_it_starts(nursery, step):
    """The run ends without a traceback, and nothing is lost."""
    whole = nursery.whole(SAME)
    code = "S.git_state = lambda: os.kill(os.getpid(), signal.SIGTERM) or (None, b'')"
    if step:
        stop = f"""
def stop(run, call=S.Run.checkpoint_due):
    run.stopping = "SIGTERM" if run.global_step >= {step} else ""
    return call(run)
S.Run.checkpoint_due = stop
"""
        assert nursery.run(f"{SAME} --run-dir b", stop) == 130
    ended = nursery.run(f"{SAME} --run-dir b --resume auto", code)
    assert nursery.run(f"{SAME} --run-dir b --resume auto") == 0
    assert_equal(whole, nursery.folder / "b")
    assert ended in (130, -signal.SIGTERM) and "Traceback" not in nursery.said()


def test_signal_in_the_first_checkpoint(whole, begin, resume, S, monkeypatch):
    """It comes when state.pt is written, and the rows that it names must stay."""
    whole()
    write = S.write_tensors

    def signalling(path, content):
        write(path, content)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(S, "write_tensors", signalling)
        with pytest.raises(SystemExit) as end:
            begin(f"{SAME} --run-dir a")
    assert end.value.code == 130 and summary("a")["global_step"] == 0
    resume("--resume a")
    assert_equal("whole", "a")


@pytest.mark.parametrize("name", ["write_model", pytest.param("write_summary", marks=slow)])
def test_signal_while_the_end_is_written(whole, begin, S, monkeypatch, name):
    whole()
    call = getattr(S.Run, name)

    def disturbed(run, *inputs):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        call(run, *inputs)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(S.Run, name, disturbed)
    begin(f"{SAME} --run-dir a")
    assert_equal("whole", "a")


def test_signal_while_an_interrupted_run_ends(interrupt, S, monkeypatch):
    write_summary = S.Run.write_summary

    def disturbed(run, *inputs):
        os.kill(os.getpid(), signal.SIGTERM)
        write_summary(run, *inputs)

    monkeypatch.setattr(S.Run, "write_summary", disturbed)
    interrupt(f"{SAME} --notes again --run-dir a", 130)
    assert summary("a")["status"] == "interrupted"


def test_signals_are_as_before_when_a_run_has_ended(begin, refuse):
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    begin(f"{SAME} --run-dir a")
    assert [signal.getsignal(number) for number in numbers] == before


# --- what goes on, and with which settings --------------------------------------------------------
@every_script
@pytest.mark.parametrize("there", [False, pytest.param(True, marks=slow)], ids=["missing", "empty"])
def test_auto(whole, interrupt, begin, resume, there, capfd):
    """It begins, goes on, and knows when it has finished."""
    whole()
    if there:
        Path("a").mkdir()
    interrupt(f"{SAME} --run-dir a --resume auto", 130)
    begin(f"{SAME} --run-dir a --resume auto")
    assert_equal("whole", "a")
    files = contents("a")
    for call, flags in (begin, f"{SAME} --run-dir a --resume auto"), (resume, "--resume a"):
        with pytest.raises(SystemExit) as stop:
            call(flags)
        assert not stop.value.code and "a is finished" in capfd.readouterr().out
    assert contents("a") == files


def test_a_run_that_finishes_before_its_folder_is_free(
    S, whole, interrupt, resume, capfd, monkeypatch
):
    """It is left as it is, though it was not finished yet when its settings were read."""
    whole()
    interrupt(f"{SAME} --run-dir a", 130)
    adopt_settings = S.adopt_settings
    finished = {}

    def adopt_slowly(args):
        args = adopt_settings(args)
        shutil.rmtree("a")
        shutil.copytree("whole", "a")
        finished.update(contents("a"))
        return args

    monkeypatch.setattr(S, "adopt_settings", adopt_slowly)
    with pytest.raises(SystemExit) as stop:
        resume("--resume a")
    assert not stop.value.code and "a is finished" in capfd.readouterr().out
    assert contents("a") == finished


@pytest.mark.quick
def test_auto_needs_a_folder(refuse, begin):
    assert "--run-dir" in refuse(f"{SAME} --resume auto", begin)
    assert "name a run folder" in refuse("--resume missing")
    Path("empty").mkdir()
    assert "name a run folder" in refuse("--resume empty")


@pytest.mark.quick
@pytest.mark.parametrize("name", ["script.py", "thesis.tex", "checkpoint/state.pt", "config"])
def test_auto_takes_no_folder_of_others(refuse, begin, name):
    path = Path("thesis", name)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    Path("thesis/figure.svg").write_text("mine too")
    said = refuse(f"{SAME} --run-dir thesis --resume auto", begin)
    assert said.startswith("error: --run-dir thesis is there: ")
    assert refuse(f"{SAME} --run-dir thesis", begin).startswith("error: --run-dir thesis is there")


def test_a_folder_without_settings_is_begun(whole, begin):
    """The run died before its config.toml was written, or before it took a step."""
    whole()
    Path("a").mkdir()
    for name, text in ("metrics.jsonl", ""), ("script.py", "cut sho"), ("config.part", "x"):
        Path("a", name).write_text(text)
    begin(f"{SAME} --run-dir a --resume auto")
    assert_equal("whole", "a")


def test_killed_before_the_first_checkpoint(whole, resume):
    whole()
    shutil.copytree("whole", "a")
    for name in ("model.pt", "summary.json"):
        Path("a", name).unlink()
    Path("a/metrics.jsonl").write_text("")
    shutil.rmtree("a/tb")
    resume("--resume a")
    assert_equal("whole", "a")


def changed(field, value):
    """Return another value of a setting."""
    if field.name == "env_id":
        return value.replace("Hidden", "Ragged")
    if field.name == "frame_size":
        return value // 2
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 1
    if isinstance(value, float):
        return value / 2 or 0.25
    return 0.5


@pytest.mark.quick
@pytest.mark.parametrize("auto", [False, True], ids=["resume", "auto"])
@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
def test_changed_settings_are_refused(interrupt, whole, refuse, S, finished, auto):
    """All but those on which no bit depends; the sentence names the setting."""
    if finished:
        whole()
        shutil.move("whole", "a")
    else:
        interrupt(f"{SAME} --run-dir a", 130)
    saved = S.read_config(S.Args, "a")
    asked = replace(saved, run_dir="a" if auto else None, resume="auto" if auto else "a")
    free = {"run_dir", "resume", "config", "evaluate", "device", "total_timesteps", "notes"}
    free |= {"compile"}  # has a test of its own
    free |= {"desired_kl"}  # beside --anneal it is refused in any run
    free |= {"capture_video", "checkpoint_every", "track", "wandb_project_name", "wandb_entity"}
    tried = 0
    for field in fields(saved):
        if field.name in free or (field.name == "eval_every" and not saved.eval_every):
            continue
        other = changed(field, getattr(saved, field.name))
        call = lambda flags: S.main(replace(asked, **flags))  # noqa: E731
        said = refuse({field.name: other}, call)
        assert said.startswith(f"error: --{field.name.replace('_', '-')} is "), said
        assert " in a and must stay so" in said
        tried += 1
    assert tried > 10


@pytest.mark.quick
@pytest.mark.parametrize("flag", ["--seed 2", "--gamma 0.9", "--num-envs 2", "--log-every 50"])
def test_changed_flags_are_refused(interrupt, refuse, begin, flag):
    interrupt(f"{SAME} --run-dir a", 130)
    for said in (
        refuse(f"--resume a {flag}"),
        refuse(f"{SAME} {flag} --run-dir a --resume auto", begin),
    ):
        assert said.startswith(f"error: {flag.split()[0]} is ") and " in a and must" in said
    assert "--run-dir" in refuse("--resume a --run-dir b")


def test_flags_that_change_no_bit(whole, interrupt, begin, resume):
    """They may be given anew, and count; those of the folder stay where they are not."""
    whole()
    interrupt(f"{SAME} --run-dir a", 130)
    begin(f"{SAME.replace('every 40', 'every 70')} --notes new --run-dir a --resume auto")
    config = Path("a/config.toml").read_text()
    assert 'notes = "new"' in config and "checkpoint_every = 70\n" in config
    assert_equal("whole", "a")
    interrupt(f"{SAME} --run-dir b", 130)
    resume("--resume b --capture-video --notes other")
    assert "checkpoint_every = 40\n" in Path("b/config.toml").read_text()
    assert_equal("whole", "b")


def test_settings_of_the_folder_stay(begin, interrupt, resume, S):
    """Those that differ from the defaults, too."""
    flags = f"{SAME} --gamma 0.5 --hidden-size 24 --num-envs 2"
    begin(f"{flags} --run-dir whole")
    interrupt(f"{flags} --run-dir a", 130)
    before = S.read_config(S.Args, "a")
    resume("--resume a")
    assert S.read_config(S.Args, "a") == before
    assert_equal("whole", "a")


def grows(S):
    """Tell whether a run may be made longer: it may not if something is annealed over it."""
    return "total_timesteps" in S.FREE


@every_script
def test_more_steps(begin, interrupt, resume, refuse, S):
    """--total-timesteps may grow, but not shrink, and not when the run has finished."""
    flags = f"{SAME} --no-anneal"
    if not grows(S):
        interrupt(f"{SAME} --run-dir a", 170)
        for steps in (200, 400):
            said = refuse(f"--resume a --total-timesteps {steps}")
            assert said.startswith("error: --total-timesteps is 300 in a and must stay so")
        return
    begin(f"{flags} --total-timesteps 400 --run-dir whole")
    interrupt(f"{flags} --run-dir a", 170)
    assert "--total-timesteps can only grow" in refuse("--resume a --total-timesteps 200")
    resume("--resume a --total-timesteps 400")
    assert_equal("whole", "a")
    assert "--total-timesteps cannot grow" in refuse("--resume a --total-timesteps 500")


@every_script
def test_more_steps_would_change_what_is_annealed_over_them(S, interrupt, refuse, begin, resume):
    """Whether the run was annealed is settled by its folder; the number of steps may be named."""
    need(S, "Args.anneal")
    interrupt(f"{SAME} --run-dir a", 170)
    for flags in ("--resume a", "--resume a --no-anneal"):
        said = refuse(f"{flags} --total-timesteps 400")
        assert re.match("error: --(total-timesteps cannot grow in a|anneal is True in a)", said)
    said = refuse(f"{SAME} --total-timesteps 400 --run-dir a --resume auto", begin)
    assert said.startswith("error: --total-timesteps cannot grow in a")
    resume("--resume a --total-timesteps 300")
    assert summary("a")["status"] == "finished"


def test_seconds_go_on(interrupt, resume, S):
    """As if the run had lasted long before its checkpoint."""
    interrupt(f"{SAME} --run-dir a", 130)
    state = state_of("a")
    state["seconds"] += 1000
    S.write_tensors(Path("a/checkpoint/state.pt"), state)
    before = len(read("a"))
    resume("--resume a")
    rows = read("a")[before:]
    assert rows and all(row["seconds"] > 1000 for row in rows)
    assert summary("a")["seconds"] > 1000


def test_what_is_left_open_stays_as_it_was(interrupt, S):
    """What the run has settled at its start, though it would be settled in another way now."""
    interrupt(f"{SAME} --threads 3 --run-dir a", 130)
    before = S.read_config(S.Args, "a")
    torch.set_num_threads(1)
    asked = replace(before, threads=None, compile="auto", checkpoint_every=None)
    # what would be settled for these has grown once, and is asked for again
    asked = replace(asked, eval_every=None, total_timesteps=before.total_timesteps)
    S.main(replace(asked, run_dir="a", resume="auto"))
    assert S.read_config(S.Args, "a") == before


def test_names_of_folders_are_quoted(interrupt, resume, capfd):
    """What is printed can be pasted into a shell, and a folder is the same with a slash behind."""
    interrupt(f"{SAME} --run-dir a'b", 130)
    line = re.search("to go on: (.*)", capfd.readouterr().out)[1]
    assert shlex.split(line)[-2:] == ["--resume", "a'b"]
    resume("--resume a'b/ --run-dir a'b")
    assert summary("a'b")["status"] == "finished"


@slow
def test_resumed_by_its_own_copy(whole, interrupt):
    whole()
    interrupt(f"{SAME} --run-dir a", 130)
    command = [sys.executable, "a/script.py", "--resume", "a"]
    subprocess.run(command, env=ENVIRON | {"PYTHONPATH": str(ROOT)}, check=True)
    assert_equal("whole", "a", ends=False)


@every_script
def test_resumed_many_times(whole, interrupt, begin, S, monkeypatch):
    """While it runs there is no summary of an earlier end."""
    whole()
    summaries, log = [], S.Run.log

    def spy(run, *inputs):
        summaries.append((run.path / "summary.json").exists())
        log(run, *inputs)

    monkeypatch.setattr(S.Run, "log", spy)
    for step in (1, 99, 130, 150, 151, 220):
        interrupt(f"{SAME} --run-dir a --resume auto", step)
        assert Path("a/summary.json").exists()
    begin(f"{SAME} --run-dir a --resume auto")
    assert summaries and not any(summaries)
    assert_equal("whole", "a")


# --- logs, files and environments -----------------------------------------------------------------
def board_of(folder):
    """Return the steps of all points that TensorBoard shows, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged(run):
    """Return the steps of all metrics, by name."""
    steps = {}
    for row in read(run):
        for name in row.keys() - {"global_step", "seconds"}:
            steps.setdefault(name, []).append(row["global_step"])
    return steps


def test_tensorboard_holds_every_point_once(interrupt, resume):
    """What was logged after the checkpoint by a run that was killed is forgotten."""
    interrupt(f"{SAME} --run-dir a", 200)
    shutil.copytree("a", "killed")
    resume("--resume a")
    shutil.copytree("a/tb", "killed/tb", dirs_exist_ok=True)  # as if killed at the very end
    time.sleep(1.1)  # names of event files have seconds
    resume("--resume killed")
    assert board_of("killed/tb") == logged("killed")


def test_tensorboard_keeps_what_came_before_the_first_step(nursery):
    """Killed when the first evaluation was saved, and before any later checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert nursery.run(f"{SAME} --run-dir a", DIE) == -signal.SIGKILL
    time.sleep(1.1)  # names of event files have seconds
    assert nursery.run("--resume a") == 0
    board = nursery.folder / "a" / "tb"
    assert board_of(board) == logged(nursery.folder / "a")
    assert "hyperparameters/text_summary" in EventAccumulator(str(board)).Reload().Tags()["tensors"]


STOP = """
def stopped(*inputs, call=S.evaluate, calls=[], **options):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return call(*inputs, **options)
S.evaluate = stopped
"""
DIE = """
def dying(run, *inputs):
    run.board.flush()
    os.kill(os.getpid(), signal.SIGKILL)
S.Run.log_episodes = dying
"""


@pytest.mark.quick
def test_goes_on_in_the_same_environment_only(interrupt, refuse, S, monkeypatch):
    """Other bounds of actions, say, change what an action means; no tensor's shape tells."""
    interrupt(f"{SAME} --run-dir a", 200)
    monkeypatch.setattr(S, "same_sizes", lambda one, other: False)
    assert "has other observations or actions by now" in refuse("--resume a")


@slow
def test_tensorboard_of_an_evaluation_that_began_again(nursery):
    """Cut short at first; killed after it was repeated, before the next checkpoint is due."""
    assert nursery.run(f"{SAME} --run-dir a", STOP) == 130
    time.sleep(1.1)  # names of event files have seconds
    assert nursery.run("--resume a", DIE) == -signal.SIGKILL
    time.sleep(1.1)
    assert nursery.run("--resume a") == 0
    assert board_of(nursery.folder / "a" / "tb") == logged(nursery.folder / "a")


class FakeWandb:
    """Remembers with which options a run was begun."""

    def __init__(self):
        self.begun = []
        self.Settings = self.Video = lambda *inputs, **options: None
        self.teardown = lambda: None

    def login(self, **options):
        return False

    def init(self, **options):
        self.begun.append(options)
        nothing = lambda *inputs, **options: None  # noqa: E731
        return SimpleNamespace(define_metric=nothing, log_code=nothing, log=nothing, finish=nothing)


def test_wandb_is_given_the_same_id(interrupt, resume, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    interrupt(f"{SAME} --track --run-dir a", 130)
    interrupted = state_of("a")["run"]["id"]
    fake.begun.clear()
    resume("--resume a")
    (options,) = fake.begun
    assert options["id"] == interrupted and options["resume"] == "allow"


@slow
def test_wandb_goes_on(interrupt, resume, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupt(f"{SAME} --track --notes real --run-dir a", 130)
    run_id = state_of("a")["run"]["id"]
    time.sleep(1.1)  # names of W&B's folders have seconds
    resume("--resume a")
    found = [path.name.split("-")[-1] for path in Path("wandb").glob("offline-run-*")]
    assert found == [run_id] * 2


def test_files_are_free_of_pickle(interrupt, whole):
    interrupt(f"{SAME} --run-dir a", 130)
    whole()
    for file in ("a/checkpoint/state.pt", "whole/model.pt"):
        torch.load(file, weights_only=True)
    assert {*torch.load("whole/model.pt", weights_only=True)} == {"args", "sizes", "agent"}
    assert not Path("a/model.pt").exists()


@pytest.mark.quick
def test_only_new_rows_are_written(begin, S, monkeypatch):
    need(S, "Args.buffer_size")
    written = []

    def counting(path, *mode, **options):
        file = open(path, *mode, **options)  # noqa: SIM115
        if Path(path).name.startswith("rows-"):
            written.append(0)
            write = file.write

            def count(content):
                written[-1] += memoryview(content).nbytes
                return write(content)

            file.write = count
        return file

    rows, save = [], S.BufferFile.save

    def spy(file):
        rows.append((file.buffer.added, file.with_checksums(0, 1).shape[1]))
        return save(file)

    monkeypatch.setattr(S, "open", counting, raising=False)
    monkeypatch.setattr(S.BufferFile, "save", spy)
    begin(f"{SAME} --run-dir a")
    (_, width), steps = rows[0], [added for added, _ in rows]
    assert len(written) == len(steps) > 5
    assert written == [width * count for count in np.diff(steps, prepend=0)]


@pytest.mark.quick
def test_checkpoints_are_on_the_disk(begin, S, monkeypatch):
    """All that a state names is synced before it takes its name, and so is the model."""
    synced, sync, take, taken = {}, os.fsync, os.replace, []

    def spy(number):
        sync(number)
        path = os.readlink(f"/proc/self/fd/{number}")
        synced[os.fstat(number).st_ino] = Path(path).read_bytes()

    def replaced(old, new):
        files = [Path(old)]
        if Path(new).name in ("state.pt", "model.pt"):
            files += [Path("a/metrics.jsonl"), *Path("a/checkpoint").glob("rows-*.bin")]
            taken.append(Path(new).name)
        if Path(new).name == "model.pt":
            files = files[:2]
        elif Path(new).name == "state.pt":
            assert len(files) == (3 if "buffer_size" in S.Args.__annotations__ else 2)
        for file in files:
            assert synced[file.stat().st_ino] == file.read_bytes(), file
        take(old, new)

    monkeypatch.setattr(S.os, "fsync", spy)
    monkeypatch.setattr(S.os, "replace", replaced)
    begin(f"{SAME} --run-dir a")
    assert taken.count("state.pt") > 3 and taken.count("model.pt") == 1
    assert summary("a")["status"] == "finished"


@pytest.mark.parametrize("name", ["Restless", "Rude"])
def test_environment_that_does_not_repeat_itself(begin, interrupt, resume, capfd, name):
    """Each is named in one warning and begins a new episode."""
    flags = f"--env-id tests.toy_envs:{name}-v0 --num-envs 2 --checkpoint-every 40 --compile off"
    interrupt(f"{flags} --run-dir a", 136)
    assert not warnings(capfd.readouterr().out)
    episodes = [env["episode"] for env in state_of("a")["envs"]]
    playing = [len(env["actions"]) > 0 for env in state_of("a")["envs"]]
    resume("--resume a")
    warned = warnings(capfd.readouterr().out)
    assert len(warned) == (2 if name == "Restless" else sum(playing)) > 0
    assert all(re.search(r"environment [01] does not repeat itself", line) for line in warned)
    assert summary("a")["status"] == "finished"
    if name == "Restless":
        lengths = [row.get("charts/episodic_length", 7) for row in read("a")]
        assert {*lengths} == {7}
    assert len({*warned}) == len(warned) and min(episodes) > 0


@every_script
def test_a_lost_episode_has_no_part_in_the_return_of_the_next(
    begin, interrupt, resume, S, monkeypatch
):
    """PPO scales rewards by returns of episodes, and --resume may have to begin a new one."""
    need(S, "Agent.update_return_moments")
    flags = "--env-id tests.toy_envs:Ragged-v0 --num-envs 2 --rollout-steps 24 --batch-size 12"
    interrupt(f"{flags} --run-dir a", 96)
    saved = state_of("a")["agent"]["running_return"].tolist()
    assert all(saved)
    found = []
    update, repeat = S.Agent.update_return_moments, S.Episodes.repeat

    def fail(env, state):
        if env.index == 1:
            state = state | {"total_reward": math.inf}
        return repeat(env, state)

    def spy(agent, rollout):
        found.append(agent.running_return.tolist())
        update(agent, rollout)

    monkeypatch.setattr(S.Agent, "update_return_moments", spy)
    monkeypatch.setattr(S.Episodes, "repeat", fail)
    resume("--resume a")
    assert found[0] == [saved[0], 0]


@pytest.mark.parametrize(
    "name", ["Mangler", pytest.param("Ragged", marks=slow), pytest.param("Limited", marks=slow)]
)
def test_environments_repeat_themselves(begin, interrupt, resume, capfd, name):
    """One that changes its actions, one with episodes of all lengths, one with a time limit."""
    flags = f"--env-id tests.toy_envs:{name}-v0 --num-envs 3 --checkpoint-every 40 --compile off"
    begin(f"{flags} --run-dir whole")
    for step in (130, 137):
        interrupt(f"{flags} --run-dir a --resume auto", step)
    resume("--resume a")
    assert not warnings(capfd.readouterr().out)
    assert_equal("whole", "a")


@pytest.mark.quick
def test_an_episode_that_differs_is_noticed(S):
    """By its reward alone, or by its observation alone."""
    need(S, "Episodes.repeat")
    name = "Hidden-shown-v0" if framed(S) else "Hidden-v0"
    envs, *_ = environments(S, S.Args(env_id=f"tests.toy_envs:{name}"), 1)
    envs.reset(options={"stream": (0, 1)})
    for _ in range(3):
        envs.step(np.zeros_like(envs.action_space.sample()))
    (state,) = envs.call("state")
    (env,) = envs.envs
    episodes = []
    for change in ({}, {"total_reward": state["total_reward"] + 1e-9}, {"obs": state["obs"] + 1}):
        envs.reset(options={"stream": (0, 1), "states": [{**state, **change}]})
        episodes.append(env.get_wrapper_attr("episode"))
        (after,) = envs.call("state")
        assert alike(after, state) == (not change)
    assert episodes == [1, 2, 2]

    def refuse_to_step(action):
        raise RuntimeError("the episode is over")

    step = env.env.step
    env.env.step = refuse_to_step
    envs.reset(options={"stream": (0, 1), "states": [state]})
    env.env.step = step
    assert env.get_wrapper_attr("episode") == 2


def test_pythons_generator(begin, interrupt, resume, S, monkeypatch):
    """It is put back as the others, though we do not draw from it."""
    log_episodes = S.Run.log_episodes

    def draw(run, *inputs):
        random.random(), np.random.rand(), torch.rand(())
        log_episodes(run, *inputs)

    monkeypatch.setattr(S.Run, "log_episodes", draw)
    begin(f"{SAME} --run-dir whole")
    for step in (130, 150):
        interrupt(f"{SAME} --run-dir a --resume auto", step)
    resume("--resume a")
    assert_equal("whole", "a")


@every_script
def test_evaluation_draws_nothing(begin, whole, S, monkeypatch):
    """An evaluation that draws random numbers changes none of those of training."""
    flags = f"{SAME} --eval-e 0"  # or its own actions would be others
    whole(flags)
    act = S.Agent.act

    def draw(agent, obs, **options):
        random.random(), np.random.rand(), torch.rand(())
        return act(agent, obs, **options)

    monkeypatch.setattr(S.Agent, "act", draw)
    begin(f"{flags} --run-dir a")
    assert_equal("whole", "a")


def test_not_finite_leaves_the_last_checkpoint(begin, S, capfd):
    with pytest.raises(SystemExit) as stop:
        begin("--env-id tests.toy_envs:NanReward-v0 --checkpoint-every 40 --run-dir run")
    assert stop.value.code == 1 and summary("run")["status"] == "failed"
    assert state_of("run")["run"]["global_step"] <= 149
    S.Agent.load("run")


@pytest.mark.quick
def test_not_finite_is_noticed_by_a_checkpoint(begin, S, monkeypatch):
    checkpoint, steps = S.Run.checkpoint, []

    def poison(run):
        steps.append(run.global_step)
        if len(steps) == 4:
            with torch.no_grad():
                next(run.agent.parameters()).fill_(torch.nan)
        checkpoint(run)

    monkeypatch.setattr(S.Run, "checkpoint", poison)
    with pytest.raises(SystemExit) as stop:
        begin(f"{SAME} --run-dir run")
    assert stop.value.code == 1
    assert "is not finite" in summary("run")["reason"]
    assert state_of("run")["run"]["global_step"] == steps[2] < steps[3]
    assert all(value.isfinite().all() for value in state_of("run")["agent"].values())


@pytest.mark.parametrize("auto", [False, True], ids=["resume", "auto"])
def test_compilation_that_failed_is_not_tried_again(
    interrupt, begin, resume, S, monkeypatch, capfd, auto
):
    flags = f"{HIDDEN} --compile on --run-dir a"
    with monkeypatch.context() as patch:
        patch.setattr(S.torch, "compile", lambda update, **options: lambda *inputs: 1 / 0)
        interrupt(flags, 130)
    assert "is not compiled" in capfd.readouterr().out
    monkeypatch.setattr(S.torch, "compile", lambda update, **options: update)
    begin(f"{flags} --resume auto") if auto else resume("--resume a")
    assert "compiling" not in capfd.readouterr().out
    assert summary("a")["status"] == "finished"


@every_script
def test_a_later_compilation_that_fails_is_tried_again(interrupt, resume, S, monkeypatch, capfd):
    """The method before it is compiled, and must be so after --resume as well."""
    compiled = []

    def compile(update, **options):
        compiled.append(update)
        return update if len(compiled) % 2 else lambda *inputs: 1 / 0

    monkeypatch.setattr(S.torch, "compile", compile)
    interrupt(f"{HIDDEN} --compile on --run-dir a", 130)
    if len(compiled) < 2:
        pytest.skip("it compiles one method")
    assert "is not compiled" in capfd.readouterr().out
    assert tomllib.loads(Path("a/config.toml").read_text())["compile"] == "on"
    resume("--resume a")
    assert len(compiled) == 4


@pytest.mark.quick
def test_compiled_stays_compiled(interrupt, refuse, S, monkeypatch):
    """But "on" is taken for a run that is not compiled: its compilation may have failed."""
    monkeypatch.setattr(S.torch, "compile", lambda update, **options: update)
    interrupt(f"{HIDDEN} --compile on --run-dir a", 130)
    said = refuse("--resume a --compile off")
    assert said.startswith("error: --compile is on in a and must stay so")


@every_script
@pytest.mark.quick
def test_agent_of_an_unfinished_run(interrupt, whole, begin, S):
    """It is that of the last checkpoint, until there is a model of the end."""
    whole()
    interrupt(f"{SAME} --run-dir a", 130)
    assert same(S.Agent.load("a").state_dict(), state_of("a")["agent"])
    assert same(S.Agent.load("whole").state_dict(), agent_of("whole"))
    assert not same(S.Agent.load("a").state_dict(), agent_of("whole"))


def test_agent_of_a_run_that_goes_on_after_its_end(interrupt, resume, begin, S, monkeypatch):
    """A run that died between model.pt and summary.json goes on to more steps."""
    if not grows(S):
        pytest.skip("the script's runs cannot grow")
    with monkeypatch.context() as patch:
        patch.setattr(S.Run, "write_summary", lambda *inputs: full())
        try:
            begin(f"{SAME} --no-anneal --run-dir a")
        except SystemExit:
            pass
    assert Path("a/model.pt").exists()
    due = S.Run.checkpoint_due

    def stop(run):
        run.stopping = "SIGTERM" if run.global_step >= 350 else ""
        return due(run)

    monkeypatch.setattr(S.Run, "checkpoint_due", stop)
    with pytest.raises(SystemExit):
        resume("--resume a --total-timesteps 400")
    assert summary("a")["status"] == "interrupted"
    assert same(S.Agent.load("a").state_dict(), state_of("a")["agent"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_saved_on_cuda_loads_on_the_cpu(interrupt, resume, S):
    interrupt(f"{SAME} --device cuda --notes cuda --run-dir a", 130)
    assert next(S.Agent.load("a").parameters()).device.type == "cpu"
    resume("--resume a --device cpu")
    assert summary("a")["status"] == "finished"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_goes_on_on_cuda(begin, interrupt, resume, S):
    begin(f"{SAME} --device cuda --run-dir whole")
    interrupt(f"{SAME} --device cuda --notes cuda --run-dir a", 130)
    resume("--resume a")
    assert_equal("whole", "a")
