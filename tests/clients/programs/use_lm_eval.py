"""EleutherAI's evaluation harness, with tasks and data of its own: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cells
from cells import answer, task
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
# More than four, as tasks have it. None comes, so that the whole answer is seen.
STOPS = ["\n\n\n", "<|user|>", "<|system|>", "Question:", "Q:", "###"]


def evaluate(name: str, documents: list[dict[str, str]], model: str, **fields: Any) -> Any:
    """Evaluate a task with these documents; the harness' results with every sample."""
    data = Path(task().folder) / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    chat = model == "local-chat-completions"
    path = "chat/completions" if chat else "completions"
    results = simple_evaluate(
        model=model,
        model_args={
            "model": task().model,
            "base_url": f"{task().base_url}/{path}",
            "max_retries": 1,
            **({} if chat else {"tokenizer": task().tokenizer}),
        },
        tasks=[
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
                **fields,
            }
        ],
        apply_chat_template=chat,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),  # its own hundreds take seconds to list
    )
    assert results is not None
    return results["results"][name], results["samples"][name]


def generate(name: str, model: str, text: str) -> dict[str, object]:
    _, (sample,) = evaluate(
        name,
        [{"text": text}],
        model,
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="",
        generation_kwargs={"until": STOPS, "max_gen_toks": task().max_tokens, "temperature": 0},
        metric_list=[{"metric": "exact_match"}],
    )
    return answer(sample["resps"][0][0])


def chat() -> dict[str, object]:
    return generate("chat", "local-chat-completions", task().question)


def completion() -> dict[str, object]:
    return generate("completion", "local-completions", task().prompt)


def evaluation() -> dict[str, object]:
    """A task of choices: which continuation is likeliest, from the log-likelihood of each."""
    results, samples = evaluate(
        "capitals",
        [{"country": country, "capital": capital} for country, capital in CAPITALS.items()],
        "local-completions",
        output_type="multiple_choice",
        doc_to_text="The capital of {{country}} is",
        doc_to_choice=list(CAPITALS.values()),
        doc_to_target="capital",
        metric_list=[{"metric": "acc"}],
    )
    likelihoods = [
        {"prompt": argument[0], "continuation": argument[1], "logprob": float(logprob), "is_greedy": greedy}
        for sample in samples
        for argument, ((logprob, greedy),) in zip(sample["arguments"], sample["resps"], strict=True)
    ]
    return {"numbers": [results["acc,none"]], "likelihoods": likelihoods}


def perplexity() -> dict[str, object]:
    """A task of whole texts, each token's log-probability."""
    results, _ = evaluate(
        "perplexity",
        [{"text": "The sea is blue. The sun is bright."}],
        "local-completions",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    return {"numbers": [results["word_perplexity,none"]]}


if __name__ == "__main__":
    cells.run(chat, completion, evaluation, perplexity)
