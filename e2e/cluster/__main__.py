"""Makes `python e2e/cluster ...` the same as `python -m cluster ...` with e2e on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if not __package__:
    # Run as a folder, Python puts this folder on the path; the package is found in the one above.
    sys.path[0] = str(HERE.parent)

from cluster.cli import main  # noqa: E402  (needs the path from above)

main(prog_name="cluster")
