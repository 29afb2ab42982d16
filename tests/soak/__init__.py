"""The soak: the real daemon, a seeded mix of turns and faults, and what must hold after each.

Started by `scripts/soak.sh`. `stage` sets all up, `unit` is systemd, `network` and `proxy` are the
way to the server. `scenes` has all that is played: of `turns`, `links`, `devices`, the `process`,
and two faults at once (`pairs`), each written against a `trial`. `sabotage` breaks the daemon's
promises, and has the faults that only its inside can have; `judge` says from the recordings what
was lost and what was stale, `table` prints it.
"""
