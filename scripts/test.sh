#!/usr/bin/env bash
# Usage: bash scripts/test.sh [--lowest] [pytest arguments]
#
# From a fresh clone: makes .venv, installs what is needed, and runs the whole suite on two processes.
# With --lowest: in .venv-lowest, with the lowest versions that pyproject.toml allows, without style and types, which
# are those of the newest tools.
# With CI=true a missing Debian package (Chromium, a Java runtime, g++) is a failure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

case "${1:-}" in -h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
if [ "${1:-}" = --lowest ]; then
    shift
    use_lowest_versions
    set -- --deselect tests/test_house.py::test_style_and_types "$@"
fi

require_debian_package chromium "the tests of the app" chromium chromium-browser google-chrome
require_debian_package default-jre-headless "METEOR and the tokenizer of the caption metrics" java
require_debian_package g++ "the test of the compiled vision tower" g++
prepare_environment
stay_offline
export OMP_NUM_THREADS=1

cd "$root"
say "running the suite"
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
