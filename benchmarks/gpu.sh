#!/usr/bin/env bash
# Everything that a run on a GPU should show, in under 8 minutes: benchmarks/gpu.sh [OUT] [arguments of gpu.py]
# Needs Python, torch with CUDA, transformers and OpenCV; no data, no checkpoint, no network. What else is missing is
# listed first: `python benchmarks/gpu.py --list`. Wheels of it may lie in wheels/, which git ignores; made elsewhere by
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels av msgspec
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
shift || true
if compgen -G "wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" wheels/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 benchmarks/gpu.py --list || exit 2
exec timeout 470 python3 benchmarks/gpu.py --out "$out" "$@"
