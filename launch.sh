#!/usr/bin/env bash
# Sets up the environment where there is none, then trains:  ./launch.sh [train.py's arguments]
#                                        or runs the tests:  ./launch.sh test [pytest's arguments]
# NPROC, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT and MAX_RESTARTS steer torchrun; LOCKSTEP_VENV
# says where the environment is made. Ends with 0 (finished), 2 (bad input), 75 (stopped and saved)
# or 1 (anything else).
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

fail() { printf 'error: %s\n' "$1" >&2; exit 2; }

missing() { # the lines of the requirement files $2... that the Python $1 does not satisfy
    "$1" -P - "${@:2}" <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, version
def release(text):
    return [int(part) for part in re.findall(r"\d+", text)[:3]]
for line in (line.strip() for path in sys.argv[1:] for line in open(path)):
    name, _, least = line.partition(">=")
    try:
        if release(version(name)) < release(least):
            print(line)
    except PackageNotFoundError:
        print(line)
PY
}

make_environment() { # in the folder $1, unless it was made from the present requirements
    local mark=$1/.lockstep key options=() pins=("$root/constraints.txt")
    key=$({ python3 -VV && cat -- "$root"/*requirements*.txt "${pins[@]}"; } | sha256sum)
    [[ ! -e $mark || $(<"$mark") != "$key" ]] || return 0
    [[ -e $mark || ! -e $1 ]] || fail "$1 was not made by launch.sh: activate it, or remove it"
    echo "setting up the environment in $1, once" >&2
    rm -rf -- "$1"
    mkdir -- "$1"
    touch -- "$mark" # even half made, it is known as ours
    # Images for clusters have a torch built for their hardware: keep it, and install around it.
    if ! missing python3 "$root/requirements.txt" | grep '^torch>=' >/dev/null; then
        options=(--system-site-packages) pins=("$1/pins.txt")
        python3 -P -c 'from importlib import metadata as m; print("torch==" + m.version("torch"))' \
            >"${pins[@]}"
    fi
    python3 -m venv "${options[@]}" -- "$1"
    "$1/bin/python" -m pip install -c "${pins[@]}" -r "$root/requirements.txt" \
        -r "$root/requirements-dev.txt" >&2
    printf '%s\n' "$key" >"$mark"
}

needs=("$root/requirements.txt")
[[ ${1-} != test ]] || needs+=("$root/requirements-dev.txt")
python=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}/bin/python
if [[ $python != /bin/python ]]; then
    lacks=$(missing "$python" "${needs[@]}") || fail "$python, of the active environment, fails"
    [[ -z $lacks ]] || fail "the active environment lacks ${lacks//$'\n'/, }
install: $(printf '%q ' "$python" -m pip install "${needs[@]/#/--requirement=}")
or deactivate it: launch.sh then makes an environment of its own"
else
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail 'no python3 >= 3.11'
    VIRTUAL_ENV=${LOCKSTEP_VENV:-$root/.venv}
    mkdir -p -- "$(dirname -- "$VIRTUAL_ENV")"
    (flock 9 && make_environment "$VIRTUAL_ENV") 9>"$VIRTUAL_ENV.lock"
    VIRTUAL_ENV=$(cd -- "$VIRTUAL_ENV" && pwd -P)
    export VIRTUAL_ENV PATH=$VIRTUAL_ENV/bin:$PATH
    python=$VIRTUAL_ENV/bin/python
fi

if [[ ${1-} == test ]]; then
    cd -- "$root" && exec "$python" -m pytest "${@:2}"
fi

# What only starts ends without a word about where in Python a Ctrl-C hit it.
unstarted() { echo 'stopped before the first step' >&2; exit 75; }
trap unstarted INT

# Bad arguments are found here, before any process pays for importing torch.
ours=(env "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m)
for argument; do
    [[ $argument != -h && $argument != --help ]] || exec "${ours[@]}" configs "$@"
done
(trap '' INT && exec "${ours[@]}" configs "$@")
for argument; do # one process, which plays one rank of a job: there is nothing to launch
    [[ $argument != --rehearse && $argument != --rehearse=* ]] || exec "$python" "$root/train.py" "$@"
done

for name in NPROC NODE_RANK MASTER_PORT MAX_RESTARTS; do
    [[ ${!name:-1} =~ ^(0|[1-9][0-9]{0,4})$ ]] || fail "$name='${!name}' is no whole number"
done
[[ ${NPROC:-1} != 0 ]] || fail 'NPROC is at least 1'
if [[ ! ${NNODES:=1} =~ ^[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?$ ]] || ((${NNODES%:*} > ${NNODES#*:})); then
    fail "NNODES='$NNODES' is neither a number of hosts, from 1, nor a range of them such as 1:4"
fi
if [[ -z ${NPROC:-} ]]; then
    NPROC=2
    if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [[ -e /dev/kfd || -e /dev/dxg ]]; then
        gpus=$(trap '' INT && "$python" -P -c 'import torch; print(torch.cuda.device_count())')
        [[ $gpus == 0 ]] || NPROC=$gpus
    fi
fi
if [[ $NNODES == 1 ]]; then # nothing of a job on one host goes over the network
    NODE_RANK=0 MASTER_ADDR=127.0.0.1
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
else
    [[ -n ${NODE_RANK:-} && -n ${MASTER_ADDR:-} ]] || fail 'NNODES needs NODE_RANK and MASTER_ADDR'
    "$python" -P - "$MASTER_ADDR" <<'PY'
import ipaddress, socket, sys
try:
    address = ipaddress.ip_address(socket.gethostbyname(sys.argv[1]))
    if address.is_global:
        print(f"warning: MASTER_ADDR={sys.argv[1]} is public: whoever reaches the job's ports owns it"
              " (docs/cluster.md)", file=sys.stderr)
except OSError:
    pass # torchrun says it
PY
    ((NODE_RANK < ${NNODES#*:})) || fail "NODE_RANK=$NODE_RANK is not below NNODES=$NNODES"
    MASTER_PORT=${MASTER_PORT:-29500}
fi
if [[ $NODE_RANK == 0 ]]; then
    MASTER_PORT=$(trap '' INT && "$python" -P - "${MASTER_PORT:-0}" <<'PY'
import random, socket, sys
# Below the range that outgoing connections use, so that it is still free when torchrun listens.
given = int(sys.argv[1])
for port in [given] if given else random.sample(range(20000, 32768), 100):
    try:
        socket.create_server(("", port)).close()
        break
    except (OSError, OverflowError):
        continue
else:
    sys.exit(f"error: MASTER_PORT={port} is taken or not allowed; unset it to get a free one")
print(port)
PY
    ) || exit 2
fi
# Hosts that come and go: torchrun counts one that is lost as a failure. What fails again and again
# without progress is ended by train.py, whatever the number.
if [[ $NNODES == *:* ]]; then
    meeting=(--rdzv-backend=elastic --rdzv-id=lockstep --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"
        --rdzv-conf="host=$NODE_RANK,processes=$NPROC" --max-restarts="${MAX_RESTARTS:-1000}")
else
    meeting=(--rdzv-backend=static --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT"
        --node-rank="$NODE_RANK" --max-restarts="${MAX_RESTARTS:-0}")
fi
threads=$(($(nproc) / NPROC))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
unset "${!PET_@}" # torchrun would take flags from them
# How long torchrun lets a stopped run save. One that hangs is ended by its own watch before.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

LOCKSTEP_EXIT=$(mktemp)
export LOCKSTEP_EXIT
trap 'rm -f -- "$LOCKSTEP_EXIT"' EXIT
set -m # a process group of its own: a Ctrl-C reaches torchrun once, through the trap below
# Who warns every process of a job by SIGUSR1 (Slurm can) must not end one that is only starting.
(
    trap '' INT USR1
    exec "${ours[@]}" ddp.launcher --nnodes="$NNODES" --nproc-per-node="$NPROC" "${meeting[@]}" \
        "$root/train.py" "$@"
) </dev/null &
torchrun=$! waiting=yes
signals=(HUP INT QUIT TERM USR1) # the first starts the save; torchrun would leave at a second
stopped=''
# shellcheck disable=SC2317,SC2329 # the traps call it
stop() { # by the signals $@, of which a torchrun that listens takes the first
    trap '' "${signals[@]}"
    stopped=yes waiting=yes
    for signal; do kill -"$signal" "$torchrun" || :; done
}
trap 'stop TERM' "${signals[@]}"
trap 'stop INT TERM' INT # one that is only starting hears of TERM alone
while [[ $waiting ]]; do
    waiting='' code=0
    wait "$torchrun" 2>/dev/null || code=$? # bash would tell that it was terminated
done
# A launcher that has begun handles the signal, and tells whether its ranks had.
[[ $code != 143 || ! $stopped ]] || unstarted
# torchrun knows 0 and 1 only; rank 0 left what it ended with, and why.
{ read -r said; IFS= read -r reason; } <"$LOCKSTEP_EXIT" || true
[[ ! ${said:-0} =~ ^[1-9][0-9]{0,2}$ ]] || code=$said
# Bad input, and a stop on its own host, were told by rank 0, as the last thing anybody said.
[[ $code == 0 || $code == 2 || ($code == 75 && $NODE_RANK == 0) || -z ${reason:-} ]] ||
    printf '%s\n' "$reason" >&2
exit "$code"
