"""Debian trees with the product in them: what the container and the virtual Pi start from.

Three layers, each kept until what it is made from changes: Debian's packages, the environment with
the packages we stand on, and the product, installed as on a device.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELEASE = "/opt/voiced/releases/test"  # the unit starts what /opt/voiced/current points to

PACKAGES = (
    # what Raspberry Pi OS brings
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "procps", "ca-certificates"),
    # what the product runs on; the plugin is the container's way to a sound server
    *("python3", "python3-venv", "alsa-utils", "libasound2-plugins"),
    # what building needs: pyalsaaudio and systemd-python have no wheels, lgpio none for 3.13
    *("gcc", "python3-dev", "libasound2-dev", "libsystemd-dev", "pkg-config", "swig"),
)
NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "mount": "mount",
}  # program: package

BINFMT = Path("/proc/sys/fs/binfmt_misc")
EMULATED = {"amd64": "x86_64", "arm64": "aarch64"}  # Debian's word: the kernel's and qemu's

CALL_S = 3600.0  # the longest takes ten minutes, emulated on an idle machine
KEPT_S = 86_400  # another checkout, or another run of this one, may still have it mounted


class TreeError(RuntimeError):
    """It can't be built or used; one line that says why and what to do."""


@dataclass(frozen=True)
class System:
    """What a Pi runs."""

    suite: str
    arch: str

    def __str__(self) -> str:
        return f"{self.suite}-{self.arch}"


BOOKWORM = System("bookworm", "amd64")
TRIXIE_ARM = System("trixie", "arm64")


def native() -> System:
    """Bookworm for this machine's own processor: a container emulates none."""
    return System("bookworm", _call("dpkg", "--print-architecture").strip())


def missing(programs: Mapping[str, str] = NEEDED) -> str | None:
    """Why this machine can't build or mount trees and what to do about it; None if it can."""
    if os.geteuid() != 0:
        return "it needs root, to mount and to start containers; run it by sudo"
    absent = [package for program, package in programs.items() if shutil.which(program) is None]
    return f"missing programs; get them by: apt-get install {' '.join(absent)}" if absent else None


def say(text: str) -> None:
    """What takes long is announced."""
    print(f"tree: {text}", file=sys.stderr, flush=True)


# --- the cache ---------------------------------------------------------------------------


def _cache() -> Path:
    place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place) / "voiced"


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """A folder that `build(folder)` has filled, kept for the same name and key.

    Built aside and renamed, so a folder that is there is whole. Those of other keys are removed
    when nobody has asked for them for KEPT_S. Raises TreeError.
    """
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    with _locked(cache / f"{name}.lock"):
        if not wanted.exists():
            _prune(cache, name)
            say(f"building {name}")
            aside = wanted.with_name(wanted.name + ".part")
            aside.mkdir()
            before = os.umask(0o022)  # on a device everybody may read the system
            try:
                build(aside)
            finally:
                os.umask(before)
            aside.rename(wanted)
        os.utime(wanted)
    return wanted


def _prune(cache: Path, name: str) -> None:
    _sweep(cache)
    for old in cache.glob(f"{name}-????????????*"):
        if old.suffix == ".part" or old.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(old)


def _sweep(cache: Path) -> None:
    """Remove the mounts of those who were killed: nobody holds their locks."""
    for work in cache.glob("mount-*"):
        with contextlib.suppress(BlockingIOError), _locked(work / "lock", wait=False):
            subprocess.run(("umount", "--recursive", "--lazy", str(work / "tree")), check=False)
            shutil.rmtree(work)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError if somebody holds it and it is not to be waited for."""
    with path.open("w") as lock:
        # The kernel frees it when we die; a deadline would need polling for a wait that has an end.
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


# --- layers ------------------------------------------------------------------------------


def base(system: System) -> Path:
    """Debian with what the product runs on and is built with. Raises TreeError."""

    def build(folder: Path) -> None:
        mirror = _mirror()
        _call(
            # Its mounts and its children end with it, however it ends.
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--architectures={system.arch}"),
            *(f"--include={','.join(PACKAGES)}", system.suite, str(folder)),
            *([mirror] if mirror else []),
        )

    _emulate(system.arch)
    return cached(f"base-{system}", f"{PACKAGES}", build)


def environment(system: System) -> Path:
    """A layer over `base`: the release's environment with the packages we stand on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["pi"], *extras["aec"]]

    def build(folder: Path) -> None:
        with mounted([base(system)], folder) as tree:
            run_in(tree, "python3", "-m", "venv", RELEASE)
            # PYPI: lgpio's way to be built with its C library, where it has no wheel
            _pip(tree, "install", *wanted, env={"PYPI": "1"})

    return cached(f"environment-{system}", f"{PACKAGES} {wanted}", build)


def product(system: System) -> list[Path]:
    """All layers, the topmost first; that one holds the product of this checkout."""
    below = [environment(system), base(system)]
    sources = sorted(
        path
        for part in ("voiced", "systemd", "config", "pyproject.toml", Path(__file__))
        for path in ([ROOT / part] if (ROOT / part).is_file() else (ROOT / part).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    )
    contents = hashlib.sha256()
    for path in sources:
        contents.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
        contents.update(path.read_bytes())

    def build(folder: Path) -> None:
        with mounted(below, folder) as tree:
            _install(tree)

    return [cached(f"product-{system}", f"{below} {contents.hexdigest()}", build), *below]


def _install(tree: Path) -> None:
    """What the installer does on a device."""
    with tempfile.TemporaryDirectory(prefix="voiced-wheel-") as folder:
        # Built from a copy: building would leave its traces in the checkout.
        source = Path(folder) / "source"
        source.mkdir()
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, source)
        shutil.copytree(ROOT / "voiced", source / "voiced")
        wheel_here = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        _call(sys.executable, *wheel_here, "--wheel-dir", folder, str(source))
        (wheel,) = Path(folder).glob("*.whl")
        _pip(tree, "install", "--no-deps", f"/mnt/{wheel.name}", binds={Path(folder): "/mnt"})
    (tree / "opt/voiced/current").symlink_to(RELEASE)
    _copy(ROOT / "systemd/voiced.service", tree / "etc/systemd/system")
    _copy(ROOT / "systemd/voiced.sysusers", tree / "etc/sysusers.d", "voiced.conf")
    _copy(ROOT / "config/voiced.toml", tree / "etc/voiced")
    run_in(tree, "systemd-sysusers")
    run_in(tree, "systemctl", "enable", "--quiet", "voiced.service")


def _copy(source: Path, folder: Path, name: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / (name or source.name))


def _emulate(arch: str) -> None:
    """Let this machine's kernel run programs of another one. Raises TreeError."""
    if _call("dpkg", "--print-architecture").strip() == arch:
        return
    name = f"qemu-{EMULATED[arch]}"
    if (BINFMT / name).exists():
        return
    rule = Path(f"/usr/lib/binfmt.d/{name}.conf")
    if not rule.exists():
        raise TreeError(f"no {name} for {arch}; get it by: apt-get install qemu-user-static")
    say(f"telling the kernel to run {arch} programs by {name}, until it starts anew")
    if not (BINFMT / "register").exists():
        _call("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    (BINFMT / "register").write_text(rule.read_text())


# --- working in a tree -------------------------------------------------------------------


@contextlib.contextmanager
def mounted(layers: Sequence[Path], upper: Path | None = None) -> Iterator[Path]:
    """The layers as one writable tree, the first on top; changes go to `upper`, or nowhere.

    Raises TreeError.
    """
    # Beside the cache: on its file system, and that can't be an overlay itself.
    work = Path(tempfile.mkdtemp(prefix="mount-", dir=_cache()))
    try:
        with _locked(work / "lock"):
            for name in ("upper", "work", "tree"):
                (work / name).mkdir()
                (work / name).chmod(0o755)
            if upper is not None:
                (work / "upper").rmdir()
                upper.rename(work / "upper")
            lower = ":".join(str(layer) for layer in layers)
            options = f"lowerdir={lower},upperdir={work / 'upper'},workdir={work / 'work'}"
            try:
                _call("mount", "-t", "overlay", "-o", options, "overlay", str(work / "tree"))
            except TreeError as exc:
                hint = "set XDG_CACHE_HOME to a folder on a disk of this machine"
                raise TreeError(f"{exc}; the cache is in {_cache()}: {hint}") from exc
            try:
                yield work / "tree"
            finally:
                _unmount(work / "tree")
                if upper is not None:
                    (work / "upper").rename(upper)
    finally:
        shutil.rmtree(work)


def _unmount(tree: Path) -> None:
    try:
        _call("umount", "--recursive", str(tree))
    except TreeError:  # something in it still runs: it goes with that
        _call("umount", "--recursive", "--lazy", str(tree))


def run_in(
    root: Path,
    *command: str,
    binds: Mapping[Path, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command in a tree, with this machine's network; its output. Raises TreeError.

    `binds`: folders of this machine that it sees at the named places, read-only.
    """
    return _call(
        *("systemd-nspawn", "--quiet", "-D", str(root), "--register=no", "--keep-unit", "--pipe"),
        *(f"--bind-ro={source}:{place}" for source, place in (binds or {}).items()),
        *(f"--setenv={name}={value}" for name, value in (env or {}).items()),
        *command,
    )


def _pip(
    tree: Path,
    *arguments: str,
    binds: Mapping[Path, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """The release's own pip, with this machine's settings for it and its certificates."""
    passed = (
        "PIP_",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    )
    settings = {name: value for name, value in os.environ.items() if name.startswith(passed)}
    run_in(
        tree,
        f"{RELEASE}/bin/python",
        *("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir", *arguments),
        binds={Path("/etc/ssl/certs"): "/etc/ssl/certs", **(binds or {})},
        env={**settings, **(env or {})},
    )


def _mirror() -> str:
    """Where this machine gets Debian from."""
    told = _call("apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages")
    return next((uri for uri in told.split() if uri.rstrip("/").endswith("/debian")), "")


def _call(*command: str) -> str:
    try:
        called = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise TreeError(f"{' '.join(command)[:200]}: not done in {CALL_S / 60:.0f} min") from exc
    if called.returncode:
        words = (called.stderr.strip() or called.stdout.strip()).splitlines()[-3:]
        raise TreeError(f"{' '.join(command)[:200]}: {' | '.join(words) or 'failed, silently'}")
    return called.stdout
