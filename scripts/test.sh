#!/usr/bin/env bash
# All tests: format, lint, types, the test suite, which plays through real libasound and boots the
# unit in a container, a short soak, and a short day of the virtual Pi.
#   scripts/test.sh [arguments of pytest]      with arguments: nothing but them
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup dev mmdebstrap systemd-container iproute2
cd "$ROOT"
run() {
    printf '== %s\n' "$*" >&2
    "$PYTHON" -m "$@"
}
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
run ruff format --check --quiet
run ruff check --quiet
run mypy --no-error-summary
run pytest "$@"
(($#)) && exit
printf '== scripts/soak.sh --minutes 3\n' >&2
scripts/soak.sh --minutes 3 --seed 1
if ((EUID != 0)) && [[ -z ${CI:-} ]]; then
    printf '== NOT RUN without root: the unit in a container, the virtual Pi, and of the soak the \
network. sudo %s\n' "$0" >&2
    exit
fi
printf '== scripts/appliance.sh --fast\n' >&2
exec scripts/appliance.sh --fast
