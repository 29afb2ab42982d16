"""The virtual Pi's kernel: Debian's own, with the GPIO simulator that Debian leaves out.

Nothing is installed: image, modules and a small initrd end up in the cache.
"""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.appliance.tree import System, TreeError, base, cached, mounted, run_in

PACKAGES = {
    # its own kernel is 6.1; a Pi's 6.12 is in its security archive
    "bookworm": "linux-image-6.12-{arch}",
    "trixie": "linux-image-{arch}",
}
SOURCE = "linux-source-6.12"
ROOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
MODULES = (
    *ROOT_MODULES,
    *("virtio_net", "virtio_console", "virtio_rng"),
    *("snd-aloop", "gpio-sim", "configfs", "overlay"),
    # the weather: what comes in is delayed on its way out of ifb
    *("sch_netem", "ifb", "sch_ingress", "cls_matchall", "act_mirred"),
)
"""What the machine can load; those of its root are in the initrd too."""

FETCH = """\
set -eu
cd "$3"
security='s|^\\(.*[^/]\\)/* \\([a-z]*\\) main$|&\\n\\1-security \\2-security main|'
sed -i "$security" /etc/apt/sources.list
apt-get -qq update
version=$(apt-cache show --no-all-versions "$1" | sed -n 's/^Version: //p')
release=$(apt-cache depends "$1" | sed -n 's/.*Depends: linux-image-//p')
common=${release%-*}
apt-get -qq install --no-install-recommends \
    make xz-utils "linux-kbuild-$common=$version" "linux-headers-$common-common=$version" >&2
apt-get -qq download busybox-static \
    "linux-image-$release=$version" "linux-headers-$release=$version" "$2=$version" >&2
for package in *.deb; do dpkg --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C /; done
echo "$release"
"""
"""Image, source and busybox into the tree, of one version; prints the kernel's release."""

KBUILD = """\
obj-m := gpio-sim.o
gpio-sim-y := sim.o irq_sim.o
"""

INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "$module"; done </modules
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""

BUILD = "build"  # a folder of a tree that is thrown away, with what was put into it


@dataclass(frozen=True)
class Kernel:
    """What qemu starts, and the layer of modules that belongs under its root."""

    image: Path
    initrd: Path
    modules: Path  # holds usr/lib/modules/<version>
    version: str  # as uname -r says


def build(system: System) -> Kernel:
    """The kernel of a system, from the cache or made there. Raises TreeError."""
    recipe = Path(__file__).read_text()
    folder = cached(f"kernel-{system}", recipe, lambda folder: _make(system, folder))
    (modules,) = (folder / "modules/usr/lib/modules").iterdir()
    return Kernel(folder / "image", folder / "initrd", folder / "modules", modules.name)


def _make(system: System, folder: Path) -> None:
    with mounted([base(system)]) as tree:
        (tree / BUILD).mkdir()
        package = PACKAGES[system.suite].format(arch=system.arch)
        told = run_in(tree, "sh", "-c", FETCH, "fetch", package, SOURCE, f"/{BUILD}")
        version = told.split()[-1]
        _add_simulator(tree, version)
        run_in(tree, "depmod", version)
        _pick_modules(tree, version)
        _make_initrd(tree, version)
        shutil.copytree(tree / BUILD / "layer/usr", folder / "modules/usr")
        shutil.copy(tree / f"boot/vmlinuz-{version}", folder / "image")
        shutil.copy(tree / BUILD / "initrd.gz", folder / "initrd")


# --- gpio-sim ----------------------------------------------------------------------------

_PATCH = ("handle_simple_irq(irq_to_desc(irqnum))", "generic_handle_irq_safe(irqnum)")
"""irq_to_desc is not exported; inside the kernel the two do the same."""


def _add_simulator(tree: Path, version: str) -> None:
    """One module out of the simulator and the interrupts it stands on, among Debian's modules."""
    sources = tree / BUILD / "sim"
    sources.mkdir()
    wanted = {"drivers/gpio/gpio-sim.c": "sim.c", "kernel/irq/irq_sim.c": "irq_sim.c"}
    _unpack(tree / f"usr/src/{SOURCE}.tar.xz", wanted, sources)
    interrupts = sources / "irq_sim.c"
    text = interrupts.read_text()
    if _PATCH[0] not in text:
        raise TreeError(f"irq_sim.c of {version} has changed: expected {_PATCH[0]}; see kernel.py")
    interrupts.write_text(text.replace(*_PATCH))
    (sources / "Kbuild").write_text(KBUILD)
    # Without BTF: that needs pahole and the kernel's own symbols, and only debuggers read it.
    make = ("make", "-s", "CONFIG_DEBUG_INFO_BTF_MODULES=")
    run_in(tree, *make, "-C", f"/lib/modules/{version}/build", f"M=/{BUILD}/sim", "modules")
    run_in(tree, "strip", "--strip-debug", f"/{BUILD}/sim/gpio-sim.ko")
    shutil.copy(sources / "gpio-sim.ko", tree / f"usr/lib/modules/{version}/kernel")


def _unpack(archive: Path, wanted: dict[str, str], folder: Path) -> None:
    """Some files of the kernel's source, renamed; read up to the last of them, natively."""
    missing = dict(wanted)
    with tarfile.open(archive) as source:
        for member in source:
            name = missing.pop(member.name.partition("/")[2], None)
            content = source.extractfile(member) if name is not None else None
            if name is not None and content is not None:
                (folder / name).write_bytes(content.read())
            if not missing:
                return
    raise TreeError(f"{archive.name} lacks {', '.join(missing)}; see kernel.py")


# --- modules and initrd ------------------------------------------------------------------


def _with_needed(tree: Path, version: str, names: tuple[str, ...]) -> list[Path]:
    """The modules and those they need, in the order of loading; not what is built in."""
    told = run_in(tree, "modprobe", f"--set-version={version}", "--show-depends", "--all", *names)
    lines = [line.split() for line in told.splitlines()]
    files = dict.fromkeys(words[1] for words in lines if words[0] == "insmod")
    home = f"/lib/modules/{version}/"
    return [tree / "usr/lib/modules" / version / file.partition(home)[2] for file in files]


def _pick_modules(tree: Path, version: str) -> None:
    """Only what the machine needs: it looks through less, and the layer is small."""
    home = tree / "usr/lib/modules" / version
    layer = tree / BUILD / "layer"
    picked = layer / "usr/lib/modules" / version
    for module in _with_needed(tree, version, MODULES):
        place = picked / module.relative_to(home)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, place)
    for listing in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(home / listing, picked)
    (layer / "lib").symlink_to("usr/lib")  # where depmod looks
    run_in(tree, "depmod", "--basedir", f"/{BUILD}/layer", version)


def _make_initrd(tree: Path, version: str) -> None:
    """A busybox that loads what the root needs, mounts it and hands over."""
    initrd = tree / BUILD / "initrd"
    for name in ("bin", "dev", "root"):
        (initrd / name).mkdir(parents=True)
    shutil.copy(tree / "usr/bin/busybox", initrd / "bin")
    names = []
    for module in _with_needed(tree, version, ROOT_MODULES):
        shutil.copy(module, initrd)
        names.append(f"/{module.name.removesuffix('.xz')}")
    (initrd / "modules").write_text("".join(f"{name}\n" for name in names))
    (initrd / "init").write_text(INIT)
    (initrd / "init").chmod(0o755)
    # busybox's insmod reads no .xz
    pack = "find . -name '*.xz' -exec xz -d {} + ; find . | bin/busybox cpio -o -H newc | gzip -9"
    run_in(tree, "sh", "-c", f"cd /{BUILD}/initrd; ({pack}) >../initrd.gz")
