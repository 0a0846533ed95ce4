#!/usr/bin/env bash
# Measure our scripts beside other implementations on this machine: what results/*speed.md shows.
#
#     bash tools/speed.sh              everything: two hours on two cores
#     bash tools/speed.sh sac ppo_64   the measurements named
#
# It replaces results/*.json, needs the virtual environment `peers` and the checkout `cleanrl` that
# docs/speed.md describes, beside the scripts, and a machine on which nothing else runs.

set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD/cleanrl

OUR_FLAGS="--env-id speed:Counted-v0 --eval-every 0 --no-capture-video"
PEER_PYTHON="peers/bin/python"
if [ ! -x "$PEER_PYTHON" ] || [ ! -d cleanrl ]; then
    echo "error: peers or cleanrl is not there: make them as docs/speed.md says" >&2
    exit 2
fi
GYM="import gymnasium as gym"
ENV="gym.make('speed:Counted-v0')"
VECTOR="from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize"
VERSIONS=$($PEER_PYTHON - << 'PYTHON'
import platform
from importlib.metadata import version
names = ["torch", "gymnasium", "mujoco", "jax", "sbx-rl", "stable-baselines3", "sb3-contrib"]
found = [f"{name} {version(name)}" for name in names]
print(", ".join([f"Python {platform.python_version()}", *found]), end="")
PYTHON
)
VERSIONS="$VERSIONS; CleanRL at commit $(git -C cleanrl rev-parse --short=7 HEAD)."
NOTE_FIRST="The first column has one measurement"
NOTE_HALF_RANDOM="$NOTE_FIRST, half of it random actions."

measure() { # file, then arguments of speed.py
    local file=$1
    shift
    python tools/speed.py --file "results/$file.json" "$@" > /dev/null
}

# Gymnasium 1 has no final_observation, since observations at an episode's end are the true ones, and
# asks for a space where observations are transformed: copy a script of CleanRL with that changed
adapt() { # name of the script
    sed -e 's/infos\["final_observation"\]/next_obs/' \
        -e 's/np.clip(obs, -10, 10))/np.clip(obs, -10, 10), env.observation_space)/' \
        "cleanrl/cleanrl/$1.py" > "cleanrl/$1.py"
}

# --- SAC and TD3: networks of 256 and 256 units, batches of 256, an update a step ------------------
# The command of a peer: module, class, then if need be settings to go before learning_starts, and
# settings to go after it
off_policy() {
    echo "$PEER_PYTHON -c \"$GYM; from $1 import $2; $2('MlpPolicy', $ENV, ${3-}learning_starts=5000${4-}).learn(10**6)\""
}

SAC="python sac_continuous.py $OUR_FLAGS"
SBX_SAC=$(off_policy sbx SAC)
SB3_SAC=$(off_policy stable_baselines3 SAC)
TD3="python td3_continuous.py $OUR_FLAGS --learning-starts 5000"
SBX_TD3=$(off_policy sbx TD3)
SB3_TD3=$(off_policy stable_baselines3 TD3 "learning_rate=3e-4, " ", policy_kwargs={'net_arch': [256, 256]}")
NOTE_OFF_POLICY="Each program has all cores; networks of 256 and 256 units, batches of 256; environments by Gymnasium, one at a time."
CLEANRL_SAC="CleanRL updates once more after each episode, at a step that is not counted (1 to 5 % of its speed)."

sac() {
    adapt sac_continuous_action
    measure speed --first 10000 --windows 5 --seconds 15 --note "$VERSIONS $NOTE_OFF_POLICY $CLEANRL_SAC $NOTE_HALF_RANDOM" \
        "ours=$SAC" "SBX=$SBX_SAC" "SB3=$SB3_SAC" \
        "CleanRL=$PEER_PYTHON cleanrl/sac_continuous_action.py --env-id speed:Counted-v0"
}

td3() {
    adapt td3_continuous_action
    measure td3_speed --first 10000 --windows 5 --seconds 15 \
        --note "$VERSIONS $NOTE_OFF_POLICY A delay of 2 for all. $NOTE_HALF_RANDOM" \
        "ours=$TD3" "SBX=$SBX_TD3" "SB3=$SB3_TD3" \
        "CleanRL=$PEER_PYTHON cleanrl/td3_continuous_action.py --env-id speed:Counted-v0 --learning-starts 5000"
}

# From the launch: nothing compiled before, to step 20,000; or everything, to step 10,000
start() {
    local note="$VERSIONS $NOTE_OFF_POLICY"
    measure sac_start_cold --launches 3 --first 20000 --windows 0 --note "$note" "ours=$SAC" "SBX=$SBX_SAC"
    measure sac_start_warm --launches 3 --first 10000 --windows 0 --warm --note "$note" "ours=$SAC" "SBX=$SBX_SAC"
    measure td3_start_cold --launches 3 --first 20000 --windows 0 --note "$note" "ours=$TD3" "SBX=$SBX_TD3"
    measure td3_start_warm --launches 3 --first 10000 --windows 0 --warm --note "$note" "ours=$TD3" "SBX=$SBX_TD3"
}

# Two runs at a time, one thread each, as in sweeps. SBX is best left to share the cores out itself.
pairs() {
    measure sac_pairs --copies 2 --first 20000 --windows 5 --seconds 15 \
        --note "$VERSIONS Ours and Stable-Baselines3 with one thread. $NOTE_HALF_RANDOM" \
        "ours=$SAC --threads 1" "SBX=$SBX_SAC" \
        "SB3=${SB3_SAC/import gymnasium/import torch; torch.set_num_threads(1); import gymnasium}"
}

# --- TQC beside SAC: two critics of 25 quantiles ---------------------------------------------------
tqc() {
    measure tqc_speed --first 10000 --windows 5 --seconds 15 \
        --note "$VERSIONS $NOTE_OFF_POLICY TQC has two critics of 25 quantiles, of which 2 each are dropped. $NOTE_HALF_RANDOM" \
        "ours=python tqc_continuous.py $OUR_FLAGS" "our SAC=$SAC" \
        "SBX=$(off_policy sbx TQC)" "SB3=$(off_policy sb3_contrib TQC)"
}

# The default two critics beside the paper's five, ours alone
critics() {
    local tqc="python tqc_continuous.py $OUR_FLAGS"
    measure tqc_critics_speed --first 6000 --windows 5 --seconds 15 \
        --note "Ours alone, with all cores. $NOTE_FIRST, most of it random actions and compilation." \
        "2 critics=$tqc" "5 critics=$tqc --num-critics 5" "our SAC=$SAC"
}

# --- PPO: rollouts of 2,048, 10 passes, minibatches of 64 ------------------------------------------
# Set PPO, SB3_PPO, SBX_PPO and CLEANRL_PPO to the commands with that many environments, and PPO_NOTE
set_ppo_commands() {
    adapt ppo_continuous_action
    local envs="VecNormalize(DummyVecEnv([lambda: $ENV] * $1))"
    local learn="n_steps=$((2048 / $1))).learn(10**7)"
    SB3_PPO="$PEER_PYTHON -c \"import torch; torch.set_num_threads(1); $GYM; from stable_baselines3 import PPO; $VECTOR; PPO('MlpPolicy', $envs, $learn\""
    SBX_PPO="$PEER_PYTHON -c \"$GYM; from sbx import PPO; $VECTOR; PPO('MlpPolicy', $envs, $learn\""
    CLEANRL_PPO="$PEER_PYTHON cleanrl/ppo_continuous_action.py --env-id speed:Counted-v0 --num-envs $1 --num-steps $((2048 / $1)) --num-minibatches 32 --total-timesteps 10000000"
    PPO="python ppo_continuous.py $OUR_FLAGS --num-envs $1 --total-timesteps 20_000_000"
    PPO_NOTE="$VERSIONS All: $1 environment(s), rollouts of 2,048 transitions, 10 passes, minibatches of 64, two
networks of 64 and 64 units, normalised observations and rewards; environments by Gymnasium."
}

ppo_1() {
    set_ppo_commands 1
    measure ppo_speed --first 20000 --windows 5 --seconds 10 \
        --note "$PPO_NOTE Ours and Stable-Baselines3 with one thread. $NOTE_FIRST." \
        "ours=$PPO" "SB3=$SB3_PPO" "SBX=$SBX_PPO" "CleanRL=$CLEANRL_PPO"
}

ppo_64() {
    set_ppo_commands 64
    measure ppo_speed_64 --first 30000 --windows 5 --seconds 10 \
        --note "$PPO_NOTE Ours and Stable-Baselines3 with one thread. $NOTE_FIRST." \
        "ours=$PPO" "SB3=$SB3_PPO" "SBX=$SBX_PPO" "CleanRL=$CLEANRL_PPO"
    measure ppo_speed_workers --first 30000 --windows 5 --seconds 10 \
        --note "$PPO_NOTE Ours steps the environments in two worker processes, Stable-Baselines3 has one thread. $NOTE_FIRST." \
        "ours=$PPO --num-workers 2" "SB3=$SB3_PPO" "SBX=$SBX_PPO"
    measure ppo_workers --first 30000 --windows 5 --seconds 10 --note "Ours alone, with and without workers." \
        "two workers=$PPO --num-workers 2" "none=$PPO"
}

# --- DQN: batches of 32, an update every 4 transitions, the Nature network -------------------------
dqn() {
    local wrapped="AtariWrapper($ENV)"
    local learn="learning_starts=2000, buffer_size=100000, target_update_interval=1000, exploration_fraction=0.0005, exploration_final_eps=0.01).learn(10**7)"
    measure dqn_speed --env-id BreakoutNoFrameskip-v4 --first 16000 --windows 5 --seconds 12 \
        --note "$VERSIONS Both: one environment, batches of 32, one update per 4 transitions, Nature network, the target
copied every 1,000, frame skip 4. Steps are frames of the emulator: four are one transition. $NOTE_FIRST." \
        "ours=python dqn_atari.py $OUR_FLAGS --learning-starts 2000 --buffer-size 100000 --exploration-fraction 0.0005" \
        "SB3=$PEER_PYTHON -c \"import ale_py, gymnasium as gym; gym.register_envs(ale_py); from stable_baselines3 import DQN; from stable_baselines3.common.atari_wrappers import AtariWrapper; from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack; DQN('CnnPolicy', VecFrameStack(DummyVecEnv([lambda: $wrapped]), 4), $learn\""
}

# --- growth: ours alone, with larger networks, larger batches, more environments --------------------
growth() {
    local note="$VERSIONS Ours alone, with all cores. $NOTE_FIRST, part of it random actions and compilation."
    measure growth_width --first 6000 --windows 5 --seconds 10 --note "$note" \
        "256 units=$SAC" "64 units=$SAC --hidden-size 64" \
        "128 units=$SAC --hidden-size 128" "512 units=$SAC --hidden-size 512"
    measure growth_batch --first 6000 --windows 5 --seconds 10 --note "$note" \
        "batches of 256=$SAC" "batches of 64=$SAC --batch-size 64" \
        "batches of 128=$SAC --batch-size 128" "batches of 512=$SAC --batch-size 512"
    PPO="python ppo_continuous.py $OUR_FLAGS --total-timesteps 20_000_000"
    measure growth_envs --first 30000 --windows 5 --seconds 10 \
        --note "$VERSIONS Ours alone, one thread; rollouts of 2,048, minibatches of 64. $NOTE_FIRST." \
        "64 environments=$PPO --num-envs 64" "1 environment=$PPO --num-envs 1" "4 environments=$PPO --num-envs 4" \
        "16 environments=$PPO --num-envs 16" "256 environments=$PPO --num-envs 256"
}

for name in "${@:-all}"; do
    case $name in
        all) sac; td3; start; pairs; tqc; critics; ppo_1; ppo_64; dqn; growth ;;
        sac | td3 | start | pairs | tqc | critics | ppo_1 | ppo_64 | dqn | growth) "$name" ;;
        *)
            echo "error: no measurement is called $name: name sac, td3, start, pairs, tqc, critics, ppo_1, ppo_64, dqn or growth" >&2
            exit 2
            ;;
    esac
done
