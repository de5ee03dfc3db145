"""A client's app: hands every message to the warm worker of its node.

It imports neither torch nor a model, for Flower starts a process per message. Its settings are the node's configuration of Flower:
``config``, a file of this machine; ``client``, its number; ``state``, a folder; ``sockets``, another one, if the path of the first
is too long for a socket.

In Flower's own simulation there are no machines: a client is the number of its partition, and ``config`` and ``state``, a folder
for all, are the run's configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedquilt.deploy.flower.codec import unwrapped, wrapped
from fedquilt.deploy.worker import Station
from fedquilt.errors import FedquiltError

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The answer of this node's worker; what goes wrong here is said here, for the text of an error may tell of this machine."""
    try:
        answer = _answer(context, unwrapped(message.content))
    except (FedquiltError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        from fedquilt.deploy.messages import Refused
        from fedquilt.deploy.parcel import parcel

        answer = parcel(Refused(why="an error of its own")).pack()
    return Message(wrapped(answer), reply_to=message)


def _answer(context: Context, data: bytes) -> bytes:
    node = context.node_config
    if "partition-id" in node:
        from fedquilt.deploy.flower.simulated import answer

        config, state = (Path(str(context.run_config[name])) for name in ("config", "state"))
        return answer(config, int(node["partition-id"]), state, data)
    return Station.of(node).ask(data)
