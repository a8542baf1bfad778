# Sourced by the other scripts, in the repository's root: finds uv (or installs one under .cache/) and makes the locked environment .venv.
export UV_PYTHON_DOWNLOADS=never
unset PYTHONDONTWRITEBYTECODE # a delivery starts a dozen Pythons: without bytecode each takes seconds longer

find_python() {
    local name
    for name in python3.11 python3.12 python3; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11 or 3.12 is needed, and neither is on PATH: install one" >&2
    return 1
}

if [ -z "${UV:-}" ]; then
    UV=$(command -v uv || true)
fi
if [ -z "$UV" ]; then
    UV=$PWD/.cache/uv-venv/bin/uv
    if [ ! -x "$UV" ]; then
        echo "uv is not on PATH: installing it in .cache/uv-venv"
        python=$(find_python)
        "$python" -m venv .cache/uv-venv || { echo "python's venv module is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
        .cache/uv-venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    fi
fi
export UV
"$UV" sync --locked --quiet
