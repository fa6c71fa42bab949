"""A tiny model within the cluster's reach: on a stand-in hub, in a bucket, and in a folder of one node.

One pod does all. The model, two layers of random weights, is small enough for a ConfigMap; the pod copies it
into the node's folder and serves it with tests/hub_builders.py and bucket.py, so that nothing leaves the
cluster.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from model_builders import write_model, write_tokenizer
from tokenizers import decoders

from product import REPOSITORY
from scenarios import manifests
from scenarios.clientpod import RESTRICTED
from scenarios.kube import Kube, Object, is_true
from scenarios.platform import Platform
from scenarios.waiting import eventually

NAME = "shelf"
REPOSITORY_ID = "org/tiny"
TOKEN = "hf_e2e"
PORT = 8080
TLS_PORT = 8443
BUCKET = "models"
FOLDER = "in-house/tiny"
KEYS = {"AWS_ACCESS_KEY_ID": "shelf", "AWS_SECRET_ACCESS_KEY": "e2e/secret+key"}
BUCKET_PORT = 9000
VOCAB_SIZE = 256  # a token for each byte
COPY = "mkdir -p /shelf/tiny && cp -L /model/* /shelf/tiny/ && chmod -R a+rX /shelf"
POD: Object = {
    "resources": {"requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"cpu": "1500m"}},
    "terminationGracePeriodSeconds": 30,
}


@dataclass(frozen=True)
class Shelf:
    """Where the model is.

    Attributes:
        hub_url: of the hub, which wants TOKEN for REPOSITORY_ID.
        tls_url: of the same hub, with a certificate of an authority that nobody knows.
        authority: that one, as PEM.
        bucket_url: of the server that has BUCKET, and in it FOLDER for who has KEYS.
        node: that has the folder.
        folder: on that node; the model is in `tiny` below it.
    """

    hub_url: str
    tls_url: str
    authority: str
    bucket_url: str
    node: str
    folder: str

    def modeldeployment(self, name: str, namespace: str, source: str, **model: Any) -> Object:
        """Return a ModelDeployment of the model that can only run where the folder is.

        Args:
            name: of the object, and of the model for clients.
            namespace: where it goes.
            source: where it finds the model.
            model: further fields of `spec.model`.
        """
        env = [
            {"name": "HF_ENDPOINT", "value": self.hub_url},
            {"name": "AWS_ENDPOINT_URL", "value": self.bucket_url},
        ]
        return manifests.modeldeployment(
            name,
            namespace,
            model={"source": source, "servedName": name, **model},
            engine={},
            pod={**POD, "env": env},
            scheduling={"nodeSelector": {"kubernetes.io/hostname": self.node}},
        )


def start(platform: Platform, namespace: str, image: str, work: Path) -> Shelf:
    """Make the model, and the pod that offers it, and wait until it does.

    Args:
        platform: where.
        namespace: one that allows pods to mount a folder of their node.
        image: any that has Python and a shell.
        work: an empty folder of this machine.
    """
    kube = platform.kube
    write_model(work, "llama", vocab_size=VOCAB_SIZE)
    tokenizer = write_tokenizer(work, VOCAB_SIZE)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(work / "tokenizer.json"))
    # Below the folder that a native cluster removes with everything else; kind's nodes vanish as a whole.
    folder = f"/var/lib/stoker/{platform.cluster.name}/shelf"
    node = platform.cluster.node_names()[0]
    authority, host = trustme.CA(), f"{NAME}.{namespace}.svc.cluster.local"
    certificate = authority.issue_cert(host).private_key_and_cert_chain_pem.bytes().decode()
    for manifest in (
        *_config_maps(namespace, work, certificate),
        _service(namespace),
        _pod(namespace, image, node, folder),
    ):
        kube.apply(manifest)

    def is_ready() -> bool:
        return is_true(kube.get("Pod", NAME, namespace), "Ready")

    eventually("the hub and the bucket answer", is_ready, 60, lambda: kube.get("Pod", NAME, namespace))
    pem = authority.cert_pem.bytes().decode()
    bucket_url = f"http://{host}:{BUCKET_PORT}"
    return Shelf(f"http://{host}", f"https://{host}", pem, bucket_url, node, folder)


def claim(kube: Kube, shelf: Shelf, namespace: str) -> str:
    """Make a volume of the node's folder and a claim that is bound to it, and return the claim's name."""
    volume = f"{NAME}-{namespace}"
    fits = {"key": "kubernetes.io/hostname", "operator": "In", "values": [shelf.node]}
    shape: Object = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **shape,
                "capacity": {"storage": "1Gi"},
                "hostPath": {"path": shelf.folder, "type": "Directory"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [fits]}]}},
                "persistentVolumeReclaimPolicy": "Retain",
            },
        }
    )
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": NAME, "namespace": namespace},
            "spec": {**shape, "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    return NAME


def _config_maps(namespace: str, work: Path, certificate: str) -> list[Object]:
    here = Path(__file__)
    scripts = (
        here.with_name("hub.py"),
        here.with_name("bucket.py"),
        REPOSITORY / "tests" / "hub_builders.py",
    )
    content = {path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(work.iterdir())}
    return [
        _config_map(namespace, "model", binaryData=content),
        _config_map(namespace, "scripts", data={path.name: path.read_text() for path in scripts}),
        _config_map(namespace, "tls", data={"hub.pem": certificate}),
    ]


def _config_map(namespace: str, name: str, **content: Object) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **content}


def _service(namespace: str) -> Object:
    ports = [
        {"name": "http", "port": 80, "targetPort": PORT},
        {"name": "https", "port": 443, "targetPort": TLS_PORT},
        {"name": "s3", "port": BUCKET_PORT},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {"selector": {"app": NAME}, "ports": ports},
    }


def _servers(image: str) -> list[Object]:
    """The hub, the same with TLS, and the bucket."""
    volumes = [{"name": "model", "mountPath": "/model"}, {"name": "scripts", "mountPath": "/scripts"}]
    hub = ("hub.py", "/model", REPOSITORY_ID, TOKEN)
    return [
        _server("hub", image, PORT, (*hub, str(PORT)), volumes),
        _server(
            "tls-hub",
            image,
            TLS_PORT,
            (*hub, str(TLS_PORT), "/tls/hub.pem"),
            [*volumes, {"name": "tls", "mountPath": "/tls"}],
        ),
        _server(
            "bucket",
            image,
            BUCKET_PORT,
            ("bucket.py", "/model", BUCKET, FOLDER, *KEYS.values(), str(BUCKET_PORT)),
            volumes,
        ),
    ]


def _server(name: str, image: str, port: int, command: tuple[str, ...], volumes: list[Object]) -> Object:
    script, *arguments = command
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", f"/scripts/{script}", *arguments],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
        "securityContext": RESTRICTED,
        "volumeMounts": volumes,
    }


def _pod(namespace: str, image: str, node: str, folder: str) -> Object:
    copy = {
        "name": "copy",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", COPY],
        "securityContext": {"runAsUser": 0},  # the node's folder belongs to root
        "volumeMounts": [
            {"name": "model", "mountPath": "/model"},
            {"name": "shelf", "mountPath": "/shelf"},
        ],
    }
    volumes: list[Object] = [
        {"name": "tls", "configMap": {"name": "tls"}},
        {"name": "model", "configMap": {"name": "model"}},
        {"name": "scripts", "configMap": {"name": "scripts"}},
        {"name": "shelf", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {"app": NAME}},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "initContainers": [copy],
            "containers": _servers(image),
            "volumes": volumes,
        },
    }
