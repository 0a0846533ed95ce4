"""Read runs of different lengths up to one step, as if all had been planned for it.

tools/compare.py --until does so.
"""

from dataclasses import replace

from run_folders import flag, refuse

SCHEDULED = ("anneal", "exploration_fraction")  # settings that are spread over all steps of a run
SLACK = 0.01  # by this share of the step an evaluation may be late: num_envs and rollouts decide


# --- cutting --------------------------------------------------------------------------------------
def cut_both(a, b, until):
    """Return the records of two sides, those on environments that both have cut at a step.

    Exit with 2 where a run does not reach the step, or would not have been the same run.
    """
    shared = shared_environments(a, b)
    check_lengths([one for one in (*a, *b) if one.run.env_id in shared], until)
    return [
        [cut(one, until) if one.run.env_id in shared else one for one in side] for side in (a, b)
    ]


def shared_environments(a, b):
    """Return the ids of the environments on which both sides have records."""
    return {one.run.env_id for one in a} & {one.run.env_id for one in b}


def check_lengths(records, until):
    """Exit with 2 if a run was planned for fewer steps, or has a schedule over more."""
    for record in records:
        steps, schedule = record.run.steps, schedule_of(record.run)
        if schedule and steps != until:
            refuse(
                f"--until {until}: {record.folder} was planned for {steps} steps, over which "
                f"{schedule} is spread: compare runs of one length"
            )
    shortest = min(records, key=lambda one: one.run.steps, default=None)
    if shortest and shortest.run.steps < until:
        steps = shortest.run.steps
        refuse(
            f"--until {until}: {shortest.folder} was planned for {steps} steps: "
            f"use --until {steps}, or name the runs without it"
        )


def schedule_of(run):
    """Return as a flag the setting that is spread over all steps of a run, or nothing."""
    return next((flag(name, run.config[name]) for name in SCHEDULED if run.config.get(name)), "")


def cut(record, until):
    """Return a record as if its run had been planned for so many steps.

    It counts as finished if it went on after the evaluation at that step, whatever came later.
    """
    run = record.run
    if run.steps == until:
        return record
    latest = until * (1 + SLACK)
    evaluations = [one for one in run.evaluations if one.step <= latest]
    is_finished = run.step > latest or any(one.step >= until for one in evaluations)
    shorter = replace(
        run,
        config={**run.config, "total_timesteps": until},
        evaluations=evaluations,
        state="finished" if is_finished else run.state,
    )
    return replace(record, run=shorter, planned=run.steps)


# --- what is said ---------------------------------------------------------------------------------
def or_until(a, b):
    """Return the remedy for two sides of different lengths, if --until is one."""
    shared = shared_environments(a, b)
    runs = [one.run for one in (*a, *b) if one.run.env_id in shared]
    if not runs or any(map(schedule_of, runs)):
        return ""
    return f", or read longer ones up to one step: --until {min(run.steps for run in runs)}"


def remarks_on_lengths(sides, until):
    """Return what to know of sides some of whose runs were cut."""
    words = []
    for side in sides:
        planned = [record.planned for record in side.records if record.planned]
        if planned:
            lengths = " or ".join(f"{steps:,}" for steps in sorted({*planned}))
            count = f"{len(planned)} of {len(side.records)} runs of {side.letter}"
            words.append(f"{count}, planned for {lengths} steps")
    if not words:
        return []
    return [
        f"Read up to step {until:,}, whatever came later: {'; '.join(words)}. This is fair unless "
        "something depends on the number of steps, such as a learning rate of your own that falls "
        "until the last, and if you chose the step before you saw the curves."
    ]


def other_steps(records, until):
    """Say of which runs the scores are means over other steps; nothing if of none.

    A score is the mean over the last tenth of the evaluations. Runs that failed end where they do.
    """
    scored = [one for one in records if one.run.evaluations and one.run.state != "failed"]
    for place in (0, -1):  # the first and the last step that count
        scored.sort(key=lambda one: scored_steps(one.run)[place])
        ends = [scored_steps(one.run)[place] for one in scored]
        if ends and ends[-1] - ends[0] > SLACK * until:
            early, late = scored[0], scored[-1]
            return f"{early.folder} {span_of(early.run)}, {late.folder} {span_of(late.run)}"
    return ""


def scored_steps(run):
    """Return the steps of the evaluations of which a score is the mean."""
    return [one.step for one in run.scored]


def span_of(run):
    """Write the steps that a score is of."""
    steps = scored_steps(run)
    if len(steps) == 1:
        return f"at step {steps[0]:,}"
    return f"at {len(steps)} steps from {steps[0]:,} to {steps[-1]:,}"
