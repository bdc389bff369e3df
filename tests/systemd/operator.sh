#!/bin/sh
# What an operator does on a new Debian host, by docs/operating.md; run by tests/systemd/live.sh as root inside of it.
# One line for each thing that has to hold: "ok …" or "FAIL …"; at the end "whole: …".
set -u
exec 2>&1
checked=0 failed=0
config=/etc/postsale/config.toml
state=/var/lib/postsale

check() { # NAME COMMAND…
    name=$1; shift
    checked=$((checked + 1))
    if "$@" >/root/trial/said 2>&1; then echo "ok   $name"; else
        failed=$((failed + 1)); echo "FAIL $name"; sed 's/^/       /' /root/trial/said | tail -20; fi
}
is() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; return 1; }; }
until_true() { # SECONDS COMMAND…
    end=$(($(date +%s) + $1)); shift
    until "$@" >/dev/null 2>&1; do [ "$(date +%s)" -lt "$end" ] || { "$@"; return 1; }; sleep 0.5; done
}
show() { systemctl show postsale -p "$1" --value; }
active() { is "$(show ActiveState)" active; }
said() { journalctl --sync >/dev/null 2>&1; journalctl -u postsale -o cat --no-pager --after-cursor="$cursor" | grep -q -- "$1"; }
mark() { cursor=$(journalctl -n0 --show-cursor -o cat | sed -n 's/^-- cursor: //p'); }
counts() { postsale status --json | grep -q "$1"; }
of_main() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$(show MainPID)/status"; }
foreign() { find /var/lib/private/postsale -not -user "$(stat -c %u /var/lib/private/postsale)" | sed 's/^/not the service user: /' | grep . && return 1; true; }
finish() { echo "whole: $checked checked, $failed failed"; exit 0; }
# A time zone in which it is HOUR o'clock now.
zone() {
    offset=$(( ($1 - $(date -u +%-H) + 36) % 24 - 12 ))
    if [ "$offset" -ge 0 ]; then echo "Etc/GMT-$offset"; else echo "Etc/GMT+$((-offset))"; fi
}
in_zone() { sed -i '/^timezone = /d; s|^\[service\]$|[service]\ntimezone = "'"$(zone "$1")"'"|' $config; }
mark

if [ "$(cat /root/trial/boot)" = second ]; then
    check "after a reboot the service runs by itself" until_true 60 active
    check "and reads its mailbox again" until_true 60 counts '"last_error": null'
    check "and knows what it knew" counts '"shadowed": 1'
    check "the timer of the training waits" sh -c 'systemctl list-timers --all | grep -q postsale-train'
    finish
fi

# ---------------------------------------------------------------- mail servers of the shop, on loopback
cat >/etc/dovecot/dovecot.conf <<'CONF'
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:~/Maildir
first_valid_uid = 8
passdb {
  driver = passwd-file
  args = scheme=PLAIN /etc/dovecot/users
}
userdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
namespace inbox {
  inbox = yes
  mailbox Sent {
    auto = subscribe
    special_use = \Sent
  }
}
service auth {
  unix_listener /var/spool/postfix/private/auth {
    mode = 0660
    user = postfix
    group = postfix
  }
}
CONF
for user in service@shop.example li@shop.example; do
    home=/srv/mail/${user%@*}
    mkdir -p "$home/Maildir" && chown -R mail:mail /srv/mail
    echo "$user:{PLAIN}correct horse:8:8::$home::" >>/etc/dovecot/users
done
cat >/etc/postfix/main.cf <<'CONF'
compatibility_level = 3.6
myhostname = mx.shop.example
mydestination =
inet_interfaces = loopback-only
inet_protocols = ipv4
virtual_mailbox_domains = shop.example
virtual_mailbox_base = /srv/mail
virtual_mailbox_maps = inline:{service@shop.example=service/Maildir/, li@shop.example=li/Maildir/}
virtual_minimum_uid = 8
virtual_uid_maps = static:8
virtual_gid_maps = static:8
recipient_delimiter = +
default_transport = error:5.1.2 the world is not reached from here
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
maillog_file = /var/log/postfix.log
CONF
systemctl restart dovecot postfix
buyer_writes() { # MESSAGE-ID
    printf 'From: Oliver <oliver@postbox.example>\nTo: service@shop.example\nSubject: Order\nMessage-ID: <%s@postbox.example>\n\nWhere is my parcel? It has not arrived.\n' "$1" \
        | sendmail -f oliver@postbox.example service@shop.example
}
arrived() { grep -rlq -- "$2" "/srv/mail/$1/Maildir/new" "/srv/mail/$1/Maildir/cur"; }

# ---------------------------------------------------------------- "As a service"
cd /root/postsale || exit 1
begun=$(date +%s)
check "make install" make install
echo "     make install took $(($(date +%s) - begun)) s"
check "the units are known" systemctl cat postsale.service postsale-train.service postsale-train.timer
check "systemd finds no fault in them" systemd-analyze verify --man=no postsale.service postsale-train.service postsale-train.timer
check "exposure is at most 1.5" systemd-analyze security --threshold=15 --no-pager postsale.service
sed -i -e 's/staff@shop.example/li@shop.example/' \
    -e 's/^host = "imap.shop.example"/host = "127.0.0.1"\ntls = "none"/' \
    -e 's/^host = "smtp.shop.example"/host = "127.0.0.1"\ntls = "none"\nport = 25/' \
    -e 's/^\[alarms\]/[alarms]\naddresses = ["li@shop.example"]/' -e 's/^\[http\]/[http]\nlisten = "127.0.0.1:9464"/' $config
in_zone 3
printf 'correct horse\n' | install -m 600 /dev/stdin /etc/postsale/secrets/shop.password
check "postsale check is clean" env CREDENTIALS_DIRECTORY=/etc/postsale/secrets postsale check --config $config
buyer_writes before-the-service
check "mail of the time before is there" until_true 20 arrived service before-the-service
check "systemctl enable --now" systemctl enable --now postsale.service postsale-train.timer
check "the service is active, which it is once it has said READY" active
check "systemctl status shows it" systemctl status postsale --no-pager
sed 's/^/     | /' /root/trial/said | head -12
check "with what it does" is "$(show StatusText)" "shadow mode, watching shop"
check "the mailbox is read" until_true 60 counts '"last_error": null'
check "a baseline was taken" said folder.baseline
check "/healthz answers 200" /opt/postsale/bin/python -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:9464/healthz")'

# ---------------------------------------------------------------- who it is and what it may
check "it is not root" sh -c '[ "$(stat -c %u /proc/'"$(show MainPID)"')" -ge 61184 ]'
check "no capabilities" is "$(of_main CapEff)" 0000000000000000
check "no new privileges" is "$(of_main NoNewPrivs)" 1
check "filtered system calls" is "$(of_main Seccomp)" 2
check "no core files" sh -c 'grep -q "^Max core file size *0 *0" /proc/$1/limits' sh "$(show MainPID)"
check "the state folder is private" is "$(stat -c %a /var/lib/private/postsale)" 700
check "and led to by a link" is "$(readlink $state)" private/postsale
check "everything in it is the service's" foreign
check "the database is for its owner only" is "$(stat -c %a $state/postsale.db)" 600
credential=/run/credentials/postsale.service/shop.password
check "the password came as a credential" grep -q 'correct horse' $credential
check "which only the service may read" sh -c '[ "$(stat -c %a '$credential')" = 400 ] || [ "$(stat -c %a '$credential')" = 440 ]'
check "the configuration cannot be written by it" sh -c '! nsenter -t "$1" -m -S "$2" -G "$2" touch /etc/postsale/config.toml' sh "$(show MainPID)" "$(stat -c %u /var/lib/private/postsale)"
check "commands typed as root" postsale status
sed 's/^/     | /' /root/trial/said
postsale pause >/dev/null && postsale resume >/dev/null
check "leave nothing of root's behind" foreign

# ---------------------------------------------------------------- reload, kill, watchdog, refusal, stop
mark
check "systemctl reload" systemctl reload postsale
check "is heard" until_true 20 sh -c '[ "$(systemctl show postsale -p ActiveState --value)" = active ]'
sed -i 's/^answer_days = .*/answer_days = 3/' /etc/postsale/templates/playbook.toml
check "a changed playbook is taken" systemctl reload postsale
check "and said" until_true 30 said service.reloaded
cp /etc/postsale/templates/playbook.toml /root/trial/playbook.toml
echo 'nonsense =' >>/etc/postsale/templates/playbook.toml
systemctl reload postsale
check "a mistake in it is refused and the service goes on" until_true 30 said service.reload_refused
cp /root/trial/playbook.toml /etc/postsale/templates/playbook.toml
before=$(show MainPID)
systemctl kill -s KILL postsale
check "killed, it comes back, with one restart counted" until_true 90 sh -c '[ "$(systemctl show postsale -p NRestarts --value)" = 1 ] && systemctl is-active -q postsale'
check "as another process" sh -c '[ "$1" != "$2" ]' sh "$(show MainPID)" "$before"
check "no process of the old one is left" sh -c '! kill -0 '"$before"' 2>/dev/null'
mkdir -p /etc/systemd/system/postsale.service.d
printf '[Service]\nWatchdogSec=6\n' >/etc/systemd/system/postsale.service.d/quick.conf
systemctl daemon-reload && systemctl restart postsale
sleep 15
check "fed, the watchdog keeps quiet" is "$(show NRestarts)" 0
before=$(show MainPID)
kill -STOP "$before"
check "a process that stands still is ended by the watchdog and started anew" until_true 90 \
    sh -c '[ "$(systemctl show postsale -p NRestarts --value)" = 1 ] && systemctl is-active -q postsale'
check "systemd says why" sh -c 'journalctl -u postsale -o cat --no-pager | grep -q "Watchdog timeout"'
rm /etc/systemd/system/postsale.service.d/quick.conf
cp $config /root/trial/config.toml
sed -i 's/^\[service\]/[service]\nmodee = "live"/' $config
systemctl daemon-reload && mark && systemctl restart postsale
check "a configuration that cannot be used: failed" until_true 30 sh -c 'systemctl is-failed -q postsale'
check "with status 78" is "$(show ExecMainStatus)" 78
sleep 8
check "and not tried again" is "$(show NRestarts) $(show ActiveState)" "0 failed"
check "the journal says file, key and mend" said 'config.toml: service.modee: is no setting of Postsale (did you mean mode?)'
cp /root/trial/config.toml $config
mv /etc/postsale/secrets/shop.password /root/trial/
check "without the password file it does not start" sh -c '! systemctl restart postsale'
mv /root/trial/shop.password /etc/postsale/secrets/
systemctl reset-failed postsale
check "mended, it starts" systemctl start postsale
begun=$(date +%s)
check "systemctl stop" systemctl stop postsale
check "in good time" test $(($(date +%s) - begun)) -lt 20
check "with a clean end" is "$(show Result) $(show ExecMainStatus)" "success 0"
check "the files stay, and are nobody else's" foreign
postsale pause >/dev/null && postsale resume >/dev/null
check "a command between two runs leaves nothing of root's" foreign
systemctl stop dovecot
check "it starts while the mail server is down" systemctl start postsale
check "says so" until_true 30 said mailbox.unreachable
systemctl start dovecot
check "and gets over it" until_true 90 sh -c 'postsale status --json | grep -q "\"last_error\": null" || ! postsale status | grep -q TROUBLE'

# ---------------------------------------------------------------- training beside it
check "the training runs beside the service" systemctl start postsale-train.service
check "and leaves nothing of another user's" foreign

# ---------------------------------------------------------------- mail, and the first account of shadow mode
buyer_writes one
check "a buyer's mail is read and shadowed" until_true 90 counts '"shadowed": 1'
check "the mail of the time before was left alone" sh -c "! postsale queue list --json | grep -q before-the-service"
check "nothing went to the buyer" sh -c '! grep -q oliver@postbox.example.*status=sent /var/log/postfix.log'
in_zone 12
check "next morning" systemctl restart postsale
check "the account of shadow mode is in the approver's mailbox" until_true 60 arrived li 'Subject:.*[Ss]hadow'
check "backup while it runs" postsale backup /root/trial/backup.tar.gz
check "of which only root may read" is "$(stat -c %a /root/trial/backup.tar.gz)" 600
systemctl stop postsale
check "restore" postsale restore /root/trial/backup.tar.gz --force
check "whose files are the service's again" foreign
check "and it starts on them" systemctl start postsale
check "with sending paused until somebody has looked" counts '"paused": {"shop"'
check "and knows what it knew" counts '"shadowed": 1'
check "nothing was refused by the sandbox" sh -c '! journalctl -u postsale -o cat --no-pager | grep -E "Traceback|Operation not permitted|Permission denied|Read-only file system"'
finish
