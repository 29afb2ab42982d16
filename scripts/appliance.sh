#!/usr/bin/env bash
# The virtual Pi: an emulated machine with the kernel's own sound cards, GPIO chip and systemd, the
# product installed in it, and a day in its life. Prints a table; exit code 1 if a promise is broken.
#   scripts/appliance.sh [--arch amd64|arm64] [--fast] [--json FILE]
#   scripts/appliance.sh --weather [--seed S] [--sabotage NAME] [...]   a day of bad weather
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

packages=(mmdebstrap systemd-container e2fsprogs)
case " $* " in
    *arm64*) packages+=(qemu-system-arm qemu-user-static arch-test) ;;
    *) packages+=(qemu-system-x86) ;;
esac
setup dev "${packages[@]}"
cd "$ROOT"
exec "$PYTHON" -m tests.appliance "$@"
