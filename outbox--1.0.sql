/* outbox--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION outbox" to load this file. \quit

-- Fails without shared_preload_libraries, before anything is made.
CREATE FUNCTION pg_catalog.outbox_check_preloaded() RETURNS void
AS 'MODULE_PATHNAME', 'outbox_check_preloaded' LANGUAGE C;
SELECT pg_catalog.outbox_check_preloaded();
DROP FUNCTION pg_catalog.outbox_check_preloaded();

-- Made here and not by the control file, so that a schema of that name that
-- someone else made is an error and not a trap.
CREATE SCHEMA outbox;

/* ---------------------------------------------------------------------
 * The log
 * --------------------------------------------------------------------- */

CREATE TYPE outbox.message_status AS ENUM
	('NEW', 'SENT', 'CONFIRMED', 'FAILED', 'DEAD');

-- What a change of status changes stands together, before the payload: WAL has
-- what lies between the first and the last byte of a row that differ.  The
-- order leaves no gaps, and what is mostly absent is empty: a single NULL
-- would cost every version of the row eight bytes.
CREATE TABLE outbox.log (
	id uuid NOT NULL,
	segment smallint NOT NULL,
	lane smallint NOT NULL,
	op "char" NOT NULL DEFAULT '',	-- the captured row's, c, u or d; '' if sent
	status "char" NOT NULL,
	attempts smallint NOT NULL,		-- stays at the largest number it can hold
	updated_at timestamptz NOT NULL,
	result text NOT NULL DEFAULT '',
	error text NOT NULL DEFAULT '',
	topic text NOT NULL,
	key text,
	payload bytea,
	headers jsonb NOT NULL DEFAULT '{}'	-- without op
) PARTITION BY LIST (segment);

COMMENT ON TABLE outbox.log IS
	'the messages, a ring of partitions; read them through the view outbox.message';

-- Sixteen segments, and one for what outlives its segment.  The status is in
-- no index, on purpose: it keeps the updates of it HOT.
--
-- Half of a page is for the row's next versions.  Ids come in order, but for
-- those of sessions that insert at the same moment: little room is enough for
-- them in a page of the index.
--
-- A segment is truncated when it is old: VACUUM needn't freeze it before that,
-- nor cut its end off, under a lock that is in the way of all.
DO $$
DECLARE
	name text;
BEGIN
	FOR segment IN -1 .. 15 LOOP
		name := CASE WHEN segment < 0 THEN 'log_kept' ELSE 'log_' || segment END;
		EXECUTE format('CREATE TABLE outbox.%I PARTITION OF outbox.log
						(PRIMARY KEY (id) WITH (fillfactor = 95)) FOR VALUES IN (%L)
						WITH (fillfactor = 50%s)', name, segment,
					   CASE WHEN segment >= 0 THEN ', vacuum_truncate = off,
							toast.vacuum_truncate = off,
							autovacuum_vacuum_insert_threshold = -1,
							toast.autovacuum_vacuum_insert_threshold = -1' ELSE '' END);
	END LOOP;
END
$$;

CREATE TABLE outbox.lane (
	lane smallint PRIMARY KEY,
	cursor uuid NOT NULL		-- everything below was published, or is held
) WITH (fillfactor = 50, vacuum_truncate = off);

COMMENT ON TABLE outbox.lane IS 'how far the publish sweep has come in each lane';

-- Sixteen of keys, and one of what has lost its turn.
INSERT INTO outbox.lane
	SELECT lane, '00000000-0000-0000-0000-000000000000'
	FROM generate_series(0, 16) AS lane;

CREATE TABLE outbox.held (
	topic text NOT NULL,
	partition int NOT NULL,		-- -1: all that have no mark of their own
	partitions int NOT NULL,	-- of so many; -1 with the former
	publisher smallint NOT NULL,	-- each keeps a mark of its own lanes
	publishers smallint NOT NULL,	-- of so many
	cursor uuid NOT NULL,		-- its messages wait from here on
	reason text NOT NULL
		CHECK (reason IN ('paused', 'missing', 'denied', 'misconfigured', 'failing')),
	error text,
	tries int NOT NULL DEFAULT 0,
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (topic, partition, publisher)
);

COMMENT ON TABLE outbox.held IS 'topics, and partitions of topics, whose messages wait';

CREATE TABLE outbox.paused (
	topic text PRIMARY KEY,
	since timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE outbox.paused IS 'topics that are held by hand; see outbox.pause';

-- Keys whose messages wait in a queue, behind one that is DEAD or because there
-- were too many of them at once; see src/key_hold.h.  The key itself is in no
-- index: it may be long.
CREATE TABLE outbox.key_hold (
	hold bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	lane smallint NOT NULL,
	topic text NOT NULL,
	key text NOT NULL,
	id uuid,					-- the message that is DEAD, NULL if there is none
	goes_on boolean NOT NULL,
	since timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

COMMENT ON TABLE outbox.key_hold IS
	'keys whose messages wait in a queue; read the held ones through the view outbox.held_key';

CREATE INDEX key_hold_id ON outbox.key_hold (id);

CREATE TABLE outbox.key_waiting (
	hold bigint NOT NULL,
	id uuid NOT NULL,
	PRIMARY KEY (hold, id)
);

COMMENT ON TABLE outbox.key_waiting IS 'the messages in these queues';

CREATE TABLE outbox.key_released (
	id uuid PRIMARY KEY			-- of the message that held it
);

COMMENT ON TABLE outbox.key_released IS
	'keys that are to go on without their DEAD message; see outbox.release_key';

CREATE TABLE outbox.suspect (
	id uuid PRIMARY KEY,
	tries int NOT NULL DEFAULT 0,	-- times that count; see outbox.poison_attempts
	error text,					-- how the bridge ended when it had nothing else
	since timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE outbox.suspect IS
	'messages that a bridge had when it died; they are published one at a time';

CREATE TABLE outbox.recovery (
	result_timeout bigint PRIMARY KEY,	-- in microseconds
	cursor uuid NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE outbox.recovery IS 'how far the recovery sweep has come, for each result_timeout';

CREATE TABLE outbox.delayed (
	due_at timestamptz NOT NULL,
	id uuid NOT NULL,
	PRIMARY KEY (due_at, id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE outbox.delayed IS 'messages to look at again at a time of their own';

CREATE TABLE outbox.prepared (
	first_id uuid PRIMARY KEY,
	last_id uuid NOT NULL,
	lanes int NOT NULL			-- that aren't swept again yet, a bit each
);

COMMENT ON TABLE outbox.prepared IS
	'ids below the cursors, of prepared transactions or outbox.resend, to sweep again from';

CREATE TABLE outbox.identity (
	system_identifier bigint NOT NULL,
	database oid NOT NULL,
	parked text,				-- why the workers rest, NULL if they don't
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (system_identifier, database)
);

COMMENT ON TABLE outbox.identity IS 'the database this log belongs to';

/* ---------------------------------------------------------------------
 * Topics
 * --------------------------------------------------------------------- */

CREATE TABLE outbox.topic_config (
	topic text PRIMARY KEY,
	result_topic text,
	result_timeout interval NOT NULL,
	max_attempts int,
	on_confirmed text,
	on_failed text,
	on_dead text,
	hold_key_when_dead boolean NOT NULL,
	handler_attempts int NOT NULL,
	handler_timeout interval NOT NULL,
	role text NOT NULL			-- who set it, and as whom the handlers run
);

COMMENT ON TABLE outbox.topic_config IS 'what a topic expects back; see outbox.set_topic';

CREATE INDEX topic_config_result_topic ON outbox.topic_config (result_topic);

-- Result topics that a topic had before.  They count for the messages captured
-- under them, and stay read until those are gone; see src/result_route.c.
CREATE TABLE outbox.former_result_topic (
	topic text NOT NULL,
	result_topic text NOT NULL,
	until uuid,					-- counts below this id; NULL: the consumer will set it
	PRIMARY KEY (topic, result_topic)
);

COMMENT ON TABLE outbox.former_result_topic IS
	'result topics that were replaced, for the messages captured before that';

SELECT pg_catalog.pg_extension_config_dump('outbox.former_result_topic', '');

CREATE FUNCTION outbox.remember_result_topic() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'DELETE' OR NEW.topic <> OLD.topic
		OR NEW.result_topic IS DISTINCT FROM OLD.result_topic
	THEN
		INSERT INTO outbox.former_result_topic VALUES (OLD.topic, OLD.result_topic, NULL)
			ON CONFLICT ON CONSTRAINT former_result_topic_pkey DO UPDATE SET until = NULL;
	END IF;
	RETURN NULL;
END
$$;

CREATE TRIGGER remember_result_topic AFTER UPDATE OR DELETE ON outbox.topic_config
	FOR EACH ROW WHEN (OLD.result_topic IS NOT NULL)
	EXECUTE FUNCTION outbox.remember_result_topic();

CREATE TABLE outbox.topic_grant (
	pattern text NOT NULL,		-- a topic, or a prefix that ends in *
	role text NOT NULL,
	privilege text NOT NULL CHECK (privilege IN ('send', 'subscribe')),
	PRIMARY KEY (pattern, role, privilege)
);

COMMENT ON TABLE outbox.topic_grant IS 'who may use which topic; see outbox.grant_topic';

CREATE TABLE outbox.topic_state (
	topic text PRIMARY KEY,
	partitions int,
	leaderless int,
	replication_factor int,
	min_insync_replicas int,
	checked_at timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE outbox.topic_state IS 'what the brokers last said of a topic';

CREATE TABLE outbox.topic_request (
	request bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	topic text NOT NULL,
	partitions int NOT NULL,
	replication_factor int NOT NULL,
	config jsonb NOT NULL,
	requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	finished_at timestamptz,
	error text
);

COMMENT ON TABLE outbox.topic_request IS 'requests to create a topic; see outbox.create_topic';

CREATE TABLE outbox.consumer_offset (
	topic text NOT NULL,
	partition int NOT NULL,
	kind "char" NOT NULL,		-- r: for its results, s: subscribed
	next_offset bigint NOT NULL,
	anchor_offset bigint,		-- a record that was applied, to know the log by
	anchor_timestamp bigint,
	anchor_checksum bigint,
	end_offset bigint,			-- of the log, as it was last seen
	paused text,				-- why nothing is read until outbox.skip is called
	retry_attempts int,			-- of the record at next_offset, whose handler failed
	retry_at timestamptz,
	retry_error text,
	last_error text,			-- why a record failed or is dead
	last_error_at timestamptz,
	applied bigint NOT NULL DEFAULT 0,	-- results that took effect, records handled
	failed bigint NOT NULL DEFAULT 0,	-- records whose handler refused them
	dead bigint NOT NULL DEFAULT 0,
	repeated bigint NOT NULL DEFAULT 0,
	contrary bigint NOT NULL DEFAULT 0,
	unknown bigint NOT NULL DEFAULT 0,
	bad bigint NOT NULL DEFAULT 0,
	lost bigint NOT NULL DEFAULT 0,	-- times the position was lost
	updated_at timestamptz NOT NULL,
	PRIMARY KEY (topic, partition, kind)
) WITH (fillfactor = 20, vacuum_truncate = off);

COMMENT ON TABLE outbox.consumer_offset IS
	'positions on the topics this database reads, changed with what the records did';

/* ---------------------------------------------------------------------
 * Handlers
 * --------------------------------------------------------------------- */

-- What the handler of a subscription gets
CREATE TYPE outbox.record AS (
	topic text,
	partition int,
	"offset" bigint,
	"timestamp" timestamptz,
	key text,
	payload text,				-- NULL unless the value is text
	payload_bytes bytea,		-- NULL for a tombstone
	headers jsonb,
	message_id uuid				-- the header "id", if it is a UUID
);

CREATE TABLE outbox.subscription_config (
	topic text PRIMARY KEY,
	handler text NOT NULL,
	role text NOT NULL,			-- who subscribed, and as whom the handler runs
	reply_topic text,
	start text NOT NULL,		-- earliest, latest or a timestamp
	max_attempts int NOT NULL,
	handler_timeout interval NOT NULL,
	dead_letter boolean NOT NULL,
	assigned int,				-- partitions there were when it was first read
	assigned_at timestamptz		-- when that was: what "latest" means
);

COMMENT ON TABLE outbox.subscription_config IS 'see outbox.subscribe';

-- What subscriptions have handled: a ring like the log's, found by message id.
CREATE TABLE outbox.inbox (
	message_id uuid NOT NULL,
	topic text NOT NULL,
	segment smallint NOT NULL,
	handled_at timestamptz NOT NULL,
	reply bytea					-- NULL: none was sent
) PARTITION BY LIST (segment);

COMMENT ON TABLE outbox.inbox IS 'the messages that subscriptions have handled, with their replies';

DO $$
BEGIN
	FOR segment IN 0 .. 15 LOOP
		EXECUTE format('CREATE TABLE outbox.inbox_%s PARTITION OF outbox.inbox
						(PRIMARY KEY (message_id, topic)) FOR VALUES IN (%s)
						WITH (vacuum_truncate = off, toast.vacuum_truncate = off,
							autovacuum_vacuum_insert_threshold = -1,
							toast.autovacuum_vacuum_insert_threshold = -1)',
					   segment, segment);
	END LOOP;
END
$$;

CREATE TABLE outbox.dead_record_data (
	number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	topic text NOT NULL,
	partition int NOT NULL,
	"offset" bigint NOT NULL,
	message_id uuid,
	correlation_id bytea,		-- the header that a reply repeats
	record outbox.record NOT NULL,
	attempts int NOT NULL,
	sqlstate text NOT NULL,
	error text NOT NULL,
	dead_at timestamptz NOT NULL,
	replay_at timestamptz		-- NULL: when outbox.replay is called
);

COMMENT ON TABLE outbox.dead_record_data IS
	'subscribed records whose handler failed; read them through the view outbox.dead_record';

CREATE INDEX dead_record_replay ON outbox.dead_record_data (replay_at)
	WHERE replay_at IS NOT NULL;

CREATE TABLE outbox.handler_call (
	call bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	message_id uuid NOT NULL,
	topic text NOT NULL,
	outcome "char" NOT NULL,	-- C, F or D: which of the three handlers
	result text,				-- the result, which takes effect with the call
	result_error text,
	attempts int NOT NULL,
	due_at timestamptz,			-- NULL: parked until outbox.replay is called
	sqlstate text,
	error text,
	since timestamptz NOT NULL
);

COMMENT ON TABLE outbox.handler_call IS
	'calls of on_confirmed, on_failed and on_dead that are still owed';

CREATE INDEX handler_call_message ON outbox.handler_call (message_id);
CREATE INDEX handler_call_due ON outbox.handler_call (due_at) WHERE due_at IS NOT NULL;

-- The data of these go into a dump.  The cursors don't: they start over, and
-- too low a cursor is right, only slower.  Nor does the identity: a log that is
-- restored is a copy.
DO $$
DECLARE
	name text;
BEGIN
	FOREACH name IN ARRAY ARRAY['log_kept', 'held', 'paused', 'suspect', 'key_hold', 'key_hold_hold_seq',
								'key_waiting', 'key_released', 'delayed', 'topic_config',
								'topic_grant', 'topic_state', 'consumer_offset',
								'subscription_config', 'dead_record_data',
								'dead_record_data_number_seq', 'handler_call',
								'handler_call_call_seq'] LOOP
		PERFORM pg_catalog.pg_extension_config_dump(('outbox.' || name)::regclass, '');
	END LOOP;
	FOR segment IN 0 .. 15 LOOP
		PERFORM pg_catalog.pg_extension_config_dump(('outbox.log_' || segment)::regclass, '');
		PERFORM pg_catalog.pg_extension_config_dump(('outbox.inbox_' || segment)::regclass, '');
	END LOOP;
END
$$;

/* ---------------------------------------------------------------------
 * Capture
 * --------------------------------------------------------------------- */

-- The trigger function; what its arguments mean is in doc/capture.md.
CREATE FUNCTION outbox.capture() RETURNS trigger
AS 'MODULE_PATHNAME', 'outbox_capture' LANGUAGE C;

-- Captures a table's changes.  Must be called by who may create a trigger on
-- it.  Returns the name of the trigger.
CREATE FUNCTION outbox.attach(
	source regclass,
	topic text,
	key text DEFAULT NULL,
	events text[] DEFAULT '{INSERT}',
	columns text[] DEFAULT NULL,
	condition text DEFAULT NULL,
	headers jsonb DEFAULT NULL,
	delete_as_tombstone boolean DEFAULT false,
	numbers_as_text boolean DEFAULT false
) RETURNS name
AS 'MODULE_PATHNAME', 'outbox_attach' LANGUAGE C;

-- Drops the triggers that attach, or CREATE TRIGGER, made on a table: those
-- for a topic, or all.  Returns how many there were.
CREATE FUNCTION outbox.detach(source regclass, topic text DEFAULT NULL) RETURNS int
AS 'MODULE_PATHNAME', 'outbox_detach' LANGUAGE C;

-- Writes a message by hand and returns its id.  The caller needs the topic
-- granted.  A NULL payload is a tombstone and needs a key.
CREATE FUNCTION outbox.send(topic text, payload jsonb, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, deliver_at timestamptz DEFAULT NULL) RETURNS uuid
AS 'MODULE_PATHNAME', 'outbox_send_jsonb' LANGUAGE C;

CREATE FUNCTION outbox.send(topic text, payload text, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, deliver_at timestamptz DEFAULT NULL) RETURNS uuid
AS 'MODULE_PATHNAME', 'outbox_send_text' LANGUAGE C;

CREATE FUNCTION outbox.send(topic text, payload bytea, key text DEFAULT NULL,
	headers jsonb DEFAULT NULL, deliver_at timestamptz DEFAULT NULL) RETURNS uuid
AS 'MODULE_PATHNAME', 'outbox_send_bytea' LANGUAGE C;

-- Guards the log against rows that capture didn't write: a restore, a
-- subscriber.  Capture doesn't fire it.
CREATE FUNCTION outbox.log_guard() RETURNS trigger
AS 'MODULE_PATHNAME', 'outbox_log_guard' LANGUAGE C;

CREATE TRIGGER guard AFTER INSERT ON outbox.log
	FOR EACH ROW EXECUTE FUNCTION outbox.log_guard();
ALTER TABLE outbox.log ENABLE ALWAYS TRIGGER guard;

/* ---------------------------------------------------------------------
 * Small helpers of the views
 * --------------------------------------------------------------------- */

-- The bytes as text if they are valid UTF-8 that this database can show, else NULL
CREATE FUNCTION outbox.payload_text(payload bytea) RETURNS text
AS 'MODULE_PATHNAME', 'outbox_payload_text' LANGUAGE C STABLE STRICT PARALLEL SAFE;

-- When the message with this id was captured
CREATE FUNCTION outbox.message_time(id uuid) RETURNS timestamptz
AS 'MODULE_PATHNAME', 'outbox_message_time' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

-- The smallest id a message captured at that time can have
CREATE FUNCTION outbox.message_id_at(at timestamptz) RETURNS uuid
AS 'MODULE_PATHNAME', 'outbox_message_id_at' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

-- Where Kafka's clients put a record with that key, in a topic of so many partitions
CREATE FUNCTION outbox.key_partition(key text, partitions int) RETURNS int
AS 'MODULE_PATHNAME', 'outbox_key_partition' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

/* ---------------------------------------------------------------------
 * Views
 * --------------------------------------------------------------------- */

CREATE VIEW outbox.message AS
	SELECT l.id, l.topic, l.key,
		outbox.payload_text(l.payload) AS payload,
		l.payload AS payload_bytes,
		NULLIF(CASE WHEN l.op = '' THEN l.headers
			   ELSE l.headers || pg_catalog.jsonb_build_object('op', l.op) END, '{}') AS headers,
		CASE l.status
			WHEN 'N' THEN 'NEW'::outbox.message_status
			WHEN 'S' THEN 'SENT'::outbox.message_status
			WHEN 'C' THEN 'CONFIRMED'::outbox.message_status
			WHEN 'F' THEN 'FAILED'::outbox.message_status
			WHEN 'D' THEN 'DEAD'::outbox.message_status
		END AS status,
		l.attempts::int, NULLIF(l.result, '') AS result, NULLIF(l.error, '') AS error,
		outbox.message_time(l.id) AS created_at,
		l.updated_at
	FROM outbox.log AS l;

-- One row a worker that runs or should run, in every database
CREATE FUNCTION outbox.worker_status(
	OUT database oid, OUT pid int, OUT kind text, OUT number int, OUT state text,
	OUT since timestamptz, OUT restarts bigint, OUT last_error text,
	OUT last_error_at timestamptz,
	OUT bridge_pid int, OUT bridge_restarts bigint, OUT bridge_last_exit text,
	OUT librdkafka_version text) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'outbox_worker_status' LANGUAGE C;

CREATE VIEW outbox.worker AS
	SELECT w.pid, w.kind, w.number, w.state, w.since, w.restarts, w.last_error,
		w.last_error_at, w.bridge_pid, w.bridge_restarts, w.bridge_last_exit,
		w.librdkafka_version
	FROM outbox.worker_status() AS w
	WHERE w.database = 0
		OR w.database = (SELECT d.oid FROM pg_catalog.pg_database AS d
						 WHERE d.datname = pg_catalog.current_database());

-- The counters of this database since the server started
CREATE FUNCTION outbox.counters(
	OUT published bigint, OUT republished bigint, OUT confirmed bigint, OUT failed bigint,
	OUT dead bigint, OUT last_error text, OUT last_error_at timestamptz,
	OUT brokers_reachable boolean, OUT brokers_reason text,
	OUT oldest_transaction_pid int, OUT oldest_transaction_start timestamptz,
	OUT counted_since timestamptz, OUT system_identifier bigint, OUT database oid)
	RETURNS record
AS 'MODULE_PATHNAME', 'outbox_counters' LANGUAGE C;

-- How retention comes on in this database
CREATE FUNCTION outbox.retention_status(
	OUT current_segment int, OUT log_waits_for text, OUT log_waits_since timestamptz,
	OUT inbox_waits_for text, OUT inbox_waits_since timestamptz) RETURNS record
AS 'MODULE_PATHNAME', 'outbox_retention_status' LANGUAGE C;

-- What there is in the log and the inbox, and what keeps it there
CREATE FUNCTION outbox.storage(
	OUT current_segment int, OUT oldest_message timestamptz, OUT messages_kept bigint,
	OUT log_size bigint, OUT inbox_size bigint,
	OUT retention_waits_for text, OUT retention_waits_since timestamptz) RETURNS record
SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT r.current_segment,
		(SELECT outbox.message_time(l.id) FROM outbox.log AS l ORDER BY l.id LIMIT 1),
		pg_catalog.pg_stat_get_live_tuples('outbox.log_kept'::regclass),
		(SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(h.inhrelid))::bigint
		 FROM pg_catalog.pg_inherits AS h WHERE h.inhparent = 'outbox.log'::regclass),
		(SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(h.inhrelid))::bigint
		 FROM pg_catalog.pg_inherits AS h WHERE h.inhparent = 'outbox.inbox'::regclass),
		coalesce(r.log_waits_for, r.inbox_waits_for),
		coalesce(r.log_waits_since, r.inbox_waits_since)
	FROM outbox.retention_status() AS r;
END;

-- What waits, a row a topic: exact, and as long as the backlog is
CREATE FUNCTION outbox.backlog(OUT topic text, OUT messages bigint, OUT oldest timestamptz)
RETURNS SETOF record
SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT l.topic, pg_catalog.count(*), pg_catalog.min(outbox.message_time(l.id))
	FROM outbox.log AS l
	WHERE l.status = 'N'
		AND l.id >= (SELECT c.cursor FROM (SELECT cursor FROM outbox.lane
										   UNION ALL
										   SELECT cursor FROM outbox.held
										   UNION ALL
										   SELECT (SELECT w.id FROM outbox.key_waiting AS w
												   WHERE w.hold = h.hold ORDER BY w.id LIMIT 1)
										   FROM outbox.key_hold AS h) AS c
					 ORDER BY c.cursor LIMIT 1)
	GROUP BY l.topic;
END;

CREATE VIEW outbox.stat AS
	SELECT b.backlog,
		pg_catalog.clock_timestamp() - b.oldest AS oldest_new_age,
		c.published, c.republished, c.confirmed, c.failed, c.dead,
		r.results_applied, r.results_repeated, r.results_contrary, r.results_unknown,
		r.results_bad, r.positions_lost,
		r.records_handled, r.records_failed, r.records_repeated, r.records_dead,
		(SELECT pg_catalog.count(*) FROM outbox.dead_record_data) AS dead_records,
		(SELECT pg_catalog.count(*) FROM outbox.handler_call) AS handler_calls_owed,
		(SELECT pg_catalog.count(*) FROM outbox.handler_call AS p
		 WHERE p.due_at IS NULL) AS handler_calls_parked,
		c.last_error, c.last_error_at, c.brokers_reachable, c.brokers_reason,
		c.oldest_transaction_pid,
		pg_catalog.clock_timestamp() - c.oldest_transaction_start AS oldest_transaction_age,
		(SELECT i.parked FROM outbox.identity AS i
		 WHERE i.system_identifier = c.system_identifier
			AND i.database = c.database) AS parked,
		c.counted_since,
		t.current_segment, t.oldest_message, t.messages_kept, t.log_size, t.inbox_size,
		t.retention_waits_for, t.retention_waits_since
	FROM outbox.counters() AS c,
		outbox.storage() AS t,
		(SELECT coalesce(pg_catalog.sum(messages), 0)::bigint AS backlog,
				pg_catalog.min(oldest) AS oldest
		 FROM outbox.backlog()) AS b,
		(SELECT coalesce(pg_catalog.sum(applied) FILTER (WHERE kind = 'r'), 0)::bigint AS results_applied,
				coalesce(pg_catalog.sum(repeated) FILTER (WHERE kind = 'r'), 0)::bigint AS results_repeated,
				coalesce(pg_catalog.sum(contrary), 0)::bigint AS results_contrary,
				coalesce(pg_catalog.sum(unknown), 0)::bigint AS results_unknown,
				coalesce(pg_catalog.sum(bad), 0)::bigint AS results_bad,
				coalesce(pg_catalog.sum(lost), 0)::bigint AS positions_lost,
				coalesce(pg_catalog.sum(applied) FILTER (WHERE kind = 's'), 0)::bigint AS records_handled,
				coalesce(pg_catalog.sum(failed), 0)::bigint AS records_failed,
				coalesce(pg_catalog.sum(repeated) FILTER (WHERE kind = 's'), 0)::bigint AS records_repeated,
				coalesce(pg_catalog.sum(dead), 0)::bigint AS records_dead
		 FROM outbox.consumer_offset) AS r;

CREATE VIEW outbox.topic AS
	SELECT t.topic,
		CASE WHEN p.topic IS NOT NULL THEN 'paused'
			WHEN h.topic IS NULL THEN 'ready'
			WHEN h.reason = 'paused' THEN 'resuming'
			ELSE h.reason
		END AS state,
		coalesce(p.since, h.since) AS held_since,
		CASE WHEN p.topic IS NULL AND h.partition >= 0
			THEN ARRAY(SELECT DISTINCT one.partition FROM outbox.held AS one
					   WHERE one.topic = t.topic ORDER BY one.partition)
		END AS held_partitions,
		h.error, h.tries,
		CASE WHEN p.topic IS NOT NULL THEN pg_catalog.format('SELECT outbox.resume(%L)', t.topic)
			WHEN h.reason = 'missing' THEN pg_catalog.format('create it: SELECT outbox.create_topic(%L, partitions => 6, replication_factor => 3)', t.topic)
			WHEN h.reason = 'denied' THEN pg_catalog.format('allow WRITE and DESCRIBE on the topic: kafka-acls --add --allow-principal User:... --operation Write --operation Describe --topic %s', t.topic)
			WHEN h.reason = 'misconfigured' THEN 'mend the topic''s settings on the broker, or its name; after INVALID_TIMESTAMP, a clock that runs ahead, here or there'
			WHEN h.partition >= 0 THEN pg_catalog.format('see what leads these partitions, the others go on: kafka-topics --describe --topic %s', t.topic)
		END AS hint,
		coalesce(b.messages, 0) AS backlog,
		pg_catalog.clock_timestamp() - b.oldest AS oldest_new_age,
		(SELECT pg_catalog.count(*) FROM outbox.key_hold AS k
		 WHERE k.topic = t.topic AND NOT k.goes_on) AS held_keys,
		c.result_topic, c.result_timeout, c.max_attempts,
		s.partitions, s.leaderless, s.replication_factor, s.min_insync_replicas,
		CASE WHEN s.replication_factor < 3 OR s.min_insync_replicas < 2
			THEN pg_catalog.format('replication factor %s, min.insync.replicas %s: below 3 and 2, an acknowledged message can be lost with a broker',
								   s.replication_factor, coalesce(s.min_insync_replicas::text, 'unknown'))
		END AS warning,
		o.results_applied, o.results_repeated, o.results_contrary, o.results_unknown,
		o.results_bad, o.positions_lost,
		s.checked_at
	FROM (SELECT topic FROM outbox.topic_config
		  UNION SELECT result_topic FROM outbox.topic_config WHERE result_topic IS NOT NULL
		  UNION SELECT topic FROM outbox.topic_state
		  UNION SELECT topic FROM outbox.held
		  UNION SELECT topic FROM outbox.paused
		  UNION SELECT topic FROM outbox.consumer_offset
		  UNION SELECT topic FROM outbox.backlog()) AS t
		LEFT JOIN LATERAL (SELECT * FROM outbox.held AS one WHERE one.topic = t.topic
						   ORDER BY one.partition, one.publisher LIMIT 1) AS h ON true
		LEFT JOIN outbox.paused AS p ON p.topic = t.topic
		LEFT JOIN outbox.backlog() AS b ON b.topic = t.topic
		LEFT JOIN outbox.topic_config AS c ON c.topic = t.topic
		LEFT JOIN outbox.topic_state AS s ON s.topic = t.topic
		LEFT JOIN (SELECT topic, pg_catalog.sum(applied)::bigint AS results_applied,
						pg_catalog.sum(repeated)::bigint AS results_repeated,
						pg_catalog.sum(contrary)::bigint AS results_contrary,
						pg_catalog.sum(unknown)::bigint AS results_unknown,
						pg_catalog.sum(bad)::bigint AS results_bad,
						pg_catalog.sum(lost)::bigint AS positions_lost
				   FROM outbox.consumer_offset WHERE kind = 'r'
				   GROUP BY topic) AS o ON o.topic = t.topic;

-- Keys whose messages wait for an operator, or are on their way since he decided
CREATE VIEW outbox.held_key AS
	SELECT h.topic, h.key,
		CASE WHEN h.goes_on THEN 'going on' ELSE 'held' END AS state,
		h.since AS held_since, h.id AS dead_id, NULLIF(l.error, '') AS error,
		(SELECT pg_catalog.count(*) FROM outbox.key_waiting AS w
		 WHERE w.hold = h.hold) AS waiting,
		CASE WHEN NOT h.goes_on AND l.status = 'N'
			THEN 'message ' || h.id::text || ' is on its way again'
			WHEN NOT h.goes_on
			THEN pg_catalog.format('try it again: SELECT outbox.resend(%L); or go on without it: SELECT outbox.release_key(%L, %L)',
								   h.id, h.topic, h.key)
		END AS hint
	FROM outbox.key_hold AS h
		LEFT JOIN outbox.log AS l ON l.id = h.id
	WHERE h.id IS NOT NULL;

-- NULL, or why a subscription can't be handled now
CREATE FUNCTION outbox.subscription_trouble(topic text, handler text, role text,
	reply_topic text) RETURNS text
AS 'MODULE_PATHNAME', 'outbox_subscription_trouble' LANGUAGE C STABLE;

CREATE VIEW outbox.subscription AS
	SELECT s.topic, s.handler, s.role, s.reply_topic, s.start, s.max_attempts,
		s.handler_timeout, s.dead_letter,
		CASE WHEN t.trouble IS NOT NULL OR o.paused IS NOT NULL THEN 'paused'
			WHEN o.retry_error IS NOT NULL THEN 'retrying'
			WHEN w.state IS NOT NULL THEN 'waiting'
			WHEN o.partitions > 0 THEN 'running'
			ELSE 'starting'
		END AS state,
		coalesce(t.trouble, o.paused, o.retry_error, w.state) AS reason,
		o.partitions, o.partitions_paused, o.partitions_retrying, o.lag,
		o.records_handled, o.records_failed, o.records_repeated, o.records_dead,
		o.positions_lost, e.last_error, e.last_error_at, o.updated_at
	FROM outbox.subscription_config AS s
		LEFT JOIN LATERAL (SELECT p.last_error, p.last_error_at
						   FROM outbox.consumer_offset AS p
						   WHERE p.topic = s.topic AND p.kind = 's'
							AND p.last_error_at IS NOT NULL
						   ORDER BY p.last_error_at DESC LIMIT 1) AS e ON true,
		LATERAL outbox.subscription_trouble(s.topic, s.handler, s.role, s.reply_topic)
			AS t(trouble),
		LATERAL (SELECT pg_catalog.count(*) AS partitions,
					pg_catalog.count(p.paused) AS partitions_paused,
					pg_catalog.count(p.retry_at) AS partitions_retrying,
					pg_catalog.min(pg_catalog.format('partition %s: %s', p.partition, p.paused))
						FILTER (WHERE p.paused IS NOT NULL) AS paused,
					pg_catalog.min(pg_catalog.format('partition %s, offset %s, attempt %s: %s',
													 p.partition, p.next_offset,
													 p.retry_attempts, p.retry_error))
						FILTER (WHERE p.retry_at IS NOT NULL) AS retry_error,
					pg_catalog.sum(greatest(p.end_offset - p.next_offset, 0))::bigint AS lag,
					coalesce(pg_catalog.sum(p.applied), 0)::bigint AS records_handled,
					coalesce(pg_catalog.sum(p.failed), 0)::bigint AS records_failed,
					coalesce(pg_catalog.sum(p.repeated), 0)::bigint AS records_repeated,
					coalesce(pg_catalog.sum(p.dead), 0)::bigint AS records_dead,
					coalesce(pg_catalog.sum(p.lost), 0)::bigint AS positions_lost,
					pg_catalog.max(p.updated_at) AS updated_at
				 FROM outbox.consumer_offset AS p
				 WHERE p.topic = s.topic AND p.kind = 's') AS o,
		-- what keeps a consumer from reading: this topic, or something for all
		LATERAL (SELECT pg_catalog.min(w.state) AS state
				 FROM outbox.worker AS w
				 WHERE w.kind = 'consumer' AND w.state NOT LIKE 'reading %'
					AND (w.state NOT LIKE 'topic "%'
						 OR w.state LIKE pg_catalog.format('topic "%s" is %%', "left"(s.topic, 30)))) AS w;

CREATE VIEW outbox.dead_record AS
	SELECT d.number, d.topic, d.partition, d."offset",
		(d.record)."timestamp", (d.record).key, (d.record).payload,
		(d.record).payload_bytes, (d.record).headers, d.message_id,
		d.attempts, d.sqlstate, d.error, d.dead_at, d.replay_at
	FROM outbox.dead_record_data AS d;

/* ---------------------------------------------------------------------
 * Operate
 * --------------------------------------------------------------------- */

-- Raises invalid_name unless Kafka would take it as the name of a topic
CREATE FUNCTION outbox.check_topic_name(topic text) RETURNS void
AS 'MODULE_PATHNAME', 'outbox_check_topic_name' LANGUAGE C STRICT;

-- Makes the workers of this database read the topics' settings, the requests
-- and what is delayed again, once this transaction has committed
CREATE FUNCTION outbox.config_changed() RETURNS void
AS 'MODULE_PATHNAME', 'outbox_config_changed' LANGUAGE C;

-- Announces a change made below the cursors, as capture does; see announce.h
CREATE FUNCTION outbox.announce() RETURNS timestamptz
AS 'MODULE_PATHNAME', 'outbox_announce_sql' LANGUAGE C;

-- Changes the status of a message from one the caller has read to another;
-- false if it isn't in the first any more.  Refuses what the status table
-- doesn't know.  Every transition that isn't a worker's own goes through here.
CREATE FUNCTION outbox.change_status(id uuid, from_status outbox.message_status,
	to_status outbox.message_status, error text DEFAULT NULL) RETURNS boolean
AS 'MODULE_PATHNAME', 'outbox_change_status' LANGUAGE C;

-- Functions whose caller matters are called with it: outbox.f(...) becomes
-- outbox.f_as(caller, ...), which is granted to nobody.  See src/caller.c.

-- Raises unless it was called in this way
CREATE FUNCTION outbox.check_caller(caller name) RETURNS void
AS 'MODULE_PATHNAME', 'outbox_check_caller' LANGUAGE C;

-- Raises unless the caller may have the function as a handler; returns its name
CREATE FUNCTION outbox.check_handler(caller name, function regprocedure, argument regtype)
RETURNS text AS 'MODULE_PATHNAME', 'outbox_check_handler' LANGUAGE C STRICT;

-- Raises unless the caller may use the topic
CREATE FUNCTION outbox.check_topic_privilege(caller name, topic text, privilege text)
RETURNS void AS 'MODULE_PATHNAME', 'outbox_check_topic_privilege' LANGUAGE C STRICT;

-- Raises unless the values are sensible for a handler's calls
CREATE FUNCTION outbox.check_handler_limits(attempts int, attempts_name text, timeout interval)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF coalesce(attempts, 0) < 1 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('%s must be at least 1', attempts_name);
	END IF;
	IF timeout IS NULL OR timeout < '1 millisecond' OR timeout > '1 day' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'handler_timeout must be between a millisecond and a day';
	END IF;
END
$$;

-- Raises unless the caller may send to the topic, and act for who set it; or
-- may grant topics, also to itself
CREATE FUNCTION outbox.check_configurer(caller name, topic text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	owner text;
BEGIN
	IF has_function_privilege(caller, 'outbox.grant_topic(text, regrole, text)', 'EXECUTE') THEN
		RETURN;
	END IF;
	PERFORM outbox.check_topic_privilege(caller, check_configurer.topic, 'send');
	SELECT c.role INTO owner FROM outbox.topic_config AS c
		JOIN pg_roles AS r ON r.rolname = c.role
		WHERE c.topic = check_configurer.topic;
	IF FOUND AND NOT pg_has_role(caller, owner, 'USAGE') THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('topic "%s" was set by role "%s"',
							 check_configurer.topic, owner);
	END IF;
END
$$;

-- What a topic expects back; replaces all that was set for it.  The handlers
-- on_confirmed, on_failed and on_dead, f(outbox.message), run as the caller.
CREATE FUNCTION outbox.set_topic(
	topic text,
	result_topic text DEFAULT NULL,
	result_timeout interval DEFAULT '5 minutes',
	max_attempts int DEFAULT NULL,
	on_confirmed regprocedure DEFAULT NULL,
	on_failed regprocedure DEFAULT NULL,
	on_dead regprocedure DEFAULT NULL,
	hold_key_when_dead boolean DEFAULT false,
	handler_attempts int DEFAULT 10,
	handler_timeout interval DEFAULT '30 seconds'
) RETURNS void
AS 'MODULE_PATHNAME', 'outbox_with_caller' LANGUAGE C;

CREATE FUNCTION outbox.set_topic_as(caller name, topic text, result_topic text,
	result_timeout interval, max_attempts int, on_confirmed regprocedure,
	on_failed regprocedure, on_dead regprocedure, hold_key_when_dead boolean,
	handler_attempts int, handler_timeout interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	confirmed text;
	failed text;
	dead text;
BEGIN
	PERFORM outbox.check_caller(caller);
	IF set_topic_as.topic IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'the topic must not be null';
	END IF;
	PERFORM outbox.check_topic_name(set_topic_as.topic);
	PERFORM outbox.check_topic_name(set_topic_as.result_topic);
	IF set_topic_as.result_topic = set_topic_as.topic THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('topic "%s" can''t be its own result topic', set_topic_as.topic);
	END IF;
	IF coalesce(set_topic_as.result_timeout, '-1s') <= '0' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'result_timeout must be greater than zero';
	END IF;
	IF NOT isfinite(set_topic_as.result_timeout) OR set_topic_as.result_timeout > '1 year' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'result_timeout must not be longer than a year';
	END IF;
	IF set_topic_as.max_attempts < 1 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'max_attempts must be at least 1',
			HINT = 'NULL means that recovery goes on for ever.';
	END IF;
	IF set_topic_as.max_attempts IS NOT NULL AND set_topic_as.result_topic IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'max_attempts needs a result_topic';
	END IF;
	IF set_topic_as.result_topic IS NULL
		AND num_nonnulls(set_topic_as.on_confirmed, set_topic_as.on_failed) > 0 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'on_confirmed and on_failed need a result_topic';
	END IF;
	PERFORM outbox.check_configurer(caller, set_topic_as.topic);
	IF EXISTS (SELECT FROM outbox.subscription_config AS s
			   WHERE s.topic = set_topic_as.result_topic) THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('this database subscribes to topic "%s"',
							 set_topic_as.result_topic),
			DETAIL = 'One topic can''t be read for results and for a subscription.';
	END IF;
	PERFORM outbox.check_handler_limits(set_topic_as.handler_attempts, 'handler_attempts',
										set_topic_as.handler_timeout);
	IF set_topic_as.hold_key_when_dead IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'hold_key_when_dead must not be null';
	END IF;
	-- what this topic has SENT is looked through again
	DELETE FROM outbox.recovery AS r
		WHERE r.result_timeout = extract(epoch FROM set_topic_as.result_timeout) * 1000000
			AND NOT EXISTS (SELECT FROM outbox.topic_config AS t
							WHERE t.topic = set_topic_as.topic
								AND t.result_topic IS NOT NULL
								AND t.result_timeout = set_topic_as.result_timeout);
	-- by themselves, so that the context of an error isn't all of the INSERT
	confirmed := outbox.check_handler(caller, set_topic_as.on_confirmed, 'outbox.message');
	failed := outbox.check_handler(caller, set_topic_as.on_failed, 'outbox.message');
	dead := outbox.check_handler(caller, set_topic_as.on_dead, 'outbox.message');
	INSERT INTO outbox.topic_config AS t
		VALUES (set_topic_as.topic, set_topic_as.result_topic, set_topic_as.result_timeout,
				set_topic_as.max_attempts, confirmed, failed, dead,
				set_topic_as.hold_key_when_dead, set_topic_as.handler_attempts,
				set_topic_as.handler_timeout, caller)
		ON CONFLICT ON CONSTRAINT topic_config_pkey DO UPDATE
		SET result_topic = excluded.result_topic,
			result_timeout = excluded.result_timeout,
			max_attempts = excluded.max_attempts,
			on_confirmed = excluded.on_confirmed,
			on_failed = excluded.on_failed,
			on_dead = excluded.on_dead,
			hold_key_when_dead = excluded.hold_key_when_dead,
			handler_attempts = excluded.handler_attempts,
			handler_timeout = excluded.handler_timeout,
			role = excluded.role;
	PERFORM outbox.config_changed();
END
$$;

-- Handles the records of a topic with f(outbox.record), as the caller.  start:
-- earliest, latest, or a time; it counts only for a topic that isn't subscribed
-- yet.  Again replaces the subscription, which goes on where it was.
CREATE FUNCTION outbox.subscribe(
	topic text,
	handler regprocedure,
	reply_topic text DEFAULT NULL,
	start text DEFAULT 'earliest',
	max_attempts int DEFAULT 10,
	handler_timeout interval DEFAULT '30 seconds',
	dead_letter boolean DEFAULT false
) RETURNS void
AS 'MODULE_PATHNAME', 'outbox_with_caller' LANGUAGE C;

CREATE FUNCTION outbox.subscribe_as(caller name, topic text, handler regprocedure,
	reply_topic text, start text, max_attempts int, handler_timeout interval,
	dead_letter boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	begin_at text := subscribe_as.start;
	checked text;
BEGIN
	PERFORM outbox.check_caller(caller);
	IF num_nulls(subscribe_as.topic, subscribe_as.handler, subscribe_as.start,
				 subscribe_as.dead_letter) > 0 THEN
		RAISE null_value_not_allowed USING
			MESSAGE = 'topic, handler, start and dead_letter must not be null';
	END IF;
	PERFORM outbox.check_topic_name(subscribe_as.topic);
	PERFORM outbox.check_topic_name(subscribe_as.reply_topic);
	IF subscribe_as.reply_topic = subscribe_as.topic THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('topic "%s" can''t be its own reply topic', subscribe_as.topic);
	END IF;
	PERFORM outbox.check_handler_limits(subscribe_as.max_attempts, 'max_attempts',
										subscribe_as.handler_timeout);
	IF begin_at NOT IN ('earliest', 'latest') THEN
		BEGIN
			begin_at := to_char(begin_at::timestamptz AT TIME ZONE 'UTC',
								'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
		EXCEPTION WHEN data_exception THEN
			RAISE invalid_parameter_value USING
				MESSAGE = format('invalid start "%s"', subscribe_as.start),
				HINT = 'It is "earliest", "latest", or a timestamp.';
		END;
	END IF;
	PERFORM outbox.check_topic_privilege(caller, subscribe_as.topic, 'subscribe');
	PERFORM outbox.check_topic_privilege(caller, subscribe_as.reply_topic, 'send');
	IF subscribe_as.dead_letter THEN
		PERFORM outbox.check_topic_name(subscribe_as.topic || '-dlt');
		PERFORM outbox.check_topic_privilege(caller, subscribe_as.topic || '-dlt', 'send');
	END IF;
	PERFORM outbox.check_subscriber(caller, subscribe_as.topic);
	IF EXISTS (SELECT FROM outbox.topic_config AS c
			   WHERE c.result_topic = subscribe_as.topic)
		OR EXISTS (SELECT FROM outbox.former_result_topic AS f
				   WHERE f.result_topic = subscribe_as.topic) THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('topic "%s" is a result topic of this database',
							 subscribe_as.topic),
			HINT = 'Use on_confirmed and on_failed of outbox.set_topic.';
	END IF;

	-- a consumer may have written one after they were deleted
	DELETE FROM outbox.consumer_offset AS o
		WHERE o.topic = subscribe_as.topic AND o.kind = 's'
			AND NOT EXISTS (SELECT FROM outbox.subscription_config AS s
							WHERE s.topic = subscribe_as.topic);
	-- by itself, so that the context of its error isn't all of the INSERT
	checked := outbox.check_handler(caller, subscribe_as.handler, 'outbox.record');
	INSERT INTO outbox.subscription_config AS s
		VALUES (subscribe_as.topic, checked,
				caller, subscribe_as.reply_topic, begin_at, subscribe_as.max_attempts,
				subscribe_as.handler_timeout, subscribe_as.dead_letter)
		ON CONFLICT ON CONSTRAINT subscription_config_pkey DO UPDATE
		SET handler = excluded.handler,
			role = excluded.role,
			reply_topic = excluded.reply_topic,
			max_attempts = excluded.max_attempts,
			handler_timeout = excluded.handler_timeout,
			dead_letter = excluded.dead_letter;
	PERFORM outbox.config_changed();
END
$$;

-- Raises within a handler
CREATE FUNCTION outbox.refuse_handlers(function text) RETURNS void
AS 'MODULE_PATHNAME', 'outbox_refuse_handlers' LANGUAGE C STRICT;

-- Ends a subscription and forgets its positions.  What it has handled, and what
-- is dead, stays known.
CREATE FUNCTION outbox.unsubscribe(topic text) RETURNS void
AS 'MODULE_PATHNAME', 'outbox_with_caller' LANGUAGE C;

CREATE FUNCTION outbox.unsubscribe_as(caller name, topic text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM outbox.check_caller(caller);
	PERFORM outbox.refuse_handlers('outbox.unsubscribe');
	PERFORM outbox.check_subscriber(caller, unsubscribe_as.topic);
	DELETE FROM outbox.subscription_config AS s WHERE s.topic = unsubscribe_as.topic;
	IF NOT FOUND THEN
		RAISE undefined_object USING
			MESSAGE = format('topic "%s" is not subscribed to', unsubscribe_as.topic);
	END IF;
	DELETE FROM outbox.consumer_offset AS o
		WHERE o.topic = unsubscribe_as.topic AND o.kind = 's';
	PERFORM outbox.config_changed();
END
$$;

-- Raises unless the topic is free, or the caller may act for who subscribed
CREATE FUNCTION outbox.check_subscriber(caller name, topic text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	owner text;
BEGIN
	SELECT s.role INTO owner FROM outbox.subscription_config AS s
		JOIN pg_roles AS r ON r.rolname = s.role
		WHERE s.topic = check_subscriber.topic;
	IF FOUND AND NOT pg_has_role(caller, owner, 'USAGE') THEN
		RAISE insufficient_privilege USING
			MESSAGE = format('topic "%s" is subscribed to by role "%s"',
							 check_subscriber.topic, owner),
			HINT = 'A member of that role, or a superuser, can change or end it.';
	END IF;
END
$$;

-- Makes a subscription go on behind an offset, whatever it waits for there.
CREATE FUNCTION outbox.skip(topic text, partition int, "offset" bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM outbox.refuse_handlers('outbox.skip');
	IF num_nulls(skip.topic, skip.partition, skip."offset") > 0 OR skip."offset" < -1 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'topic, partition and offset must not be null, nor the offset below -1';
	END IF;
	UPDATE outbox.consumer_offset AS o
		SET next_offset = skip."offset" + 1,
			anchor_offset = NULL, anchor_timestamp = NULL, anchor_checksum = NULL,
			paused = NULL, retry_attempts = NULL, retry_at = NULL, retry_error = NULL,
			updated_at = clock_timestamp()
		WHERE o.topic = skip.topic AND o.partition = skip.partition AND o.kind = 's';
	IF NOT FOUND THEN
		RAISE undefined_object USING
			MESSAGE = format('no subscription has read partition %s of topic "%s"',
							 skip.partition, skip.topic);
	END IF;
	PERFORM outbox.config_changed();
END
$$;

-- Handles a dead record again.
CREATE FUNCTION outbox.replay(number bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE outbox.dead_record_data AS d SET replay_at = clock_timestamp()
		WHERE d.number = replay.number;
	IF NOT FOUND THEN
		RAISE no_data_found USING
			MESSAGE = format('there is no dead record %s', replay.number);
	END IF;
	PERFORM outbox.config_changed();
END
$$;

-- Makes the calls again that are owed for a message.
CREATE FUNCTION outbox.replay(id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE outbox.handler_call AS c SET due_at = clock_timestamp(), attempts = 0
		WHERE c.message_id = replay.id;
	IF NOT FOUND THEN
		RAISE no_data_found USING
			MESSAGE = format('no call of a handler is owed for message %s', replay.id);
	END IF;
	PERFORM outbox.config_changed();
END
$$;

-- The same for what of a topic died, or failed first, in [since, until).
-- Returns how many.
CREATE FUNCTION outbox.replay(topic text, since timestamptz DEFAULT '-infinity',
	until timestamptz DEFAULT 'infinity') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	records bigint;
	calls bigint;
BEGIN
	UPDATE outbox.dead_record_data AS d SET replay_at = clock_timestamp()
		WHERE d.topic = replay.topic AND d.dead_at >= since AND d.dead_at < until;
	GET DIAGNOSTICS records = ROW_COUNT;
	UPDATE outbox.handler_call AS c SET due_at = clock_timestamp(), attempts = 0
		WHERE c.topic = replay.topic AND c.due_at IS NULL
			AND c.since >= replay.since AND c.since < until;
	GET DIAGNOSTICS calls = ROW_COUNT;
	PERFORM outbox.config_changed();

	-- an id in quotes is taken for a topic
	IF records + calls = 0
		AND replay.topic ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
	THEN
		PERFORM outbox.replay(replay.topic::uuid);
		RETURN 1;
	END IF;
	RETURN records + calls;
END
$$;

-- Publishes a SENT or DEAD message again, with the same id.
CREATE FUNCTION outbox.resend(id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	old outbox.message_status;
	due timestamptz := outbox.announce();
BEGIN
	LOOP
		SELECT m.status INTO old FROM outbox.message AS m WHERE m.id = resend.id;
		IF NOT FOUND THEN
			RAISE no_data_found USING
				MESSAGE = format('there is no message %s', resend.id);
		ELSIF old = 'NEW' THEN
			RAISE object_not_in_prerequisite_state USING
				MESSAGE = format('message %s is NEW', resend.id),
				DETAIL = 'It waits to be published already.';
		ELSIF old NOT IN ('SENT', 'DEAD') THEN
			RAISE object_not_in_prerequisite_state USING
				MESSAGE = format('message %s is %s', resend.id, old),
				DETAIL = 'This status is final.',
				HINT = 'Send a new message with outbox.send.';
		END IF;
		EXIT WHEN outbox.change_status(resend.id, old, 'NEW');
	END LOOP;
	INSERT INTO outbox.delayed VALUES (due, resend.id) ON CONFLICT DO NOTHING;
	PERFORM outbox.config_changed();
END
$$;

-- Waits until a message has its final status and returns that, or at the timeout
-- the status reached.  Call it after the commit of what wrote the message.
CREATE FUNCTION outbox.wait_for(id uuid, timeout interval) RETURNS outbox.message_status
AS 'MODULE_PATHNAME', 'outbox_wait_for' LANGUAGE C;

-- Publishes a topic's SENT and DEAD messages captured in [since, until) again,
-- with the same ids, in the order of capture.  Returns how many.
CREATE FUNCTION outbox.resend(topic text, since timestamptz, until timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	message record;
	first_id uuid;
	resent bigint := 0;
BEGIN
	IF num_nulls(resend.topic, since, until) > 0 THEN
		RAISE null_value_not_allowed USING MESSAGE = 'topic, since and until must not be null';
	END IF;
	FOR message IN
		SELECT l.id, CASE l.status WHEN 'S' THEN 'SENT' ELSE 'DEAD' END AS status
			FROM outbox.log AS l
			WHERE l.topic = resend.topic AND l.status IN ('S', 'D')
				AND l.id >= outbox.message_id_at(since) AND l.id < outbox.message_id_at(until)
			ORDER BY l.segment < 0, l.id	-- as everybody locks them
	LOOP
		CONTINUE WHEN NOT outbox.change_status(message.id,
											   message.status::outbox.message_status, 'NEW');
		resent := resent + 1;
		first_id := least(first_id, message.id);
	END LOOP;

	-- the sweep of the last lane goes back there, as for a prepared transaction
	IF first_id IS NOT NULL THEN
		INSERT INTO outbox.prepared AS p VALUES (first_id, first_id, 1 << 16)
			ON CONFLICT ON CONSTRAINT prepared_pkey DO UPDATE SET lanes = p.lanes | excluded.lanes;
	END IF;
	PERFORM outbox.config_changed();
	RETURN resent;
END
$$;

-- Removes messages before their time: what is done with, or what has the status
-- named, be it NEW or DEAD, if it hasn't changed for so long.  Leaves what a
-- handler is owed for, and what somebody has locked.  Returns how many; as long
-- as that is at_most there may be more.
CREATE FUNCTION outbox.purge(topic text DEFAULT NULL, status outbox.message_status DEFAULT NULL,
	older_than interval DEFAULT '1 day', at_most int DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	before timestamptz := clock_timestamp() - older_than;
	name text;
	here bigint;
	purged bigint := 0;
BEGIN
	IF older_than IS NULL OR older_than < '0' OR at_most IS NULL OR at_most < 1 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'older_than must not be negative, and at_most at least 1';
	END IF;
	IF purge.status IN ('NEW', 'SENT') AND purge.topic IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('which topic''s %s messages?', purge.status),
			DETAIL = 'They may be on their way, or wait for a result.',
			HINT = 'Name the topic.';
	END IF;

	FOREACH name IN ARRAY ARRAY(SELECT 'log_' || s FROM generate_series(0, 15) AS s)
		|| 'log_kept'::text LOOP
		EXECUTE format(
			'WITH old AS MATERIALIZED (
				SELECT l.id FROM outbox.%1$I AS l
				WHERE l.id < outbox.message_id_at($1) AND l.updated_at < $1
					AND ($2 IS NULL OR l.topic = $2)
					AND CASE WHEN $3 IS NOT NULL THEN l.status = $3
						ELSE l.status IN (''C'', ''F'') OR l.status = ''S'' AND NOT EXISTS
							(SELECT FROM outbox.topic_config AS c
							 WHERE c.topic = l.topic AND c.result_topic IS NOT NULL) END
					AND NOT EXISTS (SELECT FROM outbox.handler_call AS h
									WHERE h.message_id = l.id)
				LIMIT $4 FOR UPDATE OF l SKIP LOCKED)
			 DELETE FROM outbox.%1$I AS d USING old WHERE d.id = old.id', name)
			USING before, purge.topic, "left"(purge.status::text, 1)::"char", at_most - purged;
		GET DIAGNOSTICS here = ROW_COUNT;
		purged := purged + here;
		EXIT WHEN purged >= at_most;
	END LOOP;
	RETURN purged;
END
$$;

-- Keeps the messages of a topic back until outbox.resume; capture goes on.
CREATE FUNCTION outbox.pause(topic text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF pause.topic IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'the topic must not be null';
	END IF;
	PERFORM outbox.check_topic_name(pause.topic);
	INSERT INTO outbox.paused VALUES (pause.topic) ON CONFLICT DO NOTHING;
	PERFORM outbox.config_changed();
END
$$;

-- Lets them go on, in order.
CREATE FUNCTION outbox.resume(topic text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM outbox.paused AS p WHERE p.topic = resume.topic;
	IF NOT FOUND THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('topic "%s" is not paused', resume.topic);
	END IF;
	PERFORM outbox.config_changed();
END
$$;

-- Lets the messages of a key go on without the one that is DEAD, which stays so.
CREATE FUNCTION outbox.release_key(topic text, key text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	dead_id uuid;
BEGIN
	SELECT h.id INTO dead_id FROM outbox.key_hold AS h
		WHERE h.topic = release_key.topic AND h.key = release_key.key AND NOT h.goes_on;
	IF NOT FOUND THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = format('this key of topic "%s" is not held', release_key.topic),
			HINT = 'The view outbox.held_key has those that are.';
	END IF;
	INSERT INTO outbox.key_released VALUES (dead_id) ON CONFLICT DO NOTHING;
	PERFORM outbox.config_changed();
END
$$;

-- Asks the publisher to create a topic; outbox.topic_request tells what became
-- of it.  NULL: the broker's default.  Returns the request's number.
CREATE FUNCTION outbox.create_topic(
	topic text,
	partitions int DEFAULT NULL,
	replication_factor int DEFAULT NULL,
	config jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	number bigint;
BEGIN
	IF create_topic.topic IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'the topic must not be null';
	END IF;
	PERFORM outbox.check_topic_name(create_topic.topic);
	IF create_topic.partitions NOT BETWEEN 1 AND 100000 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'partitions must be between 1 and 100000';
	END IF;
	IF create_topic.replication_factor NOT BETWEEN 1 AND 32767 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'replication_factor must be between 1 and 32767';
	END IF;
	IF jsonb_typeof(create_topic.config) <> 'object' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'config must be a JSON object';
	END IF;
	INSERT INTO outbox.topic_request (topic, partitions, replication_factor, config)
		VALUES (create_topic.topic, coalesce(create_topic.partitions, -1),
				coalesce(create_topic.replication_factor, -1),
				coalesce(create_topic.config, '{}'))
		RETURNING request INTO number;
	PERFORM outbox.config_changed();
	RETURN number;
END
$$;

-- Lets a role (and its members) use a topic, or all topics that begin with a
-- prefix ('shop.*').  privilege: send or subscribe.
CREATE FUNCTION outbox.grant_topic(topic_or_prefix text, role regrole, what text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF num_nulls(topic_or_prefix, role, what) > 0 THEN
		RAISE null_value_not_allowed USING MESSAGE = 'the arguments must not be null';
	END IF;
	IF what NOT IN ('send', 'subscribe') THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('unrecognized privilege "%s"', what),
			HINT = 'Valid privileges are "send" and "subscribe".';
	END IF;
	IF topic_or_prefix <> '*' THEN
		PERFORM outbox.check_topic_name(regexp_replace(topic_or_prefix, '\*$', ''));
	END IF;
	INSERT INTO outbox.topic_grant
		SELECT topic_or_prefix, r.rolname, what FROM pg_roles AS r WHERE r.oid = role
		ON CONFLICT DO NOTHING;
	PERFORM outbox.forget_grants();
END
$$;

CREATE FUNCTION outbox.revoke_topic(topic_or_prefix text, role regrole, what text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM outbox.topic_grant AS g
		WHERE g.pattern = topic_or_prefix
			AND g.role = (SELECT r.rolname FROM pg_roles AS r WHERE r.oid = revoke_topic.role)
			AND g.privilege = what;
	IF NOT FOUND THEN
		RAISE undefined_object USING
			MESSAGE = format('there is no such grant on "%s"', topic_or_prefix);
	END IF;
	PERFORM outbox.forget_grants();
END
$$;

-- Makes every session read the grants again, once this transaction commits
CREATE FUNCTION outbox.forget_grants() RETURNS void
AS 'MODULE_PATHNAME', 'outbox_forget_grants' LANGUAGE C;

-- Makes a parked database (a clone, a restore) go on from here.
CREATE FUNCTION outbox.adopt() RETURNS void
AS 'MODULE_PATHNAME', 'outbox_adopt' LANGUAGE C
SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

-- The log is this database's own.
SELECT outbox.adopt();

-- Removes what was granted to PUBLIC by default.
REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON TYPE outbox.message_status FROM PUBLIC;
DO $$
DECLARE
	name name;
BEGIN
	-- each has a row type, too
	FOR name IN SELECT relname FROM pg_catalog.pg_class
			WHERE relnamespace = 'outbox'::regnamespace AND reltype <> 0 LOOP
		EXECUTE format('REVOKE ALL ON TYPE outbox.%I FROM PUBLIC', name);
	END LOOP;
END
$$;
