"""The script learns a real task, as the README's first screen promises."""

import pytest

from tests.conftest import apply, need, on_policy, read


@pytest.mark.slow
def test_inverted_pendulum_reaches_1000(S, spaces, tmp_path, monkeypatch):
    """1000 is the most there is; an untrained policy gets about 10."""
    apply(spaces, "box")
    need(S, "parse_args")
    monkeypatch.chdir(tmp_path)
    flags = "--env-id InvertedPendulum-v4 --no-capture-video --run-dir run --threads 1"
    delayed = hasattr(S.Args, "policy_delay")  # its targets move half as often
    total = 50_000 if on_policy(S) else 45_000 if delayed else 20_000
    flags += f" --total-timesteps {total}"
    flags += " --learning-starts 1000" * delayed
    S.main(S.parse_args(S.Args, flags.split()))
    scores = [row["eval/return_mean"] for row in read("run") if "eval/return_mean" in row]
    assert scores[0] < 100 and max(scores) == 1000
