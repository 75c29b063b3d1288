-- outbox.send
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

CREATE VIEW sent AS
	SELECT topic, key, key IS NULL AS no_key, payload, payload_bytes, headers, status, attempts
	FROM outbox.message WHERE topic LIKE 'send.%' ORDER BY id;

-- the id that is returned is the message's
WITH s AS MATERIALIZED (SELECT outbox.send('send.id', 'x'::text) AS id)
SELECT outbox.message_time(id) BETWEEN now() - interval '1 minute' AND clock_timestamp() + interval '1 minute' AS recent
FROM s;
SELECT outbox.send('send.id', 'y'::text) AS id \gset
SELECT payload FROM outbox.message WHERE id = :'id';

-- the three kinds of payload
SELECT outbox.send('send.jsonb', '{"b": 1.50, "a": [null, "é\u0007"]}'::jsonb) IS NOT NULL AS sent;
SELECT outbox.send('send.json', 'null'::jsonb) IS NOT NULL AS sent;
SELECT outbox.send('send.text', 'é "text"'::text, 'key', '{"traceparent": "00-1"}') IS NOT NULL AS sent;
SELECT outbox.send('send.bytea', '\x00ff41'::bytea, key => 'clé', headers => '{}') IS NOT NULL AS sent;
SELECT outbox.send('send.empty', ''::text, '') IS NOT NULL AS sent;
SELECT outbox.send('send.empty', ''::bytea, '') IS NOT NULL AS sent;
SELECT outbox.send('send.tombstone', NULL::bytea, 'key') IS NOT NULL AS sent;
SELECT outbox.send('send.tombstone', NULL::text, '') IS NOT NULL AS sent;
SELECT outbox.send('send.tombstone', NULL::jsonb, 'key', '{"a": ["1", null], "op": "x"}') IS NOT NULL AS sent;
SELECT * FROM sent WHERE topic <> 'send.id';

-- in a transaction
BEGIN;
SELECT outbox.send('send.rolled_back', '1'::jsonb) IS NOT NULL AS sent;
ROLLBACK;
BEGIN;
SELECT outbox.send('send.kept', '1'::jsonb) IS NOT NULL AS sent;
SAVEPOINT s;
SELECT outbox.send('send.rolled_back', '2'::jsonb) IS NOT NULL AS sent;
ROLLBACK TO s;
SELECT outbox.send('send.kept', '3'::jsonb) IS NOT NULL AS sent;
COMMIT;
SELECT topic, payload FROM sent WHERE topic IN ('send.kept', 'send.rolled_back');

-- many at once, in order
SELECT count(outbox.send('send.many', to_jsonb(n), 'k' || n % 10)) FROM generate_series(1, 1000) AS n;
SELECT count(*), bool_and(payload::int = number) AS in_order
FROM (SELECT payload, row_number() OVER () AS number FROM sent WHERE topic = 'send.many') AS m;

-- what is refused
SELECT outbox.send(NULL, '1'::jsonb);
SELECT outbox.send('', '1'::jsonb);
SELECT outbox.send('a b', '1'::jsonb);
SELECT outbox.send('send.x', NULL::jsonb);
SELECT outbox.send('send.x', NULL::text, NULL);
SELECT outbox.send('send.x', NULL::bytea);
SELECT outbox.send('send.x', '1'::jsonb, deliver_at => 'infinity');
SELECT outbox.send('send.x', '1'::jsonb, headers => '1');
SELECT outbox.send('send.x', '1'::jsonb, headers => 'null');
SELECT outbox.send('send.x', '1'::jsonb, headers => '[{"a": 1}]');
SELECT outbox.send('send.x', '1'::jsonb, headers => '{"id": null}');
SELECT outbox.send('send.x', '1'::jsonb, headers => '{"a": 1, "kafka_": "x"}');
SELECT outbox.send('send.x', '1'::jsonb, headers => '{"a": {}}');
SELECT outbox.send('send.x', '1'::jsonb, headers => '{"a": [[1]]}');
BEGIN READ ONLY;
SELECT outbox.send('send.x', '1'::jsonb);
ROLLBACK;
BEGIN READ ONLY;
SELECT outbox.announce();
ROLLBACK;
SELECT count(*) FROM sent WHERE topic = 'send.x';

-- the size: payload, key, headers and 200
SHOW outbox.max_message_bytes;
SELECT outbox.send('send.size', repeat('x', 999800)) IS NOT NULL AS sent;
SELECT outbox.send('send.size', repeat('x', 999799), 'kk');
SELECT outbox.send('send.size', repeat('x', 999801)::bytea);
SELECT outbox.send('send.size', repeat('x', 999790), headers => '{"a": "b"}');
SELECT outbox.send('send.size', repeat('é', 499901));
CREATE TABLE send_size (id int, t text);
SELECT outbox.attach('send_size', 'send.size', 'id');
INSERT INTO send_size VALUES (1, repeat('x', 1000000));
INSERT INTO send_size VALUES (1, repeat('"', 499875));
SELECT count(*) AS rows FROM send_size;
SELECT key, length(payload) FROM sent WHERE topic = 'send.size';
DROP TABLE send_size;

-- what people read
SELECT outbox.payload_text('\xc3a9') AS text, outbox.payload_text('\xff') AS not_utf8,
	outbox.payload_text('\x6100') AS zero, outbox.payload_text('') = '' AS empty;
DROP VIEW sent;
