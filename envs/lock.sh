#!/usr/bin/env bash
# Resolves the locks from pyproject.toml: hash-pinned, for Python 3.11 to 3.13 on Linux and macOS, without index URLs.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-python-downloads \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@"
}
compile pyproject.toml -o envs/requirements.txt
compile pyproject.toml --extra dev -c envs/requirements.txt -o envs/requirements-dev.txt
echo "uv>=0.9" | compile - -o envs/uv.txt
python envs/conda.py
