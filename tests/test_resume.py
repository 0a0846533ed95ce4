"""A run that is killed and resumed ends with the same bits; what can not be resumed is said."""

import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import (
    ENVIRON,
    ROOT,
    apply,
    need,
    read,
    same,
    steady,
    summary,
    tiny,
    warnings,
    weights,
)

NURSERY = """import importlib.util, json, os, signal, sys
import tests.toy_envs
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
sys.modules["script"] = S = importlib.util.module_from_spec(spec)
spec.loader.exec_module(S)

def die(holder, name, count, half=False):
    call, calls = getattr(holder, name), []
    def dying(*inputs, **options):
        calls.append(1)
        if len(calls) == count:
            if half:
                call(*inputs)
                inputs[1].truncate(inputs[1].tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*inputs, **options)
    setattr(holder, name, dying)

for line in sys.stdin:
    folder, flags, death = json.loads(line)
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    os.dup2(os.open("out", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    exec(death)
    try:
        S.main(S.parse_args(S.Args, flags))
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code)
"""
RUDE = "tests.toy_envs:Rude-v0"
HIDDEN = "--env-id tests.toy_envs:Hidden-v0 --buffer-size 150 --checkpoint-every 40"
HOPPER = "--env-id Hopper-v4 --eval-episodes 1 --checkpoint-every 40"
RUNS = [
    pytest.param(f"{HOPPER} --compile off", id="MuJoCo"),
    pytest.param(f"{HOPPER} --compile off --num-envs 3", id="MuJoCo-3", marks=pytest.mark.slow),
    pytest.param(f"{HIDDEN} --compile off", id="hidden", marks=pytest.mark.slow),
    pytest.param(f"{HIDDEN} --compile off --num-envs 3", id="hidden-3"),
    pytest.param(f"{HIDDEN} --compile on", id="compiled", marks=pytest.mark.slow),
]


class Nursery:
    """Forks runs from one process that has imported everything."""

    def __init__(self, S, script):
        command = [sys.executable, "-c", NURSERY, str(script)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environ = ENVIRON | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environ, **pipes)
        self.flags = tiny(S)

    def start(self, flags, death=""):
        """Start a run in the folder and return its process number."""
        base = [] if flags.startswith("--resume") else self.flags
        line = json.dumps([str(self.folder), [*base, *flags.split()], death])
        print(line, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self):
        """Wait for the run and return its exit code."""
        return int(self.process.stdout.readline())

    def run(self, *inputs):
        """Start a run, wait for it, and return its exit code."""
        self.start(*inputs)
        return self.end()


@pytest.fixture(scope="module")
def parent(S, script, spaces):
    need(S, "Args.resume", "parse_args")
    apply(spaces, "box")
    nursery = Nursery(S, script)
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(60)


@pytest.fixture
def nursery(parent, tmp_path):
    parent.folder = tmp_path
    return parent


def equal(one, other):
    """Tell whether two runs have the same weights, optimizers, random states and metrics."""
    one, other = Path(one), Path(other)
    states = [torch.load(run / "model.pt", weights_only=True) for run in (one, other)]
    names = "generators", "episodes", "run"
    first, second = ({name: state[name] for name in names} for state in states)
    for found in first, second:
        found["run"].pop("id", 0)
    seconds = [row["seconds"] for row in read(other)]
    return (
        seconds == sorted(seconds)
        and same(weights(one), weights(other))
        and steady(one) == steady(other)
        and str(first) == str(second)
    )


def reach(child, metrics, step):
    """Wait until a run has logged something of that step or a later one."""
    while True:
        os.kill(child, 0)  # raises if it has ended
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if any(int(re.search(r'"global_step": (\d+)', line)[1]) >= step for line in lines[:-1]):
            return
        time.sleep(0.002)


@pytest.mark.parametrize("flags", RUNS)
def test_killed_at_random_instants(nursery, flags):
    """Five times each, once while it starts; checkpoints or none, the bits are the same."""
    flags += " --total-timesteps 500"
    assert nursery.run(f"{flags} --run-dir a") == 0
    assert nursery.run(f"{flags} --checkpoint-every 0 --run-dir b") == 0
    assert equal(nursery.folder / "a", nursery.folder / "b")
    rng, resumed = random.Random(flags), f"{flags} --run-dir c --resume auto"
    for step in [0, *sorted(rng.sample(range(1, 450), 4))]:
        child = nursery.start(resumed)
        if step:
            reach(child, nursery.folder / "c" / "metrics.jsonl", step)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert nursery.end() == -signal.SIGKILL
    assert nursery.run(resumed) == 0
    assert equal(nursery.folder / "a", nursery.folder / "c")
    assert "going on at step" in (nursery.folder / "out").read_text()


DEATHS = {
    "half a file of rows": 'die(S.torch, "save", 3, half=True)',
    "half a model": 'die(S.torch, "save", 4, half=True)',
    "rows before they take their name": 'die(S.os, "replace", 3)',
    "a model before it takes its name": 'die(S.os, "replace", 4)',
    "rows that are no longer needed": 'die(S.Path, "unlink", 9)',
    "the summary": 'die(S.os, "replace", 13)',
}


@pytest.mark.parametrize(
    "death",
    [
        pytest.param(death, id=name, marks=[pytest.mark.slow] if "half" not in name else [])
        for name, death in DEATHS.items()
    ],
)
def test_killed_while_writing(nursery, death):
    flags = HIDDEN.replace("-every 40", "-every 50") + " --compile off"
    assert nursery.run(f"{flags} --run-dir a") == 0
    assert nursery.run(f"{flags} --run-dir b", death) == -signal.SIGKILL
    assert nursery.run(f"{flags} --run-dir b --resume auto") == 0
    assert equal(nursery.folder / "a", nursery.folder / "b")
    assert not [*nursery.folder.rglob("*.part")]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signal_loses_nothing(nursery, number):
    """The run is saved at once, whatever --checkpoint-every says, and goes on from there."""
    flags = f"{HIDDEN} --compile off --total-timesteps 800 --log-every 50 --checkpoint-every 0"
    assert nursery.run(f"{flags} --run-dir a") == 0
    child = nursery.start(f"{flags} --run-dir b")
    reach(child, nursery.folder / "b" / "metrics.jsonl", 200)
    os.kill(child, number)
    began = time.perf_counter()
    assert nursery.end() == 130 and time.perf_counter() - began < 5
    found = summary(nursery.folder / "b")
    assert found["status"] == "interrupted" and 200 <= found["global_step"] < 800
    assert nursery.run("--resume b") == 0  # with the flags of TINY, which are the same
    assert f"going on at step {found['global_step']}\n" in (nursery.folder / "out").read_text()
    assert equal(nursery.folder / "a", nursery.folder / "b")
    assert summary(nursery.folder / "b")["status"] == "finished"


def test_second_signal_ends_at_once(nursery):
    child = nursery.start("--env-id tests.toy_envs:Stuck-v0 --compile off --run-dir run")
    out = nursery.folder / "out"
    while not out.exists() or "stuck" not in out.read_text():
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    began = time.perf_counter()
    assert nursery.end() == -signal.SIGINT and time.perf_counter() - began < 5


# --- in this process ------------------------------------------------------------------------------
SAME = f"{HIDDEN} --compile off"


@pytest.fixture
def resume(train, S):
    """Go on with flags alone, without those of TINY."""
    need(S, "Args.resume", "Run.save")
    return lambda flags: S.main(S.parse_args(S.Args, flags.split()))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Return where the run that most tests begin with is kept, once there is one."""
    return tmp_path_factory.mktemp("usual") / "a"


@pytest.fixture
def interrupt(train, S, monkeypatch, usual):
    """Train until a signal seems to come at a step."""
    need(S, "Args.resume", "Run.save")

    def interrupt(flags, step):
        is_usual = (flags, step) == (f"{SAME} --run-dir a", 130)
        if is_usual and usual.exists():
            shutil.copytree(usual, "a")
            return
        save = S.Run.save

        def stop(run, obs):
            run.stopped = run.stopped or run.global_step >= step
            save(run, obs)

        with monkeypatch.context() as patch:
            patch.setattr(S.Run, "save", stop)
            with pytest.raises(SystemExit) as end:
                train(flags)
        assert end.value.code == 130
        if is_usual:
            shutil.copytree("a", usual)

    return interrupt


@pytest.fixture
def refuse(resume, tmp_path, capfd):
    """Call main with flags that must be refused with nothing changed; return what stderr says."""

    def refuse(flags):
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        capfd.readouterr()
        code = None
        try:
            resume(flags)
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1
        return said

    return refuse


def flip(path, place):
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def spoil(how):
    """Damage the checkpoint of the run in the folder a."""
    model, (piece, *_) = Path("a/model.pt"), sorted(Path("a/checkpoint").iterdir())
    saved = torch.load(model, weights_only=True)
    if how == "truncated":
        model.write_bytes(model.read_bytes()[:-999])
    if how == "empty":
        model.write_bytes(b"")
    if how == "flipped":
        with zipfile.ZipFile(model) as file:
            parts = [part for part in file.infolist() if "/data/" in part.filename]
            largest = max(parts, key=lambda part: part.file_size)
        flip(model, largest.header_offset + 2000)
    if how == "rows flipped":
        flip(piece, piece.stat().st_size // 2)
    if how == "rows truncated":
        piece.write_bytes(piece.read_bytes()[:-99])
    if how == "rows missing":
        piece.unlink()
    if how == "script":
        torch.save({"actor": saved["state"]}, model)
    if how == "shape":
        saved["state"] = {
            name: torch.stack([value, value]) for name, value in saved["state"].items()
        }
        torch.save(saved, model)

    if how == "version":
        Path("a/script.py").write_text("another")
    if how == "metrics":
        Path("a/metrics.jsonl").write_text("")


HOWS = "truncated,empty,flipped,rows flipped,rows truncated,rows missing,script,shape"
HOWS += ",version,metrics"


@pytest.mark.quick
@pytest.mark.parametrize("how", HOWS.split(","))
def test_damaged(interrupt, refuse, how):
    interrupt(f"{SAME} --run-dir a", 130)
    spoil(how)
    assert re.fullmatch(r"error: --resume fails \(.*\); a is left as it is\n", refuse("--resume a"))


@pytest.mark.quick
def test_every_flipped_bit_is_seen_or_harmless(interrupt, S):
    interrupt(f"{SAME} --run-dir a", 130)
    path, rng, seen = Path("a/model.pt"), random.Random(1), 0
    content, before = path.read_bytes(), str(S.read(path))
    for _ in range(300):
        flip(path, rng.randrange(len(content)))
        try:
            assert str(S.read(path)) == before
        except AssertionError as error:
            assert "damaged" in str(error)
            seen += 1
        except Exception:
            seen += 1
        path.write_bytes(content)
    assert seen > 100


CHANGES = "--seed 2,--gamma 0.9,--num-envs 2,--threads 2,--tau 0.5,--buffer-size 99,--utd 2"
CHANGES += ",--batch-size 9,--critic-lr 1,--learning-starts 99,--eval-every 9,--log-every 9"
CHANGES += ",--env-id Hopper-v4"


@pytest.mark.quick
@pytest.mark.parametrize("flags", CHANGES.split(","))
def test_changed_flags_are_refused(interrupt, refuse, flags):
    interrupt(f"{SAME} --run-dir a", 130)
    name, value = flags.split()
    assert re.fullmatch(
        rf"error: {name} is .* in a and must stay so\n", refuse(f"--resume a {flags}")
    )


@pytest.mark.quick
def test_checkpoint_of_another_run(interrupt, refuse):
    interrupt(f"{SAME} --run-dir a", 130)
    interrupt(f"{SAME} --seed 2 --run-dir b", 130)
    shutil.copy("b/model.pt", "a/model.pt")
    shutil.copytree("b/checkpoint", "a/checkpoint", dirs_exist_ok=True)
    assert re.fullmatch("error: --seed is 2 in a .*\n", refuse("--resume a"))


@pytest.mark.quick
def test_more_steps(interrupt, train, resume):
    """The folder's own settings count, and --total-timesteps may be raised."""
    train(f"{SAME} --total-timesteps 400 --tau 0.1 --run-dir a")
    interrupt(f"{SAME} --tau 0.1 --run-dir b", 170)
    resume("--resume b --total-timesteps 400")
    assert equal("a", "b")


@pytest.mark.quick
def test_auto(interrupt, train, refuse, capfd, resume):
    train(f"{SAME} --run-dir a")
    interrupt(f"{SAME} --run-dir b --resume auto", 130)  # begins
    train(f"{SAME} --run-dir b --resume auto")  # goes on
    assert equal("a", "b")
    files = {path: path.read_bytes() for path in Path("b").rglob("*") if path.is_file()}
    for flags in (f"{SAME} --run-dir b --resume auto", "--resume b"):
        with pytest.raises(SystemExit) as stop:
            (train if "auto" in flags else resume)(flags)
        assert not stop.value.code and "b is finished" in capfd.readouterr().out
    assert files == {path: path.read_bytes() for path in Path("b").rglob("*") if path.is_file()}
    assert "--run-dir" in refuse("--resume auto") and "run folder" in refuse("--resume missing")


@pytest.mark.quick
def test_killed_before_the_first_checkpoint(train, resume):
    train(f"{SAME} --run-dir a")
    shutil.copytree("a", "b")
    for name in ("model.pt", "summary.json"):
        Path("b", name).unlink()
    resume("--resume b")
    assert equal("a", "b")
    shutil.rmtree("b")
    Path("b/videos").mkdir(parents=True)  # just made
    Path("b/metrics.jsonl").touch()
    train(f"{SAME} --run-dir b --resume auto")
    assert equal("a", "b")


@pytest.mark.quick
def test_steps_can_only_grow(interrupt, refuse, train, resume):
    interrupt(f"{SAME} --run-dir a", 130)
    assert "--total-timesteps can only grow" in refuse("--resume a --total-timesteps 200")
    train(f"{SAME} --checkpoint-every 0 --run-dir b")
    assert "transitions are gone" in refuse("--resume b --total-timesteps 400")


@pytest.mark.quick
def test_model_is_missing(interrupt, refuse):
    interrupt(f"{SAME} --run-dir a", 130)
    Path("a/model.pt").unlink()
    assert "misses a/model.pt" in refuse("--resume a")


@pytest.mark.quick
def test_rows_of_another_run(interrupt, refuse):
    for name, seed in ("a", 1), ("b", 2):
        interrupt(f"{SAME} --seed {seed} --run-dir {name}", 130)
    shutil.rmtree("a/checkpoint")
    shutil.copytree("b/checkpoint", "a/checkpoint")
    assert re.fullmatch("error: --resume fails .*No such file.*\n", refuse("--resume a"))


@pytest.mark.quick
def test_auto_takes_no_folder_of_others(S, refuse):
    flags = f"{HIDDEN} --total-timesteps 300 --learning-starts 100 --batch-size 32 --compile off"
    Path("thesis/checkpoint").mkdir(parents=True)
    Path("thesis/script.py").write_text("mine")
    said = refuse(f"{flags} --eval-every 0 --run-dir thesis --resume auto")
    assert re.fullmatch("error: --run-dir thesis is there: name a new folder.*\n", said)


@pytest.mark.quick
def test_last_checkpoint_fails(train, resume, S, monkeypatch, capfd):
    """The run has failed, keeps what it has, and ends when there is space again."""
    train(f"{SAME} --run-dir a")
    with monkeypatch.context() as patch:
        checkpoint = S.Run.checkpoint

        def full(run, obs):
            if run.global_step == 300:
                raise OSError(errno.ENOSPC, "No space left on device")
            checkpoint(run, obs)

        patch.setattr(S.Run, "checkpoint", full)
        with pytest.raises(SystemExit) as stop:
            train(f"{SAME} --run-dir b")
    assert summary("b")["status"] == "failed" and stop.value.code == 1
    resume("--resume b")
    assert equal("a", "b") and summary("b")["status"] == "finished"


@pytest.mark.quick
def test_signal_in_the_last_step(interrupt, train, resume):
    train(f"{SAME} --run-dir a")
    interrupt(f"{SAME} --run-dir b", 300)
    assert summary("b")["status"] == "interrupted"
    resume("--resume b")
    assert equal("a", "b") and summary("b")["status"] == "finished"
    assert not Path("b/checkpoint").exists()


@pytest.mark.quick
def test_careless_environments(interrupt, train, resume, capfd):
    """One that changes its actions is replayed all the same; one with random rewards is named."""
    train(f"{SAME} --env-id tests.toy_envs:Mangler-v0 --run-dir a")
    for step in (130, 135):
        flags = f"{SAME} --env-id tests.toy_envs:Mangler-v0 --run-dir b --resume auto"
        interrupt(flags, step)
    resume("--resume b")
    assert equal("a", "b") and not warnings(capfd.readouterr().out)
    interrupt(f"{SAME} --env-id {RUDE} --run-dir c", 130)
    resume("--resume c")
    assert "does not replay" in capfd.readouterr().out


@pytest.mark.quick
def test_folder_can_not_be_written(refuse):
    Path("file").write_text("no folder")
    flags = f"{HIDDEN} --total-timesteps 300 --learning-starts 290"
    assert "--run-dir file/run" in refuse(f"{flags} --run-dir file/run")


@pytest.mark.quick
def test_pythons_generator(interrupt, S):
    interrupt(f"{SAME} --run-dir a", 130)
    states = S.generators()
    drawn = random.random()
    random.seed(0)
    S.generators(states)
    assert random.random() == drawn


@pytest.mark.quick
def test_resumed_twice(interrupt, train, S, monkeypatch):
    """Only new rows are written; while it runs there is no summary of an earlier end."""
    train(f"{SAME} --run-dir a")
    interrupt(f"{SAME} --run-dir b", 130)
    interrupt(f"{SAME} --run-dir b --resume auto", 170)
    pieces = torch.load("b/model.pt", weights_only=True)["pieces"]
    assert pieces == [(0, 40), (40, 80), (80, 120), (120, 130), (130, 160), (160, 170)]
    stopped, log = [], S.Run.log

    def spy(run, *rest):
        stopped.append((run.folder / "summary.json").exists())
        log(run, *rest)

    monkeypatch.setattr(S.Run, "log", spy)
    train(f"{SAME} --run-dir b --resume auto")
    assert equal("a", "b") and stopped and not any(stopped)


@pytest.mark.quick
def test_resumed_by_its_own_copy(interrupt, train):
    train(f"{SAME} --run-dir a")
    interrupt(f"{SAME} --run-dir b", 130)
    command = [sys.executable, "b/script.py", "--resume", "b"]
    subprocess.run(command, env=ENVIRON | {"PYTHONPATH": str(ROOT)}, check=True)
    assert equal("a", "b")


@pytest.mark.quick
def test_environment_that_does_not_replay(interrupt, train, capfd, resume):
    flags = "--env-id tests.toy_envs:Restless-v0 --num-envs 2 --run-dir run"
    interrupt(flags, 130)
    assert not warnings(capfd.readouterr().out)
    resume("--resume run")
    warned = warnings(capfd.readouterr().out)
    assert len(warned) == 2 and all("does not replay" in line for line in warned)
    assert summary("run")["status"] == "finished" and summary("run")["global_step"] == 300
    ends = [row["charts/episodic_length"] for row in read("run") if "charts/episodic_length" in row]
    assert {*ends} == {7}


@pytest.mark.quick
@pytest.mark.parametrize("broken", [5, 6], ids=["rows", "model"])
def test_no_space(train, S, monkeypatch, capfd, broken):
    """The run warns once, keeps the last good checkpoint, and the space."""
    need(S, "Args.resume", "write")
    train(f"{SAME} --run-dir a")
    write, calls, kept = S.torch.save, [], []

    def full(saved, file):
        write(saved, file)
        calls.append(sorted(path.suffix for path in Path("b").rglob("*.p*t")))
        if len(calls) == broken:
            kept.append(torch.load("b/model.pt", weights_only=True)["run"]["global_step"])
            raise OSError(errno.ENOSPC, "No space left on device")

    save, left = S.Run.save, []

    def look(run, obs):
        save(run, obs)
        left.extend(run.folder.rglob("*.part"))

    monkeypatch.setattr(S.torch, "save", full)
    monkeypatch.setattr(S.Run, "save", look)
    capfd.readouterr()
    train(f"{SAME} --run-dir b")
    (warned,) = warnings(capfd.readouterr().out)
    assert "checkpoint" in warned and "No space left" in warned and kept == [80]
    assert calls[broken:] == [[".part", ".pt", ".pt", ".pt"]]  # the agent at the end
    assert same(weights("a"), weights("b")) and steady("a") == steady("b")
    assert not left and not Path("b/checkpoint").exists()


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of half a megabyte."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(tmp_path / "disk")]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.slow
def test_full_disk(nursery, small_disk):
    """A truly full one: the run goes on and has failed; with space again it ends as it should."""
    flags = f"{HOPPER} --compile off --hidden-size 64 --total-timesteps 600 --log-every 50"
    assert nursery.run(f"{flags} --run-dir a") == 0
    assert nursery.run(f"{flags} --run-dir disk/b") == 1
    said = (nursery.folder / "out").read_text()
    assert len(warnings(said)) == 2 and "step 600/600" in said and "Traceback" not in said
    assert summary(small_disk / "b")["status"] == "failed"
    more = ["mount", "-o", "remount,size=9M", str(small_disk)]
    subprocess.run(more, check=True)
    assert nursery.run("--resume disk/b") == 0
    assert equal(nursery.folder / "a", small_disk / "b")
    found = re.findall(r"going on at step (\d+)", (nursery.folder / "out").read_text())
    assert found and 0 < int(found[0]) < 600


@pytest.mark.quick
def test_not_finite_leaves_the_last_checkpoint(train, S):
    need(S, "Args.resume")
    with pytest.raises(SystemExit):
        train("--env-id tests.toy_envs:NanReward-v0 --checkpoint-every 40 --run-dir run")
    assert torch.load("run/model.pt", weights_only=True)["run"]["global_step"] == 120
    assert summary("run")["status"] == "failed"


@pytest.mark.quick
def test_not_finite_is_seen_by_a_checkpoint(train, S, monkeypatch):
    need(S, "Args.resume", "Run.save")
    save = S.Run.save

    def poison(run, obs):
        if run.global_step == 150:
            with torch.no_grad():
                next(run.agent.parameters()).fill_(torch.nan)
        save(run, obs)

    monkeypatch.setattr(S.Run, "save", poison)
    with pytest.raises(SystemExit):
        train(f"{SAME} --checkpoint-every 50 --run-dir run")
    assert "is not finite" in summary("run")["reason"] and summary("run")["global_step"] == 150
    assert all(value.isfinite().all() for value in weights("run").values())


@pytest.mark.quick
def test_compilation_that_failed_is_not_tried_again(interrupt, resume, S, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(S.torch, "compile", lambda update, **options: lambda *inputs: 1 / 0)
        interrupt(f"{HIDDEN} --compile on --run-dir a", 130)
    assert "compilation" in capfd.readouterr().out
    monkeypatch.setattr(S.torch, "compile", lambda update, **options: update)
    resume("--resume a")
    assert "compil" not in capfd.readouterr().out


@pytest.mark.quick
def test_checkpoints_are_on_the_disk(train, S, monkeypatch):
    """Rows, model and metrics are synced, the files of tensors before they take their names."""
    need(S, "Args.resume", "write")
    synced, sync, take = [], os.fsync, os.replace

    def replace(old, new):
        assert Path(new).suffix != ".pt" or os.stat(old).st_ino in synced
        take(old, new)

    monkeypatch.setattr(
        S.os, "fsync", lambda file: (sync(file), synced.append(os.fstat(file).st_ino))
    )
    monkeypatch.setattr(S.os, "replace", replace)
    train(f"{SAME} --checkpoint-every 100 --run-dir a")
    assert len(synced) == 11 and synced.count(os.stat("a/metrics.jsonl").st_ino) == 3


@pytest.mark.quick
def test_lock(interrupt, train, refuse, resume):
    """A living process keeps the folder, even if it only inherited the lock of a dead one."""
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
    assert summary("a")["status"] == "finished"


@pytest.mark.quick
def test_tensorboard_forgets_what_came_later(interrupt, train, S, monkeypatch, resume):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupt(f"{SAME} --run-dir a", 200)  # which has metrics of its own
    shutil.copytree("a", "old")
    resume("--resume a")
    shutil.copytree("a/tb", "old/tb", dirs_exist_ok=True)  # as if killed at the very end
    time.sleep(1.1)  # names of event files have seconds
    resume("--resume old")
    events = EventAccumulator("old/tb", size_guidance={"scalars": 0}).Reload()
    for tag in ("charts/episodic_return", "losses/qf_loss", "eval/return_mean"):
        found = [event.step for event in events.Scalars(tag)]
        assert found == [row["global_step"] for row in read("old") if tag in row]


def test_wandb_goes_on(interrupt, train, monkeypatch, resume):
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupt(f"{SAME} --track --run-dir a", 130)
    time.sleep(1.1)  # names of W&B's folders have seconds
    resume("--resume a")
    names = {path.name.split("-")[-1] for path in Path("wandb").glob("offline-run-*")}
    assert len([*Path("wandb").glob("offline-run-*")]) == 2
    assert names == {torch.load("a/model.pt", weights_only=True)["run"]["id"]}
    sys.modules["wandb"].teardown()  # or the next run in this process logs to this folder


@pytest.mark.quick
def test_files_are_free_of_pickle(interrupt):
    interrupt(f"{SAME} --run-dir a", 250)
    files = [*Path("a").rglob("*.pt")]
    assert len(files) > 3
    for file in files:
        torch.load(file, weights_only=True)
    rows = sum(len(torch.load(file, weights_only=True)) for file in Path("a/checkpoint").iterdir())
    assert 150 <= rows < 190  # what fell out of the buffer is gone from the disk, too


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_saved_on_cuda_loads_on_the_cpu(interrupt, train, S, resume):
    interrupt(f"{SAME} --device cuda --run-dir a", 130)
    assert S.Agent.load("a").log_alpha.device.type == "cpu"
    resume("--resume a --device cpu")
    assert summary("a")["status"] == "finished"
