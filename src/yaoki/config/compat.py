"""What may change between two attempts of one run. Judges configs only; touches no file."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from yaoki.config.schema import Config
from yaoki.errors import RefusedError

ChangeClass = Literal["free", "trajectory", "state"]


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs between the stored config and the one now asked for."""

    name: str
    before: Any
    after: Any
    kind: ChangeClass

    def __str__(self) -> str:
        return f"{self.name}: the run has {self.before!r}, now asked for {self.after!r}"


def change_class(section: str, field: str) -> ChangeClass:
    """What a change of this setting means for a run that exists, as the schema says beside the field."""
    kind = Config.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    extra = kind.model_fields[field].json_schema_extra
    found = extra.get("on_resume", "trajectory") if isinstance(extra, dict) else "trajectory"
    assert found in ("free", "trajectory", "state")
    return found  # type: ignore[return-value]


def compare(stored: Config, asked: Config) -> list[Change]:
    """Every difference, in the order of the schema."""
    before, after = stored.model_dump(mode="json"), asked.model_dump(mode="json")
    return [
        Change(f"{section}.{field}", before[section][field], value, change_class(section, field))
        for section, fields in after.items()
        for field, value in fields.items()
        if before[section][field] != value
    ]


def require_resumable(stored: Config, asked: Config) -> list[Change]:
    """The free changes, or RefusedError that names every change that is not free."""
    changes = compare(stored, asked)
    refused = [change for change in changes if change.kind != "free"]
    if not refused:
        return changes
    names = ", ".join(change.name for change in refused)
    reasons = {
        "trajectory": "would make it another run from here on",
        "state": "would no longer fit the saved state",
    }
    lines = [f"  {change}  ({reasons[change.kind]})" for change in refused]
    raise RefusedError(
        "this run cannot go on with a changed config:\n" + "\n".join(lines),
        hint=f"put {names} back to resume; or go on with it in a run of its own: "
        "`yaoki fork RUN --at STEP --to NEW section.field=value ...`",
    )


def config_digest(config: Config) -> str:
    """Digest of everything that is not free: equal digests mean the same trajectory was asked for."""
    kept = {
        f"{section}.{field}": value
        for section, fields in config.model_dump(mode="json").items()
        for field, value in fields.items()
        if change_class(section, field) != "free"
    }
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()
