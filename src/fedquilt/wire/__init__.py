"""What happens to an update between client and server, as an onion: ``send`` on the client, ``receive`` and ``finish`` on the
server. A wire part holds both halves of one concern, so they cannot be mismatched."""

from fedquilt.wire.chain import Wire, chain
from fedquilt.wire.masked import masked
from fedquilt.wire.noise import central_noise, clip

__all__ = ["Wire", "central_noise", "chain", "clip", "masked"]
