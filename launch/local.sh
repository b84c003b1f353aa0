#!/usr/bin/env bash
# Run a command as several processes on this machine, joined through jax.distributed; stops all when one fails.
#
#   launch/local.sh -- python -m ssad_jax.main --config=configs/smoke.py
#   PROCESSES=4 DEVICES_PER_PROCESS=1 DRY_RUN=1 launch/local.sh -- python -m ssad_jax.main --config=configs/smoke.py
#
# Exit code: the first that is neither 0 nor 75, else 75 if a process was stopped by a signal after saving, else 0.
set -euo pipefail

PROCESSES="${PROCESSES:-2}"
DEVICES_PER_PROCESS="${DEVICES_PER_PROCESS:-1}" # fake CPU devices; ignored where JAX_PLATFORMS is not cpu
PORT="${PORT:-}"                                # of the coordinator; empty: a free one
LOG_DIR="${LOG_DIR:-}"                          # output of processes 1, 2, ...; empty: on this terminal
DRY_RUN="${DRY_RUN:-0}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

[[ "${1:-}" == "--" ]] && shift
if [[ $# -eq 0 ]]; then
    echo "error: no command; usage: launch/local.sh -- python -m ssad_jax.main --config=configs/smoke.py" >&2
    exit 2
fi
if [[ -z "$PORT" ]]; then
    PORT="$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')"
fi
if [[ "$JAX_PLATFORMS" == "cpu" ]]; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
fi
export SSAD_COORDINATOR="localhost:$PORT" SSAD_NUM_PROCESSES="$PROCESSES"

if [[ "$DRY_RUN" == "1" ]]; then
    for ((i = 0; i < PROCESSES; i++)); do
        echo "SSAD_COORDINATOR=$SSAD_COORDINATOR SSAD_NUM_PROCESSES=$PROCESSES SSAD_PROCESS_ID=$i" \
            "JAX_PLATFORMS=$JAX_PLATFORMS XLA_FLAGS='${XLA_FLAGS:-}' $(printf '%q ' "$@")"
    done
    exit 0
fi

[[ -n "$LOG_DIR" ]] && mkdir -p "$LOG_DIR"
pids=()
signal_all() { kill -s "$1" "${pids[@]}" 2>/dev/null || true; }
trap 'signal_all TERM' TERM INT
trap 'signal_all USR1' USR1
for ((i = 0; i < PROCESSES; i++)); do
    if [[ -n "$LOG_DIR" && $i -gt 0 ]]; then
        SSAD_PROCESS_ID=$i "$@" >"$LOG_DIR/process-$i.log" 2>&1 &
    else
        SSAD_PROCESS_ID=$i "$@" &
    fi
    pids+=("$!")
done

code=0
waiting=("${pids[@]}")
while [[ ${#waiting[@]} -gt 0 ]]; do
    left=()
    for pid in "${waiting[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then
            left+=("$pid")
            continue
        fi
        result=0
        wait "$pid" || result=$?
        if [[ $result -eq 75 && $code -eq 0 ]]; then
            code=75
        elif [[ $result -ne 0 && $result -ne 75 ]]; then
            [[ $code -eq 0 || $code -eq 75 ]] && code=$result
            echo "launch/local.sh: a process of this run (pid $pid) has ended with $result; the others are stopped" >&2
            signal_all TERM # the others would wait for it without end
            stop_by="${stop_by:-$((SECONDS + 10))}"
        fi
    done
    if [[ -n "${stop_by:-}" && $SECONDS -ge $stop_by ]]; then
        signal_all KILL
    fi
    waiting=(${left[@]+"${left[@]}"})
    [[ ${#waiting[@]} -gt 0 ]] && { sleep 0.2 || true; }
done
exit "$code"
