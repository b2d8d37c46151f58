#!/usr/bin/env bash
# Makes a compiler for Intel NPUs that runs on Linux x86-64: the Windows wheel of OpenVINO under wine.
# usage: make_compiler.sh FOLDER [OPENVINO_VERSION]     (about 1 GB; needs wine64 and mingw-w64)
# It leaves FOLDER/compile, a program with the arguments MODEL BLOB NAME=VALUE....
set -euo pipefail
[ $# -ge 1 ] || { sed -n 2,4p "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
version=${2:-2026.4.1}

wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || true)
if [ -z "$wine" ] || ! command -v x86_64-w64-mingw32-gcc >/dev/null; then
  echo "Run first, as root: apt-get install --no-install-recommends wine64 gcc-mingw-w64-x86-64" >&2
  exit 1
fi

wheel=$folder/wheel
rm -rf "$wheel" && mkdir "$wheel"
python3 -m pip download --quiet --no-deps --only-binary=:all: --platform win_amd64 \
  --python-version 3.11 --dest "$wheel" "openvino==$version"
python3 -m zipfile -e "$wheel"/openvino-*.whl "$folder"
rm -rf "$wheel"
x86_64-w64-mingw32-gcc -O1 -Wall "$here/ov_npu_compile.c" -o "$folder/openvino/libs/ov_npu_compile.exe"

# wine's server outlives the program and keeps its streams open, so they must not be the caller's.
cat >"$folder/compile" <<EOF
#!/bin/sh
log=\$(mktemp)
model=\$(realpath "\$1")
blob=\$(realpath "\$2")
shift 2
WINEPREFIX='$folder/prefix' WINEDEBUG=-all '$wine' '$folder/openvino/libs/ov_npu_compile.exe' \
  "Z:\$model" "Z:\$blob" "\$@" </dev/null >"\$log" 2>&1
code=\$?
cat "\$log"
rm "\$log"
exit \$code
EOF
chmod +x "$folder/compile"
echo "Made $folder/compile. Let edgesdk use it: export EDGESDK_INTEL_NPU_COMPILER='$folder/compile'"
