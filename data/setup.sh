#!/bin/sh
# setup.sh run|test|deb PACKAGE...: install the Debian packages that are missing, and the project in .venv.
set -eu
kind=$1; shift
cd "$(dirname "$0")/.."

missing=""
for package in "$@"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # --no-remove: on a node with packages of its own (Proxmox has its own LXC) rather fail.
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends --no-remove $missing
fi

python=/usr/bin/python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=python3

extra=""
[ "$kind" = test ] && extra="[test,lint]"
[ "$kind" = deb ] && extra="[deb]"
stamp=".venv/.installed-$kind"
if [ ! -x .venv/bin/fswatchd ] || [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check wheel
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extra"
    # Starts are quick from the first one on, also where Python may not write bytecode by itself.
    .venv/bin/python -m compileall -q fswatchd
    touch "$stamp" .venv/.installed-run
fi
