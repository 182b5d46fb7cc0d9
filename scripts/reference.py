"""Write config/schema.json and the tables of config/README.md from gpi_latents/study/settings.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gpi_latents.study.settings import COLUMNS, KEYS, Config, meaning
from pydantic.json_schema import GenerateJsonSchema

CONFIG = Path(__file__).resolve().parent.parent / "config"


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def texts() -> dict[Path, str]:
    """The files, and the text that each should have."""
    readme = (CONFIG / "README.md").read_text(encoding="utf-8")
    keys = [f"| `{key}` | `{json.dumps(field.default)}` | {meaning(field)} |" for key, field in KEYS.items()]
    readme = _with_table(readme, ["| key | default | meaning |", "| --- | --- | --- |", *keys])
    override = "As the config's key `{}`, for this row; a blank cell takes the config's value."
    meanings = {name: override.format(name) if name in KEYS else meaning(field) for name, field in COLUMNS.items()}
    columns = [f"| `{name}` | {text} |" for name, text in meanings.items()]
    readme = _with_table(readme, ["| column | meaning |", "| --- | --- |", *columns])
    return {CONFIG / "schema.json": json.dumps(_schema(), indent=2) + "\n", CONFIG / "README.md": readme}


def _schema() -> dict:
    schema = Config.model_json_schema(schema_generator=_WithoutTitles)
    for key, rule in schema["properties"].items():
        rule["description"] = meaning(KEYS[key])
    # Only Python writes the end of a text as \Z.
    plain = json.loads(json.dumps(schema).replace(r"\\Z", "$"))
    return {"$schema": GenerateJsonSchema.schema_dialect} | plain


def _with_table(page: str, lines: list[str]) -> str:
    """The page with the table of the same head replaced."""
    head, table = lines[0], "".join(f"{line}\n" for line in lines)
    return re.sub(rf"^{re.escape(head)}\n(\|.*\n)+", lambda _: table, page, count=1, flags=re.MULTILINE)


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
