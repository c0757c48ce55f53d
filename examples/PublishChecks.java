import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Publishes three checks of a client to Kafka, without a gateway, and prints the replies.
 *
 * <pre>java -cp "kafka/libs/*" examples/PublishChecks.java 127.0.0.1:9092 alice</pre>
 *
 * The client id is the key, and the Java client's default partitioner chooses the partition.
 */
public final class PublishChecks {
    /** Any partition of "replies" works. A service should use one of its own. */
    private static final TopicPartition REPLIES = new TopicPartition("replies", 3);

    private static final Duration PATIENCE = Duration.ofSeconds(30);

    public static void main(String[] arguments) {
        String bootstrap = arguments[0];
        String client = arguments[1];
        try (KafkaConsumer<String, String> replies =
                new KafkaConsumer<>(
                        Map.of("bootstrap.servers", bootstrap), new StringDeserializer(), new StringDeserializer())) {
            // Find the position before publishing, so that no reply can be missed.
            replies.assign(List.of(REPLIES));
            replies.seekToEnd(List.of(REPLIES));
            replies.position(REPLIES, PATIENCE);

            List<String> ids = publish(bootstrap, client);
            answers(replies, ids).forEach(System.out::println);
        }
    }

    private static List<String> publish(String bootstrap, String client) {
        List<String> ids = new ArrayList<>();
        // The client's defaults, acks=all and idempotence, ensure that a check sent twice is counted once.
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(
                        Map.of("bootstrap.servers", bootstrap), new StringSerializer(), new StringSerializer())) {
            for (int i = 0; i < 3; i++) {
                String id = UUID.randomUUID().toString();
                // Use a JSON library for ids from outside: they may contain quotes.
                String check =
                        """
                        {"client_id": "%s", "cost": 1, "reply_to": {"partition": %d, "id": "%s"}}
                        """
                                .formatted(client, REPLIES.partition(), id);
                producer.send(new ProducerRecord<>("checks", client, check));
                ids.add(id);
            }
        }
        return ids; // closing the producer has sent all records
    }

    /** Returns the replies to {@code ids}, in log order. Other services use the same partition. */
    private static List<String> answers(KafkaConsumer<String, String> replies, List<String> ids) {
        Set<String> waiting = new HashSet<>(ids);
        List<String> answers = new ArrayList<>();
        long until = System.nanoTime() + PATIENCE.toNanos();
        while (!waiting.isEmpty()) {
            if (System.nanoTime() > until) {
                throw new IllegalStateException("no reply to " + waiting + ": is a worker running?");
            }
            replies.poll(Duration.ofSeconds(1))
                    .forEach(
                            record -> {
                                if (waiting.removeIf(record.value()::contains)) {
                                    answers.add(record.value());
                                }
                            });
        }
        return answers;
    }
}
