"""What to do next: `plan(wanted, observed, now)` compares what is wanted with what was observed. Pure."""
