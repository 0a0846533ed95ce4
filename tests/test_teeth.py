"""Bugs put into our scripts on purpose: each must make the test named for it fail.

`python tests/test_teeth.py` prints the tables of tests/bugs.md. TEETH_SHARE=1/3 in the environment
tries every third bug only, from the second on: three such calls, from 0/3 to 2/3, try all.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import share  # noqa: E402, found now where this file is run by itself

WARM = multiprocessing.get_context("forkserver")  # its children find imported what takes long
LONG = "torch.utils.tensorboard gymnasium mujoco tyro imageio pytest ale_py cv2 psutil xdist.plugin"
WARM.set_forkserver_preload(LONG.split())
MATH, PROBES, RUNS = "test_math.py::test_", "test_probes.py::test_", "test_runs.py::test_"
RESUME = "test_resume.py::test_"
ASYNC = "test_async.py::test_"
ENVS = "test_envs.py::test_"
ADD = "buffer.add("
NEXT = "obs = reset(envs, done, TRAIN, args.seed) if done.any() else next_obs"
MOVE = "        self.to(device)  # not later, since the optimizer keeps what it is given\n"
REFUSED = "test_bad_input.py::test_refused"

# bug: (text of the script, as short as it can be, what replaces it, the test that must fail)
SAC = {
    # transitions
    "terminated is ignored": (
        "(1 - terminated) * ",
        "",
        f"{PROBES}values[box-Const-0.5-2-1]",
    ),
    "truncation is stored as termination": (
        ADD,
        f"terminated = terminated | truncated; {ADD}",
        f"{PROBES}values[box-CycleTrunc-0.8-2-1]",
    ),
    "next_obs is that of the reset": (
        ADD,
        f"next_obs = reset_finished(envs, terminated | truncated, next_obs); {ADD}",
        f"{PROBES}values[box-CycleTrunc-0.8-2-1]",
    ),
    "next_obs is that of the reset where an episode terminated": (
        ADD,
        f"next_obs = reset_finished(envs, terminated, next_obs); {ADD}",
        f"{MATH}t01_t02_t03_t04_t08_stored_transitions_are_true[terminated-1]",
    ),
    "an episode that is cut in its last step is taken for cut": (
        ADD,
        f"terminated = terminated & ~truncated; {ADD}",
        f"{MATH}t01_t02_t03_t04_t08_stored_transitions_are_true[terminated-trunc-1]",
    ),
    "a row from the last observation to that of the reset": (
        'run.lap("env")',
        "if (done := terminated | truncated).any():\n                buffer.add(next_obs[done], "
        "action[done], 0 * reward[done], 0 * reward[done], obs[done])",
        f"{PROBES}values[box-Const-0.5-2-1]",
    ),
    "observations are overwritten by those that follow": (
        '"Disabled"',
        '"Disabled", copy=False',
        f"{MATH}t01_t02_t03_t04_t08_stored_transitions_are_true[trunc-1]",
    ),
    "rewards come one step late": (
        ADD,
        f"reward, buffer.late = getattr(buffer, 'late', reward), reward; {ADD}",
        f"{PROBES}values[box-ObsValue-0.5-2-1]",
    ),
    "observations come one step late": (
        ADD,
        f"obs, buffer.late = getattr(buffer, 'late', obs), obs; {ADD}",
        f"{PROBES}values[box-ObsValue-0.5-2-1]",
    ),
    "the action is stored in the environment's units": (
        ADD,
        f"action = agent.scale(action); {ADD}",
        f"{MATH}t08_the_normalised_action_is_stored",
    ),
    "rewards are clipped": (
        ADD,
        f"reward = reward.clip(-1, 1); {ADD}",
        f"{PROBES}values_grow_with_rewards[30-1]",
    ),
    # the critics' target and loss
    "nothing is bootstrapped": (
        "self.args.gamma",
        "0",
        f"{PROBES}policies[box-Delayed-1200-0.1-2-1]",
    ),
    "gamma is left out": ("self.args.gamma", "1", f"{PROBES}values[box-Chain3-0.5-2-1]"),
    "gamma is squared": (
        "self.args.gamma",
        "self.args.gamma**2",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "every loss is of every pair, [B, B]": (
        "(q - td_target).square()",
        "(q.unsqueeze(-1) - td_target).square().mean(2)",
        f"{PROBES}values[box-ObsValue-0.5-2-1]",
    ),
    "the target takes the higher critic": (
        "next_action).min",
        "next_action).max",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the target has no entropy": (
        "next_q - alpha * next_logp",
        "next_q",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the target's entropy has the wrong sign": (
        "next_q -",
        "next_q +",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the critics bootstrap from themselves": (
        "self.critic_target(",
        "self.critic(",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the target keeps its graph": (
        "no_grad():\n            mean",
        "enable_grad():\n            mean",
        f"{MATH}metrics_of_an_update",
    ),
    "the critics' losses are averaged": (
        "losses.sum()",
        "losses.mean()",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "both critics start the same": (
        " for _ in range(self.twins)]",
        "] * self.twins",
        f"{MATH}the_two_critics_start_different",
    ),
    # target networks
    "targets never move": (
        "self.args.tau",
        "0",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "tau counts for the old part": (
        "self.args.tau",
        "1 - self.args.tau",
        f"{MATH}target_follows_the_closed_form",
    ),
    "targets start as other networks": (
        "copy.deepcopy(self.critic)",
        "Critic(obs_dim, self.action_dim, args.hidden_size)",
        f"{MATH}targets_start_as_the_critics",
    ),
    # policy
    "the actor minimises Q": (
        "logp - q",
        "logp + q",
        f"{PROBES}policies[box-ObsAct-900-0.15-2-1]",
    ),
    "entropy is minimised": (
        "alpha * logp - q",
        "-alpha * logp - q",
        f"{PROBES}fixed_temperature[1]",
    ),
    "the actor takes the higher critic": (
        ", action).min",
        ", action).max",
        f"{MATH}t09_t14_actor_loss_and_gradient",
    ),
    "the actor's loss sees the action detached": (
        ", action).min",
        ", action.detach()).min",
        f"{PROBES}policies[box-ObsAct-900-0.15-2-1]",
    ),
    "log(1 - tanh^2) is missing": (
        " - log_slope",
        "",
        f"{MATH}t10_density_integrates_to_one_over_the_box",
    ),
    "log(1 - tanh^2) has the wrong sign": (
        "- log_slope",
        "+ log_slope",
        f"{MATH}t10_density_integrates_to_one_over_the_box",
    ),
    "the sum is over the batch": (
        ".sum(-1)",
        ".sum(0)",
        f"{MATH}t10_logp_matches_float64_distributions_and_is_finite_far_out",
    ),
    "the log-probability is averaged over dimensions": (
        ".sum(-1)",
        ".mean(-1)",
        f"{MATH}t10_logp_matches_float64_distributions_and_is_finite_far_out",
    ),
    "log(1 - tanh^2) is taken of a rounded number": (
        "log_slope = 2",
        "log_slope = torch.log(1 - torch.tanh(u).pow(2) + 1e-6) + 0",
        f"{MATH}t10_logp_matches_float64_distributions_and_is_finite_far_out",
    ),
    "nothing is gained by entropy": (
        "alpha * logp - q",
        "-q",
        f"{PROBES}entropy_widens_an_idle_policy[1]",
    ),
    "log_std is not clamped": (
        ".clamp(self.log_std_min, self.log_std_max)",
        "",
        f"{MATH}log_std_is_clamped",
    ),
    "one sample of noise for both actions": ("noise[1]", "noise[0]", f"{MATH}update_order"),
    "the actor sees the next observations": (
        "self.update_actor(",
        "self.update_actor(next_",
        f"{MATH}update_order",
    ),
    "the actor's step moves the critics too": (
        "self.actor.parameters()",
        "[*self.actor.parameters(), *self.critic.parameters()]",
        f"{MATH}each_step_moves_only_its_own_parameters",
    ),
    # temperature
    "the temperature goes the wrong way": (
        "* (entropy",
        "* -(entropy",
        f"{PROBES}learned_temperature[1]",
    ),
    "the target entropy is added": (
        "(entropy - self",
        "(entropy + self",
        f"{PROBES}learned_temperature[1]",
    ),
    "the temperature's loss keeps the actor's graph": (
        "logp.detach()",
        "logp",
        f"{MATH}metrics_of_an_update",
    ),
    "the losses see the first temperature for ever": (
        "self.log_alpha.detach().exp()",
        "torch.full_like(self.log_alpha, self.args.alpha).detach()",
        f"{MATH}t11_temperature_moves_against_the_entropy_gap",
    ),
    "the loss is linear in alpha": (
        "self.log_alpha.squeeze()",
        "self.log_alpha.exp().squeeze()",
        f"{MATH}t11_temperature_moves_against_the_entropy_gap",
    ),
    "the target entropy is halved": (
        "-self.action_dim",
        "-self.action_dim / 2",
        f"{MATH}t12_target_entropy_is_minus_the_number_of_dimensions",
    ),
    "the target entropy is squared": (
        "-self.action_dim",
        "-(self.action_dim**2)",
        f"{MATH}t12_target_entropy_is_minus_the_number_of_dimensions",
    ),
    "the target entropy counts the first axis": (
        "-self.action_dim",
        "-len(self.low)",
        f"{MATH}t12_target_entropy_is_minus_the_number_of_dimensions",
    ),
    "the temperature keeps its graph": (
        ".detach().exp()",
        ".exp()",
        f"{MATH}t09_a_permuted_batch_gives_the_same_losses",
    ),
    "--no-autotune learns the temperature": (
        "self.args.autotune",
        "True",
        f"{MATH}t13_fixed_temperature_and_logs_before_the_first_update",
    ),
    # optimizer
    "Adam starts without bias correction": (
        " * self.bias_correction1.reciprocal()",
        "",
        f"{MATH}adam_equals_torch_adam",
    ),
    "Adam's first average is corrected as the second": (
        "self.bias_correction1.reciprocal()",
        "self.bias_correction2.reciprocal()",
        f"{MATH}adam_equals_torch_adam",
    ),
    "Adam's second average is corrected as the first": (
        "/ self.bias_correction2",
        "/ self.bias_correction1",
        f"{MATH}adam_equals_torch_adam",
    ),
    "Adam's eps is under the root": (
        ").sqrt() + self.eps",
        " + self.eps).sqrt()",
        f"{MATH}adam_equals_torch_adam",
    ),
    "Adam's eps is added before the correction": (
        "+ self.eps",
        "+ self.eps / self.bias_correction2.sqrt()",
        f"{MATH}adam_equals_torch_adam",
    ),
    "Adam's averages are one vector": (
        "self.exp_avg_sq = nn.Buffer(zeros.clone())",
        "self.exp_avg_sq = nn.Buffer(self.exp_avg)",
        f"{MATH}adam_equals_torch_adam",
    ),
    "Adam's weight decay lets weights grow": (
        "1 - self.lr",
        "1 + self.lr",
        f"{MATH}adam_with_decay_and_a_schedule_equals_torch_adamw",
    ),
    "Adam's weight decay is in the gradient": (
        "self.exp_avg.lerp_(",
        "gradient += self.weight_decay * torch.cat([p.reshape(-1) for p in self.params])\n"
        "        self.exp_avg.lerp_(",
        f"{MATH}adam_with_decay_and_a_schedule_equals_torch_adamw",
    ),
    "Adam's weight decay does not depend on the step size": (
        "1 - self.lr * ",
        "1 - ",
        f"{MATH}adam_with_decay_and_a_schedule_equals_torch_adamw",
    ),
    "Adam's weight decay is corrected for bias": (
        "1 - self.lr",
        "1 - lr",
        f"{MATH}adam_with_decay_and_a_schedule_equals_torch_adamw",
    ),
    "Adam keeps its first step size": (
        "lr = self.lr *",
        'self.first = getattr(self, "first", self.lr.clone())\n        lr = self.first *',
        f"{MATH}adam_with_decay_and_a_schedule_equals_torch_adamw",
    ),
    "the norm of the gradient is its largest entry": (
        ".norm()",
        ".abs().max()",
        f"{MATH}adam_equals_torch_adam",
    ),
    "the critics learn at the actor's rate": (
        "args.critic_lr",
        "args.actor_lr",
        f"{MATH}every_optimizer_has_its_own_rate",
    ),
    "the rates logged are those of the start": (
        "self.critic_opt.lr",
        "self.args.critic_lr",
        f"{MATH}the_logged_rate_is_the_one_in_use",
    ),
    # actions
    "actions are scaled but not moved": (
        "(1 + np.float32",
        "(0 + np.float32",
        f"{PROBES}policies[box-ActScale-2700-0.2-2-1]",
    ),
    "bounds that are not symmetric are ignored": (
        "self.low + (self.high - self.low) * fraction",
        "self.high * (2 * fraction - 1)",
        f"{MATH}t10_t33_actions_are_scaled_per_dimension",
    ),
    "infinite bounds are taken": (
        " and space.is_bounded()",
        "",
        f"{ENVS}refused[Acts_one_sided]",
    ),
    "all dimensions have the bounds of the first": (
        "(self.high - self.low)",
        "(self.high.flat[0] - self.low.flat[0])",
        f"{MATH}t10_t33_actions_are_scaled_per_dimension",
    ),
    "exploration has no noise": (
        "np.random.standard_normal",
        "np.zeros",
        f"{MATH}explored_actions_follow_the_policy",
    ),
    "exploration has half of the deviation": (
        "mean + std * noise)",
        "mean + std / 2 * noise)",
        f"{MATH}explored_actions_follow_the_policy",
    ),
    "the first actions are all positive": (
        "uniform(-1, 1",
        "uniform(0, 1",
        f"{MATH}actions_are_uniform_at_first_and_explored_later",
    ),
    "evaluation explores": (
        "agent.act(obs)",
        "agent.act(obs, False)",
        f"{RUNS}load_and_evaluate",
    ),
    "exploration has a generator without a seed": (
        "np.random.standard_normal",
        "np.random.default_rng().standard_normal",
        f"{RUNS}same_command_same_bits[off]",
    ),
    # replay buffer
    "the ring is one row short": (
        "% len(self.rows)",
        "% (len(self.rows) - 1)",
        f"{MATH}t01_t08_buffer_equals_a_list_of_the_latest[1]",
    ),
    "rows that were never written are drawn": (
        "randint(filled",
        "randint(len(self.rows)",
        f"{MATH}sampling_is_uniform_over_what_is_filled[7]",
    ),
    "the newest row is never drawn": (
        "randint(filled",
        "randint(max(1, filled - 1)",
        f"{MATH}sampling_is_uniform_over_what_is_filled[7]",
    ),
    "a batch is used twice": (
        "batch = buffer",
        "batch = batch if run.updates % 2 else buffer",
        f"{MATH}t14_every_update_draws_a_new_batch",
    ),
    "noise is drawn once": (
        "noise.normal_()",
        "noise if noise.any() else noise.normal_()",
        f"{MATH}every_update_gets_new_normal_noise",
    ),
    # counts and seeds
    "one update per vector step": (
        "while run.updates",
        "if run.updates",
        f"{MATH}t30_steps_and_updates_are_counted_right[3-1.0]",
    ),
    "the updates of the first steps are made up for": (
        " - args.learning_starts",
        " * (run.global_step > args.learning_starts)",
        f"{MATH}t30_steps_and_updates_are_counted_right[1-1.0]",
    ),
    "a step counts once for all environments": (
        "+= args.num_envs",
        "+= 1",
        f"{MATH}t30_steps_and_updates_are_counted_right[3-1.0]",
    ),
    "the seed does not reach the environments": (
        "(TRAIN, self.args.seed)",
        "(TRAIN,)",
        f"{MATH}t28_every_environment_and_episode_has_its_own_seed",
    ),
    "seed 0 is taken for no seed": (
        "random.seed(seed)",
        "seed = seed or 1; random.seed(seed)",
        f"{MATH}t28_seeds_change_the_initial_networks",
    ),
    "the seed does not reach exploration": (
        "seed % 2**32",
        "0",
        f"{MATH}t28_every_environment_and_episode_has_its_own_seed",
    ),
    "the trial of the update counts": (
        "agent.load_state_dict(state)",
        "pass",
        f"{MATH}t36_compiled_and_plain_updates_agree",
    ),
    "the trial that names the metrics counts": (
        "method(copy.deepcopy(agent)",
        "method(agent",
        f"{MATH}t36_compiled_and_plain_updates_agree",
    ),
    "the seed does not reach the networks": (
        "manual_seed(seed)",
        "manual_seed(0)",
        f"{MATH}t28_seeds_change_the_initial_networks",
    ),
    "all environments have one seed": (
        "self.index, ",
        "",
        f"{MATH}t28_every_environment_and_episode_has_its_own_seed",
    ),
    "all episodes of an environment have one seed": (
        ", self.episode",
        "",
        f"{MATH}t28_every_environment_and_episode_has_its_own_seed",
    ),
    "evaluations have the seeds of training": (
        "*self.stream, ",
        "",
        f"{MATH}t28_every_environment_and_episode_has_its_own_seed",
    ),
    "all evaluations have the same seeds": (
        "self.args.seed, number)",
        "self.args.seed)",
        f"{MATH}t28_every_environment_and_episode_has_its_own_seed",
    ),
    "an evaluation goes on with the seeds of the one before": (
        "\n            self.episode = 0",
        "",
        f"{RUNS}evaluation_counts_first_episodes",
    ),
    "evaluation draws from the generators of training": (
        "with undisturbed_generators()",
        "if True",
        f"{RUNS}switches_change_no_weight[--eval-every 7]",
    ),
    "evaluation steps the environments of training": (
        "self.agent, self.eval_envs",
        "self.agent, self.envs",
        f"{RUNS}switches_change_no_weight[--eval-every 7]",
    ),
    # episodes and their log
    "of episodes that end together one is logged": (
        "[]))",
        "[]))[:1]",
        f"{MATH}t31_every_finished_episode_is_logged[4]",
    ),
    "a return is the last reward": (
        "self.total_reward += reward",
        "self.total_reward = reward",
        f"{MATH}t31_every_finished_episode_is_logged[1]",
    ),
    "a return goes on in the next episode": (
        "self.total_reward = 0.0",
        'self.total_reward = getattr(self, "total_reward", 0.0)',
        f"{MATH}t31_every_finished_episode_is_logged[1]",
    ),
    "the last step is missing in an episode's length": (
        "len(self.actions)",
        "len(self.actions) - 1",
        f"{MATH}t31_every_finished_episode_is_logged[1]",
    ),
    "actions that an environment changes are repeated as changed": (
        "action.copy()",
        "action",
        "test_resume.py::test_environments_repeat_themselves[Mangler]",
    ),
    "episodes that were not truncated count as such": (
        "bool(truncated",
        "not (truncated",
        f"{RUNS}environments[Limited-1]",
    ),
    # evaluation
    "an evaluation counts the last episodes": (
        "lengths.setdefault",
        "lengths.__setitem__",
        f"{RUNS}evaluation_counts_first_episodes",
    ),
    "an evaluation ends with the first environment's episode": (
        "len(returns) < envs.num_envs",
        "0 not in returns",
        f"{RUNS}evaluation_counts_first_episodes",
    ),
    "every ninth evaluation is filmed": (
        "% 8",
        "% 9",
        f"{RUNS}defaults_of_a_run",
    ),
    "the last evaluation is not filmed": (
        " or self.is_complete())",
        ")",
        f"{RUNS}defaults_of_a_run",
    ),
    "a video that failed is left behind": (
        "path.unlink, missing_ok=True",
        "str",
        f"{RUNS}full_disk_for_the_video",
    ),
    "an evaluation without frames deletes a video": (
        "        if self.shape:\n",
        "        if self.path:\n",
        f"{RUNS}a_video_stays_when_another_evaluation_makes_none",
    ),
    "an evaluation without end goes on for ever": (
        "EVALUATION_STEPS)",
        "EVALUATION_STEPS + 1)",
        f"{ENVS}an_evaluation_without_end_says_so[]",
    ),
    "rewards in arrays are not taken": (
        "reward = np.asarray(reward).item()",
        "reward = float(reward)",
        f"{ENVS}trains[Listed-0]",
    ),
    "actions exceed bounds that no float32 meets": (
        "inner_high > high",
        "inner_high > high + 1",
        f"{MATH}bounds_are_rounded_inwards",
    ),
    "an environment moves the run's folder": (
        'with chdir("."):',
        "if True:",
        f"{ENVS}trains[Wanderer-0]",
    ),
    "an environment that cannot be filmed ends the run": (
        "except Exception as error:  # environments raise all kinds\n        say",
        "except KeyError as error:\n        say",
        f"{ENVS}trains[Blind-1]",
    ),
    # environments that ordinary people have
    "seeds are beyond a C int": (
        "generate_state(1)[0]) % 2**31",
        "generate_state(1)[0])",
        f"{ENVS}seeds_of_episodes_are_c_ints",
    ),
    "actions are of another type than the environment's": (
        "action = action.astype(self.action_dtype)",
        "pass",
        f"{ENVS}trains[Half-0]",
    ),
    "infos are passed on": (
        "info = {}\n        if terminated",
        "info = dict(_)\n        if terminated",
        f"{ENVS}trains[Talkative-0]",
    ),
    "an environment of the old interface is begun with": (
        "if not isinstance(result, tuple) or len(result) != 2:",
        "if False:",
        f"{ENVS}refused[Wrong_reset]",
    ),
    "steps of four values are taken": (
        "if len(result) != 5:",
        "if False:",
        f"{ENVS}refused[Wrong_step]",
    ),
    "rewards that are vectors end a run": (
        "np.size(result[1]) != 1",
        "np.size(result[1]) > 9",
        f"{ENVS}refused[Wrong_vector]",
    ),
    "only the first reset is tried": (
        "        envs.step(envs.action_space.sample())\n",
        "",
        f"{ENVS}refused[Wrong_shape_later]",
    ),
    "a module that registers nothing is not named": (
        "gym.error.UnregisteredEnv",
        "KeyError",
        f"{ENVS}a_module_that_registers_nothing",
    ),
    "a renderer of the environment's own is changed": (
        'if type(env).__module__.startswith("gymnasium.envs.mujoco"):',
        'if hasattr(env, "mujoco_renderer"):',
        f"{ENVS}trains[Artist_renderer-0]",
    ),
    "bounds beyond float32 are taken": (
        "np.isfinite(spans).all()",
        "True",
        f"{ENVS}refused[Acts_endless]",
    ),
    "empty observations are taken": (
        " and np.size(obs_space.low)",
        "",
        f"{ENVS}refused[Observes_empty]",
    ),
    "empty actions are taken": (
        " and np.size(space.low)",
        "",
        f"{ENVS}refused[Acts_none]",
    ),
    "a simulator that is global is not noticed": (
        "play(env, other) == alone",
        "True",
        f"{ENVS}trains[Global-1]",
    ),
    "frames of any kind are filmed": (
        "if np.ndim(frame) != 3 or",
        "if False and",
        f"{ENVS}trains[Artist_rgba-1]",
    ),
    "a failure cannot be passed on by processes": (
        "return Exit, (self.code, self.sentence)",
        "return SystemExit, (self.code,)",
        f"{RUNS}failures_pass_between_processes",
    ),
    "an episode that ends too early when it is repeated ends the run": (
        "        except Exception:  # some refuse",
        "        except KeyError:  # some refuse",
        f"{RESUME}an_episode_that_differs_is_noticed",
    ),
    "chance is taken for a global simulator": (
        "play(env) != alone or ",
        "",
        f"{ENVS}copies_that_are_independent_are_not_warned_of",
    ),
    "environments of evaluations are built for nothing": (
        "        if args.eval_every:\n            eval_envs",
        "        if True:\n            eval_envs",
        f"{ENVS}an_environment_that_is_there_once",
    ),
    "an episode that is filmed is cut later": (
        "gym.wrappers.TimeLimit(env, max_steps)",
        "gym.wrappers.TimeLimit(env, max_steps + (env.render_mode is not None))",
        f"{ENVS}an_evaluation_without_end_says_so[--capture-video]",
    ),
    "a variable of W&B goes before the flag": (
        'args.wandb_project_name or os.environ.get("WANDB_PROJECT", "deep-rl-baselines")',
        'os.environ.get("WANDB_PROJECT", args.wandb_project_name or "deep-rl-baselines")',
        f"{RUNS}where_wandb_puts_a_run[mine-yours-mine]",
    ),
    "memory of the buffer is promised, not taken": (
        "torch.full((capacity, sum(self.widths)), 0.0, device=device)",
        "torch.empty((capacity, sum(self.widths)), device=device)",
        f"{MATH}memory_of_a_buffer_is_taken_at_once",
    ),
    "rewards are summed in float32": (
        "reward = np.asarray(reward).item()  # some give an array of one number",
        "reward = np.float32(np.asarray(reward).item())",
        f"{MATH}rewards_of_float32_are_summed_in_float64",
    ),
    "nobody says why nothing is learned yet": (
        'say(f"actions are random until step {args.learning_starts:,}, then updates begin")',
        "pass",
        f"{RUNS}what_a_run_says",
    ),
    "W&B groups runs by their seed": (
        'group=f"{args.env_id}__{SCRIPT.stem}"',
        'group=f"{args.env_id}__{args.seed}"',
        f"{RUNS}where_wandb_puts_a_run[mine-yours-mine]",
    ),
    "NumPy's second normal number is lost in checkpoints": (
        "    name, keys, *rest = np.random.get_state()\n",
        "    name, keys, *rest = np.random.get_state()\n    rest = [rest[0], 0, 0.0]\n",
        f"{MATH}generators_go_on_as_they_were",
    ),
    "changes that are staged are not kept": (
        '"diff", "HEAD")',
        '"diff")',
        f"{RUNS}git_commit_and_changes",
    ),
    "a run locks the repository": (
        'git("-c", "diff.autoRefreshIndex=false", ',
        "git(",
        f"{RUNS}git_commit_and_changes",
    ),
    "an environment that quits ends a run as if it had finished": (
        "kind in (FloatingPointError, SystemExit)",
        "kind in (FloatingPointError,)",
        f"{ENVS}an_environment_that_quits",
    ),
    "nobody tells how to train with one environment": (
        "    with refusing(env_id, several):\n",
        "    with refusing(env_id):\n",
        f"{ENVS}a_second_environment_that_cannot_be",
    ),
    "any size of hidden layers is taken": (
        'require(args.hidden_size <= 16_384, "hidden_size", "must be at most 16,384")',
        "pass",
        f"{REFUSED}[--hidden-size 3000000-at most 16,384]",
    ),
    "environments stay open when a folder is refused": (
        "    finally:\n        close_envs(envs, eval_envs)\n",
        "    finally:\n        pass\n",
        f"{ENVS}environments_are_closed[in use]",
    ),
    "environments stay open": (
        'attempt("environments cannot be closed", envs.close)',
        "envs.closed = True",
        f"{ENVS}environments_are_closed[finished]",
    ),
    "an evaluation that was cut does not say so": (
        ">= EVALUATION_STEPS:",
        "> EVALUATION_STEPS:",
        f"{ENVS}an_evaluation_without_end_says_so[]",
    ),
    "films have no end": (
        "self.frames >= FILM_STEPS",
        "self.frames >= 10**6",
        f"{ENVS}films_are_written_as_they_come",
    ),
    "an agent is scored where its environment has changed": (
        "require(same_sizes(agent.sizes, sizes_of(envs, env_id)),",
        "require(True,",
        f"{ENVS}an_environment_that_has_changed[bounds]",
    ),
    "bounds that have changed are not noticed": (
        "for name in other)",
        'for name in ["obs_dim"])',
        f"{ENVS}an_environment_that_has_changed_is_not_gone_on_with",
    ),
    "a run goes on where its environment has changed": (
        'if not same_sizes(saved["sizes"], self.agent.sizes):',
        "if False:",
        f"{RESUME}goes_on_in_the_same_environment_only",
    ),
    "a home that cannot be written ends compilation": (
        "except (OSError, RuntimeError) as error:\n        say",
        "except KeyError as error:\n        say",
        f"{ENVS}a_home_that_cannot_be_written[missing]",
    ),
    "MuJoCo repeats its warnings": (
        "    limit_mujoco_warnings()\n",
        "",
        f"{ENVS}mujoco_warns_once",
    ),
    # a script that others call
    "a failure ends the program that called": (
        "class Exit(SystemExit, RuntimeError):",
        "class Exit(SystemExit):",
        f"{RUNS}called_by_a_program",
    ),
    "a script needs a file": (
        'globals().get("__file__", "pasted.py")',
        "__file__",
        f"{RUNS}a_script_without_a_file[cell]",
    ),
    "a run of a pasted script does not begin": (
        ' if SCRIPT.is_file() else b""',
        "",
        f"{RUNS}a_script_without_a_file[cell]",
    ),
    "runs of one millisecond share a folder": (
        'while Path("runs", name).exists():',
        "while False:",
        "test_bad_input.py::test_two_runs_that_begin_in_the_same_millisecond",
    ),
    "the remedy for a short run is none": (
        "max(args.batch_size, args.total_timesteps // 2)",
        "args.total_timesteps",
        "test_bad_input.py::test_the_remedy_for_a_short_run_works",
    ),
    "the remedy for a run shorter than a batch goes in a circle": (
        "if args.total_timesteps <= args.batch_size:",
        "if False:",
        "test_bad_input.py::test_the_remedy_for_a_run_shorter_than_a_batch_works",
    ),
    "the processor is not named": (
        'r"^model name',
        'r"^no model',
        f"{RUNS}hardware_names_processor_and_cuda_device",
    ),
    "the CUDA device is not named": (
        "words.append(torch.cuda.get_device_name())",
        "pass",
        f"{RUNS}hardware_names_processor_and_cuda_device",
    ),
    "the first rates count the start": (
        "self.last_lap = time.perf_counter()  # no row",
        "# no row",
        f"{RUNS}sps_excludes_the_start",
    ),
    "a second compilation looks like a hang": (
        "set_logs(recompiles=True)",
        "set_logs()",
        f"{RUNS}a_second_compilation_says_why",
    ),
    "a busy machine goes unnoticed": (
        "os.getloadavg()[0] > os.cpu_count() / 2",
        "False",
        f"{RUNS}a_busy_machine",
    ),
    "W&B is not told the script": (
        '{"script": SCRIPT.stem, **config_of(args)}',
        "config_of(args)",
        f"{RUNS}tracking",
    ),
    "TensorBoard is not told the settings": (
        'self.writer.add_text("hyperparameters", table)',
        "table",
        f"{RUNS}tensorboard",
    ),
    "notes spoil config.toml": (
        '.replace("\\x7f", "\\\\u007f")',
        "",
        f"{RUNS}notes_come_back",
    ),
    "an empty flag counts as none": (
        'require(value != "" or name == "notes", name, "must not be empty")',
        "pass",
        "test_bad_input.py::test_an_empty_name_is_refused",
    ),
    "the last tenth of scores is rounded down": (
        "self.scores[-math.ceil",
        "self.scores[-math.floor",
        f"{RUNS}scores_of_the_last_tenth",
    ),
    # metrics
    "returns are of the last 101 episodes": (
        "maxlen=100",
        "maxlen=101",
        f"{RUNS}defaults_of_a_run",
    ),
    "a metric that is not finite is logged": (
        "require_finite(**metrics)",
        "pass",
        f"{RUNS}not_finite",
    ),
    "a transition that is not finite is stored": (
        "require_finite(obs=obs",
        "dict(obs=obs",
        f"{RUNS}not_finite",
    ),
    "a row is due in two steps": (
        "every > since",
        "every >= since",
        f"{MATH}t13_fixed_temperature_and_logs_before_the_first_update",
    ),
    "SPS counts evaluations": (
        ' - self.spent["eval"]',
        "",
        f"{RUNS}sps_excludes_evaluation",
    ),
    "SPS counts all seconds since the start": (
        "self.spent.clear()",
        "pass",
        f"{RUNS}metrics",
    ),
    "a lap lasts since the start": (
        "self.last_lap = now",
        "pass",
        f"{RUNS}metrics",
    ),
    "a row is of the last update": (
        "torch.stack(rows).mean(0)",
        "rows[-1]",
        f"{MATH}metrics_of_an_interval",
    ),
    "a row is of all updates since the start": (
        "rows.clear()",
        "pass",
        f"{MATH}metrics_of_an_interval",
    ),
    # settings
    "zero is taken for positive": (
        "0 < ",
        "0 <= ",
        f"{REFUSED}[--critic-lr 0-positive]",
    ),
    "an infinite rate is taken": (
        " < math.inf,",
        ",",
        f"{REFUSED}[--actor-lr inf-positive]",
    ),
    "gamma may be above 1": (
        "name) <= 1",
        "name) <= 2",
        f"{REFUSED}[--gamma 1.5-between 0 and 1]",
    ),
    "tau may be negative": (
        "0 <= getattr",
        "-1 <= getattr",
        f"{REFUSED}[--tau -1-between 0 and 1]",
    ),
    "target_entropy may be NaN": (
        "math.isfinite(args.target_entropy or 0)",
        "True",
        f"{REFUSED}[--target-entropy nan-finite]",
    ),
    "log_std may be unbounded": (
        "-math.inf < ",
        "-math.inf <= ",
        f"{REFUSED}[--log-std-min -inf-finite]",
    ),
    "log_std_min may be above log_std_max": (
        "log_std_min < ",
        "log_std_min != ",
        f"{REFUSED}[--log-std-min 3---log-std-max]",
    ),
    "a batch may be larger than what is stored": (
        "<= starts",
        "<= starts + 1",
        f"{REFUSED}[--batch-size 101---learning-starts]",
    ),
    "a run may end before its first update": (
        "> starts",
        ">= starts",
        f"{REFUSED}[--total-timesteps 100---learning-starts]",
    ),
    "periods may be negative": (
        "0 <= (getattr",
        "-1 <= (getattr",
        f"{REFUSED}[--log-every -1-negative]",
    ),
    "1e6 is no whole number": (
        "number = float(words[0])",
        "raise",
        "test_bad_input.py::test_accepted",
    ),
    "all of the memory may be taken": (
        "0.8 * free",
        "free",
        "test_bad_input.py::test_accepted",
    ),
    "a row has one observation": (
        "2 * sizes",
        "sizes",
        "test_bad_input.py::test_accepted",
    ),
    "evaluations are 26": (
        "args.total_timesteps, 24",
        "args.total_timesteps, 25",
        f"{RUNS}defaults_of_a_run",
    ),
    "checkpoints are 24": (
        "args.total_timesteps, 20",
        "args.total_timesteps, 24",
        f"{RUNS}defaults_of_a_run",
    ),
    "short runs are evaluated more often": (
        "), least)",
        "), 0)",
        f"{RUNS}defaults_of_a_run",
    ),
    "short runs are saved more often": (
        "20, 2_000",
        "20, 1_000",
        f"{RUNS}defaults_of_a_run",
    ),
    "a video that W&B refuses ends the run": (
        "self.attempt(lambda: self.send(row, video))",
        "self.send(row, video)",
        f"{RUNS}a_video_that_wandb_refuses",
    ),
    "names of folders are not quoted": (
        "quote(script)} --resume {quote(self.folder.shown)}",
        "quote(script)} --resume {self.folder.shown}",
        f"{RESUME}names_of_folders_are_quoted",
    ),
    "a slash behind a folder makes it another": (
        "Path(args.run_dir) == Path(args.resume)",
        "args.run_dir == args.resume",
        f"{RESUME}names_of_folders_are_quoted",
    ),
    "a period that was left open is compared": (
        'SETTLED = {"eval_every", ',
        "SETTLED = {",
        f"{RESUME}what_is_left_open_stays_as_it_was",
    ),
    "modules in the working directory are not found": (
        "sys.path.append(os.getcwd())",
        "pass",
        f"{RUNS}a_module_in_the_working_directory",
    ),
    "short runs are compiled": (
        "long_enough and ",
        "",
        f"{RUNS}defaults_of_a_run",
    ),
    "tiny numbers are not taken as zero": (
        "set_flush_denormal(True)",
        "set_flush_denormal(False)",
        f"{MATH}denormal_numbers_are_taken_as_zero",
    ),
}
RESUME_BUGS = {
    "Adam's averages are not saved": (
        "self.exp_avg = nn.Buffer(zeros.clone())",
        "self.exp_avg = nn.Buffer(zeros.clone(), persistent=False)",
        f"{RESUME}more_steps",
    ),
    "a checkpoint misses the buffer's latest row": (
        'start, added, place["length"]):\n                rows',
        'start, added - 1, place["length"]):\n                rows',
        f"{RESUME}buffer_file_survives_all",
    ),
    "new rows lie over those of the last checkpoint": (
        'self.saved["length"] - len(self.buffer.rows)',
        'self.saved["length"]',
        f"{RESUME}buffer_file_survives_all",
    ),
    "the file has room for one row too few": (
        'self.saved["length"] - len(self.buffer.rows)',
        'self.saved["length"] - len(self.buffer.rows) + 1',
        f"{RESUME}buffer_file_survives_all",
    ),
    "a new file of rows begins with those that come": (
        "added - capacity)",
        "added - self.room)",
        f"{RESUME}buffer_file_survives_all",
    ),
    "rows that a failed checkpoint wrote count as saved": (
        '        return {**place, "added": added}',
        '        self.saved = {**place, "added": added}\n        return self.saved',
        f"{RESUME}buffer_file_survives_all",
    ),
    "the whole buffer is written each time": (
        'start = max(start, place["added"])',
        "pass",
        f"{RESUME}only_new_rows_are_written",
    ),
    "rows are signed without their number": (
        "self.salt ^ (first + i)",
        "self.salt",
        f"{RESUME}buffer_file_notices_damage",
    ),
    "rows are signed by their place in the buffer": (
        "self.salt ^ (first + i)",
        "self.salt ^ (first + i) % len(self.buffer.rows)",
        f"{RESUME}buffer_file_notices_damage",
    ),
    "rows are signed without the run": (
        "self.salt ^ (first + i)",
        "first + i",
        f"{RESUME}buffer_file_notices_damage",
    ),
    "damaged rows are taken": (
        "if not np.array_equal(rows, self.with_checksums(first, count)):",
        "if False:",
        f"{RESUME}damaged_rows[flipped]",
    ),
    "rows across the end of the file": (
        "min(stop - start, 10_000, length - start % length)",
        "min(stop - start, 10_000)",
        f"{RESUME}buffer_file_survives_all",
    ),
    "at most 10,000 rows are written": (
        "        while start < stop:\n            count = min(stop - start, 10_000,",
        "        if start < stop:\n            count = min(stop - start, 10_000,",
        f"{RESUME}buffer_file_of_many_rows",
    ),
    "the number of rows is not restored": (
        'self.buffer.added = place["added"]',
        'self.buffer.added = min(place["added"], len(self.buffer.rows))',
        f"{RESUME}buffer_file_survives_all",
    ),
    "files that no checkpoint names stay": (
        "                path.unlink()\n",
        "                pass\n",
        f"{RESUME}buffer_file_survives_all",
    ),
    "the file of the last checkpoint is deleted": (
        'if self.saved is None or path.name != self.saved["name"]:',
        'if path.name != f"rows-0-{self.buffer.added}.bin":',
        f"{RESUME}buffer_file_survives_all",
    ),
    "rows are not synced": (
        "            os.fsync(file.fileno())\n        return {**place",
        "        return {**place",
        f"{RESUME}checkpoints_are_on_the_disk",
    ),
    "files take their names before they are on the disk": (
        "            os.fsync(file.fileno())\n        os.replace",
        "        os.replace",
        f"{RESUME}checkpoints_are_on_the_disk",
    ),
    "metrics are not synced": (
        "        os.fsync(self.file.fileno())\n        return self.size()",
        "        return self.size()",
        f"{RESUME}checkpoints_are_on_the_disk",
    ),
    "the state is written in its place": (
        '    part = path.with_suffix(".part")\n',
        "    part = path\n",
        f"{RESUME}killed_while_writing[a state]",
    ),
    "a .part stays when the disk is full": (
        "        part.unlink(missing_ok=True)\n",
        "        pass\n",
        f"{RESUME}no_space[state-9000]",
    ),
    "a full disk ends the run": (
        "        except OSError as error:\n            step",
        "        except KeyError as error:\n            step",
        f"{RESUME}no_space[rows--200]",
    ),
    "rows count as saved before the state is": (
        "            rows = [file.save() for file in self.buffer_files]\n",
        "            rows = [file.save() for file in self.buffer_files]\n"
        "            self.buffer_files[0].saved = rows[0]\n",
        f"{RESUME}killed_after_checkpoints_that_failed",
    ),
    "Python's generator is not restored": (
        '    random.setstate(states["python"])\n',
        "    random.getstate()\n",
        f"{RESUME}pythons_generator",
    ),
    "NumPy's generator is not restored": (
        '    np.random.set_state(states["numpy"])\n',
        "",
        f"{RESUME}signal_in_the_first_step[1]",
    ),
    "PyTorch's generator is not restored": (
        '    torch.set_rng_state(states["torch"])\n',
        "",
        f"{RESUME}more_steps",
    ),
    "generators are not restored": (
        '            set_generator_states(saved["generators"])\n',
        "",
        f"{RESUME}signal_in_the_first_step[1]",
    ),
    "environments begin a new episode": (
        '            options["states"] = [with_arrays(state) for state in saved["envs"]]\n',
        "            pass\n",
        f"{RESUME}environments_repeat_themselves[Mangler]",
    ),
    "the episode after a resume has the seed of the one before": (
        "            for action in state[",
        "            self.episode -= 1\n            for action in state[",
        f"{RESUME}environments_repeat_themselves[Mangler]",
    ),
    "an episode that differs by its reward is taken": (
        '            same = same and self.total_reward == state["total_reward"]\n',
        "",
        f"{RESUME}an_episode_that_differs_is_noticed",
    ),
    "an episode that differs by its observation is taken": (
        'same = np.array_equal(self.obs, state["obs"])',
        "same = True",
        f"{RESUME}an_episode_that_differs_is_noticed",
    ),
    "an episode that differs goes on": (
        'a new episode begins")\n            self.lost = True\n            self.begin()\n',
        'a new episode begins")\n',
        f"{RESUME}an_episode_that_differs_is_noticed",
    ),
    "metrics after the checkpoint stay": (
        'truncate(saved["metrics_bytes"] if saved else 0)',
        "truncate(self.folder.metrics.size() if saved else 0)",
        f"{RESUME}killed_at_random_instants[hidden-3]",
    ),
    "metrics not yet logged are lost": (
        "            self.pending[names] = list(rows.to(self.args.device))\n",
        "            pass\n",
        f"{RESUME}more_steps",
    ),
    "the latest episodes are lost": (
        '        self.recent.extend(state["recent"])\n',
        "",
        f"{RESUME}auto[missing]",
    ),
    "scores are lost": ('        self.scores = state["scores"]\n', "", f"{RESUME}auto[missing]"),
    "updates are counted anew": (
        '        self.updates = state["updates"]\n',
        "",
        f"{RESUME}more_steps",
    ),
    "names of metrics whose rows are logged lose their place": (
        "                for names, rows in self.pending.items()\n",
        "                for names, rows in self.pending.items()\n                if rows\n",
        f"{RESUME}metrics_keep_their_order",
    ),
    "the states of all CUDA devices are asked for": (
        "torch.cuda.get_rng_state() if",
        "torch.cuda.get_rng_state_all() if",
        f"{MATH}a_run_of_several_cuda_devices_goes_on_with_one",
    ),
    "another number of steps is no change": (
        ' - {"total_timesteps"}',
        "",
        f"{RUNS}what_changed_since_the_run_before",
    ),
    "an evaluation is done twice": (
        '        self.last_evaluation_step = state["last_evaluation_step"]\n',
        "",
        f"{RESUME}resumed_many_times",
    ),
    "seconds begin at 0 again": (
        '        self.start -= saved["seconds"]\n',
        "",
        f"{RESUME}seconds_go_on",
    ),
    "an evaluation that is cut short counts": (
        "        if metrics is None:\n",
        "        if metrics is None:\n            self.last_evaluation_step = self.global_step\n",
        f"{RESUME}signal_in_an_evaluation[middle]",
    ),
    "an evaluation is not cut short": (
        "            if stopped():\n                return None\n",
        "",
        f"{RESUME}signal_in_an_evaluation[middle]",
    ),
    "an evaluation uses up random numbers of training": (
        "    with undisturbed_generators():\n        obs, _",
        "    if True:\n        obs, _",
        f"{RESUME}evaluation_draws_nothing",
    ),
    "no checkpoint at step 0": (
        "        if not saved:\n            self.checkpoint()\n",
        "",
        f"{RESUME}killed_while_writing[the first row of metrics]",
    ),
    "a signal saves no checkpoint": (
        "return bool(self.stopping) or self.due",
        "if self.stopping:\n            raise KeyboardInterrupt\n        return self.due",
        f"{RESUME}signal_in_the_first_step[1]",
    ),
    "a signal cuts the first checkpoint short": (
        "        if not saved:\n            self.checkpoint()\n",
        '        self.phase = "starting"\n        if not saved:\n            self.checkpoint()\n',
        f"{RESUME}signal_in_the_first_checkpoint",
    ),
    "SIGHUP is not heeded": (
        "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "(signal.SIGINT, signal.SIGTERM)",
        f"{RESUME}signal_in_the_first_step[1]",
    ),
    "a second Ctrl-C waits as well": (
        "            signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "            pass",
        f"{RESUME}ctrl_c_after_a_signal_ends_at_once[2]",
    ),
    "a signal disturbs the end": (
        '        if self.phase == "ending":\n            return',
        '        if self.phase == "ending":\n            raise KeyboardInterrupt',
        f"{RESUME}signal_while_the_end_is_written[write_model]",
    ),
    "handlers stay after the run": (
        "            signal.signal(number, handler)\n",
        "            pass\n",
        f"{RESUME}signals_are_as_before_when_a_run_has_ended",
    ),
    "no lock": (
        "            fcntl.flock(self.metrics.file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        f"{RESUME}inherited_lock",
    ),
    "the settings are not those of the folder": (
        "    return replace(saved, **free, resume=args.run_dir)",
        "    return replace(args, **free, resume=args.run_dir)",
        f"{RESUME}what_is_left_open_stays_as_it_was",
    ),
    "changed settings are taken": (
        "agrees = asked_value == saved_value or",
        "agrees = True or",
        f"{RESUME}changed_flags_are_refused[--seed 2]",
    ),
    "a changed seed is taken": (
        'field.name in FREE | {"resume", "device"}',
        'field.name in FREE | {"resume", "device", "seed"}',
        f"{RESUME}changed_flags_are_refused[--seed 2]",
    ),
    "fewer steps are taken": ("require(grown >= 0,", "require(True,", f"{RESUME}more_steps"),
    "a finished run can grow": (
        "not (grown and is_finished(folder))",
        "True",
        f"{RESUME}more_steps",
    ),
    "another source is taken": (
        "script.exists() and script.read_bytes() == source()",
        "source.exists()",
        f"{RESUME}damaged_folder[another source]",
    ),
    "a cut summary ends a run that is to go on": (
        "    except (OSError, ValueError, KeyError, TypeError):\n        return False",
        "    except OSError:\n        return False",
        f"{RESUME}summary_that_a_crash_left[]",
    ),
    "a summary counts, whatever its status": (
        '["status"] == "finished"\n    except',
        '["status"] != ""\n    except',
        f"{RESUME}auto[missing]",
    ),
    "a finished run begins again": (
        "    if is_finished(folder):\n        say",
        "    if False:\n        say",
        f"{RESUME}auto[missing]",
    ),
    "a run that finishes meanwhile begins again": (
        "if self.resumed:  # again",
        "if False:  # again",
        f"{RESUME}a_run_that_finishes_before_its_folder_is_free",
    ),
    "auto takes folders of others": (
        '"auto" and file_names <= BEGUN',
        '"auto"',
        f"{RESUME}auto_takes_no_folder_of_others[thesis.tex]",
    ),
    "a folder whose run died before its settings is refused": (
        '"auto" and file_names <= BEGUN',
        '"auto" and not file_names',
        f"{RESUME}a_folder_without_settings_is_begun",
    ),
    "flipped bits are taken": (
        "        if file.testzip()",
        "        if False and file.testzip()",
        f"{RESUME}damaged_state[flipped]",
    ),
    "short metrics are taken": (
        '            if size < saved["metrics_bytes"]:',
        "            if False:",
        f"{RESUME}damaged_folder[short metrics]",
    ),
    "a missing state begins anew": (
        "if not path.exists() and size == 0:",
        "if not path.exists():",
        f"{RESUME}damaged_state[missing]",
    ),
    "a run that died before its first step is refused": (
        "if not path.exists() and size == 0:",
        "if False:",
        f"{RESUME}killed_before_the_first_checkpoint",
    ),
    "the summary of an earlier end stays": (
        'for name in ["summary.json", "model.pt"]',
        'for name in ["model.pt"]',
        f"{RESUME}resumed_many_times",
    ),
    "TensorBoard keeps what came after the checkpoint": (
        "purge_step=purge_step)",
        "purge_step=None)",
        f"{RESUME}tensorboard_holds_every_point_once",
    ),
    "TensorBoard forgets the step of the checkpoint": (
        "self.global_step + 1 if has_logged else 0",
        "self.global_step",
        f"{RESUME}tensorboard_holds_every_point_once",
    ),
    "TensorBoard forgets the first evaluation": (
        "has_logged = self.global_step > 0 or len(self.scores) > 0",
        "has_logged = self.global_step > 0",
        f"{RESUME}tensorboard_keeps_what_came_before_the_first_step",
    ),
    "W&B begins another run": (
        '        self.id = state["id"]\n',
        "        self.id = self.id\n",
        f"{RESUME}wandb_is_given_the_same_id",
    ),
    "W&B does not go on": (
        '            resume="allow",\n',
        "",
        f"{RESUME}wandb_is_given_the_same_id",
    ),
    "NaN in a weight is saved": (
        "        require_finite(**{name: weight.detach()",
        "        dict(**{name: weight.detach()",
        f"{RESUME}not_finite_is_noticed_by_a_checkpoint",
    ),
    "the checkpoint stays when the run has finished": (
        '        if status == "finished" and written:\n',
        "        if False:\n",
        f"{RESUME}auto[missing]",
    ),
    "the checkpoint goes though the model is not saved": (
        '        if status == "finished" and written:\n',
        "        if True:\n",
        f"{RESUME}end_cannot_be_saved[model]",
    ),
    "a model that cannot be saved is no failure": (
        '"failed"\n            reason = "model.pt',
        '"finished"\n            reason = "model.pt',
        f"{RESUME}end_cannot_be_saved[model]",
    ),
    "the agent is not that of the last checkpoint": (
        '        path = Path(folder, "checkpoint", "state.pt")\n    try',
        '        path = Path(folder, "checkpoint", "state.part")\n    try',
        f"{RESUME}agent_of_an_unfinished_run",
    ),
    "rows of metrics that find no space are lost": (
        "            self.waiting = self.waiting[written:]\n",
        '            self.waiting = b""\n',
        f"{RESUME}metrics_wait_for_space",
    ),
    "each row of metrics that waits is a warning": (
        "            self.warned = True\n\n    def flush",
        "\n    def flush",
        f"{RESUME}metrics_wait_for_space",
    ),
    "checkpoints come late by default of the flag": (
        "    if args.checkpoint_every is None:\n        free",
        "    if False:\n        free",
        f"{RESUME}what_is_left_open_stays_as_it_was",
    ),
    "PyTorch hides that the disk is full": (
        "file.write(buffer.getbuffer())",
        "torch.save(content, file)",
        f"{RESUME}no_space[state-9000]",
    ),
    "nohup is not heeded": (
        "if signal.getsignal(number) != signal.SIG_IGN:",
        "if True:",
        f"{RESUME}nohup",
    ),
    "a checkpoint of another run is taken": (
        'if saved["args"][name] != getattr(self.args, name):',
        "if False:",
        f"{RESUME}checkpoint_of_another_run[both-130]",
    ),
    "a flipped bit makes a tensor of what memory holds": (
        "file.testzip() or has_attributes",
        "file.testzip()",
        f"{RESUME}every_flipped_bit_is_seen_or_harmless",
    ),
    "metrics that are gone are not missed": (
        'not self.resumed or "metrics.jsonl" in file_names',
        "True",
        f"{RESUME}damaged_folder[no metrics]",
    ),
    "a summary that cannot be written is no failure": (
        'not (status == "finished" and written)',
        'status != "finished"',
        f"{RESUME}end_cannot_be_saved[summary]",
    ),
    "what changed is told since the first run, not the last": (
        "others.sort(key=lambda path: path.stat().st_mtime, reverse=True)",
        "others.sort(key=lambda path: path.stat().st_mtime)",
        f"{RUNS}what_changed_since_the_run_before",
    ),
    "another seed counts as a change": (
        'SETTLED | {"seed", "resume", "log_every"}',
        'SETTLED | {"resume", "log_every"}',
        f"{RUNS}what_changed_since_the_run_before",
    ),
    "what changed is told since a run in another environment": (
        "if saved.env_id != args.env_id:\n                continue",
        "if False:\n                continue",
        f"{RUNS}what_changed_since_the_run_before",
    ),
    "what changed is told since a run of another method": (
        "if method_of(script) == method_of(own):",
        "if True:",
        f"{RUNS}what_changed_since_the_run_before",
    ),
    "another docstring counts as a change": (
        "        node.body = node.body[1:]\n",
        "        pass\n",
        f"{RUNS}what_changed_in_a_source",
    ),
    "a function that is gone is no change": (
        "dict.fromkeys([*after, *before])",
        "dict.fromkeys(after)",
        f"{RUNS}what_changed_in_a_source",
    ),
    "height and width of a film are swapped": (
        "(width, height), self.fps",
        "(height, width), self.fps",
        f"{RUNS}a_film_shows_frames_as_they_are",
    ),
    "episodes without reward are not logged": (
        'np.flatnonzero(infos.get("_episode_return", []))',
        'np.flatnonzero(infos.get("episode_return", []))',
        f"{MATH}t31_an_episode_without_reward_is_logged",
    ),
    "bounds are rounded before they are rounded inwards": (
        "self.low, self.high = float32_within(low, high)",
        "self.low, self.high = float32_within(np.float32(low), np.float32(high))",
        f"{MATH}an_agent_keeps_within_bounds_of_float64",
    ),
    "the model of an earlier end stays": (
        'for name in ["summary.json", "model.pt"]',
        'for name in ["summary.json"]',
        f"{RESUME}agent_of_a_run_that_goes_on_after_its_end",
    ),
    "the first evaluation is shown twice": (
        "            run.checkpoint()  # which spares",
        "            pass  # which spares",
        f"{RESUME}tensorboard_of_an_evaluation_that_began_again",
    ),
    "a compilation that failed is asked for for ever": (
        'field.name == "compile" and saved_value == "off"',
        "False",
        f"{RESUME}compilation_that_failed_is_not_tried_again[auto]",
    ),
    "SIGTERM makes the first Ctrl-C end at once": (
        "        if number == signal.SIGINT:\n",
        "        if True:\n",
        f"{RESUME}ctrl_c_after_a_signal_ends_at_once[15]",
    ),
}
SAC |= RESUME_BUGS
# change that is not a bug: (text, what replaces it, why no test can see it)
SAC_EQUIVALENT = {
    "the targets require gradients": (
        ".requires_grad_(False)",
        "",
        "they are used without gradients, and Adam asks for those of its own parameters only",
    ),
    "the targets move before the actor's step": (
        "actor_metrics, entropy = self.update_actor(obs, alpha, noise[1])\n        alpha_metrics = "
        "self.update_alpha(entropy)\n        self.update_target()",
        "self.update_target()\n        actor_metrics, entropy = self.update_actor("
        "obs, alpha, noise[1])\n        alpha_metrics = self.update_alpha(entropy)",
        "the actor's step does not touch the targets, and does not change the critics",
    ),
    "the actor's loss is the mean over all pairs, [B, B]": (
        "alpha * logp - q",
        "alpha * logp[:, None] - q",
        "the mean of all differences is the difference of the means",
    ),
    "the check of the shapes of Q and target is gone": (
        "assert q.shape[1:] == td_target.shape == reward.shape",
        "pass",
        "it holds; it is there for those who change the code above it",
    ),
}
# the smallest script, for the probes of discrete actions
TABULAR = {
    "terminated is ignored": (
        "(1 - terminated) * ",
        "",
        f"{PROBES}values[discrete-Const-0.5-2-1]",
    ),
    "gamma is squared": (
        "args.gamma * ",
        "args.gamma**2 * ",
        f"{PROBES}values[discrete-Chain3-0.5-2-1]",
    ),
    "truncation is termination": (
        "(1 - terminated)",
        "(1 - (terminated or truncated))",
        f"{PROBES}values[discrete-CycleTrunc-0.8-2-1]",
    ),
    "the observation does not move on": (
        "else obs\n",
        "else seen[i]\n",
        f"{PROBES}values[discrete-Chain3-0.5-2-1]",
    ),
    "the worst action is chosen": (
        ".argmax()",
        ".argmin()",
        f"{PROBES}policies[discrete-Bandit2-600-0-2-1]",
    ),
    "actions ignore what is seen": (
        "self.q[row.tobytes()].argmax()",
        "sum(self.q.values()).argmax()",
        f"{PROBES}policies[discrete-Match-900-0-2-1]",
    ),
    "rewards are clipped": (
        "target = reward",
        "target = np.clip(reward, -1, 1)",
        f"{PROBES}policies[discrete-Match-times30-900-0-2-1]",
    ),
    "nothing is bootstrapped": (
        "args.gamma * (1 - terminated)",
        "0",
        f"{PROBES}policies[discrete-Delayed2-600-0-2-1]",
    ),
    "actions are drawn without a seed": (
        "default_rng([args.seed, 1])",
        "default_rng()",
        f"{PROBES}seeds[discrete-Match]",
    ),
}
TD3_MATH = "test_td3.py::test_"
TD3 = {
    # transitions and counts
    "terminated is ignored": (
        "(1 - terminated) * next_q",
        "next_q",
        f"{PROBES}values[box-Const-0.5-2-1]",
    ),
    "truncation is stored as termination": (
        ADD,
        f"terminated = terminated | truncated; {ADD}",
        f"{PROBES}values[box-CycleTrunc-0.8-2-1]",
    ),
    "next_obs is that of the reset": (
        ADD,
        f"next_obs = reset_finished(envs, terminated | truncated, next_obs); {ADD}",
        f"{PROBES}values[box-CycleTrunc-0.8-2-1]",
    ),
    "gamma is squared": (
        "self.args.gamma",
        "self.args.gamma**2",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "one update per vector step": (
        "while run.updates",
        "if run.updates",
        f"{MATH}t30_steps_and_updates_are_counted_right[3-1.0]",
    ),
    # target
    "the target takes the higher critic": (
        "(next_obs, next_action).min(0).values",
        "(next_obs, next_action).max(0).values",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the target takes the first critic": (
        "(next_obs, next_action).min(0).values",
        "(next_obs, next_action)[0]",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the critics bootstrap from themselves": (
        "self.critic_target(next_obs",
        "self.critic(next_obs",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the next action is that of the actor, not of its target": (
        "(self.actor_target(next_obs) + noise)",
        "(self.actor(next_obs) + noise)",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the target is not smoothed": (
        "(self.actor_target(next_obs) + noise)",
        "self.actor_target(next_obs)",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the noise is not clipped": (
        ".clamp(-clip, clip)",
        "",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the noise is clipped before it is scaled": (
        "(self.args.policy_noise * noise).clamp(-clip, clip)",
        "self.args.policy_noise * noise.clamp(-clip, clip)",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the next action leaves its bounds": (
        "(self.actor_target(next_obs) + noise).clamp(-1, 1)",
        "(self.actor_target(next_obs) + noise)",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "the next action is clipped to the environment's bounds": (
        "(self.actor_target(next_obs) + noise).clamp(-1, 1)",
        "(self.actor_target(next_obs) + noise).clamp(self.low.min(), self.high.max())",
        f"{TD3_MATH}t15_smoothing_knows_no_units",
    ),
    "one draw of noise smooths a whole batch": (
        "(self.args.policy_noise * noise)",
        "(self.args.policy_noise * noise[:1])",
        f"{TD3_MATH}t15_critic_loss_and_gradient",
    ),
    "noise is drawn once": (
        "noise.normal_())",
        "noise if run.updates else noise.normal_())",
        f"{MATH}every_update_gets_new_normal_noise",
    ),
    # actor, delay, targets
    "the actor minimises Q": (
        "-q.mean()",
        "q.mean()",
        f"{PROBES}policies[box-ObsAct-900-0.15-2-1]",
    ),
    "the lower critic judges the actor": (
        "q = self.critic(obs, action, twins=1)[0]",
        "q = self.critic(obs, action).min(0).values",
        f"{TD3_MATH}actor_loss_and_gradient",
    ),
    "the target critic judges the actor": (
        "q = self.critic(obs, action, twins=1)[0]",
        "q = self.critic_target(obs, action)[0]",
        f"{TD3_MATH}actor_loss_and_gradient",
    ),
    "the actor's loss sees the action detached": (
        "q = self.critic(obs, action, twins=1)[0]",
        "q = self.critic(obs, action.detach())[0] + 0 * action.sum()",
        f"{PROBES}policies[box-ObsAct-900-0.15-2-1]",
    ),
    "the actor's step moves the critics too": (
        "Adam(self.actor.parameters()",
        "Adam([*self.actor.parameters(), *self.critic.parameters()]",
        f"{TD3_MATH}t17_each_step_moves_only_its_own_parameters",
    ),
    "the actor steps every time": (
        "if run.updates % args.policy_delay == 0:",
        "if True:",
        f"{TD3_MATH}t17_the_actor_steps_after_every_second_critic_step[2-1.0-1]",
    ),
    "a second compilation that fails is not tried again": (
        "and not self.has_compiled:",
        "and not compiled:",
        f"{RESUME}a_later_compilation_that_fails_is_tried_again",
    ),
    "the actor steps before the delay is over": (
        "if run.updates % args.policy_delay == 0:",
        "if run.updates % args.policy_delay == 1:",
        f"{TD3_MATH}t17_the_actor_steps_after_every_second_critic_step[2-1.0-1]",
    ),
    "the delay is counted in steps of the environment": (
        "if run.updates % args.policy_delay == 0:",
        "if run.global_step % args.policy_delay == 0:",
        f"{TD3_MATH}t17_the_actor_steps_after_every_second_critic_step[2-2.0-3]",
    ),
    "the actor steps on another batch": (
        "update_actor(batch.obs)",
        "update_actor(buffer.sample(args.batch_size).obs)",
        f"{TD3_MATH}t17_the_actor_steps_after_every_second_critic_step[2-1.0-1]",
    ),
    "the actor's target never moves": (
        "zip(targets, networks, strict=True)",
        "[*zip(targets, networks, strict=True)][:6]",
        f"{TD3_MATH}t17_targets_follow_the_closed_form",
    ),
    "the critics' target never moves": (
        "zip(targets, networks, strict=True)",
        "[*zip(targets, networks, strict=True)][6:]",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "tau counts for the old part": (
        "target.lerp_(parameter, self.args.tau)",
        "target.lerp_(parameter, 1 - self.args.tau)",
        f"{TD3_MATH}t17_targets_follow_the_closed_form",
    ),
    "the actor's target starts as another network": (
        "copy.deepcopy(self.actor)",
        "Actor(obs_dim, self.action_dim, args.hidden_size)",
        f"{TD3_MATH}t17_targets_start_as_the_networks_and_take_no_gradient",
    ),
    "critics and actor learn at each other's rates": (
        "self.critic.parameters(), args.critic_lr)\n"
        "        self.actor_opt = Adam(self.actor.parameters(), args.actor_lr)",
        "self.critic.parameters(), args.actor_lr)\n"
        "        self.actor_opt = Adam(self.actor.parameters(), args.critic_lr)",
        f"{MATH}every_optimizer_has_its_own_rate",
    ),
    # exploration
    "exploration repeats its noise at every step": (
        "np.random.standard_normal(action.shape)",
        "np.random.default_rng(self.args.seed).standard_normal(action.shape)",
        f"{TD3_MATH}t16_exploration_noise_is_independent",
    ),
    "exploration has no noise": (
        "action + self.args.exploration_noise * noise",
        "action",
        f"{TD3_MATH}t16_exploration_noise_is_independent",
    ),
    "all environments share a draw of noise": (
        "np.random.standard_normal(action.shape)",
        "np.random.standard_normal(action.shape[1:])",
        f"{TD3_MATH}t16_exploration_noise_is_independent",
    ),
    "all dimensions share a draw of noise": (
        "np.random.standard_normal(action.shape)",
        "np.random.standard_normal((len(action), 1))",
        f"{TD3_MATH}t16_exploration_noise_is_independent",
    ),
    "explored actions are not clipped": (
        "np.clip(action + self.args.exploration_noise * noise, -1, 1)",
        "action + self.args.exploration_noise * noise",
        f"{TD3_MATH}t16_exploration_noise_is_independent",
    ),
    "evaluation explores": (
        "agent.act(obs))",
        "agent.act(obs, False))",
        f"{RUNS}load_and_evaluate",
    ),
    "the actor is not squashed": (
        "return torch.tanh(self.net(obs))",
        "return self.net(obs)",
        f"{TD3_MATH}actor_is_two_hidden_layers_and_tanh",
    ),
    "the value takes the first critic": (
        "self.critic(obs, self.actor(obs)).min(0).values",
        "self.critic(obs, self.actor(obs))[0]",
        f"{TD3_MATH}value_is_the_lower_critic_at_the_actors_action",
    ),
    "all dimensions of a target's action get the same noise": (
        "noise = torch.zeros(args.batch_size, action_dim, device=args.device)",
        "noise = torch.zeros(args.batch_size, 1, device=args.device)",
        f"{MATH}every_update_gets_new_normal_noise",
    ),
}
PPO_MATH = "test_ppo.py::test_"
GAE = f"{PPO_MATH}t05_t07_advantages_equal_the_sum_over_the_episode[True]"
LOSS = f"{PPO_MATH}t18_t23_loss_and_gradient"
ROLLOUTS = f"{PPO_MATH}t01_t02_t03_t08_t18_rollouts_are_true"
STEP = "rollout.add("
MOVED = "        self.to(device)  # first, so that the optimizer's averages are made there\n"
OPTIMIZER = (
    "        # not torch.optim, which would break up the one compiled graph of an update; to use "
)
OPTIMIZER += "another\n        # optimizer copy Adam, from below, and change its step()\n"
OPTIMIZER += "        self.opt = Adam(self.parameters(), args.learning_rate, eps=1e-5)\n"
PPO = {
    # rollouts
    "terminated is ignored": (
        "no_future = rollout.terminated",
        "no_future = 0 * rollout.terminated",
        f"{PROBES}values[box-Const-0.5-2-1]",
    ),
    "truncation counts as termination": (
        "rollout.terminated if self.args.bootstrap_truncated else done",
        "done",
        f"{PROBES}values[box-CycleTrunc-0.8-2-1]",
    ),
    "--no-bootstrap-truncated does nothing": (
        " if self.args.bootstrap_truncated else done",
        "",
        f"{PPO_MATH}t05_t07_advantages_equal_the_sum_over_the_episode[False]",
    ),
    "next_obs is that of the reset": (
        STEP,
        f"next_obs = reset_finished(envs, terminated | truncated, next_obs); {STEP}",
        f"{PROBES}values[box-CycleTrunc-0.8-2-1]",
    ),
    "rewards come one step late": (
        STEP,
        f"reward, agent.late = getattr(agent, 'late', reward), reward; {STEP}",
        f"{PROBES}values[box-ObsValue-0.5-2-1]",
    ),
    "the action is stored cut": (
        "rollout.add(obs, action,",
        "rollout.add(obs, action.clip(-1, 1),",
        f"{ROLLOUTS}[1]",
    ),
    "logp is of the cut action": (
        "return action, log_density(noise,",
        "action = action.clip(-1, 1)\n"
        "        noise = (action - mean) / np.exp(snapshot.log_std)\n"
        "        return action, log_density(noise,",
        f"{PPO_MATH}t18_the_density_is_that_of_the_action_before_it_is_cut",
    ),
    "a rollout lacks its last step": (
        "self.length == len(self.obs)",
        "self.length >= len(self.obs) - 1",
        f"{ROLLOUTS}[1]",
    ),
    "truncation is stored as termination": (
        "self.truncated[t] = truncated",
        "self.terminated[t] = terminated | truncated",
        f"{ROLLOUTS}[1]",
    ),
    "a step counts once for all environments": (
        "+= args.num_envs",
        "+= 1",
        f"{ROLLOUTS}[3]",
    ),
    # advantages
    "the trace is not cut at the end of an episode": (
        "self.args.gae_lambda * (1 - done[t])",
        "self.args.gae_lambda * (1 + 0 * done[t])",
        GAE,
    ),
    "the trace is cut at termination only": (
        "self.sum_of_deltas(delta, done)",
        "self.sum_of_deltas(delta, rollout.terminated)",
        GAE,
    ),
    "the trace is cut one step late": (
        "self.args.gae_lambda * (1 - done[t])",
        "self.args.gae_lambda * (1 - np.roll(done, 1, 0)[t])",
        GAE,
    ),
    "a rollout is held against the memory of the GPU": (
        'check_memory("cpu", "rollout_steps"',
        'check_memory(args.device, "rollout_steps"',
        "test_bad_input.py::test_a_rollout_is_in_the_memory_of_the_host",
    ),
    "a lost episode ends the returns of all": (
        "agent.running_return[index] = 0",
        "agent.running_return[:] = 0",
        f"{RESUME}a_lost_episode_has_no_part_in_the_return_of_the_next",
    ),
    "a lost episode goes on in the return of the next": (
        "                agent.running_return[index] = 0\n",
        "                pass\n",
        f"{RESUME}a_lost_episode_has_no_part_in_the_return_of_the_next",
    ),
    "gamma is left out of the trace": ("trace = self.args.gamma * ", "trace = ", GAE),
    "gamma is left out of delta": (
        "delta = reward + gamma * (1 - no_future)",
        "delta = reward + (1 - no_future)",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "the sum over steps runs forwards": (
        "reversed(range(len(delta)))",
        "range(len(delta))",
        GAE,
    ),
    "returns are the advantages": (
        "self.tensor(advantage + value)",
        "self.tensor(advantage)",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "advantages are of the first networks with --recompute-advantages": (
        "if epoch > 0 and self.args.recompute_advantages:",
        "if False:",
        f"{PPO_MATH}advantages_are_of_the_first_networks_or_of_every_pass[True]",
    ),
    "returns are of the first networks with --recompute-advantages": (
        "                batch, _ = self.compute_advantages(rollout)\n",
        "                fresh, _ = self.compute_advantages(rollout)\n"
        "                batch = batch._replace(advantage=fresh.advantage)\n",
        f"{PPO_MATH}advantages_are_of_the_first_networks_or_of_every_pass[True]",
    ),
    "advantages are always recomputed": (
        "if epoch > 0 and self.args.recompute_advantages:",
        "if epoch > 0:",
        f"{PPO_MATH}advantages_are_of_the_first_networks_or_of_every_pass[False]",
    ),
    # loss
    "the policy gets worse": (
        "return -gain.mean()",
        "return gain.mean()",
        f"{PROBES}policies[box-ObsAct-900-0.15-2-1]",
    ),
    "the larger of both gains counts": ("torch.minimum", "torch.maximum", f"{LOSS}[False]"),
    "the ratio is not clipped": (
        "ratio.clamp(1 - clip, 1 + clip)",
        "ratio",
        f"{LOSS}[False]",
    ),
    "the ratio is clipped above only": (
        "ratio.clamp(1 - clip, 1 + clip)",
        "ratio.clamp(max=1 + clip)",
        f"{LOSS}[False]",
    ),
    "the ratio is upside down": (
        "log_density(noise, self.log_std) - logp",
        "logp - log_density(noise, self.log_std)",
        f"{LOSS}[False]",
    ),
    "advantages are not normalised": (
        "advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)",
        "advantage = advantage + 0",
        f"{LOSS}[False]",
    ),
    "advantages are not shifted": (
        "(advantage - advantage.mean()) /",
        "advantage /",
        f"{LOSS}[False]",
    ),
    "returns are normalised too": (
        "new_value = self.critic(obs)",
        "returns = (returns - returns.mean()) / (returns.std() + 1e-8)\n"
        "        new_value = self.critic(obs)",
        f"{PROBES}values[box-Chain3-0.5-2-1]",
    ),
    "errors of values are of every pair, [M, M]": (
        "assert new_value.shape == returns.shape == obs.shape[:1]",
        "new_value = new_value[:, None]",
        f"{PROBES}values[box-ObsValue-0.5-2-1]",
    ),
    "values are always clipped": ("if self.args.clip_vloss:", "if True:", f"{LOSS}[False]"),
    "values are never clipped": ("if self.args.clip_vloss:", "if False:", f"{LOSS}[True]"),
    "the smaller error of the clipped value counts": (
        "error = torch.maximum(",
        "error = torch.minimum(",
        f"{LOSS}[True]",
    ),
    "entropy is punished": (
        "- self.args.ent_coef",
        "+ self.args.ent_coef",
        f"{LOSS}[False]",
    ),
    "the entropy lacks a half": (
        "0.5 * math.log(2 * math.pi * math.e)",
        "math.log(2 * math.pi * math.e)",
        f"{PPO_MATH}metrics_of_a_minibatch",
    ),
    "the density is averaged over dimensions": (
        ".sum(-1)  # (1)",
        ".mean(-1)",
        f"{PPO_MATH}t18_the_density_is_that_of_the_action_before_it_is_cut",
    ),
    "the first estimator of the KL": (
        "(ratio - 1 - log_ratio).mean()",
        "-log_ratio.mean()",
        f"{PPO_MATH}metrics_of_a_minibatch",
    ),
    "the deviation logged is that after the step": (
        '"policy/log_std": mean_log_std',
        '"policy/log_std": self.log_std.detach().mean()',
        f"{PPO_MATH}metrics_of_a_minibatch",
    ),
    # optimizer, passes
    "gradients are not cut": (
        "gradient * shrink",
        "gradient",
        f"{PPO_MATH}the_step_of_the_optimizer[0.01]",
    ),
    "each parameter's gradient is cut by itself": (
        "gradient * shrink",
        "gradient.clamp(-self.args.max_grad_norm, self.args.max_grad_norm)",
        f"{PPO_MATH}the_step_of_the_optimizer[0.01]",
    ),
    "small gradients are stretched": (
        ".clamp(max=1)",
        "",
        f"{PPO_MATH}the_step_of_the_optimizer[1000000.0]",
    ),
    "Adam's eps is 1e-8": (
        ", eps=1e-5",
        "",
        f"{PPO_MATH}the_step_of_the_optimizer[0.01]",
    ),
    "the learning rate stays": (
        "(1 - progress)",
        "(1 - 0 * progress)",
        f"{PPO_MATH}t23_the_learning_rate_falls_linearly",
    ),
    "the learning rate falls with --no-anneal, too": (
        "if self.args.anneal:",
        "if True:",
        f"{PPO_MATH}t23_the_learning_rate_falls_linearly",
    ),
    "the learning rate falls a rollout too early": (
        "start_step = run.global_step - args.rollout_steps",
        "start_step = run.global_step",
        f"{PPO_MATH}t23_the_learning_rate_falls_linearly",
    ),
    "every pass has the same order": (
        "            order = torch.randperm(",
        "            torch.manual_seed(0)\n            order = torch.randperm(",
        f"{PPO_MATH}t22_every_pass_uses_every_row_once_in_a_new_order",
    ),
    "rows are drawn with replacement": (
        "torch.randperm(len(batch.obs),",
        "torch.randint(len(batch.obs), (len(batch.obs),),",
        f"{PPO_MATH}t22_every_pass_uses_every_row_once_in_a_new_order",
    ),
    "the last minibatch decides over target_kl": (
        "return torch.stack(kl).mean()",
        "return kl[-1]",
        f"{PPO_MATH}t23_target_kl_ends_after_a_pass_whose_mean_is_above[0.15-1]",
    ),
    "too large a step is made larger": (
        "lr /= 1.5",
        "lr *= 1.5",
        f"{PPO_MATH}t23_the_step_size_follows_the_change_of_the_policy[0.2001-0.001]",
    ),
    "too small a step stays": (
        "lr *= 1.5",
        "pass",
        f"{PPO_MATH}t23_the_step_size_follows_the_change_of_the_policy[0.0499-0.001]",
    ),
    "the last pass alone steers the step size": (
        "self.adapt_step_size(mean_kl(minibatches))",
        "self.adapt_step_size(mean_kl(epoch_metrics))",
        f"{PPO_MATH}t23_the_step_size_follows_the_change_of_the_policy[0.1999-0.001]",
    ),
    "the step size has no bounds": (
        "min(max(lr, 1e-6), 1e-2)",
        "lr",
        f"{PPO_MATH}t23_the_step_size_follows_the_change_of_the_policy[9.0-1.2e-06]",
    ),
    "the first metric decides over target_kl": (
        "metrics.names.index(name)",
        "0",
        f"{PPO_MATH}t23_target_kl_ends_after_a_pass_whose_mean_is_above[0.25-4]",
    ),
    # normalisers
    "statistics move before the updates": (
        "        minibatches = []\n",
        "        self.obs_moments.update(rollout.obs.reshape(-1, self.obs_dim)[:5])\n"
        "        minibatches = []\n",
        f"{PPO_MATH}t07_t20_observations_count_once_and_after_the_updates",
    ),
    "next observations count as well": (
        "rollout.obs.reshape(",
        "np.concatenate([rollout.obs, rollout.next_obs]).reshape(",
        f"{PPO_MATH}t07_t20_observations_count_once_and_after_the_updates",
    ),
    "evaluation moves the statistics": (
        "        return Snapshot(\n",
        "        self.obs_moments.update(np.ones((1, self.obs_dim)))\n        return Snapshot(\n",
        f"{PPO_MATH}t20_normalisers_are_saved_and_frozen_in_use",
    ),
    "the variance forgets that means differ": (
        " + (1 - share) * change.square()",
        "",
        f"{PPO_MATH}moments_are_those_of_all_rows",
    ),
    "the statistics are no buffers": (
        "self.mean = nn.Buffer(zeros.clone())",
        "self.mean = zeros.clone()",
        f"{PPO_MATH}t20_normalisers_are_saved_and_frozen_in_use",
    ),
    "the running return goes on after a reset": (
        "running = running * (1 - done[t])",
        "running = running + 0",
        f"{PPO_MATH}t21_rewards_are_scaled_by_the_running_return",
    ),
    "the running return starts anew with each rollout": (
        "running = self.running_return",
        "running = 0 * self.running_return",
        f"{PPO_MATH}t21_rewards_are_scaled_by_the_running_return",
    ),
    "rewards are scaled by their own deviation": (
        "update(returns.reshape",
        "update(rollout.reward.reshape",
        f"{PPO_MATH}t21_rewards_are_scaled_by_the_running_return",
    ),
    "rewards are shifted": (
        "reward = rollout.reward /",
        "reward = (rollout.reward - self.return_moments.mean.item()) /",
        f"{PPO_MATH}rewards_are_neither_shifted_nor_scaled_twice",
    ),
    "scaled rewards are not cut": (
        "reward = reward.clip(-10, 10)",
        "reward = reward + 0",
        f"{PPO_MATH}rewards_are_neither_shifted_nor_scaled_twice",
    ),
    "observations are not cut": (
        "snapshot.obs_std).clip(-10, 10)",
        "snapshot.obs_std)",
        f"{PPO_MATH}observations_are_normalised_and_cut",
    ),
    "on a GPU the optimizer keeps what was there before": (
        f"{MOVED}\n{OPTIMIZER}",
        f"{OPTIMIZER}{MOVED}",
        f"{PPO_MATH}a_model_has_the_same_names_on_every_device",
    ),
    "on a GPU the first networks act for ever": (
        "            snapshot = agent.snapshot()",
        '            snapshot = vars(run).setdefault("snapshot", agent.snapshot())',
        f"{PPO_MATH}t19_t30_steps_updates_and_ratios[1-10]",
    ),
    "moments are of the type that comes in": (
        "rows, dtype=torch.float64,",
        "rows,",
        f"{PPO_MATH}moments_are_those_of_all_rows[float32]",
    ),
    "what a time limit cut off is missing in the outcome": (
        "reward + cut_off, value)",
        "reward, value)",
        f"{PPO_MATH}metrics_of_a_rollout",
    ),
    "the value stays scaled": (
        " * np.float32(self.return_moments.std())",
        "",
        f"{PPO_MATH}value_is_in_raw_units",
    ),
    # networks, policy
    "the policy starts with large actions": (
        "gain=0.01",
        "gain=1.0",
        f"{PPO_MATH}networks_are_orthogonal_with_their_gains",
    ),
    "all environments share a draw of noise": (
        "standard_normal(mean.shape)",
        "standard_normal(mean.shape[1:])",
        f"{PPO_MATH}explored_actions_follow_the_policy",
    ),
    "evaluation explores": (
        "agent.act(obs)",
        "agent.act(obs, False)",
        f"{RUNS}load_and_evaluate",
    ),
    "bounds that are not symmetric are ignored": (
        "self.low + (self.high - self.low) / 2 * (1 + action)",
        "self.high * action",
        f"{PPO_MATH}act_is_the_mean_within_bounds",
    ),
    "acting skips the second tanh": (
        "for function in functions:",
        "for function in functions[:3] + functions[4:]:",
        f"{PPO_MATH}t19_t30_steps_updates_and_ratios[1-10]",
    ),
    "acting leaves out what it does not know": (
        "            return partial(call_network, net)\n",
        "            pass\n",
        f"{PPO_MATH}acting_is_the_network_whatever_its_activation[GELU-1]",
    ),
    "acting takes every kind of linear layer for the usual one": (
        "type(layer) is nn.Linear",
        "isinstance(layer, nn.Linear)",
        f"{PPO_MATH}acting_is_the_network_whatever_its_layers[scaled]",
    ),
    "acting looks into networks of another kind": (
        "list(net) if type(net) is nn.Sequential else [net]",
        "list(net)",
        f"{PPO_MATH}acting_is_the_network_whatever_its_layers[residual]",
    ),
    "acting needs biases": (
        " and layer.bias is not None",
        "",
        f"{PPO_MATH}acting_is_the_network_whatever_its_layers[no biases]",
    ),
    "the ends that were not seen count in the explained variance": (
        "end_seen[t] = next_seen",
        "end_seen[t] = True",
        f"{PPO_MATH}metrics_of_a_rollout",
    ),
    # environments in processes of their own
    "no environment has a process of its own": (
        "if args.num_workers:",
        "if False:",
        f"{RUNS}environments_in_processes_of_their_own_give_the_same_bits",
    ),
    "a signal to all processes ends environments": (
        "signal.signal(number, lambda number, frame: None)",
        "signal.signal(number, signal.SIG_DFL)",
        f"{ASYNC}a_signal_for_all_processes_saves_the_run[15]",
    ),
    "processes outlive a run that is killed": (
        "    threading.Thread(target=end_with, args=[parent], daemon=True).start()\n",
        "",
        f"{ASYNC}killed_runs_leave_no_process_in_the_middle_of_a_step",
    ),
    "a program waits for processes that it has not closed": (
        "self, kill_all, [self.processes], exitpriority=0",
        "self, id, [self.processes], exitpriority=0",
        f"{ASYNC}a_program_does_not_wait_for_its_processes[]",
    ),
    "lost environments keep their processes": (
        "            self, kill_all, [self.processes]",
        "            None, lambda: kill_all(self.processes), []",
        f"{ASYNC}lost_environments_leave_no_process",
    ),
    "Ctrl-C waits for workers that build": (
        "self.close(terminate=not isinstance(error, Exception))",
        "self.close()",
        f"{ASYNC}ctrl_c_while_workers_build_waits_for_nothing",
    ),
    "processes that are to end at once do not": (
        "        if terminate:\n            kill_all(self.processes)\n",
        "        terminate = False\n",
        f"{ASYNC}processes_in_the_middle_of_a_step_end_at_once",
    ),
    "processes that do not close are waited for": (
        "process.join(max(0, deadline - time.perf_counter()))",
        "process.join()",
        f"{ASYNC}processes_are_not_waited_for_without_end",
    ),
    "an error in a process goes unnoticed": (
        "            if answer.error is not None:\n                raise answer.error\n",
        "            pass\n",
        f"{ASYNC}errors_come_out_of_their_process[usual]",
    ),
    "errors that cannot be copied break the run": (
        "        pickle.loads(pickle.dumps(error))\n",
        "        pass\n",
        f"{ASYNC}errors_come_out_of_their_process[odd]",
    ),
    "infos of other processes are put before those of the first": (
        "merged.setdefault(name, zeros)[share] = values",
        "merged.setdefault(name, zeros)[: len(values)] = values",
        f"{ASYNC}shares_of_any_size_give_the_same[3]",
    ),
    "all of a process's environments begin anew": (
        '{"reset_mask": mask[share]}',
        "{}",
        f"{ASYNC}shares_of_any_size_give_the_same[3]",
    ),
    "nobody says that a process is gone": (
        "            raise SystemExit(sentence) from None\n",
        "            raise\n",
        f"{ASYNC}a_killed_process_ends_the_run_in_one_sentence",
    ),
    "processes have all threads": (
        "    limit_threads(threads)\n",
        "    limit_threads(7)\n",
        f"{ASYNC}threads_are_limited_in_all_processes[1]",
    ),
    "states travel as tensors": (
        "converted[name] = value.numpy() if isinstance(value, torch.Tensor) else value",
        "converted[name] = value",
        f"{RESUME}killed_at_random_instants[async-3]",
    ),
    # resume
    "the running return is not saved": (
        "torch.zeros(args.num_envs, dtype=torch.float64)",
        "torch.zeros(args.num_envs, dtype=torch.float64), persistent=False",
        f"{RESUME}auto[missing]",
    ),
    "the deviation of observations is not saved": (
        "nn.Buffer(zeros + 1)",
        "nn.Buffer(zeros + 1, persistent=False)",
        f"{RESUME}auto[missing]",
    ),
    "a checkpoint is due within a rollout": (
        "                run.log_episodes(infos, truncated)\n",
        "                run.log_episodes(infos, truncated)\n"
        "                if run.checkpoint_due():\n                    run.checkpoint()\n",
        f"{RESUME}signal_in_the_first_step[1]",
    ),
    "an annealed run can grow": (
        "grows and saved.anneal",
        "False",
        f"{RESUME}more_steps_would_change_what_is_annealed_over_them",
    ),
    "the KL of all passes decides when to stop": (
        "mean_kl(epoch_metrics) > target_kl",
        "mean_kl(minibatches) > target_kl",
        f"{PPO_MATH}t23_target_kl_looks_at_one_pass_at_a_time",
    ),
    "a short run is told of a rollout that does not fit": (
        "shorter = args.total_timesteps // least * least",
        "shorter = args.total_timesteps",
        "test_bad_input.py::test_the_remedy_for_a_short_run_works",
    ),
}
DQN_MATH = "test_dqn.py::test_"
DQN = {
    "silence about lives is a lost one": (
        "            lives = self.lives\n",
        "            lives = 0\n",
        "test_dqn.py::test_lives_that_are_told_when_they_change",
    ),
    # the update
    "terminated is ignored": (
        "(1 - batch.terminated) * ",
        "",
        f"{DQN_MATH}loss_and_gradient[False-False]",
    ),
    "the discount is missing": (
        "self.args.gamma * (1",
        "(1",
        f"{DQN_MATH}loss_and_gradient[False-False]",
    ),
    "with --double the target chooses its own action": (
        "choosing_q = self.q(next_obs)",
        "pass",
        f"{DQN_MATH}loss_and_gradient[False-True]",
    ),
    "double is always on": (
        "            if self.args.double:\n                choosing_q",
        "            if True:\n                choosing_q",
        f"{DQN_MATH}loss_and_gradient[False-False]",
    ),
    "the next value is that of the network that learns": (
        "next_q = self.q_target(next_obs)",
        "next_q = self.q(next_obs)",
        f"{DQN_MATH}loss_and_gradient[False-False]",
    ),
    "the Huber loss is squared": (
        "nn.functional.smooth_l1_loss if",
        "nn.functional.mse_loss if",
        f"{DQN_MATH}loss_and_gradient[True-False]",
    ),
    "the smallest next value counts": (
        "choosing_q.argmax(1)",
        "choosing_q.argmin(1)",
        f"{DQN_MATH}loss_and_gradient[False-False]",
    ),
    "the target is never copied": (
        "                agent.copy_target()\n",
        "                pass\n",
        f"{PROBES}values_of_what_is_seen[Chain3Pixels-0.5-900-40-2-1]",
    ),
    "the target is copied at a multiple of both periods": (
        "% args.target_every <",
        "% (args.target_every * args.train_every) <",
        f"{DQN_MATH}t24_the_target_is_copied_at_its_own_period[10-1]",
    ),
    "the target is the network that learns": (
        "self.q_target.load_state_dict(self.q.state_dict())",
        "self.q_target = self.q",
        f"{DQN_MATH}the_update_moves_q_and_copying_the_target",
    ),
    "updates are not spaced": (
        "run.updates * args.train_every <",
        "run.updates <",
        f"{RUNS}counts[1-1.0]",
    ),
    "truncation is stored as termination": (
        "terminated | life_lost,",
        "terminated | life_lost | truncated,",
        f"{DQN_MATH}t01_t02_t03_t06_stacks_of_a_run[1]",
    ),
    # network and actions
    "bytes are not divided": (
        "frames / 255",
        "frames / 1",
        f"{DQN_MATH}t27_the_network_is_natures_and_divides_bytes_once[84-3136]",
    ),
    "bytes are divided twice": (
        "frames / 255",
        "frames / 255 / 255",
        f"{DQN_MATH}t27_the_network_is_natures_and_divides_bytes_once[84-3136]",
    ),
    "a stride is wrong": (
        "kernel_size=4, stride=2",
        "kernel_size=4, stride=1",
        f"{DQN_MATH}t27_the_network_is_natures_and_divides_bytes_once[84-3136]",
    ),
    "all environments explore together": (
        "np.random.random(len(obs)) < epsilon",
        "np.full(len(obs), np.random.random() < epsilon)",
        f"{DQN_MATH}t27_every_environment_draws_for_itself",
    ),
    "the last action is never explored": (
        "np.random.randint(self.num_actions,",
        "np.random.randint(self.num_actions - 1,",
        f"{DQN_MATH}t27_every_environment_draws_for_itself",
    ),
    "epsilon falls for ever": (
        "min(step / (args.exploration_fraction * args.total_timesteps), 1)",
        "step / (args.exploration_fraction * args.total_timesteps)",
        f"{DQN_MATH}t27_epsilon_falls_linearly_and_stays",
    ),
    "evaluations explore as training does": (
        "self.args.eval_e if deterministic else self.args.end_e",
        "self.args.end_e",
        f"{DQN_MATH}act_and_value",
    ),
    # the replay buffer
    "stacks begin before their episode": (
        "np.maximum(offset, -age[:, None])",
        "np.maximum(offset, -3 + 0 * age[:, None])",
        f"{DQN_MATH}t06_stacks_equal_those_of_a_list_of_transitions[1-40]",
    ),
    "stacks hold frames that were overwritten": (
        'later_rows + note["age"] <',
        "later_rows <",
        f"{DQN_MATH}t06_stacks_equal_those_of_a_list_of_transitions[1-40]",
    ),
    "last frames are taken for acted upon in the second turn": (
        "        self.notes[envs, rows] = np.concatenate([note, next_note])\n",
        "        self.notes[self.envs, rows[: len(done)]] = note\n"
        '        self.notes["age"][self.envs, rows[len(done) :]] = next_note["age"]\n',
        f"{DQN_MATH}t06_stacks_equal_those_of_a_list_of_transitions[1-40]",
    ),
    "an episode begins with the last frame of the one before": (
        "self.added += 1 + done",
        "self.added += 1",
        f"{DQN_MATH}t01_t02_t03_t06_stacks_of_a_run[1]",
    ),
    # games
    "a lost life does not end an episode": (
        "terminated | life_lost,",
        "terminated,",
        f"{DQN_MATH}t25_t26_a_scripted_game_through_the_whole_pipeline[1-Cartridge-True-84]",
    ),
    "a lost life restarts the game": (
        'infos["life_lost"] & (args.life_loss == "on")',
        'infos["life_lost"] & (args.life_loss == "on")\n            done = done | life_lost',
        f"{DQN_MATH}t25_t26_a_scripted_game_through_the_whole_pipeline[1-Cartridge-True-84]",
    ),
    "a new game's fewer lives are taken for lost": (
        "        self.lives = 0  #",
        '        self.lives = getattr(self, "lives", 0)  #',
        f"{DQN_MATH}t08_frames_are_copied_and_lives_are_forgotten_at_a_reset",
    ),
    "frames are not copied": (
        "    env = gym.wrappers.TransformObservation(env, np.copy, None)",
        "    None",
        f"{DQN_MATH}t08_frames_are_copied_and_lives_are_forgotten_at_a_reset",
    ),
    "batches are of another layout than the example": (
        "*columns)\n\n    def draw",
        "*columns.T.contiguous().T)\n\n    def draw",
        f"{DQN_MATH}batches_are_of_one_layout",
    ),
    "lives count with sticky actions as well": (
        '"off" if sticky_actions(args.env_id) else "on"',
        '"on"',
        f"{DQN_MATH}t25_t26_a_scripted_game_through_the_whole_pipeline[1-Cartridge-sticky-False-84]",
    ),
    "rewards are not clipped": (
        "np.sign(reward) if args.clip_rewards else reward",
        "reward",
        f"{DQN_MATH}rewards_of_any_size_are_learned_from_if_asked",
    ),
    "nobody presses FIRE": (
        "obs, _, _, _, info = self.step(FIRE)",
        "pass",
        f"{DQN_MATH}t25_t26_a_scripted_game_through_the_whole_pipeline[1-Cartridge-True-84]",
    ),
    "the emulator is loaded for every game": (
        "if not self.seeds_emulator:",
        "if False:",
        f"{DQN_MATH}t28_games_repeat_and_differ_and_load_their_rom_once",
    ),
    "later games do not depend on their seeds": (
        "gym.utils.seeding.np_random(seed)",
        "gym.utils.seeding.np_random(0)",
        f"{DQN_MATH}t26_the_number_of_no_ops_follows_from_the_seed",
    ),
    "the size of frames is not asked for": (
        "screen_size=frame_size",
        "screen_size=84",
        f"{DQN_MATH}t25_t26_a_scripted_game_through_the_whole_pipeline[1-Cartridge-skips-True-44]",
    ),
    "FIRE is pressed where there is none": (
        'get_action_meanings()[FIRE] == "FIRE"',
        'get_action_meanings()[FIRE] != ""',
        f"{DQN_MATH}t26_nobody_presses_fire_where_there_is_none",
    ),
    "training's games end as evaluations' do": (
        "frame_limit=108_000, ",
        "frame_limit=18_000, ",
        f"{DQN_MATH}protocols[BreakoutNoFrameskip-v4-0.0-on]",
    ),
    "evaluations may last longer": (
        "limit=18_000",
        "limit=20_000",
        f"{DQN_MATH}evaluations_end_with_an_episode_limit",
    ),
    # resume
    "the buffer's rings are not saved": (
        "eval_envs, rings)",
        "eval_envs)",
        f"{RESUME}damaged_rows[missing]",
    ),
    "the rings of several environments are one": (
        "Ring(buffer, env)",
        "Ring(buffer, 0)",
        f"{RESUME}killed_at_random_instants[hidden-3]",
    ),
    "all rings have the file of the first": (
        "BufferFile(folder, self, room, salt, number)",
        "BufferFile(folder, self, room, salt)",
        f"{RESUME}killed_at_random_instants[hidden-3]",
    ),
    "the last frame of a game does not count as a row": (
        "1.1 * room",
        "0 * room",
        f"{DQN_MATH}files_have_room_for_the_last_frames_of_games",
    ),
    "a ring is saved without its notes": (
        "        self.notes[places] = notes\n",
        "        pass\n",
        f"{RESUME}killed_at_random_instants[hidden-3]",
    ),
    "a ring is saved without its frames": (
        "        self.frames[places] = frames.to(self.frames.device)\n",
        "        pass\n",
        f"{RESUME}killed_at_random_instants[hidden-3]",
    ),
    "epsilon may be stretched by a resume": (
        "FREE = {\n",
        'FREE = {\n    "total_timesteps",\n',
        f"{RESUME}more_steps",
    ),
    "--life-loss is settled too late to be compared": (
        "    args = settle_life_loss(args)\n    compile_from",
        "    compile_from",
        f"{DQN_MATH}protocols[BreakoutNoFrameskip-v4-0.0-on]",
    ),
    "the emulator's state is not put back": (
        '            self.game.restore_emulator(state["emulator"])\n',
        "            pass\n",
        f"{DQN_MATH}games_are_repeated_by_other_emulators[ALE/Breakout-v5]",
    ),
    "the emulator's generator is not saved": (
        "include_rng=True",
        "include_rng=False",
        f"{DQN_MATH}games_are_repeated_by_other_emulators[ALE/Breakout-v5]",
    ),
    "a game that goes on seeds the emulator": (
        "self.game.seeds_emulator = self.episode == 0",
        'self.game.seeds_emulator = not getattr(self, "actions", None)',
        f"{DQN_MATH}games_are_repeated_by_other_emulators[BreakoutNoFrameskip-v4]",
    ),
    "an evaluation's emulators go on from the one before": (
        "self.game.seeds_emulator = self.episode == 0",
        "self.game.seeds_emulator = self.episode == 0 and self.emulator_state is None",
        f"{DQN_MATH}evaluations_do_not_depend_on_those_before",
    ),
    "an episode that cannot be repeated goes on as the next one": (
        "                buffer.end_episode(index, frame)\n",
        "                pass\n",
        f"{DQN_MATH}an_episode_that_cannot_be_repeated_ends[130]",
    ),
    "an episode that cannot be repeated ends with an older frame": (
        'state["obs"][-1]',
        'state["obs"][-2]',
        f"{DQN_MATH}an_episode_that_cannot_be_repeated_ends[130]",
    ),
    "an episode without a step ends": (
        '        if before["acted"]:\n',
        "        if True:\n",
        f"{DQN_MATH}an_episode_that_cannot_be_repeated_ends[140]",
    ),
    # environments in processes of their own
    "no environment has a process of its own": (
        "if args.num_workers:",
        "if False:",
        f"{RUNS}environments_in_processes_of_their_own_give_the_same_bits",
    ),
    "epsilon is added below the root": (
        "(self.exp_avg_sq / self.bias_correction2).sqrt() + self.eps",
        "(self.exp_avg_sq / self.bias_correction2 + self.eps).sqrt()",
        f"{MATH}adam_equals_torch_adam",
    ),
    "environments share the seeds of their episodes": (
        "episode_seed(*self.stream, self.index, self.episode)",
        "episode_seed(*self.stream, self.index + self.episode)",
        f"{RUNS}every_episode_has_a_seed_of_its_own",
    ),
}
TQC = {
    # the target's atoms
    "termination is ignored": (
        "discount = self.args.gamma * (1 - terminated)",
        "discount = self.args.gamma * torch.ones_like(terminated)",
        f"{MATH}t04_only_termination_stops_bootstrapping[1.0]",
    ),
    "the target has no entropy": (
        "next_atoms - alpha * next_logp[:, None]",
        "next_atoms",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the target's entropy is shared by the batch": (
        "alpha * next_logp[:, None]",
        "alpha * next_logp.mean()",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the target comes from the critics that learn": (
        "self.critic_target(next_obs, next_action)",
        "self.critic(next_obs, next_action)",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the smallest atoms are dropped": (
        "values[:, :num_kept]",
        "values[:, -num_kept:]",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "no atom is dropped": (
        "values[:, :num_kept]",
        "values",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "as many atoms are dropped for any number of critics": (
        "self.args.num_critics * self.args.drop_atoms",
        "self.args.drop_atoms",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "as many atoms are dropped as if there were two critics": (
        "self.args.num_critics * self.args.drop_atoms",
        "2 * self.args.drop_atoms",
        f"{MATH}critics_and_quantiles_of_any_number",
    ),
    "critics and dropped atoms are added, not multiplied": (
        "self.args.num_critics * self.args.drop_atoms",
        "(self.args.num_critics + self.args.drop_atoms)",
        f"{MATH}critics_and_quantiles_of_any_number",
    ),
    "the second critic is shown, not the last": (
        '"losses/qf2_values": q[-1].mean()',
        '"losses/qf2_values": q[min(1, len(q) - 1)].mean()',
        f"{MATH}critics_and_quantiles_of_any_number",
    ),
    "any number of atoms fits": (
        "require(args.num_quantiles <= at_most,",
        "require(True,",
        f"{REFUSED}[--num-quantiles 1e9 --num-critics 99-at most 10 with]",
    ),
    "the last atoms are dropped, not the largest": (
        "pooled.sort(1).values[:, :num_kept]",
        "pooled[:, :num_kept]",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "each critic drops its own largest atoms": (
        "pooled.sort(1).values[:, :num_kept]",
        "atoms.sort(2).values[..., : num_kept // len(atoms)].transpose(0, 1).flatten(1)",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "atoms of different transitions are pooled": (
        "atoms.transpose(0, 1).flatten(1)",
        "atoms.reshape(atoms.shape[1], -1)",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    # the loss
    "levels are at the edges, not in the middle": (
        "device=atoms.device) + 0.5) / num",
        "device=atoms.device) + 1.0) / num",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the error has the other sign": (
        "target_atoms[:, None, :] - atoms[..., None]",
        "atoms[..., None] - target_atoms[:, None, :]",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the linear part of the loss does not meet the square one": (
        "size - 0.5)",
        "size)",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the loss is square for any error": (
        "torch.where(size < 1, 0.5 * error.square(), size - 0.5)",
        "0.5 * error.square()",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "the loss is summed over atoms": (
        "(weight * huber).mean((1, 2, 3))",
        "(weight * huber).mean((1, 3)).sum(1)",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    "all quantiles are the median": (
        "weight = (levels[:, None] - (error < 0).float()).abs()",
        "weight = 0.5",
        f"{MATH}t04_t09_t14_critic_loss_and_gradient",
    ),
    # the actor, the critics, what is shown of them
    "the actor trusts the lower critic": (
        "q = self.critic(obs, action).mean((0, 2))",
        "q = self.critic(obs, action).mean(2).min(0).values",
        f"{MATH}t09_t14_actor_loss_and_gradient",
    ),
    "the actor looks at the largest atoms alone": (
        "q = self.critic(obs, action).mean((0, 2))",
        "q = self.critic(obs, action).amax((0, 2))",
        f"{MATH}t09_t14_actor_loss_and_gradient",
    ),
    "all critics start the same": (
        "[nn.Linear(inputs, outputs) for _ in range(critics)]",
        "[nn.Linear(inputs, outputs)] * critics",
        f"{MATH}the_two_critics_start_different",
    ),
    "the value is that of the first critic": (
        "self.critic(obs, torch.tanh(mean)).mean((0, 2))",
        "self.critic(obs, torch.tanh(mean))[0].mean(1)",
        f"{MATH}value_is_that_of_the_critics_at_the_mode",
    ),
    "the error that is logged is that of the loss": (
        "(q - td_target).square().mean().sqrt()",
        "losses.mean().sqrt()",
        f"{MATH}metrics_of_an_update",
    ),
    "all atoms may be dropped": (
        "0 <= args.drop_atoms < args.num_quantiles",
        "0 <= args.drop_atoms <= args.num_quantiles",
        f"{REFUSED}[--drop-atoms 3 --num-quantiles 3-below --num-quantiles]",
    ),
}
MUTANTS = {
    "sac_continuous": SAC,
    "td3_continuous": TD3,
    "tqc_continuous": TQC,
    "ppo_continuous": PPO,
    "dqn_atari": DQN,
}
MUTANTS["tests/tabular_q"] = TABULAR
EQUIVALENT = {"sac_continuous": SAC_EQUIVALENT}


ROWS = share([(script, bug) for script, bugs in MUTANTS.items() for bug in bugs])


def mutate(script, old, new):
    """Return the source of a script of ours with a text replaced that occurs exactly once."""
    source = (ROOT / f"{script}.py").read_text("utf-8")
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    return source.replace(old, new)


def run_pytest(arguments, out):
    """Run pytest in this process, which ends with its exit code; what it prints goes to a file."""
    with open(out, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    sys.exit(pytest.main(arguments))


def run(path, source, *tests):
    """Run tests on a script of that source; return pytest's exit code and what it printed."""
    path.parent.mkdir(parents=True)
    path.write_text(source, "utf-8")
    arguments = ["-q", "-x", "-n0", "-p", "no:cacheprovider", "-rs", f"--script={path}"]
    arguments += ["--assert=plain"]  # spares a second of rewriting
    arguments += [str(ROOT / "tests" / test) for test in tests]
    child = WARM.Process(target=run_pytest, args=(arguments, path.with_suffix(".out")))
    child.start(), child.join()
    return child.exitcode, path.with_suffix(".out").read_text()


def table():
    """Return the mutants and the test that kills each, in Markdown."""
    counts = [f"{len(bugs)} in `{script}`" for script, bugs in MUTANTS.items()]
    lines = [f"{sum(map(len, MUTANTS.values()))} bugs: {', '.join(counts)}.", ""]
    lines += ["| script | bug | test that fails |", "|---|---|---|"]
    for script, bugs in MUTANTS.items():
        lines += [f"| `{script}` | {bug} | `{test}` |" for bug, (_, _, test) in bugs.items()]
    lines += ["", "| script | change that is not a bug | why |", "|---|---|---|"]
    for script, changes in EQUIVALENT.items():
        lines += [f"| `{script}` | {name} | {why} |" for name, (_, _, why) in changes.items()]
    return "\n".join(lines) + "\n"


# Bugs that are a name which is not there
WITHOUT_A_NAME = {
    ("sac_continuous", "1e6 is no whole number"),
    ("sac_continuous", "a batch is used twice"),
}


@pytest.mark.quick
def test_no_bug_names_what_is_not_there(tmp_path):
    """Or whatever test runs it would fail, and would seem to see the bug."""
    paths = {}
    for script, bugs in MUTANTS.items():
        for bug, (old, new, _) in bugs.items():
            path = tmp_path / f"{len(paths)}.py"
            path.write_text(mutate(script, old, new), "utf-8")
            paths[path.name] = script, bug
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache"]
    command += ["--select", "F821", "--output-format", "json", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, check=False).stdout
    found = {paths[Path(one["filename"]).name] for one in json.loads(out)}
    assert found == WITHOUT_A_NAME


@pytest.mark.slow
@pytest.mark.parametrize("script_name, bug", ROWS)
def test_bug_is_seen(script_name, bug, tmp_path):
    old, new, test = MUTANTS[script_name][bug]
    path = tmp_path / "mutant" / f"{Path(script_name).name}.py"
    code, out = run(path, mutate(script_name, old, new), test)
    assert code == 1 and "1 failed" in out, out


@pytest.mark.quick
@pytest.mark.parametrize("mutants", [MUTANTS, EQUIVALENT], ids=["bugs", "equivalent"])
def test_every_text_occurs_once_and_python_is_left(mutants):
    for script, changes in mutants.items():
        for old, new, _ in changes.values():
            compile(mutate(script, old, new), script, "exec")


@pytest.mark.slow
def test_a_script_of_another_kind(tmp_path):
    """It learns what its actions allow, and what does not apply is skipped with the reason."""
    source = (ROOT / "tests" / "tabular_q.py").read_text("utf-8")
    code, out = run(tmp_path / "mine" / "tabular_q.py", source, "")
    assert code == 0, out
    for reason in ("the script refuses tests.probe_envs:Const-v0", "the script has no squash"):
        assert reason in out
    assert "test_probes.py: " in out, "what was not tested is told"
    assert int(re.search(r"(\d+) passed", out)[1]) >= 20


if __name__ == "__main__":
    print(table(), end="")
