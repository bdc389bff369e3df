#!/bin/sh
# Installs Postsale as a systemd service: a virtual environment of its own, the units, a first configuration.
# Usage (as root, in a checkout): systemd/install.sh [PREFIX]      PREFIX is /opt/postsale unless given.
# DESTDIR=/some/root installs beneath another root, for packagers and tests. An existing configuration is kept.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
prefix=${1:-/opt/postsale}
root=${DESTDIR:-}
python=${PYTHON:-python3}

[ -n "$root" ] || [ "$(id -u)" = 0 ] || { echo "run this as root"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }

echo "Installing into $root$prefix ..."
[ -x "$root$prefix/bin/python" ] || "$python" -m venv "$root$prefix"
"$root$prefix/bin/python" -m pip install --quiet --upgrade --constraint "$here/constraints.txt" "$here"

mkdir -p "$root/usr/local/bin" "$root/etc/systemd/system"
ln -sf "$prefix/bin/postsale" "$root/usr/local/bin/postsale"
for unit in postsale.service postsale-train.service postsale-train.timer; do
    sed "s|/opt/postsale/bin|$prefix/bin|g" "$here/systemd/$unit" >"$root/etc/systemd/system/$unit"
    chmod 644 "$root/etc/systemd/system/$unit"
done

# systemd takes these over at the first start; they are there before so that `postsale check` finds them.
[ -e "$root/var/lib/postsale" ] || mkdir -p -m 700 "$root/var/lib/postsale/orders" "$root/var/lib/postsale/models"

if [ ! -e "$root/etc/postsale/config.toml" ]; then
    "$root$prefix/bin/postsale" init --system "$root/etc/postsale"
else
    echo "/etc/postsale/config.toml is kept as it is."
fi

if [ -z "$root" ]; then
    systemctl daemon-reload
    echo "Then: systemctl enable --now postsale.service postsale-train.timer"
fi
