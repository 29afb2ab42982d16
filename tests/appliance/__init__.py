"""The virtual Pi: an emulated machine with the kernel's own sound cards, GPIO chip and systemd.

`scripts/appliance.sh` runs it. Its Debian tree also is what `tests/systemd/` boots in a container.
"""
