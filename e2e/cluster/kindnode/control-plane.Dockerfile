# The pods of a control plane: the one binary under its names, and the `nft` that kube-proxy runs.
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS tools
RUN apt-get update --quiet \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends nftables \
    && mkdir /out \
    && { ldd /usr/sbin/nft | grep -oE '/[^ ]+'; echo /usr/sbin/nft; } | xargs -I FILE cp --dereference --parents FILE /out
FROM scratch
COPY --from=tools /out/ /
COPY bin/ /usr/local/bin/
ENV PATH=/usr/local/bin:/usr/sbin
