#!/usr/bin/env bash
# The soak: the real daemon in a random mix of turns and faults, and what must hold after each.
# Prints a table; exit code 1 if a promise is broken. As root it has the network's faults, too.
#   scripts/soak.sh [--minutes N] [--seed S] [--only NAME,...] [--json FILE] [--keep FILE]
# Or with a promise broken on purpose, by one sabotage or by each; exit code 1 if it isn't noticed.
#   scripts/soak.sh --sabotage NAME | --sabotages
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup dev iproute2
cd "$ROOT"
own=() # a mount of its own goes with it, however it ends
unshare --mount true 2>/dev/null && own=(unshare --mount)
exec "${own[@]}" "$PYTHON" -m tests.soak "$@"
