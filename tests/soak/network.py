"""The daemon's own network: a namespace with one cable to us, a name server and a certificate.

Needs root and `ip netns`. Without them the daemon stands in our network and is told an address,
and what needs a cable, a route or a name of its own is not injected.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "realtime.soak.test"
DNS_PORT = 53


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """A network of the daemon's own. `prefix` starts a program in it."""

    is_own = True

    def __init__(self) -> None:
        self._name = f"soak{os.getpid()}"
        self._cable = (f"sk{os.getpid()}a", f"sk{os.getpid()}b")
        self._etc = Path("/etc/netns") / self._name
        self.prefix = ["ip", "netns", "exec", self._name]
        here = os.getpid() % 250  # two soaks on one machine don't meet
        self._near = f"10.213.{here}"
        self._router = f"{self._near}.1"  # our end of the cable; the name server that isn't there
        self._silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # a name server's
        self.host, self.address = NAME, f"10.214.{here}.1"

    def __enter__(self) -> Self:
        self._etc.mkdir(parents=True)
        try:
            # Read in the namespace in the place of the machine's own; written in place, for it is
            # the file itself that is seen there.
            (self._etc / "hosts").write_text("")
            self._ask_for("options timeout:1")
            self._connect()
        except BaseException:  # who is told to end leaves nothing either
            self.__exit__()
            raise
        self.name_found(True)
        return self

    def _connect(self) -> None:
        ours, theirs = self._cable
        _ip("netns", "add", self._name)
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", self._name)
        _ip("addr", "add", f"{self._router}/24", "dev", ours)
        _ip("addr", "add", f"{self.address}/32", "dev", ours)
        _ip("link", "set", ours, "up")
        self._inside("link", "set", "lo", "up")
        self.move(2, and_route=False)
        self.cable(True)
        deadline = time.monotonic() + 5  # a new cable has no carrier for a moment
        while "state UP" not in self._show() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _show(self) -> str:
        command = ["ip", "-n", self._name, "link", "show", self._cable[1]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def __exit__(self, *_: object) -> None:
        self._silent.close()
        for command in (["link", "del", self._cable[0]], ["netns", "del", self._name]):
            subprocess.run(["ip", *command], capture_output=True, check=False)
        for file in ("hosts", "resolv.conf"):
            (self._etc / file).unlink(missing_ok=True)
        self._etc.rmdir()

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self._name, *arguments)

    def cable(self, plugged: bool) -> None:
        """The link of the interface, up with its route, or down."""
        self._inside("link", "set", self._cable[1], "up" if plugged else "down")
        if plugged:
            self.route(True)

    def route(self, there: bool) -> None:
        """The way to the server."""
        verb = "replace" if there else "del"
        self._inside("route", verb, "default", "via", self._router)

    def name_found(self, found: bool) -> None:
        """Whether the server's name has an address."""
        (self._etc / "hosts").write_text(f"{self.address} {NAME}\n" if found else "\n")

    def _ask_for(self, options: str) -> None:
        """How patiently the name server is asked."""
        (self._etc / "resolv.conf").write_text(f"nameserver {self._router}\n{options}\n")

    def name_answered(self, answered: bool) -> None:
        """Whether the name server says anything, or is there and takes what it is asked in silence:
        twice for five seconds, as it is asked on most machines."""
        self._silent.close()
        self._ask_for("options timeout:1" if answered else "options timeout:5 attempts:2")
        if not answered:
            self._silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._silent.bind((self._router, DNS_PORT))
        self.name_found(answered)

    def move(self, to: int, *, and_route: bool = True) -> None:
        """Another address, as a router hands out after its restart: 2 to 254."""
        self._inside("addr", "flush", "dev", self._cable[1])
        self._inside("addr", "add", f"{self._near}.{to}/24", "dev", self._cable[1])
        if and_route:
            self.route(True)


class NoNetwork:
    """The machine's own loopback."""

    is_own = False
    prefix: tuple[str, ...] = ()
    host = address = "127.0.0.1"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def network() -> Network | NoNetwork:
    """One of the daemon's own if we may."""
    if os.geteuid():
        return NoNetwork()
    probe = f"soakprobe{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "del", probe)
    except (OSError, subprocess.CalledProcessError):
        return NoNetwork()
    return Network()


# --- certificates ------------------------------------------------------------------------


class Certificates:
    """An authority that the daemon trusts, and what a server may show: `good`, `early` (not yet
    valid) and `foreign` (of another authority). `context` is the server's."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._host = folder, host
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key, self.ca_file = self._authority("ca")
        other, _ = self._authority("other")
        day = datetime.timedelta(days=1)
        self._issue("good", key, -day)
        self._issue("early", key, day)
        self._issue("foreign", other, -day)
        self.show("good")

    def show(self, name: str) -> None:
        """What is shown to connections from now on."""
        self.context.load_cert_chain(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _authority(self, name: str) -> tuple[ec.EllipticCurvePrivateKey, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name, name, key, datetime.timedelta(days=-2))
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        path = self._folder / f"{name}.pem"
        path.write_bytes(
            builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return key, path

    def _builder(
        self,
        subject: str,
        issuer: str,
        key: ec.EllipticCurvePrivateKey,
        begins: datetime.timedelta,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + datetime.timedelta(days=30))
        )

    def _issue(
        self, name: str, authority: ec.EllipticCurvePrivateKey, begins: datetime.timedelta
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = "other" if name == "foreign" else "ca"
        try:
            wanted: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(self._host))
        except ValueError:
            wanted = x509.DNSName(self._host)
        builder = self._builder(self._host, issuer, key, begins)
        builder = builder.add_extension(x509.SubjectAlternativeName([wanted]), critical=False)
        signed = builder.sign(authority, hashes.SHA256())
        (self._folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (self._folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
