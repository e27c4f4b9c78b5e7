#!/usr/bin/env bash
# All that wants a GPU, in one command, without network, within MINUTES:
#   bash benchmarks/gpu.sh --prepare   before, where there is network: packages and data, into KIT
#   bash benchmarks/gpu.sh             tests, step times, memory, accuracy, in this order
# Called again, it goes on where it was stopped or failed: each part leaves its record in OUT,
# and a file PART.done when it has ended. PYTHON (3.10 to 3.12) has torch and torchvision; what it
# has of the rest is taken, and else comes from KIT. REHEARSE=1 runs all of it on a CPU, with
# tiny settings.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
kit=$(realpath -m "${KIT:-work_dirs/gpu_kit}")
out=$(realpath -m "${OUT:-benchmarks/results/gpu}")
data=${DATA:-data/cifar100}
end=$(($(date +%s) + 60 * ${MINUTES:-25}))
rehearse=${REHEARSE:-}
if [ "${1:-}" = --prepare ]; then
    mkdir -p "$kit"
    rm -rf "$kit"/{wheels,files.tar.*}
    # The versions that the tests are run with, but torch, what comes with it, and what only
    # docs and checks of the code need.
    grep -vE '^(#|torch|nvidia|cuda|triton|mkdocs|mypy|ruff|onnx|ml_dtypes)' constraints.txt >"$kit/list.txt"
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$kit/wheels" \
        -r "$kit/list.txt"
    paths=(-C "$kit" wheels)
    if [ -z "$rehearse" ]; then
        [ -d "$data/cifar-100-python" ] ||
            "$python" -c "import torchvision; torchvision.datasets.CIFAR100('$data', download=True)"
        paths+=(-C "$(realpath "$data")" cifar-100-python)
    fi
    tar -c "${paths[@]}" | split -b 60000000 - "$kit/files.tar."
    rm -r "$kit/wheels"
    ls -l "$kit"
    exit
fi

mkdir -p "$out"
if [ ! -f "$kit/unpacked" ]; then
    cat "$kit"/files.tar.* | tar -x -C "$kit"
    # What is there stays, be it of another version, but for the OpenMMLab packages.
    "$python" - "$kit/site" "$kit"/wheels/*.whl <<'PYTHON'
import subprocess, sys
from importlib import metadata
from pathlib import Path

there = {d.metadata['Name'].lower().replace('_', '-') for d in metadata.distributions()}
if 'opencv-python-headless' in there:
    there.add('opencv-python')
there -= {'mmengine', 'mmpretrain', 'mmrazor'}
target, *wheels = sys.argv[1:]
missing = [w for w in wheels if Path(w).name.split('-')[0].lower().replace('_', '-') not in there]
command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
subprocess.run([*command, '--no-index', '--no-deps', '--target', target, *missing], check=True)
PYTHON
    touch "$kit/unpacked"
fi
export PYTHONPATH=$PWD:$kit/site OMP_NUM_THREADS=1
[ -n "$rehearse" ] || [ ! -d "$kit/cifar-100-python" ] || data=$kit

# part NAME SHARE COMMAND...: run it once, for at most SHARE per cent of what time is left
part() {
    local name=$1 seconds=$(((end - $(date +%s)) * $2 / 100)) status=0
    shift 2
    if [ -f "$out/$name.done" ]; then return; fi
    if [ "$seconds" -le 0 ]; then echo "== $name: no time left"; return; fi
    echo "== $name: $*"
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1 || status=$?
    tail -n 4 "$out/$name.log"
    if [ "$status" = 124 ]; then echo "== $name: stopped after $seconds s"; return; fi
    if [ "$status" != 0 ]; then echo "== $name: failed ($status), see $out/$name.log"; return; fi
    echo "$(date -u +%FT%TZ), $(nvidia-smi -L 2>/dev/null | head -n 1 || true)" >"$out/$name.done"
}

step=("$python" -W ignore benchmarks/step_time.py)
accuracy=("$python" -W ignore benchmarks/accuracy.py)
if [ -n "$rehearse" ]; then
    tests=(tests/test_gpu.py tests/test_fake_cuda.py -k 'scaler or planted')
    pairs=('timm:test_vit timm:test_resnet')
    sizes=(--batch 4 --input 160 --rounds 2 --methods kd tas)
    options=(--amp bfloat16 --channels-last) compiled=(--compile aot_eager) share=60
    cat >"$out/protocol.py" <<PYTHON
_base_ = '$PWD/benchmarks/protocols/digits.py'
pairs = {'_delete_': True, 'CNN -> ViT': 'resnet18-w16_vit-w64'}
seeds = 1
rows = ['KD']
teacher = dict(options={'train_cfg.max_epochs': 11})
student = dict(options={'train_cfg.max_epochs': 11, 'model.random_teacher': True})
PYTHON
    accuracy+=("$out/protocol.py" --workers 1)
else
    tests=(tests -m gpu)
    pairs=(
        'timm:swin_tiny_patch4_window7_224 timm:resnet18'
        'timm:vit_small_patch16_224 timm:resnet18'
        'timm:mixer_b16_224 timm:resnet18'
        'timm:convnext_tiny timm:deit_tiny_patch16_224'
    )
    sizes=(--batch 128 --rounds 20 --methods kd ofa hcd rsd tas tas:swin)
    options=(--amp bfloat16 --channels-last) compiled=(tas --compile) share=20
    accuracy+=(benchmarks/protocols/cifar100_gpu.py --workers 4 --data-root "$data")
fi

part tests 30 "$python" -m pytest -p no:cacheprovider "${tests[@]}"
for pair in "${pairs[@]}"; do
    read -r teacher student <<<"$pair"
    name=${teacher#timm:}_${student#timm:}
    command=("${step[@]}" --teacher "$teacher" --student "$student" "${sizes[@]}")
    part "step_$name" 15 "${command[@]}" "${options[@]}" --out "$out/step_$name"
    part "compiled_$name" "$share" "${command[@]}" "${options[@]}" --methods kd "${compiled[@]}" \
        --out "$out/compiled_$name"
done
read -r teacher student <<<"${pairs[0]}"
part memory 20 "${step[@]}" --teacher "$teacher" --student "$student" "${sizes[@]}" \
    --rounds 3 --out "$out/memory"
part accuracy 100 "${accuracy[@]}" --work-dir "$kit/runs" --out "$out"
# also of what was trained when the time was over
[ -f "$out/accuracy.done" ] || "${accuracy[@]}" --work-dir "$kit/runs" --out "$out" --table || true
grep -H . "$out"/*.done
