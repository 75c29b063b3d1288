-- What writes a message, and what is in it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

CREATE TABLE seen (last uuid);
INSERT INTO seen VALUES ('00000000-0000-0000-0000-000000000000');
CREATE VIEW captured AS
	SELECT id AS message_id, topic, key, payload, headers FROM outbox.message
	WHERE topic LIKE 'capture.%' ORDER BY id;
CREATE FUNCTION take(OUT topic text, OUT key text, OUT payload text, OUT headers jsonb)
RETURNS SETOF record LANGUAGE sql SET jit = off AS $$
	-- what came since the last call
	WITH last AS (UPDATE seen SET last = coalesce((SELECT max(c.message_id::text)::uuid FROM captured AS c), last)
				  FROM (SELECT last AS old FROM seen) AS before RETURNING before.old)
	SELECT c.topic, c.key, c.payload, c.headers FROM captured AS c, last
	WHERE c.message_id > last.old ORDER BY c.message_id
$$;

-- INSERT, UPDATE, DELETE
CREATE TABLE orders (id int PRIMARY KEY, product_id int, status text DEFAULT 'new');
SELECT outbox.attach('orders', 'capture.orders', 'id', '{INSERT,UPDATE,DELETE}',
	columns => '{id,product_id as productId,status}', headers => '{"source": "shop", "tags": ["a", 1, null]}');
INSERT INTO orders VALUES (1, 10), (2, 20), (3, NULL);
UPDATE orders SET status = 'paid' WHERE id <> 2;
UPDATE orders SET id = id + 10 WHERE id = 3;
DELETE FROM orders WHERE id > 2;
SELECT * FROM take();

-- nothing of what was rolled back
BEGIN;
INSERT INTO orders VALUES (4);
SAVEPOINT s;
INSERT INTO orders VALUES (5);
ROLLBACK TO s;
INSERT INTO orders VALUES (6);
COMMIT;
BEGIN;
INSERT INTO orders VALUES (7);
ROLLBACK;
INSERT INTO orders VALUES (8), (1);
DO $$
BEGIN
	INSERT INTO orders VALUES (9);
	BEGIN
		INSERT INTO orders VALUES (10);
		INSERT INTO orders VALUES (1);
	EXCEPTION WHEN unique_violation THEN
	END;
END
$$;
SELECT key FROM take();

-- COPY, INSERT ... SELECT, ON CONFLICT, MERGE, CTE
COPY orders FROM stdin WITH (FORMAT csv);
20,1,new
21,,
\.
INSERT INTO orders SELECT g, g, 'many' FROM generate_series(30, 32) AS g;
INSERT INTO orders VALUES (30, 0, 'conflict'), (40, 0, 'none')
	ON CONFLICT (id) DO UPDATE SET status = excluded.status || ' with ' || orders.status;
INSERT INTO orders VALUES (30, 0, 'nothing') ON CONFLICT DO NOTHING;
MERGE INTO orders AS o USING (VALUES (31, 'm'), (32, 'd'), (50, 'i')) AS s (id, status) ON o.id = s.id
	WHEN MATCHED AND s.status = 'd' THEN DELETE
	WHEN MATCHED THEN UPDATE SET status = s.status
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0, s.status);
WITH d AS (DELETE FROM orders WHERE id = 50 RETURNING id) INSERT INTO orders SELECT id + 1 FROM d;
UPDATE orders SET status = 'none' WHERE false;
TRUNCATE orders;
SELECT * FROM take();
SELECT outbox.detach('orders');

-- a condition, as the caller's search_path reads it
CREATE SCHEMA shop;
CREATE FUNCTION shop.dear(int) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN $1 > 100;
SET search_path = public, shop;
SELECT outbox.attach('orders', 'capture.dear', events => '{update,INSERT}',
	condition => 'dear(NEW.product_id) -- only these');
RESET search_path;
INSERT INTO orders VALUES (1, 1), (2, 1000);
UPDATE orders SET product_id = product_id + 100;
SELECT payload, headers FROM take();
SELECT outbox.detach('orders');
TRUNCATE orders;

-- by hand, two on one table, with different columns
CREATE TRIGGER z AFTER INSERT ON orders FOR EACH ROW
	EXECUTE FUNCTION outbox.capture('capture.z', 'column=status', 'key="id"');
CREATE TRIGGER a AFTER INSERT OR UPDATE OF status ON orders FOR EACH ROW
	EXECUTE FUNCTION outbox.capture('capture.a', 'column=product_id as p', 'column=id', 'headers={}');
INSERT INTO orders VALUES (1, 2);
UPDATE orders SET product_id = 3;
UPDATE orders SET status = 'set';
SELECT * FROM take();
-- others that are deferred write at commit, in the order of the changes
CREATE CONSTRAINT TRIGGER d AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION outbox.capture('capture.deferred');
BEGIN;
INSERT INTO orders VALUES (2, 3);
UPDATE orders SET status = 'later' WHERE id = 2;
SELECT topic FROM take();
COMMIT;
SELECT topic, payload FROM take();
DROP TABLE orders;

-- keys: of any type, under fixed settings too; NULL and none
CREATE TYPE record_or_not AS (a int, b text);
CREATE TABLE keys (n int, t timestamptz, i interval, by bytea, f float8, g text GENERATED ALWAYS AS ('g' || n) STORED,
	d numeric(10, 2), e text, b bool, a int[], r record_or_not, u uuid);
DO $$
DECLARE
	name text;
BEGIN
	FOR name IN SELECT attname FROM pg_attribute WHERE attrelid = 'keys'::regclass AND attnum > 0 ORDER BY attnum LOOP
		EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON keys FOR EACH ROW
			EXECUTE FUNCTION outbox.capture(%L, %L, ''column=n'')', name, 'capture.key.' || name, 'key=' || name);
	END LOOP;
END
$$;
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = -5;
INSERT INTO keys VALUES (1, '2026-01-02 03:04:05+00', '1 day 02:00', 'a\\b', 0.1::float8 + 0.2, DEFAULT, 1.5, '', true, '{1,2}',
	ROW(1, 'x y'), 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11');
RESET ALL;
INSERT INTO keys VALUES (2);
SELECT topic, key, key IS NULL AS none FROM take() ORDER BY topic, payload;
DROP TABLE keys;

-- tombstones
CREATE TABLE carts (id int, total money);
SELECT outbox.attach('carts', 'capture.carts', 'id', '{INSERT,DELETE}', delete_as_tombstone => true);
INSERT INTO carts VALUES (1, 2), (NULL, 3);
DELETE FROM carts WHERE id = 1;
DELETE FROM carts;
SELECT key, payload IS NULL AS tombstone, headers FROM take();
DROP TABLE carts;

-- partitions with columns in another order, and rows that move
CREATE TABLE parted (id int, region text, gone int, note text) PARTITION BY LIST (region);
CREATE TABLE parted_eu (note text, region text, x int, gone int, id int);
ALTER TABLE parted_eu DROP COLUMN x;
SELECT outbox.attach('parted', 'capture.parted', 'id', '{INSERT,UPDATE,DELETE}', columns => '{id,note as text,region}');
ALTER TABLE parted ATTACH PARTITION parted_eu FOR VALUES IN ('eu');
CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us') PARTITION BY RANGE (id);
CREATE TABLE parted_us_1 PARTITION OF parted_us FOR VALUES FROM (0) TO (1000);
INSERT INTO parted VALUES (1, 'eu', 0, 'one'), (2, 'us', 0, 'two');
INSERT INTO parted_eu VALUES ('three', 'eu', 0, 3);
UPDATE parted SET note = upper(note);
UPDATE parted SET region = 'us' WHERE id = 1;
ALTER TABLE parted DROP COLUMN gone;
DELETE FROM parted WHERE id = 2;
SELECT key, payload, headers FROM take();
SELECT outbox.detach('parted_eu'), outbox.detach('parted', 'capture.other'), outbox.detach('parted');
INSERT INTO parted VALUES (4, 'eu', 'four');
SELECT count(*) FROM take();
DROP TABLE parted;

-- other tables: unlogged, inherited, with generated columns, a view's
CREATE UNLOGGED TABLE plain (id int, twice int GENERATED ALWAYS AS (id * 2) STORED);
SELECT outbox.attach('plain', 'capture.plain', columns => '{twice as double,id}');
CREATE VIEW plain_view AS SELECT id FROM plain;
INSERT INTO plain_view VALUES (4);
CREATE TABLE child () INHERITS (plain);
INSERT INTO child VALUES (5);
SELECT payload FROM take();
DROP TABLE plain CASCADE;

-- a column that was renamed, or dropped
CREATE TABLE renamed (id int, a int);
SELECT outbox.attach('renamed', 'capture.renamed', columns => '{id,a}');
INSERT INTO renamed VALUES (1, 1);
ALTER TABLE renamed RENAME a TO b;
INSERT INTO renamed VALUES (2, 2);
ALTER TABLE renamed RENAME b TO a;
INSERT INTO renamed VALUES (3, 3);
SELECT payload FROM take();
-- a trigger that is changed, and disabled
ALTER TABLE renamed DISABLE TRIGGER ALL;
INSERT INTO renamed VALUES (4, 4);
ALTER TABLE renamed ENABLE TRIGGER ALL;
CREATE OR REPLACE TRIGGER "outbox_capture.renamed" AFTER INSERT ON renamed FOR EACH ROW
	EXECUTE FUNCTION outbox.capture('capture.replaced', 'column=a');
INSERT INTO renamed VALUES (5, 5);
SELECT topic, payload FROM take();
DROP TABLE renamed;

-- a trigger that changes tables with triggers
CREATE TABLE outer_table (id int);
CREATE TABLE inner_table (id int);
CREATE FUNCTION inner_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO inner_table VALUES (NEW.id * 10);
	RETURN NULL;
END
$$;
CREATE TRIGGER a AFTER INSERT ON outer_table FOR EACH ROW EXECUTE FUNCTION inner_insert();
SELECT outbox.attach('outer_table', 'capture.outer'), outbox.attach('inner_table', 'capture.inner');
INSERT INTO outer_table VALUES (1), (2);
SELECT topic, payload FROM take();
DROP TABLE outer_table, inner_table;
DROP FUNCTION inner_insert;

-- the log's columns; ids are in the order of capture, and say when that was
CREATE TABLE stored (id int);
SELECT outbox.attach('stored', 'capture.stored', 'id');
INSERT INTO stored SELECT * FROM generate_series(1, 1000);
SELECT count(*), count(DISTINCT l.id) AS ids, count(DISTINCT l.lane) AS lanes,
	bool_and(l.segment = (('x' || substr(l.id::text, 20, 4))::bit(16)::int & 16383) >> 6) AS segment,
	bool_and(l.tableoid = ('outbox.log_' || l.segment)::regclass) AS here,
	bool_and(l.status = 'N' AND l.attempts = 0 AND l.op = 'c' AND l.result = '' AND l.error = '') AS new,
	bool_and(substr(l.id::text, 15, 1) = '7' AND substr(l.id::text, 20, 1) IN ('8', '9', 'a', 'b')) AS version7,
	bool_and(l.updated_at = outbox.message_time(l.id)) AS updated_at,
	bool_and(l.updated_at BETWEEN now() - interval '1 minute' AND now() + interval '1 minute') AS time
FROM outbox.log AS l WHERE topic = 'capture.stored';
SELECT bool_and(key::int = number) AS in_order
FROM (SELECT key, row_number() OVER (ORDER BY id) AS number FROM outbox.log WHERE topic = 'capture.stored') AS m;
-- the lane is the key's
INSERT INTO stored SELECT g FROM generate_series(1, 1000) AS g;
SELECT max(lanes) FROM (SELECT count(DISTINCT lane) AS lanes FROM outbox.log
						WHERE topic = 'capture.stored' GROUP BY key) AS k;
SELECT count(*) FROM take();

-- all three isolation levels
BEGIN ISOLATION LEVEL REPEATABLE READ;
INSERT INTO stored VALUES (1);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) > 0 FROM stored;
INSERT INTO stored VALUES (2);
COMMIT;
SELECT key FROM take();

-- indexes that somebody makes on the log get their entries too
DO $$
BEGIN
	FOR segment IN 0 .. 15 LOOP
		EXECUTE format('CREATE UNIQUE INDEX log_test_%1$s ON outbox.log_%1$s (upper(topic), key)
						WHERE key LIKE ''one%%''', segment);
	END LOOP;
END
$$;
SELECT outbox.send('capture.unique', 'sent'::text, 'one') IS NOT NULL AS sent;
DO $$
BEGIN
	PERFORM outbox.send('capture.unique', 'refused'::text, 'one');
EXCEPTION WHEN unique_violation THEN
	RAISE NOTICE 'refused';
END
$$;
SELECT outbox.send('capture.unique', 'another'::text, 'two') IS NOT NULL AS sent;
SELECT outbox.send('capture.unique', 'another'::text, 'two') IS NOT NULL AS sent;
DO $$
BEGIN
	FOR segment IN 0 .. 15 LOOP
		EXECUTE format('DROP INDEX outbox.log_test_%s', segment);
	END LOOP;
END
$$;
INSERT INTO stored VALUES (78);
SELECT key, payload FROM take();

-- two-phase commit: the range of the ids is known, and that only afterwards
BEGIN;
INSERT INTO stored VALUES (5100);
PREPARE TRANSACTION 'outbox_1';
BEGIN;
INSERT INTO stored VALUES (5101);
INSERT INTO stored VALUES (5102);
PREPARE TRANSACTION 'outbox_2';
SELECT count(*) FROM outbox.prepared;
COMMIT PREPARED 'outbox_2';
ROLLBACK PREPARED 'outbox_1';
SELECT count(*), bool_and(m.id BETWEEN p.first_id AND p.last_id) AS within, bool_or(m.id = p.last_id) AS last
FROM outbox.prepared AS p, outbox.message AS m
WHERE m.topic = 'capture.stored' AND m.key IN ('5101', '5102');
SELECT key FROM take();
DELETE FROM outbox.prepared;
BEGIN;
SELECT outbox.announce() > now() AS announced;
PREPARE TRANSACTION 'outbox_3';
COMMIT PREPARED 'outbox_3';
SELECT count(*), bool_and(first_id <= last_id) AS range FROM outbox.prepared;
DELETE FROM outbox.prepared;

-- the ids' own functions
SELECT outbox.message_id_at('2026-01-02 03:04:05.678901+00') AS id,
	outbox.message_time(outbox.message_id_at('2026-01-02 03:04:05.678901+00')) = '2026-01-02 03:04:05.678901+00' AS same,
	outbox.message_time('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11') AS no_time,
	outbox.message_id_at('-infinity') AS first, outbox.message_id_at('infinity') AS last;
SELECT bool_and(outbox.message_time(outbox.message_id_at(t)) = t) AS same
FROM (SELECT '2026-01-02 00:00:00+00'::timestamptz + n * interval '1 microsecond' AS t
	  FROM generate_series(0, 5000) AS n) AS _;
SELECT bool_and(id >= outbox.message_id_at(created_at)
	AND id < outbox.message_id_at(created_at + interval '1 microsecond')) AS bounds
FROM outbox.message WHERE topic = 'capture.stored';
DROP TABLE stored;
