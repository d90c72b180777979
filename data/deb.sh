#!/bin/sh
# deb.sh [SUITE [REVISION]]: build the Debian package for a suite (default: this machine's) in dist/.
set -eu
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
suite=${1:-$(. /etc/os-release; echo "$VERSION_CODENAME")}
revision=${2:-1}
project=$PWD
build=$(mktemp -d "${TMPDIR:-/tmp}/fswatchd-deb.XXXXXX")
trap 'rm -rf "$build"' EXIT

mkdir -p "$build/fswatchd" dist
cp -r fswatchd data rules.d debian pyproject.toml README.md LICENSE "$build/fswatchd/"
cd "$build/fswatchd"
date=$(git -C "$project" log -1 --format=%cD 2>/dev/null || date -R)
export PYTHON="$project/.venv/bin/python" SUITE="$suite" PYTHONPATH="$PWD" PYTHONDONTWRITEBYTECODE=1
"$PYTHON" debian/suite.py changelog "$suite" "$revision" "$date" > debian/changelog
# -d: what it is built with besides debhelper comes from .venv.
dpkg-buildpackage -b -d -us -uc --no-sign > "$build/log" 2>&1 || { cat "$build/log"; exit 1; }
grep -i warning "$build/log" | grep -v "useless dependency" || true
cp "$build"/*.deb "$project/dist/"
ls "$build"/*.deb | sed 's|.*/|dist/|'
