"""Say how fast trained robots walk: return, length and forward speed of deterministic episodes.

A return alone is no proof: standing still for 1,000 steps pays about 5,000 on Humanoid. The forward
speed is the mean over all steps of x_velocity in m/s, which MuJoCo's walkers tell in their infos.
A fall is an episode that was terminated, not cut by its time limit.

python tools/walk.py --file walk.json runs/sweep/ppo_continuous/Humanoid-v4/*     play, keep figures
python tools/walk.py --file walk.json                                             print the table
"""

import argparse
import importlib.util
import json
from pathlib import Path
from statistics import mean, pstdev

import gymnasium as gym
import numpy as np
from run_folders import find_runs, read_summary, refuse
from text_tables import markdown

FIRST_SEED = 10**6  # of the episodes, far from those of training


def load_agent(folder):
    """Return the agent of a run, by the script that trained it."""
    path = folder / "script.py"
    if not path.exists():
        refuse(f"{folder} has no script.py: name run folders")
    spec = importlib.util.spec_from_file_location("script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.Agent.load(folder)


def play(agent, env, seed):
    """Return an episode's return, length, forward speed and whether it ended in a fall."""
    obs, _ = env.reset(seed=seed)
    rewards, speeds, over = [], [], False
    while not over:
        obs, reward, terminated, truncated, info = env.step(agent.act(obs[None])[0])
        if "x_velocity" not in info:
            refuse(f"{env.spec.id} tells no x_velocity: name runs of walking robots of MuJoCo")
        rewards.append(float(reward))
        speeds.append(float(info["x_velocity"]))
        over = terminated or truncated
    return sum(rewards), len(rewards), mean(speeds), bool(terminated)


def measure(folder, episodes):
    """Return the figures of one run."""
    agent = load_agent(folder)
    env = gym.make(agent.args.env_id)
    found = [play(agent, env, FIRST_SEED + number) for number in range(episodes)]
    env.close()
    returns, lengths, speeds, falls = zip(*found, strict=True)
    return {
        "env_id": agent.args.env_id,
        "seed": agent.args.seed,
        "steps": read_summary(folder).get("global_step"),
        "returns": np.round(returns, 1).tolist(),
        "lengths": list(lengths),
        "speeds": np.round(speeds, 3).tolist(),
        "falls": sum(falls),
    }


def line(name, run):
    """Return the line of one run in the table."""
    return {
        "run": name,
        "environment": run["env_id"],
        "steps": f"{run['steps']:,}" if run["steps"] else "unfinished",
        "episodes": len(run["returns"]),
        "return (sd)": f"{mean(run['returns']):,.0f} ({pstdev(run['returns']):,.0f})",
        "steps of an episode": f"{mean(run['lengths']):.0f}",
        "forward speed, m/s": f"{mean(run['speeds']):.2f}",
        "falls": run["falls"],
    }


def main():
    """Play episodes of the runs that are named, and print the table of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="run folders, or folders of them")
    parser.add_argument("--file", type=Path, required=True, help="JSON file of all figures")
    parser.add_argument("--episodes", type=int, default=20, help="of each run")
    args = parser.parse_args()
    if args.episodes < 1:
        refuse("--episodes must be at least 1")
    figures = {}
    if args.file.exists():
        figures = json.loads(args.file.read_text())
    elif not args.runs:
        refuse(f"{args.file} is not there: name run folders to play")
    for folder in find_runs(args.runs):
        figures["/".join(folder.parts[-3:])] = measure(folder, args.episodes)
        args.file.write_text(json.dumps(figures, indent=1) + "\n")
    print(markdown([line(name, run) for name, run in sorted(figures.items())]))


if __name__ == "__main__":
    main()
