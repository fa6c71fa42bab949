"""Tables that stay on the device hold, after any steps, what each step's plan says."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_builders import make_sampling

from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.model.cuda.block_tables import BlockTables
from stoker_runtime.model.cuda.step_layout import pack
from stoker_runtime.model.cuda.store_blocks import store_blocks

MAX_BLOCKS = 6


def scheduled(name: str, table: list[int], num_tokens: int = 1) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=name,
        token_ids=[7] * num_tokens,
        num_computed_tokens=len(table) - num_tokens,
        block_ids=table,
        samples=True,
        sampling=make_sampling(),
        seed=0,
        prompt_token_ids=[],
        output_token_ids=[],
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), num_rows=st.integers(1, 5), num_steps=st.integers(1, 12))
def test_after_any_steps_the_device_has_the_tables_of_the_latest(
    device: torch.device, data: Any, num_rows: int, num_steps: int
) -> None:
    tables = BlockTables(num_rows, MAX_BLOCKS)
    blocks = torch.full((num_rows * MAX_BLOCKS,), -1, dtype=torch.int32, device=device)
    new_block = count()
    held: dict[str, list[int]] = {}
    for _ in range(num_steps):
        names = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=num_rows, unique=True))
        for name in names:
            table = held.setdefault(name, [])
            if data.draw(st.integers(0, 5)) == 0:  # it was preempted, or ended and the id came again
                table = held[name] = []
            room = MAX_BLOCKS - len(table)
            table += [next(new_block) for _ in range(data.draw(st.integers(0 if table else 1, room)))]
        if data.draw(st.integers(0, 9)) == 0:
            tables.forget()
        firsts, changes = tables.changes([scheduled(name, held[name]) for name in names])
        store_blocks(blocks, torch.from_numpy(changes).to(device), len(changes) // 2)
        on_device = blocks.tolist()
        for name in names:
            assert on_device[firsts[name] : firsts[name] + len(held[name])] == held[name]
        assert len(set(firsts.values())) == len(names)


def test_only_what_changed_travels() -> None:
    tables = BlockTables(2, MAX_BLOCKS)
    table, other = [5, 6], [8]
    _, changes = tables.changes([scheduled("a", table), scheduled("b", other)])
    assert len(changes) == 6
    table.append(9)
    firsts, changes = tables.changes([scheduled("a", table), scheduled("b", other)])
    assert changes.tolist() == [firsts["a"] + 2, 9]
    assert tables.changes([scheduled("a", table)])[1].tolist() == []
    firsts, changes = tables.changes([scheduled("c", [1])])  # b has been away for longest
    assert changes.tolist() == [firsts["c"], 1]
    assert tables.changes([scheduled("a", table)])[1].tolist() == []


def test_a_plan_says_the_same_with_tables_on_the_device_as_with_its_own() -> None:
    requests = [scheduled("a", [3, 4, 5]), scheduled("b", [9, 8, 7, 6], num_tokens=2), scheduled("c", [2])]
    own = pack(StepPlan(requests), 1, 4)
    tables = BlockTables(4, MAX_BLOCKS)
    resident = pack(StepPlan(requests), 1, 4, tables=tables)
    blocks = np.zeros(4 * MAX_BLOCKS, dtype=np.int32)
    pairs = resident.fields["changes"].reshape(-1, 2)
    blocks[pairs[:, 0]] = pairs[:, 1]
    for name, values in own.fields.items():
        if name not in ("blocks", "decode_first_blocks", "chunk_first_blocks"):
            assert resident.fields[name].tolist() == values.tolist()
    for name, lengths in (("decode_first_blocks", (3, 1)), ("chunk_first_blocks", (4,))):
        for mine, theirs, length in zip(resident.fields[name], own.fields[name], lengths, strict=True):
            expected = own.fields["blocks"][theirs : theirs + length].tolist()
            assert blocks[mine : mine + length].tolist() == expected
    assert list(resident.fields)[-1] == "changes"
