"""The load client's parts: arrivals, prompts, sse and results are pure, client and run do I/O."""
