"""Compare how many environment steps a second programs train, in turns on one machine.

Every program trains on speed:Counted-v0, which is the environment of --env-id with a counter (this
file is the module speed, which programs find by PYTHONPATH). Each is timed from its launch to
--first steps, in turns and --launches times, then stopped by a signal. Afterwards they go on in
turns, one at a time, a window of --seconds each and --windows rounds, so that a machine that slows
down slows all of them. The first program is the one that the others are compared with.

All steps count, so programs must not evaluate: one that does is refused. Each runs in an empty
folder of its own, and every launch finds nothing compiled; with --warm each was launched once
before, for the same steps, and finds in its caches what it compiled then. Words that name a file,
with a suffix or a slash, stand for the file that you see from where you are.

python tools/speed.py --file speed.json \\
    "ours=python sac_continuous.py --env-id speed:Counted-v0 --eval-every 0 --no-capture-video" \\
    "peer=python peer.py --env-id speed:Counted-v0"
python tools/speed.py --summary speed.json other.json    a line of ratios for each file
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import gymnasium as gym
import numpy as np

SETTLE = 3  # seconds of a window that are not counted, for caches and clocks
LOOK = 0.05  # seconds between two looks at the counters
STRIDE = 100  # steps of one environment in which all others that train take some, too
NEGLIGIBLE = 0.01  # share of steps that need not be training


# --- counting, in the programs --------------------------------------------------------------------
class Counted(gym.Wrapper):
    """Counts the steps of an environment in a file of its own, which the measuring process reads.

    No other process writes to that file: an environment that is copied to a process gets another.
    """

    def __init__(self, **options):
        gym.logger.min_level = gym.logger.ERROR
        super().__init__(gym.make(os.environ["SPEED_ENV"], disable_env_checker=True, **options))
        self.counting_process = None

    def step(self, action):
        """Step and count."""
        if self.counting_process != os.getpid():
            self.counting_process = os.getpid()
            self.counter = new_counter(os.environ["SPEED_COUNTERS"])
        self.counter[0] += 1
        return self.env.step(action)


def new_counter(folder):
    """Return a number in a new file of a folder."""
    handle, path = tempfile.mkstemp(dir=folder)
    os.truncate(handle, 8)
    os.close(handle)
    return np.memmap(path, np.int64, "r+")


gym.register("Counted-v0", Counted)


# --- counting, in the measuring process -----------------------------------------------------------
class Counters:
    """The counters of all environments of a program."""

    def __init__(self, folder):
        self.folder = folder
        self.files = {}  # by name

    def read(self):
        """Return the steps of every environment by the name of its file."""
        for path in self.folder.iterdir():
            if path.name not in self.files and path.stat().st_size:
                self.files[path.name] = np.memmap(path, np.int64, "r")
        return {name: int(file[0]) for name, file in self.files.items()}

    def total(self):
        """Return the steps of all environments."""
        return sum(self.read().values())


class Strides:
    """Detects evaluations, by the steps of each environment from look to look.

    All environments that train step at about the same rate. Where some stand still while another
    makes STRIDE steps, one of both evaluates. Two evaluations must be some looks apart.
    """

    def __init__(self, counts):
        self.start = counts
        self.last = counts  # at the end of the last stride
        self.always_stepping = None  # the environments that have stepped in every stride

    def add(self, counts):
        """Look at the counts; a stride ends when one environment has made enough steps."""
        moved = difference(counts, self.last)
        if max(moved.values(), default=0) < STRIDE:
            return
        stepped = {name for name, steps in moved.items() if steps}
        if self.always_stepping is None:
            self.always_stepping = stepped
        self.always_stepping &= stepped
        self.last = counts

    def share_not_training(self):
        """Return the share of steps in environments that have stood still while others stepped."""
        if self.always_stepping is None:
            return 0.0
        moved = difference(self.last, self.start)
        aside = sum(steps for name, steps in moved.items() if name not in self.always_stepping)
        return aside / sum(moved.values())


def difference(counts, before):
    """Return the steps that every environment has made since."""
    return {name: steps - before.get(name, 0) for name, steps in counts.items()}


# --- programs -------------------------------------------------------------------------------------
@dataclass
class Figures:
    """What was measured of a program, in steps per second."""

    command: str
    launches: list[float] = field(default_factory=list)  # from each launch on
    windows: list[float] = field(default_factory=list)


class Command(NamedTuple):
    """What is to be run, by its name in the table."""

    name: str
    text: str


def read_commands(texts):
    """Return the commands of texts "name=command", or exit with 2."""
    commands = []
    for text in texts:
        name, _, command = text.partition("=")
        try:
            words = shlex.split(command)
        except ValueError as error:
            refuse(f"{text} is no command ({error}): close what is quoted")
        if not (re.fullmatch(r"[\w. -]*\w[\w. -]*", name) and words):
            refuse(f"{text} is no program: write name=command")
        if name in [command.name for command in commands]:
            refuse(f"{name} is there twice: give each program a name of its own")
        commands.append(Command(name, command))
    return commands


def refuse(sentence):
    """Say what is wrong with the input and exit with 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def located(word):
    """Return a word of a command, with the whole path if it, or what is behind "=", is a file.

    A number is none, nor is a word without suffix or slash, whatever files there are.
    """
    flag, equals, value = word.rpartition("=")
    is_path = os.sep in value or re.search(r"\w\.[A-Za-z]\w*$", value)
    if is_path and not is_number(value) and os.path.isfile(value):
        return f"{flag}{equals}{os.path.abspath(value)}"
    return word


def is_number(word):
    """Tell whether a word is a number, such as 1.e6."""
    try:
        float(word)
    except ValueError:
        return False
    return True


class Program:
    """A training program in a folder of its own, perhaps several copies of it at a time."""

    def __init__(self, command, env_id, folder, copies):
        self.name, self.command = command
        self.env_id = env_id
        # not by its name: PyTorch compiles nothing where a path has a space
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.copies = copies
        self.processes = []

    def forget(self):
        """Take a new folder, without what was compiled: the old one may still be written to."""
        self.folder = Path(tempfile.mkdtemp(dir=self.folder.parent))

    def launch(self):
        """Start all copies, whose steps are counted from here on."""
        self.start = time.perf_counter()
        self.counters = []
        self.processes = []
        for copy in range(self.copies):
            folder = self.folder / f"counters{copy}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self.counters.append(Counters(folder))
            self.processes.append(self.start_one(folder, self.log(copy)))

    def start_one(self, counters, log):
        """Return a process of the program in a process group of its own."""
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        (self.folder / "tmp").mkdir(exist_ok=True)
        environ = {
            "PYTHONPATH": os.pathsep.join(paths),
            "SPEED_ENV": self.env_id,
            "SPEED_COUNTERS": str(counters),
            # what was compiled: empty at the first launch, as is TMPDIR, where PyTorch keeps the
            # C++ headers that it has compiled, whatever else is set
            "TMPDIR": str(self.folder / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        words = [located(word) for word in shlex.split(self.command)]
        try:
            with open(log, "w") as file:
                return subprocess.Popen(
                    words,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environ,
                    cwd=self.folder,
                    start_new_session=True,
                )
        except OSError as error:
            refuse(f"{self.name} cannot be started ({error}): name an installed program")

    def log(self, copy):
        """Return the file of what a copy prints."""
        return self.folder / f"log{copy}"

    def send(self, number):
        """Send a signal to all processes of the program."""
        for copy, process in enumerate(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, number)
            elif number != signal.SIGKILL:
                said = self.log(copy).read_text(errors="replace").splitlines()[-1:]
                raise SystemExit(f"error: {self.name} has ended: {' '.join(said)}")

    def stop(self):
        """End all processes of the program."""
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def steps(self):
        """Return the steps of all copies so far."""
        return sum(counters.total() for counters in self.counters)

    def first(self, steps):
        """Return steps per second from the launch to that many steps."""
        strides = [Strides({}) for _ in self.counters]
        while self.steps() < steps:
            self.send(0)  # no signal: fails if the program has ended
            self.look(strides)
            time.sleep(LOOK)
        made = self.steps()
        seconds = time.perf_counter() - self.start
        self.refuse_evaluations(strides)
        return made / seconds

    def window(self, seconds):
        """Go on for a while and return steps per second."""
        self.send(signal.SIGCONT)
        time.sleep(SETTLE)
        before = self.steps()
        strides = [Strides(counters.read()) for counters in self.counters]
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            time.sleep(LOOK)
            self.look(strides)
        made = self.steps() - before
        passed = time.perf_counter() - start
        self.send(signal.SIGSTOP)
        self.refuse_evaluations(strides)
        return made / passed

    def look(self, strides):
        """Look at the counts of every copy, which are as fast as one another by chance only."""
        for one, counters in zip(strides, self.counters, strict=True):
            one.add(counters.read())

    def refuse_evaluations(self, strides):
        """Exit with 2 if steps were made that did not train."""
        if max(one.share_not_training() for one in strides) > NEGLIGIBLE:
            refuse(
                f"{self.name} has environments that stand still while others step, as in "
                "evaluations, whose steps do not count: turn these off (here by --eval-every 0)"
            )


# --- measuring ------------------------------------------------------------------------------------
def measure(args, commands):
    """Write the figures of all programs to the file, after every window."""
    programs = {}
    running = []
    found = {
        "env_id": args.env_id,
        "first": args.first,
        "seconds": args.seconds,
        "copies": args.copies,
        "warm": args.warm,
        "programs": programs,
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "date": time.strftime("%F"),
        "note": args.note,
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            for command in commands:
                program = Program(command, args.env_id, folder, args.copies)
                running.append(program)
                programs[program.name] = asdict(Figures(program.command))
                if args.warm:
                    program.launch()
                    program.first(args.first)
                    program.stop()
            for _ in range(args.launches):
                for program in running:
                    program.stop()
                    if not args.warm:
                        program.forget()
                    program.launch()
                    rate = program.first(args.first)
                    program.send(signal.SIGSTOP)
                    programs[program.name]["launches"].append(rate)
                    write(args.file, found)
                    print(f"{program.name}: {rate:.1f} steps/s with start-up", file=sys.stderr)
            for _ in range(args.windows):
                for program in running:
                    rate = program.window(args.seconds)
                    programs[program.name]["windows"].append(rate)
                    write(args.file, found)
                    print(f"{program.name}: {rate:.1f} steps/s", file=sys.stderr)
        finally:
            for program in running:
                program.stop()


def write(file, found):
    """Write all figures so far."""
    file.write_text(json.dumps(found, indent=1) + "\n")


# --- the tables -----------------------------------------------------------------------------------
def read_figures(flag, file):
    """Return what is in a file that this tool wrote."""
    try:
        found = json.loads(file.read_text())
        describe(found)  # whatever is missing is missed here
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        refuse(f"{flag} {file} holds no figures ({error!r:.100}): name what this tool wrote")
    return found


def figures(found):
    """Return the figures of all programs by name, those of complete rounds alone."""
    programs = {name: Figures(**one) for name, one in found["programs"].items()}
    launches = min(len(one.launches) for one in programs.values())
    windows = min(len(one.windows) for one in programs.values())
    for one in programs.values():
        del one.launches[launches:]
        del one.windows[windows:]
    return programs


def describe(found):
    """Return all figures in Markdown: medians of the windows, with the range in brackets."""
    programs = figures(found)
    ours = next(iter(programs.values()))
    launch = "launch, compiled before," if found.get("warm") else "launch"
    ratio = f"{next(iter(programs))} / this"
    columns = ["program", f"{launch} to step {found['first']:,}", ratio]
    columns += [f"after step {found['first']:,}", ratio] if ours.windows else []
    lines = [
        *textwrap.wrap(what_was_measured(found, ours), 120),
        "",
        " | ".join(columns),
        "|".join(["---"] * len(columns)),
    ]
    for name, one in programs.items():
        cells = [name, spread(one.launches, digits=0)]
        cells.append(spread(ratios(ours.launches, one.launches), digits=2))
        if ours.windows:
            cells.append(spread(one.windows, digits=0))
            cells.append(spread(ratios(ours.windows, one.windows), digits=2))
        lines.append(" | ".join(cells))
    where = f"{found['date']}, {found['cpus']} CPUs, {found['system']}"
    load = f"load of the minute before: {found['load']:.1f}"
    lines += ["", *textwrap.wrap(f"{where}, {load}. {found['note']}".strip(), 120)]
    lines += ["", "Commands:", ""]
    lines += [f"    {name}: {one.command}" for name, one in programs.items()]
    return "\n".join(lines)


def what_was_measured(found, ours):
    """Return a sentence on the columns of the table."""
    copies = found.get("copies", 1)
    text = f"{found['env_id']}, steps/s"
    text += f" of {copies} copies at a time" if copies > 1 else ""
    spans = []
    if len(ours.launches) > 1:
        spans.append(f"{len(ours.launches)} launches")
    if ours.windows:
        spans.append(f"{len(ours.windows)} windows of {found['seconds']:.0f} s")
    if spans:
        text += f": median and range of {' and of '.join(spans)} in turns. "
        text += "Ratios are taken in each round, so their median need not be that of the rates"
    return f"{text}."


def ratios(ours, peer):
    """Return how many times the peer's rate the first program's was, in each round."""
    return [a / b for a, b in zip(ours, peer, strict=True)]


def summarise(files):
    """Return a table of ratios in Markdown, a line for each file and a column for each peer."""
    files = [figures(file) for file in files]
    peers = sorted({name for programs in files for name in list(programs)[1:]})
    lines = [
        f"| program | steps/s | {' | '.join(f'times {peer}' for peer in peers)} |",
        "|---|---" + "|---" * len(peers) + "|",
    ]
    for programs in files:
        ours = next(iter(programs.values()))
        cells = [short_command(ours.command), spread(ours.windows, digits=0)]
        for peer in peers:
            if peer in programs:
                rates = ratios(ours.windows, programs[peer].windows)
                cells.append(spread(rates, digits=2))
            else:
                cells.append("not run")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short_command(command):
    """Return the script of a command, and its environments and workers if the command says so."""
    words = shlex.split(command)
    text = next((word for word in words if word.endswith(".py")), words[0])
    for flag in ["--num-envs", "--num-workers"]:
        if flag in words:
            text += f" {flag} {words[words.index(flag) + 1]}"
    return f"`{text}`"


def spread(values, digits):
    """Write the median, and the range in brackets if there are several."""
    if not values:
        return "none"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main():
    """Measure all programs, write all figures, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", help="name=command; none: print the table of --file")
    parser.add_argument("--env-id", default="Hopper-v4")
    parser.add_argument("--first", type=int, default=10_000, help="steps of the first measurement")
    parser.add_argument("--launches", type=int, default=1, help="rounds of it")
    parser.add_argument("--windows", type=int, default=5, help="rounds after that")
    parser.add_argument("--seconds", type=float, default=30, help="length of a window")
    parser.add_argument("--note", default="", help="versions and the like, kept beside the figures")
    parser.add_argument("--copies", type=int, default=1, help="of a program that run at a time")
    parser.add_argument("--warm", action="store_true", help="each is launched once before")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--file", type=Path, help="JSON file of all figures")
    where.add_argument(
        "--summary", type=Path, nargs="+", metavar="FILE", help="such files to sum up"
    )
    args = parser.parse_args()
    for name in ("first", "launches", "seconds", "copies"):
        if getattr(args, name) <= 0:
            refuse(f"--{name} must be positive: leave it out for {parser.get_default(name)}")
    if args.windows < 0:
        refuse("--windows must not be negative: 0 measures from the launch alone")
    if args.programs and args.summary:
        refuse("--summary measures no programs: name a --file for their figures")
    if args.programs:
        commands = read_commands(args.programs)
        place = args.file if args.file.exists() else args.file.parent
        if args.file.is_dir() or not os.access(place, os.W_OK):
            refuse(f"--file {args.file} cannot be written: name a file in a folder that exists")
        for number in (signal.SIGTERM, signal.SIGHUP):  # leave no stopped process
            if signal.getsignal(number) != signal.SIG_IGN:  # which nohup asks for
                signal.signal(number, signal.default_int_handler)
        measure(args, commands)
    if args.summary:
        print(summarise([read_figures("--summary", file) for file in args.summary]))
    else:
        print(describe(read_figures("--file", args.file)))


if __name__ == "__main__":
    main()
