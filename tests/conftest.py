"""How hard hypothesis tries: `make test` is thorough, `make test-fast` gives --hypothesis-profile=fast."""

import os

from hypothesis import settings

# On CI the examples are the same each time, so that a run fails for what was changed and nothing else.
settings.register_profile("thorough", max_examples=150, deadline=None, derandomize="CI" in os.environ)
settings.register_profile("fast", max_examples=20, deadline=None)
settings.load_profile("thorough")
