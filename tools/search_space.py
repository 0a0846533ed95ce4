"""What tune.py is to search: its TOML file, read and checked strictly (see tune.py --help).

What only the script knows, such as the type of a flag and whether there is such an environment, the
script itself is asked: it is started for a moment, before the first trial.
"""

import difflib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from changes import same
from run_folders import (
    ROOT,
    flag_words,
    is_number,
    read_defaults,
    reason_of,
    refuse,
    say,
)

KEYS = ("script", "env_id", "total_timesteps", "seeds", "fresh_seeds", "search", "fixed")
NEEDED_KEYS = ("script", "env_id", "total_timesteps", "search")
RANGE_KEYS = ("low", "high", "log", "step")
SEEDS = [1, 2, 3]
FRESH_SEEDS = [101, 102, 103, 104, 105]
LEAST_FRESH_SEEDS = 5  # with fewer no permutation test gives p < 0.05
PATIENCE = 60  # seconds after which a script that says nothing is taken to have begun
LEAST_STEPS = 20  # as many as there are points at which a trial is held against others
EXAMPLE = "{ low = 1e-4, high = 1e-2, log = true } or { choices = [0.9, 0.99] }"

# Flags that are not for [search] and [fixed], and why
SET_BY_KEYS = dict.fromkeys(("env_id", "total_timesteps"), "belongs to the top of the file")
SET_BY_KEYS["seed"] = "is set by seeds and fresh_seeds at the top of the file"
SET_BY_US = dict.fromkeys(("threads", "capture_video", "run_dir", "resume"), "is set by tune.py")
SENSELESS = {"config": "is not possible: write its settings into [fixed]"}
SENSELESS["evaluate"] = "is not possible: it does not train"
NOT_FREE = SET_BY_KEYS | SET_BY_US | SENSELESS


def require(condition, sentence):
    """Refuse unless the condition holds."""
    if not condition:
        refuse(sentence)


# --- what a file says -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Parameter:
    """A flag whose value is searched: one of the choices, or a number from low to high."""

    name: str
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None

    def suggest(self, trial):
        """Return the value in a trial of Optuna; drawn once, and the same ever after."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int):
            step = self.step or 1
            return trial.suggest_int(self.name, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value):
        """Tell whether a value is one of those that are searched."""
        if self.choices:
            return any(same(value, choice) for choice in self.choices)
        if not is_finite(value) or not self.low <= value <= self.high:
            return False
        grid = 1 if isinstance(self.low, int) else None
        grid = self.step or grid
        if not grid:
            return True
        steps = (value - self.low) / grid
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def ends(self):
        """Return the choices, or the lowest and the highest value."""
        if self.choices:
            return self.choices
        if not self.step:
            return (self.low, self.high)
        steps = math.floor((self.high - self.low) / self.step + 1e-9)
        return (self.low, self.low + steps * self.step)

    def as_searched(self, value):
        """Return a value as the choices have it: "3" for 3."""
        return next((choice for choice in self.choices if same(value, choice)), value)

    def __str__(self):
        if self.choices:
            return f"{self.name} in {', '.join(map(str, self.choices))}"
        words = f"{self.name} from {self.low} to {self.high}"
        if self.log:
            words += ", logarithmic"
        if self.step:
            words += f", in steps of {self.step}"
        return words


def is_finite(value):
    """Tell whether a value is a finite number; true is none."""
    return is_number(value) and math.isfinite(value)


def is_setting(value):
    """Tell whether a value can be given to a flag."""
    return isinstance(value, bool | str) or is_finite(value)


@dataclass(frozen=True)
class Search:
    """What a file asks for."""

    script: Path
    env_id: str
    total_timesteps: int
    seeds: list
    fresh_seeds: list
    parameters: list
    fixed: dict
    defaults: dict  # of the script's flags, as far as its source tells them

    def default_settings(self):
        """Return the defaults of what is searched, or None if the space does not hold them."""
        found = {}
        for parameter in self.parameters:
            value = self.defaults.get(parameter.name)
            if not parameter.holds(value):
                return None
            found[parameter.name] = parameter.as_searched(value)
        return found

    def is_default(self, settings):
        """Tell whether what is searched has its defaults."""
        return settings == self.default_settings()

    def command(self, seed, settings, folder):
        """Return the command that trains with a seed and settings, in a run folder."""
        asked = {"env_id": self.env_id, "total_timesteps": self.total_timesteps, "seed": seed}
        asked |= {"threads": 1, "capture_video": False, "resume": "auto", "run_dir": folder}
        asked |= self.fixed | settings
        # as one word, since a value may begin with a dash
        flags = ["=".join(flag_words(name, value)) for name, value in asked.items()]
        return [sys.executable, str(self.script), *flags]


# --- reading --------------------------------------------------------------------------------------
def read_toml(path):
    """Return the content of a file, or exit with 2."""
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        return refuse(f"{path} cannot be read ({reason}): name a TOML file; --help shows one")


def read_search(path):
    """Return what a file asks for, or exit with 2."""
    content = read_toml(path)
    for name in content:
        require(name in KEYS, f"{path}: there is no key {name}{hint(name, KEYS)}")
    for name in NEEDED_KEYS:
        require(name in content, f"{path}: {name} is missing; --help shows an example")
    env_id = content["env_id"]
    require(isinstance(env_id, str) and env_id, f'{path}: env_id must be text, as "Pendulum-v1"')
    steps = content["total_timesteps"]
    sentence = f"{path}: total_timesteps must be a whole number, {LEAST_STEPS} or more"
    require(type(steps) is int and steps >= LEAST_STEPS, sentence)
    seeds = read_seeds(path, "seeds", content.get("seeds", SEEDS))
    fresh_seeds = read_seeds(path, "fresh_seeds", content.get("fresh_seeds", FRESH_SEEDS))
    check_fresh_seeds(path, seeds, fresh_seeds)
    fixed = content.get("fixed", {})
    check_fixed(path, fixed)
    parameters = read_parameters(path, content["search"])
    for parameter in parameters:
        twice = parameter.name in fixed
        require(not twice, f"{path}: {parameter.name} is in [search] and in [fixed]: delete one")
    script = find_script(path, content["script"])
    return Search(
        script=script,
        env_id=env_id,
        total_timesteps=steps,
        seeds=seeds,
        fresh_seeds=fresh_seeds,
        parameters=parameters,
        fixed=fixed,
        defaults=read_defaults(script.read_bytes()),
    )


def hint(name, known):
    """Return the name that was probably meant, or all that are known."""
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f": did you mean {close[0]}?"
    return f": use {', '.join(sorted(known))}"


def find_script(path, name):
    """Return the path of the script, seen from here or from this repository."""
    require(isinstance(name, str), f'{path}: script must be text, as "ppo_continuous.py"')
    for candidate in (Path(name), ROOT / name):
        if candidate.is_file():
            return candidate.resolve()
    return refuse(f"{path}: there is no script {name}: name it as seen from here")


def read_seeds(path, name, seeds):
    """Return a list of different whole numbers, or exit with 2."""
    sentence = f"{path}: {name} must be a list of different whole numbers, as [1, 2, 3]"
    require(isinstance(seeds, list) and seeds, sentence)
    for seed in seeds:
        require(type(seed) is int and seed >= 0, sentence)
    require(len(set(seeds)) == len(seeds), sentence)
    return seeds


def check_fresh_seeds(path, seeds, fresh_seeds):
    """Refuse seeds with which the best trial cannot be confirmed."""
    for seed in fresh_seeds:
        sentence = f"{path}: seed {seed} is in seeds and in fresh_seeds: the best trial was chosen"
        require(seed not in seeds, f"{sentence} with it, so it confirms nothing; name another")
    enough = len(fresh_seeds) >= LEAST_FRESH_SEEDS
    sentence = f"{path}: fresh_seeds must be {LEAST_FRESH_SEEDS} or more"
    require(enough, f"{sentence}: fewer cannot show that a difference is no chance")


def check_fixed(path, fixed):
    """Refuse what cannot be fixed."""
    require(isinstance(fixed, dict), f"{path}: fixed must be a table, as [fixed]")
    for name, value in fixed.items():
        where = f"{path}: [fixed] {name}"
        require(name not in NOT_FREE, f"{where} {NOT_FREE.get(name)}")
        require(is_setting(value), f"{where} must be a number, text, true or false")


def read_parameters(path, table):
    """Return all parameters of a table, or exit with 2."""
    require(isinstance(table, dict), f"{path}: search must be a table, as [search]")
    example = "name a flag, as gamma = { choices = [0.9, 0.99] }"
    require(table, f"{path}: [search] is empty: {example}")
    parameters = []
    for name, content in table.items():
        where = f"{path}: [search] {name}"
        require(name not in NOT_FREE, f"{where} {NOT_FREE.get(name)}")
        require(isinstance(content, dict), f"{where} must be {EXAMPLE}")
        read = read_choices if "choices" in content else read_range
        parameters.append(read(where, name, content))
    return parameters


def read_choices(where, name, table):
    """Return a parameter that is one of several values, or exit with 2."""
    require(len(table) == 1, f"{where}: choices stand alone: delete the other keys")
    choices = table["choices"]
    sentence = f"{where}: choices must be a list of two or more numbers, texts, true or false"
    require(isinstance(choices, list) and len(choices) > 1, sentence)
    for number, choice in enumerate(choices):
        require(is_setting(choice), sentence)
        twice = any(same(choice, earlier) for earlier in choices[:number])
        require(not twice, f"{where}: the choice {choice} is there twice: delete one")
    return Parameter(name, choices=tuple(choices))


def read_range(where, name, table):
    """Return a parameter that is a number between two ends, or exit with 2."""
    for key in table:
        known = (*RANGE_KEYS, "choices")
        require(key in known, f"{where}: there is no key {key}{hint(key, known)}")
    for key in ("low", "high"):
        require(is_finite(table.get(key)), f"{where}: {key} must be a number; write {EXAMPLE}")
    low = table["low"]
    high = table["high"]
    log = table.get("log", False)
    step = table.get("step")
    require(low < high, f"{where}: low {low} must be below high {high}")
    require(isinstance(log, bool), f"{where}: log must be true or false")
    require(not log or low > 0, f"{where}: with log = true low must be above 0, not {low}")
    require(not log or step is None, f"{where}: log and step do not go together: delete one")
    good = step is None or (is_finite(step) and 0 < step <= high - low)
    require(good, f"{where}: step must be a number above 0, and at most high - low")
    whole = all(type(number) is int for number in (low, high, step or 1))
    if not whole:
        low = float(low)
        high = float(high)
    return Parameter(name, low=low, high=high, log=log, step=step)


# --- the flags of the script ----------------------------------------------------------------------
def check_flags(path, search):
    """Refuse settings for which the script has no flag; it is asked for its --help."""
    script = search.script.name
    known = flags_of(path, search.script)
    for name in (*SET_BY_KEYS, *SET_BY_US):
        flag = name.replace("_", "-")
        require(name in known, f"{path}: {script} has no flag --{flag}, which tune.py needs")
    settings = {parameter.name: parameter.choices for parameter in search.parameters}
    settings |= {name: (value,) for name, value in search.fixed.items()}
    for name, values in settings.items():
        sentence = f"{path}: {script} has no flag for {name}{hint(name, known)}"
        require(name in known, sentence)
        booleans = [value for value in values if isinstance(value, bool)]
        if f"no_{name}" in known:
            good = values and len(booleans) == len(values)
            require(good, f"{path}: {name} is a switch of {script}: it can be true or false")
        else:
            require(not booleans, f"{path}: {name} is no switch of {script}, but takes a value")


def flags_of(path, script):
    """Return the names of a script's flags, or exit with 2."""
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    reason = last_words(done.stderr)
    require(done.returncode == 0, f"{path}: {script.name} --help fails ({reason}): mend the script")
    return {name.replace("-", "_") for name in re.findall(r"--([a-z][\w-]*)", done.stdout)}


# --- the values that the script takes -------------------------------------------------------------
def check_values(path, search, pause):
    """Refuse an environment, fixed settings or values with which no run can begin.

    The script is started with each of them, and ended as soon as its run has begun. Values of
    several flags are tried together, and alone if the script refuses that: values that only do not
    go together are the search's to find out. pause waits a moment, and raises what is to end this.
    """
    script = search.script.name
    say(f"asking {script} whether it takes these settings")
    table = table_of_ends(search.parameters)
    reason = refusal_of(search, {}, pause)
    if reason:
        begins = any_begins(search, table, reason, pause)
        require(begins, f"{path}: {script} refuses it: {reason}")
        say(f"the default settings cannot be trained, and will count as failed: {reason}")
        return
    for settings in table:
        if len(settings) > 1 and not refusal_of(search, settings, pause):
            continue
        for name, value in settings.items():
            reason = refusal_of(search, {name: value}, pause)
            where = f"{path}: [search] {name}"
            require(not reason, f"{where}: {script} does not take {value}: {reason}")


def table_of_ends(parameters):
    """Return settings of all parameters, enough of them to hold every end and choice once."""
    ends = {parameter.name: parameter.ends() for parameter in parameters}
    most = max(map(len, ends.values()))
    return [
        {name: values[row % len(values)] for name, values in ends.items()} for row in range(most)
    ]


def any_begins(search, table, reason, pause):
    """Tell whether a run begins with any of the settings, where the default ones are refused."""
    for settings in table:
        other = refusal_of(search, settings, pause)
        if not other:
            return True
        shared = [name for name, one in settings.items() if same(one, search.defaults.get(name))]
        if other == reason and not shared:
            return False  # it does not depend on what is searched
    return False


def refusal_of(search, settings, pause):
    """Return why no run begins with some settings, in the script's words; "" if one does."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "run")
        log = Path(parent, "log")
        with open(log, "wb") as file:
            process = subprocess.Popen(
                search.command(search.seeds[0], settings, folder),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # no sentence is to be broken, and nothing uploaded
                env=os.environ | {"COLUMNS": "999", "WANDB_MODE": "disabled"},
            )
        try:
            begins = wait_for_run(process, folder, pause)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes of environments
            process.wait()
        if begins:
            return ""
        return last_words(log.read_text("utf-8", "replace")).replace(str(folder), folder.name)


def wait_for_run(process, folder, pause):
    """Wait until a run has begun, or its process has ended; return whether it has begun."""
    deadline = time.monotonic() + PATIENCE
    while True:
        code = process.poll()
        if (folder / "config.toml").exists() or code == 0 or time.monotonic() > deadline:
            return True
        if code is not None:
            return False
        pause()


def last_words(text):
    """Return the line in which a program says why it failed."""
    lines = [line.strip(" │╭╮╰╯─\r") for line in text.splitlines()]  # in tyro's frames, too
    lines = [line for line in lines if re.search(r"\w", line)]
    for pattern in (r"^error: ", r"Error\b"):  # of our scripts; of Python and tyro
        for line in reversed(lines):
            if re.search(pattern, line):
                return line.removeprefix("error: ")
    return lines[-1] if lines else "it says nothing"
