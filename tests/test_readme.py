"""What README.md and configs/ say of sac_continuous.py is so."""

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

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
OTHERS = {
    "help",
    "index-url",
    "logdir",
    "report",
    "script",
    "file",
}  # of tyro, pip, tensorboard, pytest, tools

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def sac():
    """Import sac_continuous.py, whatever --script names."""
    spec = importlib.util.spec_from_file_location("sac_of_readme", ROOT / "sac_continuous.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_glossary_has_every_metric_and_no_other(sac, tmp_path):
    args = sac.Args("InvertedPendulum-v4", 300, learning_starts=100, batch_size=32, hidden_size=16)
    args.threads, args.compile, args.capture_video, args.eval_episodes = 1, "off", False, 1
    args.log_every, args.eval_every, args.run_dir = 100, 150, str(tmp_path / "run")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        sac.main(args)
    finally:
        signal.signal(signal.SIGTERM, handler)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    glossary = README.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in glossary.splitlines() if line.startswith("| `")]
    listed = re.findall("`(.+?)`", " ".join(rows))
    assert sorted(listed) == sorted({key for line in lines for key in json.loads(line)})


def test_flags_exist(sac):
    kinds = sac.Args.__annotations__
    switches = {f"no-{name}" for name, kind in kinds.items() if kind is bool}
    known = {name.replace("_", "-") for name in {*kinds} | switches} | OTHERS
    assert {*re.findall(r"(?<![\w-])--([a-z][\w-]+)", README)} <= known


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/sac_*.toml")), ids=lambda p: p.stem)
def test_configs_are_accepted(sac, path):
    args = sac.parse_args(sac.Args, ["--config", str(path), "--seed", "7"])
    args.check()
    assert args.seed == 7 and args != sac.Args(config=str(path), seed=7)


def test_torch_adam_matches_adam(sac, monkeypatch):
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
    blank = buffer.unpack(torch.zeros(16, sum(buffer.widths))), torch.zeros(2, 16, 2)
    updates = [
        sac.prepare(one, "update", *blank)[1] for one in (ours, theirs)
    ]  # the trial leaves no trace
    for _ in range(10):
        batch = buffer.unpack(torch.randn(16, sum(buffer.widths)))
        noise = torch.randn(2, 16, 2)
        metrics = [update(batch, noise) for update in updates]
        torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
    for name, parameter in ours.named_parameters():
        assert not torch.equal(parameter, start.get_parameter(name)), f"{name} did not move"
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=0, atol=1e-6)
