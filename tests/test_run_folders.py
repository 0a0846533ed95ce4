"""tools/run_folders.py: what it says to people of folders and names that are odd."""

import gzip
import importlib
import json
import math
import re
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
run_folders = importlib.import_module("run_folders")
doctor = importlib.import_module("doctor")

pytestmark = pytest.mark.quick

CONFIG = 'env_id = "Hopper-v4"\nseed = 1\ntotal_timesteps = 1000\n'
ROW = {"global_step": 500, "seconds": 1.0, "charts/SPS": 100.0, "eval/return_mean": 5.0}
# The marks of an object that Python prints, of an error's number, and of where code failed
NOT_FOR_PEOPLE = re.compile(r"Error\b|\bErrno|Path\(|Traceback|<class|\(\)|b'")


def lines(*rows):
    """Return rows as metrics are written."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, config=CONFIG, metrics=None):
    """Write a run folder; None leaves a file out."""
    folder.mkdir(parents=True)
    for name, text in (("config.toml", config), ("metrics.jsonl", metrics)):
        if isinstance(text, bytes):
            (folder / name).write_bytes(text)
        elif text is not None:
            (folder / name).write_text(text, "utf-8")
    return folder


# What config.toml and metrics.jsonl hold, and what is said of the folder
DAMAGED = {
    "no config": (None, lines(ROW), "no config.toml in it: is it a run folder?"),
    "an empty folder": (None, None, "no config.toml in it: is it a run folder?"),
    "config is cut": (CONFIG + "gamma = ", lines(ROW), "config.toml is damaged: "),
    "config is no text": (b"\xff\xfe\x00", lines(ROW), "config.toml is damaged: it is no UTF-8"),
    "config is empty": ("", lines(ROW), "config.toml lacks env_id: is it a run folder?"),
    "no seed": (CONFIG.replace("seed", "sed"), lines(ROW), "config.toml lacks seed"),
    "env_id is a number": ("env_id = 3\n" + CONFIG[20:], lines(ROW), "env_id in config.toml"),
    "seed is text": (CONFIG.replace("= 1\n", '= "1"\n'), lines(ROW), "seed in config.toml"),
    "no steps": (CONFIG.replace("1000", "0"), lines(ROW), "total_timesteps in config.toml"),
    "no metrics": (CONFIG, None, "no metrics yet"),
    "metrics are damaged": (CONFIG, lines(ROW) + "{\n" + lines(ROW), "line 2 of metrics.jsonl is"),
    "metrics are no text": (CONFIG, b"\xff\xfe\n", "line 1 of metrics.jsonl is damaged"),
    "metrics are a list": (CONFIG, "[1]\n", "line 1 of metrics.jsonl is no row of metrics"),
    "metrics are a number": (CONFIG, "7\n", "line 1 of metrics.jsonl is no row of metrics"),
    "a row without step": (CONFIG, '{"seconds": 1}\n', "line 1 of metrics.jsonl is no row"),
    "step is text": (CONFIG, lines(ROW | {"global_step": "9"}), "global_step is no number in line"),
    "step is infinite": (
        CONFIG,
        lines(ROW | {"global_step": math.inf}),
        "global_step is inf in line",
    ),
    "return is nothing": (CONFIG, lines(ROW | {"eval/return_mean": None}), "eval/return_mean is"),
}


def reason(folder, read):
    """Return what is said of a folder that is no run."""
    with pytest.raises(run_folders.NO_RUN) as caught:
        read(folder)
    return run_folders.why_no_run(caught.value)


@pytest.mark.parametrize("read", [run_folders.read_run, doctor.read_logs])
@pytest.mark.parametrize("name", DAMAGED)
def test_why_a_folder_is_no_run_is_said_for_people(tmp_path, name, read):
    config, metrics, words = DAMAGED[name]
    said = reason(write(tmp_path / "a run, größer", config, metrics), read)
    assert said.startswith(words), said
    assert not NOT_FOR_PEOPLE.search(said) and "\n" not in said


@pytest.mark.parametrize("read", [run_folders.read_run, doctor.read_logs])
def test_why_a_name_is_no_run_is_said_for_people(tmp_path, read):
    run = write(tmp_path / "run", metrics=lines(ROW))
    assert reason(tmp_path / "gone", read) == "nothing has this name or matches it"
    assert reason(tmp_path / "gone*", read) == "nothing has this name or matches it"
    assert reason(run / "config.toml", read) == "it is a file: name the folder of a run"
    assert reason(run / "config.toml" / "x", read) == "nothing has this name or matches it"
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert reason(run, read) == "metrics.jsonl cannot be read: is a directory"


CUT = gzip.compress(lines(ROW).encode())[:-9]


@pytest.mark.parametrize("data", [b"", b"no gzip", CUT], ids=["empty", "no gzip", "cut"])
def test_packed_metrics_that_are_damaged(tmp_path, data):
    run = write(tmp_path / "run")
    (run / "metrics.jsonl.gz").write_bytes(data)
    if data:
        said = reason(run, run_folders.read_run)
        assert said == "metrics.jsonl.gz is damaged: it cannot be unpacked"
    else:
        assert run_folders.read_run(run).step == 0


def test_doctor_names_the_metric_that_is_no_number(tmp_path):
    run = write(tmp_path / "run", metrics=lines(ROW | {"charts/SPS": None}))
    assert run_folders.read_run(run).step == 500  # a report does not need it
    assert reason(run, doctor.read_logs) == "charts/SPS is no number at step 500"


def test_what_nobody_thought_of_is_said_for_people(tmp_path):
    run = write(tmp_path / "run", metrics=lines({"global_step": 1}))  # without seconds
    assert reason(run, run_folders.read_run) == "its files hold what a run does not write"
    timeless = ROW | {"seconds": 0}
    run = write(tmp_path / "timeless", metrics=lines(timeless, timeless | {"global_step": 600}))
    assert reason(run, run_folders.read_run) == "its files hold what a run does not write"


def test_links_are_followed_once(tmp_path):
    """Runs that lie on another disk count; a link to a folder that it is in leads nowhere."""
    far = write(tmp_path / "disk" / "far", metrics=lines(ROW))
    near = write(tmp_path / "runs" / "near", metrics=lines(ROW))
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    deep = write(tmp_path / "runs" / "z" / "deep", metrics=lines(ROW))
    (tmp_path / "runs" / "again").symlink_to(near)
    for name in ("a", "b"):  # one of them may be searched before z
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "link").symlink_to(deep.parent)
    found = run_folders.runs_within(tmp_path / "runs")
    assert {*found} == {near, deep, tmp_path / "runs" / "linked" / "far"} and len(found) == 3
    assert found[2].resolve() == far


def test_a_run_that_logged_nothing_has_its_steps(tmp_path):
    run = write(tmp_path / "run", metrics="")
    (run / "summary.json").write_text('{"status": "finished", "global_step": 1000, "seconds": 2}')
    assert run_folders.read_run(run).step == 1000


@pytest.mark.parametrize("metrics, step", [("", 0), (lines(ROW)[:-9], 0), (lines(ROW) + "{", 500)])
def test_a_run_that_just_begins_is_one(tmp_path, metrics, step):
    run = write(tmp_path / "run", metrics=metrics)
    assert run_folders.read_run(run).step == doctor.read_logs(run).step == step


def test_all_are_named_and_none_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "zu groß, 1", metrics="[1]\n")
    with pytest.raises(SystemExit, match="2"):
        names = ["zu groß, 1", "gone", "no*"]
        run_folders.read_all(run_folders.find_runs(names), run_folders.read_run, "not counted")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "not counted: gone is no run (nothing has this name or matches it)",
        "not counted: no* is no run (nothing has this name or matches it)",
        "not counted: zu groß, 1 is no run (line 1 of metrics.jsonl is no row of metrics)",
        "error: no run among what you named: name run folders, or folders of runs",
    ]


def test_patterns_mean_folders(tmp_path, monkeypatch):
    """A file beside runs is no run that was named."""
    monkeypatch.chdir(tmp_path)
    run = write(tmp_path / "runs" / "a b", metrics=lines(ROW))
    (tmp_path / "runs" / "jobs.tsv").write_text("")
    for names in (["runs/*"], ["runs"], ["runs/a*", "runs/a b"]):
        found = run_folders.find_runs(names)
        assert [folder.resolve() for folder in found] == [run]
    assert [str(path) for path in run_folders.find_runs(["runs/*.tsv"])] == ["runs/jobs.tsv"]


def test_an_empty_name_does_not_mean_this_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run", metrics=lines(ROW))
    with pytest.raises(SystemExit, match="2"):
        run_folders.find_runs(["run", ""])
    assert capsys.readouterr().err.startswith("error: a name is empty: ")


def test_flags_as_on_the_command_line():
    """For reading, and as words of a command, where a value may begin with a dash."""
    for value, shown, words in (
        (True, "--norm-obs", ["--norm-obs"]),
        (False, "--no-norm-obs", ["--no-norm-obs"]),
        (-1e-3, "--norm-obs -0.001", ["--norm-obs", "-0.001"]),
        ("a b", "--norm-obs 'a b'", ["--norm-obs", "a b"]),
        ([1, 2], "--norm-obs 1 2", ["--norm-obs", "1", "2"]),
    ):
        assert run_folders.flag("norm_obs", value) == shown
        assert run_folders.flag_words("norm_obs", value) == words


def test_a_folder_that_may_not_be_searched_is_named(tmp_path, monkeypatch, capsys):
    for name in ("closed", "open"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "config.toml").write_text(CONFIG)
    scandir = run_folders.os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(run_folders.os, "scandir", refusing)
    assert run_folders.runs_within(tmp_path) == [tmp_path / "open" / "1"]
    said = capsys.readouterr().err
    assert said == f"not searched: {tmp_path / 'closed'} (permission denied)\n"


def test_shares_of_time_weigh_rows_by_their_seconds():
    """The first row's seconds are mostly those of the start, of which no share says anything."""
    times = [(100, 0.1, 0.9), (110, 0.9, 0.1), (140, 0.5, 0.3)]  # seconds, update, env
    rows = [
        {"seconds": seconds, "charts/SPS": 50, "time/update": update, "time/env": env}
        for seconds, update, env in times
    ]
    rows.insert(2, {"seconds": 120, "charts/episodic_return": 1.0})  # an episode, without times
    update, env, *others = run_folders.shares_of_time(rows)
    assert update == pytest.approx((10 * 0.9 + 30 * 0.5) / 40)
    assert env == pytest.approx((10 * 0.1 + 30 * 0.3) / 40)
    assert others == [0, 0, 0]
    assert list(run_folders.shares_of_time(rows[:1])) == [0.1, 0.9, 0, 0, 0]
    assert list(run_folders.shares_of_time([])) == [0, 0, 0, 0, 0]


def test_pace_is_that_of_the_last_quarter_over_that_of_the_first():
    """Of the rows with updates: random actions at the start are faster."""
    speeds = [900, 100, 120, 80, 1, 1, 1, 1, 1, 60, 50, 700, 40]  # at steps 0, 100, 200 ...
    rows = [
        {"global_step": 100 * i, "charts/SPS": sps, "losses/critic": 0.5}
        for i, sps in enumerate(speeds)
    ]
    del rows[0]["losses/critic"]
    rows[0] |= {"charts/episodic_return": 1.0}
    assert run_folders.pace_of(rows) == 50 / 100
    assert math.isnan(run_folders.pace_of([])) and math.isnan(run_folders.pace_of(rows[:1]))
    assert math.isnan(run_folders.pace_of(rows[5:]))  # the first quarter has no updates
