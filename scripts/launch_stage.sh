#!/usr/bin/env bash
# Usage: bash scripts/launch_stage.sh NUMBER [--config FILE] [key=value ...]
#
# Runs python -m scripts.train, by itself or under a launcher. Variables:
#   PROCESSES=n        processes on each machine; by default one for every GPU
#   LAUNCHER=NAME      torchrun (default) or deepspeed, where there are several processes or machines
#   HOSTFILE=FILE      several machines, one `NAME slots=n` a line; torchrun: the same command on each of them,
#                      deepspeed: once, on the first, which reaches the others by ssh
#   MASTER_PORT=n      port on the first machine (29500)
#   PYTHON=FILE        interpreter (.venv/bin/python)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

number="$1"
shift
case " $* " in
    *" --config"* | *" --help "* | *" -h "*) arguments=("$@") ;;
    *) arguments=(--config "scripts/configs/vicuna_7b/stage$number.yaml" "$@") ;;
esac

fail() {
    echo "error: $*" >&2
    exit 1
}

python="${PYTHON:-.venv/bin/python}"
launcher="${LAUNCHER:-torchrun}"
hostfile="${HOSTFILE:-}"
port="${MASTER_PORT:-29500}"
[ -x "$(command -v "$python")" ] || fail "no $python; run bash scripts/test.sh once, or set PYTHON"
[ -z "$hostfile" ] || [ -f "$hostfile" ] || fail "no hostfile $hostfile; write one line 'NAME slots=n' for every machine"
gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
processes="${PROCESSES:-$gpus}"
[ "$processes" -gt 0 ] || processes=1
hosts="$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "${hostfile:-/dev/null}" | awk '{ print $1 }')"

case "$launcher" in
    torchrun)
        if [ -n "$hosts" ]; then
            exec "$python" -m torch.distributed.run --nnodes "$(wc -l <<<"$hosts")" --nproc_per_node "$processes" \
                --rdzv_backend c10d --rdzv_endpoint "$(head -n 1 <<<"$hosts"):$port" \
                -m scripts.train "${arguments[@]}"
        elif [ "$processes" -gt 1 ]; then
            exec "$python" -m torch.distributed.run --nproc_per_node "$processes" --master_port "$port" \
                -m scripts.train "${arguments[@]}"
        fi
        exec "$python" -m scripts.train "${arguments[@]}"
        ;;
    deepspeed)
        [ "$gpus" -gt 0 ] || export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
        where=(--num_gpus "$processes")
        [ -z "$hosts" ] || where=(--hostfile "$hostfile")
        exec "$python" -m deepspeed.launcher.runner "${where[@]}" --master_port "$port" --no_local_rank \
            --module scripts.train "${arguments[@]}"
        ;;
    *) fail "unknown LAUNCHER $launcher; take torchrun or deepspeed" ;;
esac
