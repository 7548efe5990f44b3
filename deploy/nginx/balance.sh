#!/bin/sh
# Starts nginx over the replicas that a name stands for, and keeps to them: it looks the name up every two seconds, and where its
# addresses have changed it writes the list of servers and has nginx read it again. Connections in use are served to their end.
#
#   REPLICAS         NAME:PORT; every IPv4 address of the name is a replica
#   TRUSTED_PROXIES  networks, separated by commas, whose X-Forwarded-For names the client; empty: none
#
# Why not `server NAME resolve`: `hash ... consistent` places servers by the names that they are listed under. All addresses of one name
# share its place, and requests for one bandit would go to each of them in turn.
set -eu
config=/etc/nginx/nginx.conf
list=/tmp/replicas.conf
name=${REPLICAS%:*}
port=${REPLICAS##*:}

# In the answer of nslookup the name server comes first, then the addresses of the name; sorted, so that every nginx has one order.
addresses() {
    { nslookup -type=a "$name" 2>/dev/null || true; } | awk '
        /^Name:/ { answered = 1 }
        answered && /^Address/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$/) print $i }' | sort -u
}

# As a whole or not at all: on a full disk the list stays what it was, and the next lookup tries again.
write() {
    for address in $1; do
        echo "server $address:$port max_fails=2 fail_timeout=5s;" || return 1
    done >"$list.new" && mv "$list.new" "$list"
}

{
    for network in $(echo "${TRUSTED_PROXIES:-}" | tr , ' '); do
        echo "set_real_ip_from $network;"
    done
    echo "real_ip_header X-Forwarded-For;"
    echo "real_ip_recursive on;"
} >/tmp/trusted.conf

served=$(addresses)
if [ -n "$served" ]; then
    write "$served"
else
    echo "server 127.0.0.1:9 down;" >"$list" # until there is one: nginx says that no replica answers
fi

# A lookup without an answer changes nothing: the name server may be away, and replicas that are gone are passed over anyway.
while sleep 2; do
    found=$(addresses)
    if [ -n "$found" ] && [ "$found" != "$served" ]; then
        if write "$found" && nginx -e /dev/stderr -c "$config" -s reload; then
            served=$found
        fi
    fi
done &

exec nginx -e /dev/stderr -c "$config" -g "daemon off;"
