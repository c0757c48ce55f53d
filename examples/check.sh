#!/bin/sh
# Asks a gateway over HTTP until it denies:
#
#   examples/check.sh alice
#
# STOPLOG_URL says where the gateway is. A denial is a 200 too: the call worked. When the store does not answer
# the gateway lets through, and when the gateway does not, so does this.
set -eu

client=${1:?usage: examples/check.sh CLIENT}
url=${STOPLOG_URL:-http://127.0.0.1:8080}

allowed() {
  answer=$(curl -s --max-time 1 "$url/v1/check" -H 'Content-Type: application/json' -d "{\"client_id\": \"$1\"}") ||
    return 0
  case $answer in
  *'"allowed":false'*) return 1 ;;
  esac
}

calls=0
while allowed "$client"; do
  calls=$((calls + 1))
  echo "call $calls"
  [ "$calls" -lt 1000 ] || exit 0
done
echo "denied after $calls calls"
