"""The repository's language: no tracked file of SUFFIXES uses a word of words.txt. Exceptions are below, each with its reason."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".rs", ".proto", ".md", ".py", ".sh", ".toml", ".yaml", ".yml", ".json", ".html")
# (file, word): why it stays.
EXCEPTIONS = {
    (".ci/words.txt", "*"): "the list itself",
    (".ci/words.py", "*"): "this file",
    ("proto/clients/typescript/package-lock.json", "*"): "hashes",
    ("services/postgres-server/src/lib.rs", "nobody"): "the Unix account",
    ("services/ordermesh/benches/attacks/attacks.rs", "untaken"): "the name of an attack",
    ("deploy/RUNBOOK.md", "turned away"): "the name of an alert, which alert routes match",
    ("deploy/operations/alerts.yaml", "turned away"): "the same",
    ("deploy/operations/alerts.test.yaml", "turned away"): "the same",
    ("deploy/helm/ordermesh/files/alerts.yaml", "turned away"): "a link to it",
}
# Addresses and tokens that examples and tests make up.
MADE_UP = re.compile(r"nobody[-@]|nobody_knows|nobody-knows|\"nobody\"|--nobody|=nobody\b|somebody-elses-order")


def words_of(text):
    """The words of a text, with identifiers taken apart."""
    text = MADE_UP.sub(" ", text)
    text = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    return " " + re.sub(r"[^A-Za-z']+", " ", text).lower() + " "


def main():
    lines = [line.split(" | ") for line in (ROOT / ".ci/words.txt").read_text().splitlines() if line and not line.startswith("#")]
    wrong, looked_at = [], 0
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if not name.endswith(SUFFIXES) and name != ".ci/run":
            continue
        looked_at += 1
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            words = words_of(line)
            for word, instead in lines:
                if f" {word} " in words and not {(name, word), (name, "*")} & EXCEPTIONS.keys():
                    wrong.append(f"{name}:{number}: {word!r} ({instead}): {line.strip()[:120]}")
    if looked_at < 200:
        wrong.append(f"only {looked_at} files were looked at")
    if not words_of("let is_told = NoBody::told()").count(" told ") == 2:
        wrong.append("identifiers are not taken apart")
    print("\n".join(wrong) or f"{looked_at} files, {len(lines)} words: none is used")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
