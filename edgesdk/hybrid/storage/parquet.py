"""Write journals as Parquet, which DuckDB, Spark, Ray and pandas read, and read them again.

One row is one decision. Its columns are those of a line of `JournalEntry.to_json`; `signals` is a
map, `texts` a struct, null where the app kept none. Journals of many devices are joined by their
texts: `prompt_hash` is keyed, so that the same prompt has another hash on each device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

from edgesdk.errors import RequestError, requires_extra
from edgesdk.hybrid.storage.journal import DecisionRecord, JournalEntry, RecordedTexts
from edgesdk.system.atomic_files import atomic_path

_ROWS_AT_ONCE = 1_000
_NAMES = tuple(each.name for each in fields(DecisionRecord))


def write_parquet(path: Path, entries: Iterable[JournalEntry]) -> int:
    """Write entries to a new Parquet file, which appears whole or not at all; return how many.

    Raises:
        MissingExtra: pyarrow is not installed.
        RequestError: something stands at `path`, or it cannot be written.
    """
    with requires_extra("parquet", needed_for="Writing Parquet"):
        import pyarrow
        from pyarrow import parquet
    if path.exists():
        raise RequestError(f"{path} exists already.", hint="Name another file.")
    schema, count, source = _schema(pyarrow), 0, iter(entries)
    try:
        with (
            atomic_path(path, private=True) as beside,
            parquet.ParquetWriter(beside, schema) as writer,
        ):
            while rows := [_row(entry) for entry in islice(source, _ROWS_AT_ONCE)]:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                count += len(rows)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}.") from None
    return count


def read_parquet(path: Path) -> Iterator[JournalEntry]:
    """Yield the entries of a Parquet file: an export, or several that were joined.

    Other columns are left out, so a join may add some, as the device's name.

    Raises:
        MissingExtra: pyarrow is not installed.
        RequestError: it is no Parquet, or lacks a column of a journal.
    """
    with requires_extra("parquet", needed_for="Reading Parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise RequestError(f"{path} cannot be read as Parquet: {error}.") from None
    with file:
        missing = set(_schema(pyarrow).names) - set(file.schema_arrow.names)
        if missing:
            raise RequestError(
                f"{path} is no journal: it has no column {', '.join(sorted(missing))}.",
                hint="Export one with: edgesdk journal PATH --parquet FILE",
            )
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield from map(_entry_of, batch.to_pylist())


def _schema(arrow: Any) -> Any:
    text, number, count, flag = arrow.string(), arrow.float64(), arrow.int64(), arrow.bool_()
    columns = {
        "id": count,
        "prompt_hash": text,
        "at": arrow.timestamp("us", tz="UTC"),
        "kinds": arrow.list_(text),
        "confidence": number,
        "signals": arrow.map_(text, number),
        "predicted_wrong": flag,
        "agreed": flag,
        "prompt_tokens": count,
        "output_tokens": count,
        "money": number,
        "seconds": number,
        "complete": flag,
        "right": flag,
        "texts": arrow.struct(
            [("prompt", text), ("local", text), ("cloud", text), ("right", flag)]
        ),
    }
    columns |= {name: text for name in _NAMES if name not in columns}
    return arrow.schema(list(columns.items()))


def _row(entry: JournalEntry) -> dict[str, Any]:
    row = entry.to_json()
    return row | {
        # Arrow has no seconds since the epoch with a fraction.
        "at": round(entry.decision.at * 1e6),
        "signals": list(entry.decision.signals.items()),
        "texts": None if entry.texts is None else asdict(entry.texts),
    }


def _entry_of(row: dict[str, Any]) -> JournalEntry:
    values = {name: row[name] for name in _NAMES}
    values["at"] = row["at"].timestamp()
    values["kinds"] = tuple(row["kinds"] or ())
    values["signals"] = dict(row["signals"] or ())
    texts = row["texts"]
    return JournalEntry(
        row["id"],
        row["prompt_hash"],
        DecisionRecord(**values),
        None if texts is None else RecordedTexts(**texts),
        row["right"],
    )
