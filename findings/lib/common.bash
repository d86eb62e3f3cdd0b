# Shared by the scripts of this folder: a temporary folder, pinned packages in it, the comparison.
# Read by `.`, not run. Exit codes of a finding: 0 as seen, 1 changed, 3 could not be tried.

export LC_ALL=C TZ=UTC0 PYTHONDONTWRITEBYTECODE=1
LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
T=$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX")
ROOT=$T/root # packages are unpacked here, nothing is installed
LIBRARIES=$ROOT/usr/lib/x86_64-linux-gnu:$ROOT/lib/x86_64-linux-gnu
LIBRARIES=$LIBRARIES:$ROOT/usr/lib/x86_64-linux-gnu/systemd # libsystemd-shared
CHANGED=0
trap 'rm -rf "$T"' EXIT
trap 'exit 130' HUP INT TERM

# The header of the script that runs: what is claimed stands beside what is seen.
sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
echo

cannot() {
    echo "cannot be tried here: $*" >&2
    exit 3
}

# Run a program of the unpacked packages: a session of its own, at most LIMIT seconds.
run() {
    setsid -w timeout -k 2 "${LIMIT:-20}" \
        env LD_LIBRARY_PATH="$LIBRARIES" PATH="$ROOT/usr/bin:$ROOT/bin:$PATH" "$@" </dev/null
}

apt() {
    timeout -k 5 300 apt-get -qq -o Dir::Cache="$T/apt/cache" -o Dir::Log="$T/apt" -o Debug::NoLocking=1 \
        -o APT::Sandbox::User="$(id -un)" -o APT::Get::List-Cleanup=0 "$@"
}

# deb NAME=VERSION...: download these packages, and what they need beyond this machine's, and unpack them in ROOT.
# With FINDINGS_UNPINNED=1 the versions are those that the machine's sources offer now.
deb() {
    local want=("$@") lists=()
    [ -z "${FINDINGS_UNPINNED:-}" ] || want=("${@%%=*}")
    mkdir -p "$T/apt/cache/archives/partial" "$T/apt/lists/partial" "$ROOT"
    local get=(-y --no-install-recommends --download-only --reinstall --allow-downgrades install)
    if ! apt "${get[@]}" "${want[@]}" >"$T/apt/out" 2>&1; then
        lists=(-o Dir::State::Lists="$T/apt/lists") # the machine's own lists are missing or old
        apt "${lists[@]}" update >"$T/apt/out" 2>&1 || cannot "apt-get update: $(tail -n 1 "$T/apt/out")"
        apt "${lists[@]}" "${get[@]}" "${want[@]}" >"$T/apt/out" 2>&1 ||
            cannot "$* is not offered any more ($(tail -n 1 "$T/apt/out")); FINDINGS_UNPINNED=1 takes what is offered"
    fi
    local file
    for file in "$T"/apt/cache/archives/*.deb; do
        dpkg -x "$file" "$ROOT"
    done
    for file in "${want[@]}"; do
        set -- "$T"/apt/cache/archives/"${file%%=*}"_*.deb
        echo "package: ${file%%=*} $(dpkg-deb -f "$1" Version)"
    done
}

# pip FOLDER NAME==VERSION...: wheels for Debian 12's Python in a folder.
pip() {
    local folder=$1
    shift
    timeout -k 5 300 python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
        --only-binary=:all: --python-version 3.11 --target "$folder" "$@" >"$T/pip" 2>&1 ||
        cannot "pip: $(tail -n 1 "$T/pip")"
    printf 'package: %s\n' "${@/==/ }"
}

# mock_input: the description of an input device, /dev/input/event7, for umockdev-run -d "$T/device".
mock_input() {
    [ -e /dev/ptmx ] || cannot "no /dev/ptmx: umockdev makes device nodes of pseudo-terminals"
    printf '%s\n' "P: /devices/virtual/input/input7/event7" "N: input/event7" "E: DEVNAME=/dev/input/event7" \
        "E: MAJOR=13" "E: MINOR=71" "E: SUBSYSTEM=input" "A: dev=13:71" "" >"$T/device"
}

# expect WHAT WANTED SEEN: compare, and say both when they differ.
expect() {
    if [ "$2" = "$3" ]; then
        printf 'as seen: %s\n' "$1"
        printf '%s\n' "$3" | sed 's/^/    /'
    else
        CHANGED=1
        printf 'CHANGED: %s\n  then:\n' "$1"
        printf '%s\n' "$2" | sed 's/^/    /'
        printf '  now:\n'
        printf '%s\n' "$3" | sed 's/^/    /'
    fi
}

# The last line of a finding.
finish() {
    [ "$CHANGED" = 0 ] || {
        echo "behaviour has changed: look again, then correct or remove this finding"
        exit 1
    }
    echo "still so"
}
