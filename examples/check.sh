#!/bin/sh
# Check a client over HTTP until the gateway denies it:
#
#   examples/check.sh alice
#
# STOPLOG_URL sets the address of the gateway. A denial has status 200 as well, because the call itself worked.
# If the store does not answer, the gateway fails open. If the gateway does not answer, this script fails open.
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
