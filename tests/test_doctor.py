"""tools/doctor.py: each check on both sides of its threshold, and on scripts that were broken."""

import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import pytest

from tests.conftest import heed_signals, inside
from tests.toy_envs import Toy

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "doctor.md"

sys.path.insert(0, str(ROOT / "tools"))
doctor = importlib.import_module("doctor")

CHECKS = {check.name: check for check in doctor.CHECKS}
quick = pytest.mark.quick
SCRIPTS = [f"{name}_continuous" for name in ("sac", "td3", "tqc", "ppo")] + ["dqn_atari"]
ALWAYS_MADE = ("not-finite", "crash", "killed")


# --- runs that are made up ------------------------------------------------------------------------
TOTAL = 10_000
CONFIG = {"env_id": "Hopper-v4", "seed": 1, "total_timesteps": TOTAL, "gamma": 0.99}
SAC = {"autotune": True, "alpha_lr": 1e-3, "tau": 0.005, "utd": 1.0, "learning_starts": 0}
SAC |= {"num_envs": 1, "eval_episodes": 10}
PPO = {"update_epochs": 10, "rollout_steps": 500, "batch_size": 50, "num_envs": 1}
RISING = [0.1 * 1.1**number for number in range(20)]
DQN = {"target_every": 10, "train_every": 4, "learning_starts": 0, "clip_rewards": True}


def made_up(intervals=None, evaluations=None, episodes=None, config=(), every=500, **end):
    """Return logs with these columns, whose rows are spread over the run.

    A column is a list, or one number for all rows. Interval k ends at step (k + 1) * every.
    """
    state = {"state": "finished", "reason": "", "step": TOTAL} | end
    return doctor.Logs(
        folder=Path("run"),
        config=doctor.Settings(CONFIG | dict(config)),
        intervals=rows_of({"charts/SPS": 100.0} | (intervals or {}), every, every),
        evaluations=rows_of(evaluations, 500, 0),
        episodes=rows_of(episodes, 100, 100),
        **state,
    )


def rows_of(columns, every, first):
    """Return rows of metrics, at steps from the first on."""
    if not columns:
        return []
    lengths = [len(column) for column in columns.values() if isinstance(column, list)]
    count = min(lengths, default=TOTAL // every)
    rows = []
    for number in range(count):
        row = {"global_step": first + number * every}
        for name, column in columns.items():
            row[name] = column[number] if isinstance(column, list) else column
        rows.append(row)
    return rows


def evaluated(*returns, deviation=1.0):
    """Return the columns of evaluations at steps 0, 500 and so on."""
    return {"eval/return_mean": list(returns), "eval/return_sd": deviation}


def lived(returns, lengths):
    """Return the columns of episodes that end at steps 100, 200 and so on."""
    return {"charts/episodic_return": returns, "charts/episodic_length": lengths}


def values(lowest, highest, reward=1.0, **more):
    """Return the columns of values and rewards."""
    columns = {"q/value_min": lowest, "q/value_max": highest}
    return columns | {"env/reward_min": -reward, "env/reward_max": reward} | more


def targets(mean, spread, reward=1.0, reward_spread=0.5, learned=1.0, length=100.0):
    """Return the columns of targets and rewards."""
    return {
        "q/target_mean": mean,
        "q/target_sd": spread,
        "q/value_sd": learned,
        "env/reward_mean": reward,
        "env/reward_sd": reward_spread,
        "train/length_mean": length,
        "charts/updates": steps_of_updates(),
    }


def steps_of_updates(share=1.0):
    """Return one update a step, or a share of that."""
    return [int(share * step) for step in range(500, TOTAL + 1, 500)]


def temperature(alpha, gap):
    """Return the columns of the temperature, of an action of two dimensions."""
    entropy = [one - 2.0 for one in gap] if isinstance(gap, list) else gap - 2.0
    return {
        "losses/alpha": alpha,
        "policy/entropy": entropy,
        "policy/entropy_gap": gap,
        "charts/updates": steps_of_updates(),
    }


def timed(sps, **shares):
    """Return the columns of speed; shares of time are those of each activity."""
    names = {f"time/{name}": 0.25 for name in doctor.ACTIVITIES}
    names |= {f"time/{name}": share for name, share in shares.items()}
    return {"charts/SPS": sps, "losses/qf_loss": 1.0} | names


def leak(growth, others=1.0, since=20, first=1.0):
    """Return the columns of 40 rows; from one of them on stepping, and others, take longer.

    Stepping takes first at first, in units of what each other activity takes then.
    """
    env = [first] * since + [first * growth] * (40 - since)
    other = [1.0] * since + [others] * (40 - since)
    totals = [a + 3 * b for a, b in zip(env, other, strict=True)]
    columns = timed([400 / total for total in totals])
    for name in doctor.ACTIVITIES:
        seconds = env if name == "env" else other
        columns[f"time/{name}"] = [a / b for a, b in zip(seconds, totals, strict=True)]
    return columns


class Sides(NamedTuple):
    """A run in which a check fires at a step, and others, about the same, in which it does not."""

    sick: doctor.Logs
    step: int
    well: list[doctor.Logs]


def both_sides():
    """Return Sides of each check, by name."""
    return {
        "not-finite": Sides(
            sick=made_up({"losses/qf_loss": [1.0, math.nan, 1.0]}),
            step=1000,
            well=[
                made_up({"losses/qf_loss": [1.0, 1e30, 1.0]}),
                made_up(state="failed", reason="ValueError('no') at step 9", step=9),
            ],
        ),
        "crash": Sides(
            sick=made_up(state="failed", reason="ValueError('no') at step 9", step=9),
            step=9,
            well=[
                made_up(state="interrupted", reason="SIGTERM at step 9"),
                made_up(state="failed", reason="FloatingPointError('obs') at step 9"),
            ],
        ),
        "killed": Sides(
            sick=made_up(state="killed", step=700),
            step=700,
            well=[made_up(state="living", step=700), made_up(state="interrupted", step=700)],
        ),
        "update-count": Sides(
            sick=made_up({"charts/updates": steps_of_updates(0.989)}, config=SAC),
            step=500,
            well=[
                made_up({"charts/updates": steps_of_updates(0.991)}, config=SAC),
                made_up({"charts/updates": steps_of_updates(0.2)}, config=PPO),
                made_up({"charts/updates": steps_of_updates(0.25)}, config=DQN),
            ],
        ),
        "impossible-values": Sides(
            sick=made_up(values(0.0, [70.0] * 3 + [151.0] * 6)),
            step=4000,
            well=[
                made_up(values(0.0, [70.0] + [149.0] * 8)),
                made_up(values(0.0, [80.0] + [151.0] * 8)),
                made_up(values(0.0, [70.0] + [151.0] * 8, reward=0.0)),
                made_up(values(0.0, [1.0] + [151.0] * 4 + [1.0] + [151.0] * 4)),
                made_up(values(0.0, [1.0] + [151.0] * 8, reward=2.0)),
                made_up(values(0.0, [1.0] + [400.0] * 8, **temperature(2.0, 0.0)), config=SAC),
            ],
        ),
        "first-ratio": Sides(
            sick=made_up({"ppo/ratio_first_mb": [1e-6, 1e-6, 1.1e-3]}),
            step=1500,
            well=[made_up({"ppo/ratio_first_mb": [1e-6, 9e-4]})],
        ),
        "constant-reward": Sides(
            sick=made_up(
                {"env/reward_mean": 1.0, "env/reward_sd": 9e-7},
                episodes=lived([50.0] * 99, [50.0] * 99),
            ),
            step=2500,
            well=[
                made_up(
                    {"env/reward_mean": 1.0, "env/reward_sd": 1.1e-6},
                    episodes=lived([50.0] * 99, [50.0] * 99),
                ),
                made_up(  # staying alive is all
                    {"env/reward_mean": 1.0, "env/reward_sd": 0.0},
                    episodes=lived([50.0, 60.0] * 40, [50.0, 60.0] * 40),
                ),
                made_up(  # four episodes
                    {"env/reward_mean": 1.0, "env/reward_sd": 0.0},
                    episodes=lived([50.0] * 4, [50.0] * 4),
                ),
            ],
        ),
        "constant-obs": Sides(
            sick=made_up({"env/obs_mean": 3.0, "env/obs_sd": 0.0}),
            step=2500,
            well=[made_up({"env/obs_mean": 3.0, "env/obs_sd": 1e-3})],
        ),
        "same-critics": Sides(
            sick=made_up({"q/twin_gap": [0.1, *[9e-5] * 5]}),
            step=3000,
            well=[made_up({"q/twin_gap": [1.1e-4] * 9})],
        ),
        "frozen-temperature": Sides(
            sick=made_up(temperature(0.1, 1.0), config=SAC),
            step=2500,
            well=[
                made_up(temperature(0.1, 1.0), config=SAC | {"autotune": False}),
                made_up(temperature([0.1, *[0.1001] * 19], 1.0), config=SAC),
            ],
        ),
        "temperature-wrong-way": Sides(
            sick=made_up(temperature(RISING, 0.21), config=SAC),
            step=3000,
            well=[
                made_up(temperature(RISING[::-1], 0.21), config=SAC),
                made_up(temperature(RISING, -0.21), config=SAC),
                made_up(temperature(RISING, 0.19), config=SAC),
                made_up(temperature(RISING, 0.21), config=SAC | {"autotune": False}),
            ],
        ),
        "still-target": Sides(
            sick=made_up(targets(2.8, 0.7, learned=0.075), config=SAC),
            step=4000,  # 2,000 updates are 10 / tau
            well=[
                made_up(targets(3.2, 0.5), config=SAC),
                made_up(targets(1.1, 0.8), config=SAC),
                made_up(targets(1.1, 0.5, learned=0.045), config=SAC),  # a dead critic
                made_up(targets(1.1, 0.5, length=2.9), config=SAC),
                made_up(targets(1.1, 0.5), config=SAC | {"gamma": 0.5}),
                made_up(targets(1.1, 0.5), config=SAC | {"policy_delay": 10}),
                made_up(targets(1.1, 0.5), config=DQN | {"target_every": 1000}),
            ],
        ),
        "limit-as-end": Sides(
            sick=made_up({"env/time_limit_frac": 0.0}, episodes=lived([9.0] * 99, [30, 1000] * 40)),
            step=1000,  # the first interval after three of Hopper's 1,000 steps
            well=[
                made_up({"env/time_limit_frac": 0.5}, episodes=lived([9.0] * 99, [30, 1000] * 40)),
                made_up({"env/time_limit_frac": 0.0}, episodes=lived([9.0] * 99, [30, 999] * 40)),
            ],
        ),
        "equal-lengths": Sides(
            sick=own_task(20.0, 20.0),
            step=500,
            well=[
                own_task(200.0, 201.0),
                own_task(19.0, 19.0),
                own_task(200.0, 200.0, cut=1.0),
                own_task(200.0, 200.0, config={}),
            ],
        ),
        "no-bootstrap": Sides(
            sick=made_up(
                {"env/time_limit_frac": [0.0, 0.0, 0.1]}, config={"bootstrap_truncated": False}
            ),
            step=1500,
            well=[
                made_up({"env/time_limit_frac": 0.0}, config={"bootstrap_truncated": False}),
                made_up({"env/time_limit_frac": 0.1}, config={"bootstrap_truncated": True}),
            ],
        ),
        "not-learning": Sides(
            sick=made_up({}, evaluated(5.0, *[5.8] * 20), config=SAC),
            step=4000,
            well=[
                made_up({}, evaluated(5.0, *[6.0] * 20), config=SAC),
                made_up({}, evaluated(5.0, 5.0, 6.0, *[5.0] * 18), config=SAC),
                made_up({}, evaluated(*[5.0] * 8), config=SAC),
                made_up({}, evaluated(*[5.0] * 21), config=DQN),
            ],
        ),
        "poor-fit": Sides(
            sick=made_up(
                {"losses/qf_loss": 4.4, "q/target_sd": 2.0, "charts/updates": steps_of_updates()}
            ),
            step=4500,
            well=[
                made_up(
                    {
                        "losses/qf_loss": 3.6,
                        "q/target_sd": 2.0,
                        "charts/updates": steps_of_updates(),
                    }
                ),
                made_up({"losses/qf_loss": 4.4, "q/target_sd": 2.0, "charts/updates": 1999}),
                made_up(
                    {"losses/td_loss": 4.4, "q/target_sd": 2.0, "charts/updates": 9999},
                    config=DQN | {"huber": True},
                ),
            ],
        ),
        "critics-apart": Sides(
            sick=made_up({"q/twin_gap": 1.1, "charts/updates": steps_of_updates()}),
            step=3000,
            well=[
                made_up({"q/twin_gap": 0.9, "charts/updates": steps_of_updates()}),
                made_up({"q/twin_gap": 1.1, "charts/updates": 999}),
            ],
        ),
        "target-scale": Sides(
            sick=made_up({"q/target_min": [-1.0, -1.1e4], "q/target_max": 1.0}),
            step=1000,
            well=[
                made_up({"q/target_min": -9e3, "q/target_max": 9e3}),
                made_up({"ppo/adv_min": -9e3, "ppo/adv_max": 9e3}),
            ],
        ),
        "obs-scale": Sides(
            sick=made_up({"env/obs_sd": 51.0, "env/obs_mean": 0.0}),
            step=2500,
            well=[
                made_up({"env/obs_sd": 49.0, "env/obs_mean": 0.0}),
                made_up({"env/obs_sd": 0.011, "env/obs_mean": 0.0}),
                made_up({"env/obs_sd": 51.0, "env/obs_mean": 0.0}, config={"norm_obs": True}),
            ],
        ),
        "large-kl": Sides(
            sick=made_up({"losses/approx_kl": [0.06] * 6 + [0.01] * 4 + [0.06] * 9}),
            step=5000,
            well=[
                made_up({"losses/approx_kl": 0.049}),
                made_up({"losses/approx_kl": [0.06] * 9}),
            ],
        ),
        "tiny-kl": Sides(
            sick=made_up({"losses/approx_kl": 9e-5, "losses/clipfrac": 0.0}),
            step=5000,
            well=[
                made_up({"losses/approx_kl": 1.1e-4, "losses/clipfrac": 0.0}),
                made_up({"losses/approx_kl": 9e-5, "losses/clipfrac": 0.01}),
            ],
        ),
        "blind-critic": Sides(
            sick=made_up({"losses/explained_variance": [-9e-4, 9e-4] * 9}),
            step=5000,
            well=[
                made_up({"losses/explained_variance": [9e-4] * 9 + [1.1e-3] + [9e-4] * 9}),
                made_up({"losses/explained_variance": -0.5}),
            ],
        ),
        "harmful-critic": Sides(
            sick=made_up({"ppo/explained_var_mc": [-0.1] * 40}, every=250),
            step=6000,
            well=[made_up({"ppo/explained_var_mc": [*[-0.1] * 19, 0.1] * 2}, every=250)],
        ),
        "saturation": Sides(
            sick=made_up(actor("policy/saturation", 0.91), evaluated(*[5.0] * 21)),
            step=2500,
            well=[
                made_up(actor("policy/saturation", 0.89), evaluated(*[5.0] * 21)),
                made_up(actor("policy/saturation", 0.91), evaluated(5.0, *[6.0] * 20)),
                made_up(
                    actor("policy/saturation", [0.5, *[0.91] * 4, 0.5]), evaluated(*[5.0] * 21)
                ),
                made_up(actor("policy/saturation", 0.91, 2499), evaluated(*[5.0] * 21)),
            ],
        ),
        "still-actor": Sides(
            sick=made_up(actor("policy/action_sd", 0.009), evaluated(*[5.0] * 21)),
            step=2500,
            well=[
                made_up(actor("policy/action_sd", 0.011), evaluated(*[5.0] * 21)),
                made_up(actor("policy/action_sd", 0.009), evaluated(5.0, *[6.0] * 20)),
            ],
        ),
        "noise-size": Sides(
            sick=made_up({"policy/log_std": -4.1}),
            step=2500,
            well=[made_up({"policy/log_std": -3.9}), made_up({"policy/log_std": 0.9})],
        ),
        "temperature-range": Sides(
            sick=made_up({"losses/alpha": [0.1, 1.0, 11.0]}),
            step=1500,
            well=[made_up({"losses/alpha": [0.1, 9.0]}), made_up({"losses/alpha": [0.1, 1.1e-5]})],
        ),
        "temperature-speed": Sides(
            sick=made_up({"losses/alpha": [0.1, 0.01, 9e-4]}),
            step=1500,
            well=[
                made_up({"losses/alpha": [0.1, 0.01, 1.1e-3]}),
                made_up({"losses/alpha": [0.1, 0.01, 9e-4]}, every=6000),
            ],
        ),
        "entropy-off-target": Sides(
            sick=made_up(temperature(0.1, 1.1), config=SAC | {"alpha_lr": 5e-4}),
            step=8000,
            well=[
                made_up(temperature(0.1, 0.9), config=SAC),
                made_up(temperature(0.1, 1.1), config=SAC | {"alpha_lr": 2e-4}),
                made_up(temperature(0.1, 1.1), config=SAC | {"autotune": False}),
            ],
        ),
        "slowing": Sides(
            sick=made_up(leak(2.9), every=250),
            step=6500,
            well=[
                made_up(leak(2.6), every=250),
                made_up(leak(3.0, others=1.1), every=250),
                made_up(leak(1.9, first=12.0), every=250),  # other programs, above all beside it
                made_up(timed([400.0] * 20 + [100.0] * 20), every=250),  # a busy machine
            ],
        ),
    }


def own_task(shortest, longest, cut=0.0, config=None):
    """Return the logs of a task that Gymnasium does not know."""
    columns = {"train/length_min": shortest, "train/length_max": longest}
    episodes = lived([9.0] * 99, [shortest] * 99)
    config = {"env_id": "mine:Own-v0"} if config is None else config
    return made_up(columns | {"env/time_limit_frac": cut}, episodes=episodes, config=config)


def actor(name, column, updates=None):
    """Return the columns of a metric of the actor."""
    return {name: column, "charts/updates": updates or steps_of_updates()}


SIDES = both_sides()


def alarm_of(name, logs):
    """Return the alarm of a check, None also if it cannot judge."""
    result = CHECKS[name].function(logs)
    return result if isinstance(result, doctor.Alarm) else None


def names_of(logs):
    """Return the names of the checks that fire."""
    return [finding.check.name for finding in doctor.examine(logs).findings]


def whole(without="", **config):
    """Return the logs of a healthy run of PPO for which all checks can be made, or all but one."""
    columns = {name: 0.5 for check in doctor.CHECKS for name in check.needs if name in OF_PPO}
    columns |= timed(100.0) | {"env/obs_sd": 1.0, "ppo/ratio_first_mb": 1e-6}
    columns |= {"losses/approx_kl": 0.01, "losses/entropy": 1.0, "ppo/adv_min": -2.0}
    columns |= {"ppo/adv_max": 2.0, "env/time_limit_frac": 0.1, "policy/log_std": -1.0}
    columns["charts/updates"] = [100 * (number // 2) for number in range(1, 41)]
    del columns["losses/qf_loss"]
    columns.pop(without, None)
    return made_up(
        columns,
        evaluated(*range(21)),
        lived([*range(99)], [*range(1, 100)]),
        config=PPO | config,
        every=250,
    )


OF_PPO = """env/reward_mean env/reward_sd env/obs_mean env/obs_sd losses/clipfrac losses/approx_kl
losses/explained_variance ppo/explained_var_mc policy/log_std env/time_limit_frac train/length_min
train/length_max ppo/ratio_first_mb charts/updates""".split()


@quick
def test_every_check_has_both_sides():
    assert SIDES.keys() == CHECKS.keys()
    assert len(CHECKS) == len(doctor.CHECKS)


@quick
@pytest.mark.parametrize("name", CHECKS)
def test_check_fires_on_one_side_of_its_threshold(name):
    check = CHECKS[name]
    sides = SIDES[name]
    alarm = doctor.judge(check, sides.sick)
    assert alarm.step == sides.step
    assert name in names_of(sides.sick)
    for number, logs in enumerate(sides.well):
        assert alarm_of(name, logs) is None, number


@quick
@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ("crash", "killed")])
def test_no_check_looks_ahead(name):
    """Until its step there is no alarm, and then the same as with all that follows."""
    sides = SIDES[name]
    alarm = alarm_of(name, sides.sick)
    assert alarm_of(name, until(sides.sick, sides.step)) == alarm
    assert alarm_of(name, until(sides.sick, sides.step - 1)) is None


def until(logs, step):
    """Return what logs were at a step."""
    parts = {}
    for name in ("intervals", "evaluations", "episodes"):
        parts[name] = [row for row in getattr(logs, name) if row["global_step"] <= step]
    rest = {"folder": logs.folder, "config": logs.config, "reason": "", "step": step}
    return doctor.Logs(**parts, **rest, state="living")


@quick
def test_checks_survive_copies_with_other_settings():
    """Whatever they renamed or left out, and whatever they log no more."""
    everything = {metric: RISING for check in CHECKS.values() for metric in check.needs}
    for config in (SAC, PPO, DQN):
        for name in [*config, None]:
            rest = {key: value for key, value in config.items() if key != name}
            doctor.examine(made_up(everything, config=rest))
        for metric in everything:
            rest = {key: value for key, value in everything.items() if key != metric}
            doctor.examine(made_up(rest, config=config))


@quick
def test_a_mistake_of_a_check_is_no_renamed_setting():
    """It must not pass for a check that is not meant for the run."""
    check = doctor.CHECKS[0]
    with pytest.raises(KeyError, match="no/such"):
        doctor.judge(replace(check, needs=(), function=lambda logs: {}["no/such"]), made_up())
    needy = replace(check, needs=(), function=lambda logs: logs.config["no_such"])
    assert doctor.judge(needy, made_up()) is doctor.NOT_MEANT


def test_checks_survive_runs_without_metrics():
    """Such as one that has just begun, or that a script with other metrics made."""
    for logs in (
        made_up({}),
        made_up({}, config=SAC),
        made_up({}, config=PPO | {"target_kl": 1.0}),
    ):
        logs.intervals[:] = logs.intervals[:1]
        assert names_of(logs) == []
        logs.intervals.clear()
        assert names_of(logs) == []
    for check in doctor.CHECKS:  # no row has two of the metrics
        logs = made_up({"losses/qf_loss": [1.0] * len(check.needs)}, config=SAC)
        for row, metric in zip(logs.intervals, check.needs, strict=True):
            row[metric] = 1.0
        assert alarm_of(check.name, logs) is None or len(check.needs) == 1, check.name
    logs = made_up({}, evaluated(*[5.0] * 21))
    del logs.evaluations[0]  # nobody knows what the untrained agent did
    assert names_of(logs) == []


def other_signs():
    """Return branches that the two sides leave out: a check, logs, the step at which it fires."""
    sparse = {"env/reward_mean": 0.0, "env/reward_sd": 0.0}
    limit = {"env/time_limit_frac": [0.0]}
    whole_first = lived([9.0] * 103, [1000.0] * 3 + [30.0] * 100)
    huge = {"ppo/adv_min": -1.0, "ppo/adv_max": 1.1e4}
    endless = targets(1.1, 0.5)
    del endless["train/length_mean"]
    fit = {"losses/td_loss": 4.4, "q/target_sd": 2.0, "charts/updates": steps_of_updates()}
    nan = "FloatingPointError('obs') at step 9"
    return [
        ("not-finite", made_up(state="failed", reason=nan, step=9), 9),
        ("not-finite", made_up(evaluations=evaluated(1.0, 2.0, math.nan)), 1000),
        ("not-finite", made_up(episodes=lived([1.0, math.nan], [5.0, 5.0])), 200),
        ("update-count", made_up({"charts/updates": 0}, config=PPO | {"target_kl": 0.01}), 1000),
        ("update-count", made_up({"charts/updates": 90}, config=PPO | {"target_kl": 0.01}), None),
        ("impossible-values", made_up(values(0.0, [1.0] + [99.0] * 8, reward=0.3)), 3000),
        (
            "impossible-values",
            made_up(values(0.0, [1.0] + [99.0] * 8, reward=0.3), config=DQN),
            None,
        ),
        ("constant-reward", made_up(sparse, episodes=lived([3.0, 4.0] * 40, [50.0] * 80)), 2500),
        ("constant-reward", made_up(sparse, episodes=lived([3.0, 4.0] * 40, [50, 60] * 40)), 2500),
        ("still-target", made_up(targets(1.2, 0.5, length=3.1), config=SAC), 4000),
        ("still-target", made_up(targets(1.4, 0.5, length=3.1), config=SAC), None),
        ("still-target", made_up(endless, config=SAC), 4000),
        ("still-target", made_up(targets(1.1, 9.0, reward_spread=0.0), config=SAC), 4000),
        ("still-target", made_up(targets(1.1, 0.5), config=DQN | {"target_every": 50}), 5000),
        ("limit-as-end", made_up(limit, episodes=whole_first, every=10_000), 10_000),
        ("limit-as-end", made_up(limit, episodes=whole_first, every=10_100), None),
        ("poor-fit", made_up(fit, config=DQN), 4500),
        ("poor-fit", made_up(fit), None),  # that loss is DQN's
        ("obs-scale", made_up({"env/obs_sd": 0.009}), 2500),
        ("noise-size", made_up({"policy/log_std": 1.1}), 2500),
        ("temperature-range", made_up({"losses/alpha": 9e-6}), 500),
        ("temperature-speed", made_up({"losses/alpha": [0.1, 0.01, 9e-4]}, every=4500), 13_500),
        ("target-scale", made_up(huge), 500),
        ("slowing", made_up(leak(2.9, since=10), every=250), 6000),
    ]


@quick
@pytest.mark.parametrize("name, logs, step", other_signs())
def test_other_signs_of_the_same_checks(name, logs, step):
    alarm = alarm_of(name, logs)
    assert alarm is None if step is None else alarm.step == step


@quick
def test_a_game_is_given_time():
    """At 40 % of a long run, and after 10 million frames at the earliest."""
    for total, step in ((10_000_000, 4_000_000), (5_000_000, 2_500_000), (2_000_000, None)):
        logs = made_up({}, evaluated(*[0.0] * 21), config=DQN | {"total_timesteps": total})
        for number, row in enumerate(logs.evaluations):
            row["global_step"] = number * total // 20
        alarm = alarm_of("not-learning", logs)
        assert alarm is None if step is None else alarm.step == step


@quick
def test_gravest_findings_come_first():
    columns = {"losses/alpha": 11.0, "ppo/ratio_first_mb": [0.0, *[1.0] * 8], "env/obs_sd": 99.0}
    names = names_of(made_up(columns, state="failed", reason="ValueError()", step=7))
    assert names == ["crash", "first-ratio", "temperature-range", "obs-scale"]


@quick
@pytest.mark.parametrize("name", [name for name in CHECKS if not name.startswith(ALWAYS_MADE)])
def test_a_run_that_has_just_begun_is_not_called_well(name):
    """Before there is a row, a check says that it cannot judge, and not that all is well."""
    sick = SIDES[name].sick
    nothing = doctor.judge(CHECKS[name], until(sick, -1))
    assert nothing in (doctor.TOO_EARLY, doctor.NOT_LOGGED)
    before = doctor.judge(CHECKS[name], until(sick, SIDES[name].step - 1))
    judges_earlier = "impossible-values first-ratio same-critics limit-as-end no-bootstrap "
    judges_earlier += "target-scale temperature-range temperature-speed slowing"
    assert (before is None) == (name in judges_earlier.split())


@quick
def test_healthy_is_a_run_for_which_all_checks_were_made():
    examination = doctor.examine(whole())
    assert examination.is_healthy and examination.made == examination.meant == 19
    assert len(examination.unmade[doctor.NOT_MEANT]) == len(CHECKS) - 19
    for without, missing in (
        ("ppo/ratio_first_mb", ["first-ratio"]),
        ("env/obs_sd", ["constant-obs", "obs-scale"]),
        ("losses/approx_kl", ["large-kl", "tiny-kl"]),
        ("ppo/adv_max", ["target-scale"]),
    ):
        examination = doctor.examine(whole(without))
        assert examination.findings == [] and not examination.is_healthy
        assert examination.unmade[doctor.NOT_LOGGED] == missing
        assert examination.made == 19 - len(missing)


@quick
def test_checks_that_settings_rule_out_do_not_count():
    examination = doctor.examine(whole(norm_obs=True))
    assert examination.is_healthy and examination.meant == 18
    assert "obs-scale" in examination.unmade[doctor.NOT_MEANT]


@quick
def test_short_runs_are_too_short_for_checks():
    examination = doctor.examine(until(whole(), 2250))
    early = examination.unmade[doctor.TOO_EARLY]
    assert early == ["not-learning", "large-kl", "tiny-kl", "blind-critic", "harmful-critic"] + [
        "slowing"
    ]
    assert not examination.is_healthy and examination.made == 13


@quick
def test_what_may_still_be_logged_is_no_missing_metric():
    """Until there are updates, episodes or rows; not if settings or the script rule it out."""
    early, missing = doctor.TOO_EARLY, doctor.NOT_LOGGED
    begun = made_up({"env/reward_mean": 0.5}, episodes=lived([1.0], [1.0]), config=PPO)
    learned = made_up({"losses/policy_loss": 0.1}, config=PPO)
    for logs, name, why in (
        (begun, "first-ratio", early),
        (begun, "harmful-critic", missing),
        (begun, "not-learning", missing),
        (learned, "first-ratio", missing),
        (learned, "harmful-critic", early),
        (learned, "equal-lengths", early),
        (until(begun, 0), "not-learning", early),
        (made_up({}, config=PPO | {"log_every": 0}), "first-ratio", missing),
        (until(made_up({}, config=PPO | {"eval_every": 0}), 0), "not-learning", missing),
        (made_up({}), "first-ratio", missing),  # of a script that is not known
        (learned, "frozen-temperature", doctor.NOT_MEANT),
    ):
        assert doctor.judge(CHECKS[name], logs) is why, name


@quick
@pytest.mark.parametrize("name", SCRIPTS)
def test_checks_are_for_scripts_that_log_what_they_need(name):
    """Names that a script puts together are in no literal of it: their beginning is."""
    source = (ROOT / f"{name}.py").read_text("utf-8")
    args = source.split("class Args")[1].split("\n\n\n")[0]
    (method,) = [name for name in doctor.METHODS if f"    {name}: " in args]
    for check in doctor.CHECKS:
        own = [name for name in check.needs if name.startswith(("losses/", "ppo/", "policy/"))]
        own += [name for name in check.needs if name == "q/twin_gap"]
        if own:
            logs_all = all(f'"{name}"' in source for name in own)
            assert logs_all == (method in check.methods), check.name


@quick
def test_records_are_complete():
    for check in doctor.CHECKS:
        assert check.level in doctor.LEVELS
        assert check.function.__doc__
        for text in (check.meaning, check.next_step):
            assert text.endswith((".", "?", ")")) and len(text) < 260, check.name
    glossary = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for metric in {metric for check in doctor.CHECKS for metric in check.needs}:
        assert f"`{metric}`" in glossary, metric


# --- the command ----------------------------------------------------------------------------------
def write_run(folder, logs, status="finished"):
    """Write logs as a run folder; without a status it has no summary."""
    folder.mkdir(parents=True)
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in logs.config.items()]
    (folder / "config.toml").write_text("".join(lines))
    rows = [*logs.intervals, *logs.evaluations, *logs.episodes]
    rows.sort(key=lambda row: row["global_step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status:
        write_summary(folder, status)
    return folder


def write_summary(folder, status, reason=""):
    summary = {"status": status, "reason": reason}
    (folder / "summary.json").write_text(json.dumps(summary))


def call(*arguments, cwd, **environ):
    """Run the doctor; return its exit code, stdout and stderr."""
    command = [sys.executable, ROOT / "tools" / "doctor.py", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "env": os.environ | environ}
    done = subprocess.run(command, cwd=cwd, timeout=60, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def runs(tmp_path):
    """Make a folder of two runs, one of them sick; return the folder above."""
    write_run(tmp_path / "runs" / "well", whole())
    write_run(tmp_path / "runs" / "sick", made_up({"losses/alpha": 20.0, "env/obs_sd": 99.0}))
    return tmp_path


@quick
def test_command_names_the_sick_runs(runs):
    code, out, err = call("runs", cwd=runs, COLUMNS="60")
    assert code == 1 and err == ""
    sick, well = out.split("runs/well: ")
    assert sick.startswith("runs/sick: temperature-range, obs-scale (finished at step 10,000 of")
    assert "WARN temperature-range, since step 500" in sick
    assert "WARN obs-scale, since step 2,500" in sick
    words = " ".join(sick.split())
    assert "temperature: 20 (alarm: below 1e-05 or above 10)" in words
    for name in ("temperature-range", "obs-scale"):
        assert CHECKS[name].meaning in words and f"Next: {CHECKS[name].next_step}" in words
    assert max(len(line) for line in sick.splitlines()[1:]) <= 60
    state = "healthy (finished at step 10,000 of 10,000, all 19 checks made)\n"
    assert well == f"{state}2 runs: 1 healthy, 1 with an alarm: runs/sick\n"


@quick
@pytest.mark.parametrize("name", ["runs/well", "runs/w*", "runs/*ell"])
def test_command_says_in_a_line_that_a_run_is_healthy(runs, name):
    code, out, err = call(name, cwd=runs)
    assert code == 0 and err == "" and out.count("\n") == 1 and "runs/well: healthy" in out


@quick
def test_command_says_how_many_checks_could_be_made_and_on_request_why(runs):
    write_run(runs / "runs" / "short", until(whole(), 2250))
    code, out, err = call("runs/short", cwd=runs)
    assert code == 0 and err == "" and out.count("\n") == 1
    assert out.startswith("runs/short: nothing found, 13 of 19 checks could be made: ")
    assert "too few steps or rows for 6 (" in out
    code, out, _ = call("runs/short", "--why", cwd=runs, COLUMNS="70")
    assert code == 0 and max(map(len, out.splitlines()[1:])) <= 70
    words = " ".join(out.split())
    assert "not made, too few steps or rows: not-learning, large-kl, tiny-kl, blind" in words
    assert "not made, not for this method, task or settings: impossible-values, same-" in words
    assert "metrics not logged" not in words
    _, out, _ = call("runs", cwd=runs)
    assert out.splitlines()[-1] == (
        "3 runs: 1 healthy, 1 with nothing found, but not all checks made (--why lists them), "
        "1 with an alarm: runs/sick"
    )


@quick
def test_last_line_names_all_runs_with_alarms(runs):
    shutil.copytree(runs / "runs" / "sick", runs / "runs" / "too sick")
    shutil.copytree(runs / "runs" / "well", runs / "runs" / "as well")
    for flag in ("--watch", "--why"):
        _, out, _ = call("runs", flag, cwd=runs)
        last = out.splitlines()[-1]
        assert last == "4 runs: 2 healthy, 2 with alarms: runs/sick, runs/too sick"


@quick
def test_command_writes_markdown(runs):
    code, out, _ = call("runs", "--markdown", cwd=runs)
    assert code == 1
    lines = out.splitlines()
    assert lines[5:] == ["", "2 runs: 1 healthy, 1 with an alarm: runs/sick"]
    lines = lines[:5]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[2].startswith("| `runs/sick` | WARN temperature-range | 500 | temperature: 20 ")
    assert lines[4].startswith("| `runs/well` | healthy |")


@quick
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["missing"], "error: no run among what you named"),
        (["empty"], "error: no run among what you named"),
        (["runs/*none*"], "error: no run among what you named"),
        (["damaged"], "error: no run among what you named"),
        (["odd"], "error: no run among what you named"),
        ([], "error: name run folders, or --checks"),
        (["runs", "--every", "0"], "error: --every must be between"),
        (["runs", "--watch", "--why"], "error: --watch prints findings as they come: leave"),
        (["runs", "--watch", "--markdown"], "error: --watch prints findings as they come: leave"),
    ],
)
def test_command_refuses_bad_input(runs, arguments, words):
    (runs / "empty").mkdir()
    for name, content in (
        ("damaged", "[1]\n"),
        ("odd", '{"global_step": 1, "charts/SPS": null}\n'),
    ):
        folder = write_run(runs / name, made_up({}))
        (folder / "metrics.jsonl").write_text(content)
    code, out, err = call(*arguments, cwd=runs)
    assert code == 2 and out == ""
    assert words in err.splitlines()[-1] and "Traceback" not in err


@quick
def test_command_leaves_out_what_is_no_run(runs):
    """The others are examined, and the exit code says that not all were."""
    for flag in ("--why", "--markdown", "--watch", "--calibrate"):
        code, out, err = call("runs", "missing", flag, cwd=runs)
        assert code == 2, flag
        assert "runs/sick" in out
        assert err.startswith("not examined: missing is no run") and err.count("\n") == 1
        if flag != "--calibrate":
            assert out.splitlines()[-1].endswith("runs/sick; not examined: missing")


@quick
def test_command_survives_head(runs):
    for number in range(300):  # more than a pipe holds
        write_run(runs / "many" / str(number), made_up({"losses/alpha": 20.0}))
    for arguments in ("many", "many --markdown", "many --watch", "--checks", "many --calibrate"):
        command = f"{sys.executable} {ROOT / 'tools' / 'doctor.py'} {arguments} | head -1"
        options = {"shell": True, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(command, cwd=runs, **options)
        assert done.stdout.count("\n") == 1 and done.stderr == "", arguments


class Watched:
    """The doctor as it watches a run that is only half written."""

    def __init__(self, folder):
        early = until(made_up({"losses/alpha": 0.5}), 2000)
        self.run = write_run(folder / "run", early, status=None)
        command = [sys.executable, "-u", ROOT / "tools" / "doctor.py", "run", "--watch"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options |= {"preexec_fn": heed_signals, "cwd": folder}
        self.process = subprocess.Popen([*command, "--every", "0.1"], **options)

    def append(self, step, **row):
        """Write a row of metrics."""
        row = {"global_step": step, "charts/SPS": 100.0} | row
        with open(self.run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self):
        """Wait for the doctor; return its exit code and the rest of its output."""
        out, err = self.process.communicate(timeout=30)
        assert err == ""
        return self.process.returncode, out


@pytest.fixture
def watched(tmp_path):
    """Start a doctor that watches; end it after the test, whatever comes of that."""
    one = Watched(tmp_path)
    yield one
    one.process.kill()
    one.process.communicate()


def test_watch_prints_findings_as_they_come_and_ends_with_the_run(watched):
    watched.append(2500, **{"losses/alpha": 20.0})
    line = watched.process.stdout.readline()
    assert line.startswith("run: temperature-range (living at step 2,500")
    assert watched.process.poll() is None
    watched.append(3000, **{"losses/alpha": 21.0, "ppo/ratio_first_mb": 1.0})
    lines = []
    while "first-ratio, since" not in line:
        line = watched.process.stdout.readline()
        lines.append(line)
        assert line
    watched.append(3500, **{"losses/alpha": 22.0})
    time.sleep(1)  # some looks later
    write_summary(watched.run, "interrupted")
    code, out = watched.finish()
    assert code == 1
    out = "".join(lines) + out
    assert out.count("WARN temperature-range") == out.count("ERROR first-ratio") == 1
    assert out.splitlines()[-1].startswith("run: first-ratio, temperature-range (interrupted at")


def test_watch_of_a_healthy_run_ends_with_the_run(watched):
    time.sleep(1)
    assert watched.process.poll() is None
    write_summary(watched.run, "finished")
    code, out = watched.finish()
    assert code == 0 and out.startswith("run: nothing found, ") and out.count("\n") == 1
    assert "(finished at step 2,000" in out


def test_watch_ends_if_nobody_reads_any_more(watched):
    watched.append(2500, **{"losses/alpha": 20.0})
    watched.process.stdout.readline()
    watched.process.stdout.close()
    watched.append(3000, **{"ppo/ratio_first_mb": 1.0})
    assert watched.process.wait(timeout=30) == 1
    assert watched.process.stderr.read() == ""
    watched.process.stdout = None


def test_watch_ends_quietly_on_ctrl_c(watched):
    watched.append(2500, **{"losses/alpha": 20.0})
    watched.process.stdout.readline()
    watched.process.send_signal(signal.SIGINT)
    code, out = watched.finish()
    assert code == 130 and "Traceback" not in out


# --- the page -------------------------------------------------------------------------------------
def generated(command):
    """Return what stands on the page between the marks of a command."""
    text = PAGE.read_text("utf-8")
    return re.search(rf"<!-- python {command} -->\n(.+?)<!-- end -->", text, re.DOTALL)[1]


@pytest.fixture(scope="module")
def committed():
    """Read all runs in results/."""
    folders = doctor.find_runs([str(ROOT / "results")])
    return {folder.relative_to(ROOT): doctor.read_logs(folder) for folder in folders}


@quick
def test_page_has_the_table_of_checks():
    table = doctor.table_text(doctor.table_of_checks(), as_markdown=True)
    assert generated("tools/doctor.py --checks --markdown").strip() == table


@quick
def test_tables_of_the_terminal_fit_it(runs):
    for arguments in (["--checks"], ["runs", "--calibrate"]):
        for width in (80, 100):
            code, out, _ = call(*arguments, cwd=runs, COLUMNS=str(width))
            assert code == 0 and max(map(len, out.splitlines())) <= width
            assert "|  " not in out and "`" not in out and "---" not in out
            assert CHECKS.keys() <= {*out.split()}


def test_page_has_the_false_alarms(committed):
    found = generated("tools/doctor.py --calibrate results --markdown").strip()
    assert found == doctor.calibration_text(committed, as_markdown=True)


# PPO's defaults on tasks that need smaller changes of the policy: docs/ppo.md#humanoid
SICK = [f"ppo_config/Ant-v4-defaults/{seed}" for seed in (101, 102, 103)]
SICK += [f"ppo_continuous/Humanoid-v4/{seed}" for seed in (101, 102, 103, 104, 105)]
SICK += ["ppo_trials/defaults"]


def test_alarms_are_rare_in_healthy_runs(committed):
    """Below one in 20 runs, and none is an error. In those that are sick it is the right one."""
    assert len(committed) >= 81
    found = {folder: doctor.examine(logs).findings for folder, logs in committed.items()}
    for folder in SICK:
        (finding,) = found.pop(Path("results", folder))
        assert finding.check.name == "large-kl"
    alarmed = [folder for folder, findings in found.items() if findings]
    assert len(alarmed) < len(found) / 20, alarmed
    levels = {finding.check.level for findings in found.values() for finding in findings}
    assert levels <= {doctor.WARN}


# --- real scripts, broken -------------------------------------------------------------------------
COMMON = "--threads 1 --compile off --device cpu --no-capture-video --checkpoint-every 0"
PENDULUM = "sac_continuous --env-id InvertedPendulum-v4 --hidden-size 32 --batch-size 64"
PENDULUM += " --buffer-size 5000 --learning-starts 300"
# script and flags of short runs that are healthy; where nothing is learned yet nothing is evaluated
BASES = {
    "sac": f"{PENDULUM} --total-timesteps 3000 --log-every 100 --eval-every 500 --eval-episodes 5",
    "short": f"{PENDULUM} --total-timesteps 1300 --log-every 50 --eval-every 0",
    "td3": "td3_continuous --env-id InvertedPendulum-v4 --hidden-size 32 --batch-size 32"
    " --buffer-size 5000 --learning-starts 500 --total-timesteps 5000 --log-every 200"
    " --eval-every 1000 --eval-episodes 3",
    "ppo": "ppo_continuous --env-id InvertedPendulum-v4 --num-envs 16 --rollout-steps 1024"
    " --total-timesteps 12288 --log-every 1024 --eval-every 2048 --eval-episodes 3",
    "many rollouts": "ppo_continuous --env-id InvertedPendulum-v4 --num-envs 16"
    " --rollout-steps 256 --total-timesteps 12288 --log-every 256 --eval-every 2048"
    " --eval-episodes 3",
    "swing": "ppo_continuous --env-id Pendulum-v1 --num-envs 4 --rollout-steps 256"
    " --total-timesteps 6144 --log-every 256 --eval-every 0",
    "cheetah": "ppo_continuous --env-id HalfCheetah-v4 --num-envs 16 --rollout-steps 512"
    " --total-timesteps 6144 --log-every 512 --eval-every 0",
    "dqn": "dqn_atari --env-id tests.probe_envs:CycleTruncPixels-v0 --hidden-size 32"
    " --batch-size 32 --buffer-size 2000 --learning-starts 100 --train-every 1 --target-every 10"
    " --learning-rate 5e-4 --exploration-fraction 0.2 --total-timesteps 1200 --log-every 50"
    " --eval-every 0",
}
STEPPED = "require_finite(obs=obs, action=action, next_obs=next_obs, reward=reward)"
CLIPPED = "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)"
LAST_LAYERS = "nn.ReLU(),\n        layer(hidden_size, outputs)"
UNITS = "units = self.low + (self.high - self.low) * fraction"
DEAD = "nn.Threshold(1e9, 0.0)"  # a unit that never fires


class Disease(NamedTuple):
    """What is done to a script, by flags or in its text, and the checks that must name it."""

    base: str
    checks: set[str]
    flags: str = ""
    old: str = ""
    new: str = ""
    row: str = ""  # of the page's table of ten


DISEASES = {
    "steps of TD3 are 30 times too large": Disease(
        base="td3",
        checks={"saturation", "not-learning"},
        flags="--critic-lr 9e-3 --actor-lr 9e-3",
        row="step size 30 times too large",
    ),
    "steps of PPO are 30 times too large": Disease(
        base="cheetah",
        checks={"large-kl"},
        flags="--learning-rate 9e-3",
        row="step size 30 times too large",
    ),
    "SAC's target never moves": Disease(
        base="sac",
        checks={"still-target"},
        old="target.lerp_(parameter, self.args.tau)",
        new="pass",
        row="target network never moved",
    ),
    "DQN's target never moves": Disease(
        base="dqn",
        checks={"still-target"},
        old="self.q_target.load_state_dict(self.q.state_dict())",
        new="pass",
        row="target network never moved",
    ),
    "SAC's units are dead": Disease(
        base="sac",
        checks={"critics-apart", "poor-fit"},
        old=LAST_LAYERS,
        new=LAST_LAYERS.replace("nn.ReLU()", DEAD),
        row="dead ReLU",
    ),
    "TD3's units are dead": Disease(
        base="td3",
        checks={"critics-apart", "poor-fit", "still-actor"},
        old=LAST_LAYERS,
        new=LAST_LAYERS.replace("nn.ReLU()", DEAD),
        row="dead ReLU",
    ),
    "PPO's units are dead": Disease(
        base="ppo",
        checks={"blind-critic", "not-learning"},
        old="nn.Tanh())",
        new=f"{DEAD})",
        row="dead ReLU",
    ),
    "SAC's rewards are 1e4 times as large": Disease(
        base="short",
        checks={"target-scale"},
        old=STEPPED,
        new=f"reward = 1e4 * reward; {STEPPED}",
        row="reward scale 1e4",
    ),
    "PPO's rewards are 1e4 times as large, and not normalised": Disease(
        base="swing",
        checks={"target-scale", "blind-critic", "tiny-kl"},
        flags="--no-norm-reward",
        old=STEPPED,
        new=f"reward = 1e4 * reward; {STEPPED}",
        row="reward scale 1e4",
    ),
    "the temperature is frozen": Disease(
        base="short",
        checks={"frozen-temperature"},
        old="self.alpha_opt.minimize(alpha_loss)",
        new="pass",
        row="frozen temperature",
    ),
    "actions are a hundred times too small": Disease(
        base="sac",
        checks={"not-learning"},
        old=UNITS,
        new=f"{UNITS} / 100",
        row="wrong action scale",
    ),
    "truncation is termination": Disease(
        base="swing",
        checks={"limit-as-end"},
        old=STEPPED,
        new=f"terminated, truncated = truncated, terminated; {STEPPED}",
        row="truncation as termination",
    ),
    "truncation is termination by a setting": Disease(
        base="swing",
        checks={"no-bootstrap"},
        flags="--no-bootstrap-truncated",
        row="truncation as termination",
    ),
    "the ratio is not clipped": Disease(
        base="ppo",
        checks={"large-kl"},
        old=CLIPPED,
        new="ratio * advantage",
        row="KL without control",
    ),
    "the reward is constant": Disease(
        base="swing",
        checks={"constant-reward"},
        old="reward = np.asarray(reward).item()",
        new="reward = 1.0",
        row="constant reward",
    ),
    "stepping becomes slower": Disease(
        base="many rollouts",
        checks={"slowing"},
        old=STEPPED,
        new=f"time.sleep(3e-6 * run.global_step); {STEPPED}",
        row="slowing run",
    ),
    "the temperature moves the wrong way": Disease(
        base="short",
        checks={"temperature-wrong-way", "temperature-range", "temperature-speed"},
        flags="--alpha-lr 0.03",
        old="self.alpha_opt.minimize(alpha_loss)",
        new="self.alpha_opt.minimize(-alpha_loss)",
    ),
    "the actor cannot change its noise": Disease(
        base="sac",
        checks={"entropy-off-target"},
        flags="--alpha-lr 3e-3",
        old="log_std.clamp(self.log_std_min, self.log_std_max)",
        new="0 * log_std - 3.5",
    ),
    "both critics are one": Disease(
        base="short",
        checks={"same-critics"},
        old="[nn.Linear(inputs, outputs) for _ in range(self.twins)]",
        new="[nn.Linear(inputs, outputs)] * self.twins",
    ),
    "every second update is left out": Disease(
        base="short",
        checks={"update-count"},
        old="while run.updates < args.utd",
        new="while 2 * run.updates < args.utd",
    ),
    "values feed on themselves": Disease(
        base="short",
        checks={"impossible-values"},
        flags="--tau 0.05",
        old="self.args.gamma * (1 - terminated)",
        new="1.1",
    ),
    "logp when acting is another one": Disease(
        base="swing",
        checks={"first-ratio"},
        old="return action, log_density(noise, snapshot.log_std)",
        new="return action, log_density(noise, snapshot.log_std) + 0.1",
    ),
    "nothing is seen": Disease(
        base="swing",
        checks={"constant-obs"},
        old="rollout.add(obs,",
        new="rollout.add(0 * obs,",
    ),
    "observations are huge, and not normalised": Disease(
        base="swing",
        checks={"obs-scale"},
        flags="--no-norm-obs",
        old="rollout.add(obs,",
        new="rollout.add(1e3 * obs,",
    ),
    "the critic's loss has the wrong sign": Disease(
        base="many rollouts",
        checks={"harmful-critic"},
        old="return error.mean() / 2",
        new="return -error.mean() / 2",
    ),
    "entropy is all that counts": Disease(
        base="swing",
        checks={"noise-size"},
        flags="--ent-coef 10 --learning-rate 1e-2",
    ),
    "an infinity": Disease(
        base="short",
        checks={"not-finite"},
        old=STEPPED,
        new=f"reward = reward if run.global_step < 600 else np.inf * reward; {STEPPED}",
    ),
    "an error": Disease(
        base="short",
        checks={"crash"},
        old=STEPPED,
        new=f"assert run.global_step < 600; {STEPPED}",
    ),
}


def train(folder, base, flags="", old="", new=""):
    """Train a copy of a script, in which a text is replaced, in a folder; return the run's logs."""
    script, *words = BASES[base].split()
    source = (ROOT / f"{script}.py").read_text("utf-8")
    if old:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    path = folder / f"{script}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("broken", path)
    sys.modules["broken"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words += [*flags.split(), *COMMON.split(), "--run-dir", "run"]
    with inside(folder), suppress(SystemExit, AssertionError, ZeroDivisionError):
        module.main(module.parse_args(module.Args, words))
    return doctor.read_logs(folder / "run")


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """Return a function that trains with the flags of BASES, once each."""

    @cache
    def train_once(base):
        return train(tmp_path_factory.mktemp("healthy"), base)

    return train_once


@pytest.mark.slow
@pytest.mark.parametrize("name", DISEASES)
def test_disease_is_named_and_the_script_as_it_is_is_healthy(name, healthy, tmp_path):
    disease = DISEASES[name]
    assert names_of(healthy(disease.base)) == []
    logs = train(tmp_path, disease.base, disease.flags, disease.old, disease.new)
    assert disease.checks <= {*names_of(logs)}
    for check in disease.checks:  # a run that is watched shows the same
        alarm = alarm_of(check, logs)
        if logs.state == "finished":
            assert alarm_of(check, until(logs, alarm.step)) == alarm


@pytest.mark.slow
def test_killed_run_is_named(healthy, tmp_path):
    """A healthy run without the summary that is written at its end, long ago."""
    folder = tmp_path / "run"
    shutil.copytree(healthy("swing").folder, folder)
    (folder / "summary.json").unlink()
    assert names_of(doctor.read_logs(folder)) == []
    os.utime(folder / "metrics.jsonl", (1, 1))
    assert names_of(doctor.read_logs(folder)) == ["killed"]


class Fixed(Toy):
    """Ends after as many steps, by itself; the reward depends on actions."""


@pytest.mark.slow
def test_time_limit_of_an_own_task_is_named(tmp_path):
    gym.register("Fixed-v0", Fixed, kwargs={"length": 25})
    try:
        logs = train(tmp_path, "swing", "--env-id Fixed-v0 --total-timesteps 1024")
    finally:
        del gym.registry["Fixed-v0"]
    assert names_of(logs) == ["equal-lengths"]


@quick
def test_every_check_is_fired_by_a_real_script():
    """Two of them in tests of their own, above."""
    named = set().union(*[disease.checks for disease in DISEASES.values()])
    assert named | {"killed", "equal-lengths"} == CHECKS.keys()


@quick
def test_page_names_what_the_tests_name():
    """The table of ten diseases has for each the checks that are tested on it."""
    text = PAGE.read_text("utf-8").split("## Ten diseases\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: {*re.findall("`(.+?)`", row[2])} for row in rows[1:]}
    tested = {}
    for disease in DISEASES.values():
        if disease.row:
            tested[disease.row] = tested.get(disease.row, set()) | disease.checks
    assert len(table) == 10 and table == tested
