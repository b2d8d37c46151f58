#!/bin/sh
# Run edgesdk on Arm and compare it with this machine: `edgesdk run`, and the logits of bundles.
#
#   DEBIAN_MIRROR=http://... sh tools/arm_check/arm_check.sh FOLDER [BUNDLE...]
#
# On Linux x86-64 with debootstrap, dpkg, curl and xz, in a Python that has edgesdk with its extra
# `dev`. FOLDER gets an arm64 Debian without being root in it, aarch64 wheels, and qemu 10 (the one
# of Debian 12 crashes in onnxruntime); what is there already is taken as it is. Without BUNDLE it
# exports a tiny random model, for the CPU and for LiteRT. It ends with 1 where a top-1 differs.
set -eu
[ $# -ge 1 ] || { sed -n '2,11p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mkdir -p "$1" && cd "$1" && pwd)
shift
mirror=${DEBIAN_MIRROR:?set it to a mirror of Debian, such as apt uses}
python=${PYTHON:-python3}

if [ ! -x "$work/qemu/usr/bin/qemu-aarch64" ]; then
  echo "qemu"
  index="$mirror/dists/trixie/main/binary-amd64/Packages.xz"
  package=$(curl -sSf "$index" | xz -dc \
    | awk '/^Package: qemu-user$/ {found=1} found && /^Filename:/ {print $2; exit}')
  curl -sSf "$mirror/$package" -o "$work/qemu.deb"
  dpkg -x "$work/qemu.deb" "$work/qemu"
fi

if [ ! -x "$work/root/usr/bin/python3.11" ]; then
  echo "arm64 root"
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3.11 bookworm \
    "$work/root" "$mirror" > "$work/debootstrap.log"
  # Nothing is configured: Python and its libraries are all that is needed.
  for package in "$work"/root/var/cache/apt/archives/*.deb; do
    dpkg -x "$package" "$work/root"
  done
fi

echo "aarch64 wheels"
"$python" -m pip wheel -q --no-deps --wheel-dir "$work/edgesdk" "$here"
"$python" -m pip install -q --upgrade --target "$work/site" --only-binary=:all: \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
  --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
  "$(ls -t "$work"/edgesdk/edgesdk-*.whl | head -n 1)[litert]"

# A program of its own, because probes of providers start the interpreter again, and the kernel knows
# no arm64 program.
cat > "$work/python" << END
#!/bin/sh
export PYTHONPATH="$work/site" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 EDGESDK_HOME="$work/home"
exec nice "$work/qemu/usr/bin/qemu-aarch64" -cpu max -L "$work/root" "$work/root/usr/bin/python3.11" "\$@"
END
chmod +x "$work/python"
echo "import sys; sys.executable = '$work/python'" > "$work/site/sitecustomize.py"

if [ $# -eq 0 ]; then
  rm -rf "$work/checkpoint" "$work/cpu" "$work/litert"
  PYTHONPATH="$here/tests" "$python" -c "
import sys; from pathlib import Path; from support.tiny_models import make_tiny
make_tiny('llama', Path(sys.argv[1]))" "$work/checkpoint"
  "$python" -m edgesdk export "$work/checkpoint" --bits 4 --quality-tokens 0 --output "$work/cpu"
  "$python" -m edgesdk export "$work/checkpoint" --target litert --bits 4 --quality-tokens 0 \
    --output "$work/litert"
  set -- "$work/cpu" "$work/litert"
fi

# Probes start the interpreter again, which takes its time under emulation.
patient="import sys; from edgesdk.engines import discovery; discovery._TIMEOUT_SECONDS = 600.0
from edgesdk.cli import main; sys.exit(main())"
failed=0
for bundle in "$@"; do
  device=$("$python" -c "
import sys; from pathlib import Path; from edgesdk import open_bundle
print(open_bundle(Path(sys.argv[1])).manifest.target)" "$bundle")
  echo "$bundle on $device"
  "$work/python" -c "$patient" run "$bundle" --device "$device" --threads 1 --max-tokens 4 Hello
  "$python" "$here/tools/arm_check/logits.py" "$bundle" "$device" "$work/here.npy"
  "$work/python" "$here/tools/arm_check/logits.py" "$bundle" "$device" "$work/arm.npy"
  "$python" "$here/tools/arm_check/logits.py" --compare "$work/here.npy" "$work/arm.npy" || failed=1
done
exit $failed
