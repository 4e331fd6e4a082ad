"""What is known of the cluster, from the watch and from the answers to our own writes."""

from reattach.api.objects import ObjectMeta, PartialObject
from reattach.runtime.object_store import ObjectStore, is_older
from reattach.runtime.workqueue import Key

KEY = Key("default", "load")


def made(uid: str, version: str, *, name: str = "load", namespace: str = "default") -> PartialObject:
    metadata = ObjectMeta(name=uid, namespace=namespace, uid=uid, resource_version=version, labels={"of": name})
    return PartialObject(metadata=metadata)


def a_cache() -> tuple[ObjectStore[PartialObject], list[Key]]:
    marked: list[Key] = []
    return ObjectStore(lambda found: Key(found.metadata.namespace, found.metadata.labels["of"]), marked.append), marked


def versions(cache: ObjectStore[PartialObject], key: Key = KEY) -> list[tuple[str, str]]:
    return [(found.metadata.uid, found.metadata.resource_version) for found in cache.by_key(key)]


def test_versions_are_compared_as_numbers() -> None:
    assert is_older("99", than="100")
    assert not is_older("100", than="99")
    assert not is_older("100", than="100")


def test_a_version_that_is_no_number_is_never_called_older() -> None:
    assert not is_older("abc", than="abd")


def test_a_change_marks_its_key_once() -> None:
    cache, marked = a_cache()
    assert cache.upsert(made("u1", "5"))
    assert not cache.upsert(made("u1", "5"))
    assert marked == [KEY]


def test_the_answer_to_our_own_write_is_not_undone_by_a_late_watch_event() -> None:
    cache, marked = a_cache()
    cache.upsert(made("u1", "5"))
    cache.upsert(made("u1", "9"))  # our own write
    assert not cache.upsert(made("u1", "7"))  # somebody's write before it, told late
    assert versions(cache) == [("u1", "9")]
    assert len(marked) == 2


def test_the_answer_to_our_own_write_does_not_undo_a_newer_watch_event() -> None:
    cache, _ = a_cache()
    cache.upsert(made("u1", "12"))
    assert not cache.upsert(made("u1", "9"))
    assert versions(cache) == [("u1", "12")]


def test_a_late_answer_does_not_bring_a_deleted_object_back() -> None:
    cache, _ = a_cache()
    cache.upsert(made("u1", "5"))
    cache.delete("u1")
    assert not cache.upsert(made("u1", "9"))
    assert versions(cache) == []


def test_what_only_left_the_selector_comes_back_with_what_is_newer_than_that() -> None:
    cache, _ = a_cache()
    cache.upsert(made("u1", "5"))
    cache.delete("u1", version="9")
    assert not cache.upsert(made("u1", "8"))  # the late answer to a write before it left
    assert not cache.upsert(made("u1", "9"))
    assert cache.upsert(made("u1", "10"))
    assert not cache.upsert(made("u1", "9"))
    assert versions(cache) == [("u1", "10")]


def test_forgetting_marks_the_key_that_it_belonged_to() -> None:
    cache, marked = a_cache()
    cache.upsert(made("u1", "5"))
    cache.delete("u1")
    cache.delete("u1")
    assert marked == [KEY, KEY]
    assert len(cache) == 0


def test_a_label_that_is_changed_moves_the_object_and_marks_both_keys() -> None:
    cache, marked = a_cache()
    cache.upsert(made("u1", "5"))
    cache.upsert(made("u1", "6", name="other"))
    assert versions(cache) == []
    assert versions(cache, Key("default", "other")) == [("u1", "6")]
    assert marked == [KEY, KEY, Key("default", "other")]


def test_two_objects_of_one_name_are_kept_apart() -> None:
    cache, _ = a_cache()
    cache.upsert(made("u1", "5"))
    cache.upsert(made("u2", "6"))
    assert versions(cache) == [("u1", "5"), ("u2", "6")]


def test_a_list_tells_what_was_deleted_while_no_watch_was_there() -> None:
    cache, _ = a_cache()
    for uid in ("u1", "u2"):
        cache.upsert(made(uid, "5"))
    assert [gone.metadata.uid for gone in cache.absent_in({"u2"}, "20", None)] == ["u1"]


def test_what_we_made_after_the_list_was_taken_is_not_missing() -> None:
    cache, _ = a_cache()
    cache.upsert(made("u1", "25"))
    assert cache.absent_in((), "20", None) == []


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    cache, _ = a_cache()
    cache.upsert(made("u1", "5", namespace="other"))
    assert cache.absent_in((), "20", "default") == []
