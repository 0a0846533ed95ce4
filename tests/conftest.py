"""Options, marks and fixtures shared by all tests."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
TINY = "--env-id tests.toy_envs:Counter-v0 --total-timesteps 300 --learning-starts 100"
TINY += " --batch-size 32 --hidden-size 16 --threads 1 --log-every 100 --eval-every 150"
TINY += " --eval-episodes 2 --no-capture-video --device cpu"
WALL_CLOCK = re.compile("time/.*|charts/SPS|seconds")  # all else is the same in a repeated run


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: together under 90 seconds")
    config.addinivalue_line("markers", "slow: runs only with -m slow, or when named with ::")


def pytest_collection_modifyitems(config, items):
    if "slow" in config.option.markexpr or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def script(request):
    return request.config.getoption("script").resolve()


@pytest.fixture(scope="session")
def S(script):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    sys.modules[script.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(S, tmp_path, monkeypatch):
    """Call main in this process, in an empty folder, with flags after those of TINY."""
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda flags="": S.main(S.parse_args(S.Args, [*TINY.split(), *flags.split()]))
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def launch(script):
    """Start the script as a user does: alone in a folder, in a process of its own."""

    def launch(folder, flags, python="", **environ):
        shutil.copy(script, folder)
        environ = {key: value for key, value in (ENVIRON | environ).items() if value is not None}
        command = [sys.executable, *python.split(), script.name, *TINY.split(), *flags.split()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731, ignored behind a &
        return subprocess.Popen(command, cwd=folder, env=environ, preexec_fn=heed, **pipes)

    return launch


def finish(process):
    """Wait for a process, two minutes at most; return its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def parse(text):
    """Parse strictly valid JSON, which knows no NaN."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read(run):
    """Return the rows of a run's metrics."""
    return [parse(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def summary(run):
    return parse((Path(run) / "summary.json").read_text())


def steady(run):
    """Return the metrics of a run without those of the wall clock."""
    return [{k: v for k, v in row.items() if not WALL_CLOCK.fullmatch(k)} for row in read(run)]


def weights(run):
    """Return all tensors of an agent, optimizers included."""
    return torch.load(Path(run) / "model.pt", weights_only=True)["state"]


def same(one, other):
    """Tell whether two agents have the same bits."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def warnings(out):
    """Return the lines that warn."""
    return [line for line in out.splitlines() if line.startswith("warning: ")]
