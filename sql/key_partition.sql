-- outbox.key_partition: where Kafka's clients put a key.

SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

-- The hashes are those of the tests of Kafka's Java client and of librdkafka;
-- with so many partitions the number is the hash, but for its sign.
SELECT key, outbox.key_partition(key, 2147483647) = hash & 2147483647 AS same
FROM (VALUES ('21', -973932308), ('foobar', -790332482), ('a-little-bit-long-string', -985981536),
		('a-little-bit-longer-string', -1486304829),
		('lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58897971), ('abc', 479470107),
		('kafka', x'd067cf64'::int), ('giberish123456789', x'8f552b0c'::int),
		('1234', x'9fc97b14'::int), ('234', x'e7c009ca'::int), ('34', x'873930da'::int),
		('4', x'5a4b5ca1'::int), ('PreAmbleWillBeRemoved,ThePrePartThatIs', x'78424f1c'::int),
		('', x'106e08d9'::int)) AS known(key, hash);

SELECT key, outbox.key_partition(key, 1) AS of_1, outbox.key_partition(key, 7) AS of_7
FROM unnest('{21,foobar,kafka,clé,€}'::text[]) AS key;
SELECT count(DISTINCT outbox.key_partition(n::text, 100)) AS of_100
FROM generate_series(1, 10000) AS n;

SELECT outbox.key_partition(NULL, 3) IS NULL AS null_key;
SELECT outbox.key_partition('k', 0);
SELECT outbox.key_partition('k', -1);
