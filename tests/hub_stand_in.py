"""A server on loopback that speaks as much of the Hugging Face Hub's protocol as its client needs for models."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories as lists of commits, each ``{path: bytes}``; writing needs the token."""

    TOKEN = "hf_of_the_stand_in"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def commit_id(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {Hub.TOKEN}":
            return self.refuse(401, "Unauthorized")
        if parts[:3] == ["api", "repos", "create"]:
            said = json.loads(body)
            repo = f"{said.get('organization') or 'me'}/{said['name']}"
            if repo in self.server.commits:
                return self.answer({"error": "exists", "url": f"{self.server.address}/{repo}"}, 409)
            self.server.commits[repo] = [{".gitattributes": b""}]
            return self.answer({"url": f"{self.server.address}/{repo}"})
        repo, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        files = dict(self.server.commits[repo][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.commits[repo].append(files)
        oid = commit_id(files)
        return self.answer(
            {
                "commitOid": oid,
                "commitUrl": f"{self.server.address}/{repo}/commit/{oid}",
                "success": True,
                "hookOutput": "",
            }
        )

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[0] == "api"
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        if repo not in self.server.commits:
            return self.refuse(404, "RepoNotFound")
        if repo.endswith("gated") and not is_api:
            return self.refuse(403, "GatedRepo")
        revision = (parts[5] if is_api else parts[3]) if len(parts) > (5 if is_api else 3) else "main"
        by_name = {commit_id(files): files for files in self.server.commits[repo]} | {
            "main": self.server.commits[repo][-1]
        }
        if revision not in by_name:
            return self.refuse(404, "RevisionNotFound")
        files = by_name[revision]
        if not is_api:
            content = files.get("/".join(parts[4:]))
            if content is None:
                return self.refuse(404, "EntryNotFound")
            return self.answer(
                content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit_id(files)
            )
        if parts[4:5] == ["tree"]:
            return self.answer(
                [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
            )
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            {"id": repo, "sha": commit_id(files), "siblings": siblings, "tags": [], "private": False}
        )

    do_HEAD = do_GET
