"""nginx with serve/nginx.conf, in front of a TorchServe."""

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.client import Client
from serve.torchserve.api import read_key
from serve.torchserve.ports import free_ports
from tests.helpers.launching import ROOT

PROGRAM = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")

TOKENS = {"first": "0f" * 16, "second": "1e" * 16}
"""Client name -> token."""

ORIGIN = "https://pages.example"

_START_SECONDS = 60

_MAIN = """
{user}
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/mlp.conf;
}}
"""


@dataclass(frozen=True)
class Proxy:
    port: int
    directory: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory / "certificate.pem"))


@contextmanager
def running_nginx(client: Client, directory: Path) -> Iterator[Proxy]:
    """A proxy in front of the server of `client`, until the end."""
    assert PROGRAM is not None
    proxy = Proxy(free_ports(1)[0], directory)
    _write(proxy, client)
    words = [PROGRAM, "-p", str(directory), "-c", str(directory / "nginx.conf")]
    tested = subprocess.run([*words, "-t"], capture_output=True, text=True, timeout=_START_SECONDS)
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _listens(proxy.port):
                assert server.poll() is None, (directory / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield proxy
        finally:
            server.terminate()
            server.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _write(proxy: Proxy, client: Client) -> None:
    """serve/nginx.conf with other paths and ports, and the files that it includes."""
    directory, text = proxy.directory, (ROOT / "serve/nginx.conf").read_text()
    for old, new in {
        "listen 443 ssl;": f"listen 127.0.0.1:{proxy.port} ssl;",
        "server 127.0.0.1:8080;": f"server {client.url.removeprefix('http://')};",
        # A busy machine sends fewer than 50 requests per second.
        "rate=50r/s": "rate=5r/s",
        "/etc/nginx/mlp/": f"{directory}/",
        "/var/log/nginx/": f"{directory}/",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "mlp.conf").write_text(text)
    user = "user root;" if os.getuid() == 0 else ""
    (directory / "nginx.conf").write_text(_MAIN.format(user=user, directory=directory))
    lines = [f'"Bearer {token}" {name};\n' for name, token in TOKENS.items()]
    (directory / "clients.conf").write_text("".join(lines))
    (directory / "origins.conf").write_text(f'"{ORIGIN}" $http_origin;\n')
    assert client.key_file is not None
    header = f'proxy_set_header Authorization "Bearer {read_key(client.key_file).value}";\n'
    (directory / "key.conf").write_text(header)
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(directory / "certificate.key"), "-out", str(directory / "certificate.pem")]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *name, *files]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
