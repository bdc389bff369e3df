#!/bin/sh
# Makes sure that the servers which tests talk to are installed: Dovecot, Postfix, PostgreSQL.
# Nothing is started as a service: tests run their own instances in temporary folders.
# With CI=true a missing server is a failure; elsewhere the tests that need it are left out, and this says which.
set -eu

have_dovecot() { command -v dovecot >/dev/null 2>&1 || test -x /usr/sbin/dovecot; }
have_postfix() { command -v postfix >/dev/null 2>&1 || test -x /usr/sbin/postfix; }
have_postgresql() { command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

packages=""
have_dovecot || packages="$packages dovecot-core dovecot-imapd dovecot-lmtpd"
command -v mbsync >/dev/null 2>&1 || packages="$packages isync"  # the measurements compare with these two
command -v getmail >/dev/null 2>&1 || packages="$packages getmail6"
have_postfix || packages="$packages postfix"
have_postgresql || packages="$packages postgresql"
command -v openssl >/dev/null 2>&1 || packages="$packages openssl"
command -v systemd-analyze >/dev/null 2>&1 || packages="$packages systemd"

if [ -n "$packages" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing for the tests:$packages"
    export DEBIAN_FRONTEND=noninteractive
    policy=/usr/sbin/policy-rc.d
    made_policy=""
    if [ ! -e "$policy" ]; then
        made_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    fi
    trap '[ -z "$made_policy" ] || rm -f "$policy"' EXIT
    echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of words on purpose
    { apt-get update -q && apt-get install -q -y --no-install-recommends $packages; } >"$log" 2>&1 || {
        tail -5 "$log"
        echo "apt-get could not install:$packages"
    }
    rm -f "$log"
fi

missing=""
have_dovecot || missing="$missing Dovecot"
have_postfix || missing="$missing Postfix"
have_postgresql || missing="$missing PostgreSQL"
command -v systemd-analyze >/dev/null 2>&1 || missing="$missing systemd-analyze"
[ "$(id -u)" = 0 ] || missing="$missing root(for-Postfix)"
if [ -n "$missing" ]; then
    if [ "${CI:-}" = true ]; then
        echo "CI may not leave out tests, but these are missing:$missing"
        exit 1
    fi
    echo "LEFT OUT: the tests that need$missing. On Debian, as root: make servers"
fi
