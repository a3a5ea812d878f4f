#!/usr/bin/env bash
# Usage: bash scripts/launch_stage.sh NUMBER [--config FILE] [key=value ...]
#
# Runs python -m scripts.train on one process, or under torchrun where there are several GPUs (PROCESSES=n decides).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

number="$1"
shift
case " $* " in
    *" --config"* | *" --help "* | *" -h "*) arguments=("$@") ;;
    *) arguments=(--config "scripts/configs/vicuna_7b/stage$number.yaml" "$@") ;;
esac

python="${PYTHON:-.venv/bin/python}"
[ -x "$(command -v "$python")" ] || { echo "error: no $python; run bash scripts/test.sh once, or set PYTHON" >&2; exit 1; }
processes="${PROCESSES:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)}"
if [ "$processes" -gt 1 ]; then
    exec "$python" -m torch.distributed.run --nproc_per_node "$processes" -m scripts.train "${arguments[@]}"
fi
exec "$python" -m scripts.train "${arguments[@]}"
