"""Say how fast trained robots walk: return, length and forward speed of deterministic episodes.

A return alone is no proof: standing still for 1,000 steps pays about 5,000 on Humanoid. The forward
speed is the mean over all steps of x_velocity in m/s, which MuJoCo's walkers report in info. A fall
is an episode that was terminated, not cut by its time limit.

To play, it runs script.py of the run folders: name only folders that you trust.

python tools/walk.py --file walk.json runs/sweep/ppo_continuous/Humanoid-v4/*     play, keep figures
python tools/walk.py --file walk.json                                             print the table
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from statistics import mean, pstdev

import gymnasium as gym
import numpy as np
from run_folders import (
    NoRun,
    find_runs,
    read_all,
    read_summary,
    reason_of,
    refuse,
    write_whole,
)
from text_tables import markdown

FIRST_SEED = 10**6  # of the episodes, far from those of training


# --- playing --------------------------------------------------------------------------------------
def load_agent(folder):
    """Return the agent of a run, by the script that trained it."""
    if not (folder / "script.py").exists():
        raise NoRun("it has no script.py, so its agent cannot be loaded")
    if not (folder / "model.pt").exists() and not (folder / "checkpoint" / "state.pt").exists():
        raise NoRun("it has no model.pt, and no checkpoint yet")
    spec = importlib.util.spec_from_file_location("walking_script", folder / "script.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    try:
        spec.loader.exec_module(script)
        return script.Agent.load(folder)
    except (Exception, SystemExit) as error:  # it is anybody's code
        raise NoRun(f"its agent cannot be loaded: {error!r:.200}") from None


def play(agent, env, seed):
    """Return an episode's return, length, forward speed and whether it ended in a fall."""
    obs, _ = env.reset(seed=seed)
    rewards, speeds, over = [], [], False
    while not over:
        obs, reward, terminated, truncated, info = env.step(agent.act(obs[None])[0])
        if "x_velocity" not in info:
            raise NoRun(f"{env.spec.id} reports no x_velocity, as MuJoCo's walking robots do")
        rewards.append(float(reward))
        speeds.append(float(info["x_velocity"]))
        over = terminated or truncated
    return sum(rewards), len(rewards), mean(speeds), bool(terminated)


def measure(folder, episodes):
    """Return the figures of one run."""
    summary = read_summary(folder)
    agent = load_agent(folder)
    try:
        env = gym.make(agent.args.env_id)
    except Exception as error:  # whatever an environment raises
        raise NoRun(f"{agent.args.env_id} cannot be made: {error!r:.200}") from None
    found = [play(agent, env, FIRST_SEED + number) for number in range(episodes)]
    env.close()
    returns, lengths, speeds, falls = zip(*found, strict=True)
    return {
        "env_id": agent.args.env_id,
        "status": summary.get("status", "unfinished"),
        "steps": summary.get("global_step", 0),
        "returns": np.round(returns, 1).tolist(),
        "lengths": list(lengths),
        "speeds": np.round(speeds, 3).tolist(),
        "falls": sum(falls),
    }


# --- figures --------------------------------------------------------------------------------------
def read_figures(path):
    """Return the figures of a file, by run."""
    try:
        figures = json.loads(path.read_text("utf-8"))
        table(figures)
    except (OSError, ValueError) as error:
        refuse(f"--file {path} cannot be read ({reason_of(error)}): name another")
    except (AttributeError, LookupError, TypeError):
        refuse(f"--file {path} holds no figures of this tool: name another")
    return figures


def table(figures):
    """Return the table of all runs in Markdown."""
    return markdown([line(name, run) for name, run in sorted(figures.items())])


def line(name, run):
    """Return the line of one run in the table."""
    steps = f"{run['steps']:,}" if run["steps"] else "unknown"
    if run["status"] != "finished":
        steps += f", {run['status']}"
    return {
        "run": name,
        "environment": run["env_id"],
        "steps": steps,
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
    if not args.file.exists() and not args.runs:
        refuse(f"--file {args.file} is not there: name run folders to play")
    if not os.access(args.file.absolute().parent, os.W_OK):  # before hours of playing, not after
        refuse(f"--file {args.file} cannot be written: name another")
    figures = read_figures(args.file) if args.file.exists() else {}

    def play_and_keep(folder):
        figures[os.path.relpath(folder)] = measure(folder, args.episodes)
        try:
            write_whole(args.file, json.dumps(figures, indent=1) + "\n")
        except OSError as error:
            refuse(f"--file {args.file} cannot be written ({reason_of(error)}): name another")

    if args.runs:
        read_all(find_runs(args.runs), play_and_keep, "not played")
    print(table(figures))


if __name__ == "__main__":
    main()
