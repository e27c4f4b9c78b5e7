#!/usr/bin/env bash
# Install into a fresh environment (.venv-test), check style and types, and run the tests:
#   bash tools/run_tests.sh [options of pytest, e.g. --runslow]
# PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv --clear .venv-test
.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
.venv-test/bin/ruff check .
.venv-test/bin/ruff format --check .
.venv-test/bin/mypy
# one thread in each of the test processes: the models are tiny
OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest --numprocesses "${WORKERS:-2}" \
    --durations=15 --durations-min=1 "$@"
