"""Stream one answer with the official OpenAI client.

kubectl port-forward service/smollm2 8000:80
python examples/chat.py http://127.0.0.1:8000/v1 smollm2 "Why is the sky blue?"
"""

import sys

from openai import OpenAI


def main(base_url: str, model: str, question: str) -> None:
    """Print the answer as it comes."""
    client = OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=200,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:4])
