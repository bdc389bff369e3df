#!/bin/sh
# A Debian host of its own, booted with systemd as its first process, on which an operator follows docs/operating.md.
# Usage (as root): tests/systemd/live.sh [FOLDER]      FOLDER (/var/tmp/postsale-live) keeps the Debian tree for the next time.
# Needs debootstrap and systemd-nspawn (Debian: apt-get install debootstrap systemd-container), and the network once.
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-/var/tmp/postsale-live}
base=$work/debian12
host=$work/host
[ "$(id -u)" = 0 ] || { echo "run this as root"; exit 1; }
for needed in debootstrap systemd-nspawn; do
    command -v "$needed" >/dev/null || { echo "$needed is needed (apt-get install debootstrap systemd-container)"; exit 1; }
done
mkdir -p "$work"

if [ ! -e "$base/.whole" ]; then
    echo "Building a Debian 12 tree in $base (once, a few minutes) ..."
    rm -rf "$base"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,python3-venv,make,procps,ca-certificates,dovecot-imapd,postfix \
        bookworm "$base" "${MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log" 2>&1 \
        || { tail -5 "$work/debootstrap.log"; exit 1; }
    touch "$base/.whole"
fi

# The host has no network of its own: what pip would fetch is fetched here, by the Python whose version the tree has.
if [ ! -e "$work/wheels/.whole" ] || [ "$here/pyproject.toml" -nt "$work/wheels/.whole" ] || [ "$here/constraints.txt" -nt "$work/wheels/.whole" ]; then
    echo "Fetching what Postsale needs into $work/wheels ..."
    rm -rf "$work/wheels"
    python3.11 -m pip wheel --quiet --constraint "$here/constraints.txt" --wheel-dir "$work/wheels" "$here" 'hatchling>=1.25' 2>"$work/pip.log" \
        || { tail -5 "$work/pip.log"; exit 1; }
    rm -f "$work"/wheels/postsale-*.whl
    touch "$work/wheels/.whole"
fi

rm -rf "$host"
cp -a --reflink=auto "$base" "$host"
mkdir -p "$host/root/postsale" "$host/root/trial" "$host/wheels"
(cd "$here" && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -cf -) | tar -xf - -C "$host/root/postsale"
cp "$here/tests/systemd/operator.sh" "$host/root/trial/operator.sh"
printf '[global]\nno-index = true\nfind-links = /wheels\n' >"$host/etc/pip.conf"
echo postsale-trial >"$host/etc/hostname"
cat >"$host/etc/systemd/system/trial.service" <<'UNIT'
[Unit]
Description=An operator follows the guide
After=multi-user.target dovecot.service postfix.service
[Service]
Type=oneshot
ExecStart=/bin/sh /root/trial/operator.sh
ExecStopPost=/bin/systemctl --no-block poweroff
Environment=HOME=/root LANG=C.UTF-8
StandardOutput=append:/root/trial/log
StandardError=append:/root/trial/log
TimeoutStartSec=30min
UNIT
mkdir -p "$host/etc/systemd/system/graphical.target.wants"
ln -s ../trial.service "$host/etc/systemd/system/graphical.target.wants/trial.service"

for boot in first second; do
    echo "$boot boot ..."
    : >"$host/root/trial/log"
    echo "$boot" >"$host/root/trial/boot"
    systemd-nspawn --quiet --directory="$host" --boot --private-network --register=no --keep-unit --bind-ro="$work/wheels:/wheels" \
        --link-journal=no --kill-signal=SIGRTMIN+3 >"$work/console.$boot" 2>&1 </dev/null || true
    cat "$host/root/trial/log"
    grep -q '^whole:' "$host/root/trial/log" || { echo "the $boot boot did not come to its end: $work/console.$boot"; exit 1; }
    ! grep -q '^FAIL' "$host/root/trial/log" || failed=yes
done
[ -z "${failed:-}" ] || { echo "Something did not hold; $host is left for a look."; exit 1; }
rm -rf "$host"
echo "Everything held."
