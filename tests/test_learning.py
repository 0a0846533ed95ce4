"""The script learns a real task, as the README's first screen promises."""

import pytest

from tests.conftest import apply, need, on_policy, read


@pytest.mark.slow
def test_inverted_pendulum_reaches_1000(S, spaces, tmp_path, monkeypatch):
    """1000 is the most there is, and ends the test; an untrained policy gets about 10."""
    apply(spaces, "box")
    need(S, "parse_args", "Run.evaluate")
    monkeypatch.chdir(tmp_path)
    flags = "--env-id InvertedPendulum-v4 --no-capture-video --run-dir run --threads 1"
    delayed = hasattr(S.Args, "policy_delay")  # its targets move half as often
    total = 50_000 if on_policy(S) else 90_000 if delayed else 20_000
    flags += f" --total-timesteps {total}"
    flags += " --learning-starts 1000" * delayed
    evaluate = S.Run.evaluate

    def evaluate_and_stop(run, *envs):
        evaluate(run, *envs)
        if run.scores[-1] == 1000:
            raise KeyboardInterrupt

    monkeypatch.setattr(S.Run, "evaluate", evaluate_and_stop)
    with pytest.raises(SystemExit) as end:
        S.main(S.parse_args(S.Args, flags.split()))
    scores = [row["eval/return_mean"] for row in read("run") if "eval/return_mean" in row]
    assert scores[0] < 100 and scores[-1] == 1000 and end.value.code == 130
