"""benchmark.sh: sweeps that are stopped, killed, refused, started twice, or run by Slurm."""

import os
import re
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

from tests.conftest import ENVIRON, ROOT, steady, summary

BENCHMARK = ROOT / "benchmark.sh"
NAMES = [f"InvertedPendulum-v4/{seed}" for seed in range(1, 9)]

# What a script does for a sweep, in less time.
IDLE = """
import argparse, json, os, signal, sys, time
from pathlib import Path

def main(flags):
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--no-capture-video", action="store_true")
    for name in ("env-id", "seed", "threads", "total-timesteps"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args(flags)
    if args.run_dir.exists():
        sys.exit(2)
    args.run_dir.mkdir(parents=True)
    (args.run_dir / "script.py").write_bytes(Path(__file__).read_bytes())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status, start = "finished", time.time()
    print("on", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    try:
        with open(args.run_dir / "metrics.jsonl", "w", buffering=1) as file:
            for step in range(int(args.total_timesteps or 5)):
                time.sleep(0.1)
                row = {"x": step * int(args.seed), "seconds": time.time() - start}
                file.write(json.dumps(row) + "\\n")
    except KeyboardInterrupt:
        status = "interrupted"
        time.sleep(0.5)  # a second signal would end it
    part = args.run_dir / "part"
    part.write_text(json.dumps({"status": status, "command": sys.argv}, indent=1))
    os.replace(part, args.run_dir / "summary.json")
    print(status)
    sys.exit(130 * (status == "interrupted"))

if __name__ == "__main__":
    main(sys.argv[1:])
"""

# Put in front of the last line of a script: it notes each start and whether the run was living
# already; where FAULTS is set, seeds 2 to 4 fail once, 5 always, and 6 is killed once; and it waits
# as long as there is a file called hold.
FAULTY = """
def beset(flags):
    folder = flags[flags.index("--run-dir") + 1]
    notes = Path(__file__).with_name("starts") / folder.replace("/", "_")
    notes.parent.mkdir(exist_ok=True)
    pids = [int(pid) for pid in notes.read_text().split()] if notes.exists() else []
    lines = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    if any(line.exists() and folder in line.read_text() for line in lines):  # a zombie has none
        notes.with_suffix(".twice").write_text(f"{pids}")
    with open(notes, "a") as file:
        file.write(f"{os.getpid()} ")
    seed = int(flags[flags.index("--seed") + 1])
    if "FAULTS" in os.environ and (seed == 5 or seed in (2, 3, 4, 6) and not pids):
        os.makedirs(folder)
        print("about to fail", flush=True)
        if seed == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f"seed {seed} fails")
    while Path(__file__).with_name("hold").exists():
        time.sleep(0.05)


if __name__ == "__main__":
    beset(sys.argv[1:])
"""
REAL = "--total-timesteps 4096 --compile off --eval-every 0 --log-every 512"


@pytest.fixture
def sweep(tmp_path):
    """Start benchmark.sh in an empty folder; kill whatever is left of it afterwards."""

    def sweep(flags="", **variables):
        environ = ENVIRON | {"PYTHON": sys.executable, "JOBS": "3", "OUT": "out"} | variables
        command = [os.environ.get("BASH_TO_TEST", "bash"), str(BENCHMARK), *flags.split()]
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731, ignored behind a &
        options = {"cwd": tmp_path, "env": environ, "start_new_session": True, "preexec_fn": heed}
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


def statuses(folder):
    """Return name and status of all runs that have a summary."""
    found = folder.glob("*/[!.]*/summary.json")
    return {str(path.parent.relative_to(folder)): summary(path.parent)["status"] for path in found}


def young_runs(folder):
    """Return how many runs have rows of metrics, and began less than 0.7 s ago: they go on."""
    files = [path for path in folder.glob("*/[!.]*/metrics.jsonl") if path.stat().st_size]
    return sum(time.time() - path.with_name("script.py").stat().st_mtime < 0.7 for path in files)


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
    source, flags, patience = IDLE, "--total-timesteps 20", 120
    if kind == "real":
        source, flags, patience = (ROOT / "ppo_continuous.py").read_text(), REAL, 900
    write(tmp_path, "beset", source)
    setting = {"SCRIPTS": "beset", "ENVS": "InvertedPendulum-v4", "SEEDS": "1 2 3 4 5 6 7 8"}

    def go(**variables):
        return sweep(flags, **setting, **variables)

    code, out, err = end(go(OUT="calm"), patience)
    assert (code, err.count("\n")) == (0, 1) and "8 of 8 finished: " in out, out + err
    assert len(re.findall(r"^\[\d/8\] ok ", out, re.M)) == 8
    calm, rough = tmp_path / "calm" / "beset", tmp_path / "out" / "beset"

    first = go(FAULTS="1")
    until(lambda: "finished" in statuses(rough).values() and young_runs(rough), patience)
    first.terminate()
    code, out, err = end(first, patience)
    assert code == 143 and not living(tmp_path), out + err
    left = statuses(rough)
    assert {*left.values()} >= {"finished", "interrupted"}, out + err
    done = {name for name in left if left[name] == "finished"}
    missing = re.findall(r"^missing   beset/(\S+): ", out, re.M)
    assert sorted(missing) == sorted({*NAMES} - done)
    times = {name: (rough / name / "metrics.jsonl").stat().st_mtime_ns for name in done}

    count = sum(starts(tmp_path).values())
    (tmp_path / "hold").touch()
    second = go(FAULTS="1")
    until(lambda: sum(starts(tmp_path).values()) >= count + 3, patience)
    kill(living(tmp_path, "bash"))  # the sweep, and the shells around its runs
    second.wait()
    assert living(tmp_path)
    third = go(FAULTS="1")
    until(lambda: "in use beset/" in third.files[0].read_text(), patience)
    (tmp_path / "hold").unlink()
    code, out, err = end(third, patience)
    assert code == 1, out + err
    until(lambda: not living(tmp_path), patience)
    code, out, err = end(go(FAULTS="1"), patience)
    assert code == 1 and "7 of 8 finished: " in out, out + err
    assert "missing   beset/InvertedPendulum-v4/5: ValueError: seed 5 fails" in out
    assert statuses(rough) == dict.fromkeys({*NAMES} - {NAMES[4]}, "finished")

    code, out, err = end(go(), patience)
    assert code == 0 and "8 of 8 finished: " in out, out + err
    assert statuses(rough) == statuses(calm) == dict.fromkeys(NAMES, "finished")
    for name in NAMES:
        assert steady(rough / name) == steady(calm / name) != []
        assert (rough / name / "log.txt").stat().st_size
    assert times == {name: (rough / name / "metrics.jsonl").stat().st_mtime_ns for name in done}
    kept = {path.name for path in (rough / "InvertedPendulum-v4").glob(".*")}
    assert ".5-unfinished-2" in kept and all(
        "unfinished" in name for name in kept if name[-5:] != ".lock"
    )
    killed = [(path / "log.txt").read_text() for path in rough.glob("*/.6-unfinished-*")]
    assert "about to fail\nkilled: exit status 137\n" in killed
    assert not [*tmp_path.glob("starts/*.twice")] and not living(tmp_path)


def test_retries(sweep, tmp_path):
    """What fails is started anew as often as asked for, what is refused never."""
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "FAULTS": "1"}
    code, out, err = end(sweep(SEEDS="2 5 6", **setting))
    assert code == 1 and out.count(" ok idle/") == 2 and "failed idle/E/5, " in out, out + err
    assert [*starts(tmp_path).values()] == [2, 2, 2] and err.count("\n") == 1
    code, out, err = end(sweep("--nonsense", SEEDS="1 3", RETRIES="0", OUT="other", **setting))
    code, out, err = end(sweep("--nonsense", SEEDS="4", RETRIES="3", OUT="more", **setting))
    assert code == 1 and "missing   idle/E/4: " in out and "nonsense" in out, out + err
    counts = {name.split("_")[0] + name[-1]: n for name, n in starts(tmp_path).items()}
    assert counts == {"out2": 2, "out5": 2, "out6": 2, "other1": 1, "other3": 1, "more4": 2}


def test_ctrl_c(sweep, tmp_path):
    write(tmp_path)
    process = sweep("--total-timesteps 600", SCRIPTS="idle", ENVS="E", SEEDS="1 2", JOBS="1")
    until(lambda: young_runs(tmp_path / "out" / "idle"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, out, err = end(process)
    assert code == 130 and not living(tmp_path), out + err
    assert statuses(tmp_path / "out" / "idle") == {"E/1": "interrupted"}
    assert "missing   idle/E/1: interrupted\nmissing   idle/E/2: no output\n0 of 2" in out


def test_two_sweeps_at_once(sweep, tmp_path):
    write(tmp_path)
    (tmp_path / "hold").touch()
    setting = {"SCRIPTS": "idle", "ENVS": "E", "JOBS": "2"}
    one = sweep(SEEDS="1 2 3 4", **setting)
    until(lambda: len(starts(tmp_path)) == 2)
    other = sweep(SEEDS="1 2", **setting)
    code, out, err = end(other)
    assert code == 1 and "[1/2] in use idle/E/" in out and "0 of 2 finished: " in out, out + err
    (tmp_path / "hold").unlink()
    code, out, err = end(one)
    assert code == 0 and "4 of 4 finished: " in out, out + err
    assert [*starts(tmp_path).values()] == [1, 1, 1, 1]
    assert (tmp_path / "out" / "jobs.tsv").read_text().count("\n") == 2


def test_devices_are_shared_out(sweep, tmp_path):
    write(tmp_path)
    setting = {"SCRIPTS": "idle", "ENVS": "E", "SEEDS": "1 2 3 4", "JOBS": "", "GPUS": "3 5"}
    process = sweep(**setting)
    code, out, err = end(process)
    assert code == 0 and "4 of 4 runs to do, 2 at a time" in err, out + err
    logs = [path.read_text() for path in tmp_path.glob("out/idle/E/*/log.txt")]
    assert sorted(log.split("\n")[0] for log in logs) == ["on 3", "on 3", "on 5", "on 5"]


def test_jobs_are_commands_and_their_runs_count(sweep, tmp_path):
    write(tmp_path, "my_idle")
    setting = {"ENVS": "mod:A/B-v0", "SEEDS": "7 7b", "OUT": "my out"}
    code, out, err = end(sweep("--total-timesteps 1", SCRIPTS="my_idle", ENGINE="print", **setting))
    lines = [line.split("\t") for line in out.splitlines()]
    assert (code, [name for name, _ in lines]) == (
        0,
        ["my_idle/mod_A_B-v0/7", "my_idle/mod_A_B-v0/7b"],
    )
    assert out == (tmp_path / "my out" / "jobs.tsv").read_text() and "2 of 2 runs to do" in err
    assert [path.name for path in (tmp_path / "my out").iterdir()] == ["jobs.tsv"]
    for _, command in lines:
        assert " --seed 7 " in command and " --threads 1 --no-capture-video " in command
        subprocess.run(["sh", "-c", command], cwd=tmp_path, env=ENVIRON, check=True)
    code, out, err = end(sweep("--total-timesteps 1", SCRIPTS="./my_idle.py", **setting))
    assert (code, out.count("finished  ")) == (0, 2), out + err
    assert {*starts(tmp_path).values()} == {1}

    other = "error: my out/my_idle/mod_A_B-v0/7 was made by other flags or another version"
    for flags, source in (("2", IDLE), ("1", IDLE + "# changed\n")):
        write(tmp_path, "my_idle", source)
        code, out, err = end(sweep(f"--total-timesteps {flags}", SCRIPTS="my_idle", **setting))
        assert (code, out) == (2, "") and err.startswith(other) and "another OUT" in err
        assert {*starts(tmp_path).values()} == {1}


@pytest.mark.parametrize(
    ("flags", "variables", "sentence"),
    [
        ("", {"SCRIPTS": "sac_continous"}, "SCRIPTS: there is no sac_continous: name"),
        ("", {"SCRIPTS": " "}, "nothing to do: set SCRIPTS"),
        ("", {"ENVS": ""}, "nothing to do: set SCRIPTS"),
        ("", {"SEEDS": "1 2x3"}, 'SEEDS="2x3" is no number: try SEEDS=0'),
        ("", {"SEEDS": "1 2 1"}, "idle/E/1 is there twice: "),
        ("", {"JOBS": "two"}, 'JOBS="two" is no number: try JOBS=1'),
        ("", {"JOBS": "0"}, "JOBS=0 is too small: try JOBS=1"),
        ("", {"THREADS": "-1"}, 'THREADS="-1" is no number: try THREADS=1'),
        ("", {"RETRIES": "1.5"}, 'RETRIES="1.5" is no number: try RETRIES=0'),
        ("", {"ENGINE": "cloud"}, "there is no ENGINE=cloud: choose local, slurm or print"),
        ("", {"PYTHON": "pyton"}, 'PYTHON="pyton" is not there: try PYTHON='),
        ("", {"OUT": "idle.py/out"}, "OUT=idle.py/out can not be written to: name another"),
        ("easy", {}, "there is no preset easy: choose simple, medium, hard, atari or noise"),
        ("--seed 3", {}, "--seed: set SEEDS, ENVS and OUT instead"),
    ],
)
def test_refusals(sweep, tmp_path, flags, variables, sentence):
    write(tmp_path)
    code, out, err = end(sweep(flags, **{"SCRIPTS": "idle", "ENVS": "E"} | variables))
    assert (code, out) == (2, "") and err.startswith(f"error: {sentence}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not starts(tmp_path)


def test_presets(sweep, tmp_path):
    """Each preset asks for what its line in the help says, and for flags that the scripts have."""
    counts = {"simple": 18, "medium": 27, "hard": 18, "atari": 6, "noise": 12}
    steps = {"sac": "20000", "td3": "45000", "ppo": "100000"}
    for preset, count in counts.items():
        code, out, err = end(sweep(preset, ENGINE="print"))
        found = re.match(rf"{count} of {count} runs to do, 3 at a time: about (\d+) h", err)
        assert code == 0 and found and out.count("\n") == count, err
        for line in out.splitlines():
            name, command = line.split("\t")
            words = command.split()
            fields = Path(words[1]).read_text().partition("# --- networks")[0]
            for word in re.findall(r"--(?:no-)?([a-z-]+)", command):
                assert re.search(rf"^    {word.replace('-', '_')}: ", fields, re.M), word
            total = words[words.index("--total-timesteps") + 1]
            if preset == "simple":
                assert total == steps[name[:3]]
                assert ("--learning-starts" in words) == name.startswith("td3")
        if preset == "noise":
            seeds = re.findall(r"--seed (\d+) ", out)
            assert sorted(map(int, seeds)) == [101, 101, *range(101, 111)]
    assert int(found[1]) in range(0, 3)
    code, out, err = end(sweep("hard --total-timesteps 5000", ENGINE="print", SEEDS="1"))
    assert "6 of 6 runs to do, 3 at a time: about 0 h 02 min" in err  # 4 runs of 72 s, 2 of 13


def test_help(sweep):
    for flags, variables in (("", {"SEEDS": "1"}), ("--help", {"ENVS": "E"}), ("simple -h", {})):
        code, out, err = end(sweep(flags, **variables))
        assert (code, err) == (0, "") and out.startswith("Train scripts x environments x seeds")
        for name in "SCRIPTS ENVS SEEDS JOBS OUT RETRIES THREADS GPUS PYTHON ENGINE".split():
            assert re.search(rf"^{name} +\S", out, re.M)
        for name in "simple medium hard atari noise".split():
            assert re.search(rf"^{name} +\S", out, re.M)


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
    """An array job shares out devices; one of its tasks is stopped and started anew by Slurm."""
    write(tmp_path)
    environ = {"SLURM_CONF": os.environ["SLURM_CONF"], "PATH": os.environ["PATH"], "JOBS": ""}
    setting = {"ENGINE": "slurm", "SCRIPTS": "idle", "ENVS": "E", **environ}
    flags = "--total-timesteps 10"
    code, out, err = end(sweep(flags, SEEDS="1 2 3", SBATCH_ARGS="-W -G 1", **setting))
    assert code == 0 and "3 of 3 finished: " in out, out + err
    logs = [path.read_text() for path in tmp_path.glob("out/idle/E/?/log.txt")]
    assert {log.split("\n")[0] for log in logs} == {"on 0", "on 1"}

    (tmp_path / "hold").touch()
    waiting = sweep(flags, SEEDS="1 2 3 4 5", SBATCH_ARGS="-W -G 1", **setting)
    until(lambda: len(starts(tmp_path)) == 5)
    (tmp_path / "hold").unlink()
    run = tmp_path / "out" / "idle" / "E" / "4"
    until(lambda: (run / "metrics.jsonl").exists())
    job = re.search(r"Submitted batch job (\d+)", waiting.files[0].read_text())[1]
    slurm("scontrol", "requeue", f"{job}_1")
    code, out, err = end(waiting)
    assert code == 0 and "5 of 5 finished: " in out and "2 of 5 runs to do" in err, out + err
    assert summary(run)["status"] == "finished"
    assert (run.parent / ".4-unfinished-1" / "metrics.jsonl").exists()
    counts = {name.split("_")[-1]: count for name, count in starts(tmp_path).items()}
    assert counts == {"1": 1, "2": 1, "3": 1, "4": 2, "5": 1}
    assert not [*tmp_path.glob("starts/*.twice")]
