"""Who starts, who gets prompt tokens, and who gives way: priorities, lanes and the limit beside decodes."""

import pytest
from scheduler_builders import add, make_scheduler, shares, step


def test_urgent_requests_start_first_and_equals_in_order_of_arrival() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for request_id, priority in (("a", 5), ("b", 0), ("c", -5), ("d", 0), ("e", -5)):
        add(scheduler, [7], request_id=request_id, priority=priority, max_tokens=1)
    assert [list(shares(step(scheduler)[0])) for _ in range(5)] == [["c"], ["e"], ["b"], ["d"], ["a"]]


def test_urgent_prompt_neither_stops_nor_delays_a_running_request() -> None:
    scheduler = make_scheduler(max_num_seqs=2, budget=8)
    add(scheduler, 3, request_id="idle", priority=9)
    add(scheduler, 3, request_id="too", priority=9, max_tokens=2)
    step(scheduler)
    add(scheduler, 30, request_id="urgent", priority=-9)
    assert shares(step(scheduler)[0]) == {"idle": (3, 1), "too": (3, 1)}  # both slots are taken
    assert shares(step(scheduler)[0]) == {"idle": (4, 1), "urgent": (0, 7)}


def test_urgent_prompt_is_computed_before_one_that_was_begun() -> None:
    scheduler = make_scheduler(budget=8)
    add(scheduler, 20, request_id="begun")
    step(scheduler)
    add(scheduler, [40] * 9, request_id="urgent", priority=-1)
    plans = [shares(step(scheduler)[0]) for _ in range(4)]
    assert plans == [
        {"urgent": (0, 8)},
        {"urgent": (8, 1), "begun": (8, 7)},
        {"urgent": (9, 1), "begun": (15, 5)},
        {"urgent": (10, 1), "begun": (20, 1)},
    ]


def test_nobody_starts_while_somebody_more_urgent_waits_for_blocks() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=2)
    add(scheduler, 8, request_id="running", max_tokens=2)
    step(scheduler)
    add(scheduler, [7] * 9, request_id="urgent", priority=-1, max_tokens=1)
    add(scheduler, [8], request_id="small", max_tokens=1)
    assert list(shares(step(scheduler)[0])) == ["running"]
    assert list(shares(step(scheduler)[0])) == ["urgent", "small"]


@pytest.mark.parametrize(
    ("num_decodes", "options", "prefill"),
    [
        pytest.param(0, {"beside": 3}, 20, id="alone-all-of-the-budget"),
        pytest.param(1, {"beside": 3}, 3, id="beside-a-decode-little"),
        pytest.param(2, {"beside": 3, "per_request": 2}, 6, id="more-for-each-that-decodes-or-waits"),
        pytest.param(2, {"beside": 3, "per_request": 2, "max_num_seqs": 3}, 6, id="and-may-run"),
        pytest.param(2, {"beside": 100}, 18, id="never-above-the-budget"),
    ],
)
def test_prompt_tokens_beside_decodes(num_decodes: int, options: dict[str, int], prefill: int) -> None:
    scheduler = make_scheduler(budget=20, **options)  # type: ignore[arg-type]
    for number in range(num_decodes):
        add(scheduler, [number], request_id=str(number))
    if num_decodes:
        step(scheduler)
    add(scheduler, [9] * 40, request_id="long")
    assert shares(step(scheduler)[0])["long"] == (0, prefill)


def test_prompt_tokens_beside_decodes_count_more_the_more_they_attend_to() -> None:
    scheduler = make_scheduler(budget=30, beside=12, price=8)
    add(scheduler, [7], request_id="decode")
    step(scheduler)
    add(scheduler, [9] * 40, request_id="long", max_tokens=1)
    chunks = [shares(step(scheduler)[0])["long"] for _ in range(4)]
    assert chunks == [(0, 12), (12, 4), (16, 4), (20, 3)]
    scheduler.abort("decode")
    assert shares(step(scheduler)[0]) == {"long": (23, 17)}


def test_what_is_too_little_for_the_next_token_of_a_prompt_starts_no_other() -> None:
    scheduler = make_scheduler(budget=30, beside=12, price=8)
    for name, prompt in (("decode", [7]), ("long", [9] * 40), ("next", [8] * 40)):
        add(scheduler, prompt, request_id=name)
        step(scheduler)
    # Four tokens behind twelve count eleven; the one that is left goes to nobody.
    assert shares(step(scheduler)[0])["long"][1] < 12
    assert scheduler.stats().num_waiting == 1


def test_short_prompts_overtake_a_long_one_and_leave_it_a_quarter() -> None:
    scheduler = make_scheduler(max_num_seqs=8, budget=16, long=8, max_model_len=200)
    add(scheduler, 100, request_id="long")
    assert shares(step(scheduler)[0]) == {"long": (0, 16)}
    for number in range(4):
        add(scheduler, [40 + number] * 8, request_id=f"short {number}", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"short 0": (0, 8), "short 1": (0, 4), "long": (16, 4)}
    assert shares(step(scheduler)[0]) == {"short 1": (4, 4), "short 2": (0, 8), "long": (20, 4)}
    assert shares(step(scheduler)[0]) == {"short 3": (0, 8), "long": (24, 8)}


def test_one_long_prompt_after_the_other() -> None:
    scheduler = make_scheduler(max_num_seqs=8, budget=16, long=8)
    for number in range(3):
        add(scheduler, [40 + number] * 20, request_id=f"long {number}", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"long 0": (0, 16)}
    assert shares(step(scheduler)[0]) == {"long 0": (16, 4), "long 1": (0, 12)}
    add(scheduler, [1, 2], request_id="short", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"short": (0, 2), "long 1": (12, 8), "long 2": (0, 6)}


def test_long_prompt_with_a_known_start_is_short() -> None:
    scheduler = make_scheduler(budget=16, long=8)
    add(scheduler, 16, request_id="before", max_tokens=1)
    step(scheduler)
    add(scheduler, [40] * 20, request_id="long", max_tokens=1)
    add(scheduler, 18, request_id="again", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"again": (16, 2), "long": (0, 14)}


def test_prompt_whose_known_start_is_gone_waits_as_a_long_one() -> None:
    scheduler = make_scheduler(max_num_seqs=2, budget=16, long=8, num_blocks=6)
    add(scheduler, 16, request_id="before", max_tokens=1)
    step(scheduler)
    for name, token in (("a", 40), ("b", 41)):
        add(scheduler, [token] * 11, request_id=name, max_tokens=2)
    add(scheduler, 18, request_id="again", max_tokens=1)  # short, as long as nobody takes its blocks
    while scheduler.has_work:
        plan, _ = step(scheduler)
        if "again" in shares(plan):
            break
    assert shares(plan)["again"][1] > 8


def test_long_prompt_that_finds_no_room_is_overtaken_only_so_often() -> None:
    scheduler = make_scheduler(max_num_seqs=3, budget=16, long=8, num_blocks=12)
    add(scheduler, [40] * 8, request_id="running", max_tokens=40)
    step(scheduler)
    add(scheduler, [41] * 39, request_id="long", max_tokens=1)  # 10 of the 9 blocks that are left
    started: list[str] = []
    for number in range(9):
        add(scheduler, [number], request_id=f"short {number}", max_tokens=1)
        started += [name for name, (start, _) in shares(step(scheduler)[0]).items() if start == 0]
    assert started == ["short 0", "short 1", "short 2"]
    scheduler.abort("running")
    assert list(shares(step(scheduler)[0])) == ["short 3", "long"]


def test_preempts_the_least_urgent_request_and_of_those_the_newest() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=2)
    for request_id, priority in (("low", 1), ("lower", 2), ("newest", 2)):
        add(scheduler, [ord(request_id[0])], request_id=request_id, priority=priority, max_tokens=9)
    add(scheduler, [1, 2], request_id="urgent", priority=-1, max_tokens=9)
    ran = [list(shares(step(scheduler)[0])) for _ in range(6)]
    everybody = ["urgent", "low", "lower", "newest"]
    assert ran == [everybody, everybody, everybody, everybody[:3], everybody[:2], everybody[:2]]
