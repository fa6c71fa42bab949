import pytest

from stoker_runtime.core.block_pool import BlockPool

KEY = b"k" * 16


def make_pool(num_blocks: int = 4, block_size: int = 2, key: bytes | None = KEY) -> BlockPool:
    return BlockPool(num_blocks, block_size, key)


def hashes_of(pool: BlockPool, token_ids: list[int], salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    pool.extend_hashes(hashes, token_ids, len(token_ids) // pool.block_size, salt)
    return hashes


def store(pool: BlockPool, token_ids: list[int], salt: str = "") -> list[int]:
    """Take blocks for the tokens, make them findable, and let them go."""
    hashes = hashes_of(pool, token_ids, salt)
    blocks = pool.take(len(hashes))
    for block_id, block_hash in zip(blocks, hashes, strict=True):
        pool.publish(block_id, block_hash)
    pool.release(blocks)
    return blocks


@pytest.mark.parametrize(
    ("num_blocks", "block_size", "key"),
    [
        pytest.param(0, 16, KEY, id="no-blocks"),
        pytest.param(4, 0, KEY, id="no-block-size"),
        pytest.param(4, 16, b"short", id="guessable-key"),
        pytest.param(4, 16, b"x" * 65, id="key-too-long"),
    ],
)
def test_refuses_impossible_sizes(num_blocks: int, block_size: int, key: bytes) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1|16 to 64"):
        BlockPool(num_blocks, block_size, key)


def test_blocks_for_rounds_up() -> None:
    pool = make_pool(block_size=4)
    assert [pool.blocks_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_finds_the_longest_stored_prefix() -> None:
    pool = make_pool()
    blocks = store(pool, [1, 2, 3, 4])
    assert pool.find(hashes_of(pool, [1, 2, 3, 4, 5, 6])) == blocks
    assert pool.find(hashes_of(pool, [1, 2, 9, 9])) == blocks[:1]
    assert pool.find(hashes_of(pool, [3, 4])) == []


def test_same_tokens_after_another_prefix_are_another_block() -> None:
    pool = make_pool()
    store(pool, [1, 2, 7, 8])
    assert pool.find(hashes_of(pool, [5, 6, 7, 8])) == []


def test_salt_and_key_separate_equal_prompts() -> None:
    pool = make_pool()
    store(pool, [1, 2], salt="tenant-a")
    assert pool.find(hashes_of(pool, [1, 2], salt="tenant-b")) == []
    assert pool.find(hashes_of(pool, [1, 2])) == []
    assert hashes_of(pool, [1, 2]) != hashes_of(make_pool(key=b"other key, 16 b!"), [1, 2])


def test_hashes_do_not_depend_on_how_they_were_extended() -> None:
    pool = make_pool()
    tokens = [1, 2, 3, 4, 5, 6]
    hashes: list[bytes] = []
    pool.extend_hashes(hashes, tokens, 1, "s")
    pool.extend_hashes(hashes, tokens, 3, "s")
    assert hashes == hashes_of(pool, tokens, "s")


def test_shared_block_is_free_only_after_its_last_holder() -> None:
    pool = make_pool()
    (block,) = store(pool, [1, 2])
    pool.share([block])
    pool.share([block])
    assert pool.num_free == 3
    pool.release([block])
    assert pool.num_free == 3
    pool.release([block])
    assert pool.num_free == 4
    pool.check([])


def test_num_idle_counts_blocks_nobody_holds() -> None:
    pool = make_pool()
    held, idle = store(pool, [1, 2, 3, 4])
    pool.share([held])
    assert pool.num_idle([held, idle]) == 1


def test_least_recently_used_prefix_is_forgotten_first() -> None:
    pool = make_pool(num_blocks=2)
    store(pool, [1, 2])
    (newer,) = store(pool, [3, 4])
    pool.take(1)
    assert pool.find(hashes_of(pool, [1, 2])) == []
    assert pool.find(hashes_of(pool, [3, 4])) == [newer]


def test_sharing_makes_a_prefix_recently_used() -> None:
    pool = make_pool(num_blocks=2)
    (older,) = store(pool, [1, 2])
    store(pool, [3, 4])
    pool.share([older])
    pool.release([older])
    pool.take(1)
    assert pool.find(hashes_of(pool, [1, 2])) == [older]
    assert pool.find(hashes_of(pool, [3, 4])) == []


def test_end_of_a_prefix_is_taken_before_its_start() -> None:
    pool = make_pool(num_blocks=3)
    blocks = store(pool, [1, 2, 3, 4, 5, 6])
    pool.take(1)
    assert pool.find(hashes_of(pool, [1, 2, 3, 4, 5, 6])) == blocks[:2]


def test_block_without_a_prefix_is_taken_before_any_stored_prefix() -> None:
    pool = make_pool(num_blocks=2)
    (stored,) = store(pool, [1, 2])
    blank = pool.take(1)
    pool.release(blank)
    assert pool.take(1) == blank
    assert pool.find(hashes_of(pool, [1, 2])) == [stored]


def test_second_block_with_the_same_prefix_is_not_published() -> None:
    pool = make_pool()
    (first,) = store(pool, [1, 2])
    (second,) = pool.take(1)
    pool.publish(second, hashes_of(pool, [1, 2])[0])
    assert pool.find(hashes_of(pool, [1, 2])) == [first]
    pool.release([second])
    pool.check([])


def test_unpublished_block_cannot_be_found_and_stays_held() -> None:
    pool = make_pool()
    (block,) = store(pool, [1, 2])
    pool.share([block])
    pool.unpublish([block])
    assert pool.find(hashes_of(pool, [1, 2])) == []
    pool.check([[block]])


def test_without_a_key_nothing_is_hashed() -> None:
    pool = make_pool(key=None)
    assert not pool.is_caching
    assert hashes_of(pool, [1, 2, 3, 4]) == []


def test_check_notices_a_lost_block_and_a_double_one() -> None:
    pool = make_pool()
    (block,) = pool.take(1)
    pool.check([[block]])
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check([])
    with pytest.raises(AssertionError, match="twice"):
        pool.check([[block, block]])
