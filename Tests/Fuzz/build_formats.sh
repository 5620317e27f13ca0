#!/bin/sh
# Builds the libFuzzer target of fuzz_formats.swift into the given folder, with all that the readers need, under the
# address sanitizer. The readers and the runtime carry the coverage that guides libFuzzer.
#   sh Tests/Fuzz/build_formats.sh build/fuzz-formats
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$root/Sources"
flags="-O -parse-as-library -swift-version 6 -enable-upcoming-feature InternalImportsByDefault -package-name tamis
  -sanitize=fuzzer,address -I CPCRE2"
for module in TamisKernels TamisShims; do
  echo "module $module { umbrella \"$root/Sources/$module/include\" export * }" > "$out/$module.modulemap"
  flags="$flags -Xcc -fmodule-map-file=$out/$module.modulemap"
done
for module in TamisRuntime TamisFormats; do
  swiftc -c -wmo $flags -I "$out" -module-name $module -emit-module -emit-module-path "$out/$module.swiftmodule" \
    $module/*.swift -o "$out/$module.o"
done
for source in TamisKernels/*.c TamisKernels/*/*.c TamisShims/*.c; do
  clang -c -O1 -I TamisKernels -I TamisKernels/include -I TamisShims/include "$source" \
    -o "$out/$(echo "$source" | tr / _).o"
done
swiftc $flags -I "$out" ../Tests/Fuzz/fuzz_formats.swift "$out"/*.o -o "$out/fuzz_formats"
