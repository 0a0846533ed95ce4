#!/usr/bin/env bash
# Train scripts x environments x seeds: on the cores of this machine, on its CUDA devices, or on a
# Slurm cluster.
#
#     ./benchmark.sh simple
#     ./benchmark.sh medium --total-timesteps 200000
#     SCRIPTS="sac_continuous mine/my_sac.py" ENVS="Hopper-v4 Ant-v4" SEEDS="1 2 3" ./benchmark.sh
#     SCRIPTS=sac_continuous ENVS=Hopper-v4 B="--gamma 0.98" ./benchmark.sh ab --total-timesteps 2e5
#
# simple    InvertedPendulum-v4, Pendulum-v1: SAC 20,000 steps, TD3 45,000, PPO 100,000; about three
#           quarters of an hour on two cores
# medium    Hopper-v4, HalfCheetah-v4, Walker2d-v4: SAC, TD3, PPO, 1,000,000 steps; a day and a half
# hard      Ant-v4, Humanoid-v4: the same, 3,000,000 steps; three days
# atari     Pong and Breakout: DQN, 10,000,000 steps, 7 GB of memory a run; nine days
# noise     Hopper-v4: PPO, one seed three times and ten seeds once: what is chance, what is seed;
#           an hour
# ab        two SCRIPTS, or one with two sets of flags, on ten fresh seeds, in turns; compares them.
#           Set --total-timesteps: the scripts' default takes a day and a half
#
# All further flags go to the scripts. These variables set the rest, and override a preset:
#
# SCRIPTS   names, with or without .py, or paths of your own
# ENVS      ids of environments
# SEEDS     seeds; default "101 102 103", as 1 to 100 are for tuning. A letter behind one repeats it
#           in a folder of its own: "101 101b"
# CONFIGS   settings of some runs, one a line: script, environment, file for --config. * fits any,
#           and the first that fits counts: CONFIGS="ppo_continuous Ant-* my ant.toml"
# A, B      for ab: flags of the one and of the other side, quoted as in a shell
# OUT       the folder of the sweep; default runs/sweep. What runs print is in $OUT/logs
# JOBS      runs at a time; default one for every THREADS cores, or for every device in GPUS
# THREADS   CPU threads of a run; default 1
# RETRIES   how often a run that fails or is refused is tried again; default 1
# GPUS      CUDA devices to share out, such as "0 1"; with JOBS=4 each gets two runs at a time. For
#           ENGINE=local: Slurm gives devices to its tasks, see SBATCH_ARGS
# PYTHON    the interpreter; default python
# ENGINE    local, the default; slurm: one array job, of JOBS tasks at a time, all if JOBS is not
#           set; print: no run. All write $OUT/jobs.tsv first, a line "name<TAB>command" for what
#           is to do: cut -f 2 runs/sweep/jobs.tsv | SHELL=bash parallel
# SBATCH_ARGS   more for sbatch, such as "-p gpu -G 1"; with -W it waits for the end
#
# Runs are in $OUT/<script>/<env>/<seed>, for ab in $OUT/a-<script>/... and $OUT/b-<script>/...; a :
# or / in an id becomes _. They make no videos unless you add --capture-video.
#
# Ctrl-C, SIGTERM or a closed terminal: every run saves a checkpoint and ends; a second Ctrl-C
# changes nothing. The same command goes on from there; after a crash, from the last checkpoints.
# kill -9 of the sweep leaves its runs alive. The next call refuses those: call it again when they
# have ended.
# A run fails: it is tried again after all others have begun, from its checkpoint if it has one. On
# Slurm its task tries it again at once; a task that is preempted is requeued and goes on.
# A run is refused, and its folder left as it is, if a living process uses it, or if it was made by
# other flags or another version of the script. If that run is finished, the sweep ends before
# anything is begun: name another OUT.
# At the end a table says how each run ended, and of those that did not finish what they printed
# last; presets add scores and plots ($OUT/plots), ab the comparison.
# Exit status: 0 if all are finished (with print and slurm: written or submitted), 1 if not, 2 if
# something is wrong with the command, 130 after Ctrl-C, 143 after SIGTERM or a closed terminal.

set -uf # f: * is for CONFIGS, and no pattern for files
here=$(dirname "$0")

fail() {
    echo "error: $*" >&2
    exit 2
}

require_number() { # NAME VALUE LEAST
    case $2 in
    '' | *[!0-9]* | 0[0-9]* | ??????????*) fail "$1=\"$2\" is no number: try $1=$3" ;;
    esac
    [ "$2" -ge "$3" ] || fail "$1=$2 is too small: try $1=$3"
}

# --- what to train --------------------------------------------------------------------------------
choose() { # PRESET: set what it stands for, where nothing else is set
    local continuous="sac_continuous td3_continuous ppo_continuous"
    local humanoid=$here/configs/ppo_humanoid.toml
    case $1 in
    simple) : "${SCRIPTS:=$continuous}" "${ENVS:=InvertedPendulum-v4 Pendulum-v1}" ;;
    medium) : "${SCRIPTS:=$continuous}" "${ENVS:=Hopper-v4 HalfCheetah-v4 Walker2d-v4}" ;;
    hard)
        : "${SCRIPTS:=$continuous}" "${ENVS:=Ant-v4 Humanoid-v4}"
        [ ! -f "$humanoid" ] || : "${CONFIGS:=ppo_continuous Humanoid-* $humanoid}"
        ;;
    atari) : "${SCRIPTS:=dqn_atari}" "${ENVS:=PongNoFrameskip-v4 BreakoutNoFrameskip-v4}" ;;
    noise)
        : "${SCRIPTS:=ppo_continuous}" "${ENVS:=Hopper-v4}"
        : "${SEEDS:=101 101b 101c $(seq 102 110)}"
        ;;
    ab)
        : "${SEEDS:=$(seq 201 210)}" "${SCRIPTS:=}"
        [ -z "${A-}${B-}" ] || [ "$(wc -w <<<"$SCRIPTS")" -ne 1 ] || SCRIPTS="$SCRIPTS $SCRIPTS"
        [ "$(wc -w <<<"$SCRIPTS")" -eq 2 ] || fail 'ab takes two SCRIPTS, or one and B="--tau 0.01"'
        ;;
    *) fail "there is no preset $1: choose simple, medium, hard, atari, noise or ab" ;;
    esac
    preset=$1
}

preset_flags() { # PRESET/SCRIPT: print its flags
    case $1 in
    simple/*td3*) echo --total-timesteps 45000 --learning-starts 1000 ;;
    simple/*ppo*) echo --total-timesteps 100000 ;;
    simple/*) echo --total-timesteps 20000 ;;
    medium/* | noise/*ppo*) echo --total-timesteps 1000000 ;;
    hard/*) echo --total-timesteps 3000000 ;;
    atari/*) echo --total-timesteps 10000000 ;;
    noise/*) echo --total-timesteps 100000 ;;
    esac
}

config_flags() { # SCRIPT ENV: print, quoted, what CONFIGS has for a run
    local script env file
    while read -r script env file; do
        script=${script##*/}
        script=${script%.py} # as in SCRIPTS, it may be a path
        # shellcheck disable=SC2254 # they are patterns
        case $1/$2 in $script/$env) printf -- '--config %q ' "$file" && return ;; esac
    done <<<"${CONFIGS-}"
}

list_runs() { # FLAGS: fill names, logs, commands (quoted, for eval) and states
    local env seed plain script path name log command side
    for env in $ENVS; do
        for seed in $SEEDS; do
            plain=${seed%[a-z]}
            while [[ $plain == 0?* ]]; do plain=${plain#0}; done # as seq -w writes them
            require_number SEEDS "$plain" 0
            side=''
            for script in $SCRIPTS; do # innermost, so that what is compared runs side by side
                for path in "$script" "$script.py" "$here/$script" "$here/$script.py" ''; do
                    [ ! -f "$path" ] || break
                done
                [ "$path" ] || fail "SCRIPTS: there is no $script: name a script, or its path"
                script=$(basename "$path" .py)
                name=$script/${env//[\/:]/_}/$seed
                # shellcheck disable=SC2046 # the flags of a preset are words
                command=$(printf '%q ' "$PYTHON" "$path" --env-id "$env" --seed "${seed%[a-z]}" \
                    --threads "$THREADS" --no-capture-video $(preset_flags "$preset/$script"))
                command+=" $(config_flags "$script" "$env")$(printf '%q ' --resume auto "$@")"
                if [ "$preset/$side" = ab/ ]; then
                    side=a
                    name=a-$name
                    command+=${A-}
                elif [ "$preset/$side" = ab/a ]; then
                    name=b-$name
                    command+=${B-}
                fi
                log=$OUT/logs/${name//\//__}.log
                command+=$(printf ' --run-dir %q >>%q 2>&1' "$OUT/$name" "$log")
                case " ${names[*]-} " in
                *" $name "*) fail "$name is there twice: name it once" ;;
                esac
                names+=("$name")
                logs+=("$log")
                commands+=("$command")
                states+=(unfinished)
            done
        done
    done
}

# --- training -------------------------------------------------------------------------------------
looks_finished() { # NUMBER: tell whether the summary says so; if a crash has cut it, it does not
    local summary=$OUT/${names[$1]}/summary.json
    grep -q '^ "status": "finished"' "$summary" 2>/dev/null && [ "$(tail -n 1 "$summary")" = "}" ]
}

ask_finished() { # let the script say of what looks finished whether it is, by what is asked now
    local number
    for ((number = 0; number < ${#names[@]}; number++)); do
        # a run that was refused, since it was in use, may have finished meanwhile
        [ "${states[number]}" != finished ] || continue
        if looks_finished "$number"; then
            echo "asking whether ${names[number]} is finished" >&2
            eval "${commands[number]}"
            note_state "$number" $?
        fi
    done
}

note_state() { # NUMBER STATUS: note what the exit status of its script says of a run
    states[$1]="failed ($2)"
    case $2 in
    0) if looks_finished "$1"; then states[$1]=finished; fi ;;
    2) states[$1]=refused ;;
    130 | 143) states[$1]=interrupted ;;
    esac
}

train() { # NUMBERS: train these runs, JOBS at a time
    local slot living=any
    queue=("$@") next=0 # of the runs to begin
    pids=() runs=()     # what each slot is busy with
    tries=()
    trap '' PIPE # whoever reads what this prints may be gone; its runs go on
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    while [ "$living" ]; do
        living=''
        for ((slot = 0; slot < JOBS; slot++)); do
            if [ "${pids[slot]-}" ] && ! kill -0 "${pids[slot]}" 2>/dev/null; then
                end_run "$slot"
            fi
            if [ -z "${pids[slot]-}$stopping" ] && [ "$next" -lt "${#queue[@]}" ]; then
                begin_run "$slot" "${queue[next]}"
            fi
            living=$living${pids[slot]-}
        done
        sleep 0.2 # bash 3.2 cannot wait for whichever ends first
    done 2>/dev/null # where bash itself tells of killed runs
}

begin_run() { # SLOT NUMBER
    # shellcheck disable=SC2206 # words
    local devices=(${GPUS-})
    [ "${#devices[@]}" = 0 ] || export CUDA_VISIBLE_DEVICES=${devices[$1 % ${#devices[@]}]}
    : >>"${logs[$2]}" # there before it is named
    echo "begun ${names[$2]}: its log is ${logs[$2]}"
    # It is deaf to Ctrl-C, of which stop tells it by SIGTERM: a second Ctrl-C would cut it short.
    { trap '' INT && eval "exec ${commands[$2]}"; } 2>>"${logs[$2]}" &
    pids[$1]=$!
    runs[$1]=$2
    [ -z "$stopping" ] || kill -TERM $!
    next=$((next + 1))
    tries[$2]=$((${tries[$2]-0} + 1))
}

end_run() { # SLOT: note how its run ended; if it failed, put it into the queue again
    local number=${runs[$1]}
    wait "${pids[$1]}"
    note_state "$number" $?
    pids[$1]=''
    echo "${states[number]} ${names[number]}"
    case ${states[number]} in
    failed* | refused) [ "${tries[number]}" -gt "$RETRIES" ] || queue+=("$number") ;;
    esac
}

# shellcheck disable=SC2317 # traps call it
stop() { # STATUS: begin no more runs; let the others save a checkpoint and end
    stopping=$1
    # shellcheck disable=SC2046 # several
    kill -TERM $(jobs -p) 2>/dev/null
}

submit() { # NUMBER of runs in $jobs: let an array job of Slurm train them
    # shellcheck disable=SC2086 # SBATCH_ARGS are words
    sbatch --job-name=benchmark --array="1-$1${JOBS:+%$JOBS}" --cpus-per-task="$THREADS" \
        --requeue --output="$OUT/logs/slurm-%A_%a.log" ${SBATCH_ARGS-} <<END
#!/usr/bin/env bash
trap : TERM # Slurm sends it to the run as well, which saves a checkpoint; wait for that
exec 3<<'COMMANDS'
$(cut -f 2 <<<"$jobs")
COMMANDS
command=\$(sed -n "\${SLURM_ARRAY_TASK_ID}p" <&3)
for ((tries = 0; tries <= $RETRIES; tries++)); do
    eval "\$command"
    status=\$?
    case \$status in 0 | 130 | 143) break ;; esac
done
exit \$status
END
}

last_line() { # NUMBER: print the last line of a log that says anything; of tyro's frame the first
    awk '/╭/ { frame = NR + 1 }
        /[0-9A-Za-z]/ && (!frame || NR == frame) { line = $0 }
        /╰/ { frame = 0 }
        END { gsub(/^│ *| *│ *$/, "", line); print line }' 2>/dev/null <"${logs[$1]}"
}

show_dead() { # RUN: let tools see that its process is gone, which else takes half an hour's silence
    local code='import os, sys, time; os.utime(sys.argv[1], (time.time() - 7200,) * 2)'
    [ -f "$1/summary.json" ] || "$PYTHON" -c "$code" "$1/metrics.jsonl" 2>/dev/null
}

conclude() { # say how each run ended and what it printed last; for a preset, what was reached; exit
    local number finished=0
    ask_finished # those of Slurm, or whose script a signal has ended in its last instant
    echo
    for ((number = 0; number < ${#names[@]}; number++)); do
        if [ "${states[number]}" = finished ]; then
            finished=$((finished + 1))
            echo "finished    ${names[number]}"
        else
            printf '%-11s %s: %s\n' "${states[number]}" "${names[number]}" "$(last_line "$number")"
            case ${states[number]} in failed*) show_dead "$OUT/${names[number]}" ;; esac
        fi
    done
    printf '%d of %d finished: ' "$finished" "${#names[@]}"
    printf '%q %q %q\n' "$PYTHON" "$here/tools/report.py" "$OUT"
    [ -z "$stopping" ] || exit "$stopping"
    if [ "$preset" = ab ] && [ -f "$here/tools/compare.py" ]; then
        "$PYTHON" "$here/tools/compare.py" "$OUT/${names[0]%%/*}" "$OUT/${names[1]%%/*}"
    elif [ "$preset" != none ]; then
        "$PYTHON" "$here/tools/report.py" "$OUT" --plots "$OUT/plots"
    fi
    [ "$finished" = "${#names[@]}" ]
    exit
}

# --- main -----------------------------------------------------------------------------------------
explain() { # print the comment at the top of this file
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
}

check() { # FLAGS: refuse what cannot work, and fill in what is not set
    local side flag cores words=() of_sides=()
    for side in "${A-}" "${B-}"; do
        case $side in
        *$'\n'*) fail "A and B must be one line each" ;;
        *\\) fail "A and B must not end in a backslash" ;;
        esac
        (eval "words=($side)") 2>/dev/null || # in a shell of its own: a mistake may end it
            fail "A and B must be flags, quoted as in a shell: $side"
        eval "words=($side)"
        of_sides+=(${words[@]+"${words[@]}"})
    done
    for flag in "$@" ${of_sides[@]+"${of_sides[@]}"}; do
        case ${flag%%=*} in
        -h | --help) explain ;;
        --seed | --env[-_]id | --run[-_]dir | --resume | --evaluate) # tyro takes both spellings
            fail "$flag: set SEEDS, ENVS and OUT instead"
            ;;
        esac
    done
    : "${SCRIPTS:=}" "${ENVS:=}" "${SEEDS:=101 102 103}" "${OUT:=runs/sweep}" "${PYTHON:=python}"
    : "${RETRIES:=1}" "${THREADS:=1}" "${ENGINE:=local}"
    case $ENGINE in
    local | print | slurm) ;;
    *) fail "there is no ENGINE=$ENGINE: choose local, slurm or print" ;;
    esac
    require_number RETRIES "$RETRIES" 0
    require_number THREADS "$THREADS" 1
    [ "$preset" = ab ] || [ -z "${A-}${B-}" ] || fail "A and B are for ab: ./benchmark.sh ab"
    [ "$ENGINE" = local ] || [ -z "${GPUS-}" ] || fail "GPUS is for ENGINE=local: unset it"
    [ "$ENGINE" != slurm ] || command -v sbatch >/dev/null ||
        fail "there is no sbatch here: go to a cluster, or try ENGINE=print"
    if [ "$ENGINE" != slurm ]; then
        # OpenMP's variables would change what nproc says
        cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null ||
            getconf _NPROCESSORS_ONLN)
        [ -z "${GPUS-}" ] || : "${JOBS:=$(($(wc -w <<<"$GPUS")))}"
        : "${JOBS:=$((cores > THREADS ? cores / THREADS : 1))}"
    fi
    require_number JOBS "${JOBS:-1}" 1
    command -v "$PYTHON" >/dev/null || fail "PYTHON=\"$PYTHON\" is not there: try PYTHON=python3"
}

main() {
    local number todo=() status=0
    preset=none stopping='' jobs='' names=() logs=() states=() commands=()
    case ${1-} in
    -* | '') ;;
    *)
        choose "$1"
        shift
        ;;
    esac
    [ "$preset$*${SCRIPTS-}${ENVS-}" != none ] || explain
    check "$@"
    list_runs "$@"
    [ "${#names[@]}" -gt 0 ] || fail 'nothing to do: set SCRIPTS="sac_continuous" ENVS="Hopper-v4"'
    mkdir -p "$OUT/logs" 2>/dev/null || fail "OUT=$OUT cannot be written to: name another"

    ask_finished
    for ((number = 0; number < ${#names[@]}; number++)); do
        case ${states[number]} in
        finished) ;;
        unfinished)
            todo+=("$number")
            jobs+=${names[number]}$'\t'${commands[number]}$'\n'
            ;;
        refused)
            fail "name another OUT; of ${names[number]} its script says: $(last_line "$number")"
            ;;
        *) fail "${names[number]}: its script fails: $(last_line "$number")" ;;
        esac
    done
    { printf '%s' "$jobs" >"$OUT/jobs.tsv"; } 2>/dev/null ||
        fail "OUT=$OUT cannot be written to: name another"
    echo "${#todo[@]} of ${#names[@]} runs to do; what they print is in $OUT/logs" >&2
    case $ENGINE in
    print) printf '%s' "$jobs" ;;
    local)
        train ${todo[@]+"${todo[@]}"} # to bash 3.2 an empty list is not set
        conclude
        ;;
    slurm)
        [ -z "$jobs" ] || submit "${#todo[@]}" || status=$? # with -W that of the runs
        [ "${#todo[@]}" -gt 0 ] || conclude
        case " ${SBATCH_ARGS-} " in *" -W "* | *" --wait "*) conclude ;; esac
        [ "$status" = 0 ] || fail "sbatch refuses: it says why above"
        ;;
    esac
}

main "$@"; exit # in one line, as bash reads this file while it goes on
