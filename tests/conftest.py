"""Options, marks and fixtures shared by all tests."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import chdir, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
TINY = "--env-id tests.toy_envs:Counter-v0 --total-timesteps 300 --learning-starts 100"
TINY += " --num-envs 1 --rollout-steps 96 --batch-size 32 --hidden-size 16 --threads 1"
TINY += " --log-every 100 --buffer-size 20000"
TINY += " --eval-every 150 --eval-episodes 2 --no-capture-video --device cpu"
LAB = {"hidden_size": 64, "batch_size": 64, "learning_starts": 100, "tau": 0.05, "gamma": 0.5}
LAB |= {"critic_lr": 1e-3, "actor_lr": 1e-3, "alpha_lr": 1e-3, "alpha": 1e-3, "autotune": False}
LAB |= {"num_envs": 1, "rollout_steps": 192, "norm_obs": False, "norm_reward": False}
LAB |= {"learning_rate": 1e-3, "anneal": False, "log_std_init": 0.0}
LAB |= {"buffer_size": 10_000, "train_every": 2, "target_every": 40, "eval_e": 0.0}
LAB |= {"exploration_fraction": 1.0, "end_e": 0.1}
LAB |= {"eval_every": 0, "capture_video": False, "threads": 1, "compile": "off", "device": "cpu"}
LAB |= {"log_every": 100, "run_dir": "run"}
SPACES = {"box": "Const-v0", "discrete": "Const-discrete-v0", "pixels": "ConstPixels-v0"}
HOUSE = {"sac_continuous", "td3_continuous", "tqc_continuous", "ppo_continuous", "dqn_atari"}
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.stem in HOUSE)
SCRIPTS_BUT_SAC = [path for path in SCRIPTS if path.stem != "sac_continuous"]
OURS = {
    "test_benchmark.py",
    "test_compare.py",
    "test_doctor.py",
    "test_readme.py",
    "test_report.py",
    "test_run_folders.py",
    "test_teeth.py",
    "test_third_party.py",
    "test_tools.py",
    "test_tune.py",
}  # no test of a script
METHOD = {
    "test_copies.py",
    "test_dqn.py",
    "test_math.py",
    "test_ppo.py",
    "test_probes.py",
    "test_td3.py",
}  # equations and probes; of all scripts together they take too long to be quick
WALL_CLOCK = re.compile("time/.*|charts/SPS|seconds")  # all else is the same in a repeated run


def foreign(script):
    """Tell whether a script is none of ours, but a user's."""
    return bool(script) and script.resolve() not in SCRIPTS


def need_own_networks(script):
    """Skip a test of our networks' layers; those of a script that a user changed are his."""
    if script.stem not in HOUSE:
        pytest.skip("your networks are yours")


def need_own_optimizer(script):
    """Skip a test of the numbers in our optimizers; those of a user's script are his."""
    if script.stem not in HOUSE:
        pytest.skip("your optimizers are yours")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "quick: together under 90 seconds; with --script equations and probes, too"
    )
    config.addinivalue_line("markers", "slow: runs only with -m slow, or when named with ::")
    config.addinivalue_line("markers", "plumbing: what it tests is the same in all scripts")
    config.addinivalue_line(
        "markers", "every_script: what it tests has a part in each script of its own"
    )


def pytest_generate_tests(metafunc):
    """Test each of our scripts, unless one is named with --script."""
    rules = hasattr(metafunc.module, "pytest_generate_tests")  # those of test_copies.py
    if "script" in metafunc.fixturenames and not (metafunc.config.option.script or rules):
        stems = [path.stem for path in SCRIPTS]
        metafunc.parametrize("script", SCRIPTS, ids=stems, scope="session")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m, since it marks tests
def pytest_collection_modifyitems(config, items):
    if foreign(config.option.script):
        deselect(config, items, [item for item in items if item.path.name in OURS])
    if config.option.script:
        for item in items:
            if item.path.name in METHOD:
                item.add_marker(pytest.mark.quick)
    again = [item for item in items if tests_plumbing_again(item)]
    for item in again:
        item.add_marker(pytest.mark.slow)
    deselect(config, items, {*again} - {*share(again)})
    if "slow" in config.option.markexpr:
        leave_out_a_share_of_the_slow(config, items, {*again})
    if "slow" in config.option.markexpr or any("::" in arg for arg in config.args):
        return
    deselect(config, items, [item for item in items if item.get_closest_marker("slow")])


def deselect(config, items, left_out):
    """Take tests out of the items, and count them as deselected."""
    left_out = {*left_out}
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter, config):
    """Say what was not tested of a user's method: a test that is skipped proves nothing.

    A file of which nothing ran is about another method.
    """
    if not foreign(config.option.script):
        return
    for name in sorted(METHOD):
        results = {
            outcome: [row for row in rows if Path(getattr(row, "fspath", "")).name == name]
            for outcome, rows in terminalreporter.stats.items()
        }
        skipped = results.get("skipped", [])
        ran = len(results.get("passed", [])) + len(results.get("failed", []))
        if not (ran and skipped):
            continue
        reasons = Counter(row.longrepr[2].removeprefix("Skipped: ") for row in skipped)
        told = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common())
        terminalreporter.write_line(f"{name}: {ran} ran, {len(skipped)} did not: {told}")


def share(rows, variable="TEETH_SHARE"):
    """Return all rows, or with TEETH_SHARE=k/n those whose position modulo n is k, from 0 on."""
    k, n = map(int, os.environ.get(variable, "0/1").split("/"))
    assert 0 <= k < n, f"{variable} must be 0/n, 1/n, ... or n-1/n"
    return rows[k::n]


def leave_out_a_share_of_the_slow(config, items, shared):
    """With SLOW_SHARE=k/n keep that share of the slow tests of which TEETH_SHARE takes none."""
    shared |= {item for item in items if item.path.name == "test_teeth.py"}
    slow = [item for item in items if item.get_closest_marker("slow") and item not in shared]
    deselect(config, items, {*slow} - {*share(slow, "SLOW_SHARE")})


def tests_plumbing_again(item):
    """Tell whether a test tests code that is the same in all scripts of ours.

    test_copies.py proves that it is. By default it is tested in the first script that has it: SAC,
    or PPO for processes of environments.
    """
    callspec = getattr(item, "callspec", None)
    script = callspec and callspec.params.get("script")
    if script not in SCRIPTS_BUT_SAC:
        return False
    slow = item.get_closest_marker("slow")
    every_script = item.get_closest_marker("every_script")
    if script.stem == "tqc_continuous":  # differs from SAC in its critics and defaults alone
        of_critics = {"test_math.py", "test_probes.py", "test_bad_input.py", "test_copies.py"}
        if slow or not (every_script or item.path.name in of_critics):
            return True
    if every_script:
        return False
    shared = {"test_resume.py", "test_envs.py"}
    if script.stem == "td3_continuous":  # goes through its runs as SAC does
        shared |= {"test_runs.py", "test_claims.py"}
    if script.stem == "dqn_atari":
        shared |= {"test_async.py"}
    return item.path.name in shared or item.get_closest_marker("plumbing")


@pytest.fixture(scope="session")
def script(request):
    """The path of the script."""
    return request.config.option.script.resolve()


@pytest.fixture(scope="session")
def S(script):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    sys.modules[script.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [SimpleNamespace(name=one.name, version=one.version) for one in distributions()]
    module.distributions = lambda: found  # reading them takes 0.3 s, in every run
    return module


def has(S, name):
    """Tell whether the script has a name such as Args.alpha or squash."""
    holder, _, attribute = name.rpartition(".")
    holder = getattr(S, holder, None) if holder else S
    fields = getattr(holder, "__annotations__", {}) if holder is not S else {}
    return attribute in fields or hasattr(holder, attribute)


def need(S, *names):
    """Skip a test of what the script does not have."""
    for name in names:
        if not has(S, name):
            pytest.skip(f"the script has no {name}")


def on_policy(S):
    """Tell whether the script learns from rollouts, and has no replay buffer."""
    return "rollout_steps" in S.Args.__annotations__


def framed(S):
    """Tell whether the script learns from frames."""
    return hasattr(S, "make_games")


def environments(S, args, num_envs):
    """Return environments of args.env_id, and the sizes of an agent after that of observations.

    These are the number of actions, or the lowest and the highest one.
    """
    need(S, "make_games" if framed(S) else "make_envs")
    if framed(S):
        envs = S.make_games(args, num_envs)
        S.seed_everything(args.seed)
        return envs, envs.single_action_space.n
    envs = S.make_envs(args.env_id, num_envs)
    S.seed_everything(args.seed)
    sizes = S.box_sizes(envs, args.env_id)
    return envs, np.float32(sizes["low"]), np.float32(sizes["high"])


def apply(spaces, space):
    """Skip a test of a space that the script refuses."""
    if space not in spaces:
        pytest.skip(f"the script refuses tests.probe_envs:{SPACES[space]}")


def shown(spaces, words):
    """Name the toys that show frames, if the script learns from nothing else."""
    if not spaces & {"box", "pixels"}:
        pytest.skip("the script refuses all toys")
    frames = [re.sub(r"(tests\.toy_envs:\w+)-v0", r"\1-shown-v0", word) for word in words]
    return words if "box" in spaces else frames


def known(S, flags):
    """Return those of the flags that the script has."""
    return {name: value for name, value in flags.items() if name in S.Args.__annotations__}


def tiny(S, flags=TINY):
    """Return those of the flags in a text that the script has, with their values."""
    flags = [flag.split() for flag in flags.split("--")[1:]]
    names = [name.removeprefix("no-").replace("-", "_") for name, *_ in flags]
    pairs = zip(names, flags, strict=True)
    kept = [flag for name, flag in pairs if name in S.Args.__annotations__]
    return [word for name, *value in kept for word in (f"--{name}", *value)]


@contextmanager
def inside(folder):
    """Work in a folder; afterwards put back the old one, and what main sets.

    That is SIGTERM's handler, and the path of modules, to which main adds the folder.
    """
    handler = signal.getsignal(signal.SIGTERM)
    modules = [*sys.path]
    with chdir(folder):
        yield
    sys.path[:] = modules
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def spaces(S, tmp_path_factory):
    """Return which of SPACES the script takes: it refuses the others with exit code 2."""
    found = set()
    with inside(tmp_path_factory.mktemp("spaces")):
        for space, name in SPACES.items():
            flags = {"env_id": f"tests.probe_envs:{name}", "total_timesteps": 200, "run_dir": space}
            flags["learning_starts"] = 195  # few updates are enough
            try:
                S.main(S.Args(**known(S, LAB | flags)))
            except (Exception, SystemExit) as error:  # a script that fails is to fail in its tests
                if getattr(error, "code", 1) == 2:
                    continue
            found.add(space)
    return found


@pytest.fixture
def learn(S, request, tmp_path):
    """Train on a probe in an empty folder, with the flags of LAB that the script has."""

    def learn(name, total_timesteps, seed, **changes):
        steps = round(total_timesteps * request.config.getoption("probe_steps"))
        flags = {"env_id": f"tests.probe_envs:{name}-v0", "total_timesteps": steps}
        flags["seed"] = seed + request.config.getoption("add_to_seeds")
        flags["tau"] = LAB["tau"] * getattr(S.Args, "policy_delay", 1)  # as fast for all
        return S.main(S.Args(**known(S, LAB | flags | changes)))

    with inside(tmp_path):
        yield learn


@pytest.fixture
def train(S, spaces, tmp_path, monkeypatch):
    """Call main in this process, in an empty folder, with flags after those of TINY."""
    need(S, "parse_args")
    shown(spaces, [])
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    with inside(tmp_path):
        words = lambda flags: shown(spaces, [*tiny(S), *flags.split()])  # noqa: E731
        yield lambda flags="": S.main(S.parse_args(S.Args, words(flags)))
    if wandb := sys.modules.get("wandb"):  # None where a test forbids it
        wandb.teardown()  # it would keep to this folder


@pytest.fixture
def untried(S, monkeypatch):
    """Begin without the steps that show whether an environment works: a toy counts them, too."""
    monkeypatch.setattr(S, "try_out", lambda *inputs: None, raising=False)


def heed_signals():
    """Take signals in a process that is begun: behind a & or nohup they are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def launch(S, script, spaces):
    """Start the script as a user does: alone in a folder, in a process of its own."""
    need(S, "parse_args")
    shown(spaces, [])

    def launch(folder, flags, python="", **environ):
        shutil.copy(script, folder)
        environ = {key: value for key, value in (ENVIRON | environ).items() if value is not None}
        words = shown(spaces, [*tiny(S), *flags.split()])
        command = [sys.executable, *python.split(), script.name, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

        return subprocess.Popen(command, cwd=folder, env=environ, preexec_fn=heed_signals, **pipes)

    return launch


def finish(process):
    """Wait for a process, three minutes at most; return its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=180)
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
    saved = torch.load(Path(run) / "model.pt", weights_only=True)
    return saved.get("agent", saved.get("state"))


def same(one, other):
    """Tell whether two agents have the same bits."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def alike(one, other):
    """Tell whether two nests of lists, dictionaries and arrays are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def no_film(S, envs):
    """Return what an evaluation that is not filmed is given."""
    return S.Film(Path("film.mp4"), envs, wanted=False)


def warnings(out):
    """Return the lines that warn."""
    return [line for line in out.splitlines() if line.startswith("warning: ")]
