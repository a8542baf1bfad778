# Sourced by the other scripts, in the repository's root: finds uv (or installs one under .cache/) and makes the locked environment .venv.
export UV_PYTHON_DOWNLOADS=never
unset PYTHONDONTWRITEBYTECODE # a delivery starts a dozen Pythons: without bytecode each takes seconds longer

# A private authority may stand in the system's store alone; uv and older pips trust stores of their own.
for store in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem; do
    if [ -s "$store" ]; then
        export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS-1} UV_NATIVE_TLS=${UV_NATIVE_TLS-1}
        [ -n "${REQUESTS_CA_BUNDLE:-}${CURL_CA_BUNDLE:-}" ] || export PIP_CERT=${PIP_CERT:-${SSL_CERT_FILE:-$store}}
        break
    fi
done

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
