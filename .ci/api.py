#!/usr/bin/env python3
"""proto/API.md: the contract's reference, from the descriptors and comments of proto/ (`buf build`). Standard library only.

    .ci/api.py            # fails if the page is outdated
    .ci/api.py --write    # writes it
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "proto/API.md"
HEAD = """# API

All rpcs, messages and enums of [proto/](.), generated from their definitions and comments by `.ci/api.py --write`; CI fails when this page is outdated.

**Callers**: `public` needs no credentials; `customer` and `operator` are roles of an access token (`authorization: Bearer …`); a service in parentheses
is a mesh service, by its certificate. **Deadline**: the default, and the maximum. **Retries**: whether a client may repeat a call that failed with UNAVAILABLE: always,
with the same `request_id`, or never. **Event**: the type of the stored trace event. Errors have an `ErrorInfo` with the reason (AIP-193); the mesh's own reasons are under each service.
"""
# Field numbers of google.protobuf.FileDescriptorProto, ServiceDescriptorProto, DescriptorProto and EnumDescriptorProto.
MESSAGE, ENUM, SERVICE, METHOD, FIELD, NESTED, NESTED_ENUM, VALUE = 4, 5, 6, 2, 2, 3, 4, 2


def descriptors():
    done = subprocess.run(
        ["buf", "build", "-o", "-#format=json"], cwd=ROOT / "proto", capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{ROOT}/.ci/bin:{os.environ['PATH']}"})
    return [file for file in json.loads(done.stdout)["file"] if not file["name"].startswith("google/")]


def anchor(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def cell(text):
    return " ".join(text.split()).replace("|", "\\|")


def short(name):
    """`.order.v1.Order` as `order.v1.Order`."""
    return name.lstrip(".")


def link(name):
    return short(name) if name.startswith(".google.") else f"[{short(name)}](#{anchor(short(name))})"


class File:
    """A file's definitions, with their comments."""

    def __init__(self, file):
        self.file, self.package = file, file["package"]
        self.comments = {
            tuple(location.get("path", [])): location.get("leadingComments", "") or location.get("trailingComments", "")
            for location in file["sourceCodeInfo"]["location"]}

    def comment(self, *path):
        lines = [line.removeprefix(" ") for line in self.comments.get(path, "").rstrip().split("\n")]
        return "\n".join(lines).strip()

    def services(self):
        for index, service in enumerate(self.file.get("service", [])):
            yield f"## {self.package}.{service['name']}"
            yield self.comment(SERVICE, index)
            for number, method in enumerate(service["method"]):
                yield from self.method(service, method, self.comment(SERVICE, index, METHOD, number))

    def method(self, service, method, comment):
        options = method["options"]
        policy = options["[mesh.v1.policy]"]
        access = [name.removeprefix("ACCESS_").lower() for name in policy["allow"]]
        callers = [name for name in access if name != "service"] + [f"({name})" for name in policy.get("callers", [])]
        is_stream = method.get("serverStreaming", False)
        retries = {
            "NO_SIDE_EFFECTS": "yes",
            "IDEMPOTENT": "yes" if policy.get("naturallyIdempotent") else "with the same `request_id`",
        }.get(options.get("idempotencyLevel", ""), "no")
        event = policy.get("event", "").removeprefix("EVENT_TYPE_").lower()
        yield f"### {self.package}.{service['name']}/{method['name']}"
        yield comment
        rows = [
            ("request", link(method["inputType"])),
            ("response", ("a stream of " if is_stream else "") + link(method["outputType"])),
            ("callers", ", ".join(callers)),
            ("deadline", "none: until the token expires" if is_stream else policy["timeout"].replace("s", " s")),
            ("retries", retries),
            ("event", f"`{event}`" if event else f"none: {policy['noEvent']}"),
        ]
        if "maxMessageBytes" in policy:
            rows.append(("largest request", f"{policy['maxMessageBytes']} bytes"))
        yield "| | |\n|---|---|\n" + "\n".join(f"| {name} | {cell(value)} |" for name, value in rows)

    def messages(self, messages=None, path=(MESSAGE,), prefix=""):
        for index, message in enumerate(self.file.get("messageType", []) if messages is None else messages):
            here, name = (*path, index), f"{prefix}{message['name']}"
            if message.get("options", {}).get("mapEntry"):
                continue
            yield f"### {self.package}.{name}"
            yield self.comment(*here)
            rows = [self.field(message, field, self.comment(*here, FIELD, number)) for number, field in enumerate(message.get("field", []))]
            yield "\n".join(["| field | type | meaning |", "|---|---|---|", *rows]) if rows else "No fields."
            yield from self.messages(message.get("nestedType", []), (*here, NESTED), f"{name}.")
            yield from self.enums(message.get("enumType", []), (*here, NESTED_ENUM), f"{name}.")

    def field(self, message, field, comment):
        entries = {f".{self.package}.{message['name']}.{nested['name']}": nested for nested in message.get("nestedType", []) if nested.get("options", {}).get("mapEntry")}
        if field.get("typeName") in entries:
            key, value = entries[field["typeName"]]["field"]
            kind = f"map of {self.kind(key)} to {self.kind(value)}"
        else:
            kind = ("repeated " if field["label"] == "LABEL_REPEATED" else "optional " if field.get("proto3Optional") else "") + self.kind(field)
        limit = field.get("options", {}).get("[common.v1.limit]")
        if limit:
            comment += f" At most {limit['maxItems']} ({limit.get('reason', 'INVALID_LENGTH')})."
        return f"| `{field['name']}` = {field['number']} | {kind} | {cell(comment)} |"

    @staticmethod
    def kind(field):
        return link(field["typeName"]) if "typeName" in field else field["type"].removeprefix("TYPE_").lower()

    def enums(self, enums=None, path=(ENUM,), prefix=""):
        for index, enum in enumerate(self.file.get("enumType", []) if enums is None else enums):
            here = (*path, index)
            yield f"### {self.package}.{prefix}{enum['name']}"
            yield self.comment(*here)
            rows = [f"| `{value['name']}` = {value.get('number', 0)} | {cell(self.comment(*here, VALUE, number))} |" for number, value in enumerate(enum["value"])]
            yield "\n".join(["| value | meaning |", "|---|---|", *rows])


def page():
    files = sorted(map(File, descriptors()), key=lambda file: (not file.file.get("service"), file.package))
    parts = [HEAD.strip()]
    rows = ["| service | what it does |", "|---|---|"]
    for file in files:
        for index, service in enumerate(file.file.get("service", [])):
            name, first = f"{file.package}.{service['name']}", re.split(r"(?<=\.)\s", file.comment(SERVICE, index))[0]
            rows.append(f"| [{name}](#{anchor(name)}) | {cell(first)} |")
    parts.append("\n".join(rows))
    for file in files:
        parts += file.services()
    for package in sorted({file.package for file in files}):
        parts.append(f"## Messages of {package}")
        for file in files:
            if file.package == package:
                parts += [*file.messages(), *file.enums()]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(args):
    text = page()
    headings = {anchor(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}
    missing = set(re.findall(r"\]\(#([^)]+)\)", text)) - headings
    if missing:
        print(f"links to nothing: {sorted(missing)}")
        return 1
    if args == ["--write"]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("proto/API.md is outdated: .ci/api.py --write")
        return 1
    print(f"proto/API.md: {text.count(chr(10) + '### ')} rpcs, messages and enums")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
