"""A client's app: hands every message to the warm worker of its node.

It imports neither torch nor a model, for Flower starts a process per message. Its settings are the node's configuration of Flower:
``config``, a file of this machine; ``client``, its number; ``state``, a folder.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedquilt.deploy.flower.codec import unwrapped, wrapped
from fedquilt.deploy.worker import IDLE, ask, start

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The answer of this node's worker."""
    node = context.node_config
    config, client, folder = Path(str(node["config"])), int(node["client"]), Path(str(node["state"]))
    place = folder / "worker" / "socket"
    idle = float(node.get("idle", IDLE))
    answer = ask(place, unwrapped(message.content), lambda: start(config, client, folder / "rounds", place, idle))
    return Message(wrapped(answer), reply_to=message)
