"""What README.md and configs/ say of the scripts is so."""

import importlib.util
import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import framed, known
from tests.reference import learners, prepared

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
OTHERS = {
    "help",
    "index-url",
    "logdir",
    "report",
    "readme",
    "plots",
    "script",
    "file",
}  # of tyro, pip, tensorboard, pytest, tools

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def scripts():
    """Import all scripts of ours, whatever --script names."""
    found = []
    for path in sorted([*ROOT.glob("*_continuous.py"), ROOT / "dqn_atari.py"]):
        spec = importlib.util.spec_from_file_location(f"{path.stem}_of_readme", path)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    yield found
    for module in found:
        del sys.modules[module.__name__]


@pytest.mark.quick
def test_defaults_of_ppo_are_those_that_were_measured(scripts):
    args = next(script.Args() for script in scripts if script.__name__.startswith("ppo"))
    sentence = f"**{args.num_envs} environments and an initial log_std of {args.log_std_init}**"
    assert sentence in README and args.rollout_steps // args.num_envs == 32


def test_glossary_has_every_metric_and_no_other(scripts, tmp_path):
    handler, lines = signal.getsignal(signal.SIGTERM), []
    for script in scripts:
        sizes = {"learning_starts": 100, "batch_size": 32, "rollout_steps": 96, "num_envs": 1}
        sizes["buffer_size"] = 1000
        name = "tests.probe_envs:MatchPixels-v0" if framed(script) else "InvertedPendulum-v4"
        args = script.Args(name, 300, **known(script, sizes))
        args.threads, args.compile, args.capture_video, args.eval_episodes = 1, "off", False, 1
        args.log_every, args.eval_every = 100, 150
        args.run_dir = str(tmp_path / script.__name__)
        try:
            script.main(args)
        finally:
            signal.signal(signal.SIGTERM, handler)
        lines += Path(args.run_dir, "metrics.jsonl").read_text().splitlines()
    glossary = README.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in glossary.splitlines() if line.startswith("| `")]
    listed = re.findall("`(.+?)`", " ".join(rows))
    assert sorted(listed) == sorted({key for line in lines for key in json.loads(line)})


def test_flags_exist(scripts):
    kinds = {k: v for script in scripts for k, v in script.Args.__annotations__.items()}
    switches = {f"no-{name}" for name, kind in kinds.items() if kind is bool}
    known = {name.replace("_", "-") for name in {*kinds} | switches} | OTHERS
    assert {*re.findall(r"(?<![\w-])--([a-z][\w-]+)", README)} <= known


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.toml")), ids=lambda p: p.stem)
def test_configs_are_accepted(scripts, path):
    method = path.stem.split("_")[0]
    script = next(script for script in scripts if script.__name__.startswith(method))
    args = script.parse_args(script.Args, ["--config", str(path), "--seed", "7"])
    script.check(args) if hasattr(script, "check") else args.check()
    assert args.seed == 7 and args != script.Args(config=str(path), seed=7)


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_torch_adam_matches_adam(scripts, name, monkeypatch):
    sac = next(script for script in scripts if script.__name__.startswith(name))
    (block,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    names = {"torch": torch, "nn": nn}
    exec(block, names)

    def agent():
        torch.manual_seed(0)
        return sac.Agent(
            sac.Args(hidden_size=32, compile="off"), 5, *np.float32([[-1, -1], [1, 1]])
        )

    ours, start = agent(), agent()
    monkeypatch.setattr(sac, "Adam", names["TorchAdam"])
    theirs = agent()
    assert type(ours.actor_opt) is not type(theirs.actor_opt)
    buffer = sac.ReplayBuffer(1, 5, 2, "cpu")
    blank = learners(sac, buffer.unpack(torch.zeros(16, sum(buffer.widths))), torch.zeros(2, 16, 2))
    updates = {  # the trial leaves no trace
        method: [prepared(sac, one, method, *inputs)[1] for one in (ours, theirs)]
        for method, inputs in blank.items()
    }
    for _ in range(10):
        batch = buffer.unpack(torch.randn(16, sum(buffer.widths)))
        for method, inputs in learners(sac, batch, torch.randn(2, 16, 2)).items():
            metrics = [update(*inputs) for update in updates[method]]
            torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
    actions = [one.act(np.ones((3, 5))) for one in (ours, theirs)]
    np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-5)
    for name, parameter in ours.named_parameters():
        assert not torch.equal(parameter, start.get_parameter(name)), f"{name} did not move"
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=0, atol=1e-6)
