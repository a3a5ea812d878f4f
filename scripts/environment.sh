# Shell functions that prepare a fresh Debian or Ubuntu; sourced by quickstart.sh and test.sh.
#
#   prepare_environment          .venv in the checkout with the project and all it needs; leaves $python
#   require_debian_package ...   a command from a Debian package, installed where that is allowed
#   use_lowest_versions          before it: .venv-lowest, with the lowest versions that pyproject.toml allows
#   stay_offline                 nothing asks the network after the installation

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"
extras="train,eval,generate,app,dev"
versions=""
oldest_python=10
newest_python=13

use_lowest_versions() {
    venv="$root/.venv-lowest"
    python="$venv/bin/python"
    versions=lowest-direct
}

say() { printf '== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Prints the interpreter to build .venv with: $PYTHON, else python3, else any python3.N that fits.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c "import sys; sys.exit(not (3, $oldest_python) <= sys.version_info[:2] <= (3, $newest_python))" \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Prints the prefix that lets apt-get install: nothing for root, sudo where it asks no password. Fails otherwise.
apt_prefix() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then
        return 0
    fi
    sudo -n true >/dev/null 2>&1 && echo "sudo -n"
}

install_debian_package() { # PACKAGE
    local prefix
    prefix="$(apt_prefix)" || return 1
    say "installing the Debian package $1"
    $prefix env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get install -y -q --no-install-recommends "$0" || { apt-get update -q && apt-get install -y -q --no-install-recommends "$0"; }' \
        "$1" >/dev/null
}

# Any of the commands will do. A missing one is installed where that is allowed, otherwise named with what it is for and
# how to install it; under CI=true it is then a failure.
require_debian_package() { # PACKAGE PURPOSE COMMAND...
    local package="$1" purpose="$2" candidate
    shift 2
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null && return 0
    done
    if install_debian_package "$package"; then
        for candidate in "$@"; do
            command -v "$candidate" >/dev/null && return 0
        done
    fi
    if [ "${CI:-}" = true ]; then
        fail "$1 is missing ($purpose): sudo apt-get install $package"
    fi
    say "$1 is missing ($purpose): sudo apt-get install $package"
}

# A finished environment names its own place in `activate`, which venv writes last; anything else is made anew.
make_venv() {
    local interpreter version
    if [ -x "$python" ] && grep -qsF "$venv" "$venv/bin/activate"; then
        return
    fi
    interpreter="$(find_python)" ||
        fail "no Python 3.$oldest_python to 3.$newest_python (${PYTHON:-python3}); sudo apt-get install python3 python3-venv, or set PYTHON"
    version="$("$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    if ! "$interpreter" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        install_debian_package "python$version-venv" && "$interpreter" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
            fail "Python $version cannot make environments: sudo apt-get install python$version-venv"
    fi
    say "making ${venv##*/} with Python $version"
    "$interpreter" -m venv --clear "$venv" || fail "could not make $venv (see above)"
}

# What the installed packages depend on; the stamp that holds it is written after pip has succeeded.
installation_key() {
    { echo "$extras$versions" && cat "$root/pyproject.toml" && "$python" --version; } | sha256sum
}

install_project() {
    local stamp="$venv/installed.sha256"
    if [ "$(installation_key)" = "$(cat "$stamp" 2>/dev/null)" ]; then
        say "the environment is up to date"
        return
    fi
    say "installing the project with [$extras] into ${venv##*/} (about 7 GB; 4 to 10 minutes the first time)"
    rm -f "$stamp"
    install_packages ||
        fail "pip could not install the project (see above); with network and 10 GB of free disk, run the same command again"
    installation_key >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

# pip always takes the highest versions; uv takes the lowest of what the project names itself.
install_packages() {
    local quiet=(--disable-pip-version-check --progress-bar off)
    if [ -z "$versions" ]; then
        "$python" -m pip install "${quiet[@]}" -e "$root[$extras]"
        return
    fi
    "$python" -m pip install "${quiet[@]}" pip uv &&
        "$python" -m uv pip install --python "$python" --resolution "$versions" -e "$root[$extras]"
}

# One set-up at a time: a second one waits for the first and then finds the work done.
prepare_environment() {
    local lock
    exec {lock}<"$root"
    flock -n "$lock" || { say "waiting for another set-up of this checkout" && flock "$lock"; }
    make_venv
    install_project
    exec {lock}<&-
}

stay_offline() {
    export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
    export GRADIO_ANALYTICS_ENABLED=False TOKENIZERS_PARALLELISM=false
}
