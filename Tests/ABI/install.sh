#!/bin/sh
# install.sh CMAKE BUILD CC: installs into a temporary prefix, then builds and runs a C program against it in the
# two ways a user would: find_package(Tamis) and pkg-config.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$1" --install "$2" --prefix "$work/prefix" > /dev/null
find "$work/prefix" -name 'NOTICE-third-party.txt' | xargs grep -q PCRE2 # its licence asks for that

cat > "$work/main.c" <<'END'
#include <tamis.h>
#include <stdio.h>
int main(void) {
  printf("tamis %u.%u\n", (unsigned)(tamis_version() >> 16), (unsigned)(tamis_version() >> 8 & 255));
  return tamis_version() != ((uint32_t)TAMIS_VERSION_MAJOR << 16 | TAMIS_VERSION_MINOR << 8 | TAMIS_VERSION_PATCH);
}
END
cat > "$work/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.22)
project(consumer C)
find_package(Tamis 0.1 REQUIRED)
add_executable(consumer main.c)
target_link_libraries(consumer PRIVATE Tamis::tamis)
END
"$1" -S "$work" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_C_COMPILER="$3" > /dev/null
"$1" --build "$work/build" > /dev/null
"$work/build/consumer"

if command -v pkg-config > /dev/null; then
  pc=$(find "$work/prefix" -name tamis.pc)
  mv "$work/prefix" "$work/moved" # the package may be moved as a whole
  pc=$work/moved/${pc#"$work/prefix/"}
  export PKG_CONFIG_PATH="${pc%/*}"
  "$3" "$work/main.c" $(pkg-config --cflags --libs tamis) -o "$work/main"
  LD_LIBRARY_PATH="$(pkg-config --variable=libdir tamis)" "$work/main"
fi
