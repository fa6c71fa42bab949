"""Which tokens are computed in the next step, and in which KV blocks they live. Integers only."""
