"""POST the JSON on standard input and print the answer as JSON; runs inside a pod.

    python3 ask.py URL < body.json

A server-sent-event answer is printed as the list of its events.
"""

import json
import sys
import urllib.error
import urllib.request


def main(url: str) -> None:
    request = urllib.request.Request(url, data=sys.stdin.buffer.read(), method="POST")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, text = response.status, response.read().decode()
            is_stream = response.headers.get_content_type() == "text/event-stream"
    except urllib.error.HTTPError as error:
        status, text, is_stream = error.code, error.read().decode(), False
    if is_stream:
        events = [
            line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")
        ]
        print(json.dumps({"status": status, "events": events}))
    else:
        print(json.dumps({"status": status, "body": json.loads(text)}))


if __name__ == "__main__":
    main(sys.argv[1])
