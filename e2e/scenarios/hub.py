"""Serves the files of a folder as a repository of a hub; runs inside a pod, with hub_builders.py beside it.

python3 hub.py FOLDER REPOSITORY TOKEN PORT [CERTIFICATE]

CERTIFICATE is a PEM file with a certificate and its key; without one the hub speaks plain HTTP.
"""

import signal
import ssl
import sys
from pathlib import Path

from hub_builders import COMMIT, Repo, running_hub


def main(folder: str, repository: str, token: str, port: str, certificate: str = "") -> None:
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    with running_hub({repository: Repo({COMMIT: files}, token=token)}, ("0.0.0.0", int(port)), tls):
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main(*sys.argv[1:])
