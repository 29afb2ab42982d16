# Sourced by the other scripts: system packages and a virtual environment in .venv.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
#   setup        # or: setup dev [package...], with what the tests need
#   "$PYTHON" -m voiced
#
# Sets ROOT (the checkout) and PYTHON. Quick when all is there; says on stderr what takes long.
# Nothing outside .venv is touched, except by apt-get.
set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$ROOT/.venv/bin/python

SETUP_PACKAGES=(
    python3-venv python3-dev gcc pkg-config
    libasound2-dev libsystemd-dev
    libasound2-plugins alsa-utils pulseaudio
)
SETUP_LOCK_S=300 # another apt-get, or another of our scripts; unattended upgrades take minutes

setup() {
    local extra=${1:-} lock
    shift || true
    SETUP_PACKAGES+=("$@")
    exec {lock}<"$ROOT"
    flock -w "$SETUP_LOCK_S" "$lock" || setup_fail "another set-up holds $ROOT for $SETUP_LOCK_S s"
    setup_system
    setup_venv "$extra"
    exec {lock}<&-
}

setup_say() { printf 'setup: %s\n' "$*" >&2; }

setup_fail() {
    setup_say "$*"
    exit 1
}

setup_missing() {
    local package
    for package in "${SETUP_PACKAGES[@]}"; do
        # shellcheck disable=SC2016  # dpkg-query's own variable
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            printf '%s\n' "$package"
    done
}

setup_system() {
    command -v apt-get >/dev/null || return 0 # another system: pip will say what it misses
    local missing
    mapfile -t missing < <(setup_missing)
    ((${#missing[@]})) || return 0
    setup_say "installing ${missing[*]}"
    setup_apt update || setup_say "apt-get update failed; trying with the lists there are"
    setup_apt install --yes --no-install-recommends "${missing[@]}" ||
        setup_fail "apt-get could not install: ${missing[*]}"
}

setup_apt() {
    local as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            setup_fail "not root and no sudo; have somebody run: apt-get install $(setup_missing | xargs)"
        as_root=(sudo)
        [[ -t 0 ]] || as_root+=(-n) # nobody there to type a password
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o "DPkg::Lock::Timeout=$SETUP_LOCK_S" "$@" </dev/null >/dev/null
}

# The system's Python first: its headers are the ones that python3-dev brings.
setup_python() {
    local python
    for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    setup_fail "no Python of 3.11 or later; on Debian 12 and later it is: apt-get install python3"
}

# What the environment was made from; [dev] holds all of the plain one.
setup_stamp() {
    { printf '%s\n' "$ROOT" "$1" && "$PYTHON" -VV && cat "$ROOT/pyproject.toml"; } | sha256sum
}

setup_venv() {
    local extra=$1 stamp=$ROOT/.venv/setup.stamp python
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(setup_python)
        setup_say "making .venv with $("$python" -V)"
        "$python" -m venv --clear "$ROOT/.venv" || setup_fail "could not make $ROOT/.venv"
    fi
    if [[ -f $stamp ]]; then
        [[ $(<"$stamp") == "$(setup_stamp dev)" ]] && return
        [[ -z $extra && $(<"$stamp") == "$(setup_stamp '')" ]] && return
    fi
    setup_say "installing Python packages${extra:+ for $extra}"
    local said
    said=$(PIP_USER=0 PYTHONNOUSERSITE=1 "$PYTHON" -m pip install --quiet \
        --disable-pip-version-check --editable "$ROOT${extra:+[$extra]}" 2>&1) || {
        printf '%s\n' "$said" >&2
        setup_fail "pip failed, see above; it needs the network and: ${SETUP_PACKAGES[*]}"
    }
    setup_stamp "$extra" >"$stamp"
}
