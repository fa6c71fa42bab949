# The same binary under the name that makes it CoreDNS: kubeadm's Deployment gives arguments, and no command.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
ENTRYPOINT ["/usr/local/bin/coredns"]
