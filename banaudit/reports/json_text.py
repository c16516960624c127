"""Record -> JSON, and the schema that the JSON follows."""

from __future__ import annotations

import json
import math

from banaudit.results import SCHEMA_VERSION, Inspection, Record, Repair, Report

RECORDS: dict[str, type[Record]] = {"report": Report, "inspection": Inspection, "repair": Repair}
"""What has a published schema."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render(record: Record) -> str:
    """The record as JSON in ASCII; numbers that are not finite become ``null``.

    ASCII because names come from untrusted files: escaped, they can neither steer a terminal nor break an encoding.
    """
    return json.dumps(_finite(record.model_dump(mode="python")), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def schema(kind: str) -> dict[str, object]:
    """JSON schema of a record.

    Args:
        kind: A key of :data:`RECORDS`.
    """
    model = RECORDS[kind]
    return {
        "$schema": _DIALECT,
        "schema_version": SCHEMA_VERSION,
        **model.model_json_schema(mode="serialization"),
    }


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
