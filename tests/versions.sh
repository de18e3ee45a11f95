#!/usr/bin/env bash
# The tests with the lowest versions that pyproject.toml allows, and with the highest on every Python.
#
# ENVIRONMENTS="3.12:next" tries what comes next: the newest nnunetv2, dynamic-network-architectures and torch, pre-releases
# too and whatever the upper bounds say. Nightly builds come from an index that UV_INDEX names.
#
# Usage: tests/versions.sh FOLDER [PYTEST ARGUMENTS]      such as: tests/versions.sh /tmp/versions -m "not slow"
# FOLDER gets an environment (6 GB) and a log for each; those that are there are used again. ENVIRONMENTS="3.12:highest"
# tries these alone. An interpreter that is not on this machine is fetched.
set -uo pipefail
folder=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.." || exit
make --silent install || exit
uv=$PWD/.venv/bin/uv
failed=0
mkdir -p "$folder" && printf '%s\n' nnunetv2 dynamic-network-architectures torch >"$folder/unbounded.txt"
for environment in ${ENVIRONMENTS:-3.10:lowest-direct 3.10:highest 3.11:highest 3.12:highest 3.13:highest}; do
    here=$folder/${environment/:/-}
    mkdir -p "$here" && rm -f "$here"/*.log
    case ${environment##*:} in
    next) choice=(--prerelease allow --upgrade --overrides "$folder/unbounded.txt") ;;
    *) choice=(--resolution "${environment##*:}") ;;
    esac
    { [[ -x $here/venv/bin/python ]] || "$uv" venv --quiet --python "${environment%%:*}" "$here/venv"; } &&
        "$uv" pip install --quiet --compile-bytecode --python "$here/venv/bin/python" "${choice[@]}" \
            --reinstall-package nnunet-autosam2 ".[test]" &>"$here/install.log" &&
        PATH=$here/venv/bin:$PATH "$here/venv/bin/pytest" -p no:cacheprovider "$@" &>"$here/tests.log"
    code=$?
    ((code == 0)) || failed=1
    echo "$environment: exit code $code; $(tail -qn 1 "$here"/*.log)"
    "$uv" pip list --python "$here/venv/bin/python" --format freeze >"$here/versions.txt" 2>/dev/null
done
exit $failed
