"""benchmark.sh: sweeps that are stopped, killed, refused, started twice, or run by Slurm."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ENVIRON, ROOT, heed_signals, steady, summary

BENCHMARK = ROOT / "benchmark.sh"
NAMES = [f"InvertedPendulum-v4/{seed}" for seed in range(1, 9)]

# What a script does for a sweep, in less time: settings that differ are refused, as is a folder in
# use, then what is there goes on from its checkpoint. It waits while there is a file called hold.
IDLE = """
import argparse, fcntl, json, os, signal, sys, time
from pathlib import Path


def refuse(sentence):
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def write(path, text):
    part = path.with_name("part")
    part.write_text(text)
    os.replace(part, path)


def read(path, default):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return default


def main(flags):
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--resume", choices=["auto"])
    parser.add_argument("--no-capture-video", action="store_true")
    for name in ("env-id", "seed", "threads", "total-timesteps", "gamma", "config", "notes"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args(flags)
    folder, free = args.run_dir, ["run_dir", "resume", "config", "notes"]
    settings = {name: value for name, value in vars(args).items() if name not in free}
    source = Path(__file__).read_text()
    config, state, end = folder / "config.json", folder / "state.json", folder / "summary.json"

    def look():
        if not config.exists():
            return
        for name, value in read(config, {}).items():
            if value != settings[name]:
                name = name.replace("_", "-")
                refuse(f"--{name} is {value} in {folder} and must stay so: name another --run-dir")
        if (folder / "script.py").read_text() != source:
            refuse(f"--resume {Path(__file__).name} is not the source that began {folder}")
        if read(end, {}).get("status") == "finished":
            print(f"{folder} is finished")
            sys.exit(0)

    look()
    if folder.exists() and not args.resume:
        refuse(f"--run-dir {folder} is there: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "metrics.jsonl", "ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse(f"--run-dir {folder} is in use by a living process: name another")
    look()  # again, since the process that used it may have ended meanwhile
    saved = read(state, {"step": 0, "bytes": 0})
    file.truncate(saved["bytes"])
    end.unlink(missing_ok=True)
    write(folder / "script.py", source)
    write(config, json.dumps(settings))
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    print("on", os.environ.get("CUDA_VISIBLE_DEVICES"), "from step", saved["step"], flush=True)
    status, start, step = "finished", time.time(), saved["step"]
    while step < int(args.total_timesteps or 5) and status == "finished":
        time.sleep(0.05)
        while Path(__file__).with_name("hold").exists() and not stopped:
            time.sleep(0.05)
        row = {"global_step": step + 1, "x": step * int(args.seed), "seconds": time.time() - start}
        file.write(json.dumps(row).encode() + b"\\n")
        step += 1
        if step % 4 == 0 or stopped:
            write(state, json.dumps({"step": step, "bytes": file.tell()}))
        if stopped:
            status = "interrupted"
            time.sleep(0.3)  # in which a second Ctrl-C would end it
    write(end, json.dumps({"status": status, "command": sys.argv}, indent=1))
    print(status)
    sys.exit(130 * (status == "interrupted"))


if __name__ == "__main__":
    main(sys.argv[1:])
"""

# Put in front of the last line of a script: it notes each start, and where FAULTS is set, seeds 2
# and 3 fail once, 5 always, 6 is killed once before it begins, and 4 once after its first rows.
FAULTY = """
def kill_with_rows(folder):
    path = Path(folder, "metrics.jsonl")
    while not path.exists() or path.stat().st_size == 0:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def beset(flags):
    folder = flags[flags.index("--run-dir") + 1]
    notes = Path(__file__).with_name("starts") / folder.replace("/", "_")
    notes.parent.mkdir(exist_ok=True)
    first = not notes.exists()
    with open(notes, "a") as file:
        file.write(f"{os.getpid()} ")
    seed = int(flags[flags.index("--seed") + 1])
    if "FAULTS" not in os.environ:
        return
    print("about to fail", flush=True)
    if seed == 4 and first:
        import threading
        threading.Thread(target=kill_with_rows, args=[folder], daemon=True).start()
    if seed == 6 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 5 or seed in (2, 3) and first:
        raise ValueError(f"seed {seed} fails")


if __name__ == "__main__":
    beset(sys.argv[1:])
"""
REAL = (
    "--total-timesteps 16384 --compile off --eval-every 0 --log-every 512 --checkpoint-every 2048"
)


@pytest.fixture
def sweep(tmp_path):
    """Start benchmark.sh in an empty folder; kill whatever is left of it afterwards."""

    def sweep(flags="", **variables):
        environ = ENVIRON | {"PYTHON": sys.executable, "JOBS": "3", "OUT": "out"} | variables
        bash = os.environ.get("BASH_TO_TEST", "bash")
        command = [bash, str(BENCHMARK), *(flags.split() if isinstance(flags, str) else flags)]
        options = {"cwd": tmp_path, "env": environ, "start_new_session": True}
        options |= {"preexec_fn": heed_signals}
        number = len([*tmp_path.glob("*.stdout")])
        with (
            open(tmp_path / f"{number}.stdout", "w") as out,
            open(tmp_path / f"{number}.stderr", "w") as err,
        ):
            process = subprocess.Popen(command, stdout=out, stderr=err, **options)
        process.files = tmp_path / f"{number}.stdout", tmp_path / f"{number}.stderr"
        return process

    yield sweep
    kill(living(tmp_path))


def living(folder, kind=""):
    """Return the processes that work in a folder, all or those of one program."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended meanwhile
            alive = process.status() != psutil.STATUS_ZOMBIE and process.name().startswith(kind)
            if alive and Path(process.cwd()) == folder:
                found.append(process)
    return found


def kill(processes):
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def end(process, patience=120):
    """Wait for a sweep; return its exit code, stdout and stderr."""
    code = process.wait(patience)
    return code, *(file.read_text() for file in process.files)


def until(condition, patience=120):
    """Wait until a condition holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def table(out):
    """Return the state of each run that the table at the end names, with its last words."""
    rows = out.rpartition("\n\n")[2] if "\n\n" in out else out[1:]
    lines = re.findall(r"^(\S+(?: \(\d+\))?) +(\S+/\S+/\S+?)(?:: (.*))?$", rows, re.M)
    return {name: (state, words) for state, name, words in lines}


def states(out):
    """Return the state of each run in the table at the end."""
    return {name: state for name, (state, _) in table(out).items()}


def statuses(folder):
    """Return name and status of all runs that have a summary."""
    found = folder.glob("*/*/summary.json")
    return {str(path.parent.relative_to(folder)): summary(path.parent)["status"] for path in found}


def rows(run):
    """Return how many rows of metrics a run has, whole or not."""
    with suppress(OSError):
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def last_step(run):
    """Return the step of the last row of metrics, 0 without one."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if rows(run) else [""]
    with suppress(ValueError):  # a row is being written
        return json.loads(lines[-1])["global_step"]
    return 0


def in_the_middle(folder, most=10**9):
    """Return how many processes train runs that have rows of metrics, of so many steps at most.

    Seed 4 does not count: FAULTY kills it after its first rows.
    """
    commands = []
    for process in living(folder, "python"):
        with suppress(psutil.Error):
            commands.append(process.cmdline())
    runs = [
        folder / words[words.index("--run-dir") + 1] for words in commands if "--run-dir" in words
    ]
    runs = [run for run in runs if run.name != "4"]
    return sum(0 < last_step(run) <= most and not (run / "summary.json").exists() for run in runs)


def going(folder):
    """Return the seeds of idle runs that have the lock of their folder, or had it."""
    logs = folder.glob("out/logs/idle__E__*.log")
    return {log.stem.rpartition("__")[2] for log in logs if "from step" in log.read_text()}


def starts(folder):
    """Return how often each run was started, in a process that took part in test_benchmark."""
    return {path.name: len(path.read_text().split()) for path in folder.glob("starts/*")}


def write(folder, name="idle", source=IDLE):
    """Write a script, beset by FAULTY."""
    last = '\nif __name__ == "__main__":\n'
    assert last in source
    (folder / f"{name}.py").write_text(source.replace(last, FAULTY))


@pytest.mark.parametrize("kind", ["idle", pytest.param("real", marks=pytest.mark.slow)])
def test_a_sweep_comes_through_everything(sweep, tmp_path, kind):
    """What was stopped, failed and killed in all ways ends with the same metrics, to the bit."""
    source, flags, patience, steps = IDLE, "--total-timesteps 30", 120, 30
    if kind == "real":
        source, flags, patience, steps = (ROOT / "ppo_continuous.py").read_text(), REAL, 900, 16384
    most = steps // 2  # so that a run does not end before the signal comes
    write(tmp_path, "beset", source)
    setting = {"SCRIPTS": "beset", "ENVS": "InvertedPendulum-v4", "SEEDS": "1 2 7 8 4 3 5 6"}

    def go(**variables):
        return sweep(flags, **setting, **variables)

    code, out, err = end(go(OUT="calm"), patience)
    assert (code, err.count("\n")) == (0, 1) and "8 of 8 finished: " in out, out + err
    calm, rough = tmp_path / "calm" / "beset", tmp_path / "out" / "beset"

    first = go(FAULTS="1")
    middle = lambda: in_the_middle(tmp_path, most)  # noqa: E731
    until(lambda: "finished" in statuses(rough).values() and middle(), patience)
    (tmp_path / "hold").touch()  # idle runs do not end before the signal comes
    first.terminate()
    code, out, err = end(first, patience)
    (tmp_path / "hold").unlink()
    assert code == 143 and not living(tmp_path), out + err
    left = statuses(rough)
    assert {*left.values()} >= {"finished", "interrupted"}, out + err
    done = {name for name in left if left[name] == "finished"}
    assert {n for n, state in states(out).items() if state == "finished"} == {
        f"beset/{name}" for name in done
    }
    assert len(states(out)) == 8
    times = {name: (rough / name / "metrics.jsonl").stat().st_mtime_ns for name in done}

    second = go(FAULTS="1")
    until(middle, patience)
    second.kill()
    second.wait()
    if kind == "real":  # another finds its runs; in less time test_a_killed_sweep_finds_its_runs
        go(FAULTS="1")
        time.sleep(10)
    kill(living(tmp_path))  # the runs, too
    code, out, err = end(go(FAULTS="1"), patience)
    assert code == 1 and "7 of 8 finished: " in out, out + err
    assert table(out)["beset/InvertedPendulum-v4/5"] == ("failed (1)", "ValueError: seed 5 fails")

    code, out, err = end(go(), patience)
    assert code == 0 and "8 of 8 finished: " in out, out + err
    assert statuses(rough) == statuses(calm) == dict.fromkeys(NAMES, "finished")
    for name in NAMES:
        assert steady(rough / name) == steady(calm / name) != []
    assert times == {name: (rough / name / "metrics.jsonl").stat().st_mtime_ns for name in done}
    logs = "".join(path.read_text() for path in tmp_path.glob("out/logs/*.log"))
    went_on = r"going on at step [1-9]" if kind == "real" else r"from step [1-9]"
    assert re.search(went_on, logs) and not living(tmp_path)


def test_retries(sweep, tmp_path):
    """What fails or is refused is tried again, after the others, as often as asked for."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "FAULTS": "1"}
    code, out, err = end(sweep("--total-timesteps 8", SEEDS="5 2 4 6 1", JOBS="2", **setting))
    assert code == 1 and err.count("\n") == 1, out + err
    assert states(out) == {
        "idle/E/5": "failed (1)",
        **dict.fromkeys(["idle/E/2", "idle/E/4", "idle/E/6", "idle/E/1"], "finished"),
    }
    assert "failed (137) idle/E/6\n" in out and "failed (137) idle/E/4\n" in out
    begun = re.findall(r"^begun idle/E/(\d)", out, re.M)
    assert begun[:5] == ["5", "2", "4", "6", "1"] and sorted(begun[5:]) == ["2", "4", "5", "6"]
    code, out, err = end(sweep("--nonsense", SEEDS="1 3", RETRIES="0", OUT="other", **setting))
    assert code == 1 and {*states(out).values()} == {"refused", "failed (1)"}, out + err
    code, out, err = end(sweep("--nonsense", SEEDS="4", RETRIES="2", OUT="more", **setting))
    state, words = table(out)["idle/E/4"]
    assert (code, state) == (1, "refused") and "nonsense" in words, out + err
    counts = {name.split("_")[0] + name[-1]: n for name, n in starts(tmp_path).items()}
    assert counts == {
        **{"out1": 1, "out2": 2, "out4": 2, "out5": 2, "out6": 2},
        **{"other1": 1, "other3": 1, "more4": 3},
    }


def test_what_a_killed_run_is_taken_for(sweep, tmp_path):
    """The sweep knows that its process is gone: tools need not wait to see that it is silent."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "FAULTS": "1", "RETRIES": "0"}
    code, out, err = end(sweep("--total-timesteps 8", SEEDS="1 4", **setting))
    assert code == 1 and states(out) == {"idle/E/1": "finished", "idle/E/4": "failed (137)"}, err
    for seed, is_old in (("1", False), ("4", True)):
        metrics = tmp_path / "out" / "idle" / "E" / seed / "metrics.jsonl"
        assert (time.time() - metrics.stat().st_mtime > 3600) == is_old


def test_as_many_runs_as_cores(sweep, tmp_path):
    """Whatever OpenMP is told, which nproc heeds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores < 2:
        pytest.skip("there is one core")
    write(tmp_path)
    (tmp_path / "hold").touch()
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2", "JOBS": "", "OMP_NUM_THREADS": "1"}
    process = sweep("--total-timesteps 2", **setting)
    until(lambda: process.files[0].read_text().count("begun ") == 2)
    (tmp_path / "hold").unlink()
    assert end(process)[0] == 0


def test_nobody_reads_what_it_prints(tmp_path):
    write(tmp_path)
    environ = ENVIRON | {"PYTHON": sys.executable, "SCRIPTS": "idle", "ENVS": "E", "OUT": "out"}
    command = ["bash", str(BENCHMARK), "--total-timesteps", "4"]
    options = {"cwd": tmp_path, "env": environ | {"SEEDS": "1 2 3", "JOBS": "1"}}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    process.stdout.close()
    process.communicate(timeout=120)
    assert [*statuses(tmp_path / "out" / "idle").values()] == ["finished"] * 3


FRAMED = """import sys
print("╭─ Unrecognized options ───────╮", file=sys.stderr)
print("│ Unrecognized options: --gama │", file=sys.stderr)
print("│ ──────────────────────────── │", file=sys.stderr)
print("│ For full helptext, run --help │", file=sys.stderr)
print("╰──────────────────────────────╯", file=sys.stderr)
sys.exit(2)
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_of_a_frame_the_sentence_is_shown(sweep, tmp_path, locale):
    (tmp_path / "framed.py").write_text(FRAMED)
    setting = {"SCRIPTS": "framed", "ENVS": "E", "SEEDS": "1", "RETRIES": "0"}
    setting |= {"LC_ALL": locale, "PYTHONIOENCODING": "utf-8"}
    code, out, err = end(sweep(**setting))
    assert code == 1 and table(out)["framed/E/1"] == ("refused", "Unrecognized options: --gama")


def test_a_folder_that_cannot_be_written_to(sweep, tmp_path):
    write(tmp_path)
    (tmp_path / "out" / "jobs.tsv").mkdir(parents=True)
    code, out, err = end(sweep(SCRIPTS="idle", ENVS="E"))
    assert (code, err) == (2, "error: OUT=out cannot be written to: name another\n")
    assert not starts(tmp_path)


def test_ctrl_c(sweep, tmp_path):
    """What Ctrl-C stops goes on where it was when the sweep is called again."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2", "JOBS": "1"}
    run = tmp_path / "out" / "idle" / "E" / "1"
    process = sweep("--total-timesteps 12", **setting)
    until(lambda: rows(run) >= 6)
    (tmp_path / "hold").touch()  # it does not end before the signal comes
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.1)
    code, out, err = end(process)
    assert code == 130 and not living(tmp_path), out + err
    assert statuses(tmp_path / "out" / "idle") == {"E/1": "interrupted"}
    assert table(out)["idle/E/1"] == ("interrupted", "interrupted")
    assert states(out)["idle/E/2"] == "unfinished" and "0 of 2 finished" in out
    made = rows(run)
    (tmp_path / "hold").unlink()
    code, out, err = end(sweep("--total-timesteps 12", **setting))
    assert code == 0 and rows(run) == 12, out + err
    log = (tmp_path / "out" / "logs" / "idle__E__1.log").read_text()
    assert made >= 6 and f"from step {made}\n" in log


def test_a_signal_in_the_last_instant_of_a_run(sweep, tmp_path):
    """It ends the process of a run whose summary is written, which is finished all the same."""
    last = "    print(status)\n"
    assert last in IDLE
    write(tmp_path, source=IDLE.replace(last, "    os.kill(os.getpid(), signal.SIGKILL)\n"))
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2", "RETRIES": "0"}
    code, out, err = end(sweep("--total-timesteps 1", **setting))
    assert code == 0 and "failed (137) idle/E/1\n" in out, out + err
    assert states(out) == {"idle/E/1": "finished", "idle/E/2": "finished"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_instant(sweep, tmp_path, number):
    """No run is left behind, and none begins, whenever the signal comes."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2 3 4 5 6", "JOBS": "2"}
    for delay in (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9):
        process = sweep("--total-timesteps 3", OUT=f"after {delay}", **setting)
        time.sleep(delay)
        os.killpg(process.pid, number)
        end(process)
        until(lambda: not living(tmp_path), 5)


def test_two_sweeps_at_once(sweep, tmp_path):
    """No run is trained twice at the same time; what is in use is asked for again."""
    write(tmp_path)
    (tmp_path / "hold").touch()
    setting = {"SCRIPTS": "idle", "ENVS": "E", "JOBS": "2"}
    one = sweep(SEEDS="1 2 3 4", **setting)
    until(lambda: going(tmp_path) == {"1", "2"})
    code, out, err = end(sweep(SEEDS="1 2", **setting))
    assert code == 1 and "0 of 2 finished: " in out, out + err
    assert {*states(out).values()} == {"refused"} and "is in use by a living process" in out
    other = sweep(SEEDS="1 2 5", RETRIES="100", **setting)
    until(lambda: " idle/E/1\n" in other.files[0].read_text())
    (tmp_path / "hold").unlink()
    for process, count in ((one, 4), (other, 3)):
        code, out, err = end(process)
        assert code == 0 and f"{count} of {count} finished: " in out, out + err
    logs = [path.read_text() for path in tmp_path.glob("out/logs/*.log")]
    assert [log.count("from step") for log in logs] == [1] * 5


def test_a_killed_sweep_finds_its_runs(sweep, tmp_path):
    """Runs that outlive their sweep are not started twice, and count once they have ended."""
    write(tmp_path)
    (tmp_path / "hold").touch()
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2 3", "JOBS": "2", "RETRIES": "99"}
    first = sweep(**setting)
    until(lambda: going(tmp_path) == {"1", "2"})
    kill(living(tmp_path, "bash"))
    first.wait()
    second = sweep(**setting)
    until(lambda: "refused idle/E/" in second.files[0].read_text())
    assert len(living(tmp_path, "python")) >= 2
    (tmp_path / "hold").unlink()
    code, out, err = end(second)
    assert code == 0 and {*states(out).values()} == {"finished"}, out + err
    logs = [path.read_text() for path in tmp_path.glob("out/logs/*.log")]
    assert [log.count("from step") for log in logs] == [1] * 3


@pytest.mark.parametrize(
    "delay", [0.6, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0, 0.3, 1.2))]
)
def test_two_sweeps_with_other_flags_tell_the_truth(sweep, tmp_path, delay):
    """Into one OUT at the same time: each counts the runs of its own flags, and no other."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2 3 4", "JOBS": "2"}
    processes = {}
    for gamma in ("0.9", "0.5"):
        processes[gamma] = sweep(f"--gamma {gamma}", **setting)
        time.sleep(delay)
    claimed = {}
    for gamma, process in processes.items():
        code, out, err = end(process)
        mine = [name for name, state in states(out).items() if state == "finished"]
        refused_at_once = code == 2 and not out
        assert refused_at_once or code == (0 if len(mine) == 4 else 1), out + err
        assert refused_at_once or f"{len(mine)} of 4 finished: " in out
        claimed.update({name: claimed.get(name, "") + gamma for name in mine})
    made = {
        f"idle/E/{seed}": json.loads((tmp_path / f"out/idle/E/{seed}/config.json").read_text())
        for seed in range(1, 5)
    }
    assert claimed == {name: config["gamma"] for name, config in made.items()}


def test_devices_are_shared_out(sweep, tmp_path):
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2 3 4", "JOBS": "", "GPUS": "3 5"}
    flags = "--total-timesteps 20"  # so long that no device is free twice before the other is once
    code, out, err = end(sweep(flags, **setting))
    assert code == 0 and "4 of 4 runs to do" in err, out + err
    logs = [path.read_text() for path in tmp_path.glob("out/logs/*.log")]
    assert sorted(log.split(" from")[0] for log in logs) == ["on 3", "on 3", "on 5", "on 5"]


def test_a_log_is_named_and_there_from_the_start(sweep, tmp_path):
    write(tmp_path)
    (tmp_path / "hold").touch()
    process = sweep(SCRIPTS="idle", ENVS="E", SEEDS="1 2", OUT="my out")
    named = lambda: re.findall(r"^begun \S+: its log is (.*)$", process.files[0].read_text(), re.M)  # noqa: E731
    until(lambda: len(named()) == 2)
    for name in named():
        until(lambda: "from step 0\n" in (tmp_path / name).read_text())  # noqa: B023
    (tmp_path / "hold").unlink()
    assert end(process)[0] == 0


def test_jobs_are_commands_and_their_runs_count(sweep, tmp_path):
    write(tmp_path, "my_idle")
    setting = {"ENVS": "mod:A/B-v0", "SEEDS": "7 7b", "OUT": "my out"}
    code, out, err = end(sweep("--total-timesteps 1", SCRIPTS="my_idle", ENGINE="print", **setting))
    lines = [line.split("\t") for line in out.splitlines()]
    names = ["my_idle/mod_A_B-v0/7", "my_idle/mod_A_B-v0/7b"]
    assert (code, [name for name, _ in lines]) == (0, names)
    assert out == (tmp_path / "my out" / "jobs.tsv").read_text() and "2 of 2 runs to do" in err
    assert not starts(tmp_path)
    for _, command in lines:
        assert " --seed 7 " in command and " --threads 1 --no-capture-video " in command
        subprocess.run(["sh", "-c", command], cwd=tmp_path, env=ENVIRON, check=True)
    code, out, err = end(sweep("--total-timesteps 1", SCRIPTS="./my_idle.py", **setting))
    assert (code, states(out)) == (0, dict.fromkeys(names, "finished")), out + err
    assert "0 of 2 runs to do" in err
    logs = [path.read_text() for path in tmp_path.glob("my out/logs/*.log")]
    assert [log.count("from step") for log in logs] == [1, 1]

    for steps, source in (("2", IDLE), ("1", IDLE.replace("0.05", "0.051"))):
        write(tmp_path, "my_idle", source)
        for engine in ("local", "print"):
            setting["ENGINE"] = engine
            code, out, err = end(sweep(f"--total-timesteps {steps}", SCRIPTS="my_idle", **setting))
            assert (code, out, err.count("error: name")) == (2, "", 1), out + err
            assert "\nerror: name another OUT; of my_idle/mod_A_B-v0/7 its script says" in err
            assert ("--total-timesteps is 1" if steps == "2" else "not the source") in err


ODD = [
    "a b",
    "it's",
    'say "x"',
    "$HOME `id` $(id)",
    "new\nline",
    "tab\there",
    "-é ö",
    "*",
    "a;b|c&",
]


@pytest.mark.parametrize(("engine", "locale"), [("local", "C"), ("print", "C.UTF-8")])
def test_odd_flags_and_folders(sweep, tmp_path, engine, locale):
    """Whatever a shell might take apart reaches the script whole, and what is finished is known."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1", "LC_ALL": locale}
    setting["OUT"] = "an 'odd' \"name\"\twith $HOME `id` é * ; | &"
    notes = [word for odd in ODD for word in (f"--notes={odd}", "--notes", f" {odd}")]
    flags = ["--total-timesteps", "1", *notes, "--gamma", "1\n2\t'3'"]
    code, out, err = end(sweep(flags, ENGINE=engine, **setting))
    assert code == 0, out + err
    if engine == "print":
        command = out.split("\t", 1)[1]
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=ENVIRON, check=True)
    command = summary(tmp_path / setting["OUT"] / "idle" / "E" / "1")["command"]
    first = command.index(flags[0])
    assert command[first : first + len(flags)] == flags
    other_locale = {"LC_ALL": "C.UTF-8" if locale == "C" else "C"}
    code, out, err = end(sweep(flags, **setting | other_locale))
    assert code == 0 and "0 of 1 runs to do" in err and "1 of 1 finished" in out, out + err
    code, out, err = end(sweep([*flags[:-1], "1\n2\t3"], **setting))
    assert code == 2 and "and must stay so" in err, out + err


def test_a_summary_that_a_crash_has_cut_is_no_end(sweep, tmp_path):
    write(tmp_path)
    seeds = " ".join(map(str, range(10, 18)))
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": seeds, "JOBS": "4"}
    flags = "--total-timesteps 2"
    code, out, err = end(sweep(flags, **setting))
    assert code == 0, out + err
    folders = sorted(tmp_path.glob("out/idle/E/*"))
    before = [steady(folder) for folder in folders]
    for number, folder in enumerate(folders):
        text = (folder / "summary.json").read_bytes()
        cut = (len(text) - 1) * number // (len(folders) - 1)  # from nothing to all but one byte
        (folder / "summary.json").write_bytes(text[:cut])
    code, out, err = end(sweep(flags, **setting))
    assert code == 0 and "8 of 8 runs to do" in err, out + err
    assert [steady(folder) for folder in folders] == before
    assert {*statuses(tmp_path / "out" / "idle").values()} == {"finished"}


@pytest.mark.parametrize(
    ("flags", "variables", "sentence"),
    [
        ("", {"SCRIPTS": "sac_continous"}, "SCRIPTS: there is no sac_continous: name"),
        ("", {"SCRIPTS": " "}, "nothing to do: set SCRIPTS"),
        ("", {"ENVS": ""}, "nothing to do: set SCRIPTS"),
        ("", {"SEEDS": "1 2x3"}, 'SEEDS="2x3" is no number: try SEEDS=0'),
        ("", {"SEEDS": "1 2 1"}, "idle/E/1 is there twice: "),
        ("", {"JOBS": "two"}, 'JOBS="two" is no number: try JOBS=1'),
        ("", {"JOBS": "08"}, 'JOBS="08" is no number: try JOBS=1'),
        ("", {"JOBS": "0"}, "JOBS=0 is too small: try JOBS=1"),
        ("", {"JOBS": "", "GPUS": " "}, "JOBS=0 is too small: try JOBS=1"),
        ("", {"THREADS": "-1"}, 'THREADS="-1" is no number: try THREADS=1'),
        ("", {"RETRIES": "1.5"}, 'RETRIES="1.5" is no number: try RETRIES=0'),
        ("", {"ENGINE": "cloud"}, "there is no ENGINE=cloud: choose local, slurm or print"),
        ("", {"PYTHON": "pyton"}, 'PYTHON="pyton" is not there: try PYTHON='),
        ("", {"OUT": "idle.py/out"}, "OUT=idle.py/out cannot be written to: name another"),
        ("", {"B": "--gamma 1"}, "A and B are for ab: ./benchmark.sh ab"),
        ("", {"GPUS": "0 1", "ENGINE": "print"}, "GPUS is for ENGINE=local: unset it"),
        ("easy", {}, "there is no preset easy: choose simple, medium, hard, atari, noise or ab"),
        ("ab", {"B": "'--env-id' F"}, "--env-id: set SEEDS, ENVS and OUT instead"),
        ("ab", {"A": '--"seed=1"'}, "--seed=1: set SEEDS, ENVS and OUT instead"),
        ("ab", {"B": "--gamma '1"}, "A and B must be flags, quoted as in a shell: --gamma '1"),
        ("ab", {"A": "--n '1", "B": "2'"}, "A and B must be flags, quoted as in a shell: --n '1"),
        ("ab", {"A": "--n $nope"}, "A and B must be flags, quoted as in a shell: --n $nope"),
        ("ab", {"A": "--n 1 \\"}, "A and B must not end in a backslash"),
        ("ab", {"B": "--gamma 1\n--tau 0"}, "A and B must be one line each"),
        ("ab", {}, "ab takes two SCRIPTS, or one and "),
        ("ab", {"SCRIPTS": "idle idle idle"}, "ab takes two SCRIPTS, or one and "),
    ],
)
def test_refusals(sweep, tmp_path, flags, variables, sentence):
    write(tmp_path)
    code, out, err = end(sweep(flags, **{"SCRIPTS": "idle", "ENVS": "E"} | variables))
    assert (code, out) == (2, "") and err.startswith(f"error: {sentence}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not starts(tmp_path)


def test_there_is_no_slurm(sweep, tmp_path):
    write(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "basename", "wc"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    setting = {"SCRIPTS": "idle", "ENVS": "E", "PATH": str(tmp_path / "bin")}
    code, out, err = end(sweep(ENGINE="slurm", **setting))
    assert (code, out, err) == (
        2,
        "",
        "error: there is no sbatch here: go to a cluster, or try ENGINE=print\n",
    )


def test_what_sbatch_is_asked(sweep, tmp_path):
    """A sweep that does not wait ends when its job is submitted, whatever its flags look like."""
    write(tmp_path)
    (tmp_path / "sbatch").write_text('#!/bin/sh\necho "$@" >asked\ncat >task\n')
    (tmp_path / "sbatch").chmod(0o755)
    setting = {"ENGINE": "slurm", "SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2"}
    setting["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    code, out, err = end(sweep(SBATCH_ARGS="--mem 0 -p gpu", **setting))
    assert (code, out) == (0, ""), out + err
    asked = (tmp_path / "asked").read_text()
    assert asked.rstrip().endswith("--mem 0 -p gpu") and "--array=1-2%3" in asked
    assert (tmp_path / "task").read_text().count("idle.py") == 2


def test_flags_of_the_sweep_itself_are_refused(sweep, tmp_path):
    """In each spelling that tyro takes, and wherever they are given."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E"}
    for name in ("seed", "env-id", "env_id", "run-dir", "run_dir", "resume", "evaluate"):
        for words in (f"--{name} 3", f"--{name}=3"):
            before = sweep(f"{words} --gamma 1", **setting)
            behind = sweep(f"ab --gamma 1 {words}", **setting, A="--gamma 2")
            of_a = sweep("ab", **setting, A=f"{words} --gamma 1")
            of_b = sweep("ab", **setting, B=f"--gamma 1 {words}")
            for process in (before, behind, of_a, of_b):
                code, out, err = end(process)
                assert (code, out, err.count("\n")) == (2, "", 1)
                assert err.startswith(f"error: --{name}") and "set SEEDS, ENVS and OUT" in err
    assert not (tmp_path / "out").exists() and not starts(tmp_path)


def test_presets(sweep, tmp_path):
    """Each preset asks for what its line in the help says, and for flags that the scripts have."""
    counts = {"simple": 18, "medium": 27, "hard": 18, "atari": 6, "noise": 12}
    steps = {"sac": "20000", "td3": "45000", "ppo": "100000"}
    for preset, count in counts.items():
        code, out, err = end(sweep(preset, ENGINE="print"))
        assert code == 0 and err.startswith(f"{count} of {count} runs to do"), err
        assert out.count("\n") == count
        for line in out.splitlines():
            name, command = line.split("\t")
            words = shlex.split(command)
            fields = Path(words[1]).read_text().partition("# --- networks")[0]
            for word in re.findall(r" --(?:no-)?([a-z-]+)", command):
                assert re.search(rf"^    {word.replace('-', '_')}: ", fields, re.M), word
            total = words[words.index("--total-timesteps") + 1]
            if preset == "simple":
                assert total == steps[name[:3]]
                assert ("--learning-starts" in words) == name.startswith("td3")
        if preset == "noise":
            seeds = re.findall(r"--seed (\d+) ", out)
            assert sorted(map(int, seeds)) == [101, 101, *range(101, 111)]


def test_configs_belong_to_script_and_environment(sweep, tmp_path):
    write(tmp_path)
    write(tmp_path, "other")
    setting = {"SCRIPTS": "idle other", "ENVS": "Ant-v4 Hopper-v4", "SEEDS": "01"}
    setting["CONFIGS"] = "./idle.py Ant-* my ant's.toml\n\n* Hopper-v4 hopper.toml\n"
    setting["CONFIGS"] += "other.py * rest.toml"
    code, out, err = end(sweep(ENGINE="print", **setting))
    assert code == 0, err
    found = {}
    for line in out.splitlines():
        name, command = line.split("\t")
        words = shlex.split(command)
        found[name] = words[words.index("--config") + 1] if "--config" in words else None
    assert found == {
        "idle/Ant-v4/01": "my ant's.toml",
        "idle/Hopper-v4/01": "hopper.toml",
        "other/Ant-v4/01": "rest.toml",
        "other/Hopper-v4/01": "hopper.toml",
    }


def test_hard_walks_on_humanoid(sweep, tmp_path):
    """The preset takes PPO's settings for Humanoid, if they are there."""
    here = tmp_path / "a clone"
    (here / "configs").mkdir(parents=True)
    for path in [BENCHMARK, *ROOT.glob("*_continuous.py")]:
        shutil.copy(path, here)
    environ = ENVIRON | {"PYTHON": sys.executable, "ENGINE": "print", "SEEDS": "1"}
    for there in (False, True):
        if there:
            (here / "configs" / "ppo_humanoid.toml").touch()
        bash = os.environ.get("BASH_TO_TEST", "bash")
        command = [bash, str(here / "benchmark.sh"), "hard"]
        out = subprocess.check_output(command, cwd=tmp_path, env=environ, text=True)
        lines = [line for line in out.splitlines() if "--config" in line]
        assert [line.split("\t")[0] for line in lines] == ["ppo_continuous/Humanoid-v4/1"] * there
    words = shlex.split(lines[0])
    assert words[words.index("--config") + 1] == str(here / "configs" / "ppo_humanoid.toml")


def test_ab(sweep, tmp_path):
    """Two sides on the same fresh seeds, in turns; each has its flags and those for both."""
    write(tmp_path)
    write(tmp_path, "other")
    shared = ["ab", "--total-timesteps", "1"]
    two = {"SCRIPTS": "idle other", "ENVS": "E F"}
    code, out, err = end(sweep(shared, ENGINE="print", **two))
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert code == 0 and len(names) == 40, err
    assert names[:3] == ["a-idle/E/201", "b-other/E/201", "a-idle/E/202"]
    assert names[-1] == "b-other/F/210"

    one = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "201"}
    one["B"] = "--gamma 'two words' --notes \"it's\""
    code, out, err = end(sweep(shared, **one))
    assert code == 0 and "2 of 2 finished: " in out, out + err
    for side, own in (("a", []), ("b", ["--gamma", "two words", "--notes", "it's"])):
        command = summary(tmp_path / "out" / f"{side}-idle" / "E" / "201")["command"]
        first = command.index("--total-timesteps")
        assert command[first:] == [*shared[1:], *own, "--run-dir", f"out/{side}-idle/E/201"]
        assert command[command.index("--seed") + 1] == "201"


@pytest.mark.parametrize("tools", [["report"], ["report", "compare"]])
def test_what_presets_end_in(tmp_path, tools):
    """The report; ab ends in the comparison of its sides, if that tool is there."""
    here = tmp_path / "a clone"
    (here / "tools").mkdir(parents=True)
    shutil.copy(BENCHMARK, here)
    for tool in tools:
        said = f"print('{tool}', *sys.argv[1:], sep='|'); sys.exit(2)"
        (here / "tools" / f"{tool}.py").write_text(f"import sys; {said}")
    write(here)
    environ = ENVIRON | {"PYTHON": sys.executable, "SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1"}
    environ["OUT"] = "my out"

    def last_line(preset, **variables):
        bash = os.environ.get("BASH_TO_TEST", "bash")
        command = [bash, str(here / "benchmark.sh"), preset, "--total-timesteps", "1"]
        options = {"cwd": tmp_path, "env": environ | variables, "text": True}
        done = subprocess.run(command, capture_output=True, check=True, **options)
        return done.stdout.splitlines()[-1]

    report = "report|my out|--plots|my out/plots"
    assert last_line("simple") == report
    compare = "compare|my out/a-idle|my out/b-idle"
    assert last_line("ab", B="--gamma 1") == (compare if "compare" in tools else report)


def test_shellcheck():
    """It has nothing to say."""
    if not shutil.which("shellcheck"):
        pytest.skip("needs apt-get install shellcheck")
    scripts = [str(BENCHMARK), str(ROOT / "tools" / "speed.sh")]
    subprocess.run(["shellcheck", *scripts], check=True)


def test_help(sweep):
    for flags, variables in (("", {"SEEDS": "1"}), ("--help", {"ENVS": "E"}), ("simple -h", {})):
        code, out, err = end(sweep(flags, **variables))
        assert (code, err) == (0, "") and out.startswith("Train scripts x environments x seeds")
        for (
            name
        ) in "SCRIPTS ENVS SEEDS CONFIGS JOBS OUT RETRIES THREADS GPUS PYTHON ENGINE".split():
            assert re.search(rf"^{name} +\S", out, re.M)
        for name in "simple medium hard atari noise ab".split():
            assert re.search(rf"^{name} +\S", out, re.M)


@pytest.mark.slow
def test_simple_stopped_twice_ends_in_the_same_tables(sweep, tmp_path):
    """The preset, in less time: after Ctrl-C and after a crash it reports what it would have."""
    flags = "simple --total-timesteps 5400 --eval-every 1800 --hidden-size 16 --batch-size 32"
    setting = {"ENVS": "InvertedPendulum-v4", "SEEDS": "101", "JOBS": "2"}
    reports, folders = [], []
    for name in ("calm", "rough"):
        out_folder = tmp_path / name
        if name == "rough":
            process = sweep(flags, OUT=name, **setting)
            until(lambda: in_the_middle(tmp_path) == 2, 300)
            os.killpg(process.pid, signal.SIGINT)
            code, out, err = end(process, 300)
            assert code == 130 and "interrupted" in states(out).values(), out + err
            process = sweep(flags, OUT=name, **setting)
            until(lambda: in_the_middle(tmp_path) == 2, 300)
            kill(living(tmp_path))
            process.wait()
        code, out, err = end(sweep(flags, OUT=name, **setting), 600)
        assert code == 0 and "3 of 3 finished: " in out, out + err
        scores = re.search(r"(\| script \|.*\n(?:\|.*\n)+)", out)[1]
        assert scores.count("InvertedPendulum-v4") == 3
        reports.append((states(out), scores))
        folders.append(sorted(path.parent for path in out_folder.glob("*/*/*/metrics.jsonl")))
        assert [*(out_folder / "plots").glob("*.png")]
    assert reports[0] == reports[1]
    for calm, rough in zip(*folders, strict=True):
        assert steady(calm) == steady(rough) != []


# A cluster of this machine, with two devices that are not there. A requeued task waits until its
# old credential has expired, which takes two minutes unless told otherwise.
SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={more}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


@pytest.fixture
def slurm(monkeypatch):
    """Start munged, slurmctld and slurmd with files of their own; yield their command line."""
    monkeypatch.setenv("PATH", os.environ["PATH"] + ":/usr/sbin")
    missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, and apt-get install slurm-wlm munge: {missing} not found")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    cpus, host = len(os.sched_getaffinity(0)), socket.gethostname().split(".")[0]
    inputs = {"folder": folder, "host": host, "cpus": max(cpus, 2)}
    inputs |= {"port": free_port(), "more": free_port()}
    (folder / "slurm.conf").write_text(SLURM.format(**inputs))
    device = "Name=gpu File={}/device[0-1] Flags=nvidia_gpu_env\n"
    (folder / "gres.conf").write_text(device.format(folder))
    for i in range(2):
        os.mknod(folder / f"device{i}", 0o020666, os.makedev(1, 3))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
    names["seed-file"] = "seed"
    flags = [f"--{flag}={folder}/munge.{name}" for flag, name in names.items()]
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    daemons = [
        ["munged", "--foreground", "--force", *flags],
        ["slurmctld", "-D", "-f", folder / "slurm.conf"],
        ["slurmd", "-D", "-f", folder / "slurm.conf"],
    ]
    running = []
    try:
        for command in daemons:
            silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running.append(subprocess.Popen(command, **silence))
            time.sleep(1)
            until((folder / "munge.socket").exists)
        call = lambda *words: subprocess.run(words, capture_output=True, text=True).stdout  # noqa: E731
        until(lambda: "idle" in call("sinfo", "-h", "-o", "%T"))
        yield call
        call("scancel", "-u", "root")
        until(lambda: not call("squeue", "-h"))
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(60)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_slurm(slurm, sweep, tmp_path):
    """An array job shares out devices; a task that Slurm stops and requeues goes on."""
    write(tmp_path)
    environ = {"SLURM_CONF": os.environ["SLURM_CONF"], "PATH": os.environ["PATH"], "JOBS": ""}
    setting = {"ENGINE": "slurm", "SCRIPTS": "idle", "ENVS": "E", "OUT": "my é out", **environ}
    flags = ["--total-timesteps", "30", *(f"--notes={odd}" for odd in ODD)]
    code, out, err = end(sweep(flags, SEEDS="1 2 3", SBATCH_ARGS="-W -G 1", **setting))
    assert code == 0 and {*states(out).values()} == {"finished"}, out + err
    logs = [path.read_text() for path in tmp_path.glob("my é out/logs/idle*.log")]
    assert {log.split(" from")[0] for log in logs} == {"on 0", "on 1"}
    run = tmp_path / "my é out" / "idle" / "E" / "4"
    command = summary(run.with_name("3"))["command"]
    assert command[command.index(flags[0]) :][: len(flags)] == flags

    waiting = sweep(flags, SEEDS="1 2 3 4 5", SBATCH_ARGS="-W -G 1", **setting)
    until(lambda: rows(run) > 5)
    (tmp_path / "hold").touch()  # it does not end before Slurm stops it
    job = re.search(r"Submitted batch job (\d+)", waiting.files[0].read_text())[1]
    slurm("scontrol", "requeue", f"{job}_1")
    log = tmp_path / "my é out" / "logs" / "idle__E__4.log"
    until(lambda: "interrupted" in log.read_text())
    (tmp_path / "hold").unlink()
    code, out, err = end(waiting)
    assert code == 0 and "5 of 5 finished: " in out and "2 of 5 runs to do" in err, out + err
    said = (tmp_path / "my é out" / "logs" / "idle__E__4.log").read_text()
    assert "interrupted" in said and re.search(r"from step [1-9]", said)
    assert [row["x"] for row in steady(run)] == [4 * step for step in range(30)]
    counts = {name.split("_")[-1]: count for name, count in starts(tmp_path).items()}
    # a run, and each time a sweep asks whether it is finished
    assert counts == {"1": 3, "2": 3, "3": 3, "4": 3, "5": 2}
    made = (tmp_path / "my é out" / "idle" / "E").glob("*/metrics.jsonl")
    assert [rows(path.parent) for path in made] == [30] * 5

    code, out, err = end(sweep("--gamma 1", SEEDS="1 6", SBATCH_ARGS="-W", **setting))
    assert code == 2 and "name another OUT" in err and not run.with_name("6").exists(), out + err


@pytest.mark.slow
def test_slurm_tells_the_truth(slurm, sweep, tmp_path):
    """Runs that fail, or that another sweep with other flags has made meanwhile, do not count."""
    write(tmp_path)
    environ = {"SLURM_CONF": os.environ["SLURM_CONF"], "PATH": os.environ["PATH"], "JOBS": ""}
    setting = {"ENGINE": "slurm", "SCRIPTS": "idle", "ENVS": "E", "SBATCH_ARGS": "-W", **environ}
    (tmp_path / "hold").touch()
    waiting = sweep("--gamma 1", SEEDS="1 2 5", FAULTS="1", **setting)
    folder = tmp_path / "out" / "idle" / "E"
    until(lambda: (folder / "2" / "config.json").exists())
    until(lambda: (folder / "1" / "config.json").exists())
    other = {"gamma": "2"}
    for seed in ("1", "2"):
        config = json.loads((folder / seed / "config.json").read_text())
        (folder / "2" / "config.json").write_text(json.dumps(config | other))
        other = {}
    (tmp_path / "hold").unlink()
    code, out, err = end(waiting)
    assert code == 1 and "1 of 3 finished: " in out, out + err
    assert states(out) == {
        "idle/E/1": "finished",
        "idle/E/2": "refused",
        "idle/E/5": "unfinished",
    }
    assert table(out)["idle/E/5"][1] == "ValueError: seed 5 fails"
