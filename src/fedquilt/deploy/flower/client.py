"""A client's app: hands every message to the warm worker of its node.

It imports neither torch nor a model, for Flower starts a process per message. Its settings are the node's configuration of Flower:
``config``, a file of this machine; ``client``, its number; ``state``, a folder; ``sockets``, another one, if the path of the first
is too long for a socket.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedquilt import __version__
from fedquilt.deploy.flower.codec import unwrapped, wrapped
from fedquilt.deploy.worker import IDLE, ask, start

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The answer of this node's worker."""
    node = context.node_config
    config, client, folder = Path(str(node["config"])), int(node["client"]), Path(str(node["state"]))
    sockets = Path(str(node["sockets"])) if "sockets" in node else folder / "worker"
    place = sockets / version(config, client)
    idle = float(node.get("idle", IDLE))
    answer = ask(place, unwrapped(message.content), lambda: start(config, client, folder / "rounds", place, idle))
    return Message(wrapped(answer), reply_to=message)


def version(config: Path, client: int) -> str:
    """A name for the worker of this configuration: after a change the next message finds another one, and the old one ends idle."""
    said = f"{__version__} {client} ".encode() + config.read_bytes()
    return hashlib.sha256(said).hexdigest()[:12]
