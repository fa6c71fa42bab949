from typing import Any

from stoker_operator.informer.store import Store, trim_managed_fields

Object = dict[str, Any]


def pod(
    name: str = "p", version: int = 1, uid: str = "u1", owner: str = "m", namespace: str = "ns"
) -> Object:
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**metadata, "labels": {"owner": owner}, "managedFields": [{"manager": "x"}]}}


def make_store() -> tuple[Store, list[str]]:
    store = Store(index=lambda obj: [(obj["metadata"]["namespace"], obj["metadata"]["labels"]["owner"])])
    heard: list[str] = []
    store.subscribe(
        lambda obj: heard.append(f"{obj['metadata']['name']}@{obj['metadata']['resourceVersion']}")
    )
    return store, heard


def names(store: Store, owner: str = "m") -> list[str]:
    return [obj["metadata"]["name"] for obj in store.indexed(("ns", owner))]


def test_put_trims_indexes_and_tells() -> None:
    store, heard = make_store()
    assert store.put(pod("b"))
    assert store.put(pod("a"))
    assert names(store) == ["a", "b"]
    assert "managedFields" not in store.get("ns", "a")["metadata"]  # type: ignore[index]
    assert heard == ["b@1", "a@1"]
    assert len(store) == len(list(store)) == len(store.all_keys()) == 2


def test_an_older_or_equal_copy_changes_nothing_and_tells_nobody() -> None:
    store, heard = make_store()
    store.put(pod(version=5))
    assert not store.put(pod(version=4))
    assert not store.put(pod(version=5))
    assert heard == ["p@5"]


def test_moving_to_another_owner_updates_the_index_and_tells_both() -> None:
    store, heard = make_store()
    store.put(pod(version=1, owner="m"))
    store.put(pod(version=2, owner="other"))
    assert names(store, "m") == []
    assert names(store, "other") == ["p"]
    assert heard == ["p@1", "p@1", "p@2"]


def test_a_late_event_does_not_bring_back_what_we_deleted() -> None:
    store, _ = make_store()
    store.put(pod(version=5))
    assert store.forget_deleted(pod(version=5))
    assert not store.put(pod(version=6))
    assert store.get("ns", "p") is None
    store.remove(pod(version=7))
    assert store.put(pod(version=9, uid="u2")), "a successor of the same name is another object"


def test_a_late_answer_does_not_bring_back_what_the_watch_reported_gone() -> None:
    # A pod that has no node is gone at once: its event may overtake the answer of the call that deleted it.
    store, heard = make_store()
    store.put(pod(version=5))
    assert store.remove(pod(version=7))
    assert not store.put(pod(version=6))
    assert store.get("ns", "p") is None
    assert heard == ["p@5", "p@5"]


def test_an_object_that_comes_back_into_sight_is_taken_in_again() -> None:
    # A watch with a selector reports an object that loses its label as deleted, at that change's version.
    store, _ = make_store()
    store.put(pod(version=5))
    store.remove(pod(version=7))
    assert store.put(pod(version=8))
    assert names(store) == ["p"]
    assert not store.remove(pod(version=9, uid="other"))
    assert store.put(pod(version=10))


def test_what_was_deleted_exists_again_after_the_history_went_back() -> None:
    store, _ = make_store()
    store.put(pod(version=5))
    store.forget_deleted(pod(version=5))
    store.clear(None)
    store.replace([*map(store.pack, [pod(version=5)])], "6", None)
    assert names(store) == ["p"]


def test_the_deletion_of_a_predecessor_leaves_the_successor_alone() -> None:
    store, _ = make_store()
    store.put(pod(version=5, uid="new"))
    assert not store.remove(pod(version=4, uid="old"))
    assert store.get("ns", "p") is not None


def test_relist_drops_what_vanished_and_tells() -> None:
    store, heard = make_store()
    store.put(pod("kept", 1, "u1"))
    store.put(pod("vanished", 2, "u2"))
    heard.clear()
    store.replace([*map(store.pack, [pod("kept", 1, "u1"), pod("fresh", 4, "u3")])], "9", None)
    assert names(store) == ["fresh", "kept"]
    assert heard == ["vanished@2", "fresh@4"]


def test_relist_keeps_what_we_wrote_after_the_list_was_taken() -> None:
    store, _ = make_store()
    store.put(pod("ours", 12, "u2"))
    store.replace([*map(store.pack, [])], "9", None)
    assert names(store) == ["ours"]


def test_relist_of_one_namespace_leaves_the_others_alone() -> None:
    store, _ = make_store()
    store.put(pod("a", 1, "u1"))
    store.put(pod("b", 2, "u2", namespace="elsewhere"))
    store.replace([*map(store.pack, [])], "9", "elsewhere")
    assert store.all_keys() == [("ns", "a")]


def test_relist_forgets_deletions_that_it_confirms() -> None:
    store, _ = make_store()
    store.put(pod(version=5))
    store.forget_deleted(pod(version=5))
    store.replace([*map(store.pack, [pod(version=5)])], "6", None)
    assert store.get("ns", "p") is None, "the list was taken before our deletion"
    store.replace([*map(store.pack, [])], "9", None)
    assert not store._deleted_uids


def test_clear_empties_the_scope() -> None:
    store, heard = make_store()
    store.put(pod("a", 1, "u1"))
    store.put(pod("b", 2, "u2", namespace="elsewhere"))
    heard.clear()
    store.clear("ns")
    assert store.all_keys() == [("elsewhere", "b")]
    assert heard == ["a@1"]


def test_trim_leaves_the_input_alone() -> None:
    obj = pod()
    assert trim_managed_fields(obj) != obj
    assert "managedFields" in obj["metadata"]
