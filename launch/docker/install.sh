#!/bin/sh
# The step of launch/docker/Dockerfile that installs: dpr_jax with one extra into an environment
# of its own, at the versions of constraints.txt, without what only building needs. Run it in the
# root of the repository.
set -eu

if [ $# -ne 3 ]; then
  echo "usage: launch/docker/install.sh PYTHON FOLDER EXTRA" >&2
  exit 2
fi
python=$1 folder=$2 extra=$3

"$python" -m venv "$folder"
# shellcheck disable=SC2102 # no glob
"$folder/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check --no-compile \
  --constraint constraints.txt ".[$extra]"
"$folder/bin/pip" uninstall --quiet --yes pip
# tests of packages and compiled files: a fifth of the size
find "$folder/lib" -depth -type d \
  \( -name __pycache__ -o -name tests -a -path '*/site-packages/*' \) \
  ! -path '*/numpy/*' ! -path '*/scipy/*' -exec rm -rf {} +
