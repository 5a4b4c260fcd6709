"""All frames of some bytes at once."""

from hopchain.framing import FrameReader


def feed(reader: FrameReader, data: bytes) -> list[bytes]:
    """The payloads that `data` completes, in order."""
    reader.push(data)
    payloads = []
    while (payload := reader.pop()) is not None:
        payloads.append(payload)
    return payloads
