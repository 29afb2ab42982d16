"""The voice appliance daemon: press, speak, and the device answers."""

__version__ = "0.1.0"
