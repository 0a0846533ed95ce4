"""Environments in processes of their own end with the run, and not before."""

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest
import torch

from tests.conftest import ENVIRON, ROOT, alike, finish, need, read, same, steady, summary, weights

FLAGS = (
    "--env-id tests.toy_envs:Hidden-v0 --num-envs 2 --num-workers 2 --compile off --eval-every 0"
)


@pytest.fixture
def started(S, launch, tmp_path):
    """Start a run that would last for hours; return its process and those of its environments."""
    need(S, "Args.num_workers", "Args.resume")

    def started(flags="--total-timesteps 1e7"):
        environ = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = launch(tmp_path, f"{FLAGS} {flags} --run-dir run", **environ)
        for line in process.stdout:
            if re.match("step [1-9]", line):
                break
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        return process, children

    return started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_for_all_processes_saves_the_run(started, S, tmp_path, number):
    """A terminal sends Ctrl-C to all of them, and a cluster's scheduler SIGTERM."""
    process, children = started()
    for one in [*children, process]:
        os.kill(one.pid, number)
    code, _, err = finish(process)
    assert (code, err) == (130, "")
    assert not psutil.wait_procs(children, 10)[1]
    found = summary(tmp_path / "run")
    assert found["status"] == "interrupted" and found["reason"].startswith(number.name)
    state = torch.load(tmp_path / "run" / "checkpoint" / "state.pt", weights_only=True)
    assert state["run"]["global_step"] == found["global_step"]


def test_a_killed_process_ends_the_run_in_one_sentence(started, tmp_path):
    """As where memory is short: the run is not cut, so that it goes on from its checkpoint."""
    process, children = started()
    children[1].kill()
    code, out, err = finish(process)
    assert code == 1 and "Traceback" not in err, err
    assert "the process of environment 1 has ended: exit code -9, as where memory is short" in out
    assert summary(tmp_path / "run")["status"] == "failed"
    assert not psutil.wait_procs(children, 10)[1]


@pytest.fixture
def forked(monkeypatch):
    """Fork workers, on all systems: others would not see what a test patches."""
    monkeypatch.setattr(multiprocessing, "Process", multiprocessing.get_context("fork").Process)


def in_processes(S, env_id, num_envs, workers):
    """Return environments of ours in some processes, if the script has such."""
    need(S, "WorkerEnvs", "make_envs")
    vector = partial(S.WorkerEnvs, workers=workers, threads=1)
    return S.make_envs(f"tests.toy_envs:{env_id}", num_envs, vector=vector)


def test_environments_of_a_killed_process_are_named(S):
    envs = in_processes(S, "Counter-v0", 5, workers=2)
    envs.processes[1].kill()
    with pytest.raises(
        SystemExit, match="the process of environments 2 to 4 has ended: exit code -9"
    ):
        envs.reset(options={"stream": (0, 1)})
    envs.close()


def test_killed_runs_leave_no_process(started):
    process, children = started()
    process.kill()
    assert not psutil.wait_procs(children, 10)[1]
    _, _, err = finish(process)
    assert "Traceback" not in err


@pytest.mark.slow
def test_killed_runs_go_on(started, S, train, tmp_path):
    """To the bits of a run that was not disturbed and has all environments in one process."""
    flags = "--total-timesteps 1500 --log-every 20 --checkpoint-every 20"
    train(f"{FLAGS.replace('--num-workers 2', '')} {flags} --run-dir whole")
    process, children = started(flags)
    process.kill()
    finish(process)
    psutil.wait_procs(children, 10)
    assert 0 < read("run")[-1]["global_step"] < 1500
    S.main(S.parse_args(S.Args, ["--resume", "run"]))
    assert same(weights("run"), weights("whole")) and steady("run") == steady("whole")


def test_a_refused_flag_ends_at_once(S, launch, tmp_path):
    """Though processes that ignore SIGTERM have been started."""
    need(S, "Args.num_workers", "Args.resume")
    (tmp_path / "run").mkdir()
    began = time.perf_counter()
    process = launch(tmp_path, f"{FLAGS} --run-dir run", PYTHONPATH=str(ROOT))
    code, _, err = finish(process)
    assert code == 2 and time.perf_counter() - began < 110
    assert re.fullmatch("error: --run-dir run is there: .*\n", err)


def test_killed_runs_leave_no_process_in_the_middle_of_a_step(S, launch, tmp_path):
    need(S, "Args.num_workers", "Args.resume")
    environ = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = launch(
        tmp_path,
        f"{FLAGS.replace('Hidden', 'Stuck')} --total-timesteps 999 --run-dir run",
        **environ,
    )
    for line in process.stdout:
        if "stuck" in line:
            break
    children = psutil.Process(process.pid).children()
    process.kill()
    assert len(children) == 2 and not psutil.wait_procs(children, 10)[1]
    finish(process)


def in_a_long_step(S):
    """Return two environments in processes, which take a minute for the step that has begun."""
    envs = in_processes(S, "Stuck-v0", 2, workers=2)
    actions = np.zeros(envs.action_space.shape, envs.action_space.dtype)
    envs.reset(options={"stream": (0, 1)})
    for _ in range(150):
        _, _, terminated, truncated, _ = envs.step(actions)
        if (terminated | truncated).any():
            envs.reset(options={"reset_mask": terminated | truncated})
    for pipe, share in zip(envs.pipes, envs.shares, strict=True):
        pipe.send(S.Request("step", (actions[share],)))
    return envs


def test_processes_in_the_middle_of_a_step_end_at_once(S):
    """Where the run ends in an error: they do not heed SIGTERM."""
    envs = in_a_long_step(S)
    began = time.perf_counter()
    envs.close(terminate=True)
    assert time.perf_counter() - began < 10
    assert not any(process.is_alive() for process in envs.processes)


def test_processes_are_not_waited_for_without_end(S, monkeypatch, capfd):
    """Processes get some seconds to close their environments, however long a step takes."""
    envs = in_a_long_step(S)
    envs.processes[0].kill()
    monkeypatch.setattr(S, "CLOSING", 3)
    began = time.perf_counter()
    envs.close()
    assert time.perf_counter() - began < 30
    assert not any(process.is_alive() for process in envs.processes)
    assert "warning: environments that do not close within 3 s are killed" in capfd.readouterr().out


@pytest.mark.parametrize("end", ["", "del envs", "envs.close(terminate=True)"])
def test_a_program_does_not_wait_for_its_processes(S, script, end):
    need(S, "WorkerEnvs", "make_envs")
    code = f"""import sys
from functools import partial
sys.path.insert(0, {str(script.parent)!r})
import importlib
S = importlib.import_module({script.stem!r})
vector = partial(S.WorkerEnvs, workers=2, threads=1)
envs = S.make_envs("tests.toy_envs:Counter-v0", 2, vector=vector)
print([process.pid for process in envs.processes])
{end}"""
    environ = ENVIRON | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and not done.stderr
    assert not [pid for pid in json.loads(done.stdout) if psutil.pid_exists(pid)]


def test_lost_environments_leave_no_process(S):
    """In a notebook, say, where nobody has closed them."""
    envs = in_processes(S, "Counter-v0", 2, workers=2)
    processes = [psutil.Process(process.pid) for process in envs.processes]
    del envs
    assert not psutil.wait_procs(processes, 10)[1]


@pytest.mark.usefixtures("forked")
def test_ctrl_c_while_workers_build_waits_for_nothing(S, monkeypatch):
    need(S, "WorkerEnvs", "make_envs")
    make_env = S.make_env

    def make(env_id, index, *options):
        if index == 1:
            time.sleep(100)  # in a worker
        return make_env(env_id, index, *options)

    def ask(envs, requests):
        for pipe, request in zip(envs.pipes, requests, strict=True):
            pipe.send(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(S, "make_env", make)
    monkeypatch.setattr(S.WorkerEnvs, "ask", ask)
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        in_processes(S, "Counter-v0", 2, workers=2)
    assert time.perf_counter() - began < 20


class Odd(Exception):
    """An error that cannot be copied."""

    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    "kind, words", [(KeyError, "goal"), (Odd, r"Odd\('goal'\)")], ids=["usual", "odd"]
)
def test_errors_come_out_of_their_process(S, monkeypatch, kind, words):
    """They say where they were raised; the other processes go on, and all end with the run."""
    need(S, "WorkerEnvs", "make_envs")

    def step(env, action):
        if env.index == 4:
            raise kind("goal", *[2] * (kind is Odd))
        return fine_step(env, action)

    fine_step = S.Episodes.step
    monkeypatch.setattr(S.Episodes, "step", step)
    envs = in_processes(S, "Counter-v0", 5, workers=3)
    envs.reset(options={"stream": (0, 1)})
    with pytest.raises(RuntimeError if kind is Odd else kind, match=words) as caught:
        envs.step(np.zeros(envs.action_space.shape, envs.action_space.dtype))
    told = "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "in the process of an environment" in told and "test_async.py" in told
    states = envs.call("state")
    assert [len(state["actions"]) for state in states] == [1, 1, 1, 1, 0]  # 3 and 4 share a process
    envs.close()
    assert [process.exitcode for process in envs.processes] == [0, 0, 0]


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_shares_of_any_size_give_the_same(S, workers):
    """Observations, rewards, ends and infos, step by step, as in this process."""
    need(S, "WorkerEnvs", "make_envs")
    vector = partial(S.WorkerEnvs, workers=workers, threads=1)
    kinds = S.gym.vector.SyncVectorEnv, vector
    both = [S.make_envs("tests.toy_envs:Hidden-v0", 5, vector=kind) for kind in kinds]
    rng = np.random.default_rng(1)
    assert alike(*(envs.reset(options={"stream": (0, 1)}) for envs in both))
    ended = set()
    for _ in range(60):
        actions = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
        found, other = (envs.step(actions) for envs in both)
        assert found[4].keys() == other[4].keys() and alike(found, other)
        done = found[2] | found[3]
        ended |= {*np.flatnonzero(done)}
        if done.any():
            assert alike(*(envs.reset(options={"reset_mask": done}) for envs in both))
            assert alike(found, other)  # the reset has changed none of them
    assert len(ended) == 5
    for envs in both:
        envs.close()


@pytest.mark.usefixtures("forked")
def test_environments_are_closed_in_their_processes(S, monkeypatch, tmp_path):
    need(S, "WorkerEnvs", "make_envs")
    monkeypatch.setattr(S.Episodes, "close", lambda env: (tmp_path / str(env.index)).touch())
    envs = in_processes(S, "Counter-v0", 5, workers=2)
    (tmp_path / "0").unlink()  # one was built in this process, to see its spaces
    envs.close()
    assert {path.name for path in tmp_path.iterdir()} == set("01234")


@pytest.fixture
def refused(S, monkeypatch, capfd, forked):
    """Return why environments in three processes are refused, the last of which is spoilt."""
    need(S, "WorkerEnvs", "make_envs")

    def refused(spoil):
        make_env = S.make_env

        def make(env_id, index, *options):
            env = make_env(env_id, index, *options)
            return spoil(env) if index == 2 else env

        monkeypatch.setattr(S, "make_env", make)
        vector = partial(S.WorkerEnvs, workers=3, threads=1)
        with pytest.raises(SystemExit) as stop:
            S.make_envs("tests.toy_envs:Counter-v0", 3, vector=vector)
        assert stop.value.code == 2
        return capfd.readouterr().err

    return refused


def test_copies_that_differ_are_refused(S, refused):
    def spoil(env):
        env.action_space = S.gym.spaces.MultiBinary(3)
        return env

    assert "fails: its copies differ in action_space" in refused(spoil)


def test_the_place_of_an_error_comes_out_of_its_process(refused):
    def spoil(env):
        raise RuntimeError("out of order")

    said = refused(spoil)
    assert re.search(r"fails: out of order \(.*test_async\.py, line \d+\)", said), said
    assert "--num-envs 1 --eval-every 0" in said


@pytest.mark.usefixtures("forked")
def test_a_process_that_dies_while_it_answers_is_named(S, monkeypatch):
    need(S, "WorkerEnvs", "make_envs")
    monkeypatch.setattr(S.Episodes, "huge", lambda env: bytes(2**24), raising=False)
    envs = in_processes(S, "Counter-v0", 2, workers=2)
    envs.pipes[1].send(S.Request("call", ("huge",)))
    assert envs.pipes[1].poll(100)
    envs.processes[1].kill()
    words = "the process of environment 1 has ended"
    with pytest.raises(SystemExit, match=words), envs.dead_workers_reported():
        envs.pipes[1].recv()
    envs.close()


@pytest.mark.usefixtures("forked")
def test_a_request_that_was_interrupted_gives_no_wrong_answers(S, monkeypatch):
    need(S, "WorkerEnvs", "make_envs")
    monkeypatch.setattr(S.Episodes, "slow", lambda env: time.sleep(0.5), raising=False)
    envs = in_processes(S, "Counter-v0", 2, workers=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(S.multiprocessing.connection.Connection, "recv", interrupt)
        envs.call("slow")
    with pytest.raises(RuntimeError, match="close these environments"):
        envs.call("state")
    envs.close()


def interrupt(pipe):
    """As Ctrl-C."""
    raise KeyboardInterrupt


def test_states_go_through_processes(S):
    """Those of many environments, with few open files; they repeat as in this process."""
    need(S, "WorkerEnvs", "make_envs")
    vector = partial(S.WorkerEnvs, workers=2, threads=1)
    one, other = (
        S.make_envs("tests.toy_envs:Hidden-v0", 20, vector=kind)
        for kind in (S.gym.vector.SyncVectorEnv, vector)
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rng = np.random.default_rng(1)
    found = []
    for envs in (one, other):
        envs.reset(options={"stream": (0, 1)})
    for _ in range(9):
        actions = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
        for envs in (one, other):
            _, _, terminated, truncated, _ = envs.step(actions)
            if (terminated | truncated).any():
                envs.reset(options={"reset_mask": terminated | truncated})
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 8, hard))
    try:
        for envs in (one, other):
            states = envs.call("state")
            obs, _ = envs.reset(options={"stream": (0, 1), "states": list(states)})
            found.append((list(states), obs, list(envs.call("state"))))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for envs in (one, other):
        envs.close()
    assert alike(*found) and alike(found[1][0], found[1][2])
    assert any(len(state["actions"]) for state in found[1][0])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_limited_in_all_processes(S, launch, tmp_path, threads):
    need(S, "Args.num_workers", "Args.resume")
    flags = f"{FLAGS.replace('Hidden', 'Threads')} --threads {threads}"
    code, _, err = finish(launch(tmp_path, flags, PYTHONPATH=str(ROOT)))
    assert code == 0, err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("threads-*")]
    assert len(found) == 2
    for process in found:
        pools = process["pools"]
        assert pools[0] == threads == max(pools) and process["tiny"] == 0
