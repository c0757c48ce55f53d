#!/bin/sh
# Publishes checks with Kafka's own console producer, without a gateway, and shows their answers:
#
#   PATH=$PATH:/opt/kafka/bin examples/publish.sh alice 3
#
# STOPLOG_KAFKA says where Kafka is. The console producer hashes keys as Stoplog wants them.
set -eu

client=${1:?usage: examples/publish.sh CLIENT CHECKS}
checks=${2:?usage: examples/publish.sh CLIENT CHECKS}
kafka=${STOPLOG_KAFKA:-127.0.0.1:9092}
replies=2  # any partition of the topic will do
run=$$-$(date +%s)

# Answers are read from here on: who looks for the end only after having asked may miss one.
end=$(kafka-get-offsets.sh --bootstrap-server "$kafka" --topic replies --partitions $replies | cut -d: -f3)

i=0
while [ "$i" -lt "$checks" ]; do
  i=$((i + 1))
  printf '%s\t{"client_id": "%s", "reply_to": {"partition": %s, "id": "%s"}}\n' \
    "$client" "$client" "$replies" "$run-$i"
done | kafka-console-producer.sh --bootstrap-server "$kafka" --topic checks \
  --reader-property parse.key=true

# Others' answers are on the topic as well; it is over when none has come for three seconds.
kafka-console-consumer.sh --bootstrap-server "$kafka" --topic replies --partition $replies --offset "$end" \
  --timeout-ms 3000 2>/dev/null | grep --text "\"$run-"
