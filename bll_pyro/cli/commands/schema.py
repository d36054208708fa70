"""``bll schema``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def schema_command(console: Console, out: Path | None = None) -> None:
    """Print the JSON Schema of experiments, by which editors complete and check the YAML.

    Editors with a YAML language server take it by a comment in the first line of the file:
    # yaml-language-server: $schema=experiment.schema.json

    Parameters
    ----------
    out
        Write it to this file in place of the terminal.

    Examples
    --------
    bll schema -o experiment.schema.json
    """
    import json

    from bll_pyro.cli.schema import json_schema
    from bll_pyro.files import scratch_folder, user_path

    body = json_schema()
    text = json.dumps(body, indent=2)
    if out is None:
        console.result(text, body)
        return
    path = user_path(out)
    with scratch_folder(path.parent) as folder:
        (folder / path.name).write_text(text + "\n", encoding="utf-8")
        (folder / path.name).replace(path)
