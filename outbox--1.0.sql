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

CREATE TABLE outbox.log (
	id uuid NOT NULL,
	updated_at timestamptz NOT NULL,
	attempts int NOT NULL,
	segment smallint NOT NULL,
	lane smallint NOT NULL,
	status "char" NOT NULL,
	topic text NOT NULL,
	key text,
	payload bytea,
	headers jsonb,
	result text,
	error text
) PARTITION BY LIST (segment);

COMMENT ON TABLE outbox.log IS
	'the messages, a ring of partitions; read them through the view outbox.message';

-- Sixteen segments, and one for what outlives its segment.  The status is in
-- no index, on purpose: it keeps the updates of it HOT.
DO $$
DECLARE
	name text;
BEGIN
	FOR segment IN -1 .. 15 LOOP
		name := CASE WHEN segment < 0 THEN 'log_kept' ELSE 'log_' || segment END;
		EXECUTE format('CREATE TABLE outbox.%I PARTITION OF outbox.log
						(PRIMARY KEY (id)) FOR VALUES IN (%L)
						WITH (fillfactor = 50)', name, segment);
	END LOOP;
END
$$;

CREATE TABLE outbox.lane (
	lane smallint PRIMARY KEY,
	cursor uuid NOT NULL		-- everything below was published, or is held
) WITH (fillfactor = 50);

COMMENT ON TABLE outbox.lane IS 'how far the publish sweep has come in each lane';

INSERT INTO outbox.lane
	SELECT lane, '00000000-0000-0000-0000-000000000000'
	FROM generate_series(0, 15) AS lane;

CREATE TABLE outbox.held (
	topic text NOT NULL,
	partition int NOT NULL,		-- -1: all of the topic
	cursor uuid NOT NULL,		-- its messages wait from here on
	reason text NOT NULL
		CHECK (reason IN ('paused', 'missing', 'denied', 'misconfigured', 'failing')),
	error text,
	tries int NOT NULL DEFAULT 0,
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (topic, partition)
);

COMMENT ON TABLE outbox.held IS 'topics whose messages wait';

CREATE TABLE outbox.recovery (
	result_timeout bigint PRIMARY KEY,	-- in microseconds
	cursor uuid NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE outbox.recovery IS 'how far the recovery sweep has come, for each result_timeout';

CREATE TABLE outbox.delayed (
	due_at timestamptz NOT NULL,
	id uuid NOT NULL,
	PRIMARY KEY (due_at, id)
);

COMMENT ON TABLE outbox.delayed IS 'messages to look at again at a time of their own';

CREATE TABLE outbox.prepared (
	first_id uuid PRIMARY KEY,
	last_id uuid NOT NULL
);

COMMENT ON TABLE outbox.prepared IS
	'id ranges of prepared transactions, visible once they committed, until swept';

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
	role text NOT NULL			-- who set it
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
	next_offset bigint NOT NULL,
	anchor_offset bigint,		-- a record that was applied, to know the log by
	anchor_timestamp bigint,
	anchor_checksum bigint,
	applied bigint NOT NULL DEFAULT 0,
	repeated bigint NOT NULL DEFAULT 0,
	contrary bigint NOT NULL DEFAULT 0,
	unknown bigint NOT NULL DEFAULT 0,
	bad bigint NOT NULL DEFAULT 0,
	lost bigint NOT NULL DEFAULT 0,	-- times the position was lost
	updated_at timestamptz NOT NULL,
	PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);

COMMENT ON TABLE outbox.consumer_offset IS
	'positions on the topics this database reads, changed with what the records did';

-- The data of these go into a dump.  The cursors don't: they start over, and
-- too low a cursor is right, only slower.  Nor does the identity: a log that is
-- restored is a copy.
DO $$
DECLARE
	name text;
BEGIN
	FOREACH name IN ARRAY ARRAY['log_kept', 'held', 'delayed', 'topic_config',
								'topic_grant', 'topic_state', 'consumer_offset'] LOOP
		PERFORM pg_catalog.pg_extension_config_dump(('outbox.' || name)::regclass, '');
	END LOOP;
	FOR segment IN 0 .. 15 LOOP
		PERFORM pg_catalog.pg_extension_config_dump(('outbox.log_' || segment)::regclass, '');
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

/* ---------------------------------------------------------------------
 * Views
 * --------------------------------------------------------------------- */

CREATE VIEW outbox.message AS
	SELECT l.id, l.topic, l.key,
		outbox.payload_text(l.payload) AS payload,
		l.payload AS payload_bytes,
		l.headers,
		CASE l.status
			WHEN 'N' THEN 'NEW'::outbox.message_status
			WHEN 'S' THEN 'SENT'::outbox.message_status
			WHEN 'C' THEN 'CONFIRMED'::outbox.message_status
			WHEN 'F' THEN 'FAILED'::outbox.message_status
			WHEN 'D' THEN 'DEAD'::outbox.message_status
		END AS status,
		l.attempts, l.result, l.error,
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
										   SELECT cursor FROM outbox.held) AS c
					 ORDER BY c.cursor LIMIT 1)
	GROUP BY l.topic;
END;

CREATE VIEW outbox.stat AS
	SELECT b.backlog,
		pg_catalog.clock_timestamp() - b.oldest AS oldest_new_age,
		c.published, c.republished, c.confirmed, c.failed, c.dead,
		r.results_applied, r.results_repeated, r.results_contrary, r.results_unknown,
		r.results_bad, r.positions_lost,
		c.last_error, c.last_error_at, c.brokers_reachable, c.brokers_reason,
		c.oldest_transaction_pid,
		pg_catalog.clock_timestamp() - c.oldest_transaction_start AS oldest_transaction_age,
		(SELECT i.parked FROM outbox.identity AS i
		 WHERE i.system_identifier = c.system_identifier
			AND i.database = c.database) AS parked,
		c.counted_since
	FROM outbox.counters() AS c,
		(SELECT coalesce(pg_catalog.sum(messages), 0)::bigint AS backlog,
				pg_catalog.min(oldest) AS oldest
		 FROM outbox.backlog()) AS b,
		(SELECT coalesce(pg_catalog.sum(applied), 0)::bigint AS results_applied,
				coalesce(pg_catalog.sum(repeated), 0)::bigint AS results_repeated,
				coalesce(pg_catalog.sum(contrary), 0)::bigint AS results_contrary,
				coalesce(pg_catalog.sum(unknown), 0)::bigint AS results_unknown,
				coalesce(pg_catalog.sum(bad), 0)::bigint AS results_bad,
				coalesce(pg_catalog.sum(lost), 0)::bigint AS positions_lost
		 FROM outbox.consumer_offset) AS r;

CREATE VIEW outbox.topic AS
	SELECT t.topic,
		CASE WHEN h.topic IS NULL THEN 'ready' ELSE h.reason END AS state,
		h.since AS held_since, h.error, h.tries,
		CASE h.reason
			WHEN 'missing' THEN pg_catalog.format('create it: SELECT outbox.create_topic(%L, partitions => 6, replication_factor => 3)', t.topic)
			WHEN 'denied' THEN pg_catalog.format('allow WRITE and DESCRIBE on the topic: kafka-acls --add --allow-principal User:... --operation Write --operation Describe --topic %s', t.topic)
			WHEN 'misconfigured' THEN 'mend the topic''s settings on the broker, or its name'
		END AS hint,
		coalesce(b.messages, 0) AS backlog,
		pg_catalog.clock_timestamp() - b.oldest AS oldest_new_age,
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
		  UNION SELECT topic FROM outbox.consumer_offset
		  UNION SELECT topic FROM outbox.backlog()) AS t
		LEFT JOIN LATERAL (SELECT * FROM outbox.held AS one WHERE one.topic = t.topic
						   ORDER BY one.partition LIMIT 1) AS h ON true
		LEFT JOIN outbox.backlog() AS b ON b.topic = t.topic
		LEFT JOIN outbox.topic_config AS c ON c.topic = t.topic
		LEFT JOIN outbox.topic_state AS s ON s.topic = t.topic
		LEFT JOIN (SELECT topic, pg_catalog.sum(applied)::bigint AS results_applied,
						pg_catalog.sum(repeated)::bigint AS results_repeated,
						pg_catalog.sum(contrary)::bigint AS results_contrary,
						pg_catalog.sum(unknown)::bigint AS results_unknown,
						pg_catalog.sum(bad)::bigint AS results_bad,
						pg_catalog.sum(lost)::bigint AS positions_lost
				   FROM outbox.consumer_offset GROUP BY topic) AS o ON o.topic = t.topic;

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

-- What a topic expects back; replaces all that was set for it.
CREATE FUNCTION outbox.set_topic(
	topic text,
	result_topic text DEFAULT NULL,
	result_timeout interval DEFAULT '5 minutes',
	max_attempts int DEFAULT NULL,
	on_confirmed regprocedure DEFAULT NULL,
	on_failed regprocedure DEFAULT NULL,
	on_dead regprocedure DEFAULT NULL,
	hold_key_when_dead boolean DEFAULT false
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF set_topic.topic IS NULL THEN
		RAISE null_value_not_allowed USING MESSAGE = 'the topic must not be null';
	END IF;
	PERFORM outbox.check_topic_name(set_topic.topic);
	PERFORM outbox.check_topic_name(set_topic.result_topic);
	IF set_topic.result_topic = set_topic.topic THEN
		RAISE invalid_parameter_value USING
			MESSAGE = format('topic "%s" can''t be its own result topic', set_topic.topic);
	END IF;
	IF coalesce(set_topic.result_timeout, '-1s') <= '0' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'result_timeout must be greater than zero';
	END IF;
	IF NOT isfinite(set_topic.result_timeout) OR set_topic.result_timeout > '1 year' THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'result_timeout must not be longer than a year';
	END IF;
	IF set_topic.max_attempts < 1 THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'max_attempts must be at least 1',
			HINT = 'NULL means that recovery goes on for ever.';
	END IF;
	IF set_topic.max_attempts IS NOT NULL AND set_topic.result_topic IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'max_attempts needs a result_topic';
	END IF;
	IF num_nonnulls(set_topic.on_confirmed, set_topic.on_failed, set_topic.on_dead) > 0 THEN
		RAISE feature_not_supported USING
			MESSAGE = 'handlers of a message''s outcome are not supported yet';
	END IF;
	IF set_topic.hold_key_when_dead THEN
		RAISE feature_not_supported USING
			MESSAGE = 'hold_key_when_dead is not supported yet';
	END IF;
	-- what this topic has SENT is looked through again
	DELETE FROM outbox.recovery AS r
		WHERE r.result_timeout = extract(epoch FROM set_topic.result_timeout) * 1000000
			AND NOT EXISTS (SELECT FROM outbox.topic_config AS t
							WHERE t.topic = set_topic.topic
								AND t.result_topic IS NOT NULL
								AND t.result_timeout = set_topic.result_timeout);
	INSERT INTO outbox.topic_config AS t
		VALUES (set_topic.topic, set_topic.result_topic, set_topic.result_timeout,
				set_topic.max_attempts, NULL, NULL, NULL, false,
				coalesce(nullif(current_setting('role'), 'none'), session_user))
		ON CONFLICT ON CONSTRAINT topic_config_pkey DO UPDATE
		SET result_topic = excluded.result_topic,
			result_timeout = excluded.result_timeout,
			max_attempts = excluded.max_attempts,
			on_confirmed = excluded.on_confirmed,
			on_failed = excluded.on_failed,
			on_dead = excluded.on_dead,
			hold_key_when_dead = excluded.hold_key_when_dead,
			role = excluded.role;
	PERFORM outbox.config_changed();
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

-- Publishes a topic's SENT and DEAD messages captured in [since, until) again.
CREATE FUNCTION outbox.resend(topic text, since timestamptz, until timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RAISE feature_not_supported USING
		MESSAGE = 'resending by topic and time is not supported yet',
		HINT = 'Call outbox.resend(id) for each message.';
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
