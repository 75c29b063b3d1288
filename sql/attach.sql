-- attach and detach: what they make, and what they and the trigger refuse.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

CREATE SCHEMA "Attach";
SET search_path = "Attach", public;
CREATE TABLE "Orders" (id int PRIMARY KEY, "userId" int, "a b" int, note text);

-- what is made
SELECT outbox.attach('"Orders"', 'attach.plain');
SELECT outbox.attach('"Orders"', 'Attach_all-1', 'userId', '{DELETE,insert,UPDATE,INSERT}',
	ARRAY['id', '"userId" as user', '"a b"  AS  a''b'], $$NEW IS NULL OR NEW.note <> 'it''s \' -- comment$$,
	'{"a": "\\x''", "b": [1, true, null, "c"]}', true, true);
SELECT outbox.attach('"Orders"', 'attach.all', 'userId', '{UPDATE,insert,UPDATE,INSERT}',
	ARRAY['id', '"userId" as user', '"a b"  AS  a''b'], $$NEW IS NULL OR NEW.note <> 'it''s \' -- comment$$,
	'{"a": "\\x''", "b": [1, true, null, "c"]}', false, true);
SELECT outbox.attach('"Orders"', 'attach.delete', 'id', '{DELETE}', delete_as_tombstone => true);
SELECT outbox.attach('"Orders"', repeat('long.', 49));
SELECT outbox.attach('"Orders"', repeat('long.', 49) || 'x');
\pset format unaligned
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = '"Orders"'::regclass ORDER BY tgname;
\pset format aligned

-- what is there already
SELECT outbox.attach('"Orders"', 'attach.plain', 'id');
SELECT outbox.attach('"Orders"', repeat('long.', 49));

-- detach
SELECT outbox.detach('"Orders"', 'attach.plain'), outbox.detach('"Orders"', 'attach.plain');
CREATE TRIGGER by_hand AFTER INSERT ON "Orders" FOR EACH ROW EXECUTE FUNCTION outbox.capture('attach.hand');
CREATE TRIGGER other AFTER INSERT ON "Orders" FOR EACH ROW
	EXECUTE FUNCTION suppress_redundant_updates_trigger();
SELECT outbox.detach('"Orders"', repeat('long.', 49)), outbox.detach('"Orders"', 'attach.hand');
SELECT outbox.detach('"Orders"');
SELECT tgname FROM pg_trigger WHERE tgrelid = '"Orders"'::regclass AND NOT tgisinternal;
DROP TRIGGER other ON "Orders";
SELECT outbox.detach('"Orders"'), outbox.detach('pg_class');
SELECT outbox.detach(NULL);

-- names that Kafka would refuse
SELECT left(topic, 10) AS topic, length(topic), outbox.check_topic_name(topic) IS NOT NULL AS fine
FROM unnest(ARRAY['a', '...', 'A.b_c-9', repeat('x', 249)]) AS topic;
SELECT outbox.check_topic_name('');
SELECT outbox.check_topic_name('.');
SELECT outbox.check_topic_name('..');
SELECT outbox.check_topic_name('a b');
SELECT outbox.check_topic_name('a/b');
SELECT outbox.check_topic_name('é');
SELECT outbox.check_topic_name(repeat('x', 250));
SELECT outbox.attach('"Orders"', 'a b');
SELECT outbox.attach('"Orders"', '');

-- columns that aren't there
SELECT outbox.attach('"Orders"', 'attach.x', 'missing');
SELECT outbox.attach('"Orders"', 'attach.x', '');
SELECT outbox.attach('"Orders"', 'attach.x', 'userid');
SELECT outbox.attach('"Orders"', 'attach.x', '"userid"');
SELECT outbox.attach('"Orders"', 'attach.x', '"userId');
SELECT outbox.attach('"Orders"', 'attach.x', 'a b');
SELECT outbox.attach('"Orders"', 'attach.x', 'ctid');
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{id,missing}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{id as}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => ARRAY['id as "x']);
SELECT outbox.attach('"Orders"', 'attach.x', columns => ARRAY['"i"d']);
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{"id as   "}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => ARRAY['id as "x" y']);
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{id other}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{id,note as id}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{id,id}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{}');
SELECT outbox.attach('"Orders"', 'attach.x', columns => '{id,NULL}');

-- events
SELECT outbox.attach('"Orders"', 'attach.x', events => '{UPSERT}');
SELECT outbox.attach('"Orders"', 'attach.x', events => '{INSERT,TRUNCATE}');
SELECT outbox.attach('"Orders"', 'attach.x', events => '{}');
SELECT outbox.attach('"Orders"', 'attach.x', events => NULL);
SELECT outbox.attach('"Orders"', 'attach.x', events => '{NULL}');

-- conditions
SELECT outbox.attach('"Orders"', 'attach.x', condition => 'NEW.missing > 1');
SELECT outbox.attach('"Orders"', 'attach.x', condition => 'OLD.id > 1');
SELECT outbox.attach('"Orders"', 'attach.x', condition => '');
SELECT outbox.attach('"Orders"', 'attach.x', condition => 'true) EXECUTE FUNCTION now(); SELECT (1');
SELECT outbox.attach('"Orders"', 'attach.x', condition => 'true) EXECUTE FUNCTION f(); DROP TABLE "Orders"; CREATE TRIGGER x AFTER INSERT ON "Orders" WHEN (true');

-- headers
SELECT outbox.attach('"Orders"', 'attach.x', headers => '[]');
SELECT outbox.attach('"Orders"', 'attach.x', headers => '"a"');
SELECT outbox.attach('"Orders"', 'attach.x', headers => '{"id": "1"}');
SELECT outbox.attach('"Orders"', 'attach.x', headers => '{"kafka_topic": "1"}');
SELECT outbox.attach('"Orders"', 'attach.x', headers => '{"op": "c"}');
SELECT outbox.attach('"Orders"', 'attach.x', headers => '{"a": 1, "b": {"c": 1}}');
SELECT outbox.attach('"Orders"', 'attach.x', headers => '{"a": ["b", []]}');

-- tombstones
SELECT outbox.attach('"Orders"', 'attach.x', events => '{DELETE}', delete_as_tombstone => true);
SELECT outbox.attach('"Orders"', 'attach.x', 'id', delete_as_tombstone => true);

-- tables
SELECT outbox.attach(NULL, 'attach.x');
SELECT outbox.attach('"Orders"', NULL);
SELECT outbox.attach('missing', 'attach.x');
SELECT outbox.attach(0, 'attach.x');
SELECT outbox.attach('pg_class', 'attach.x');
SELECT outbox.attach('outbox.log', 'attach.x');
SELECT outbox.attach('outbox.topic_config', 'attach.x');
SELECT outbox.attach('"Orders_pkey"', 'attach.x');
CREATE VIEW a_view AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id;
CREATE SEQUENCE a_sequence;
CREATE TYPE a_type AS (id int);
CREATE TEMP TABLE a_temp (id int);
SELECT outbox.attach('a_view', 'attach.x');
SELECT outbox.attach('a_matview', 'attach.x');
SELECT outbox.attach('a_sequence', 'attach.x');
SELECT outbox.attach('a_type', 'attach.x');
SELECT outbox.attach('a_temp', 'attach.x');

-- nothing was half-done
SELECT count(*) FROM pg_trigger WHERE tgrelid = '"Orders"'::regclass AND NOT tgisinternal;

-- the rights of the caller
CREATE ROLE regress_outbox_attach;
GRANT USAGE ON SCHEMA outbox, "Attach" TO regress_outbox_attach;
GRANT EXECUTE ON FUNCTION outbox.attach, outbox.detach, outbox.capture TO regress_outbox_attach;
SET ROLE regress_outbox_attach;
SELECT outbox.attach('"Orders"', 'attach.x');
RESET ROLE;
GRANT TRIGGER ON "Orders" TO regress_outbox_attach;
SET ROLE regress_outbox_attach;
SELECT outbox.attach('"Orders"', 'attach.x');
SELECT outbox.detach('"Orders"', 'attach.x');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION outbox.capture FROM regress_outbox_attach;
SELECT outbox.detach('"Orders"', 'attach.x');
SET ROLE regress_outbox_attach;
SELECT outbox.attach('"Orders"', 'attach.x');
RESET ROLE;
DROP OWNED BY regress_outbox_attach;
DROP ROLE regress_outbox_attach;

-- a topic that expects results
SELECT outbox.set_topic('attach.asks', 'attach.answers', '5 minutes');
SELECT outbox.attach('"Orders"', 'attach.asks', 'id');
SELECT outbox.detach('"Orders"');
SELECT outbox.attach('"Orders"', 'attach.asks');
SELECT outbox.detach('"Orders"');

-- triggers by hand: what attach would refuse, at the first row
CREATE FUNCTION try(arguments text, event text DEFAULT 'AFTER INSERT', source text DEFAULT '"Orders"', level text DEFAULT 'ROW')
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE format('CREATE TRIGGER t %s ON %s FOR EACH %s EXECUTE FUNCTION outbox.capture(%s)',
				   event, source, level, arguments);
	EXECUTE format('INSERT INTO %s (id) VALUES (1)', source);
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' | ', SQLSTATE, SQLERRM, nullif(detail, ''), nullif(hint, ''));
END
$$;
\pset format unaligned
\pset tuples_only on
SELECT try('');
SELECT try($$'a b'$$);
SELECT try($$'t', 'key=missing'$$);
SELECT try($$'t', 'key=id', 'key=note'$$);
SELECT try($$'t', 'key=id', 'key=id'$$);
SELECT try($$'t', 'key=id as x'$$);
SELECT try($$'t', 'column=missing'$$);
SELECT try($$'t', 'columns=id'$$);
SELECT try($$'t', ''$$);
SELECT try($$'t', 'Key=id'$$);
SELECT try($$'t', 'delete=row'$$);
SELECT try($$'t', 'delete=tombstone'$$);
SELECT try($$'t', 'numbers=json'$$);
SELECT try($$'t', 'headers='$$);
SELECT try($$'t', 'headers=[]'$$);
SELECT try($$'t', 'headers={}', 'headers={}'$$);
SELECT try($$'t', 'headers={"id":1}'$$);
SELECT try($$'t', 'headers={"op":1}'$$);
SELECT try($$'t'$$, source => 'a_temp');
SELECT try($$'t'$$, 'BEFORE INSERT');
SELECT try($$'t'$$, 'AFTER INSERT', level => 'STATEMENT');
SELECT try($$'t'$$, 'BEFORE INSERT', level => 'STATEMENT');
SELECT try($$'t'$$, 'INSTEAD OF INSERT', 'a_view');
\pset tuples_only off
\pset format aligned
CREATE TRIGGER t AFTER TRUNCATE ON "Orders" EXECUTE FUNCTION outbox.capture('t');
TRUNCATE "Orders";
DROP TRIGGER t ON "Orders";
SELECT outbox.capture();
CREATE TRIGGER t AFTER INSERT ON "Orders" FOR EACH ROW EXECUTE FUNCTION outbox.capture('t', 'key=missing');
\set SHOW_CONTEXT errors
INSERT INTO "Orders" VALUES (1);
DROP TRIGGER t ON "Orders";
SELECT count(*) AS rows FROM "Orders";
SELECT count(*) AS messages FROM outbox.message WHERE topic = 't';

RESET search_path;
SELECT outbox.set_topic('attach.asks');
SET client_min_messages = warning;
DROP SCHEMA "Attach" CASCADE;
