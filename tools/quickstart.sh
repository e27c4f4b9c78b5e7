#!/usr/bin/env bash
# From nothing to a distilled student: environment, install, teacher, student alone,
# distilled student, and a table and a plot that compare them. Called again, it goes on
# where it was stopped, and trains nothing twice.
#   bash tools/quickstart.sh
# PYTHON chooses the interpreter (3.10 to 3.12).
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
python=.venv/bin/python
$python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .

train() {
    echo "== $1"
    $python tools/train.py "configs/$1.py" --resume auto
}
train digits/resnet18-w16_1xb50_digits
train digits/vit-w64_1xb20_digits
train kd/kd_resnet18-w16_vit-w64_1xb20_digits

$python tools/compare_runs.py --out work_dirs/quickstart.png \
    teacher=work_dirs/resnet18-w16_1xb50_digits \
    "student alone"=work_dirs/vit-w64_1xb20_digits \
    "student, KD"=work_dirs/kd_resnet18-w16_vit-w64_1xb20_digits
