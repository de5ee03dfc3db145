"""Ask a chat endpoint, patiently and only once for the same question."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedquilt.data.files import replacing
from fedquilt.errors import ConfigError, DataError

PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP codes after which trying again makes sense
LONGEST_WAIT = 60.0  # seconds


@dataclass(frozen=True)
class Reply:
    """What the judge wrote, and the tokens that were paid for; ``cached``: nothing was sent."""

    text: str
    tokens_in: int
    tokens_out: int
    cached: bool


@dataclass(frozen=True)
class Judge:
    """A model behind ``endpoint`` (``https://host/v1``; ``/chat/completions`` is added).

    ``key`` is sent as a bearer token and written nowhere. Replies are kept in ``cache``, one file for each model and question.
    """

    endpoint: str
    model: str
    cache: Path
    key: str = ""
    retries: int = 5
    timeout: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"'{self.endpoint}' is no http address", where="--endpoint", fix="for example http://localhost:8000/v1"
            )

    def __call__(self, question: str, accept: Callable[[str], object]) -> Reply:
        """The reply to one user message. ``accept`` raises for a reply that is of no use: such a one is not kept.

        Raises:
            DataError: refused, unreachable after all retries, not the protocol, or ``accept`` raised it.
        """
        path = self.cache / "judge" / f"{self._digest(question)}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Reply(str(kept["text"]), int(kept["in"]), int(kept["out"]), cached=True)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not asked before, or damaged: ask
        reply = self._read(self._post(question))
        accept(reply.text)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"text": reply.text, "in": reply.tokens_in, "out": reply.tokens_out}), encoding="utf-8")
        return reply

    def _digest(self, question: str) -> str:
        return hashlib.blake2b(json.dumps([self.endpoint, self.model, question]).encode(), digest_size=20).hexdigest()

    def _post(self, question: str) -> Any:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16}
        for attempt in range(self.retries + 1):
            try:
                return self._once(json.dumps(body).encode())
            except urllib.error.HTTPError as error:
                why, wait = f"HTTP {error.code}: {_said(error)}", _seconds(error.headers.get("Retry-After"))
                if error.code not in PASSING:
                    fix = "check --endpoint, --model and the key's environment variable"
                    raise DataError("the judge refused the request", where=self.endpoint, why=why, fix=fix) from error
            except (OSError, http.client.HTTPException, ValueError) as error:  # unreachable, timed out, cut off, or no JSON
                why, wait = f"{type(error).__name__}: {error}", None
            if attempt < self.retries:
                self.sleep(min(2.0**attempt if wait is None else wait, LONGEST_WAIT))
        fix = "later again: replies so far are kept"
        raise DataError(f"no reply after {self.retries + 1} attempts", where=self.endpoint, why=why, fix=fix)

    def _once(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.endpoint.rstrip('/')}/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.load(response)

    def _read(self, answer: Any) -> Reply:
        try:
            usage = answer.get("usage") or {}
            text = str(answer["choices"][0]["message"]["content"])
            return Reply(text, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)), cached=False)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            why = f"{type(error).__name__}: {str(answer)[:120]}"
            raise DataError("the endpoint does not speak the chat protocol", where=self.endpoint, why=why) from error


def _said(error: urllib.error.HTTPError) -> str:
    return error.read(200).decode("utf-8", "replace").strip() or str(error.reason)


def _seconds(value: str | None) -> float | None:
    """``Retry-After`` in seconds; None where it is absent or a date."""
    return float(value) if value is not None and value.isdecimal() else None
