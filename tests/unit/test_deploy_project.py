"""The folders of a federation, the commands that read them, and the door before the server."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from door import fedquilt

from fedquilt.cli.federation import finish, with_data
from fedquilt.deploy.flower import front
from fedquilt.deploy.project import REGISTERED
from fedquilt.deploy.settings import ClientSettings, ServerSettings, read
from fedquilt.errors import ConfigError, StateError
from fedquilt.runs.config import load_config


def made(tmp_path: Path) -> Path:
    folder = tmp_path / "federation"
    said = fedquilt("deploy", "init", folder, "--host", "server.example.org", "--clients", 2)
    assert said.code == 0, said.err
    return folder


def test_a_folder_for_every_machine(tmp_path: Path) -> None:
    """Settings that are read as they were written, the same run everywhere."""
    folder = made(tmp_path)
    assert read(folder / "server" / "server.toml", ServerSettings) == ServerSettings()
    for number in range(2):
        own = folder / f"client-{number}"
        assert read(own / "client.toml", ClientSettings).client == number
        assert read(own / "client.toml", ClientSettings).server == "server.example.org:8000"
        assert load_config(own / "data.toml") == load_config(own / "run.toml"), "data is for its owner to say"
        assert load_config(own / "run.toml") == load_config(folder / "server" / "run.toml")
        assert (folder / "server" / "clients" / f"client-{number}.pub").read_bytes() == (own / "node.pub").read_bytes()
        assert stat.S_IMODE((own / "node").stat().st_mode) == 0o600
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert sorted(services) == ["client-0", "client-1", "server"]
    assert services["server"]["networks"]["default"]["aliases"] == ["server.example.org"], "as in every client.toml"
    for name, service in services.items():
        assert service["command"] == f"fedquilt {name.split('-')[0]} ."
        assert service["volumes"] == [f"./{name}:/federation"]
        assert service["user"] == f"{os.getuid()}:{os.getgid()}", "who can read the keys"
    made_of = (folder / "Dockerfile").read_text().splitlines()
    assert "COPY fedquilt-*.whl constraints.txt /wheels/" in made_of, "whatever is called fedquilt on an index is not meant"


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "localhost", "server.localhost"])
def test_containers_of_what_is_no_name_for_one(host: str, tmp_path: Path) -> None:
    said = fedquilt("deploy", "init", tmp_path / "f", "--host", host, "--clients", 1)
    assert said.code == 0, said.err
    text = (tmp_path / "f" / "compose.yaml").read_text()
    assert "networks" not in yaml.safe_load(text)["services"]["server"]
    assert 'server = "server:8000" in every client.toml' in text


def test_one_more_client(tmp_path: Path) -> None:
    """The next number, even where one before it has left; a key that is nobody else's."""
    folder = made(tmp_path)
    (folder / "server" / "home").mkdir()
    (folder / "server" / "home" / REGISTERED).write_text('{"client-0": {}, "client-1": {}}')
    (folder / "server" / "clients" / "client-1.pub").unlink()
    words = ("deploy", "add", folder / "new", "--server", folder / "server", "--host", "h")
    assert "client 2" in fedquilt(*words).out
    assert read(folder / "new" / "client.toml", ClientSettings) == ClientSettings(server="h:8000", client=2, config="data.toml")
    keys = [path.read_bytes() for path in (folder / "server" / "clients").iterdir()]
    assert len(set(keys)) == 2
    load_ssh_public_key((folder / "new" / "node.pub").read_bytes())
    assert "not empty" in fedquilt(*words).complaint(5)
    other = ("deploy", "add", folder / "other", "--server", tmp_path, "--host", "h")
    assert "no server's folder" in fedquilt(*other).complaint(5)


COMPLAINTS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no server's folder": (("server", "{tmp}"), 2, "there is no server.toml"),
    "no client's folder": (("client", "{tmp}"), 2, "there is no client.toml"),
    "no data": (("client", "{fed}/client-0"), 2, "this machine has no data"),
    "no such data": (("client", "{fed}/client-0", "--data", "a=nowhere.csv"), 3, "there is no such file"),
    "no server": (("submit", "{fed}/server/run.toml", "--server", "{fed}/server"), 5, "the server is not there"),
    "no server to ask": (("status", "--server", "{fed}/server"), 5, "the server is not there"),
    "nothing to run": (("submit", "--server", "{fed}/server"), 2, "either CONFIG or --resume RUN"),
    "two things": (("submit", "a.toml", "--resume", "r", "--server", "{fed}/server"), 2, "either CONFIG or --resume RUN"),
    "no rehearsal": (("deploy", "rehearse", "{fed}/client-0/run.toml"), 2, "on their own machines"),
    "data without a name": (("client", "{fed}/client-0", "--data", "x.csv"), 2, "not of the form NAME=FILE"),
}


@pytest.mark.parametrize("case", COMPLAINTS)
def test_what_is_missing_is_said(case: str, tmp_path: Path) -> None:
    words, code, message = COMPLAINTS[case]
    folder = made(tmp_path)
    (folder / "server" / "server.toml").write_text("port = 1\ncontrol = 1\n")  # where nobody listens
    said = fedquilt(*(word.format(tmp=tmp_path, fed=folder) for word in words))
    assert message in said.complaint(code)


def test_settings_that_are_not_understood(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    for text, message in (
        ("prot = 1", "unknown key 'prot'"),
        ("port = 99999", "99999 is not allowed"),
        ("port = ", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read(path, ServerSettings)


def test_data_by_the_command_line(tmp_path: Path) -> None:
    folder = made(tmp_path)
    config = with_data(load_config(folder / "client-0" / "run.toml"), ["a=x.csv", f"b={tmp_path}/y.csv"])
    assert [(task.name, task.source) for task in config.tasks] == [
        ("a", f"file:{Path.cwd()}/x.csv"),
        ("b", f"file:{tmp_path}/y.csv"),
    ]


def through(method: str, path: str, content: bytes = b"") -> tuple[httpx.Response, list[httpx.Request]]:
    """What the door answers, and what reached the SuperLink behind it."""
    seen: list[httpx.Request] = []

    def link(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(418, content=b"reply", headers={"x-flower": "1"})

    async def ask() -> httpx.Response:
        inner = httpx.AsyncClient(base_url="https://link", transport=httpx.MockTransport(link))
        transport = httpx.ASGITransport(front.door(inner))
        async with httpx.AsyncClient(base_url="https://door", transport=transport) as outside:
            return await outside.request(method, path, content=content, headers={"flwr-signature": "s"})

    return asyncio.run(ask()), seen


def test_what_a_client_asks_reaches_the_superlink_as_it_is() -> None:
    for name in front.NAMES:
        answer, (asked,) = through("POST", f"/v1/fleet/{name}", b"\x00body")
        assert (answer.status_code, answer.content, answer.headers["x-flower"]) == (418, b"reply", "1")
        assert (asked.url.path, asked.content, asked.headers["flwr-signature"]) == (f"/v1/fleet/{name}", b"\x00body", "s")
        assert asked.headers["host"] == "link"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
        "//v1/control/start-run",
        "/v1/fleet/",
        "/v1/fleet/something-new",
        "/",
        "/docs",
    ],
)
def test_nothing_else_does(path: str) -> None:
    answer, seen = through("POST", path)
    assert answer.status_code in (404, 405)
    assert not seen


def test_another_method_or_too_much_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert through("GET", "/v1/fleet/pull-messages")[0].status_code == 405
    monkeypatch.setattr(front, "MOST", 10)
    answer, seen = through("POST", "/v1/fleet/push-object", b"x" * 11)
    assert (answer.status_code, seen) == (413, [])


def test_a_superlink_that_is_away_is_an_error_of_the_door() -> None:
    async def ask() -> httpx.Response:
        def away(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused")

        inner = httpx.AsyncClient(base_url="https://link", transport=httpx.MockTransport(away))
        async with httpx.AsyncClient(base_url="https://door", transport=httpx.ASGITransport(front.door(inner))) as outside:
            return await outside.post("/v1/fleet/pull-messages")

    assert asyncio.run(ask()).status_code == 502


FLOWER = """\033[91mERROR \033[0m:     ServerApp raised an exception
Traceback (most recent call last):
  File "/fedquilt/runs/launch.py", line 122, in _go
    raise ValueError
{error}
\033[91mERROR \033[0m:     Exit Code: 201

An unhandled exception occurred in the ServerApp.
"""
OWN = """fedquilt.errors.ConfigError: no client takes part
  where: the network
  fix: see why above"""
LOGS = {
    "another's error": (
        FLOWER.format(error="ValueError: max() arg is an empty sequence"),
        "ValueError: max() arg is an empty sequence",
    ),
    "ours": (FLOWER.format(error=OWN), OWN),
    "no error": ("".join(f"line {n}\n" for n in range(20)), "\n".join(f"line {n}" for n in range(10, 20))),
    "nothing": ("", "the server said nothing"),
}


@pytest.mark.parametrize("case", LOGS)
def test_a_run_that_did_not_end_says_why(case: str, tmp_path: Path) -> None:
    said, why = LOGS[case]
    (tmp_path / "log").write_text(said)
    with pytest.raises(StateError, match="did not end") as caught:
        finish(tmp_path, False, tmp_path / "log", "the same command")
    assert caught.value.why == why
    assert str(tmp_path / "log") in str(caught.value.fix)
