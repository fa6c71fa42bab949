"""Serves the files of a folder as a repository of a hub; runs inside a pod, with hub_builders.py beside it.

python3 hub.py FOLDER REPOSITORY TOKEN PORT
"""

import signal
import sys
from pathlib import Path

from hub_builders import COMMIT, Repo, running_hub


def main(folder: str, repository: str, token: str, port: str) -> None:
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    with running_hub({repository: Repo({COMMIT: files}, token=token)}, ("0.0.0.0", int(port))):
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main(*sys.argv[1:])
