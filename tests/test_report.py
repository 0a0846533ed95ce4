"""tools/report.py: what it counts, what it keeps apart, its statistics, and what it made."""

import gzip
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT / "tools"))
report = importlib.import_module("report")
run_folders = importlib.import_module("run_folders")
text_tables = importlib.import_module("text_tables")

VERSIONS = {"python": "3.11.7 (main)", "torch": "2.13.0", "gymnasium": "1.4.0"}
VERSIONS |= {"mujoco": "3.17.0", "ale-py": "0.12.1"}
quick = pytest.mark.quick


def make_run(folder, seed=1, scores=(0, 3000), env_id="Hopper-v4", steps=1_000_000, **more):
    """Write what the report reads of a run; without a status it has no summary."""
    options = {"status": "finished", "script": "sac_continuous", "config": "", "source": ""}
    options |= {"versions": VERSIONS, "returns": (), "step": steps, "flags": [], "command": None}
    options |= more
    folder.mkdir(parents=True)
    config = f'env_id = "{env_id}"\nseed = {seed}\ntotal_timesteps = {steps}\n'
    (folder / "config.toml").write_text(config + options["config"])
    places = np.linspace(0, options["step"], max(len(scores), 2)).astype(int).tolist()
    rows = [
        {"global_step": 0, "seconds": 1.0, "charts/episodic_return": x} for x in options["returns"]
    ]
    rows += [{"seconds": 10, "charts/SPS": 1, "time/update": 0.7, "time/env": 0.3}]
    rows += [{"seconds": 40, "charts/SPS": 1, "time/update": 0.9, "time/env": 0.1}]
    rows += [
        {"global_step": at, "seconds": 50, "eval/return_mean": score}
        for at, score in zip(places, scores, strict=False)
    ]
    rows = [{"global_step": options["step"]} | row for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if options["source"]:
        (folder / "script.py").write_text(options["source"])
    if options["status"]:
        summary = {
            "status": options["status"],
            "command": options["command"] or [f"here/{options['script']}.py", *options["flags"]],
        }
        summary |= {"seconds": 600, "versions": options["versions"], "hardware": "a machine"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def run_report(monkeypatch, capsys):
    """Return a function that runs the tool and returns its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        report.main()
        return capsys.readouterr().out

    return run


def cells(out, number=0):
    """Return the lines of one of the printed tables, each a dict by title."""
    tables = re.findall(r"(?:^\|.*\n)+", out, re.MULTILINE)
    lines = [
        [c.strip() for c in line.strip("|\n").split(" | ")] for line in tables[number].splitlines()
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


# --- what is counted ------------------------------------------------------------------------------
@quick
def test_scores_training_and_times(tmp_path, run_report):
    scores = [0, *range(900, 2800, 100), 1000, 2000]  # 22: the last tenth are three
    runs = [make_run(tmp_path / "3", 3, scores, returns=range(150))]
    runs += [make_run(tmp_path / "20", 20, [0, 3000], returns=[7])]
    text = (runs[0] / "metrics.jsonl").read_bytes()
    (runs[0] / "metrics.jsonl.gz").write_bytes(gzip.compress(text))
    (runs[0] / "metrics.jsonl").unlink()
    out = run_report(*runs)
    (line,) = cells(out)
    assert line["score by seed"] == "3: 1900, 20: 3000"
    assert line["mean"] == "2450 (1900 to 3000)"
    assert (line["script"], line["environment"], line["steps"]) == (
        "sac_continuous",
        "Hopper-v4",
        "1,000,000",
    )
    assert (line["seeds"], line["IQM"], line["minimum"]) == ("2, smoke", "the mean", "1900")
    assert cells(out, 1)[0]["training"] == f"{(99.5 + 7) / 2:.3g}"
    times = cells(out, 2)[0]
    assert (times["time"], times["steps/s"], times["last/first"]) == ("10 min", "1667", "unknown")
    assert (times["update"], times["env"], times["eval"]) == ("90%", "10%", "0%")
    assert "- a machine, Python 3.11.7, torch 2.13.0, gymnasium 1.4.0, mujoco 3.17.0\n" in out


@quick
def test_shares_of_time_are_of_the_runs_that_have_some(tmp_path, run_report):
    make_run(tmp_path / "1")
    begun = make_run(tmp_path / "2", 2, status="failed")
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "metrics.jsonl").write_text("".join(line for line in lines if "SPS" not in line))
    times = cells(run_report(tmp_path), 2)[0]
    assert (times["update"], times["env"]) == ("90%", "10%")


@quick
@pytest.mark.parametrize("end, last, value", [(300, 100, 8), (70, 70, 6)])
def test_a_published_curve_ends_where_its_data_do(monkeypatch, end, last, value):
    from matplotlib.figure import Figure

    curve = report.Curve("theirs", np.array([0, 40, 100]), np.array([0, 4, 8]))
    monkeypatch.setattr(report, "published_curves", lambda name, env_id: [curve])
    axes = Figure().subplots()
    report.draw_published(axes, "sac", "Hopper-v4", end, "0.5")
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0, 40, last]
    assert line.get_ydata().tolist() == [0, 4, value]


@quick
def test_speeds_of_several_seeds_are_a_span(tmp_path, run_report):
    """600 s each."""
    for seed, steps in enumerate((252_000, 186_000, 210_000)):
        make_run(tmp_path / str(seed), seed, step=steps)
    assert cells(run_report(tmp_path), 2)[0]["steps/s"] == "310-420"


def test_scores_are_those_of_the_summaries():
    paths = [*(ROOT / "results").glob("*_continuous/*/*/summary.json")]
    assert len(paths) > 20
    for path in paths:
        summary = json.loads(path.read_text())
        run = report.read_run(path.parent)
        assert run.score == pytest.approx(summary["eval_last_tenth"])
        assert run.sps == pytest.approx(summary["SPS"])


@quick
@pytest.mark.parametrize(
    "n, label", [(1, "anecdote"), (2, "smoke"), (3, "smoke"), (4, "smoke"), (5, "exploratory")]
)
def test_labels_by_seeds(tmp_path, run_report, n, label):
    out = run_report(*(make_run(tmp_path / str(s), s, [0, 2000 + s]) for s in range(n)))
    (line,) = cells(out)
    assert line["seeds"] == f"{n}, {label}"
    assert ("[" in line["mean"]) == (n > 4) and (line["IQM"] == "the mean") == (n < 4)
    assert (f"(2000 to {1999 + n})" in line["mean"]) == (1 < n < 5)


@quick
def test_ten_seeds_allow_a_claim(tmp_path, run_report):
    runs = [make_run(tmp_path / str(s), s, [0, 1000 * s]) for s in range(10)]
    (line,) = cells(run_report(*runs))
    assert line["seeds"] == "10, claim" and line["IQM"].startswith("4500 [")


@quick
def test_failures_are_counted(tmp_path, run_report):
    """Low is below random (17.7) + a tenth of (2730, which is published, - random), that is 289."""
    runs = [make_run(tmp_path / "good", 1), make_run(tmp_path / "enough", 2, [0, 290])]
    runs += [
        make_run(tmp_path / "low", 3, [0, 287]),
        make_run(tmp_path / "none", 6, [], status="failed"),
    ]
    runs += [
        make_run(tmp_path / s, 4 + (s > "g"), status=s, step=500) for s in ("failed", "interrupted")
    ]
    killed = make_run(tmp_path / "Hopper-v4__sac_continuous__7__1", 7, status="", step=700)
    os.utime(killed / "metrics.jsonl", (time.time() - 2000,) * 2)
    out = run_report(*runs, killed)
    (line,) = cells(out)
    assert line["failures"] == "5 of 7" and line["seeds"] == "6 of 7, exploratory"
    assert "4: 3000 (failed, 500 of 1,000,000 steps)" in out
    assert "5: 3000 (interrupted, 500 of 1,000,000 steps)" in out
    assert "6: none (failed, 1,000,000 of 1,000,000 steps)" in out
    assert "7: 3000 (killed, 700 of 1,000,000 steps)" in out
    assert line["minimum"] == "287" and line["mean"].startswith("2096 [")


@quick
def test_living_runs_are_shown_and_not_pooled(tmp_path, run_report):
    """Their script is that of the folder's name or of script.py; a line may be half written."""
    living = {"status": "", "step": 400_000}
    runs = [make_run(tmp_path / "1", 1), make_run(tmp_path / "2", 2, [0, 2000])]
    runs += [make_run(tmp_path / "Hopper-v4__sac_continuous__3__9", 3, [0, 100], **living)]
    with open(runs[2] / "metrics.jsonl", "a") as file:
        file.write('{"global_step": 4')
    (line,) = cells(run_report(*runs))
    assert (
        line["seeds"] == "2, smoke, 1 living"
        and line["mean"] == "2500 (2000 to 3000)"
        and line["failures"] == "0 of 2"
    )
    assert line["score by seed"].endswith("3: 100 (living, 400,000 of 1,000,000 steps)")
    source = '"""TD3.\n\npython td3_continuous.py\n"""'
    run = make_run(tmp_path / "a" / "1", 1, [0, 100], source=source, **living)
    (line,) = cells(run_report(run))
    assert line["script"] == "td3_continuous" and line["seeds"] == "1, anecdote, 1 living"
    assert (line["mean"], line["failures"]) == ("100", "0 of 1")


@quick
def test_an_odd_id_is_compared_with_nothing():
    assert report.comparable("Hopper-v3", "Hopper-v4")
    assert not report.comparable("Hop\nper-v4", "Hopper-v4")


@quick
def test_seeds_without_a_score_claim_nothing(tmp_path, run_report):
    """Ten runs of which seven died before their first evaluation are three seeds."""
    runs = [make_run(tmp_path / str(seed), seed, [0, 1900]) for seed in range(3)]
    runs += [make_run(tmp_path / str(seed), seed, [], status="failed") for seed in range(3, 10)]
    assert cells(run_report(*runs))[0]["seeds"] == "3 of 10, smoke"
    assert cells(run_report(*runs[3:]))[0]["seeds"] == "0 of 7, no score"


@quick
def test_seeds_that_were_evaluated_at_other_steps_have_no_common_line(tmp_path, run_report):
    runs = [make_run(tmp_path / str(step), step, [7, 9], step=step) for step in (600, 1000)]
    for run in runs:
        rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(rows[:-2] + rows[-1:]))  # not that at step 0
    run_report(*runs, "--plots", tmp_path / "plots")
    assert (tmp_path / "plots" / "Hopper-v4.png").stat().st_size > 1000
    axes = Figure().subplots()
    report.draw_row(
        axes, report.rows_of([run_folders.read_run(run) for run in runs])[0][0], "", "C0"
    )
    assert [text.get_text() for text in axes.legend().get_texts()] == [
        "sac_continuous, no common steps"
    ]


@quick
def test_a_run_that_has_only_begun(tmp_path, run_report):
    run = make_run(tmp_path / "Hopper-v4__sac_continuous__3__9", 3, [], status="")
    (run / "metrics.jsonl").write_text("")
    (line,) = cells(run_report(run, "--plots", tmp_path / "plots"))
    assert line["score by seed"] == "3: none (living, 0 of 1,000,000 steps)"
    assert (line["mean"], line["minimum"]) == ("none", "none")


@quick
def test_short_runs_are_labelled_and_not_judged(tmp_path, run_report):
    """Walker2d is published for 90,000 steps and more."""
    runs = [make_run(tmp_path / str(n), 1, [0, 5], "Walker2d-v4", n) for n in (44_000, 46_000)]
    short, long = cells(run_report(*runs))
    assert short["steps"] == "44,000, short" and short["failures"] == "0 of 1, early ends only"
    assert long["steps"] == "46,000" and long["failures"] == "1 of 1"
    assert "at 90,000 steps" in short["published evaluations"]


@quick
def test_random_is_measured_or_the_evaluation_at_step_0(tmp_path, run_report):
    """(300 - 100) / (3457 - 100) is below a tenth; from the 17.7 of Hopper-v4 it would not be."""
    runs = [
        make_run(tmp_path / "3", 1, [100, 400], "Hopper-v3"),
        make_run(tmp_path / "4", 1, [100, 400]),
    ]
    out = run_report(*runs)
    assert [line["failures"] for line in cells(out)] == ["1 of 1", "0 of 1"]
    assert "Random is the evaluation at step 0: Hopper-v3." in out


# --- what is kept apart ---------------------------------------------------------------------------
@quick
@pytest.mark.parametrize("name", ["mujoco", "gymnasium", "ale-py", "torch"])
def test_versions_are_kept_apart(tmp_path, run_report, name):
    """PyTorch's are not: no task depends on it. Only games depend on ale-py, and not on MuJoCo."""
    for env_id in ("Hopper-v4", "PongNoFrameskip-v4"):
        folder = tmp_path / env_id
        runs = [make_run(folder / str(s), s, env_id=env_id) for s in (1, 2)]
        runs += [make_run(folder / "3", 3, env_id=env_id, versions=VERSIONS | {name: "9.9"})]
        out = run_report(*runs)
        counts = name == "gymnasium" or name == ("mujoco" if env_id == "Hopper-v4" else "ale-py")
        assert len(cells(out)) == 1 + counts
        assert (f"Kept apart, as they differ: {name}." in out) == counts
        assert (f"sac_continuous {name}=9.9" in out) == counts


@quick
def test_versions_of_a_script_and_settings_are_kept_apart(tmp_path, run_report):
    runs = [make_run(tmp_path / str(s), s, source="a") for s in (1, 2)]
    runs += [make_run(tmp_path / "3", 3, source="b"), make_run(tmp_path / "4", 4)]
    out = run_report(*runs)
    assert len(cells(out)) == 3 and "Kept apart, as they differ: script.py." in out
    aside = 'notes = "a"\ntrack = true\ncapture_video = false\nlog_every = 7\nconfig = "c.toml"\n'
    aside += 'checkpoint_every = 7\nwandb_project_name = "a"\nwandb_entity = "b"\n'
    runs = [make_run(tmp_path / "1.2", 2, config=f"lr = 1\n{aside}")]
    runs += [make_run(tmp_path / "1.1", 1, config="lr = 1\n")]
    runs += [make_run(tmp_path / f"2.{s}", s, config="lr = 2\n") for s in (1, 2)]
    runs += [make_run(tmp_path / "none", 1)]
    runs += [make_run(tmp_path / "pole", 1, env_id="InvertedPendulum-v4", config="lr = 3\n")]
    out = run_report(*runs)
    names = Counter((line["script"], line["seeds"].split(",")[0]) for line in cells(out))
    names = {*names}
    assert names == {
        (f"sac_continuous{a}", n)
        for a, n in ((" --lr 1", "2"), (" --lr 2", "2"), (" --lr None", "1"), ("", "1"))
    }
    assert "Kept apart, as they differ: lr." in out


@quick
def test_a_living_run_has_the_versions_of_the_others_if_they_agree(tmp_path, run_report):
    runs = [make_run(tmp_path / "1", 1)]
    runs += [make_run(tmp_path / "Hopper-v4__sac_continuous__2__9", 2, status="")]
    assert len(cells(run_report(*runs))) == 1
    runs += [make_run(tmp_path / "3", 3, versions=VERSIONS | {"mujoco": "9.9"})]
    assert len(cells(run_report(*runs))) == 3


@quick
def test_atari_has_its_protocol_in_its_name(tmp_path, run_report):
    games = [("BreakoutNoFrameskip-v4", "on"), ("BreakoutNoFrameskip-v4", "off")]
    games += [("ALE/Breakout-v5", "off"), ("ALE/Breakout-v5", "auto"), ("ALE/Breakout-v5", "on")]
    names = []
    for i, (env_id, life_loss) in enumerate(games):
        config = f'life_loss = "{life_loss}"\n'
        options = {"config": config, "script": "dqn_atari", "steps": 10_000_000}
        (line,) = cells(run_report(make_run(tmp_path / str(i), 1, [0, 90], env_id, **options)))
        names.append((line["environment"], line["published evaluations"].split(" ")[0]))
    assert names == [
        ("BreakoutNoFrameskip-v4 (Nature's: no sticky actions, lost lives end)", "114"),
        ("BreakoutNoFrameskip-v4 (no sticky actions, lost lives do not end)", "114"),
        ("ALE/Breakout-v5 (Machado's: sticky actions, lost lives do not end)", "none"),
        ("ALE/Breakout-v5 (Machado's: sticky actions, lost lives do not end)", "none"),
        ("ALE/Breakout-v5 (sticky actions, lost lives end)", "none"),
    ]
    small = {"env_id": "PongNoFrameskip-v0", "frame_size": 36, "life_loss": "off"}
    assert report.rules(small) == " (sticky actions, lost lives do not end, 36 x 36 pixels)"
    assert report.rules({"env_id": "PongNoFrameskip-v0"}).startswith(" (Machado's: sticky")
    assert report.rules({"env_id": "Breakout-v4", "life_loss": "on"}).startswith(" (Nature's: no")
    assert not report.rules({"env_id": "my_module:Game-v0", "life_loss": "on"})


SOURCE = '''"""A script.

python sac_continuous.py --env-id Hopper-v4
"""

BASE = 7

@dataclass
class Args:
    """Settings."""

    env_id: str = "Hopper-v4"
    total_timesteps: int = 1_000_000
    seed: int = 1
    gamma: float = 0.99
    lr: float = 3e-4  # step size
    double: bool = False
    anneal: bool = True
    target_kl: float | None = None
    norm: str = "layer norm"
    sizes: tuple[int, ...] = (64, 64)
    width: int = 2 * 128  # computed, so that it has no known default
    threads: int | None = None
    notes: str = ""
    run_dir: str | None = None


class Other:
    gamma: float = 0.5
'''
DEFAULTS = """gamma = 0.99
lr = 0.0003
double = false
anneal = true
norm = "layer norm"
sizes = [64, 64]
width = 256
threads = 2
"""


def changed(name, value):
    """Return DEFAULTS with another value of a setting; without it for nothing."""
    lines = [line for line in DEFAULTS.splitlines() if not line.startswith(f"{name} =")]
    return "\n".join([*lines, f"{name} = {value}" if value else ""]) + "\n"


@quick
@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("gamma", "0.5", " --gamma 0.5"),
        ("gamma", "0.990", ""),
        ("lr", "3e-4", ""),
        ("lr", "1", " --lr 1"),
        ("double", "true", " --double"),
        ("anneal", "false", " --no-anneal"),
        ("target_kl", "0.02", " --target-kl 0.02"),
        ("norm", '"none"', " --norm none"),
        ("norm", '"two words"', " --norm 'two words'"),
        ("norm", "", " --norm None"),
        ("norm", '"a|b"', " --norm 'a\\|b'"),
        ("sizes", "[32, 16]", " --sizes 32 16"),
        ("width", "64", ""),
        ("threads", "1", ""),
        ("seed_offset", "3", ""),
        ("notes", '"see --gamma 0.5 --double"', ""),
        ("config", '"other.toml"', ""),
        ("checkpoint_every", "77", ""),
    ],
)
def test_settings_are_those_of_config_against_the_defaults_of_the_script(
    tmp_path, run_report, name, value, shown
):
    """The command says nothing of them, or something else."""
    config = changed(name, value)
    commands = [["sac_continuous.py"], ["sac_continuous.py", "--config", "a.toml"]]
    commands += [["sac_continuous.py", "--notes", "see --gamma 0.5", "--lr=9", "--double"]]
    for number, command in enumerate(commands):
        folder = tmp_path / str(number)
        make_run(folder, config=config, source=SOURCE, command=command)
        (line,) = cells(run_report(folder))
        assert line["script"] == f"sac_continuous{shown}"


@quick
def test_a_variant_and_its_baseline_are_rows(tmp_path, run_report):
    """What is a default is not named; a setting without a known default is, where it differs."""
    kinds = [DEFAULTS, changed("gamma", "0.5"), changed("threads", "1"), changed("width", "64")]
    for number, config in enumerate(kinds):
        for seed in (1, 2):
            make_run(tmp_path / f"{number}-{seed}", seed, config=config, source=SOURCE)
    out = run_report(tmp_path)
    assert [line["script"].removeprefix("sac_continuous") for line in cells(out)] == [
        " --gamma 0.5 --threads 2 --width 256",
        " --threads 1 --width 256",
        " --threads 2 --width 256",
        " --threads 2 --width 64",
    ]
    assert {line["seeds"] for line in cells(out)} == {"2, smoke"}
    assert "Kept apart, as they differ: gamma, threads, width." in out


@quick
def test_without_a_source_defaults_are_those_of_the_script_here(tmp_path, run_report):
    config = "learning_starts = 10000\ngamma = 0.99\nlost_setting = 3\n"
    make_run(tmp_path / "1", script="td3_continuous", config=config)
    (line,) = cells(run_report(tmp_path / "1"))
    assert line["script"] == "td3_continuous --learning-starts 10000"


@quick
def test_a_setting_that_is_none_by_default_is_named_only_where_it_is_set(tmp_path, run_report):
    for number, config in enumerate(["", "desired_kl = 0.01\n"]):
        make_run(tmp_path / str(number), script="ppo_continuous", config=config)
    names = [line["script"] for line in cells(run_report(tmp_path / "0", tmp_path / "1"))]
    assert names == ["ppo_continuous", "ppo_continuous --desired-kl 0.01"]


@pytest.mark.parametrize("name", report.SCRIPTS)
def test_settings_on_which_no_weight_depends_do_not_keep_runs_apart(name):
    """The scripts themselves say which these are."""
    source = (ROOT / f"{name}.py").read_text("utf-8")
    (names,) = re.findall(r"(?ms)^FREE = {\n(.+?)^}", source)
    free = set(re.findall(r'"(\w+)"', names)) - {"total_timesteps"}
    assert free <= report.ASIDE
    defaults = run_folders.read_defaults(source.encode())
    assert {*defaults} >= report.ASIDE and report.ASIDE - free == {"seed", "log_every", "resume"}
    assert defaults["seed"] == 1 and defaults["gamma"] == 0.99 and defaults["notes"] == ""


# --- whose runs they are --------------------------------------------------------------------------
CALLERS = (
    ["tune.py"],
    ["-c"],
    ["/usr/lib/python3/ipykernel_launcher.py", "-f", "kernel-7.json"],
    ["/usr/bin/pytest", "tests"],
    ["sweep.py", "--seed", "1", "--env-id", "Hopper-v4"],
    ["sweep.py", "--run-dir", "runs"],
    ["my_sac.py", "--notes", "--run-dir"],
    [""],
    [],
)


@quick
@pytest.mark.parametrize("command", CALLERS, ids=" ".join)
def test_a_program_that_calls_a_script_is_not_the_script(tmp_path, run_report, command):
    """Whatever the folder is called, and whether the run lives."""
    named = "Hopper-v4__my_sac__1__1790000000000"
    status = {"status": "finished", "command": command or ["x.py"], "source": SOURCE}
    for folder, script in ((tmp_path / "mine", "sac_continuous"), (tmp_path / named, "my_sac")):
        make_run(folder, config=DEFAULTS, **status)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"command": command}))
        (line,) = cells(run_report(folder))
        assert line["script"] == script


@quick
def test_a_summary_tells_the_script(tmp_path, run_report):
    command = ["sac_continuous.py", "--run-dir", "one"]
    make_run(tmp_path / "one", config=DEFAULTS, source=SOURCE, command=command)
    path = tmp_path / "one" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"script": "mine"}))
    (line,) = cells(run_report(tmp_path / "one"))
    assert line["script"] == "mine"


@quick
@pytest.mark.parametrize(
    "flags",
    ["--run-dir {}", "--run-dir={}", "--run_dir {}/", "--seed 3 --resume {}", "--resume={}"],
)
def test_a_copy_of_a_script_goes_by_its_own_name(tmp_path, run_report, flags):
    """Its docstring still names the one that it was copied from."""
    command = ["mine/my_sac.py", *flags.format("elsewhere/one").split()]
    make_run(tmp_path / "one", config=DEFAULTS, source=SOURCE, command=command)
    (line,) = cells(run_report(tmp_path / "one"))
    assert line["script"] == "my_sac"


@quick
def test_a_living_run_of_a_sweep_goes_by_the_name_of_its_folder(tmp_path, run_report):
    folder = tmp_path / "my_sac" / "ALE_Pong-v5" / "101"
    make_run(folder, env_id="ALE/Pong-v5", config=DEFAULTS, source=SOURCE, status="")
    (line,) = cells(run_report(folder))
    assert line["script"].split()[0] == "my_sac"


@quick
@pytest.mark.parametrize("source", ["", "def (:", "x = 1", '"""No command."""'])
def test_a_source_may_say_nothing(tmp_path, run_report, source):
    make_run(tmp_path / "1", source=source, command=["my_sac.py"])
    make_run(tmp_path / "2", source=source, status="")
    assert cells(run_report(tmp_path / "1"))[0]["script"] == "my_sac"
    assert cells(run_report(tmp_path / "2"))[0]["script"] == "unknown"


@quick
def test_a_folder_may_be_named_by_a_dot(tmp_path, run_report, monkeypatch):
    folder = make_run(tmp_path / "Hopper-v4__my_sac__1__1790000000000", status="")
    monkeypatch.chdir(folder)
    assert cells(run_report("."))[0]["script"] == "my_sac"


@quick
@pytest.mark.parametrize(
    "one, other, alike",
    [
        ("Hopper-v4", "Hopper-v2", True),
        ("Hopper-v4", "Hopper-v5", False),
        ("Hopper-v4", "Hopper-v1", False),
        ("Hopper-v4", "Walker2d-v4", False),
        ("HalfCheetah-v5", "HalfCheetah-v3", True),
        ("Ant-v4", "Ant-v3", False),
        ("Humanoid-v4", "Humanoid-v2", False),
        ("Ant-v5", "Ant-v5", True),
        ("PongNoFrameskip-v4", "ALE/Pong-v5", False),
        ("mine:Own", "mine:Own", True),
    ],
)
def test_comparable_versions(one, other, alike):
    assert report.comparable(one, other) == report.comparable(other, one) == alike


@quick
def test_like_is_set_beside_like(tmp_path, run_report):
    """The file has 2730 of evaluations and 2310 of training for this task, both of v4."""
    out = run_report(make_run(tmp_path / "mine", script="my_sac"))
    assert cells(out)[0]["published evaluations"].startswith("2730 (sd 306 over 10 seeds, SAC of")
    assert cells(out)[0]["published evaluations"].endswith("one of 4 published, 2730 to 3457)")
    assert (
        cells(out, 1)[0]["published returns of training"] == "2310 (sd 343 over 3 seeds, CleanRL)"
    )
    assert re.search(
        r"^- CleanRL, Hopper-v4, 1,000,000 steps: training; .*cleanrl@fe8d8a0", out, re.M
    )
    (line,) = cells(run_report(make_run(tmp_path / "own", script="mine")))
    assert (line["published evaluations"], line["failures"]) == (
        "none known",
        "0 of 1, early ends only",
    )


@quick
def test_seeds_of_tuning_are_not_mixed_silently(tmp_path, run_report):
    runs = [make_run(tmp_path / str(s), s) for s in (1, 2, 101)]
    assert "Warning" not in run_report(*runs[:2]) and "Warning" not in run_report(runs[2])
    assert "Warning: sac_continuous, Hopper-v4, 1,000,000 steps: seeds up to 100" in run_report(
        *runs
    )


@quick
def test_a_seed_that_ran_twice_counts_once(tmp_path, run_report):
    """What differs between its runs is chance, between seeds it is the seed as well."""
    runs = [make_run(tmp_path / str(i), 1 + i // 3, [0, 1000 + 100 * i]) for i in range(5)]
    out = run_report(*runs)
    (line,) = cells(out)
    assert (line["seeds"], line["mean"]) == ("2, smoke", "1225 (1100 to 1350)")
    assert "seed 1 counts once, as the mean of 3 runs: sd 100, of all seeds 177.\n" in out
    assert "counts once" not in run_report(runs[0], runs[0])


DAMAGED = {
    "word": '{"global_step": "one", "seconds": 1}',
    "no time": '{"global_step": 1, "seconds": null}',
    "number": "7",
    "list": "[1]",
    "no step": '{"seconds": 1}',
    "null": '{"global_step": 1, "seconds": 1, "eval/return_mean": null}',
    "text": '{"global_step": 1, "seconds": 1, "charts/episodic_return": "much"}',
}  # rows of metrics


# --- bad input ------------------------------------------------------------------------------------
@quick
@pytest.mark.parametrize(
    "what", ["missing", "empty", "file", "toml", "json", "key", "gzip", "seed", "steps", *DAMAGED]
)
def test_what_is_no_run_is_not_counted(tmp_path, run_report, capsys, monkeypatch, what):
    good, bad = make_run(tmp_path / "good"), tmp_path / "bad"
    if what == "file":
        bad.write_text("")
    elif what == "empty":
        bad.mkdir()
    elif what != "missing":
        make_run(bad)
        config = {"toml": "{\n", "key": "x = 1\n"}
        config["seed"] = 'env_id = "a"\nseed = "1"\ntotal_timesteps = 7\n'
        config["steps"] = 'env_id = "a"\nseed = 1\ntotal_timesteps = 0\n'
        name = "config.toml" if what in config else "metrics.jsonl"
        (bad / "summary.json").unlink()  # so that the last row counts
        (bad / name).write_text(config.get(what, DAMAGED.get(what, "{") + "\n"))
        if what == "gzip":
            (bad / name).rename(bad / f"{name}.gz")
    monkeypatch.setattr(sys, "argv", ["report.py", str(good), str(bad)])
    report.main()
    out, err = capsys.readouterr()
    assert cells(out)[0]["seeds"] == "1, anecdote" and err.count("\n") == 1
    assert err.startswith(f"not counted: {bad} is no run (")
    with pytest.raises(SystemExit) as stop:
        run_report(bad)
    out, err = capsys.readouterr()
    assert (
        stop.value.code == 2
        and out == ""
        and err.endswith(
            "error: no run among what you named: name run folders, or folders of runs\n"
        )
    )


@quick
def test_patterns_and_nothing(tmp_path, run_report):
    for seed in (1, 2):
        make_run(tmp_path / "runs" / str(seed), seed)
    make_run(tmp_path / "runs[x]" / "3", 3)
    assert cells(run_report(tmp_path / "runs" / "*"))[0]["seeds"] == "2, smoke"
    assert cells(run_report(tmp_path / "**"))[0]["seeds"] == "3, smoke"
    assert cells(run_report(tmp_path / "runs[x]"))[0]["seeds"] == "1, anecdote"
    with pytest.raises(SystemExit, match="2"):
        run_report()


@quick
def test_folders_of_sweeps_are_searched(tmp_path, run_report, capsys):
    """At any depth, but neither in runs nor in hidden folders; each once."""
    one = make_run(tmp_path / "sweep" / "sac_continuous" / "Hopper-v4" / "101", 101)
    make_run(one / "videos" / "old", 5)
    make_run(one.parent / ".hidden", 101)
    make_run(tmp_path / "sweep" / "102", 102)
    (tmp_path / "sweep" / "jobs.tsv").write_text("")
    (tmp_path / "sweep" / "latest").symlink_to(one)
    for names in (["sweep"], ["sweep", "sweep"], ["sweep", "sweep/102"], ["sweep/latest", "sweep"]):
        (line,) = cells(run_report(*(tmp_path / name for name in names)))
        assert line["score by seed"] == "101: 3000, 102: 3000"
        assert line["failures"] == "0 of 2"
        assert capsys.readouterr().err == ""


@quick
@pytest.mark.parametrize("text", ["", "{", '{"status": "fin', "[]", "null", "{}", "\x00" * 40, "7"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("age, state", [(0, "living"), (2000, "killed")])
def test_a_summary_that_was_cut_is_that_of_an_unfinished_run(
    tmp_path, run_report, text, packed, age, state
):
    run = make_run(tmp_path / "1", 1, step=700, source=SOURCE)
    (run / "summary.json").write_text(text)
    metrics = run / "metrics.jsonl"
    if packed:
        metrics = run / "metrics.jsonl.gz"
        metrics.write_bytes(gzip.compress((run / "metrics.jsonl").read_bytes()))
        (run / "metrics.jsonl").unlink()
    os.utime(metrics, (time.time() - age,) * 2)
    (line,) = cells(run_report(run))
    assert line["score by seed"] == f"1: 3000 ({state}, 700 of 1,000,000 steps)"
    assert line["failures"] == f"{int(state == 'killed')} of 1"


# --- who reads it ---------------------------------------------------------------------------------
def shell(command, **environ):
    """Run a shell command line in which $report is the tool; return exit code, stdout, stderr."""
    environ = os.environ | {"report": f"{sys.executable} {ROOT / 'tools' / 'report.py'}"} | environ
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_reader_may_stop(tmp_path):
    """Figures are drawn all the same."""
    for seed in range(150):  # more than a pipe holds
        make_run(tmp_path / "runs" / str(seed), seed, [0], f"Own{seed}-v0")
    command = f"set -o pipefail; $report {tmp_path}/runs | head -1"
    assert shell(command) == (
        0,
        "| script | environment | steps | seeds | score by seed | mean | "
        "IQM | minimum | failures | published evaluations |\n",
        "",
    )
    command = f"set -o pipefail; $report {tmp_path}/runs/7 --plots {tmp_path}/plots | true"
    assert shell(command) == (0, "", "") and (tmp_path / "plots" / "Own7-v0.png").exists()


def test_a_terminal_may_lack_letters(tmp_path):
    make_run(tmp_path / "1", 1, [0], "Déjà-v0")
    code, out, err = shell(
        f"$report {tmp_path}", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii"
    )
    assert (code, err) == (0, "") and "D\\xe9j\\xe0-v0" in out


@quick
@pytest.mark.parametrize("width", [30, 80, 120, 200, 400])
def test_tables_fit_a_terminal(tmp_path, run_report, monkeypatch, width):
    """All words are there, in lines that fit unless a word does not."""
    runs = [make_run(tmp_path / str(seed), seed) for seed in range(12)]
    runs += [make_run(tmp_path / "x", 1, script="td3_continuous", config="learning_starts = 7\n")]
    monkeypatch.setenv("COLUMNS", str(width))
    piped = run_report(*runs)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run_report(*runs, "--markdown") == piped
    out = run_report(*runs)
    tables = out.split("\nHow to read")[0].split("\nTasks with")[0]
    longest = max(map(len, tables.split()))
    assert max(map(len, tables.splitlines())) <= max(width, 43, longest + 23)
    assert "|" not in out
    for line in cells(piped):
        if "note" not in "".join(line.values()):
            assert {*" ".join(line.values()).split()} <= {*tables.split()}
    lines = tables.strip().splitlines()
    assert lines[0].startswith("script ") and (width < 100 or "environment" in lines[0])


RUNS = (ROOT / "results").rglob("config.toml")
FOLDERS = sorted({path.relative_to(ROOT / "results").parts[0] for path in RUNS})


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("folder", [".", *FOLDERS])
def test_all_that_a_terminal_gets_fits(folder, width, run_report, monkeypatch):
    """Tables, remarks and lists of the committed runs; nothing is lost."""
    monkeypatch.setenv("COLUMNS", str(width))
    piped = run_report(ROOT / "results" / folder)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    out = run_report(ROOT / "results" / folder)
    for line in out.splitlines():
        assert len(line) <= width or " " not in line.strip(), line  # a source of a long name
    without_notes = re.sub(r"Note \d+: .+\n|\S* \.\.\. .note \d+.", "", piped)
    assert {*re.sub(r"[|]|---", "", without_notes).split()} <= {*out.split()}


@quick
def test_prose_is_refilled_where_a_line_is_too_long(monkeypatch):
    """Paragraphs as a whole, items of lists each by itself, commands not at all."""
    monkeypatch.setenv("COLUMNS", "30")
    words = "one two three four five six seven"
    text = f"\n\nshort\nlines\n\n{words}\neight nine\n\n- {words}\n- ten\n    {words}\n"
    assert text_tables.prose(text, text_tables.markdown) == text
    begun = text_tables.prose(f"\n{words}\n", text_tables.fitted)
    assert begun == "\none two three four five six\nseven\n"
    assert text_tables.prose(text, text_tables.fitted) == (
        "\n\nshort\nlines\n\none two three four five six\nseven eight nine\n\n"
        f"- one two three four five six\n  seven\n- ten\n    {words}\n"
    )


@quick
def test_long_cells_are_notes(tmp_path, run_report):
    """Nothing is lost, and a cell that is there twice has one note."""
    config = "".join(f"setting_number_{i} = {i}\n" for i in range(9))
    source = SOURCE.replace(
        "    gamma", "".join(f"    setting_number_{i}: int = 99\n" for i in range(9)) + "    gamma"
    )
    for env_id in ("Hopper-v4", "Walker2d-v4"):
        for seed in range(30):
            folder = tmp_path / env_id / str(seed)
            make_run(
                folder, seed, [0, 1000 + seed], env_id, config=config + DEFAULTS, source=source
            )
    out = run_report(tmp_path)
    name = "sac_continuous " + " ".join(f"--setting-number-{i} {i}" for i in range(9))
    seeds = ", ".join(f"{seed}: {1000 + seed}" for seed in range(30))
    lines = cells(out)
    assert (
        max(
            len(cell)
            for number in range(3)
            for line in cells(out, number)
            for cell in line.values()
        )
        <= text_tables.LONGEST
    )
    assert [line["script"] for line in lines] == [lines[0]["script"]] * 2
    assert lines[0]["script"].endswith("... (note 1)") and name.startswith(lines[0]["script"][:60])
    assert lines[0]["score by seed"].endswith("... (note 2)")
    table = out.split("\nTasks with")[0]
    assert table.count(f"\nNote 1: {name}\n") == 1 and table.count(f"\nNote 2: {seeds}\n") == 1


# --- statistics -----------------------------------------------------------------------------------
@quick
@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_is_the_mean_of_the_middle_half(n):
    scores = np.random.default_rng(n).normal(size=(5, n))
    assert report.iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=1))
    assert n > 3 or report.iqm(scores) == pytest.approx(scores.mean(1))


@quick
@pytest.mark.parametrize("n", [3, 5, 10])
def test_interval_is_that_of_scipy(n):
    scores = np.random.default_rng(n).normal(100, 10, n)
    options = {"n_resamples": 20_000, "method": "percentile", "rng": 1}
    for ours, theirs in (
        (report.mean, np.mean),
        (report.iqm, lambda x, axis: stats.trim_mean(x, 0.25, axis)),
    ):
        found = stats.bootstrap([scores], theirs, **options).confidence_interval
        assert report.interval(ours, scores) == pytest.approx([*found], abs=0.05 * np.ptp(scores))
        assert (report.interval(ours, scores) == report.interval(ours, scores)).all()


@quick
def test_interval_is_stratified():
    """Tasks are far apart: were runs drawn across tasks, the interval would be that wide."""
    tasks = [np.array([0.0, 1, 2, 3]), np.array([100.0, 101, 102]), np.array([200.0, 203])]
    random = np.random.default_rng(5)
    drawn = [random.choice(task, (20_000, len(task))) for task in tasks]
    found = stats.trim_mean(np.hstack(drawn), 0.25, axis=1)
    low, high = report.interval(report.iqm, *tasks)
    assert [low, high] == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=0.1)


def test_statistics_are_those_of_rliable():
    library = pytest.importorskip("rliable.library", exc_type=ImportError)
    from rliable import metrics

    scores = np.random.default_rng(3).normal(size=(6, 4)) + np.arange(4)  # runs, tasks
    points, ends = library.get_interval_estimates(
        {"a": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=5000
    )
    assert report.iqm(scores.ravel()) == pytest.approx(points["a"][0])
    assert report.interval(report.iqm, *scores.T) == pytest.approx(ends["a"][:, 0], abs=0.05)


PUBLISHED = {"HalfCheetah-v4": (-274.86, 11113), "Hopper-v4": (17.67, 2730)}  # random, others'


@quick
@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (4, 9), (9, 4), (5, 5), (6, 5)])
def test_tasks_are_normalised_and_pooled(tmp_path, run_report, counts):
    """A short task is left out; an interval needs five runs of every task."""
    parts = [0.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.75, 0.85, 0.95]
    pooled = [parts[:count] for count in counts]
    for (env_id, (random, one)), some in zip(PUBLISHED.items(), pooled, strict=True):
        for seed, part in enumerate(some):
            score = random + part * (one - random)
            make_run(tmp_path / env_id / str(seed), seed, [0, score], env_id)
    make_run(tmp_path / "short", 1, [0, 0], "Walker2d-v4", 1000)
    (line,) = cells(run_report(tmp_path), 1)
    assert line["script"] == "sac_continuous"
    seeds = dict(zip(PUBLISHED, counts, strict=True))
    assert line["tasks"] == "2: " + ", ".join(f"{task} ({n})" for task, n in seeds.items())
    assert line["runs"] == str(sum(counts))
    values = sum(pooled, [])
    point, _, ends = line["IQM"].partition(" ")
    assert float(point) == pytest.approx(stats.trim_mean(values, 0.25), abs=0.006)
    if min(counts) < 5:
        assert ends == f"({min(values):.3g} to {max(values):.3g})"
    else:
        low, high = report.interval(report.iqm, *map(np.array, pooled))
        assert ends == f"[{low:.3g}, {high:.3g}]"


@quick
def test_one_task_is_not_pooled(tmp_path, run_report):
    make_run(tmp_path / "1")
    make_run(tmp_path / "short", 1, [0, 0], "Walker2d-v4", 1000)
    assert "0 is random, 1 is published" not in run_report(tmp_path)


# --- figures --------------------------------------------------------------------------------------
@pytest.fixture
def figures(monkeypatch):
    """Return the list of all figures that are saved from now on."""
    saved, save = [], Figure.savefig

    def keep(self, *arguments, **options):
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def legend(figure):
    """Return the words of a figure's legend and the colour of each."""
    (found,) = figure.legends
    pairs = zip(found.get_texts(), found.get_lines(), strict=True)
    return {text.get_text(): line.get_color() for text, line in pairs}


def test_figures_repeat_and_show_what_they_should(tmp_path, run_report, figures):
    runs = [make_run(tmp_path / str(s), s, [0, 500 * s, 900 * s]) for s in (1, 2, 3)]
    runs += [make_run(tmp_path / "pole", 1, [5, 1000], "InvertedPendulum-v4")]
    runs += [make_run(tmp_path / "fail", 4, [0, 7, 9], status="failed", step=500_000)]
    for name in ("a", "b"):
        out = run_report(*runs, "--plots", tmp_path / name)
        assert out.endswith(f"\n{tmp_path / name / 'InvertedPendulum-v4.png'}\n")
    a, b = (tmp_path / name / "Hopper-v4.png" for name in "ab")
    assert a.read_bytes() == b.read_bytes() and b"matplotlib" not in a.read_bytes()
    (hopper,), (pole,) = figures[0].axes, figures[1].axes
    assert hopper.get_title() == "Hopper-v4" and hopper.get_xlabel() == "environment steps"
    assert [t.get_text() for t in hopper.get_xticklabels()][:2] == ["0", "200k"]
    words = [*legend(figures[0])]
    assert words[0] == "sac_continuous, mean of 3 seeds, range" and "SAC, LWDRL (v2)" in words
    thick = [line for line in hopper.lines if line.get_linewidth() == 2.2]
    assert [[*line.get_ydata()] for line in thick] == [[0, 1000, 1800]]
    assert len(hopper.collections) == 1 and len(pole.collections) == 0
    assert [line.get_marker() for line in hopper.lines].count("x") == 1


def test_a_variant_and_its_baseline_share_a_picture(tmp_path, run_report, figures):
    """By settings, by a copy of the script, and beside another algorithm; colours are kept."""
    make = {"config": DEFAULTS, "source": SOURCE}
    variant = {"config": changed("gamma", "0.5"), "source": SOURCE}
    copy = make | {"command": ["my_sac.py", "--run-dir", "copy"]}
    for env_id in ("Hopper-v4", "ALE/Pong-v5"):
        folder = tmp_path / report.safe(env_id)
        make_run(folder / "old", 1, [0, 3], env_id, **make)
        make_run(folder / "new", 1, [0, 4], env_id, **variant)
        make_run(folder / "copy", 1, [0, 5], env_id, **copy)
        make_run(folder / "other", 1, [0, 6], env_id, script="td3_continuous")
    make_run(tmp_path / "long", 1, [0, 7], steps=6_000_000, **make)
    run_report(tmp_path, "--plots", tmp_path / "plots")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["ALE_Pong-v5.png", "Hopper-v4.png"] and len(figures) == 2
    ours = ["my_sac", "sac_continuous", "sac_continuous --gamma 0.5", "td3_continuous"]
    for figure in figures:
        by_name = {words.removesuffix(", 1 seed"): c for words, c in legend(figure).items()}
        assert len({by_name[name] for name in ours}) == 4
        assert [by_name[name] for name in ours] == [*report.COLOURS[:4]]
    pong, hopper = figures
    assert len(pong.axes) == 1
    short, long = hopper.axes  # a run of six times the steps would squeeze the others
    assert (short.get_xlim(), long.get_xlim()) == ((0, 1e6), (0, 6e6))


@pytest.mark.parametrize("counts", [(3, 1), (2, 2, 1), (5, 1), (1, 1, 1, 1, 1), (4, 1, 1, 1, 2)])
def test_seeds_that_ran_twice_are_drawn_once(tmp_path, run_report, figures, counts):
    """The thick line is that of the table, and an interval needs five seeds."""
    for seed, count in enumerate(counts):
        for again in range(count):
            scores = [0, 100 * seed + 7 * again, 1000 * seed + 10 * again]
            make_run(tmp_path / f"{seed}-{again}", seed, scores)
    out = run_report(tmp_path, "--plots", tmp_path / "plots")
    (axes,) = figures[0].axes
    (thick,) = [line for line in axes.lines if line.get_linewidth() == 2.2]
    centre = cells(out)[0]["mean" if len(counts) < 4 else "IQM"]
    assert f"{thick.get_ydata()[-1]:.0f}" == centre.split()[0]
    words = [*legend(figures[0])][0]
    ends = {2: "", 3: ", range", 5: ", 95 % interval"}[len(counts)]
    assert words.endswith(f" of {len(counts)} seeds{ends}")
    assert len(axes.collections) == (len(counts) > 2)


@quick
@pytest.mark.parametrize("name", ["a$b$", "$x", "$x_{$", "_a", "100 %"])
def test_names_are_no_formulas(tmp_path, run_report, figures, name):
    make_run(tmp_path / "1", env_id=name, config='kind = "b"\n')
    make_run(tmp_path / "2", env_id=name, config=f"kind = '{name}'\n")
    run_report(tmp_path, "--plots", tmp_path / "plots")
    (axes,) = figures[0].axes
    assert axes.get_title().replace("\\$", "$") == name
    assert len(legend(figures[0])) == 2


@quick
def test_a_folder_of_figures_that_cannot_be_written_is_refused(tmp_path, run_report, capsys):
    make_run(tmp_path / "1")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        run_report(tmp_path / "1", "--plots", tmp_path / "file")
    out, err = capsys.readouterr()
    assert "sac_continuous" in out and err.startswith("error: --plots") and err.count("\n") == 1


@quick
def test_steps_are_written_short():
    assert [*map(report.steps_word, (0, 500, 2500, 200_000, 1e6, 2.5e6))] == [
        "0",
        "500",
        "2.5k",
        "200k",
        "1M",
        "2.5M",
    ]


# --- what is committed ----------------------------------------------------------------------------
@quick
def test_published_results_are_well_formed():
    rows = report.table_of("targets.csv")
    assert len(
        {
            (r["algorithm"], r["env_id"], r["steps"], r["implementation"], r["protocol"])
            for r in rows
        }
    ) == len(rows)
    for row in rows:
        assert (
            row["algorithm"] in ("random", *report.ALGORITHMS)
            and row["source"]
            and row["implementation"]
        )
        assert row["protocol"].startswith(("training; ", "evaluation; ")) and int(row["steps"]) >= 0
        assert float(row["mean"]) is not None and bool(row["spread"]) == bool(row["spread_kind"])
        assert row["spread_kind"] in (
            "",
            "sd over seeds",
            "range over seeds",
            "sd over episodes of one run",
        )
    curves = report.table_of("reference_curves.csv")
    drawn = {(r["algorithm"], r["env_id"], r["implementation"], r["protocol"]) for r in curves}
    shown = Counter((name, re.sub(r"-v\d$", "", env_id)) for name, env_id, *_ in drawn)
    assert max(shown.values()) <= 4 and {r["protocol"] for r in curves} == {
        "training",
        "evaluation",
    }
    assert (ROOT / "tools" / "reference_curves.csv").stat().st_size < 300_000


def test_committed_runs_name_no_folder_of_the_machine_they_ran_on():
    summaries = sorted((ROOT / "results").rglob("summary.json"))
    assert len(summaries) > 100
    for path in summaries:
        command = json.loads(path.read_text())["command"]
        assert not [word for word in command if word.rpartition("=")[2].startswith("/")], path


def test_pages_are_those_of_the_committed_runs():
    found, rows = report.pages(ROOT)
    assert len(found) == 1 + len(report.SCRIPTS)
    for path, text in found.items():
        assert text == (ROOT / path).read_text("utf-8"), f"python tools/report.py --readme: {path}"
    figures = {path.stem for path in (ROOT / "results" / "plots").iterdir()}
    assert figures == {"front", *(row.env_id for row in rows)}


def test_the_page_of_ppo_compares_settings_by_the_committed_runs(run_report):
    """Its table of the config beside the defaults has the means and ranges of the report."""
    patterns = ["ppo_config/*/*", "ppo_continuous/HalfCheetah-v4/*", "ppo_continuous/Hopper-v4/*"]
    page = (ROOT / "docs" / "ppo.md").read_text()
    told = re.findall(r"^\| (\S+-v4) \| ([\d,]+) \| (\d.*) \| (\d.*) \|$", page, re.M)
    found = {
        (line["environment"], line["steps"], "--rollout-steps 4096" in line["script"]): line["mean"]
        for line in cells(run_report(*(ROOT / "results" / pattern for pattern in patterns)))
    }
    assert len(told) == 4 and len(found) == 8
    for env_id, steps, defaults, config in told:
        assert found[env_id, steps, False] == defaults and found[env_id, steps, True] == config


PAGES = ("README.md", *(report.page_of(script) for script in report.SCRIPTS))


def make_pages(root):
    """Write pages of two lines, between which the results belong."""
    for path in PAGES:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("before\n" + "to be replaced\n".join(report.MARKS) + "after\n")


def test_pages_are_written_with_and_without_a_script(tmp_path, run_report, monkeypatch):
    make_pages(tmp_path)
    report.published_results()  # are kept
    report.table_of("reference_curves.csv")
    monkeypatch.setattr(report, "HERE", tmp_path / "tools")
    for script, env_id in (("sac_continuous", "Hopper-v4"), ("dqn_atari", "PongNoFrameskip-v4")):
        for seed in (101, 102):
            folder = tmp_path / "results" / script / env_id / str(seed)
            make_run(folder, seed, [0, 20 * seed], env_id, script=script)
        out = run_report("--readme")
        texts = {path: (tmp_path / path).read_text() for path in PAGES}
        for text in texts.values():
            assert text.startswith("before\n") and text.endswith("after\n")
            assert "to be replaced" not in text and "score by seed" not in text
        page = texts[report.page_of(script)]
        assert f"| {script} | {env_id}" in page and f"(../results/plots/{env_id}.png)" in page
        link = f"[`{script}`]({report.page_of(script)}) | {env_id} | "
        assert link in texts["README.md"] and "2030 (2020 to 2040), 2 seeds" in texts["README.md"]
        for name in (env_id, "front"):
            path = tmp_path / "results" / "plots" / f"{name}.png"
            assert path.is_file() and str(path) in out
    assert (
        texts["docs/td3.md"]
        == "before\n" + "\nNo run has been committed yet.\n".join(report.MARKS) + "after\n"
    )


def test_the_front_figure_shows_the_longest_runs_of_each_script(tmp_path):
    """Neither other tasks nor single seeds, and a panel that has no runs is left out."""
    for env_id, script, steps, seeds in (
        ("Hopper-v4", "sac_continuous", 1000, (1, 2)),
        ("Hopper-v4", "sac_continuous", 2000, (1, 2, 3)),
        ("Hopper-v4", "sac_continuous", 9000, (1,)),
        ("Walker2d-v4", "sac_continuous", 9000, (1, 2)),
        ("Hopper-v4", "mine", 9000, (1, 2)),
        ("HalfCheetah-v4", "ppo_continuous", 500, (1, 2, 3, 4, 5)),
    ):
        for seed in seeds:
            folder = tmp_path / f"{env_id}{script}{steps}" / str(seed)
            make_run(folder, seed, [0, 20], env_id, script=script, steps=steps)
    rows, _ = report.results(sorted(tmp_path.glob("*/*")))
    shown = {key: row.steps for key, row in report.front_rows(rows).items()}
    assert shown == {
        ("Hopper-v4", "sac_continuous"): 2000,
        ("HalfCheetah-v4", "ppo_continuous"): 500,
    }
    legend = "these scripts: mean of 3 seeds, range; IQM of 5 seeds, 95 % interval"
    assert report.label_of_front(report.front_rows(rows).values()) == legend
    report.draw_front(rows, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
