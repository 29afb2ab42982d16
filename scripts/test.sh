#!/usr/bin/env bash
# All tests: format, lint, types, and the test suite, which plays through real libasound.
#   scripts/test.sh [arguments of pytest]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup dev
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
