"""Stoker's runtime: a continuous-batching engine and the OpenAI-compatible server in front of it."""

__version__ = "0.1.0"
