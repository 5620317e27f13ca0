#!/bin/sh
# symbols.sh SOURCE LIBRARY: the functions of tamis.h, the names of the version script and the exported symbols of
# the library are the same set; the library depends on libc and its companions only; and the bad-input programs
# know every function that can fail.
set -eu
export LC_ALL=C
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
header=$1/include/tamis.h

sed -nE 's/^TAMIS_API [^(]*[ *](tamis_[a-z0-9_]+)\(.*/\1/p' "$header" | sort > "$work/header"
sed -nE 's/^ +(tamis_[a-z0-9_]+);.*/\1/p' "$1/bindings/c/tamis.map" | sort > "$work/map"
# Not nm: some linkers leave local symbols in the dynamic table, where nobody can bind to them.
readelf -W --dyn-syms "$2" | awk '$5 ~ /GLOBAL|WEAK|UNIQUE/ && $7 ~ /^[0-9]+$/ { sub(/@.*/, "", $8); print $8 }' |
  sort > "$work/library"

failed=0
[ -s "$work/header" ] || { echo "no function found in $header"; failed=1; }
diff -u "$work/header" "$work/map" || { echo "tamis.map differs from tamis.h"; failed=1; }
diff -u "$work/header" "$work/library" || { echo "$2 exports something else than tamis.h declares"; failed=1; }

nm -D --defined-only --with-symbol-versions "$2" | grep -q '@@TAMIS_0' || { echo "no version node"; failed=1; }
readelf -d "$2" | grep -q 'SONAME.*\[libtamis\.so\.0\]' || { echo "wrong SONAME"; failed=1; }
if readelf -d "$2" | sed -nE 's/.*NEEDED.*\[(.*)\]/\1/p' |
  grep -vE '^(libc|libm|libdl|libpthread|libstdc\+\+|libgcc_s|ld-linux-[a-z0-9-]+)\.so\.[0-9]+$'; then
  echo "unexpected dependency"
  failed=1
fi

sed -nE 's/^TAMIS_API tamis_status (tamis_[a-z0-9_]+)\(.*/\1/p' "$header" | while read -r function; do
  grep -q "\"$function\"" "$1"/Tests/ABI/bad_*.c || echo "$function"
done > "$work/untested"
if [ -s "$work/untested" ]; then
  echo "bad_*.c do not call:"
  cat "$work/untested"
  failed=1
fi
exit $failed
