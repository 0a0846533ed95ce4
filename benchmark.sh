#!/usr/bin/env bash
# Train scripts x environments x seeds: on the cores of this machine, on its CUDA devices, or on a
# Slurm cluster.
#
#     ./benchmark.sh simple
#     ./benchmark.sh medium --total-timesteps 200000
#     SCRIPTS="sac_continuous mine/my_sac.py" ENVS="Hopper-v4 Ant-v4" SEEDS="1 2 3" ./benchmark.sh
#
# simple    InvertedPendulum-v4, Pendulum-v1: SAC 20,000 steps, TD3 45,000, PPO 100,000
# medium    Hopper-v4, HalfCheetah-v4, Walker2d-v4: SAC, TD3 and PPO, 1,000,000 steps
# hard      Ant-v4, Humanoid-v4: the same, 3,000,000 steps
# atari     Pong and Breakout: DQN, 10,000,000 steps, 7 GB of memory a run
# noise     Hopper-v4: PPO, one seed three times and ten seeds once: what is chance, what is seed
#
# All further flags go to the scripts. These variables set the rest, and override a preset:
#
# SCRIPTS   names, with or without .py, or paths of your own
# ENVS      ids of environments
# SEEDS     seeds; default "101 102 103", as 1 to 100 are for tuning. A letter behind one repeats it
#           in a folder of its own: "101 101b"
# OUT       the folder of the sweep; default runs/sweep. Runs are in $OUT/<script>/<env>/<seed>
# JOBS      runs at a time; default one for every THREADS cores, or for every device in GPUS
# THREADS   CPU threads of a run; default 1
# RETRIES   how often a run that fails is started anew; default 1
# GPUS      CUDA devices to share out, such as "0 1"; with JOBS=4 each gets two runs at a time
# PYTHON    the interpreter; default python
# ENGINE    local, the default; slurm: one array job, of JOBS tasks at a time, all if JOBS is not
#           set; print: no run. All write $OUT/jobs.tsv first, a line "name<TAB>command" for what
#           is to do; commands from there take no lock:
#           cut -f 2 runs/sweep/jobs.tsv | parallel
# SBATCH_ARGS   more for sbatch, such as "-p gpu -G 1"; with -W it waits for the end
#
# It may be stopped by Ctrl-C or SIGTERM, even by kill -9, and called again: what is finished stays,
# what is running goes on and is not started twice, all else begins anew; the old folder is kept, as
# .<seed>-unfinished-<n>. What a run prints is in log.txt in its folder, until its end in .<seed>.log
# beside it. The exit status is 0 if all is finished, 1 if anything is missing, 2 if something is
# wrong with the command, 130 or 143 after Ctrl-C or SIGTERM.

set -uf
here=$(dirname "$0")
TAB=$'\t'

fail() {
    echo "error: $*" >&2
    exit 2
}

number() { # NAME VALUE LEAST: refuse what is no number or too small
    case $2 in '' | *[!0-9]* | ??????????*) fail "$1=\"$2\" is no number: try $1=$3" ;; esac
    [ "$2" -ge "$3" ] || fail "$1=$2 is too small: try $1=$3"
}

choose() { # PRESET: set what it stands for, where nothing else is set
    preset=$1
    local continuous="sac_continuous td3_continuous ppo_continuous"
    case $1 in
    simple) : "${SCRIPTS:=$continuous}" "${ENVS:=InvertedPendulum-v4 Pendulum-v1}" ;;
    medium) : "${SCRIPTS:=$continuous}" "${ENVS:=Hopper-v4 HalfCheetah-v4 Walker2d-v4}" ;;
    hard) : "${SCRIPTS:=$continuous}" "${ENVS:=Ant-v4 Humanoid-v4}" ;;
    atari) : "${SCRIPTS:=dqn_atari}" "${ENVS:=PongNoFrameskip-v4 BreakoutNoFrameskip-v4}" ;;
    noise) : "${SCRIPTS:=ppo_continuous}" "${ENVS:=Hopper-v4}" "${SEEDS:=101 101b 101c 102 103 104 105 106 107 108 109 110}" ;;
    *) fail "there is no preset $1: choose simple, medium, hard, atari or noise" ;;
    esac
}

settings() { # PRESET/SCRIPT: print its flags
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

list() { # FLAGS: print a line "name<TAB>command" for every run
    local script path stem env seed name
    for script in $SCRIPTS; do
        for path in "$script" "$script.py" "$here/$script" "$here/$script.py" ''; do
            [ ! -f "$path" ] || break
        done
        [ "$path" ] || fail "SCRIPTS: there is no $script: name one of the scripts, or a path"
        stem=$(basename "$path" .py)
        for env in $ENVS; do
            for seed in $SEEDS; do
                number SEEDS "${seed%[a-z]}" 0
                name=$stem/${env//[\/:]/_}/$seed
                printf '%s\t%q' "$name" "$PYTHON"
                # shellcheck disable=SC2046 # the settings are words
                printf ' %q' "$path" --env-id "$env" --seed "${seed%[a-z]}" --threads "$THREADS" \
                    --no-capture-video $(settings "$preset/$stem") "$@" --run-dir "$OUT/$name"
                echo
            done
        done
    done
}

compare=' # refuse to pass off a finished run as one of other flags, or of a script that has changed
import json, shlex, sys
from pathlib import Path
for line in sys.stdin:
    _, script, *flags, _, folder = shlex.split(line.split("\t")[1])
    summary, source = Path(folder, "summary.json"), Path(folder, "script.py")
    made = json.loads(summary.read_text("utf-8")) if summary.exists() else {"status": "none"}
    same = made.get("command", [])[1:-2] == flags
    same &= not source.exists() or source.read_bytes() == Path(script).read_bytes()
    if made["status"] == "finished" and not same:
        sys.exit(f"error: {folder} was made by other flags or another version of the script: "
                 "name another OUT, or move that folder away")
'

finished() { # NAME
    grep -q '"status": "finished"' "$OUT/$1/summary.json" 2>/dev/null
}

settled() { # NAME: finished, and what it printed is in its folder
    finished "$1" && [ ! -e "$OUT/${1%/*}/.${1##*/}.log" ]
}

cost() { # print how many seconds the runs on stdin take, by the steps/s of runs side by side
    awk -F / 'NF {
        rate = $1 ~ /ppo/ ? 1800 : $1 ~ /dqn/ ? 40 : 80
        steps = $1 ~ /dqn/ ? 1e7 : 1e6
        if (match($0, /.*--total-timesteps[ =]/)) steps = substr($0, RLENGTH + 1)
        seconds += 10 + steps / rate
    } END { printf "%.0f", seconds }'
}

span() { # SECONDS: print hours and minutes
    printf '%d h %02d min' $((($1 + 59) / 3600)) $((($1 + 59) / 60 % 60))
}

lock='
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(75)
except OSError as error:
    sys.exit(f"error: no lock in OUT ({error}): name another OUT, on a file system that has locks")
'

run() { # LINE: train until finished, and exit with 0; with 75 if in use, 130 if stopped, 1 if not
    local name=${1%%"$TAB"*} command=${1#*"$TAB"} child='' stopped='' code=0 try old
    local folder=$OUT/$name
    local beside=${folder%/*}/.${folder##*/}
    trap 'trap "" INT TERM HUP; stopped=1; [ -z "$child" ] || $pass "$child"' INT TERM HUP
    mkdir -p "${folder%/*}"
    exec 9>"$beside.lock" # the training process inherits it, and holds it if this one is killed
    "$PYTHON" -c "$lock" || exit
    for ((try = 0; ; try++)); do
        [ ! -e "$beside.log" ] || { mkdir -p "$folder" && mv "$beside.log" "$folder/log.txt"; }
        ! finished "$name" || exit 0
        [ -z "$stopped" ] || exit 130
        [ "$try" -le "$RETRIES" ] && [ "$code" != 2 ] || exit 1 # 2: refused, and would be again
        for ((old = 1; ; old++)); do [ -e "$beside-unfinished-$old" ] || break; done
        [ ! -e "$folder" ] || mv "$folder" "$beside-unfinished-$old"
        # Deaf to Ctrl-C: one SIGTERM from here is enough, a second signal would cost the summary.
        { trap '' INT HUP && eval "exec $command"; } >"$beside.log" 2>&1 &
        child=$!
        [ -z "$stopped" ] || $pass "$child"
        until wait "$child" 2>/dev/null; code=$?; ! kill -0 "$child" 2>/dev/null; do :; done
        child=''
        [ "$code" -le 130 ] || [ "$stopped" ] || echo "killed: exit status $code" >>"$beside.log"
    done
}

report() { # CODE LINE SECONDS: say how a run ended, and how long the others take
    local state=failed seconds
    seconds=$(cost <<<"$2")
    ended=$((ended + 1)) left=$((left - seconds))
    case $1 in
    0) state=ok spent=$((spent + seconds)) ;;
    75) state="in use" ;;
    esac
    seconds=$(((spent ? left * SECONDS : left) / (spent ? spent : JOBS)))
    echo "[$ended/$all] $state ${2%%"$TAB"*}, $3 s; about $(span $seconds) left"
}

train() { # all lines of $todo, JOBS at a time
    # shellcheck disable=SC2206 # GPUS are words
    local slot line devices=(${GPUS-}) pids=() lines=() begun=()
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    exec 3<<<"$todo"
    while [ "$ended" -lt "$all" ]; do
        for ((slot = 0; slot < JOBS; slot++)); do
            if [ "${pids[slot]-}" ] && ! kill -0 "${pids[slot]}" 2>/dev/null; then
                wait "${pids[slot]}"
                report $? "${lines[slot]}" $((SECONDS - begun[slot]))
                pids[slot]=''
            fi
            if [ -z "${pids[slot]-}" ] && IFS= read -r line <&3; then
                [ -z "${GPUS-}" ] || export CUDA_VISIBLE_DEVICES=${devices[slot % ${#devices[@]}]}
                lines[slot]=$line begun[slot]=$SECONDS
                run "$line" 3<&- &
                pids[slot]=$!
            fi
        done
        sleep 0.2 # bash 3.2 cannot wait for whichever ends first
    done
}

# shellcheck disable=SC2317 # traps call it
stop() { # CODE: wait for the runs to write their summaries, and exit
    trap '' INT TERM HUP
    # shellcheck disable=SC2046 # several
    kill -TERM $(jobs -p) 2>/dev/null
    wait
    table
    exit "$1"
}

table() { # say what is finished and what is not, and fail if anything is missing
    local line name beside last tries missing=0
    while IFS= read -r line; do
        name=${line%%"$TAB"*}
        beside=$OUT/${name%/*}/.${name##*/}
        tries=$(find "${beside%/*}" -name "${beside##*/}-unfinished-*" 2>/dev/null | grep -c .)
        [ "$tries" = 0 ] && tries='' || tries=" (after $tries unfinished)"
        finished "$name" && echo "finished  $name$tries" && continue
        missing=$((missing + 1))
        last=$(cat "$OUT/$name/log.txt" "$beside.log" 2>/dev/null | grep '[[:alnum:]]' | tail -n 1)
        echo "missing   $name: ${last:-no output}$tries"
    done <<<"$runs"
    echo "$((all - missing)) of $all finished: $PYTHON $here/tools/report.py '$OUT/*/*/*'"
    [ "$missing" = 0 ]
}

submit() { # all lines of $todo as one array job, whose tasks call this file again
    # shellcheck disable=SC2086 # SBATCH_ARGS are words
    sbatch --job-name=benchmark --array="1-$((all - ended))%$JOBS" --cpus-per-task="$THREADS" \
        --requeue --output="$OUT/slurm-%A_%a.log" ${SBATCH_ARGS-} <<END
#!/usr/bin/env bash
exec env$(printf ' %q' OUT="$OUT" RETRIES="$RETRIES" PYTHON="$PYTHON" OMP_NUM_THREADS="$THREADS") \\
    bash$(printf ' %q' "$(cd "$here" && pwd)/${0##*/}") --job "\$SLURM_ARRAY_TASK_ID" <<'LINES'
$todo
LINES
END
}

main() {
    local flag cores
    preset=none pass="kill -TERM"
    case ${1-} in
    --job) pass=: && run "$(sed -n "$2p")" ;; # Slurm itself signals every process of a task
    -* | '') ;;
    *) choose "$1" && shift ;;
    esac
    case ${1-${SCRIPTS-}${ENVS-}} in
    -h | --help | '') sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
    esac
    : "${SCRIPTS:=}" "${ENVS:=}" "${SEEDS:=101 102 103}" "${OUT:=runs/sweep}" "${PYTHON:=python}"
    : "${RETRIES:=1}" "${THREADS:=1}" "${ENGINE:=local}"
    case $ENGINE in
    local | print) ;;
    slurm) command -v sbatch >/dev/null || fail "ENGINE=slurm needs sbatch: try ENGINE=local" ;;
    *) fail "there is no ENGINE=$ENGINE: choose local, slurm or print" ;;
    esac
    number RETRIES "$RETRIES" 0
    number THREADS "$THREADS" 1
    number JOBS "${JOBS:-1}" 1
    command -v "$PYTHON" >/dev/null || fail "PYTHON=\"$PYTHON\" is not there: try PYTHON=python3"
    case ${GPUS:-none} in *[![:space:]]*) ;; *) fail 'GPUS is blank: try GPUS="0 1"' ;; esac
    for flag; do
        case $flag in
        --seed* | --env-id* | --run-dir*) fail "$flag: set SEEDS, ENVS and OUT instead" ;;
        esac
    done
    runs=$(list "$@") || exit 2
    [ "$runs" ] || fail 'nothing to do: set SCRIPTS="sac_continuous" ENVS="Hopper-v4", or name a preset'
    flag=$(cut -f 1 <<<"$runs" | sort | uniq -d | head -n 1)
    [ -z "$flag" ] || fail "$flag is there twice: name each script, environment and seed once"
    "$PYTHON" -c "$compare" <<<"$runs" || exit 2
    todo=$(while IFS= read -r line; do settled "${line%%"$TAB"*}" || echo "$line"; done <<<"$runs")
    # In one instant, as another sweep may be reading it.
    { mkdir -p "$OUT" 2>/dev/null && echo "$todo" >"$OUT/.jobs.$$" && mv "$OUT/.jobs.$$" "$OUT/jobs.tsv"; } ||
        fail "OUT=$OUT can not be written to: name another"
    all=$(grep -c . <<<"$runs") open=$(grep -c . <<<"$todo")
    ended=$((all - open)) left=$(cost <<<"$todo") spent=0
    if [ -z "${JOBS-}" ] && [ "$ENGINE" = slurm ]; then
        JOBS=$((open ? open : 1))
    elif [ -z "${JOBS-}" ]; then
        cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
        JOBS=$(($(wc -w <<<"${GPUS-}")))
        [ "$JOBS" != 0 ] || JOBS=$((cores > THREADS ? cores / THREADS : 1))
    fi
    [ "$JOBS" -le "$open" ] || JOBS=$((open ? open : 1))
    echo "$open of $all runs to do, $JOBS at a time: about $(span $((left / JOBS)))" >&2
    export OMP_NUM_THREADS=$THREADS
    case $ENGINE in
    print) [ -z "$todo" ] || echo "$todo" ;;
    local)
        train
        table
        code=$?
        [ "$preset" = none ] || "$PYTHON" "$here/tools/report.py" "$OUT/*/*/*" --plots "$OUT/plots"
        exit $code
        ;;
    slurm)
        [ "$open" = 0 ] || submit || fail "sbatch refused: see its message, and SBATCH_ARGS"
        case " ${SBATCH_ARGS-} $open " in *" 0 " | *" -W "* | *" --wait "*) table ;; esac
        ;;
    esac
}

main "$@"; exit
