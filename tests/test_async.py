"""Environments in processes of their own end with the run, and not before."""

import json
import os
import re
import signal
import time

import psutil
import pytest
import torch

from tests.conftest import ROOT, finish, need, read, same, steady, summary, weights

FLAGS = "--env-id tests.toy_envs:Hidden-v0 --num-envs 2 --async-envs --compile off --eval-every 0"


@pytest.fixture
def started(S, launch, tmp_path):
    """Start a run that would last for hours; return its process and those of its environments."""
    need(S, "Args.async_envs", "Args.resume")

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


def test_killed_runs_leave_no_process(started):
    process, children = started()
    process.kill()
    assert not psutil.wait_procs(children, 10)[1]
    _, _, err = finish(process)
    assert "Traceback" not in err


def test_killed_runs_go_on(started, S, train, tmp_path):
    """To the bits of a run that was not disturbed and has all environments in one process."""
    flags = "--total-timesteps 1500 --log-every 20 --checkpoint-every 20"
    train(f"{FLAGS.replace('--async-envs', '')} {flags} --run-dir whole")
    process, children = started(flags)
    process.kill()
    finish(process)
    psutil.wait_procs(children, 10)
    assert 0 < read("run")[-1]["global_step"] < 1500
    S.main(S.parse_args(S.Args, ["--resume", "run"]))
    assert same(weights("run"), weights("whole")) and steady("run") == steady("whole")


def test_a_refused_flag_ends_at_once(S, launch, tmp_path):
    """Though processes that ignore SIGTERM have been started."""
    need(S, "Args.async_envs", "Args.resume")
    (tmp_path / "run").mkdir()
    began = time.perf_counter()
    process = launch(tmp_path, f"{FLAGS} --run-dir run", PYTHONPATH=str(ROOT))
    code, _, err = finish(process)
    assert code == 2 and time.perf_counter() - began < 60
    assert re.fullmatch("error: --run-dir run is there: .*\n", err)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_limited_in_all_processes(S, launch, tmp_path, threads):
    need(S, "Args.async_envs", "Args.resume")
    flags = f"{FLAGS.replace('Hidden', 'Threads')} --threads {threads}"
    code, _, err = finish(launch(tmp_path, flags, PYTHONPATH=str(ROOT)))
    assert code == 0, err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("threads-*")]
    assert len(found) == 2 and all(pools[0] == threads == max(pools) for pools in found)
