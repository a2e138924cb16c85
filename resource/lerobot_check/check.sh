#!/usr/bin/env bash
# Open a dataset with the real lerobot package: resource/lerobot_check/check.sh DATASET [--backend torchcodec]
# lerobot 0.6 needs Python 3.12 and its own torch, so it gets an environment of its own, once (8 GB
# on x86-64, where PyPI's torch brings CUDA). PYTHON names the interpreter, LEROBOT_VENV the folder.
# The torchcodec backend needs FFmpeg's shared libraries on the machine, the default pyav does not.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${LEROBOT_VENV:-$here/../../.lerobot-venv}
python=${PYTHON:-python3.12}

if ! "$venv/bin/python" -c 'import lerobot' 2> /dev/null; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
        || { echo "lerobot needs Python 3.12 or newer; run with PYTHON=/path/to/python3.12" >&2; exit 1; }
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi
HF_HUB_OFFLINE=1 exec "$venv/bin/python" "$here/check.py" "$@"
