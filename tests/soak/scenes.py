"""All that happens in the soak: turns of all kinds, and a row for each fault."""

from __future__ import annotations

from tests.soak import devices, links, pairs, process, turns

SCENES = (*turns.SCENES, *links.SCENES, *devices.SCENES, *pairs.SCENES, *process.SCENES)
