"""Text and HTTP: the OpenAI-compatible server in front of the engine. Never imports torch or the model.

    app > {chat, completions, extras} > stream > {generation, client} > {prompt, detokenize, protocol}

`lifecycle` runs it all as a process. Pure: `detokenize`, `generation`, `protocol`, `wire`.
"""
