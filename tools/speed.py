"""Compare how many environment steps a second programs train, in turns on one machine.

Every program trains on speed:Counted-v0, which is the environment of --env-id with a counter. Each
is timed from its launch to --first steps, then stopped by a signal. Afterwards they go on in turns,
one at a time, a window of --seconds each and --windows rounds, so that a machine that slows down
slows all of them. The first program is the one that the others are compared with.

python tools/speed.py --file speed.json "ours=python sac_continuous.py --env-id speed:Counted-v0" \\
                                        "peer=python peer.py --env-id speed:Counted-v0"
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import gymnasium as gym
import numpy as np

SETTLE = 3  # seconds of a window that are not counted, for caches and clocks


class Counted(gym.Wrapper):
    """Counts the steps of an environment in a file that the measuring process reads."""

    def __init__(self, **options):
        gym.logger.min_level = gym.logger.ERROR
        super().__init__(gym.make(os.environ["SPEED_ENV"], disable_env_checker=True, **options))
        self.counter = np.memmap(os.environ["SPEED_COUNTER"], np.int64, "r+")

    def step(self, action):
        """Step and count."""
        self.counter[0] += 1
        return self.env.step(action)


gym.register("Counted-v0", Counted)


class Program:
    """A training program in a folder and a process group of its own."""

    def __init__(self, text, env_id, folder):
        self.name, _, self.command = text.partition("=")
        self.folder = Path(folder, self.name)
        self.folder.mkdir()
        self.counter = np.memmap(self.folder / "counter", np.int64, "w+", shape=1)
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environ = {"PYTHONPATH": os.pathsep.join(paths), "SPEED_ENV": env_id}
        environ |= {"SPEED_COUNTER": str(self.folder / "counter")}
        environ |= {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor")}  # all start cold
        log = open(self.folder / "log", "w")  # noqa: SIM115
        command, streams = shlex.split(self.command), {"stdout": log, "stderr": subprocess.STDOUT}
        command = [os.path.abspath(word) if os.path.exists(word) else word for word in command]
        options = {"env": os.environ | environ, "cwd": self.folder, "start_new_session": True}
        self.start = time.perf_counter()
        self.process = subprocess.Popen(command, **streams, **options)

    def send(self, number):
        """Send a signal to all processes of the program."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        elif number != signal.SIGKILL:
            said = (self.folder / "log").read_text().splitlines()[-1:]
            raise SystemExit(f"error: {self.name} has ended: {' '.join(said)}")

    def first(self, steps):
        """Return steps per second from the launch to that many steps."""
        while self.counter[0] < steps:
            self.send(0)
            time.sleep(0.01)
        return float(self.counter[0] / (time.perf_counter() - self.start))

    def window(self, seconds):
        """Go on for a while and return steps per second."""
        self.send(signal.SIGCONT)
        time.sleep(SETTLE)
        steps, start = int(self.counter[0]), time.perf_counter()
        time.sleep(seconds)
        found = (int(self.counter[0]) - steps) / (time.perf_counter() - start)
        self.send(signal.SIGSTOP)
        return found


def describe(found):
    """Return all figures in Markdown: medians of the windows, with the range in brackets."""
    ours, lines = next(iter(found["programs"].values())), [f"# Speed on {found['env_id']}", ""]
    lines += [f"{found['date']}, {found['cpus']} CPUs, {found['system']}, load before the start"]
    lines += [f"{found['load']:.1f}. {found['note']}".strip()]
    windows = f"{len(ours['windows'])} windows of {found['seconds']:.0f} s in turns"
    lines += [
        "",
        f"steps/s; median and range of {windows}; ratio of the first program's to this",
        "",
    ]
    lines += [f"program | launch to step {found['first']:,} | ratio | after it | ratio"]
    lines += ["---|---|---|---|---"]
    for name, one in found["programs"].items():
        ratios = [a / b for a, b in zip(ours["windows"], one["windows"], strict=False)]
        cells = [name, f"{one['first']:.0f}", f"{ours['first'] / one['first']:.2f}"]
        for values, digits in ((one["windows"], 0), (ratios, 2)):
            low, middle, high = (f"{f(values):.{digits}f}" for f in (min, median, max))
            cells.append(f"{middle} ({low} to {high})")
        lines.append(" | ".join(cells))
    commands = [f"    {name}: {one['command']}" for name, one in found["programs"].items()]
    return "\n".join([*lines, "", "Commands:", "", *commands])


def measure(args):
    """Write the figures of all programs to the file, after every window."""
    found = {"env_id": args.env_id, "first": args.first, "seconds": args.seconds, "programs": {}}
    found |= {"system": platform.platform(), "cpus": os.cpu_count(), "date": time.strftime("%F")}
    found |= {"note": args.note, "load": os.getloadavg()[0]}
    running = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for text in args.programs:
                running.append(Program(text, args.env_id, folder))
                first = running[-1].first(args.first)
                running[-1].send(signal.SIGSTOP)
                one = {"command": running[-1].command, "first": first, "windows": []}
                found["programs"][running[-1].name] = one
                print(f"{running[-1].name}: {first:.1f} steps/s with start-up", file=sys.stderr)
            for _ in range(args.windows):
                for program in running:
                    rate = program.window(args.seconds)
                    found["programs"][program.name]["windows"].append(rate)
                    args.file.write_text(json.dumps(found, indent=1) + "\n")
                    print(f"{program.name}: {rate:.1f} steps/s", file=sys.stderr)
        finally:
            for program in running:
                program.send(signal.SIGKILL)
                program.process.wait()


def main():
    """Measure all programs, write all figures, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", help="name=command; none: print the table of --file")
    parser.add_argument("--env-id", default="Hopper-v4")
    parser.add_argument("--first", type=int, default=10_000, help="steps of the first measurement")
    parser.add_argument("--windows", type=int, default=5, help="rounds after that")
    parser.add_argument("--seconds", type=float, default=30, help="length of a window")
    parser.add_argument("--note", default="", help="versions and the like, kept beside the figures")
    parser.add_argument("--file", type=Path, required=True, help="JSON file of all figures")
    args = parser.parse_args()
    if args.programs:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no stopped process
        measure(args)
    print(describe(json.loads(args.file.read_text())))


if __name__ == "__main__":
    main()
