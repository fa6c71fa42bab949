from scheduler_builders import add, make_scheduler, step

from stoker_runtime.messages import RequestOutput


def test_each_output_says_how_often_its_request_was_preempted() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2)
    add(scheduler, [1, 2, 3], request_id="old", max_tokens=4)
    add(scheduler, [4, 5], request_id="new", max_tokens=3)
    outputs: list[RequestOutput] = []
    while scheduler.has_work:
        outputs += step(scheduler)[1]

    last = {output.request_id: output for output in outputs}
    assert scheduler.stats().num_preemptions > 0
    assert last["old"].num_preemptions == 0
    assert last["new"].num_preemptions == scheduler.stats().num_preemptions
    assert outputs[0].num_preemptions == 0
