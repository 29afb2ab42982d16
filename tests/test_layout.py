"""Tests mirror the source: whoever opens a module knows where its tests are."""

from pathlib import Path

import voiced

SOURCE = Path(voiced.__file__).parent
TESTS = Path(__file__).parent

ELSEWHERE = {
    "events.py": "core/test_conversation.py",  # data alone; the whole core speaks it
    "sim/admission.py": "sim/test_server.py",  # rules of the server, asked through its socket
    "sim/answer.py": "sim/test_server.py",
    "sim/faults.py": "sim/test_server.py",
    "sim/frame_log.py": "sim/test_server.py",
    "sim/conversation.py": "sim/test_realtime_session.py",  # parts of one machine
    "sim/response.py": "sim/test_realtime_session.py",
    "sim/vad.py": "sim/test_realtime_session.py",
    "sim/trial.py": "app/test_trial.py",  # the whole daemon takes part
}
"""Modules whose tests are somewhere else, and where."""

NO_RULES = {"__init__.py", "__main__.py"}
"""Names of files that only start others; test_app.py and sim/test_server.py start them."""


def modules() -> set[str]:
    found = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")}
    return {str(path) for path in found if path.name not in NO_RULES}


def mirrored(module: str) -> Path:
    path = Path(module)
    return TESTS / path.parent / f"test_{path.name}"


def test_every_module_has_its_tests_at_the_mirrored_path() -> None:
    missing = [
        str(mirrored(module).relative_to(TESTS.parent))
        for module in sorted(modules() - set(ELSEWHERE))
        if not mirrored(module).is_file()
    ]
    assert not missing


def test_what_is_tested_elsewhere_is_tested_there_and_only_there() -> None:
    for module, place in ELSEWHERE.items():
        assert module in modules()
        assert (TESTS / place).is_file()
        assert not mirrored(module).is_file(), f"{module} has tests of its own: drop its row"
