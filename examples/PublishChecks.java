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
 * Publishes three checks of a client to Kafka, without a gateway, and waits for their answers.
 *
 * <pre>java -cp "kafka/libs/*" examples/PublishChecks.java 127.0.0.1:9092 alice</pre>
 *
 * The Java client's own partitioner is the right one: the client's id is the key.
 */
public final class PublishChecks {
    /** Any partition of "replies" will do; a service best takes one for itself. */
    private static final TopicPartition REPLIES = new TopicPartition("replies", 3);

    private static final Duration PATIENCE = Duration.ofSeconds(30);

    public static void main(String[] arguments) {
        String bootstrap = arguments[0];
        String client = arguments[1];
        try (KafkaConsumer<String, String> replies =
                new KafkaConsumer<>(
                        Map.of("bootstrap.servers", bootstrap), new StringDeserializer(), new StringDeserializer())) {
            // From here on no answer can be missed: the position is known before anything is asked.
            replies.assign(List.of(REPLIES));
            replies.seekToEnd(List.of(REPLIES));
            replies.position(REPLIES, PATIENCE);

            List<String> ids = publish(bootstrap, client);
            answers(replies, ids).forEach(System.out::println);
        }
    }

    private static List<String> publish(String bootstrap, String client) {
        List<String> ids = new ArrayList<>();
        // With acks=all and idempotence, the client's defaults, a check that is sent again is counted once.
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(
                        Map.of("bootstrap.servers", bootstrap), new StringSerializer(), new StringSerializer())) {
            for (int i = 0; i < 3; i++) {
                String id = UUID.randomUUID().toString();
                // A client's id from outside needs a JSON library: it may hold quotes.
                String check =
                        """
                        {"client_id": "%s", "cost": 1, "reply_to": {"partition": %d, "id": "%s"}}
                        """
                                .formatted(client, REPLIES.partition(), id);
                producer.send(new ProducerRecord<>("checks", client, check));
                ids.add(id);
            }
        }
        return ids; // closing has sent them all
    }

    /** The answers to {@code ids}, in the order of the log; others read and write the same partition. */
    private static List<String> answers(KafkaConsumer<String, String> replies, List<String> ids) {
        Set<String> waiting = new HashSet<>(ids);
        List<String> answers = new ArrayList<>();
        long until = System.nanoTime() + PATIENCE.toNanos();
        while (!waiting.isEmpty()) {
            if (System.nanoTime() > until) {
                throw new IllegalStateException("no answer to " + waiting + ": does a worker run?");
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
