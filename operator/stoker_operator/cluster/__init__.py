"""All Kubernetes I/O: the API client over a small transport, Events, and the in-flight reader.

Objects are plain dicts everywhere (typed models drop the fields they do not know). Decides nothing: callers
say what to create, apply or delete, and get the server's copy or an exception of ``cluster.errors`` back.
Why this is not a client library: docs/decisions/0001-api-client.md.
"""
