"""Measure what checkpoints of a full replay buffer cost: bytes, seconds, seconds to resume.

For each environment the script fills its buffer by random actions, since for a checkpoint it does
not matter what a row holds. Then it is killed and resumed. All figures come from the run's own
metrics and files, so that no script is imported.

python tools/checkpoints.py --file results/checkpoints.json Hopper-v4 Humanoid-v4   measure
python tools/checkpoints.py --file results/checkpoints.json                         print the table
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def command(script, env_id, rows, every, folder):
    """Return the command of a run that fills a buffer and goes on for some checkpoints."""
    total = rows + 100 * every  # more than is waited for
    return [
        sys.executable,
        script,
        *("--env-id", env_id, "--run-dir", str(folder)),
        *("--buffer-size", str(rows), "--learning-starts", str(total - 1), "--total-timesteps"),
        *(str(total), "--checkpoint-every", str(every), "--log-every", str(every)),
        *("--eval-every", "0", "--compile", "off", "--threads", "1"),
    ]


def rows_of(folder):
    """Return the rows of metrics that are there."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if "charts/SPS" in row]


def wait_for_step(process, folder, step):
    """Wait until a row of metrics of that step is there."""
    while not rows_of(folder) or rows_of(folder)[-1]["global_step"] < step:
        if process.poll() is not None:
            raise SystemExit(f"error: the run has ended with {process.returncode}")
        time.sleep(2)


def measure(script, env_id, rows, every):
    """Return the figures of one environment."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "run")
        words = command(script, env_id, rows, every, folder)
        log = open(Path(parent, "log"), "w")  # noqa: SIM115
        process = subprocess.Popen(words, stdout=log, stderr=log)
        wait_for_step(process, folder, rows + 4 * every)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = rows_of(folder)
        seconds = []
        for before, row in zip(found, found[1:], strict=False):
            spent = row["seconds"] - before["seconds"]
            # the checkpoint of a step is made after its row, and so counts in the next one
            if before["global_step"] > rows:
                seconds.append(row["time/checkpoint"] * spent)
        sizes = {path.name: path.stat().st_size for path in (folder / "checkpoint").iterdir()}
        start = time.perf_counter()
        again = [sys.executable, script, "--resume", str(folder)]
        process = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in process.stdout:
            if line.startswith("going on"):
                break
        else:
            log.flush()
            words = Path(log.name).read_text().strip()[-500:]
            raise SystemExit(f"error: {env_id} did not go on with --resume: {words}")
        resumed = time.perf_counter() - start
        process.kill()
        process.wait()
    return {"rows": rows, "every": every, "seconds": seconds, "sizes": sizes, "resume": resumed}


def describe(found):
    """Return all figures in Markdown."""
    lines = [f"{found['date']}, {found['cpus']} CPUs, {found['system']}", ""]
    lines.append("| environment | stored rows | state.pt | rows of the buffer | new rows |")
    lines[-1] += " seconds a checkpoint | seconds from launch to the first step after --resume |"
    lines.append("|---|---|---|---|---|---|---|")
    for env_id, one in found["environments"].items():
        low, middle, high = (f"{f(one['seconds']):.2f}" for f in (min, median, max))
        state = one["sizes"]["state.pt"] / 1e6
        rows = sum(size for name, size in one["sizes"].items() if name != "state.pt") / 1e6
        cells = [
            env_id,
            f"{one['rows']:,}",
            f"{state:.1f} MB",
            f"{rows:,.0f} MB",
            f"{one['every']:,}",
        ]
        cells += [f"{middle} ({low} to {high})", f"{one['resume']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    """Measure the environments named, write all figures, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", nargs="*", help="none: print the table of --file")
    parser.add_argument("--script", default="sac_continuous.py", help="with a replay buffer")
    parser.add_argument("--rows", type=int, default=1_000_000, help="that the buffer holds")
    help = "transitions between checkpoints; default: that of a run of a million"
    parser.add_argument("--every", type=int, default=50_000, help=help)
    parser.add_argument("--file", type=Path, required=True, help="JSON file of all figures")
    args = parser.parse_args()
    if args.environments:
        found = {"date": time.strftime("%F"), "cpus": os.cpu_count(), "environments": {}}
        found["system"] = platform.platform()
        for env_id in args.environments:
            found["environments"][env_id] = measure(args.script, env_id, args.rows, args.every)
            args.file.write_text(json.dumps(found, indent=1) + "\n")
    print(describe(json.loads(args.file.read_text())))


if __name__ == "__main__":
    main()
