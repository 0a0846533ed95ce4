"""tools/compare.py: what it counts as a change, its statistics, its verdicts and what it prints.

`python tests/test_compare.py 4000` prints how often A/A is called different, for results/aa.md.
"""

import importlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from tests.test_report import VERSIONS, cells, make_run  # noqa: E402

changes = importlib.import_module("changes")
compare = importlib.import_module("compare")
evidence = importlib.import_module("evidence")
run_folders = importlib.import_module("run_folders")
quick = pytest.mark.quick

SOURCE = '''"""A script.

python sac_continuous.py --env-id Hopper-v4
"""

import math

from torch import nn

LIMIT = 5


@dataclass
class Args:
    """Settings."""

    env_id: str = "Hopper-v4"  # the task
    total_timesteps: int = 1_000_000
    seed: int = 1
    gamma: float = 0.99
    critic_lr: float = 3e-4
    double: bool = False
    target_kl: float | None = None
    device: str = "auto"
    threads: int | None = None
    compile: str = "auto"
    eval_every: int | None = None
    notes: str = ""

    def check(self):
        return self.gamma < 1


def mlp(width):
    """Return layers."""
    return [width, math.sqrt(width)]  # two


class Critic(nn.Module):
    """Values."""

    scale = 3

    def __init__(self):
        self.layers = mlp(8)

    def forward(self, obs):
        return self.layers(obs)


def main(args):
    critic = Critic()
    return critic.forward(LIMIT)


if __name__ == "__main__":
    main(Args())
'''
SETTINGS = {"gamma": 0.99, "critic_lr": 3e-4, "double": False, "device": "cpu"}
SETTINGS |= {"threads": 1, "compile": "off", "eval_every": 40_000, "notes": ""}


def toml(settings):
    """Write settings as config.toml has them; those without a value are not there."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "".join(f"{line}\n" for line in lines if not line.endswith("null"))


def make_side(folder, scores, seeds=None, settings=None, **options):
    """Write runs, one for each score, with seeds from 101 on."""
    options = {"source": SOURCE} | options
    config = toml(SETTINGS | (settings or {}))
    for seed, score in zip(seeds or itertools.count(101), scores, strict=False):
        make_run(folder / str(seed), seed, [0, score], config=config, **options)
    return folder


@pytest.fixture
def run_compare(monkeypatch, capsys):
    """Return a function that runs the tool and returns its exit code and what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
        code = 0
        try:
            compare.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def counted(out):
    """Return what is listed as a change."""
    return re.findall(r"^- ((?:script|setting|code|versions|device): .+)$", out, re.MULTILINE)


LOW, HIGH = [100, 110, 120, 130, 140], [200, 210, 220, 230, 240]


# --- runs of different lengths --------------------------------------------------------------------
def make_long_side(folder, scores, steps=1_000_000, **options):
    """Write runs with evaluations at 0, at half of the steps with a score, and at the end."""
    config = toml(SETTINGS | options.pop("settings", {}))
    options = {"config": config, "source": SOURCE, "steps": steps} | options
    for seed, score in enumerate(scores, 101):
        make_run(folder / str(seed), seed, [0, score, 9000], **options)
    return folder


@pytest.fixture
def short(tmp_path):
    """Return a side of 500,000 steps."""
    return make_side(tmp_path / "short", LOW, steps=500_000)


@quick
@pytest.mark.parametrize("status", ["finished", "failed", "interrupted", None])
def test_until_reads_longer_runs_at_a_step(tmp_path, run_compare, short, status):
    """What came later counts neither in scores nor in states, and the lengths are told."""
    long = make_long_side(tmp_path / "long", HIGH, status=status)
    code, out, _ = run_compare(short, long, "--until", "5e5")
    assert code == 0
    assert "- Tasks: Hopper-v4, 500,000 steps\n" in out
    assert "later: 5 of 5 runs of B, planned for 1,000,000 steps. This" in out
    assert [row["end"] for row in cells(out)] == ["120", "220"]
    assert [row["failed"] for row in cells(out)] == ["0 of 5", "0 of 5"]
    assert "Verdict: B is higher." in out


@quick
@pytest.mark.parametrize("step", [400_000, 500_000])
def test_until_waits_for_the_evaluation_at_the_step(tmp_path, run_compare, short, step):
    """A run that stopped before it, or that has reached the step and is not evaluated yet."""
    long = make_long_side(tmp_path / "long", HIGH)
    late = make_run(long / "106", 106, [0, 7], config=toml(SETTINGS), source=SOURCE)
    rows = [{"global_step": 0, "eval/return_mean": 0}, {"global_step": step, "charts/SPS": 9}]
    rows = "".join(json.dumps(row | {"seconds": 1}) + "\n" for row in rows)
    (late / "metrics.jsonl").write_text(rows)
    (late / "summary.json").unlink()
    code, out, _ = run_compare(short, long, "--until", "500_000")
    assert code == 0
    assert "No verdict yet" in out
    (late / "summary.json").write_text('{"status": "failed"}')
    code, out, _ = run_compare(short, long, "--until", "500_000")
    assert "Verdict: " in out, "a run that failed before the step ended there"
    assert cells(out)[1]["failed"] == "1 of 6"


@quick
def test_until_gives_no_verdict_on_scores_of_other_steps(tmp_path, run_compare, short):
    """All runs must have evaluations near the step, and score as much of the curve."""
    # stopped at step 800,000 after an evaluation at 400,000
    long = make_long_side(tmp_path / "long", HIGH, step=800_000, status="interrupted")
    for folder in long.iterdir():
        path = folder / "metrics.jsonl"
        rows = path.read_text().splitlines(keepends=True)
        rows[-1] = rows[-1].replace("eval/return_mean", "charts/SPS")
        path.write_text("".join(rows))
    code, out, _ = run_compare(short, long, "--until", "500000")
    assert code == 0
    where = f"{long}/101 at step 400,000, {short}/105 at step 500,000: name another"
    assert "No verdict: on Hopper-v4, 500,000 steps, scores are means over other steps" in out
    assert where in out
    near = make_long_side(tmp_path / "near", HIGH, step=1_008_000)  # at step 504,000
    assert "Verdict: B is higher." in run_compare(short, near, "--until", "500000")[1]
    many = tmp_path / "many"  # 21 evaluations up to the step, of which three count
    for seed, score in enumerate(HIGH, 101):
        make_run(many / str(seed), seed, [0, *[score] * 40], config=toml(SETTINGS), source=SOURCE)
    out = run_compare(short, many, "--until", "500000")[1]
    assert f"{many}/101 at 3 steps from 450,000 to 500,000, {short}/" in out
    assert "Verdict" not in out


@quick
def test_until_leaves_other_environments_alone(tmp_path, run_compare, short):
    """A task of one side is left out, however short its runs are."""
    make_side(short / "more", [7] * 5, env_id="Ant-v4", steps=1000)
    long = make_long_side(tmp_path / "long", HIGH)
    assert "or read longer ones up to one step: --until 500000\n" in run_compare(short, long)[2]
    code, out, _ = run_compare(short, long, "--until", "500000")
    assert code == 0
    assert "Only A has Ant-v4, 1,000 steps: left out." in out
    assert "Verdict: B is higher." in out


@quick
@pytest.mark.parametrize(
    "settings", [{"anneal": True}, {"exploration_fraction": 0.1}], ids=["anneal", "exploration"]
)
def test_until_refuses_runs_with_a_schedule(tmp_path, run_compare, settings):
    """A schedule over 1,000,000 steps is at another place at 500,000 than one over 500,000."""
    one = make_side(tmp_path / "one", LOW, steps=500_000, settings=settings)
    long = make_long_side(tmp_path / "long", HIGH, settings=settings)
    code, _, err = run_compare(one, long, "--until", "500000")
    assert code == 2
    assert "was planned for 1000000 steps, over which --" in err
    code, _, err = run_compare(one, long)
    assert code == 2
    assert "--until" not in err, "it would be refused"
    same = make_side(tmp_path / "same", HIGH, steps=500_000, settings=settings)
    assert run_compare(one, same, "--until", "500000")[0] == 0


@quick
def test_until_refuses_what_no_run_reaches(tmp_path, run_compare, short):
    """A step beyond the plan of a run, one before the first evaluation, and what is no step."""
    long = make_long_side(tmp_path / "long", HIGH)
    code, _, err = run_compare(long, short, "--until", "600000")
    assert code == 2
    assert f"{short}/101 was planned for 500000 steps: use --until 500000, or" in err
    for word in ("0", "-5", "half", "1.5", "inf", "nan"):
        code, _, err = run_compare(long, short, f"--until={word}")
        assert code == 2
        assert f"takes a step such as 300000, not {word}" in err
    code, _, err = run_compare("--table", long, "--until", "500000")
    assert code == 2
    assert "leave out --journal" in err
    for folder in long.iterdir():
        path = folder / "metrics.jsonl"
        rows = path.read_text().replace('"global_step": 0', '"global_step": 99')
        path.write_text(rows)
    code, _, err = run_compare(short, long, "--until", "50")
    assert code == 2
    assert "B has no evaluations on Hopper-v4, 50 steps: name a later step" in err


@quick
def test_commands_that_settle_it_keep_until(tmp_path, run_compare, short):
    """Runs that are to tell two changes apart have as many steps as were read of the others."""
    long = make_long_side(tmp_path / "long", HIGH, settings={"gamma": 0.9, "critic_lr": 1e-3})
    code, out, _ = run_compare(short, long, "--until", "500000")
    assert code == 2
    assert "CONFOUNDED" in out
    assert "--total-timesteps 500000" in out
    commands = re.findall(r"^    python tools/compare.py .+$", out, re.MULTILINE)
    assert commands
    assert all(command.endswith(" --until 500000") for command in commands)
    code, out, _ = run_compare(short, long, "--until", "500000", "--describe-only")
    assert "Described only" in out


# --- what counts as a change ----------------------------------------------------------------------
def edited(*edits):
    """Return SOURCE after replacements, each of a text that occurs once."""
    source = SOURCE
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


FORWARD = ("return self.layers(obs)", "return self.layers(2 * obs)")
MLP = ("return [width, math.sqrt(width)]", "return [width]")
HELPER = ("def main(args)", "def twice(x):\n    return 2 * x\n\n\ndef main(args)")
GAMMA = ("gamma: float = 0.99", "gamma: float = 0.98")
CODE = {
    # nothing that counts
    "comment": ([("# two", "# 2"), ("LIMIT = 5", "# highest\nLIMIT = 5  # of all")], []),
    "docstrings": ([("Return layers", "Layers"), ("Values", "V"), ("A script", "The")], []),
    "help": ([("# the task", "# Gymnasium's name"), ('"""Settings."""', '"""What."""')], []),
    "layout": ([("self.layers = mlp(8)", "self.layers = mlp(\n            8,\n        )")], []),
    "number": ([("1_000_000", "1000000"), ("3e-4", "0.0003")], []),
    "default of no run": ([GAMMA], []),
    "moved": (
        [("LIMIT = 5\n\n\n", ""), ("class Critic", "LIMIT = 5\n\n\nclass Critic")],
        [],
    ),
    "unused setting": ([("double: bool", "triple: bool = False\n    double: bool")], []),
    # one change
    "function": ([MLP], ["mlp changed"]),
    "method": ([FORWARD], ["Critic.forward changed"]),
    "constant": ([("LIMIT = 5", "LIMIT = 6")], ["LIMIT changed"]),
    "constant of a class": ([("scale = 3", "scale = 4")], ["Critic.scale changed"]),
    "base": ([("(nn.Module)", "(Module)")], ["Critic changed"]),
    "decorator": ([("@dataclass", "@frozen")], ["Args changed"]),
    "check": ([("self.gamma < 1", "self.gamma < 2")], ["Args.check changed"]),
    "what runs": ([("main(Args())", "main(Args(1))")], ["if __name__ == '__main__': changed"]),
    "import": ([("from torch import nn", "from other import nn")], ["import nn changed"]),
    "added import": ([("import math", "import math\nimport games")], ["import games added"]),
    "helper": ([HELPER, ("(LIMIT)", "(twice(LIMIT))")], ["main changed"]),
    "helper with a class": (
        [
            HELPER,
            ("class Critic", "class New:\n    def f(self):\n        twice(1)\n\n\nclass Critic"),
            ("critic = Critic()", "critic = New()"),
        ],
        ["main changed"],
    ),
    "inlined": (
        [
            ('def mlp(width):\n    """Return layers."""\n', ""),
            ("    return [width, math.sqrt(width)]  # two\n", ""),
            ("mlp(8)", "[8]"),
        ],
        ["Critic.__init__ changed"],
    ),
    "dead code": ([HELPER], ["twice added"]),
    "overrides": (
        [("    def forward", "    def train(self):\n        pass\n\n    def forward")],
        ["Critic.train added"],
    ),
    # two
    "two functions": ([MLP, FORWARD], ["mlp changed", "Critic.forward changed"]),
    "two methods": (
        [FORWARD, ("mlp(8)", "mlp(9)")],
        ["Critic.__init__ changed", "Critic.forward changed"],
    ),
    "known name": (
        [("class Critic", "def min(x):\n    return 0\n\n\nclass Critic"), ("(LIMIT)", "(min(1))")],
        ["min added", "main changed"],
    ),
}


@quick
@pytest.mark.parametrize("name", CODE)
def test_changes_of_the_code(tmp_path, run_compare, name):
    """A name that the old code knows may take the place of something, so it counts by itself."""
    edits, expected = CODE[name]
    old = SOURCE.replace("critic = Critic()", "critic = Critic(min(1, 2))")
    source = edited(*edits)
    if name == "known name":
        source = source.replace("critic = Critic()", "critic = Critic(min(1, 2))")
    else:
        old = SOURCE
    a = make_side(tmp_path / "a", LOW, source=old)
    b = make_side(tmp_path / "b", HIGH, source=source)
    code, out, _ = run_compare(a, b)
    assert sorted(counted(out)) == sorted(f"code: {one}" for one in expected)
    assert code == (2 if len(expected) > 1 else 0)
    assert ("CONFOUNDED: " in out) == (len(expected) > 1)
    assert ("A/A" in out) == (not expected)


# Of classes a run names the whole, of Args and imports it says nothing
NOT_SAID = ("constant of a class", "decorator", "check", "import", "added import")


@pytest.mark.parametrize("name", sorted({*CODE} - {*NOT_SAID}))
def test_a_run_says_what_is_counted(name):
    """At its start, of the run before it."""
    script = importlib.import_module("sac_continuous")
    edits, expected = CODE[name]
    old, new = SOURCE, edited(*edits)
    if name == "known name":
        old, new = (one.replace("Critic()", "Critic(min(1, 2))") for one in (old, new))
    found = script.changed_code(old.encode(), new.encode())
    names = [words.rpartition(" ")[0].partition(" ==")[0] for words in expected]
    assert sorted(found) == sorted(names)


CHANGES = {
    "seed, notes and videos": ({"settings": {"notes": "x", "wandb_project": "y"}}, []),
    "rounding": ({"settings": {"threads": 2, "compile": "on", "eval_every": 50_000}}, []),
    "int": ({"settings": {"gamma": 0.99, "critic_lr": 0.0003}}, []),
    "one flag": ({"settings": {"gamma": 0.98}}, ["setting: gamma 0.99 -> 0.98"]),
    "switch": ({"settings": {"double": True}}, ["setting: double false -> true"]),
    "no value": ({"settings": {"target_kl": 0.02}}, ["setting: target_kl none -> 0.02"]),
    "device": ({"settings": {"device": "cuda"}}, ["device: device cpu -> cuda"]),
    "two flags": (
        {"settings": {"gamma": 0.98, "critic_lr": 1e-3}},
        ["setting: gamma 0.99 -> 0.98", "setting: critic_lr 0.0003 -> 0.001"],
    ),
    "default and setting": (
        {"settings": {"gamma": 0.98}, "source": edited(GAMMA)},
        ["setting: gamma 0.99 -> 0.98"],
    ),
    "default of none and setting": (
        {
            "settings": {"target_kl": 0.02},
            "source": edited(("target_kl: float | None = None", "target_kl: float = 0.02")),
        },
        ["setting: target_kl none -> 0.02"],
    ),
    "new setting at its default": (
        {
            "settings": {"triple": 7},
            "source": edited(("double: bool", "triple: int = 7\n    double: bool"), FORWARD),
        },
        ["code: Critic.forward changed"],
    ),
    "new setting with another value": (
        {
            "settings": {"triple": 8},
            "source": edited(("double: bool", "triple: int = 7\n    double: bool")),
        },
        ["setting: triple none -> 8"],
    ),
    "versions": (
        {"versions": VERSIONS | {"torch": "2.12.0", "python": "3.12.1 (main)"}},
        ["versions: torch 2.13.0 -> 2.12.0, python 3.11 -> 3.12"],
    ),
    "simulator": (
        {"versions": VERSIONS | {"mujoco": "3.3.7"}},
        ["versions: mujoco 3.17.0 -> 3.3.7"],
    ),
    "versions that do not matter": (
        {
            "versions": VERSIONS
            | {"torch": "2.13.0+cpu", "python": "3.11.9", "ale-py": "9", "tqdm": "1"}
        },
        [],
    ),
    "flag and function": (
        {"settings": {"gamma": 0.98}, "source": edited(FORWARD)},
        ["setting: gamma 0.99 -> 0.98", "code: Critic.forward changed"],
    ),
    "source that is no Python": ({"source": "def (:"}, None),
}


@quick
@pytest.mark.parametrize("name", CHANGES)
def test_other_changes(tmp_path, run_compare, name):
    options, expected = CHANGES[name]
    a = make_side(tmp_path / "a", LOW)
    b = make_side(tmp_path / "b", HIGH, **options)
    code, out, err = run_compare(a, b)
    if expected is None:  # all of it differs
        assert code == 2 and "CONFOUNDED" in out and err == ""
        return
    assert counted(out) == expected
    assert code == (2 if len(expected) > 1 else 0) and err == ""
    if len(expected) == 1:
        assert "1 change counts" in out and "Verdict: B is higher. B - A is +100 [" in out
    if len(expected) == 2:
        names = [re.split(r": | ", line)[1] for line in expected]
        assert f"CONFOUNDED: {', '.join(names)}. " in out
        assert "higher" not in out and "| P(B > A) |" not in out


@quick
def test_another_script_is_one_change(tmp_path, run_compare):
    """With all that is at its own default; what is not counts by itself."""
    other = edited(MLP, FORWARD, GAMMA, ("LIMIT = 5", "LIMIT = 7"), ("A script", "Another"))
    other = other.replace("python sac_continuous.py", "python td3_continuous.py")
    other = other.replace("double: bool = False", "policy_delay: int = 2")
    options = {"script": "td3_continuous", "source": other}
    theirs = {"gamma": 0.98, "double": None, "policy_delay": 2}
    a = make_side(tmp_path / "a", LOW)
    b = make_side(tmp_path / "b", HIGH, settings=theirs, **options)
    code, out, _ = run_compare(a, b)
    assert code == 0 and counted(out) == ["script: sac_continuous -> td3_continuous"]
    assert "1 change counts: another algorithm as a whole" in out
    for number, extra in enumerate(({"gamma": 0.9}, {"policy_delay": 3}, {"critic_lr": 1.0})):
        b = make_side(tmp_path / str(number), HIGH, settings=theirs | extra, **options)
        code, out, _ = run_compare(a, b)
        assert code == 2 and f"CONFOUNDED: the script, {[*extra][0]}. " in out
    for side, options in (("c", {}), ("d", {"script": "td3_continuous"})):
        make_side(tmp_path / side, HIGH, source="", **options)
    code, out, _ = run_compare(tmp_path / "c", tmp_path / "d")
    assert code == 0 and counted(out) == ["script: sac_continuous -> td3_continuous"]
    assert "Whether the code differs is not known" in out


@quick
def test_each_function_of_a_copy_counts(tmp_path, run_compare):
    """A copy names in its docstring the script that it was copied from, or is nearly the same."""
    a = make_side(tmp_path / "a", LOW)
    other = ("python sac_continuous.py", "python my_sac.py")
    many = "".join(f"def f{number}():\n    return {number}\n\n\n" for number in range(60))
    for number, (more, edits, expected) in enumerate(
        [
            ("", [MLP, FORWARD], ["code: mlp changed", "code: Critic.forward changed"]),
            ("", [], []),
            ("", [MLP, FORWARD, other], ["script: sac_continuous -> my_sac"]),
            (many, [MLP, FORWARD, other], ["code: mlp changed", "code: Critic.forward changed"]),
        ]
    ):
        a = make_side(tmp_path / f"a{number}", LOW, source=SOURCE + many if more else SOURCE)
        b = make_side(tmp_path / f"b{number}", HIGH, source=edited(*edits) + more)
        for path in b.glob("*/summary.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"script": "my_sac"}))
        code, out, _ = run_compare(a, b)
        assert counted(out) == expected and code == (2 if len(expected) > 1 else 0)
        is_copy = "script: " not in str(expected)
        assert ("One script is a copy of the other: sac_continuous, my_sac." in out) == is_copy


def patched_sac(number):
    """Return sac_continuous.py after one of the changes of docs/modify.md."""
    from tests.test_readme import SAC, blocks, patched

    return patched(SAC.read_text("utf-8"), blocks("diff")[number])


def test_changes_of_the_documentation(tmp_path, run_compare):
    """Those of docs/modify.md are one function each, but one, which has to be declared."""
    sac = (ROOT / "sac_continuous.py").read_bytes()
    found = [
        [change.name for change in changes.changed_code(sac, patched_sac(number).encode())]
        for number in range(5)
    ]
    assert found[:4] == [["mlp"], ["Critic.__init__"], ["train"], ["Agent.__init__"]]
    assert set(found[4]) > {"ReplayBuffer.sample", "train"}
    a = make_side(tmp_path / "a", LOW, source=sac.decode())
    b = make_side(tmp_path / "b", HIGH, source=patched_sac(4))
    code, out, _ = run_compare(a, b)
    assert code == 2 and f"CONFOUNDED: {', '.join(found[4])}. " in out
    code, out, _ = run_compare(a, b, "--bundle", "n-step returns")
    assert code == 0 and "Verdict: B is higher" in out and len(counted(out)) == len(found[4])
    assert '"n-step returns", which you declare to be one idea' in out
    b = make_side(tmp_path / "c", HIGH, source=patched_sac(4), settings={"gamma": 0.98})
    code, out, _ = run_compare(a, b, "--bundle", "n-step returns")
    assert code == 2 and "CONFOUNDED: gamma, n-step returns. " in out


@quick
def test_a_bundle_is_of_code_alone(tmp_path, run_compare):
    a = make_side(tmp_path / "a", LOW)
    two = edited(MLP, FORWARD)
    cases = [
        ({"source": two}, 0, "2 layers"),
        ({"source": two, "settings": {"gamma": 0.9}}, 2, "CONFOUNDED: gamma, 2 layers. "),
        ({"settings": {"gamma": 0.9, "double": True}}, 2, "CONFOUNDED: gamma, double. "),
    ]
    for number, (options, expected, words) in enumerate(cases):
        b = make_side(tmp_path / str(number), HIGH, **options)
        code, out, _ = run_compare(a, b, "--bundle", "2 layers")
        assert code == expected and words in out
    assert (
        "# make these in mine/only-2-layers.py"
        in run_compare(a, tmp_path / "1", "--bundle", "2 layers")[1]
    )


@quick
def test_changes_are_those_of_all_tasks(tmp_path, run_compare):
    """A setting may differ on one task only, and be another on each."""
    values = {"Ant-v4": {"gamma": 0.9, "double": True}, "Hopper-v4": {"gamma": 0.8}}
    for env_id, settings in values.items():
        make_side(tmp_path / "a" / env_id, LOW, env_id=env_id)
        make_side(tmp_path / "b" / env_id, HIGH, env_id=env_id, settings=settings)
    code, out, _ = run_compare(tmp_path / "a", tmp_path / "b")
    assert code == 2 and "CONFOUNDED: gamma, double. " in out
    where = "on Ant-v4, 1,000,000 steps"
    assert f"gamma 0.99 -> 0.9 {where}; gamma 0.99 -> 0.8 on Hopper-v4" in out
    assert f"Not the same on all tasks: double false -> true {where}." in out
    flags = re.findall("ENVS=.([^ ]+). .+\n.+\n.+--total-timesteps 1000000(.*)", out)
    assert flags == [
        ("Ant-v4", " --gamma 0.9"),
        ("Hopper-v4", " --gamma 0.8"),
        ("Ant-v4", " --double"),
    ]
    spared = "Nothing has to be trained on Hopper-v4, 1,000,000 steps, where the runs of A serve."
    assert out.count("Nothing has to be trained") == 1 and spared in out


@quick
def test_each_task_is_trained_with_its_own_seeds(tmp_path, run_compare):
    """And no seed on a task on which the side does not have it."""
    seeds = {"Ant-v4": [101, 102], "Hopper-v4": [103, 104]}
    for env_id, own in seeds.items():
        options = {"seeds": own, "env_id": env_id}
        make_side(tmp_path / "a" / env_id, LOW, **options)
        make_side(tmp_path / "b" / env_id, HIGH, settings={"gamma": 0.9, "double": True}, **options)
    out = run_compare(tmp_path / "a", tmp_path / "b")[1]
    assert re.findall('ENVS="(.+?)" SEEDS="(.+?)"', out) == 2 * [
        ("Ant-v4", "101 102"),
        ("Hopper-v4", "103 104"),
    ]


@pytest.mark.parametrize("other", ["td3_continuous", "ppo_continuous", "dqn_atari"])
def test_our_scripts_are_no_copies_of_each_other(other):
    """Though most of their functions are the same; a copy is one whatever its docstring says."""
    sac = (ROOT / "sac_continuous.py").read_bytes()
    share = changes.share_of_equal_parts(sac, (ROOT / f"{other}.py").read_bytes())
    assert 0.5 < share < changes.COPY
    assert changes.share_of_equal_parts(sac, patched_sac(4).encode()) > changes.COPY


# --- which runs -----------------------------------------------------------------------------------
@quick
@pytest.mark.parametrize(
    "options, named",
    [
        ({"settings": {"gamma": 0.9}}, "gamma 0.99 -> 0.9"),
        ({"source": edited(FORWARD)}, "Critic.forward changed"),
        ({"versions": VERSIONS | {"gymnasium": "1.0.0"}}, "gymnasium 1.4.0 -> 1.0.0"),
        ({"settings": {"device": "cuda"}}, "device cpu -> cuda"),
        ({"script": "td3_continuous", "source": ""}, "several scripts"),
    ],
)
def test_runs_of_a_side_must_be_alike(tmp_path, run_compare, options, named):
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH)
    make_side(b, [7], seeds=[300], **options)
    for sides in ((a, b), (b, a)):
        code, out, err = run_compare(*sides)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ") and named in err
    for seed in (101, 102):  # what does not matter may differ
        path = a / str(seed) / "config.toml"
        path.write_text(path.read_text().replace("threads = 1", "threads = 2"))
    make_side(tmp_path / "c", HIGH, source=edited(("# two", "")))
    assert run_compare(a, tmp_path / "c")[0] == 0


@quick
def test_seeds_may_differ_and_this_is_said(tmp_path, run_compare):
    a = make_side(tmp_path / "a", LOW)
    b = make_side(tmp_path / "b", HIGH[:4], seeds=[105, 106, 107, 300])
    code, out, _ = run_compare(a, b)
    assert code == 0 and "101 to 105 of A and 105 to 107, 300 of B" in out
    assert "Verdict: B is higher" in out and "As few as 4 seeds a side are a smoke test" in out
    c = make_side(tmp_path / "c", HIGH, seeds=[1, 2, 3, 4, 5])
    assert "Seeds up to 100, for tuning, are mixed with later ones" in run_compare(a, c)[1]
    out = run_compare(a, make_side(tmp_path / "d", HIGH))[1]
    assert "Seeds" not in out and "a side are exploratory" in out


@quick
def test_runs_of_one_seed_count_once(tmp_path, run_compare):
    """Five runs, but three seeds: no verdict."""
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH[:3])
    for name in ("101b", "101c"):
        shutil.copytree(b / "101", b / name)
    code, out, _ = run_compare(a, b)
    assert code == 0 and "No verdict: too few seeds. A has 5 and B has 3; a" in out
    assert "Runs of one seed of B count once" in out and cells(out)[1]["failed"] == "0 of 5"


@quick
def test_tasks_of_one_side_are_left_out(tmp_path, run_compare):
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH)
    make_side(a / "more", [7] * 5, env_id="Ant-v4")
    make_side(b / "long", [8] * 5, steps=2_000_000)
    code, out, _ = run_compare(a, b)
    assert code == 0 and "Verdict: B is higher. B - A is +100 [" in out
    assert "Only A has Ant-v4, 1,000,000 steps: left out." in out
    assert "Only B has Hopper-v4, 2,000,000 steps: left out." in out
    for side in (a / "more", b / "long"):
        code, out, err = run_compare(a / "101", side)
        assert (code, out, err.count("\n")) == (2, "", 1) and "no task in common" in err
        assert ("--until 1000000" in err) == (side.name == "long")


@quick
@pytest.mark.parametrize("state", ["living", "interrupted", "killed"])
def test_no_verdict_before_all_runs_have_ended(tmp_path, run_compare, state):
    """Both sides are read up to the last step that all have reached."""
    a, b = make_side(tmp_path / "a", LOW), tmp_path / "b"
    options = {"config": toml(SETTINGS), "source": SOURCE}
    for seed, score in zip(range(101, 105), HIGH, strict=False):
        make_run(b / str(seed), seed, [0, 7, 7, 7, score], **options)
    status = state if state == "interrupted" else ""
    folder = b / "Hopper-v4__sac_continuous__105__9"
    make_run(folder, 105, [0, 9, 9], status=status, step=500_000, **options)
    if state == "killed":
        os.utime(folder / "metrics.jsonl", (0, 0))
    code, out, _ = run_compare(a, b)
    assert code == 0 and "No verdict yet" in out and "higher" not in out and "| p |" not in out
    assert f"{folder} of B: {state}, 500,000 of 1,000,000 steps." in out
    assert "up to step 500,000 on Hopper-v4, 1,000,000 steps." in out
    one, other = cells(out)
    assert (one["end"], other["end"], other["highest"]) == ("0", "7", "9")
    assert (one["failed"], other["failed"]) == ("0 of 5", "0 of 5")


@quick
def test_failed_runs_count_with_what_they_reached(tmp_path, run_compare):
    """A tenth of the way from 0, at step 0, to B's IQM of 220 is 22."""
    a = make_side(tmp_path / "a", [*LOW, 23, 21])
    b = make_side(tmp_path / "b", HIGH[:4])
    make_side(b, [240], seeds=[105], status="failed", step=400_000)
    code, out, _ = run_compare(a, b)
    one, other = cells(out)
    assert code == 0 and "105 of B: failed, 400,000 of 1,000,000 steps." in out
    assert (one["failed"], one["lowest"]) == ("1 of 7", "21")
    assert (other["failed"], other["highest"], other["seeds"]) == (
        "1 of 5",
        "240",
        "5, exploratory",
    )
    assert "Verdict: B is higher" in out


@quick
def test_runs_of_a_sweep_that_is_under_way(tmp_path, run_compare):
    """A living run of benchmark.sh ab is called a-sac_continuous, after its folder."""
    for name, scores in (("a", LOW), ("b", HIGH)):
        folder = tmp_path / f"{name}-sac_continuous" / "Hopper-v4"
        make_side(folder, scores)
        for seed in ("101", "102"):
            (folder / seed / "summary.json").unlink()
    code, out, err = run_compare(*sorted(tmp_path.iterdir()))
    assert (code, err) == (0, "") and "No verdict yet" in out and counted(out) == []
    assert "A: 5 runs of sac_continuous in" in out


@quick
def test_a_return_that_is_no_number_is_not_ranked(tmp_path, run_compare):
    """Sorted as a number it would be the highest one."""
    make_side(tmp_path / "a", [1, 2, 3, 4, 5])
    make_side(tmp_path / "b", [1, 2, math.nan, 4, 5], settings={"gamma": 0.98})
    code, out, err = run_compare(tmp_path / "a", tmp_path / "b")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'b' / '103'} has a return of nan at step 1,000,000" in err


def test_a_folder_with_a_space(tmp_path, run_compare):
    """Whose scripts benchmark.sh could not name is copied first."""
    source = (ROOT / "sac_continuous.py").read_text("utf-8") + "\nmine = 1\n"
    for side, gamma in (("a", 0.99), ("b", 0.98)):
        settings = {"autotune": True, "double": None, "gamma": gamma, "tau": gamma / 100}
        folder = tmp_path / "my runs" / side
        make_side(folder, LOW[:2], settings=settings, source=source)
    code, out, _ = run_compare(tmp_path / "my runs" / "a", tmp_path / "my runs" / "b")
    found = [shlex.split(one) for one in commands(out) if one.startswith("SCRIPTS=")]
    assert code == 2 and found
    for words in found:
        script = words[0].removeprefix("SCRIPTS=")
        assert script.startswith("mine/") and words[1].startswith("ENVS=")
        assert any(one.endswith(f" {script}") and "mkdir" in one for one in commands(out))


def test_runs_without_evaluations(tmp_path, run_compare):
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH)
    begun = make_run(b / "Hopper-v4__sac_continuous__9__9", 9, [], status="", source=SOURCE)
    (begun / "config.toml").write_text((b / "101" / "config.toml").read_text())
    code, out, _ = run_compare(a, b)
    assert code == 0 and "No verdict yet" in out
    assert "(living) has no evaluation: left out." in out and cells(out)[1]["end"] == "220"
    described = run_compare(a, b, "--describe-only")[1]
    assert "Described only" in described and "No verdict yet" in described  # scores are cut
    for folder in b.iterdir():
        (folder / "metrics.jsonl").write_text('{"global_step": 1000000, "seconds": 3}\n')
    code, out, err = run_compare(a, b)
    assert (code, out, err.count("\n")) == (2, "", 1) and "B has no evaluations" in err


# --- verdicts -------------------------------------------------------------------------------------
@quick
@pytest.mark.parametrize(
    "one, other, words",
    [
        (LOW, HIGH, "B is higher"),
        (HIGH, LOW, "B is lower"),
        (LOW, LOW[::-1], "no difference seen"),
        (LOW, [90, 115, 125, 160, 170], "no difference seen"),
        ([7] * 5, [7] * 5, "no difference seen"),
        (LOW[:4], HIGH[:4], "B is higher"),
        (LOW * 2, HIGH * 2, "B is higher"),
        ([-x for x in LOW], [-x for x in HIGH], "B is lower"),
    ],
)
def test_verdicts(tmp_path, run_compare, one, other, words):
    b = make_side(tmp_path / "b", other, settings={"gamma": 0.98})
    code, out, _ = run_compare(make_side(tmp_path / "a", one), b)
    assert code == 0 and f"\nVerdict: {words}. B - A is " in out
    end, curve = cells(out, 1)
    assert (end["verdict"], curve["verdict"], curve["p"]) == (words, "not judged", "")
    assert "improve" not in out
    count = min(len(one), len(other))
    label = {4: "a smoke test", 5: "exploratory", 10: "allow a claim"}[count]
    assert label in out.split("Verdict")[1].split("\n")[0]


@quick
@pytest.mark.parametrize(
    "low, high, p, words",
    [
        (1, 5, 0.05, "B is higher"),
        (-5, -1, 0.05, "B is lower"),
        (1, 5, 0.051, "no difference seen"),
        (-0.1, 5, 0.01, "no difference seen"),
        (-5, 0, 0.01, "no difference seen"),
        (0, 5, 0.01, "no difference seen"),
    ],
)
def test_interval_and_p_must_agree(low, high, p, words):
    pair = evidence.Pair(np.arange(4.0), np.arange(4.0))
    chance = 0.9 if low + high > 0 else 0.1
    middle = evidence.Estimate((low + high) / 2, low, high, chance)
    assert evidence.Line("Hopper-v4", "end", [pair], middle, p).verdict == words
    against = middle._replace(chance=1 - chance)  # B wins less often, by more
    assert evidence.Line("Hopper-v4", "end", [pair], against, p).verdict == "no difference seen"


@quick
@pytest.mark.parametrize("counts", [(1, 1), (3, 3), (3, 9), (4, 2)])
def test_few_seeds_allow_no_verdict(tmp_path, run_compare, counts):
    a = make_side(tmp_path / "a", (LOW * 2)[: counts[0]])
    b = make_side(tmp_path / "b", (HIGH * 2)[: counts[1]])
    code, out, _ = run_compare(a, b)
    assert code == 0 and "higher" not in out and "[" not in out
    assert f"No verdict: too few seeds. A has {counts[0]} and B has {counts[1]}; " in out
    for needed in (4, 10):
        words = []
        for side, count in zip("AB", counts, strict=True):
            words += [f"{needed - count} more of {side}"] if count < needed else []
        assert f" {needed} a side ({' and '.join(words)})" in out.replace("claim 10", "10 a side")
    assert "on every task" not in out and "The numbers below describe these runs" in out
    assert cells(out, 1)[0]["verdict"] == "too few seeds" and cells(out, 1)[0]["p"] == ""


@quick
def test_small_effects_need_more_seeds(tmp_path, run_compare):
    """Nine in a hundred are few, eleven are not."""
    spread = np.arange(10) / 10
    a = make_side(tmp_path / "a", 100 + spread)
    for name, shift, is_small in (("b", 109, True), ("c", 111, False)):
        out = run_compare(a, make_side(tmp_path / name, shift + spread))[1]
        assert "Verdict: B is higher" in out
        assert ("Effects below 10 % need 20 seeds a side." in out) == is_small


@quick
def test_a_run_that_failed_before_its_first_evaluation_is_a_failure(tmp_path, run_compare):
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH)
    lost = make_run(b / "lost", 150, [], status="failed", source=SOURCE)
    config = (b / "101" / "config.toml").read_text().replace("seed = 101", "seed = 150")
    (lost / "config.toml").write_text(config)
    _, out, _ = run_compare(a, b)
    assert [line["failed"] for line in cells(out)] == [f"0 of {len(LOW)}", f"1 of {len(HIGH) + 1}"]


@quick
def test_described_only(tmp_path, run_compare):
    a = make_side(tmp_path / "a", LOW)
    two = make_side(tmp_path / "two", HIGH, settings={"gamma": 0.9, "double": True})
    one = make_side(tmp_path / "one", HIGH, settings={"gamma": 0.9})
    for side, expected in ((two, 2), (one, 0)):
        code, out, _ = run_compare(a, side, "--describe-only")
        assert code == expected and "Described only" in out and "higher" not in out
        assert ("CONFOUNDED" in out) == (expected == 2)
        assert [*cells(out, 1)[0]] == ["task", "measured at", "B - A", "P(B > A)"]
        assert cells(out, 1)[0]["B - A"].startswith("+100 [")


@quick
def test_what_changed_comes_first_then_the_verdict(tmp_path, run_compare):
    b = make_side(tmp_path / "b", HIGH, settings={"gamma": 0.98})
    out = run_compare(make_side(tmp_path / "a", LOW), b)[1]
    places = [out.index(word) for word in ("gamma 0.99", "Verdict: ", "| task |", "Each side")]
    assert places == sorted(places)


# --- statistics -----------------------------------------------------------------------------------
def drawn(seed, *counts):
    """Return scores with ties."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 12, count) + 3.0 * place for place, count in enumerate(counts)]


@quick
@pytest.mark.parametrize("counts", [(4, 4), (5, 5), (4, 7), (6, 6)])
def test_p_is_that_of_all_permutations(counts):
    """With ties; without, it is Mann and Whitney's."""
    a, b = drawn(sum(counts), *counts)
    found = evidence.p_value([evidence.Pair(a, b)], 20_000)
    scores = np.concatenate([a, b])
    ranks = stats.rankdata(scores)
    sums = [sum(ranks[[*places]]) for places in itertools.combinations(range(len(ranks)), len(b))]
    observed = ranks[len(a) :].sum()
    tails = np.mean(sums >= observed - 1e-9), np.mean(sums <= observed + 1e-9)
    assert found == pytest.approx(min(1, 2 * min(tails)))
    random = np.random.default_rng(1)
    a, b = (x + random.uniform(0, 0.1, len(x)) for x in (a, b))
    exact = stats.mannwhitneyu(b, a, method="exact").pvalue
    assert evidence.p_value([evidence.Pair(a, b)], 20_000) == pytest.approx(exact)


@quick
def test_p_of_many_seeds_is_near_the_exact_one():
    random = np.random.default_rng(7)
    a, b = random.normal(0, 1, 10), random.normal(0.8, 1, 10)
    exact = stats.mannwhitneyu(b, a, method="exact").pvalue
    assert evidence.p_value([evidence.Pair(a, b)], 20_000) == pytest.approx(exact, abs=0.006)


@quick
@pytest.mark.parametrize("counts", [(1, 1), (3, 4), (10, 9)])
def test_chance_is_u_by_its_highest(counts):
    a, b = drawn(sum(counts), *counts)
    pairs = [(x < y) + (x == y) / 2 for x in a for y in b]
    found = evidence.estimate([evidence.Pair(a, b)], 100).chance
    assert found == pytest.approx(np.mean(pairs))
    assert found == pytest.approx(stats.mannwhitneyu(b, a).statistic / len(pairs))


@quick
@pytest.mark.parametrize("counts", [(5, 5), (10, 7)])
def test_interval_is_that_of_scipy(counts):
    a, b = drawn(3, *counts)
    difference = lambda b, a, axis: stats.trim_mean(b, 0.25, axis) - stats.trim_mean(a, 0.25, axis)  # noqa: E731
    found = stats.bootstrap((b, a), difference, n_resamples=20_000, method="percentile", rng=1)
    one = evidence.estimate([evidence.Pair(a, b)])
    assert [one.low, one.high] == pytest.approx([*found.confidence_interval], abs=0.15)
    assert one.difference == pytest.approx(difference(b, a, 0))


@quick
def test_tasks_are_pooled_in_standard_deviations():
    """Each task counts the same, whatever its scale, and is permuted and drawn by itself."""
    pairs = [evidence.Pair(*drawn(1, 4, 4)), evidence.Pair(*(1000 * x for x in drawn(2, 4, 5)))]
    one = evidence.estimate(pairs, 20_000)
    units = [np.std([*pair.a, *pair.b], ddof=1) for pair in pairs]
    iqms = [stats.trim_mean(pair.b, 0.25) - stats.trim_mean(pair.a, 0.25) for pair in pairs]
    assert one.difference == pytest.approx(np.mean(np.divide(iqms, units)))
    single = [evidence.estimate([pair], 100).chance for pair in pairs]
    assert one.chance == pytest.approx(np.mean(single))
    nulls = []
    for pair in pairs:
        ranks = stats.rankdata([*pair.a, *pair.b])
        count, all_pairs = len(pair.b), len(pair.a) * len(pair.b)
        sums = [
            sum(ranks[[*places]]) for places in itertools.combinations(range(len(ranks)), count)
        ]
        nulls.append((np.array(sums) - count * (count + 1) / 2) / all_pairs)
    means = np.add.outer(*nulls) / 2
    exact = np.mean(abs(means - 0.5) >= abs(one.chance - 0.5) - 1e-9)
    assert evidence.p_value(pairs, 20_000) == pytest.approx(exact, abs=0.01)
    random = np.random.default_rng(5)
    parts = [
        stats.trim_mean(random.choice(pair.b, (20_000, len(pair.b))), 0.25, axis=1) / unit
        - stats.trim_mean(random.choice(pair.a, (20_000, len(pair.a))), 0.25, axis=1) / unit
        for pair, unit in zip(pairs, units, strict=True)
    ]
    assert [one.low, one.high] == pytest.approx(
        np.percentile(np.mean(parts, 0), [2.5, 97.5]), abs=0.06
    )
    same = evidence.Pair(np.full(4, 7.0), np.full(4, 7.0))
    assert evidence.estimate([same, same], 100)[:3] == (0, 0, 0)


@quick
def test_holm():
    assert evidence.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert evidence.holm([0.02]) == [0.02] and evidence.holm([0.7, 0.8]) == [1.0, 1.0]
    assert evidence.holm([0.03, np.nan, 0.01]) == pytest.approx([0.03, np.nan, 0.02], nan_ok=True)


@quick
def test_all_lines_that_are_judged_share_the_error(tmp_path, run_compare):
    """B is higher on one task of three by p = 2 / 252; there are four lines, so times four."""
    tasks = {"Hopper-v4": (LOW, HIGH), "Ant-v4": (LOW, LOW[::-1]), "Walker2d-v4": (HIGH, HIGH)}
    for env_id, sides in tasks.items():
        for name, scores in zip("ab", sides, strict=True):
            make_side(tmp_path / name / env_id, scores, env_id=env_id)
    code, out, _ = run_compare(tmp_path / "a", tmp_path / "b")
    lines = cells(out, 1)
    ends = {line["task"]: line for line in lines if line["measured at"] == "end"}
    assert code == 0 and [*ends] == [*sorted(tasks), "all tasks, in sd"] and len(lines) == 8
    assert ends["Hopper-v4"]["p"] == f"{4 * 2 / 252:.3f}"
    assert ends["Hopper-v4"]["verdict"] == "B is higher" and ends["Ant-v4"]["p"] == "1.000"
    assert "Verdict: no difference seen. " in out and "On Hopper-v4 alone B is higher." in out
    assert "over 3 tasks, in standard deviations" in out
    make_side(tmp_path / "a" / "few", LOW[:3], env_id="Own-v0")
    make_side(tmp_path / "b" / "few", HIGH[:3], env_id="Own-v0")
    out = run_compare(tmp_path / "a", tmp_path / "b")[1]
    assert "No verdict: too few seeds. A has 3 and B has 3 on Own-v0; " in out
    assert "a verdict takes 4 a side (1 more of A and 1 more of B on Own-v0), " in out
    assert cells(out, 1)[1]["p"] == f"{3 * 2 / 252:.3f}"  # three lines are judged now
    assert "On Hopper-v4 alone B is higher." in out


@quick
@pytest.mark.parametrize("seeds, tasks, each", [(4, 2, 5), (5, 2, 5), (5, 7, 6), (4, 1, 4)])
def test_tasks_that_no_outcome_could_decide_are_not_judged_alone(
    tmp_path, run_compare, seeds, tasks, each
):
    """Of 4 seeds a side p is 2 / 70 at the least, which is above 0.05 for two tasks."""
    for number in range(tasks):
        for name, scores in (("a", LOW), ("b", HIGH)):
            folder = tmp_path / name / str(number)
            make_side(folder, scores[:seeds], env_id=f"Own{number}-v0")
    out = run_compare(tmp_path / "a", tmp_path / "b")[1]
    found = {line["verdict"] for line in cells(out, 1)[:tasks]}
    assert "\nVerdict: B is higher. " in out
    assert found == {"too few seeds" if seeds < each else "B is higher"}
    sentence = f"no task is judged alone, which takes {each} seeds a side on each."
    assert (sentence in out) == (seeds < each)
    assert "alone B is higher" not in out


@quick
def test_some_tasks_may_have_seeds_enough(tmp_path, run_compare):
    """Of 5 seeds a side p is 2 / 252 at the least, so that it is times 4; then 2 / 70 times 2."""
    for env_id, seeds in (("Ant-v4", 4), ("Hopper-v4", 5), ("Walker2d-v4", 4)):
        make_side(tmp_path / "a" / env_id, LOW[:seeds], env_id=env_id)
        make_side(tmp_path / "b" / env_id, HIGH[:seeds], env_id=env_id)
    out = run_compare(tmp_path / "a", tmp_path / "b")[1]
    verdicts = [line["verdict"] for line in cells(out, 1)[:4]]
    assert verdicts == ["too few seeds", "B is higher", "too few seeds", "B is higher"]
    assert "together: Ant-v4 and Walker2d-v4 cannot be judged alone, which takes 5 seeds" in out


@quick
@pytest.mark.parametrize("tasks", [1, 2, 6, 7, 30])
def test_the_seeds_that_are_asked_for_are_enough(tasks):
    """And one less is not: B is above A in all runs."""
    enough = evidence.seeds_for_each(tasks)
    for seeds in {max(4, enough - 1), enough}:
        a = np.arange(float(seeds))
        lines = evidence.judge({task: evidence.Pair(a, a + 99) for task in range(tasks)}, 5000)
        found = {line.verdict for line in lines[:tasks]}
        assert found == {"B is higher" if seeds == enough else "too few seeds"}


@quick
def test_mean_over_the_curve():
    """By trapezoids: (10 + 20) / 2 over 1 step, then (20 + 40) / 2 over 3."""
    curve = [(0, 10.0), (1, 20.0), (4, 40.0)]
    assert evidence.mean_over_curve(curve) == pytest.approx((15 + 3 * 30) / 4)
    assert evidence.mean_over_curve(curve[:1]) == 10


@quick
def test_end_is_the_last_tenth_and_the_curve_is_all_of_it(tmp_path, run_compare):
    for name, last in (("a", 1000), ("b", 2000)):
        for seed in range(4):
            scores = [*range(0, 1900, 100), last]  # 20: the last tenth are two
            make_run(tmp_path / name / str(seed), seed, scores, config=toml(SETTINGS))
    out = run_compare(tmp_path / "a", tmp_path / "b")[1]
    one, other = cells(out)
    assert (one["end"], other["end"]) == ("1400", "1900")
    curve = (sum(range(0, 1900, 100)) + 2000 / 2) / 19
    assert other["whole curve"] == f"{curve:.0f}"


def real_scores(env_id):
    """Return the scores of all committed runs of PPO with some settings, which differ widely."""
    runs = map(run_folders.read_run, run_folders.find_runs([ROOT / "results" / "ppo_choices"]))
    return np.array([run.score for run in runs if run.env_id == env_id])


def heavy_tail():
    """Return scores as those of 192 runs of SAC on HalfCheetah: one has failed altogether."""
    scores = np.random.default_rng(0).normal(11_920, 1317, 191)
    return np.append(scores, -566)


def share_called_different(pools, seeds, comparisons, resamples):
    """Return how often A and B from the same pools, one a task, get any verdict."""
    random = np.random.default_rng(seeds)
    count = 0
    for _ in range(comparisons):
        pairs = [evidence.Pair(*random.choice(pool, (2, seeds))) for pool in pools]
        lines = evidence.judge(dict(enumerate(pairs)), resamples)
        count += any(line.verdict in (evidence.HIGHER, evidence.LOWER) for line in lines)
    return count / comparisons


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_against_a_is_called_different_in_a_twentieth_at_most(seeds):
    """Often enough, though, that the rule is not one that never speaks."""
    pool = real_scores("HalfCheetah-v4")
    assert len(pool) == 16
    assert 0.005 < share_called_different([pool], seeds, 1000, 300) <= 0.05


def test_several_tasks_share_a_twentieth():
    pools = [real_scores("HalfCheetah-v4"), real_scores("Walker2d-v4")]
    assert 0 < share_called_different(pools, 5, 200, 300) <= 0.05


# --- the runs that would settle it ----------------------------------------------------------------
def commands(out):
    """Return the indented commands that are printed, those of several lines as one."""
    block = "\n".join(line[4:] for line in out.splitlines() if line.startswith("    "))
    return re.findall(r"^(?:SCRIPTS|python|mkdir|#).*(?:\n    .*)*", block, re.MULTILINE)


def settle(command, folder):
    """Return the runs of a sweep that a printed command would train, as lists of words."""
    environ = os.environ | {"ENGINE": "print", "PYTHON": sys.executable}
    command = command.replace("./benchmark.sh", str(ROOT / "benchmark.sh"))
    options = {"env": environ, "cwd": folder, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", command], check=True, **options)
    return [shlex.split(line.split("\t")[1]) for line in done.stdout.splitlines() if "\t" in line]


def value(words, name):
    """Return the last value of a flag."""
    return words[len(words) - words[::-1].index(name)]


def test_two_changes_come_with_the_runs_that_would_settle_it(tmp_path, run_compare):
    """One of each alone, on both sides' tasks and seeds, compared with both sides."""
    source = (ROOT / "sac_continuous.py").read_text("utf-8")
    for env_id in ("Hopper-v4", "Ant-v4"):
        for side, settings in (("a", {}), ("b", {"gamma": 0.98, "autotune": False})):
            own = {"autotune": True, "double": None} | settings
            folder = tmp_path / side / env_id
            make_side(folder, LOW[:2], env_id=env_id, settings=own, source=source)
    a, b = tmp_path / "a", tmp_path / "b"
    code, out, _ = run_compare(a, b)
    gamma, *_, autotune = [one for one in commands(out) if one.startswith("SCRIPTS=")]
    assert code == 2 and len(commands(out)) == 6
    for command, name, flags in (
        (gamma, "gamma", ["--gamma", "0.98"]),
        (autotune, "autotune", ["--no-autotune"]),
    ):
        runs = settle(command, tmp_path)
        assert len(runs) == 4
        for words in runs:
            env_id = value(words, "--env-id")
            assert words[1].endswith("sac_continuous.py")
            assert value(words, "--config") == str(a / env_id / "101" / "config.toml")
            assert value(words, "--total-timesteps") == "1000000"
            assert value(words, "--seed") in ("101", "102")
            assert value(words, "--run-dir").startswith(f"runs/only-{name}/")
            assert [flag for flag in ("--gamma", "--no-autotune") if flag in words] == flags[:1]
            assert words[words.index(flags[0]) :][: len(flags)] == flags
        for sides in ((a, f"runs/only-{name}"), (f"runs/only-{name}", b)):
            assert f"python tools/compare.py {sides[0]} {sides[1]}" in commands(out)


@quick
def test_three_changes_are_taken_one_by_one_from_either_side(tmp_path, run_compare):
    settings = {"gamma": 0.98, "double": True, "target_kl": 0.02}
    a = make_side(tmp_path / "a", LOW, settings={"target_kl": None})
    b = make_side(tmp_path / "b", HIGH, settings=settings)
    out = run_compare(a, b)[1]
    flags = re.findall(
        r"CONFIGS=\"\* Hopper-v4 (\S+)/101/config.toml\" .+\n.+--total-timesteps 1000000 (.+)", out
    )
    assert flags == [
        (str(a), "--gamma 0.98"),
        (str(b), "--gamma 0.99"),
        (str(a), "--double"),
        (str(b), "--no-double"),
        (str(a), "--target-kl 0.02"),
        (str(b), "--target-kl None"),
    ]
    assert out.count("runs/without-double") == 2  # where to, and what to compare


@quick
def test_changes_of_code_versions_and_scripts_name_what_to_do(tmp_path, run_compare):
    a = make_side(tmp_path / "a", LOW)
    versions = VERSIONS | {"torch": "2.12.0"}
    b = make_side(tmp_path / "b", HIGH, source=edited(FORWARD), versions=versions)
    words = commands(run_compare(a, b)[1])
    script = "mine/only-critic-forward.py"
    assert f"mkdir -p mine && cp {a}/101/script.py {script}" in words
    assert f"# make these in {script} as they are in {b}/101/script.py: Critic.forward" in words
    assert "# in an environment with torch 2.12.0" in words
    assert any(one.startswith(f"SCRIPTS={script} ") for one in words)
    assert any(one.startswith(f"SCRIPTS={a}/101/script.py ") for one in words)
    settings = {"gamma": 0.9, "double": None}
    c = make_side(tmp_path / "c", HIGH, script="td3_continuous", source="", settings=settings)
    words = commands(run_compare(a, c)[1])
    assert any(
        re.match(r"SCRIPTS=td3_continuous (.|\n)*c/101(.|\n)*--gamma 0.99$", one) for one in words
    )
    assert any(re.match(r"SCRIPTS=\S+/a/101/script.py (.|\n)*--gamma 0.9$", one) for one in words)


@quick
def test_many_changes_are_not_all_written_out(tmp_path, run_compare):
    settings = {f"setting_{number}": number for number in range(7)}
    fields = "".join(f"    {name}: int = 9\n" for name in settings)
    source = edited(("    double: bool", f"{fields}    double: bool"))
    b = make_side(tmp_path / "b", HIGH, settings=settings, source=source)
    a = make_side(tmp_path / "a", LOW, settings=dict.fromkeys(settings, 9), source=source)
    out = run_compare(a, b)[1]
    assert "And in the same way for setting_4, setting_5, setting_6." in out
    assert "only-setting-3" in out and "only-setting-4" not in out


OLD_SETTING = ("double: bool", "old_rate: float = 0.1\n    double: bool")


@quick
def test_settings_that_the_script_does_not_have_make_no_command(tmp_path, run_compare):
    """With two changes B without the other one takes the place of what cannot be trained."""
    a = make_side(tmp_path / "a", LOW)
    two = make_side(
        tmp_path / "two",
        HIGH,
        settings={"gamma": 0.98, "old_rate": 0.7},
        source=edited(OLD_SETTING),
    )
    code, out, _ = run_compare(a, two)
    assert code == 2 and "CONFOUNDED: gamma, old_rate. " in out
    titles = re.findall("^(A with only .+|B without .+):$", out, re.MULTILINE)
    assert titles == ["A with only gamma of B", "B without gamma"]
    reason = f"{a}/101/script.py has no --old-rate: A with only old_rate of B."
    assert f"\nCannot be trained, as {reason}\n" in out
    assert "--old-rate" not in "".join(commands(out))
    out = run_compare(two, a)[1]  # what A lacks is at its default in the script that has it
    assert "--total-timesteps 1000000 --old-rate 0.1\n" in out and "--old-rate None" not in out


@quick
def test_runs_of_an_earlier_script_are_not_trained_again(tmp_path, run_compare):
    """Its settings are in config.toml, which the script of today would refuse."""
    settings = {"gamma": 0.98, "tau": 0.01, "old_rate": 0.7, "double": None}
    a = make_side(tmp_path / "a", LOW, source="", settings={"double": None, "tau": 0.005})
    b = make_side(tmp_path / "b", HIGH, source="", settings=settings)
    out = run_compare(a, b)[1]
    (sentence,) = re.findall("^Cannot .+$", out, re.MULTILINE)
    assert sentence == (
        "Cannot be trained, as sac_continuous.py has no --old-rate: B without gamma; "
        "B without tau; A with only old_rate of B; B without old_rate."
    )
    assert "old-rate" not in "".join(commands(out))
    trained = [one for one in commands(out) if one.startswith("SCRIPTS=")]
    assert len(trained) == 2 and all(f"{a}/101/config.toml" in one for one in trained)
    b = make_side(tmp_path / "c", HIGH, source="", settings={"gamma": 0.9, "tau": 1, "old": 2})
    make_side(tmp_path / "d", HIGH, source="", settings={"old": 3})
    out = run_compare(tmp_path / "d", b)[1]
    assert not commands(out) and "These runs would settle it" not in out


@quick
def test_a_script_that_is_not_here_makes_no_command(tmp_path, run_compare):
    options = {"script": "lost", "source": ""}
    a = make_side(tmp_path / "a", LOW, **options)
    b = make_side(tmp_path / "b", HIGH, settings={"gamma": 0.9, "double": True}, **options)
    out = run_compare(a, b)[1]
    assert "Cannot be trained, as lost.py is not here and the runs have no script.py: A " in out
    assert not commands(out)


# --- journal --------------------------------------------------------------------------------------
@quick
def test_journal(tmp_path, run_compare, monkeypatch):
    """An entry has what was asked and measured; entries are added at the end."""
    monkeypatch.chdir(tmp_path)
    notes = "does a shorter\nhorizon help?"
    make_side(Path("a"), LOW, settings={"notes": "old"})
    make_side(Path("b"), HIGH, settings={"gamma": 0.98, "notes": notes})
    make_side(Path("c"), HIGH, settings={"gamma": 0.98, "double": True})
    code, out, _ = run_compare("a", "b", "--journal")
    text = Path("JOURNAL.md").read_text()
    assert code == 0 and re.match(r"# Journal\n\n## \d{4}-\d\d-\d\d: gamma\n\n", text)
    assert "- Question: does a shorter horizon help?\n- Changed: gamma 0.99 -> 0.98\n" in text
    assert (
        "- A: `a`, 5 runs of sac_continuous, seeds 101 to 105; Hopper-v4, 1,000,000 steps\n" in text
    )
    (verdict,) = re.findall("^Verdict: (.+)$", out, re.MULTILINE)
    assert f"- Outcome: {verdict}\n" in text and cells(text) == cells(out, 1)
    assert run_compare("a", "c", "--journal")[0] == 2
    more = Path("JOURNAL.md").read_text()
    assert more.startswith(text) and more.count("\n## ") == 2 and more.count("# Journal") == 1
    assert "- Question: none noted (--notes)\n" in more
    assert "- Outcome: CONFOUNDED: gamma, double. " in more and "higher" not in more[len(text) :]
    assert run_compare("a", "b", "--journal", "mine.md")[0] == 0 and Path("mine.md").exists()


@quick
def test_journal_has_an_entry_once(tmp_path, run_compare, monkeypatch):
    """Also on another day and after others; not if a run was added since. It says what it did."""
    monkeypatch.chdir(tmp_path)
    make_side(Path("a"), LOW)
    make_side(Path("b"), HIGH, settings={"gamma": 0.98})
    make_side(Path("c"), HIGH, settings={"gamma": 0.98, "double": True})
    journal = Path("JOURNAL.md")
    journal.touch()
    for sides in ("ab", "ac"):
        assert run_compare(*sides, "--journal")[1].endswith("\nWritten to JOURNAL.md.\n")
    text = journal.read_text().replace("## 2", "## 1")
    assert text.startswith("# Journal\n\n## ") and text.count("\n## ") == 2
    journal.write_text(text)
    for sides in ("ab", "ac"):
        out = run_compare(*sides, "--journal")[1]
        assert out.endswith("\nAlready in JOURNAL.md: nothing was written.\n")
    assert journal.read_text() == text
    text += "\nA thought of mine.\n"
    journal.write_text(text)
    assert run_compare("a", "c", "--journal")[1].endswith("nothing was written.\n")
    make_side(Path("a"), [150], seeds=[106])
    assert run_compare("a", "b", "--journal")[1].endswith("\nWritten to JOURNAL.md.\n")
    assert journal.read_text().startswith(text) and journal.read_text().count("\n## ") == 3
    journal.write_bytes(b"\xff")
    code, out, err = run_compare("a", "b", "--journal")
    assert (code, out, err.count("\n")) == (2, "", 1) and "no text" in err


@quick
@pytest.mark.parametrize("arguments", [["--journal", "a", "b"], ["a", "b", "--journal", "no/x.md"]])
def test_journal_writes_into_no_run(tmp_path, run_compare, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    make_side(Path("a"), LOW)
    make_side(Path("b"), HIGH)
    code, out, err = run_compare(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: --journal ")
    assert not list(tmp_path.rglob("*.md"))


# --- all runs in one table ------------------------------------------------------------------------
@quick
def test_table_has_what_differs(tmp_path, run_compare):
    make_side(tmp_path / "base", LOW)
    make_side(tmp_path / "one", HIGH[:3], settings={"gamma": 0.98, "threads": 4, "notes": "x"})
    make_side(tmp_path / "two", [7, 300], settings={"gamma": 0.98, "double": True})
    make_side(tmp_path / "code", HIGH[:1], source=edited(FORWARD))
    make_side(tmp_path / "text", [400], seeds=[200], source=edited(("# two", "")))
    make_side(tmp_path / "ant", HIGH[:1], env_id="Ant-v4")
    code, out, _ = run_compare("--table", tmp_path)
    lines = cells(out)
    titles = [
        "environment",
        "gamma",
        "double",
        "code",
        "seeds",
        "IQM",
        "lowest",
        "failed",
        "changes",
    ]
    assert code == 0 and [*lines[0]] == titles
    found = [[line[name] for name in titles if name != "code"] for line in lines]
    assert found == [
        ["Ant-v4", "0.99", "false", "1, anecdote", "200", "200", "0 of 1", "baseline"],
        ["Hopper-v4", "0.99", "false", "6, exploratory", "125", "100", "0 of 6", "baseline"],
        ["Hopper-v4", "0.99", "false", "1, anecdote", "200", "200", "0 of 1", "1: Critic.forward"],
        ["Hopper-v4", "0.98", "false", "3, smoke", "210", "200", "0 of 3", "1: gamma"],
        ["Hopper-v4", "0.98", "true", "2, smoke", "154", "7", "1 of 2", "2: gamma, double"],
    ]
    codes = [line["code"] for line in lines]
    assert codes[0] == codes[1] != codes[2] and len({*codes}) == 2
    versions = VERSIONS | {"torch": "2.12.0"}
    make_side(tmp_path / "new", HIGH[:1], script="my_td3", source="", versions=versions)
    make_side(tmp_path / "new" / "old", HIGH[:1], script="my_td3", source="")
    out = run_compare("--table", f"{tmp_path}/ba*", tmp_path / "new")[1]
    assert re.findall("^### .+$", out, re.MULTILINE) == [
        "### my_td3, Hopper-v4, 1,000,000 steps",
        "### sac_continuous, Hopper-v4, 1,000,000 steps",
    ]
    assert [line["torch"] for line in cells(out)] == ["2.12.0", "2.13.0"]
    assert "gamma" not in out and "torch" not in cells(out, 1)[0]


def make_wide_sides(folder, count):
    """Write runs that differ in settings with long names, and those of two tasks more."""
    names = [f"a_setting_with_a_name_{number:02}" for number in range(count)]
    fields = "".join(f"    {name}: int = 1\n" for name in names)
    source = edited(("    double: bool", f"{fields}    double: bool"))
    make_side(folder / "base", LOW, settings=dict.fromkeys(names, 1), source=source)
    for name in names:
        settings = dict.fromkeys(names, 1) | {name: 22.5}
        make_side(folder / name, HIGH[:1], settings=settings, source=source)
    for env_id in ("Ant-v4", "Walker2d-v4"):
        make_side(folder / env_id, HIGH[:1], env_id=env_id)


@quick
@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("count", [2, 4, 12])
def test_tables_are_at_most_100_columns_wide(
    tmp_path, run_compare, monkeypatch, is_terminal, count
):
    """One for each task if need be, turned if still too wide, and then in several parts."""
    make_wide_sides(tmp_path, count)
    if is_terminal:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    out = run_compare("--table", tmp_path)[1]
    assert max(map(len, out.splitlines())) <= 100
    headings = re.findall("^(?:### )?(sac_continuous.+)$", out, re.MULTILINE)
    assert headings == [
        "sac_continuous, Hopper-v4, 1,000,000 steps",
        "sac_continuous, tasks on which all runs are alike",
    ]
    for number in range(count):
        assert f"a_setting_with_a_name_{number:02}" in out
    if count == 12 and not is_terminal:
        parts = [cells(out, place) for place in range(len(re.findall("(?m)^. ---", out)))]
        *parts, last = parts
        assert len(parts) > 1 and [line["environment"] for line in last] == [
            "Ant-v4",
            "Walker2d-v4",
        ]
        places = [title for part in parts for title in part[0] if title]
        assert places == [str(place) for place in range(1, 14)]
        found = {}
        for part in parts:
            for line in part:
                found.setdefault(line.pop(""), []).extend(line.values())
        assert found["changes"] == ["baseline", *12 * ["1"]]
        assert found["IQM"] == ["120", *12 * ["200"]]
        assert found["a_setting_with_a_name_03"] == [*4 * ["1"], "22.5", *8 * ["1"]]
        assert "\nChanges of 5: a_setting_with_a_name_03.\n" in out


@quick
def test_a_setting_that_is_new_at_its_default_is_no_column(tmp_path, run_compare):
    make_side(tmp_path / "a", LOW, settings={"gamma": 0.98})
    new = edited(("double: bool", "triple: int = 7\n    double: bool"))
    make_side(tmp_path / "b", HIGH, source=new, settings={"triple": 7})
    (one, other) = cells(run_compare("--table", tmp_path)[1])
    assert "gamma" in one and "triple" not in one and "double" not in one
    assert one["changes"] == "baseline" and other["changes"] == "1: gamma"


@quick
def test_table_of_equal_and_unfinished_runs(tmp_path, run_compare):
    make_side(tmp_path, LOW)
    living = tmp_path / "Hopper-v4__sac_continuous__9__9"
    make_run(living, 9, [0, 1], status="", source=SOURCE, config=toml(SETTINGS))
    (line,) = cells(run_compare("--table", tmp_path)[1])
    assert line["seeds"] == "5, exploratory, 1 unfinished" and line["changes"] == "baseline"
    assert (line["IQM"], line["lowest"], line["failed"]) == ("120", "100", "0 of 5")
    (line,) = cells(run_compare("--table", living)[1])
    assert (line["seeds"], line["IQM"]) == ("0, 1 unfinished", "none")


# --- input and output -----------------------------------------------------------------------------
@quick
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a"],
        ["a", "b", "c"],
        ["a", "gone"],
        ["gone*", "b"],
        ["a", "empty"],
        ["a", "a"],
        ["a", "a/101"],
        ["--table"],
        ["--table", "gone"],
        ["a", "b", "--table", "a"],
        ["--table", "a", "--journal"],
        ["--table", "a", "--bundle", "b"],
        ["--describe-only", "--table", "a"],
        ["a", "b", "--nonsense"],
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, run_compare, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    make_side(Path("a"), LOW)
    make_side(Path("b"), HIGH)
    make_side(Path("c"), HIGH)
    Path("empty").mkdir()
    code, out, err = run_compare(*arguments)
    assert code == 2 and out == ""
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert line == err.splitlines()[-1] and "Traceback" not in err


@quick
def test_what_is_no_run_is_not_counted(tmp_path, run_compare):
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH)
    (b / "101" / "config.toml").write_text("{")
    code, out, err = run_compare(a, b)
    assert code == 0 and "B: 4 runs of sac_continuous" in out
    assert err.startswith(f"not counted: {b / '101'} is no run (") and err.count("\n") == 1


@quick
def test_runs_of_a_sweep_and_patterns(tmp_path, run_compare):
    """As benchmark.sh ab names them."""
    sides = []
    for name, scores in (("a-sac_continuous", LOW), ("b-sac_continuous", HIGH)):
        make_side(tmp_path / name / "Hopper-v4", scores)
        sides.append(f"{tmp_path / name}/*/*")
    code, out, err = run_compare(*sides)
    assert (code, err) == (0, "") and "Verdict: B is higher" in out
    assert (
        run_compare(*(side.removesuffix("/*/*") for side in sides))[1].split("\n")[5:]
        == out.split("\n")[5:]
    )


@quick
@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_a_terminal(tmp_path, run_compare, monkeypatch, width):
    a, b = make_side(tmp_path / "a", LOW), make_side(tmp_path / "b", HIGH)
    piped = run_compare(a, b)[1]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run_compare(a, b, "--markdown")[1] == piped
    out = run_compare(a, b)[1]
    tables = out[out.index("\ntask ") :]
    assert (
        max(map(len, out.splitlines())) <= max(width, len(f"- B: 5 runs in {b}")) and "|" not in out
    )
    for line in cells(piped):
        assert {*" ".join(line.values()).split()} <= {*tables.split()}


TOOL = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tools' / 'compare.py'))}"


def test_a_reader_may_stop(tmp_path):
    """And the journal is written all the same."""
    for name, scores in (("a", LOW), ("b", HIGH)):
        make_side(tmp_path / name, scores, settings={f"setting_{i}": name for i in range(900)})
    command = f"set -o pipefail; {TOOL} a b --journal | head -1; echo ${{PIPESTATUS[0]}}"
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", command], **options)
    assert done.stdout == "- A: 5 runs of sac_continuous in a\n2\n" and done.stderr == ""
    assert (tmp_path / "JOURNAL.md").exists()


def test_without_scipy_a_sentence_says_what_to_install(tmp_path):
    (tmp_path / "scipy.py").write_text("raise ImportError(name='scipy')\n")
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(f"{TOOL} a b", shell=True, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: scipy is missing: pip install -r requirements.txt\n"


def main():
    """Print the table of results/aa.md."""
    comparisons = int(sys.argv[1])
    cheetah, walker = (real_scores(f"{name}-v4") for name in ("HalfCheetah", "Walker2d"))
    pools = {
        "PPO on HalfCheetah-v4, 16 runs": [cheetah],
        "PPO on Walker2d-v4, 15 runs": [walker],
        "both tasks": [cheetah, walker],
        "192 runs as of SAC on HalfCheetah, one failed": [heavy_tail()],
    }
    print("| drawn from | 4 seeds a side | 5 | 10 |\n|---|---|---|---|")
    for name, tasks in pools.items():
        found = [share_called_different(tasks, seeds, comparisons, 1000) for seeds in (4, 5, 10)]
        print(f"| {name} | {' | '.join(f'{100 * share:.1f} %' for share in found)} |", flush=True)


if __name__ == "__main__":
    main()
