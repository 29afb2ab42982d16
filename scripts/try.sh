#!/usr/bin/env bash
# Try voiced without hardware or key. In a terminal: a console to press, speak and look; with
# --wav, --out or --report (see --help), or without a terminal: an unattended trial with a report.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

is_unattended() {
    [[ -t 0 ]] || return 0
    local argument
    for argument; do
        case $argument in
            --wav* | --out* | --report* | --hold | --cancel-after* | --frames* | -h | --help) return 0 ;;
        esac
    done
    return 1
}

setup
if is_unattended "$@"; then
    exec "$PYTHON" -m voiced.sim.trial "$@"
fi
exec "$PYTHON" -m voiced.sim.console "$@"
