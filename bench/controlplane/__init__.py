"""Large clusters in memory for ``bench/control_plane.py``, and what the operator takes for them."""
