"""The CustomResourceDefinition, from the pydantic models. ``python -m stoker_operator.api.crd`` prints it."""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml
from pydantic import BaseModel

from stoker_operator.api.labels import GROUP, KIND, PLURAL, VERSION
from stoker_operator.api.parse import MAX_NAME_LENGTH
from stoker_operator.api.schema import rules
from stoker_operator.api.spec import Spec
from stoker_operator.api.statusmodel import Status

_NAME_RULES = rules(
    (
        f"size(self.metadata.name) <= {MAX_NAME_LENGTH} && "
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        f"metadata.name must be at most {MAX_NAME_LENGTH} lower-case letters, digits and dashes that begin "
        "with a letter, because the Service has the same name",
    )
)

_COLUMNS = (
    (
        "Ready",
        "string",
        '.status.conditions[?(@.type=="Ready")].status',
        0,
        "Whether as many replicas answer as were promised.",
    ),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0, "Why, in a word."),
    ("Replicas", "integer", ".spec.replicas", 0, "Replicas wanted."),
    ("Available", "integer", ".status.readyReplicas", 0, "Replicas that answer."),
    ("Source", "string", ".spec.model.source", 1, "Where the weights are."),
    ("URL", "string", ".status.url", 0, "Address that clients call."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since creation."),
)


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema in the form that a CRD takes: no references, no titles, no null types."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        return _structural({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if options:
        # Optional[X]: Kubernetes leaves a field out instead of storing null.
        (option,) = options
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return _structural({**option, **rest}, definitions)
    result = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "maxLength" in result and result.get("type") == "object":
        result["maxProperties"] = result.pop("maxLength")
    if "properties" in schema:
        result["properties"] = {
            name: _structural(value, definitions) for name, value in schema["properties"].items()
        }
    if isinstance(schema.get("items"), dict):
        result["items"] = _structural(schema["items"], definitions)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    if "const" in result:  # a CRD's schema has no such word
        result["enum"] = [result.pop("const")]
    if result.get("default", ...) is None:
        del result["default"]
    elif isinstance(result.get("default"), dict):
        # The defaults of the fields inside fill it.
        result["default"] = {}
    return result


_DROPPED = frozenset({"title", "$defs", "additionalProperties"})


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of ModelDeployment."""
    schema = {
        "type": "object",
        "description": "A model, served by pods that the operator keeps running.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(Spec),
            "status": {**structural_schema(Status), "default": {}},
        },
        **_NAME_RULES,
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": text}
            for name, kind, path, priority, text in _COLUMNS
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["mdep"],
                "categories": ["stoker"],
            },
            "versions": [version],
        },
    }


def crd_yaml() -> str:
    """Return the file ``crds/modeldeployments.yaml``."""
    # What occurs twice shall stand there twice: YAML's aliases are for parsers.
    text = yaml.safe_dump(json.loads(json.dumps(crd())), sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated from operator/stoker_operator/api by `make crd`; edit it there.\n{text}"


if __name__ == "__main__":
    sys.stdout.write(crd_yaml())
