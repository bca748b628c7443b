#!/usr/bin/env bash
# Packs a Node runtime, a built workspace package and what it needs at run time into .device/, to be carried to a bare
# Linux GPU machine that need have nothing but Python and an NVIDIA driver. Run at the root after a build:
# scripts/device-bundle.sh [package, default @metashard/test]. There: python3 .device/unpack.py RT && RT/node
# RT/app/<script>. A plugin with GPU code (npm run build:cuda -- --beside) takes the place of the one in use. Not here:
# what to build and run, which is gpu-check.mjs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
package=${1:-@metashard/test}
with_gpu_code=packages/cuda/build/gpu/Release/metashard_cuda.so

rm -rf .device && mkdir -p .device/stage
strip -s "$(node -p process.execPath)" -o .device/stage/node
pnpm=$(node -p "require('./package.json').packageManager.split('+')[0]")
npx --yes "$pnpm" --filter "$package" deploy --prod --legacy "$root/.device/stage/app" > .device/deploy.log 2>&1 ||
  { cat .device/deploy.log >&2; exit 1; }
if [ -f "$with_gpu_code" ]; then
  find .device/stage/app -name metashard_cuda.so -type f -exec cp --remove-destination "$with_gpu_code" {} \;
fi
find .device/stage/app \( -name '*.map' -o -name '*.d.ts' -o -name '*.md' -o -path '*/yaml/browser' \) -prune -exec rm -rf {} +
tar -C .device/stage -cf - app | xz -6 -T0 > .device/app.tar.xz

# The runtime takes about a minute to compress, once for each version.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/metashard-node-$(sha256sum .device/stage/node | cut -c1-16).xz"
mkdir -p "$(dirname "$cache")"
[ -s "$cache" ] || { xz -9e -T1 -c .device/stage/node > "$cache.part" && mv "$cache.part" "$cache"; }
cp "$cache" .device/node.xz
rm -rf .device/stage .device/deploy.log

cat > .device/unpack.py <<'P'
import lzma, os, shutil, sys, tarfile
here, out = os.path.dirname(os.path.abspath(__file__)), sys.argv[1]
os.makedirs(out, exist_ok=True)
with lzma.open(f"{here}/node.xz") as packed, open(f"{out}/node", "wb") as node:
    shutil.copyfileobj(packed, node, 1 << 20)
os.chmod(f"{out}/node", 0o755)
safely = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
with tarfile.open(f"{here}/app.tar.xz", "r:xz") as app:
    app.extractall(out, **safely)
P
du -sh .device
