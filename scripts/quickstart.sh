#!/usr/bin/env bash
# Usage: bash scripts/quickstart.sh [arguments of python -m scripts.quickstart]
#
# From a fresh clone: makes .venv, installs what is needed, and goes from nothing to a trained tiny model and its report.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

cd "$root"
case "${1:-}" in -h | --help)
    interpreter="$(find_python)" || fail "no Python 3.$oldest_python to 3.$newest_python; set PYTHON"
    exec "$interpreter" -m scripts.quickstart --help
    ;;
esac

prepare_environment
stay_offline
command -v java >/dev/null || say "no Java runtime: the evaluation leaves METEOR out (sudo apt-get install default-jre-headless)"

exec "$python" -m scripts.quickstart "$@"
