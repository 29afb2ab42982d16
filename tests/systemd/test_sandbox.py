"""The sandbox is real: what the unit denies is denied to what it starts, and no more than that."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import probe
from tests.systemd.container import KEY_FILE, PYTHON, Container

PROBE = "/srv/probe.py"
TRIES = f"""[Service]
Type=oneshot
Restart=no
ExecStart=
ExecStart={PYTHON} {PROBE}
"""

REFUSALS = {
    errno.EPERM,  # a system call
    errno.EACCES,  # a file
    errno.ENOENT,  # what is kept out of sight
    errno.EROFS,
    errno.EAFNOSUPPORT,  # a kind of socket
}


@pytest.fixture(scope="module")
def container(layers: list[Path]) -> Iterator[Container]:
    files = {
        PROBE[1:]: Path(probe.__file__).read_text(),
        KEY_FILE: "key",
        "etc/hosts": "127.0.0.1 localhost\n",
    }
    with Container(layers, dropin=TRIES, files=files) as container:
        container.write(str(probe.OF_OTHERS)[1:], "theirs")
        container.run("install", "-m", "4755", "/usr/bin/id", str(probe.SETUID_ID))
        container.run("mknod", "-m", "666", str(probe.FORBIDDEN_DEVICE), "c", "10", "200")
        yield container


@pytest.fixture(scope="module")
def inside(container: Container) -> dict[str, int]:
    """Outcomes in the sandbox."""
    container.start()
    (told,) = (text for text in container.messages() if text.startswith("{"))
    outcomes: dict[str, int] = json.loads(told)
    return outcomes


@pytest.fixture(scope="module")
def outside(container: Container) -> dict[str, int]:
    """Outcomes for root in a unit without a sandbox: what the container itself allows."""
    told = container.run("systemd-run", "--quiet", "--wait", "--pipe", PYTHON, PROBE)
    outcomes: dict[str, int] = json.loads(told)
    return outcomes


@pytest.mark.parametrize("name", probe.DENIED)
def test_it_is_denied(inside: dict[str, int], outside: dict[str, int], name: str) -> None:
    assert outside[name] == 0, "this try proves nothing: it fails without the sandbox, too"
    assert inside[name] in REFUSALS, errno.errorcode.get(inside[name])


@pytest.mark.parametrize("name", probe.ALLOWED)
def test_it_is_allowed(inside: dict[str, int], name: str) -> None:
    assert inside[name] == 0, errno.errorcode.get(inside[name])
