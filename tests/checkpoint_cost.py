"""What checkpoints cost in a run of a million transitions: python tests/checkpoint_cost.py.

A buffer is filled in parts of 50,000 transitions. After each a checkpoint is written, synced to
the disk, with an episode of 1,000 actions to keep; then a resumed run reads all of it. The share
is that of a run at the steps/s given: --sps Hopper-v4=134 Humanoid-v4=71.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sac_continuous as S

PART = 50_000


def start(flags):
    """Return a run that has begun."""
    args = S.parse_args(S.Args, flags)
    envs, low, high = S.make_envs(args.env_id, 1, args.seed)
    obs_dim = envs.single_observation_space.shape[0]
    args = S.resolve(args, "cpu", 4 * (2 * obs_dim + low.size + 2))
    buffer = S.ReplayBuffer(args.buffer_size, obs_dim, low.size, args.device)
    return S.Run(args, S.Agent(args, obs_dim, low, high, args.device), envs, buffer)


def measure(env_id, sps, folder):
    """Return a row of the table."""
    run = start(["--env-id", env_id, "--run-dir", str(folder), "--device", "cpu"])
    assert run.args.checkpoint_every == PART
    run.buffer.rows.normal_()
    obs, spent = run.begin(), []
    for number in range(1, 20):  # the run's last one is not resumed
        run.buffer.added = run.global_step = number * PART
        run.actions = [[np.zeros(run.agent.low.shape, np.float32)] * 1000]
        began = time.perf_counter()
        run.save(obs)
        spent.append(time.perf_counter() - began)
    files = [*folder.glob("model.pt"), *sorted(folder.glob("checkpoint/*"))]
    new = sum(path.stat().st_size for path in (files[0], files[-1]))
    total = sum(path.stat().st_size for path in files)
    run.file.close()
    began = time.perf_counter()
    again = start(["--resume", str(folder)])
    read = time.perf_counter() - began
    assert torch.equal(again.buffer.rows[: 19 * PART], run.buffer.rows[: 19 * PART])
    share = np.median(spent) / (PART / sps)
    figures = f"{new / 1e6:.0f} MB | {np.median(spent):.2f} ({min(spent):.2f} to {max(spent):.2f})"
    share = f"{share:.3%} at {sps:.0f} steps/s"
    return f"{env_id} | {figures} | {share} | {total / 1e9:.2f} GB | {read:.1f}"


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--sps", nargs="+", default=["Hopper-v4=134", "Humanoid-v4=71"])
with tempfile.TemporaryDirectory(dir=".") as folder:
    rows = [
        measure(env_id, float(sps), Path(folder, env_id))
        for env_id, sps in (pair.split("=") for pair in parser.parse_args().sps)
    ]
print("environment | written | seconds | share of the run | on disk at 950,000 | seconds to read")
print("---|---|---|---|---|---")
print("\n".join(rows))
