#!/usr/bin/env bash
# Make .venv: the project's requirements, ROS 2 from wheels, and the messages. Run by `make setup`.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

# Debian packages, installed when this is allowed, named when it is not.
need_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "Installing Debian packages: $*"
        apt-get install -y -qq "$@" > /dev/null || { apt-get update -qq && apt-get install -y -qq "$@" > /dev/null; }
    else
        echo "Missing Debian packages; run: sudo apt-get install $*" >&2
        return 1
    fi
}

# A machine without an NVIDIA driver is spared PyTorch's CUDA libraries (3 GB), unless pip has an
# index of its own to ask or PyTorch's is out of reach.
pytorch_index() {
    local index=https://download.pytorch.org/whl/cpu
    if command -v nvidia-smi > /dev/null || [ -n "${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}" ] \
        || "$1" -m pip config list 2> /dev/null | grep -qE 'index-url|find-links'; then
        return
    fi
    "$1" -c "import urllib.request as r; r.urlopen('$index/torch/', timeout=5)" 2> /dev/null \
        && echo "--extra-index-url $index"
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || { echo "mirage_ros needs Python 3.10 or newer, got $("$python" -V); run make PYTHON=python3.11" >&2; exit 1; }
missing=()
command -v c++ > /dev/null || missing+=(g++)
"$python" -c 'import ensurepip, venv' 2> /dev/null || missing+=(python3-venv)
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' || missing+=(python3-dev)
[ ${#missing[@]} = 0 ] || need_packages "${missing[@]}"

# An environment made elsewhere or by another Python cannot be mended.
if [ "$(cat .venv/.ready 2> /dev/null || echo "$PWD")" != "$PWD" ]; then rm -rf .venv; fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
# The wheels' start-up hook believes these of another environment.
unset LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE PYTHONPATH

echo "Installing requirements into .venv: 2 GB and 2 to 5 minutes the first time; .venv/pip.log tells more"
index=$(pytorch_index .venv/bin/python || true)
# Most of these files are never imported, so pip compiles none and warm_up compiles the rest.
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet --no-compile --log .venv/pip.log --disable-pip-version-check $index \
    -c constraints.txt -r requirements-ros.txt -e '.[entities,scenes,train,evaluate,record,ray,studio,foxglove,build,mesh,dev]'
.venv/bin/python resource/venv/build.py

# Write the byte code of what gets imported, once: where PYTHONDONTWRITEBYTECODE is set, every process
# would compile torch and diffusers anew (10 s).
warm_up() { env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c "$1" > /dev/null; }
warm_up "import mirage_ros.training.recipe, mirage_ros.ros.node, mujoco, pytest"
# Compile the kernels of memory and world, half a minute of CPU, before nodes and tests do so each for itself; and those of
# the shipped model's imagination, before somebody's first turn takes five seconds.
warm_up "import mirage_ros.ros.worker.process"
warm_up "
import numpy as np
from mirage_ros.data.seeds import load_seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model
from mirage_ros.world.world import World
seed, world = load_seed('room'), World(load_model('mini', 'cpu'))
world.reset(seed.rgb, seed.camera, seed.depth_m)
world.step(Camera.stack([seed.camera]).turned(0.6), np.array([10**8]))
"

# The tests render MuJoCo scenes without a display.
renders() { MUJOCO_GL=$1 .venv/bin/python -c 'import mujoco; mujoco.GLContext(8, 8).make_current()' > /dev/null 2>&1; }
renders egl || renders osmesa || need_packages libegl1 libosmesa6 \
    || echo "Without them, scenes cannot be rendered and their tests fail." >&2
