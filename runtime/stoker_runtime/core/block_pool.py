"""KV blocks as numbers: who holds them, which prefix each one stores, and which is taken next.

A block is referenced by running requests, or it is free. A free block may still store a known prefix; it
stays findable by hash until it is handed out again, least recently used first. Every operation is O(1) per
block.

A block's hash covers its tokens and, through its parent's hash, all tokens before it, so equal hashes mean
equal prefixes. The hash is keyed with a secret of this process, and the first link carries the request's
cache salt: nobody can craft two prompts that collide, nor find a prefix under a salt that is not theirs.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

_HASH_BYTES = 16


class BlockPool:
    """All KV blocks of one model.

    Args:
        num_blocks: blocks there are; their ids are 0 .. num_blocks - 1.
        block_size: tokens per block.
        hash_key: secret of this process, 16 to 64 bytes; None turns the prefix cache off.

    Raises:
        ValueError: a size below 1, or a key that is too short or too long.
    """

    def __init__(self, num_blocks: int, block_size: int, hash_key: bytes | None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size} must be at least 1")
        if hash_key is not None and not 16 <= len(hash_key) <= 64:
            raise ValueError(f"hash_key has {len(hash_key)} bytes; 16 to 64 are needed")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._key = hash_key
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks  # what a block stores, if it is findable
        self._cached: dict[bytes, int] = {}  # the other way round
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to take first

    @property
    def num_free(self) -> int:
        """Blocks that no request holds."""
        return len(self._free)

    @property
    def is_caching(self) -> bool:
        """Whether prefixes are kept and found."""
        return self._key is not None

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def extend_hashes(
        self, hashes: list[bytes], token_ids: Sequence[int], num_blocks: int, salt: str
    ) -> None:
        """Append hashes until the first `num_blocks` blocks of `token_ids` have theirs.

        Args:
            hashes: hashes of the leading blocks, as returned by earlier calls with the same tokens and salt.
            token_ids: the request's tokens; at least num_blocks full blocks of them.
            num_blocks: how many hashes are wanted.
            salt: separates requests that must not share blocks.
        """
        if self._key is None:
            return
        size = self.block_size
        for index in range(len(hashes), num_blocks):
            if index == 0:
                parent = blake2b(
                    salt.encode(), digest_size=_HASH_BYTES, key=self._key, person=b"salt"
                ).digest()
            else:
                parent = hashes[index - 1]
            tokens = array("q", token_ids[index * size : (index + 1) * size]).tobytes()
            hashes.append(blake2b(parent + tokens, digest_size=_HASH_BYTES, key=self._key).digest())

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks that store the longest leading run of these hashes. Takes no reference."""
        found = []
        for block_hash in hashes:
            block_id = self._cached.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def num_idle(self, block_ids: Iterable[int]) -> int:
        """Count those of the blocks that nobody holds, which is what sharing them takes from num_free."""
        return sum(self._ref_counts[block_id] == 0 for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """Take one more reference to blocks that `find` returned."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free[block_id]
            self._ref_counts[block_id] += 1

    def take(self, count: int) -> list[int]:
        """Take blocks to write to and forget the prefixes they stored. The caller has checked num_free."""
        taken = []
        for _ in range(count):
            block_id, _ = self._free.popitem(last=False)
            self._forget(block_id)
            self._ref_counts[block_id] = 1
            taken.append(block_id)
        return taken

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Make a full block findable, unless another block already stores the same prefix."""
        if self._hashes[block_id] is None and block_hash not in self._cached:
            self._hashes[block_id] = block_hash
            self._cached[block_hash] = block_id

    def unpublish(self, block_ids: Iterable[int]) -> None:
        """Make blocks impossible to find, because what they store is not to be trusted."""
        for block_id in block_ids:
            self._forget(block_id)

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop one reference to each block of a request's table.

        The table's end is taken again before its start, since a later block is useless without those before;
        blocks that store no findable prefix are taken first of all.
        """
        for block_id in reversed(block_ids):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                if self._hashes[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that the pool agrees with itself and with the block tables of all requests.

        Raises:
            AssertionError: a block is lost, counted wrongly, or findable under a wrong hash.
        """
        counts = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a block occurs twice in one table: {table}"
            for block_id in table:
                counts[block_id] += 1
        assert counts == self._ref_counts, "reference counts differ from the block tables"
        idle = {block_id for block_id, count in enumerate(counts) if count == 0}
        assert set(self._free) == idle, "the free list is not the set of unreferenced blocks"
        findable = {
            block_hash: block_id for block_id, block_hash in enumerate(self._hashes) if block_hash is not None
        }
        assert findable == self._cached, "the hash index and the blocks' hashes differ"
        assert self.is_caching or not self._cached, "blocks are findable although the prefix cache is off"

    def _forget(self, block_id: int) -> None:
        block_hash = self._hashes[block_id]
        if block_hash is not None:
            del self._cached[block_hash]
            self._hashes[block_id] = None
