#!/usr/bin/env bash
# From nothing to a distilled student: environment, install, a CNN as the teacher, a ViT
# alone, the ViT distilled with KD and with TAS, and a table and a plot that compare them.
# Called again, it goes on where it was stopped, and trains nothing twice.
#   bash tools/quickstart.sh
# PYTHON chooses the interpreter (3.10 to 3.12).
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
python=.venv/bin/python
$python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lite]'

train() {
    echo "== $*"
    $python tools/train.py "$@" --resume auto
}
pair=resnet18-w16_vit-w64
teacher=model.teacher_ckpt=work_dirs/resnet18-w16_digits
train --dataset digits --pair $pair --method teacher
train --dataset digits200 --pair $pair --method student
train --dataset digits200 --pair $pair --method kd --cfg-options $teacher
train --dataset digits200 --pair $pair --method tas --cfg-options $teacher

$python tools/compare_runs.py --out work_dirs/quickstart.png \
    teacher=work_dirs/resnet18-w16_digits \
    "student alone"=work_dirs/vit-w64_digits200 \
    "student, KD"=work_dirs/kd_${pair}_digits200 \
    "student, TAS"=work_dirs/tas_${pair}_digits200
