"""Caches of the cluster's objects that follow it by list and watch, and say which objects changed.

Works on plain dicts from any ``Source``; decides nothing and writes nothing. kopf's own index is not used:
after an expired watch it never reports what was deleted meanwhile, and its start-up time is quadratic.
"""
