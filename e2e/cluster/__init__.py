"""A real Kubernetes cluster for scenarios, integration tests and the demo, behind one small interface.

`backends.open_cluster` picks a back end: kind where a Docker engine answers, else Kubernetes built from its
own Go modules and run in network namespaces (root only); `api` says what it can do. `control_plane` in
`integration` is the small sibling: etcd and an API server on loopback, no kubelet, any user. `images` builds
container images without a registry. `prerequisites` says what this machine lacks. `docs/e2e-cluster.md` has
the whole story.

Nothing is imported here: `prerequisites` must load before any package is installed.
"""
