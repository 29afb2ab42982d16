"""The soak: the real daemon, a seeded mix of turns and faults, and what must hold after each.

Started by `scripts/soak.sh`. `stage` sets all up, `unit` is systemd, `network` and `proxy` are the
way to the server, `scenes` are the faults, `sabotage` breaks the daemon's promises, `judge` says
from the recordings what was lost and what was stale, `table` prints it.
"""
