"""One pass of one ModelDeployment, and the loop that runs passes: observe, decide, act, report.

Decisions are made in the pure rooms (``desired``, ``plan``, ``status``); here they are put together with the
caches before them and the API calls after them.
"""
