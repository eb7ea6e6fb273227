#!/usr/bin/env bash
# Resolves the locks from pyproject.toml: hash-pinned, without index URLs, for Python 3.11 to 3.13 on Linux (x86-64 and
# aarch64) and macOS (arm64). Versions stay where they are as long as pyproject.toml allows them: delete a lock to renew it.
set -euo pipefail
cd "$(dirname "$0")/.."
resolve() {
	uv pip compile --quiet --universal --python-version 3.11 --no-python-downloads --no-emit-index-url \
		--no-emit-find-links --no-annotate --no-header "$@"
}
resolve --generate-hashes pyproject.toml -o envs/requirements.txt
resolve --generate-hashes pyproject.toml --extra dev -c envs/requirements.txt -o envs/requirements-dev.txt
for extra in cuda12 cuda13 petab onnx torch; do
	resolve --generate-hashes pyproject.toml --extra $extra -c envs/requirements.txt -o envs/requirements-$extra.txt
done
echo "uv>=0.9" | resolve --generate-hashes - -o envs/uv.txt

# What the index has of these versions, by file name: uv's own lock names its hosts, so only names and hashes are kept.
named=$(mktemp -d)
trap 'rm -rf "$named"' EXIT
for lock in envs/requirements*.txt envs/uv.txt; do
	resolve --format pylock.toml "$lock" -o "$named/pylock.$(basename "${lock%.txt}").toml"
done
python envs/wheels.py "$named"/pylock.*.toml
python envs/conda.py
