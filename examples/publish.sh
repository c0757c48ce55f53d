#!/bin/sh
# Publish checks with Kafka's console producer, without a gateway, and print the replies:
#
#   PATH=$PATH:/opt/kafka/bin examples/publish.sh alice 3
#
# STOPLOG_KAFKA sets the address of Kafka. The console producer hashes keys as Stoplog requires.
set -eu

client=${1:?usage: examples/publish.sh CLIENT CHECKS}
checks=${2:?usage: examples/publish.sh CLIENT CHECKS}
kafka=${STOPLOG_KAFKA:-127.0.0.1:9092}
replies=2  # any partition of the topic works
run=$$-$(date +%s)

# Find the end of the topic before publishing. Afterwards, a reply could already be behind it.
end=$(kafka-get-offsets.sh --bootstrap-server "$kafka" --topic replies --partitions $replies | cut -d: -f3)

i=0
while [ "$i" -lt "$checks" ]; do
  i=$((i + 1))
  printf '%s\t{"client_id": "%s", "reply_to": {"partition": %s, "id": "%s"}}\n' \
    "$client" "$client" "$replies" "$run-$i"
done | kafka-console-producer.sh --bootstrap-server "$kafka" --topic checks \
  --reader-property parse.key=true

# Other services' replies are on the topic as well, so filter by id. Stop after ten seconds without a reply.
kafka-console-consumer.sh --bootstrap-server "$kafka" --topic replies --partition $replies --offset "$end" \
  --timeout-ms 10000 2>/dev/null | grep --text "\"$run-"
