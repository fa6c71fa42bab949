"""SmolLM2-135M-Instruct from its GGUF file: 32 prompts x 48 greedy tokens equal `transformers` in float32."""

from __future__ import annotations

from functools import cache

import gguf
import pytest
import torch
import transformers
from gguf_converter import gguf_name
from model_builders import NEAR_TIE, run_to_end, smollm2_path
from runtime_builders import make_request

from stoker_runtime.config import EngineConfig
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest, TokenLogprob
from stoker_runtime.model.loader import load_runner
from stoker_runtime.tokenizer_files import load_assets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_TOKENS = 48
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain recursion to a child.",
    "How many legs does a spider have?",
    "Name three primary colours.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "Who wrote Romeo and Juliet?",
    "Describe a steam engine in one sentence.",
    "What does an operating system do?",
    "List five fruits.",
    "Tell me a short story about a fox.",
    "How do I boil an egg?",
    "What is photosynthesis?",
]
TEXTS = [
    "Once upon a time",
    "The quick brown fox jumps over",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\n",
    "1, 2, 3, 5, 8, 13,",
    "In the beginning of the nineteenth century,",
    "SELECT name, age FROM users WHERE",
    "Die Hauptstadt von Deutschland ist",
    "La capitale de la France est",
    "東京は日本の",
    "# Installation\n\nRun the following command:",
    "Dear Sir or Madam,\n\n",
    "The stoker shovels coal into the furnace because " * 6,
    "Q: What is the largest planet?\nA:",
    "<html>\n<head>\n<title>",
    "a",
]


@cache
def prompts() -> list[list[int]]:
    tokenizer = load_assets(smollm2_path()).tokenizer
    chats = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in QUESTIONS]
    return [tokenizer.encode(text).ids for text in (*chats, *TEXTS)]


@cache
def reference_model() -> transformers.PreTrainedModel:
    """`transformers` with the weights as the `gguf` package reads them, and sizes written down here."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_path()).tensors}
    state = {}
    for name in model.state_dict():
        tensor = stored["token_embd.weight" if name == "lm_head.weight" else gguf_name(name, "llama")]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        heads = {"q_proj": 9, "k_proj": 3}.get(name.split(".")[-2])
        if heads:
            values = values.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
        state[name] = torch.from_numpy(values.copy())
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are not in the file
    return model.eval()


@cache
def first_choices(prompt: tuple[int, ...], output: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """The reference's choice at each place of an output, given what is before it, and its lead in logits."""
    with torch.inference_mode():
        logits = reference_model()(torch.tensor([[*prompt, *output[:-1]]])).logits[0, len(prompt) - 1 :]
    top = logits.topk(2)
    return top.indices[:, 0].tolist(), (top.values[:, 0] - top.values[:, 1]).tolist()


def assert_greedy(outputs: dict[str, list[int]], requests: list[AddRequest]) -> None:
    """Each token is the reference's first choice after those before it, so the whole output is greedy."""
    num_near_ties = 0
    for request in requests:
        output = outputs[request.request_id]
        assert len(output) == NUM_TOKENS
        wanted, leads = first_choices(tuple(request.prompt_token_ids), tuple(output))
        for position, (token_id, choice) in enumerate(zip(output, wanted, strict=True)):
            if token_id != choice:
                assert leads[position] < NEAR_TIE, f"{request.request_id} leaves the reference at {position}"
                num_near_ties += 1
    assert num_near_ties == 0


def make_engine(num_tokens_of_kv: int, budget: int, max_num_seqs: int = 32) -> Engine:
    config = EngineConfig(
        model=str(smollm2_path()),
        device="cpu",
        dtype="float32",
        num_threads=1,  # two would wait for each other whenever something else runs beside the tests
        seed=0,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        kv_cache_bytes=num_tokens_of_kv * 30 * 2 * 3 * 64 * 4,
    )
    return Engine(load_runner(config), config)


def greedy_requests() -> list[AddRequest]:
    return [make_request(prompt, max_tokens=NUM_TOKENS, ignore_eos=True) for prompt in prompts()]


# Every sixteenth prompt, a part that takes some seconds, and the rest. In a batch all of them are tried.
@pytest.mark.parametrize("first", [0, *(pytest.param(i, marks=pytest.mark.long) for i in range(1, 16))])
def test_each_alone(first: int) -> None:
    engine = make_engine(num_tokens_of_kv=8192, budget=96)
    for request in greedy_requests()[first::16]:
        assert_greedy(run_to_end(engine, {0: [request]}), [request])


def test_in_one_batch_and_again_with_prefix_hits() -> None:
    engine = make_engine(num_tokens_of_kv=8192, budget=96)
    for every in (1, 4):
        requests = greedy_requests()[::every]
        outputs = run_to_end(engine, {i // 2: requests[i : i + 2] for i in range(0, len(requests), 2)})
        assert_greedy(outputs, requests)
    assert engine.step().stats.prefix_hits > 0


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_under_preemption_and_with_small_chunks(every: int) -> None:
    engine = make_engine(num_tokens_of_kv=1536 // every, budget=40)
    requests = greedy_requests()[::every]
    outputs = run_to_end(engine, {0: requests})
    assert engine.step().stats.num_preemptions > 0
    assert_greedy(outputs, requests)


def test_scores_of_prompts() -> None:
    engine = make_engine(num_tokens_of_kv=4096, budget=40, max_num_seqs=4)
    requests = [make_request(prompt, max_tokens=1, prompt_logprobs=1) for prompt in prompts()[::4]]
    for request in requests:
        engine.add(request)
    scores: dict[str, list[TokenLogprob]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step().outputs:
            scores[output.request_id] += output.prompt_logprobs
    for request in requests:
        prompt = request.prompt_token_ids
        with torch.inference_mode():
            logits = reference_model()(torch.tensor([prompt])).logits[0, :-1]
        wanted = logits.log_softmax(dim=-1).gather(1, torch.tensor(prompt[1:]).unsqueeze(1)).squeeze(1)
        found = scores[request.request_id]
        assert [score.token_id for score in found] == prompt[1:]
        assert [score.logprob for score in found] == pytest.approx(wanted.tolist(), abs=1e-3)
        # What lm-eval asks: whether each token was the most likely one.
        assert [score.rank == 1 for score in found] == [s.top[0][0] == s.token_id for s in found]
