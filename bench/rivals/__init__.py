"""Other engines on the same machine: how each is installed, which model file it reads, how it is started.

`install` puts everything into a cache folder, once; `rivals` says how to start what is there.
"""
