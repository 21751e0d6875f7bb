#!/usr/bin/env bash
# What launch/docker/Dockerfile does, without a container engine: its copies into an empty folder,
# its installation, and its health check, as an unprivileged user where this is root.
set -euo pipefail

usage() {
  cat <<'END'
launch/docker/check.sh [options] EXTRA

  --python PYTHON    the Python to install with (default: python3)
  --dry-run          print the commands
  -h, --help         this text

EXTRA is that of an image: parquet (cpu), gpu, tpu or serve; gpu downloads 3 GB.
Example:
  launch/docker/check.sh parquet
END
}

die() { echo "launch/docker/check.sh: $1" >&2; exit "${2:-2}"; }

python=python3 dry_run=""
while (($#)); do
  case $1 in
    --python) [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value (see --help)"; python=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    -*) die "unknown argument '$1' (see --help)" ;;
    *) break ;;
  esac
done
(($# == 1)) || die "give one EXTRA (see --help)"
case $1 in parquet | gpu | tpu | serve) ;; *) die "no image has the extra '$1' (see --help)" ;; esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
file=$root/launch/docker/Dockerfile
mapfile -t copies < <(sed -n '/AS build$/,/^FROM/s/^COPY \(.*\) [^ ]*$/\1/p' "$file")
if [[ -n $dry_run ]]; then
  printf 'cp -r %s\n' "${copies[@]}"
  echo "launch/docker/install.sh $python FOLDER/opt $1"
  exit
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/src"
for names in "${copies[@]}"; do
  for name in $names; do
    mkdir -p "$tmp/src/$(dirname "$name")"
    cp -r "$root/$name" "$tmp/src/$name"
  done
done
(cd "$tmp/src" && launch/docker/install.sh "$python" "$tmp/opt" "$1")
du -sh "$tmp/opt"

chmod 755 "$tmp"
as_user=()
if ((EUID == 0)); then
  as_user=(setpriv --reuid=10001 --regid=10001 --clear-groups)
  if ! "${as_user[@]}" "$tmp/opt/bin/python" -c "" 2>/dev/null; then
    echo "launch/docker/check.sh: nobody but root may read $python: checked as root" >&2
    as_user=()
  fi
fi
in_image=(env -i "PATH=$tmp/opt/bin:/usr/bin:/bin" HOME=/tmp PYTHONUNBUFFERED=1 JAX_PLATFORMS=cpu)
cd /tmp
"${as_user[@]}" "${in_image[@]}" dpr --version
"${as_user[@]}" "${in_image[@]}" dpr info
