"""Draw every ``.dot`` file of this folder as SVG with Graphviz: ``python docs/architecture/render.py``.

The drawings are committed, so that the documentation builds without Graphviz. Each carries the hash of its source, and a test
(``tests/test_architecture.py``) fails where a source was changed and not drawn anew. Graphviz: ``apt-get install graphviz``.
"""

import hashlib
import re
import subprocess
from pathlib import Path


def render(source: Path) -> str:
    """The drawing of a source: without the header, which names a file on another host, and with the hash."""
    text = source.read_bytes()
    drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, check=True).stdout.decode()
    body = re.sub(r"<!--.*?-->\n?", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    return f"<!-- {source.name}, sha256 {hashlib.sha256(text).hexdigest()} -->\n{body}"


if __name__ == "__main__":
    for source in sorted(Path(__file__).parent.glob("*.dot")):
        source.with_suffix(".svg").write_text(render(source))
