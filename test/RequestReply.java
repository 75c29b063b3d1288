/*-------------------------------------------------------------------------
 *
 * RequestReply.java
 *	  A client that asks as Spring's ReplyingKafkaTemplate does: a request has
 *	  the headers kafka_correlationId, 16 raw bytes, and kafka_replyTopic, and
 *	  its reply is the record with that correlation id, whatever its key.
 *
 *	java -cp 'KAFKA/lib/*' RequestReply.java BOOTSTRAP TOPIC REPLY_TOPIC VALUE...
 *
 * Sends a request for each value, all at once, and prints a line for each, in
 * their order: the value, a tab, and the reply.  Fails without one in time.
 *
 *-------------------------------------------------------------------------
 */
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class RequestReply
{
	private static final String CORRELATION = "kafka_correlationId";
	private static final String REPLY_TOPIC = "kafka_replyTopic";
	private static final long TIMEOUT_MS = 60000;

	public static void main(String[] args)
	{
		Properties properties = new Properties();
		List<String> values = Arrays.asList(args).subList(3, args.length);

		properties.put("bootstrap.servers", args[0]);
		try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(
				properties, new StringDeserializer(), new StringDeserializer());
			 KafkaProducer<String, String> producer = new KafkaProducer<>(
				properties, new StringSerializer(), new StringSerializer()))
		{
			waitAtEnd(consumer, args[2]);

			Map<ByteBuffer, String> replies = new HashMap<>();
			List<ByteBuffer> ids = values.stream().map(value ->
				request(producer, args[1], args[2], value)).toList();

			receive(consumer, ids, replies);
			for (int i = 0; i < ids.size(); i++)
				System.out.println(values.get(i) + "\t" + replies.get(ids.get(i)));
			System.exit(replies.size() == ids.size() ? 0 : 1);
		}
	}

	/* From here on, in all partitions, before anything is asked */
	private static void waitAtEnd(KafkaConsumer<String, String> consumer, String topic)
	{
		List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
			.map(info -> new TopicPartition(topic, info.partition())).toList();

		consumer.assign(partitions);
		consumer.seekToEnd(partitions);
		partitions.forEach(consumer::position);
	}

	private static ByteBuffer request(KafkaProducer<String, String> producer, String topic,
									  String replyTopic, String value)
	{
		UUID uuid = UUID.randomUUID();
		byte[] id = ByteBuffer.allocate(16).putLong(uuid.getMostSignificantBits())
			.putLong(uuid.getLeastSignificantBits()).array();
		ProducerRecord<String, String> record = new ProducerRecord<>(topic, value);

		record.headers().add(CORRELATION, id)
			.add(REPLY_TOPIC, replyTopic.getBytes(StandardCharsets.UTF_8));
		producer.send(record);
		return ByteBuffer.wrap(id);
	}

	/* Until each id has its reply, or it is too late */
	private static void receive(KafkaConsumer<String, String> consumer, List<ByteBuffer> ids,
								Map<ByteBuffer, String> replies)
	{
		long deadline = System.currentTimeMillis() + TIMEOUT_MS;

		while (replies.size() < ids.size() && System.currentTimeMillis() < deadline)
		{
			for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(100)))
			{
				Header header = record.headers().lastHeader(CORRELATION);

				if (header != null && ids.contains(ByteBuffer.wrap(header.value())))
					replies.put(ByteBuffer.wrap(header.value()), record.value());
			}
		}
	}
}
