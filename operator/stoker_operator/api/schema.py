"""Building blocks of the API models: the base class, CEL rules and Kubernetes' own value types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

PRESERVE = "x-kubernetes-preserve-unknown-fields"


class ApiModel(BaseModel):
    """Base of all API objects: camelCase on the wire, frozen, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
    )

    def manifest(self) -> dict[str, Any]:
        """Return it as it stands in an object of Kubernetes, without what nobody set."""
        return self.model_dump(by_alias=True, exclude_none=True)


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return the JSON schema extra that holds CEL rules, given as (rule, message) pairs."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def checked(*pairs: tuple[str, str]) -> ConfigDict:
    """Return a model configuration with CEL rules over the whole object."""
    return ConfigDict(json_schema_extra=rules(*pairs))


IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            **rules(
                (
                    "type(self) == int ? self >= 0 : self.matches('^(100|[1-9]?[0-9])%$')",
                    "must be a number from 0 or a percentage such as 25%",
                )
            ),
        }
    ),
]
Quantity = Annotated[int | str, WithJsonSchema({"x-kubernetes-int-or-string": True})]
AnyObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", PRESERVE: True})]
StringMap = dict[str, Annotated[str, Field(max_length=4096)]]


def no_own_keys(what: str) -> dict[str, Any]:
    """Return a rule that keeps the stoker.dev/ prefix for the operator."""
    return rules(
        (
            "!self.exists(key, key.startsWith('stoker.dev/'))",
            f"{what} must not begin with stoker.dev/, which belongs to the operator: choose another prefix",
        )
    )
