"""Fields of any shape, such as affinity, may be nested deeper than one JSON writer goes."""

from __future__ import annotations

from typing import Any

from operator_builders import make_model

from stoker_operator.informer.store import Store

Object = dict[str, Any]


def test_an_object_that_is_nested_deep_is_kept_like_any_other() -> None:
    affinity: Object = {}
    for _ in range(300):  # the API server stores ten thousand
        affinity = {"a": affinity}
    model = make_model(scheduling={"affinity": affinity})
    model["metadata"]["resourceVersion"] = "1"
    store = Store()
    assert store.put(model)
    found = store.get("team", "smol")
    assert found is not None
    assert found["spec"] == model["spec"]
