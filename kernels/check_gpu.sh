#!/usr/bin/env bash
# Everything that needs a GPU, in one call: builds for it, tests every op on it, looks for stray accesses and races,
# measures. A step that fails does not keep the next from running; the exit code says whether any did.
#
#   kernels/check_gpu.sh [folder for logs and results, default build/gpu]
#
# Needs torch with CUDA, pytest, numpy, safetensors, grpcio, googleapis-common-protos and transformers; no network. The
# serving benchmark, which comes last, also needs the stubs (make protos), structlog, and for its pair all that gateway
# and worker need: a part of it that lacks something says what, and the others run.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONPATH=.:protos:kernels:client HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # what cuBLAS asks for where torch's deterministic mode fills memory with NaN
failed=0

step() { # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local status=$?
  [ $status -eq 0 ] || failed=1
  echo "== $name: exit $status after $((SECONDS - start)) s"
  tail -n "${lines:-12}" "$out/$name.log"
}

# Without the project's own settings, which name plugins that a bare machine lacks.
pytest=("$python" -m pytest -q -c /dev/null --rootdir . --import-mode=importlib -p no:cacheprovider)
ops=tests/unit/kernels/cuda

architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
[ "$architecture" = 90 ] && architecture=90a
step build 540 "$python" kernels/build.py --architectures "$architecture"
lines=40 step tests 420 "${pytest[@]}" "$ops" -m gpu
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" 420 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "${pytest[@]}" "$ops" -m gpu -k bfloat16
  done
else
  echo "== no compute-sanitizer here"
fi
lines=60 step vision_kernels 300 "$python" -m benchmarks.vision_kernels
lines=60 step language_kernels 300 "$python" -m benchmarks.language_kernels
lines=80 step serving_gpu 560 "$python" -m benchmarks.serving_gpu --output "$out"
exit $failed
