#!/usr/bin/env bash
# Measure the promises on the card-less rig and print one table; exit code 1 if a goal is missed.
#   scripts/bench.sh [--json FILE] [--sabotage NAME]
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

setup dev fillets-ng-data-nl fillets-ng-data-cs ktuberling-data # people, recorded
cd "$ROOT"
exec "$PYTHON" -m tests.bench "$@"
