#!/bin/sh
# traps.sh BUDGETS OBJECTS [DEMANGLER]: counts the trap instructions in each Swift module's object; when a module
# has more than traps.txt allows, lists them by function and fails.
#
# What is measured: `ud2` in optimised x86-64 code. Each is a place where Swift would stop the process: an overflow,
# an index out of bounds, a broken promise. All of them are meant to be unreachable behind the boundary's checks,
# which bad_input.c shows from outside; this count shows from inside that their number does not grow unseen. It
# includes the standard library's generic code specialised into the module.
set -eu
demangle=${3:-cat}
failed=0
while read -r module budget; do
  case $module in '' | \#*) continue ;; esac
  counts=$(objdump -d --no-show-raw-insn "$2/$module.o" |
    awk '/^[0-9a-f]+ <.*>:$/ { name = substr($2, 2, length($2) - 3) } /\tud2/ { count[name]++ }
         END { for (name in count) print count[name], name }' | sort -rn)
  total=$(printf '%s\n' "$counts" | awk '{ sum += $1 } END { print sum + 0 }')
  echo "$module: $total traps, $budget allowed"
  if [ "$total" -gt "$budget" ]; then
    printf '%s\n' "$counts" | $demangle
    echo "$module: more traps than traps.txt allows; use checked or wrapping arithmetic, or argue for a new budget"
    failed=1
  elif [ "$total" -lt "$budget" ]; then
    echo "$module: lower its budget to $total"
  fi
done < "$1"
exit $failed
