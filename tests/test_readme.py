"""What README.md, docs/ and configs/ say of the scripts is so, and their links lead somewhere."""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium.utils.env_checker import check_env
from torch import nn

from tests.conftest import TINY, framed, known, share
from tests.reference import learners, prepared

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")])
ALL_PAGES = sorted([*PAGES, *ROOT.glob("results/*.md"), *ROOT.glob("tests/*.md")])
MODIFY = (ROOT / "docs" / "modify.md").read_text("utf-8")
SAC = ROOT / "sac_continuous.py"
OTHERS = {
    "help",
    "index-url",
    "install",
    "logdir",
    "script",
    "add-to-seeds",
    "probe-steps",
}  # of tyro, pip, and so on

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def scripts():
    """Import all scripts of ours, whatever --script names."""
    found = []
    for path in sorted([*ROOT.glob("*_continuous.py"), ROOT / "dqn_atari.py"]):
        spec = importlib.util.spec_from_file_location(f"{path.stem}_of_readme", path)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    yield found
    for module in found:
        del sys.modules[module.__name__]


def name_of(path):
    """Return the name of a page for a test's id."""
    return str(path.relative_to(ROOT))


def test_defaults_of_ppo_are_those_of_the_committed_runs(scripts):
    args = next(script.Args() for script in scripts if script.__name__.startswith("ppo"))
    paths = (ROOT / "results" / "ppo_continuous").glob("*/*/config.toml")
    configs = {path: tomllib.loads(path.read_text("utf-8")) for path in paths}
    of_defaults = {path: config for path, config in configs.items() if "config" not in config}
    assert of_defaults
    for path, config in of_defaults.items():
        for name in ("num_envs", "log_std_init", "rollout_steps", "batch_size", "learning_rate"):
            assert config[name] == getattr(args, name), f"{path}: {name}"


def test_glossary_has_every_metric_and_no_other(scripts, tmp_path):
    handler, lines = signal.getsignal(signal.SIGTERM), []
    for script in scripts:
        sizes = {"learning_starts": 100, "batch_size": 32, "rollout_steps": 96, "num_envs": 1}
        sizes["buffer_size"] = 1000
        name = "tests.probe_envs:MatchPixels-v0" if framed(script) else "InvertedPendulum-v4"
        args = script.Args(name, 300, **known(script, sizes))
        args.threads, args.compile, args.capture_video, args.eval_episodes = 1, "off", False, 1
        args.log_every, args.eval_every = 100, 150
        args.run_dir = str(tmp_path / script.__name__)
        try:
            script.main(args)
        finally:
            signal.signal(signal.SIGTERM, handler)
        lines += Path(args.run_dir, "metrics.jsonl").read_text().splitlines()
    glossary = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = [line.split(" | ")[0] for line in glossary.splitlines() if line.startswith("| `")]
    listed = re.findall("`(.+?)`", " ".join(rows))
    assert sorted(listed) == sorted({key for line in lines for key in json.loads(line)})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_exist(scripts, page):
    kinds = {k: v for script in scripts for k, v in script.Args.__annotations__.items()}
    switches = {f"no-{name}" for name, kind in kinds.items() if kind is bool}
    known = {name.replace("_", "-") for name in {*kinds} | switches} | OTHERS
    for tool in [*ROOT.glob("tools/*.py"), ROOT / "tests" / "mutate.py"]:
        known |= {*re.findall(r'add_argument\(\s*"--([\w-]+)"', tool.read_text("utf-8"))}
    assert {*re.findall(r"(?<![\w-])--([a-z][\w-]+)", page.read_text("utf-8"))} <= known


def commands(text):
    """Return all commands of indented blocks of code, those of several lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(
        r"^(?: {4}|`)\s*((?:python|pytest|\./benchmark\.sh)\b[^`\n]*)", joined, re.MULTILINE
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_accepted(scripts, page, monkeypatch):
    """Scripts take the flags and values, and tools and tests that are named exist."""
    monkeypatch.chdir(ROOT)
    for command in commands(page.read_text("utf-8")):
        words = shlex.split(command.replace("$seed", "3"), comments=True)
        if words[0] != "python" or words[1].startswith("-"):
            continue  # a module
        assert Path(words[1].replace("mine/my_sac", "sac_continuous")).is_file(), command
        stem = Path(words[1]).stem.replace("my_sac", "sac_continuous")
        for script in scripts:
            if script.__name__ == f"{stem}_of_readme" and "runs/NAME" not in command:
                script.check(script.parse_args(script.Args, words[2:]))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_presets_exist(page):
    choose = (ROOT / "benchmark.sh").read_text("utf-8").split("\nchoose()")[1].split("esac")[0]
    presets = {*re.findall(r"^    (\w+)\)", choose, re.MULTILINE)}
    text = page.read_text("utf-8")
    assert {*re.findall(r"\./benchmark\.sh ([a-z]\w+)", text)} <= presets
    if page.name == "sweeps.md":
        assert presets == {*re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)}


def slug(heading):
    """Return the anchor that GitHub gives to a heading."""
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page):
    """Return the anchors of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def broken_links(page):
    """Return the relative links of a page, pictures included, that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n```\n# no heading\n```\n")
    page.write_text(
        page.read_text() + "[x](page.md#a-b-c) [y](#a-b-c) [z](https://gone.example/)\n"
    )
    assert broken_links(page) == []
    page.write_text(
        page.read_text() + "[x](gone.md) ![y](gone.png) [z](#no-heading) [w](page.md#d)"
    )
    assert broken_links(page) == ["gone.md", "gone.png", "#no-heading", "page.md#d"]


def test_every_page_of_docs_is_linked_from_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in ROOT.glob("docs/*.md") if f"(docs/{page.name}" not in text] == []


def test_every_page_of_results_is_linked_from_their_index():
    text = (ROOT / "results" / "README.md").read_text("utf-8")
    pages = [page.name for page in ROOT.glob("results/*.md") if page.name != "README.md"]
    assert [name for name in pages if f"({name})" not in text] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.toml")), ids=lambda p: p.stem)
def test_configs_are_accepted(scripts, path):
    method = path.stem.split("_")[0]
    script = next(script for script in scripts if script.__name__.startswith(method))
    args = script.parse_args(script.Args, ["--config", str(path), "--seed", "7"])
    script.check(args) if hasattr(script, "check") else args.check()
    assert args.seed == 7 and args != script.Args(config=str(path), seed=7)


def blocks(language):
    """Return the blocks of code of docs/modify.md in a language."""
    return re.findall(rf"```{language}\n(.+?)```", MODIFY, re.DOTALL)


def patched(source, diff):
    """Return a source after a diff, whose parts, divided by @@, must each fit in one place."""
    for part in diff.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


@pytest.mark.parametrize("number", range(len(blocks("diff"))))
def test_changes_of_modify_train(number, tmp_path, monkeypatch):
    path = tmp_path / "my_sac.py"
    path.write_text(patched(SAC.read_text("utf-8"), blocks("diff")[number]))
    flags = [word for word in TINY.split() if word not in ("--rollout-steps", "96")]
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *flags])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        assert not end.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"


def pytest_on(path, *words):
    """Run pytest in one process on a script; return the exit code and what it prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", f"--script={path}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_command_of_modify_tests_equations_and_probes(tmp_path):
    """It runs the tests that the page names, and none of the tools of this repository."""
    path = shutil.copy(SAC, tmp_path / "my_sac.py")
    code, out = pytest_on(path, "-m", "quick", "--collect-only")
    assert code == 0, out
    named = re.findall(r"^\| `.+?\| `(test_\w+)(?:\[.*?)?` \|$", MODIFY, re.M)
    assert len(named) == 3
    for name in (*named, "test_t04_t09_t14_critic_loss_and_gradient", "test_policies"):
        assert f"::{name}" in out, name
    assert "test_report.py" not in out and "test_benchmark.py" not in out


def test_what_was_not_tested_of_a_method_is_told(tmp_path):
    """Also where a script has no target network: what does not need one is tested all the same."""
    path = tmp_path / "my_sac.py"
    source = SAC.read_text("utf-8").replace("critic_target", "slow_critic")
    path.write_text(source)
    code, out = pytest_on(path, "tests/test_math.py", "-k", "closed_form or its_own_parameters")
    assert code == 0, out
    assert "test_math.py: 1 ran, 1 did not: the agent has no critic_target (1)" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", share(range(len(blocks("diff")))))
def test_changes_of_modify_pass_the_tests_of_equations(number, tmp_path):
    """The page says so; what a test takes for granted beyond them is a fault of the test."""
    path = tmp_path / "my_sac.py"
    path.write_text(patched(SAC.read_text("utf-8"), blocks("diff")[number]))
    code, out = pytest_on(path, "tests/test_math.py")
    assert code == 0, out


def test_environment_of_modify_is_a_good_one():
    (block,) = [block for block in blocks("python") if "gym.register" in block]
    exec(block, {"__name__": "slide"})
    try:
        check_env(gym.make("Slide-v0").unwrapped, skip_render_check=True)
    finally:
        del gym.registry["Slide-v0"]


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_torch_adam_matches_adam(scripts, name, monkeypatch):
    sac = next(script for script in scripts if script.__name__.startswith(name))
    (block,) = [block for block in blocks("python") if "class TorchAdam" in block]
    names = {"torch": torch, "nn": nn}
    exec(block, names)

    def agent():
        torch.manual_seed(0)
        return sac.Agent(
            sac.Args(hidden_size=32, compile="off"), 5, *np.float32([[-1, -1], [1, 1]])
        )

    ours, start = agent(), agent()
    monkeypatch.setattr(sac, "Adam", names["TorchAdam"])
    theirs = agent()
    assert type(ours.actor_opt) is not type(theirs.actor_opt)
    buffer = sac.ReplayBuffer(1, 5, 2, "cpu")
    blank = learners(sac, buffer.unpack(torch.zeros(16, sum(buffer.widths))), torch.zeros(2, 16, 2))
    updates = {  # the trial leaves no trace
        method: [prepared(sac, one, method, *inputs)[1] for one in (ours, theirs)]
        for method, inputs in blank.items()
    }
    for _ in range(10):
        batch = buffer.unpack(torch.randn(16, sum(buffer.widths)))
        for method, inputs in learners(sac, batch, torch.randn(2, 16, 2)).items():
            metrics = [update(*inputs) for update in updates[method]]
            torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
    actions = [one.act(np.ones((3, 5))) for one in (ours, theirs)]
    np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-5)
    for name, parameter in ours.named_parameters():
        assert not torch.equal(parameter, start.get_parameter(name)), f"{name} did not move"
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=0, atol=1e-6)


YAML = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


@pytest.mark.parametrize("path", YAML, ids=name_of)
def test_yaml_can_be_read(path):
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def test_workflow_runs_what_ci_runs_on_the_oldest_and_the_newest_python():
    path = ROOT / ".github" / "workflows" / "tests.yml"
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert "pull_request" in workflow[True]  # the key is on, which YAML takes for true
    linux = workflow["jobs"]["linux"]
    assert any(step.get("run") == ".ci/run" for step in linux["steps"])
    metadata = re.search(r'requires-python = ">=(3\.\d+),<3\.(\d+)"', SAC.read_text("utf-8"))
    versions = [metadata[1], f"3.{int(metadata[2]) - 1}"]
    assert linux["strategy"]["matrix"]["python"] == versions


def test_hooks_name_programs_that_exist():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    for repo in hooks["repos"]:
        for hook in repo["hooks"]:
            program, *words = hook["entry"].split()
            assert program == "ruff" or (program == "python" and (ROOT / words[0]).is_file())


@pytest.mark.parametrize("target", ["test", "quick", "format", "tables"])
def test_make_knows_what_to_do(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in map(str.split, done.stdout.splitlines()):
        assert words[0] in ("pytest", "ruff") or (ROOT / words[1]).is_file(), words


def test_n_step_returns_of_modify_equal_plain_sums(tmp_path):
    """Of two environments, across the buffer's end, and where episodes end in either way."""
    (diff,) = [block for block in blocks("diff") if "n_step" in block]
    path = tmp_path / "my_sac.py"
    path.write_text(patched(SAC.read_text("utf-8"), diff))
    names = runpy.run_path(str(path), run_name="my_sac")
    gamma, steps, envs, capacity = 0.9, 53, 2, 40
    buffer = names["ReplayBuffer"](capacity, 1, 1, "cpu", n_step=3, gamma=gamma, num_envs=envs)
    random = np.random.default_rng(0)
    rewards = random.normal(size=(steps, envs))
    ends = random.choice(["", "terminated", "truncated"], (steps, envs), p=[0.7, 0.15, 0.15])
    for t in range(steps):
        place = t * envs + np.arange(envs)[:, None]  # an observation names its row
        next_place = place + 0.5
        flags = ends[t] == "terminated", ends[t] == "truncated"
        buffer.add(place, place, rewards[t], flags[0], next_place, flags[1])
    batch = buffer.sample(2000)
    assert len(batch.obs.unique()) == capacity
    for i, place in enumerate(batch.obs[:, 0].int().tolist()):
        t, env = divmod(place, envs)
        total, discount = 0.0, 1.0
        for k in range(3):
            total += discount * rewards[t + k, env]
            last = t + k
            discount *= gamma
            if ends[last, env] or last == steps - 1:
                break
        weight = 0 if ends[last, env] == "terminated" else discount / gamma
        found = batch.reward[i].item(), 1 - batch.terminated[i].item(), batch.next_obs[i].item()
        assert found == pytest.approx((total, weight, last * envs + env + 0.5), abs=1e-5)
