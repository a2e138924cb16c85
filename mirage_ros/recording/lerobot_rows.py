"""The numbers of an episode on their way to the disk: batches that a kill cannot take back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from mirage_ros.recording.lerobot_schema import column
from mirage_ros.recording.recorder import Feature


class RowWriter:
    """An Arrow stream; every `batch` rows are handed to the system together."""

    def __init__(self, path: Path, features: Mapping[str, Feature], batch: int) -> None:
        self._features, self._batch = features, batch
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in features}
        fields = _table(features, {name: [] for name in features}).schema
        self._file = path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, fields)

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Appends one row."""
        for name, rows in self._waiting.items():
            rows.append(values[name])
        if len(rows) >= self._batch:
            self._flush()

    def close(self) -> None:
        """Writes what waits and ends the stream."""
        self._flush()
        self._stream.close()
        self._file.close()

    def abandon(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def _flush(self) -> None:
        if not any(self._waiting.values()):
            return
        self._stream.write_table(_table(self._features, self._waiting))
        self._file.flush()
        for rows in self._waiting.values():
            rows.clear()


def _table(features: Mapping[str, Feature], rows: Mapping[str, list[np.ndarray]]) -> pa.Table:
    return pa.table(
        {
            name: column(feature, np.array(rows[name], feature.dtype).reshape(-1, *feature.shape))
            for name, feature in features.items()
        }
    )


def read_row_stream(path: Path) -> pa.Table | None:
    """All rows, of a stream that was cut off those of its whole batches; None without a head."""
    batches = []
    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as stream:
            fields = stream.schema
            # The kill may have come within a batch.
            with suppress(pa.ArrowInvalid, OSError):
                batches += stream
    except (pa.ArrowInvalid, OSError):
        return None
    return pa.Table.from_batches(batches, fields).combine_chunks()
