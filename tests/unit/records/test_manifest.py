"""What a manifest says of the vocabularies that a run reads with."""

from opd.records.manifest import vocabulary_hash


def test_vocabularies_that_read_ids_alike_have_one_hash_and_others_another():
    one = vocabulary_hash({"a": 0, "b": 1})
    assert vocabulary_hash({"b": 1, "a": 0}) == one
    others = [{"a": 1, "b": 0}, {"a": 0}, {"a": 0, "c": 1}, {"a": 0, "b": 1, "c": 2}]
    assert len({one, *map(vocabulary_hash, others)}) == 1 + len(others)
