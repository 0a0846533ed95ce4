"""What can not work is refused before any training: in one sentence, with nothing left behind."""

import os
import pickle
import re
import types
from pathlib import Path

import pytest
import torch

from tests.conftest import SCRIPTS, apply, finish, need, summary

REFUSED = {  # the remedy: flags
    "Did you mean: `Hopper`": "--env-id Hoper-v4",
    "v2 and v3 based environments have been moved": "--env-id Hopper-v2",
    "no_module": "--env-id no_module:Counter-v0",
    "Counter": "--env-id tests.toy_envs:Countre-v0",
    "discrete actions": "--env-id tests.toy_envs:Discrete-v0",
    "frames": "--env-id CartPole-v1; --env-id tests.probe_envs:Match-v0;"
    "--env-id tests.toy_envs:Coloured-shown-v0; --env-id tests.toy_envs:Multi-shown-v0;"
    "--env-id tests.toy_envs:FromOne-shown-v0; --env-id tests.toy_envs:Dictionary-shown-v0;"
    "--env-id tests.toy_envs:Small-shown-v0",
    "between 36 and 160": "--frame-size 35; --frame-size 161",
    "at most 1,000": "--utd 1e300",
    "at most 16,384": "--hidden-size 16385; --hidden-size 3000000",
    "below --num-quantiles": "--drop-atoms 3 --num-quantiles 3; --drop-atoms -1",
    "at most 100": "--num-critics 101",
    "at most 10 with": "--num-quantiles 11 --num-critics 100; --num-quantiles 1e9 --num-critics 99",
    "8 an environment": "--buffer-size 7 --train-every 4",
    "finite low": "--env-id tests.toy_envs:Unbounded-v0; --env-id tests.toy_envs:Clipped-v0",
    "--learning-starts": "--batch-size 101; --total-timesteps 100; --total-timesteps 50",
    "--rollout-steps": "--num-envs 5; --batch-size 33; --total-timesteps 95; --total-timesteps 50",
    "add --no-anneal": "--desired-kl 0.01",
    "above 1": "--batch-size 1 --rollout-steps 96",
    r"GB.*--buffer-size \d+ fits": "--buffer-size 1e12",
    r"GB.*--rollout-steps \d+ fits": "--rollout-steps 96e10 --total-timesteps 1e12",
    "--device cpu": "--device cuda",
    "negative": "--seed -1; --threads -1; --log-every -1; --eval-every -1;"
    "--policy-noise -1; --noise-clip nan; --exploration-noise inf;"
    "--ent-coef -1; --vf-coef nan",
    "between 0 and 1": "--gamma 1.5; --gamma nan; --tau -1; --gae-lambda 1.5;"
    "--start-e 1.1; --end-e -1; --eval-e nan",
    "positive": "--total-timesteps 0; --num-envs 0; --buffer-size 0; --batch-size 0; --utd 0;"
    "--hidden-size 0; --alpha 0; --critic-lr 0; --actor-lr inf; --alpha-lr -1;"
    "--num-critics 0; --num-quantiles 0;"
    "--eval-episodes 0; --policy-delay 0; --rollout-steps 0; --update-epochs 0;"
    "--learning-rate 0; --learning-rate inf; --clip-coef 0; --max-grad-norm 0;"
    "--target-kl 0; --target-kl nan; --target-kl inf; --desired-kl 0;"
    "--train-every 0; --target-every 0; --exploration-fraction 0",
    "--log-std-max": "--log-std-min 3; --log-std-min nan",
    "finite": "--log-std-min -inf; --target-entropy nan; --log-std-init nan",
    "new folder": "--run-dir used",
    "config.toml": "--config missing.toml; --config used; --config invalid.toml",
    "run folder": "--evaluate missing; --evaluate used",
}
REFUSED = [(f.strip(), remedy) for remedy, flags in REFUSED.items() for f in flags.split(";")]
BOXED = {  # tyro's own messages
    "--config typo.toml": "--gamma",
    "--gama 0.9": "--gamma",
    "--gamma high": "--gamma",
    "--total-timesteps 1.5": "--total-timesteps",
    "--device tpu": "--device",
    "--config type.toml": "gamma",
    "--config switch.toml": "3",
}
FILES = {"invalid": "gamma = = 1", "typo": "gama = 0.9", "type": "gamma = 'high'"}
FILES |= {"switch": "autotune = 3"}


@pytest.fixture
def refuse(train, tmp_path, capfd):
    """Train with flags that must be refused, and return what is said on stderr."""
    (tmp_path / "used").mkdir()
    for name, text in FILES.items():
        (tmp_path / f"{name}.toml").write_text(text)

    def refuse(flags):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            train(flags)
        assert stop.value.code == 2 and sorted(tmp_path.rglob("*")) == before
        return capfd.readouterr().err

    return refuse


@pytest.mark.quick
@pytest.mark.parametrize("flags, remedy", REFUSED)
def test_refused(S, spaces, refuse, flags, remedy):
    named = re.findall("--([a-z-]+)", f"{flags} {remedy}")
    need(S, *(f"Args.{name.replace('-', '_')}" for name in named))
    if remedy in ("discrete actions", "finite low", "frames"):
        apply(spaces, "pixels" if remedy == "frames" else "box")
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("CUDA is present")
    said = refuse(flags)
    assert re.fullmatch(rf"error: {flags.split()[0]} .*({remedy}).*\n", said)
    assert said.lower().count("did you mean") < 2


@pytest.mark.quick
@pytest.mark.parametrize("name", ["config", "resume", "run_dir", "evaluate"])
def test_an_empty_name_is_refused(S, capfd, name):
    """As in --evaluate "$RUN" where RUN is not set: it must not train instead."""
    need(S, "compile_update")
    with pytest.raises(SystemExit) as stop:
        S.parse_args(S.Args, [f"--{name}", ""])
    assert stop.value.code == 2 and "must not be empty" in capfd.readouterr().err


@pytest.mark.quick
def test_text_that_no_file_can_hold_is_refused(S, capfd):
    need(S, "compile_update")
    with pytest.raises(SystemExit) as stop:
        S.parse_args(S.Args, ["--notes", "a\udcffb"])
    assert stop.value.code == 2 and "UTF-8" in capfd.readouterr().err


TEXTS = [
    "-foo",
    "--track",
    "--",
    "-h",
    "--seed=7",
    "1e6",
    "steps=1e6",
    " ",
    "a\tb\nc",
    "'\"\\",
    "é",
]


@pytest.mark.quick
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(S, tmp_path, text):
    """Through the flag, the file, --config and --resume; no number is rewritten inside of it."""
    need(S, "RunFolder")
    args = S.parse_args(S.Args, [f"--notes={text}", f"--run-dir={tmp_path / 'x=1e6'}"])
    assert args.notes == text and args.run_dir.endswith("x=1e6")
    folder = S.RunFolder(args)
    folder.write_config(args)
    folder.metrics.file.close()
    for flags in [["--config", str(folder.path / "config.toml")], ["--resume", str(folder.path)]]:
        assert S.parse_args(S.Args, flags).notes == text
        assert S.parse_args(S.Args, [*flags, "--notes=other"]).notes == "other"


@pytest.mark.quick
@pytest.mark.parametrize("number", ["1e4", "10_000", "10000.0", "10000"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
def test_numbers_in_a_file(S, tmp_path, mark, number):
    need(S, "parse_args")
    (tmp_path / "config.toml").write_text(f"{mark}total_timesteps = {number}", "utf-8")
    args = S.parse_args(S.Args, ["--config", str(tmp_path / "config.toml")])
    assert args.total_timesteps == 10_000 and type(args.total_timesteps) is int


PLACES = {"under a file": "used/config.toml/run", "a file": "type.toml", "proc": "/proc/run"}


@pytest.mark.quick
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_folder_that_cannot_be_made(refuse, place, tmp_path):
    (tmp_path / "used" / "config.toml").touch()
    said = refuse(f"--run-dir {place}")
    assert re.fullmatch("error: --run-dir .*name .*\n", said)


@pytest.mark.quick
def test_two_runs_that_begin_in_the_same_millisecond(S, train, monkeypatch):
    need(S, "RunFolder")
    monkeypatch.setattr(S.time, "time_ns", lambda: 10**18)
    for _ in range(3):
        train("--eval-every 0")
    assert len(os.listdir("runs")) == 3


@pytest.mark.quick
def test_the_remedy_for_a_short_run_works(S, train, refuse):
    """Of an off-policy script it is an earlier start of learning, of PPO a shorter rollout."""
    need(S, "main")
    if not {"learning_starts", "rollout_steps"} & {*S.Args.__annotations__}:
        pytest.skip("the script has no shortest run")
    said = refuse("--total-timesteps 90")
    assert "90" in said
    remedy = re.search(r"for a short run add (--[a-z-]+ \d+)", said)[1]
    train(f"--total-timesteps 90 {remedy} --eval-every 0 --run-dir run")
    assert summary("run")["global_step"] == 90


@pytest.mark.quick
def test_the_remedy_for_a_run_shorter_than_a_batch_works(S, train, refuse):
    """An earlier start would not do: learning starts with as many transitions as a batch has."""
    need(S, "main", "Args.learning_starts", "Args.batch_size")
    said = refuse("--total-timesteps 90 --batch-size 90 --learning-starts 100")
    steps, remedy = re.search(
        r"use at least (\d+) steps and (--learning-starts \d+)", said
    ).groups()
    train(f"--total-timesteps {steps} --batch-size 90 {remedy} --eval-every 0 --run-dir run")
    assert summary("run")["global_step"] == int(steps) == 91


@pytest.mark.quick
def test_config_beside_resume_is_refused(S, refuse):
    need(S, "compile_update")
    assert "--config cannot go with --resume" in refuse("--resume used --config typo.toml")


@pytest.mark.quick
def test_every_flag_named_here_is_one_of_ours():
    source = "".join(path.read_text("utf-8") for path in SCRIPTS)
    for name in re.findall("--([a-z-]+)", " ".join(f"{f} {remedy}" for f, remedy in REFUSED)):
        field = name.removeprefix("no-").replace("-", "_")
        assert f"    {field}: " in source, name


@pytest.mark.quick
@pytest.mark.parametrize("flags, name", BOXED.items())
def test_refused_by_tyro(refuse, flags, name):
    assert name in refuse(flags)


@pytest.mark.quick
def test_accepted(S, spaces, train, refuse, monkeypatch):
    need(S, "psutil", "Args.buffer_size", "ReplayBuffer")
    apply(spaces, "box")
    memory = types.SimpleNamespace(available=2**24)  # the true one changes all the time
    monkeypatch.setattr(S.psutil, "virtual_memory", lambda: memory)
    wide = "--env-id tests.toy_envs:DictObs-v0 --buffer-size 1e12"  # obs 2, action 2
    fits = re.search(r"--buffer-size (\d+) fits", refuse(wide))[1]
    row = S.ReplayBuffer(1, 2, 2, "cpu").rows.nbytes  # what it takes
    assert int(fits) == int(0.8 * 2**24 / row)
    agent = train(f"--total-timesteps 4e2 --learning-starts=1e2 --buffer-size {fits} --run-dir run")
    assert summary("run")["global_step"] == 400 and agent.args.learning_starts == 100
    assert agent.args.buffer_size == int(fits)


@pytest.mark.quick
def test_a_rollout_that_fits_is_accepted(S, train, refuse, monkeypatch):
    need(S, "psutil", "Args.rollout_steps")
    row = 24 * (2 + 2 + 2 + 6)  # three copies of obs, next_obs, action and six numbers
    memory = types.SimpleNamespace(available=96 * row / 0.8)
    monkeypatch.setattr(S.psutil, "virtual_memory", lambda: memory)
    flags = "--env-id tests.toy_envs:DictObs-v0 --total-timesteps 2e2"
    assert "--rollout-steps 96 fits" in refuse(f"{flags} --rollout-steps 128")
    agent = train(f"{flags} --rollout-steps=96 --run-dir run")
    assert summary("run")["global_step"] == 200 and agent.args.rollout_steps == 96


@pytest.mark.quick
def test_a_rollout_is_in_the_memory_of_the_host(S, spaces, monkeypatch):
    """On CUDA, too, so that is where it must fit."""
    need(S, "Rollout", "Args.rollout_steps", "check_memory")

    def found(device, *others):
        raise LookupError(f"on {device}")

    monkeypatch.setattr(S, "check_memory", found)
    args = S.Args(env_id="tests.toy_envs:DictObs-v0", device="cuda")
    envs = S.make_envs(args.env_id, args.num_envs)
    with pytest.raises(LookupError, match="on cpu"):
        S.train(args, envs, None)
    monkeypatch.setattr(S, "check_memory", lambda device, *others: device == "cpu" or found(device))
    with pytest.raises(LookupError, match="on cuda"):  # where the batch is
        S.train(args, envs, None)
    envs.close()


class Attack:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("attacked"),)


def spoil(how, path):
    """Replace a model file by something else."""
    content, saved = path.read_bytes(), torch.load(path, weights_only=True)
    saved["args"] |= {"shape": {"hidden_size": 17}, "script": {"of_another": 0.2}}.get(how, {})
    torch.save(Attack() if how == "attack" else saved, path)
    files = {"empty": b"", "text": b"not a model", "pickle": pickle.dumps(Attack())}
    files |= {"half": content[: len(content) // 2], "hole": content[:999] + content[1999:]}
    path.write_bytes(files.get(how, path.read_bytes()))


WAYS = "shape script attack empty text pickle half hole"


@pytest.mark.plumbing
@pytest.mark.quick
@pytest.mark.parametrize("how", WAYS.split())
def test_spoilt_model(train, refuse, how):
    train("--eval-every 0 --run-dir run")
    spoil(how, Path("run/model.pt"))
    assert re.fullmatch("error: --evaluate run.*run folder.*\n", refuse("--evaluate run"))


@pytest.mark.quick
@pytest.mark.parametrize("flags", ["--eval-episodes 0", "--seed -1"])
def test_evaluate_checks_flags(train, refuse, flags):
    train("--eval-every 0 --run-dir run")
    assert re.fullmatch(f"error: {flags.split()[0]} .*\n", refuse(f"--evaluate run {flags}"))


@pytest.mark.plumbing
@pytest.mark.parametrize("flags", ["--env-id Hoper-v4", "--gama 1", "--evaluate missing"])
def test_refused_in_a_process(launch, tmp_path, script, flags):
    code, out, err = finish(launch(tmp_path, flags, PYTHONDONTWRITEBYTECODE="1"))
    assert (code, out) == (2, "") and flags.split()[0] in err and "Traceback" not in err
    assert os.listdir(tmp_path) == [script.name] and (len(err.splitlines()) == 1 or "gama" in flags)
