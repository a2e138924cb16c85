"""Values between two processes: small parts through the pipe, arrays through shared memory.

Pickle's protocol 5 hands out the arrays' buffers; they are written to one anonymous memory file
whose descriptor goes over the pipe's socket. The reader maps it, and the memory is free again when
the last array on it is gone, or when both processes are: nothing to name, count or clean up.
"""

from __future__ import annotations

import mmap
import os
import pickle
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

ALIGNMENT = 64


def send(connection: Connection, value: Any) -> None:
    """Sends a picklable value. Raises OSError where nobody reads any more."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    ends, total = [], 0
    for part in parts:
        total += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        ends.append((total - -(-part.nbytes // ALIGNMENT) * ALIGNMENT, part.nbytes))
    connection.send_bytes(pickle.dumps((data, ends, total)))
    if total:
        _send_parts(connection, parts, ends, total)


def receive(connection: Connection) -> Any:
    """What `send` sent; its arrays are read-only views of the shared memory.

    Raises:
        EOFError, OSError: the sender is gone.
    """
    data, ends, total = pickle.loads(connection.recv_bytes())
    if not total:
        return pickle.loads(data, buffers=[b""] * len(ends))
    descriptor = recv_handle(connection)
    try:
        view = memoryview(mmap.mmap(descriptor, total, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
    return pickle.loads(data, buffers=[view[start : start + size] for start, size in ends])


def _send_parts(connection: Connection, parts, ends, total: int) -> None:
    descriptor = os.memfd_create("mirage", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, total)
        with mmap.mmap(descriptor, total) as shared:
            for part, (start, size) in zip(parts, ends, strict=True):
                shared[start : start + size] = part
        send_handle(connection, descriptor, None)
    finally:
        os.close(descriptor)
