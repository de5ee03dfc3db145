"""The judge against a stub endpoint on this machine: what is asked, retried, cached, paid for and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from door import fedquilt
from texts import KINDS, text_config

from fedquilt.errors import ConfigError, DataError
from fedquilt.judge import Judge, ask, parse


class Stub(ThreadingHTTPServer):
    """Answers with what is next in ``script`` (a status code, raw bytes, or a reply), then always 0.5."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Any] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        step = self.server.script.pop(0) if self.server.script else "0.5"
        code = step if isinstance(step, int) else 200
        usage = {"prompt_tokens": 11, "completion_tokens": 2}
        body = (
            step if isinstance(step, bytes) else json.dumps({"choices": [{"message": {"content": step}}], "usage": usage}).encode()
        )
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(b"no such model" if code == 404 else body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def judge_of(stub: Stub, cache: Path, **more: Any) -> tuple[Judge, list[float]]:
    waits: list[float] = []
    return Judge(stub.url, "m", cache, sleep=waits.append, **more), waits


@pytest.mark.parametrize(("reply", "score"), [("0.75", 0.75), (" 1\n", 1.0), ("Score: 0.3.", 0.3), ("0", 0.0), ("1.0 = 1", 1.0)])
def test_scores(reply: str, score: float) -> None:
    assert parse(reply) == score


@pytest.mark.parametrize("reply", ["", "good", "8/10", "1.5", "-0.5", "0.2 or 0.8", "75%", "v0.5"])
def test_what_is_no_score(reply: str) -> None:
    with pytest.raises(DataError, match="no score from 0 to 1"):
        parse(reply)


def test_the_question_holds_all_three_texts_as_they_are() -> None:
    text = ask("do {x}", "r {answer}", "a")
    assert all(part in text for part in ("\ndo {x}\n", "\nr {answer}\n", "\na\n"))


def test_a_reply_is_asked_for_once(stub: Stub, tmp_path: Path) -> None:
    judge, _ = judge_of(stub, tmp_path, key="secret")
    first, again = judge("q", parse), judge("q", parse)
    assert (first.text, first.tokens_in, first.tokens_out, first.cached) == ("0.5", 11, 2, False)
    assert (again.text, again.cached) == ("0.5", True)
    assert len(stub.seen) == 1
    assert stub.seen[0]["messages"] == [{"role": "user", "content": "q"}]
    assert (stub.seen[0]["model"], stub.seen[0]["temperature"]) == ("m", 0)
    assert stub.keys == ["Bearer secret"]
    kept = [path for path in (tmp_path / "judge").iterdir() if path.suffix == ".json"]
    assert "secret" not in kept[0].read_text(encoding="utf-8")
    kept[0].write_text("{", encoding="utf-8")
    assert not judge("q", parse).cached, "a damaged file is asked for anew"
    assert not judge_of(stub, tmp_path)[0]("other", parse).cached
    assert stub.keys[-1] is None


def test_trouble_that_passes_is_waited_for(stub: Stub, tmp_path: Path) -> None:
    stub.script = [500, 429, b"not json", 503, "1"]
    judge, waits = judge_of(stub, tmp_path)
    assert judge("q", parse).text == "1"
    assert waits == [1.0, 7.0, 4.0, 8.0]


def test_trouble_that_stays_ends_with_a_reason(stub: Stub, tmp_path: Path) -> None:
    stub.script = [500] * 9
    judge, waits = judge_of(stub, tmp_path, retries=2)
    with pytest.raises(DataError, match=r"no reply after 3 attempts\n.*\n.*HTTP 500"):
        judge("q", parse)
    assert waits == [1.0, 2.0]
    stub.script = [404]
    with pytest.raises(DataError, match=r"refused the request\n.*\n.*404: no such model"):
        judge("q", parse)
    assert len(stub.seen) == 4, "a refusal is not tried again"
    stub.script = [b'{"choices": []}']
    with pytest.raises(DataError, match="does not speak the chat protocol"):
        judge("q", parse)


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    judge = Judge("http://127.0.0.1:9/v1", "m", tmp_path, retries=1, sleep=lambda _: None)
    with pytest.raises(DataError, match="no reply after 2 attempts"):
        judge("q", parse)
    with pytest.raises(ConfigError, match="no http address"):
        Judge("file:///etc", "m", tmp_path)


def test_a_reply_of_no_use_is_not_kept(stub: Stub, tmp_path: Path) -> None:
    stub.script = ["a fine answer", "0.9"]
    judge, _ = judge_of(stub, tmp_path)
    with pytest.raises(DataError, match="no score"):
        judge("q", parse)
    assert judge("q", parse).text == "0.9"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = tmp_path / "run.toml"
    config.write_text(text_config(tmp_path, "fltac", evaluation={"every": 0, "start": False}).to_toml(), encoding="utf-8")
    assert fedquilt("run", config, "--dir", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_a_run_is_judged(run: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of each task; a slot's score is its adapter's, which answers once however many slots share it."""
    monkeypatch.setenv("MY_KEY", "k")
    common = ("judge", run, "--endpoint", stub.url, "--model", "m", "--rows", "2", "--max-new", "3", "--json")
    estimated = json.loads(fedquilt(*common, "--dry-run", "--price-in", "2", "--price-out", "10").out)
    assert not stub.seen
    assert estimated["price"] == pytest.approx((2 * estimated["tokens_in"] + 10 * estimated["tokens_out"]) / 1e6)
    stub.script = ["1", "0"]
    said = fedquilt(*common, "--key-env", "MY_KEY")
    assert said.code == 0
    record = json.loads(said.out)
    assert record == json.loads((run / "judge.json").read_text(encoding="utf-8"))
    assert set(stub.keys) == {"Bearer k"}
    assert record["used"]["requests"] + record["used"]["cached"] == estimated["requests"]
    assert record["used"]["requests"] == len(stub.seen)
    assert set(record["tasks"]) == set(KINDS)
    assert {entry["score"] for entry in record["slots"]} == {0.5}
    assert json.loads(fedquilt(*common).out)["used"]["requests"] == 0, "all from the cache"
    assert "higher is better" in fedquilt(*common[:-1]).out


def test_a_run_without_answers_is_refused(tmp_path: Path, stub: Stub) -> None:
    from door import write_config

    assert fedquilt("run", write_config(tmp_path), "--dir", tmp_path / "run").code == 0
    said = fedquilt("judge", tmp_path / "run", "--endpoint", stub.url, "--model", "m")
    assert "no answers to judge" in said.complaint(2)
