#!/usr/bin/env bash
# The soak: the real daemon in a random mix of turns and faults, and what must hold after each.
# Prints a table; exit code 1 if a promise is broken. As root it has the network's faults, too.
#   scripts/soak.sh [--minutes N] [--seed S] [--sabotage NAME] [--only NAME,...] [--json FILE]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup dev iproute2
cd "$ROOT"
exec "$PYTHON" -m tests.soak "$@"
