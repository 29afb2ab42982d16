"""The unit under a real systemd: Debian's, as PID 1 of a container with the product installed.

What needs a kernel's device (a sound card, a GPIO chip) is not here but in the virtual Pi.
"""
