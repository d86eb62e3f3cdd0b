# Sourced by tools/vm, tools/test, tools/demo and their like: run the tool with the distribution's own Python, which
# a fresh machine may not have yet. (Another python3 may come first in PATH, but one of pyenv or conda can be
# closed to the other users that some tests run as.)
if ! [ -x /usr/bin/python3 ]; then
    install="apt-get install --yes --no-install-recommends python3-venv"
    if [ "$(id -u)" -ne 0 ]; then
        printf 'missing on this machine; run this and try again:\n\n    sudo %s\n\n' "$install" >&2
        exit 4
    fi
    apt-get -qq update >&2 && DEBIAN_FRONTEND=noninteractive $install >&2 || exit 4
fi
exec /usr/bin/python3 "$here/tools/lab/__main__.py" "$tool" "$@"
