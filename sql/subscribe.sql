-- Who may subscribe to what, and with what as the handler.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
CREATE ROLE regress_outbox_ann;
CREATE ROLE regress_outbox_ben;
CREATE ROLE regress_outbox_cat;
GRANT USAGE ON SCHEMA outbox TO PUBLIC;
GRANT USAGE ON TYPE outbox.record, outbox.message TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO PUBLIC;
GRANT SELECT ON outbox.subscription TO PUBLIC;
CREATE SCHEMA "regress Handlers";
CREATE SCHEMA regress_hidden;
CREATE FUNCTION handle(r outbox.record) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION "regress Handlers"."a Handler"(r outbox.record) RETURNS text LANGUAGE sql AS 'SELECT NULL';
CREATE FUNCTION regress_hidden.handle(r outbox.record) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION refused(r outbox.record) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION refused FROM PUBLIC;
CREATE FUNCTION hears(m outbox.message) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION deaf(m outbox.message) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION deaf FROM PUBLIC;
CREATE FUNCTION no_arguments() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION two_arguments(r outbox.record, n int DEFAULT 1) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION returns_int(r outbox.record) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION returns_set(r outbox.record) RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL';
CREATE FUNCTION returns_json(r outbox.record) RETURNS json LANGUAGE sql AS 'SELECT NULL::json';
CREATE PROCEDURE a_procedure(r outbox.record) LANGUAGE sql AS '';
RESET client_min_messages;

-- what is given
SELECT outbox.subscribe(NULL, 'handle(outbox.record)');
SELECT outbox.subscribe('sub.a', NULL);
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', start => NULL);
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', dead_letter => NULL);
SELECT outbox.subscribe('sub/a', 'handle(outbox.record)');
SELECT outbox.subscribe('', 'handle(outbox.record)');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', 'sub/b');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', 'sub.a');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', max_attempts => 0);
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', max_attempts => NULL);
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', handler_timeout => '0');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', handler_timeout => '1 day 1 second');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', handler_timeout => NULL);
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', start => 'now and then');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', start => '2026-13-01');
SELECT outbox.subscribe(repeat('a', 246), 'handle(outbox.record)', dead_letter => true);

-- the function
SELECT outbox.subscribe('sub.a', 'nothing(outbox.record)');
SELECT outbox.subscribe('sub.a', 'no_arguments()');
SELECT outbox.subscribe('sub.a', 'two_arguments(outbox.record, int)');
SELECT outbox.subscribe('sub.a', 'hears(outbox.message)');
SELECT outbox.subscribe('sub.a', 'returns_int(outbox.record)');
SELECT outbox.subscribe('sub.a', 'returns_set(outbox.record)');
SELECT outbox.subscribe('sub.a', 'a_procedure(outbox.record)');
SELECT outbox.subscribe('sub.a', 99999999::regprocedure);

-- rights
SET ROLE regress_outbox_ann;
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)');
RESET ROLE;
SELECT outbox.grant_topic('sub.a', 'regress_outbox_ann', 'send');
SET ROLE regress_outbox_ann;
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)');
RESET ROLE;
SELECT outbox.grant_topic('sub.*', 'regress_outbox_ann', 'subscribe');
SET ROLE regress_outbox_ann;
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', 'sub.b');
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', dead_letter => true);
SELECT outbox.subscribe('sub.a', 'refused(outbox.record)');
SELECT outbox.subscribe('sub.a', (SELECT p.oid::regprocedure FROM pg_proc AS p
	WHERE p.pronamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'regress_hidden')));
-- the functions behind them are for nobody, whoever may execute them
SELECT outbox.subscribe_as('postgres', 'sub.a', 'handle(outbox.record)', NULL, 'earliest', 1, '1 s', false);
SELECT outbox.subscribe_as('regress_outbox_ann', 'sub.a', 'handle(outbox.record)', NULL, 'earliest', 1, '1 s', false);
SELECT outbox.subscribe_as(NULL, 'sub.a', 'handle(outbox.record)', NULL, 'earliest', 1, '1 s', false);
SELECT outbox.unsubscribe_as('postgres', 'sub.a');
SELECT outbox.set_topic_as('postgres', 'sub.s', NULL, '1 s', NULL, NULL, NULL, 'deaf(outbox.message)', false, 1, '1 s');
RESET ROLE;
SELECT topic FROM outbox.subscription;

-- what is kept
SELECT outbox.grant_topic('sub.*', 'regress_outbox_ann', 'send');
SET ROLE regress_outbox_ann;
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)', 'sub.b', dead_letter => true);
RESET ROLE;
GRANT USAGE ON SCHEMA "regress Handlers" TO regress_outbox_ann;
SET ROLE regress_outbox_ann;
SET TimeZone = 'Asia/Kathmandu';
SELECT outbox.subscribe('sub.c', '"regress Handlers"."a Handler"(outbox.record)',
	start => '2026-01-01 12:00', max_attempts => 3, handler_timeout => '5 s');
SELECT outbox.subscribe('sub.d', 'returns_json(outbox.record)', start => 'latest');
RESET TimeZone;
RESET ROLE;
SELECT topic, handler, role, reply_topic, start, max_attempts, handler_timeout, dead_letter, state = 'paused' AS paused,
	CASE WHEN state = 'paused' THEN reason END AS why
FROM outbox.subscription ORDER BY topic;

-- replaced by oneself, by a member, not by anybody
SET ROLE regress_outbox_ann;
SELECT outbox.subscribe('sub.a', 'returns_json(outbox.record)');
RESET ROLE;
SELECT outbox.grant_topic('sub.*', 'regress_outbox_ben', 'subscribe');
SET ROLE regress_outbox_ben;
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)');
SELECT outbox.unsubscribe('sub.a');
RESET ROLE;
GRANT regress_outbox_ann TO regress_outbox_ben;
SET ROLE regress_outbox_ben;
SELECT outbox.subscribe('sub.a', 'handle(outbox.record)');
RESET ROLE;
SET ROLE regress_outbox_ann;
SELECT outbox.unsubscribe('sub.a');
RESET ROLE;
-- a role that is gone owns nothing
SELECT outbox.grant_topic('sub.*', 'regress_outbox_cat', 'subscribe');
SET ROLE regress_outbox_cat;
SELECT outbox.subscribe('sub.e', 'handle(outbox.record)');
RESET ROLE;
DROP ROLE regress_outbox_cat;
SELECT topic, handler, role, state = 'paused' AS paused,
	CASE WHEN state = 'paused' THEN reason END AS why FROM outbox.subscription ORDER BY topic;
SET ROLE regress_outbox_ann;
SELECT outbox.subscribe('sub.e', 'handle(outbox.record)');
RESET ROLE;
SELECT topic, handler, role, reply_topic FROM outbox.subscription ORDER BY topic;

-- unsubscribe
SELECT outbox.unsubscribe('sub.a');
SELECT outbox.unsubscribe('sub.a');
SELECT outbox.unsubscribe(NULL);
SELECT outbox.unsubscribe('sub.c'), outbox.unsubscribe('sub.d'), outbox.unsubscribe('sub.e');
SELECT count(*) FROM outbox.subscription;

-- skip and replay
SELECT outbox.skip(NULL, 0, 0);
SELECT outbox.skip('sub.a', NULL, 0);
SELECT outbox.skip('sub.a', 0, NULL);
SELECT outbox.skip('sub.a', 0, -2);
SELECT outbox.skip('sub.a', 0, 0);
INSERT INTO outbox.consumer_offset (topic, partition, kind, next_offset, paused, retry_attempts,
	retry_at, retry_error, updated_at)
VALUES ('sub.a', 0, 's', 5, 'why', 2, now(), 'why', now());
SELECT outbox.skip('sub.a', 0, 7);
SELECT next_offset, anchor_offset, paused, retry_attempts, retry_at, retry_error
FROM outbox.consumer_offset WHERE topic = 'sub.a';
SELECT outbox.skip('sub.a', 0, -1);
SELECT next_offset FROM outbox.consumer_offset WHERE topic = 'sub.a';
DELETE FROM outbox.consumer_offset WHERE topic = 'sub.a';
SELECT outbox.replay(1::bigint);
SELECT outbox.replay('0195c0de-0000-7000-8000-000000000000'::uuid);
SELECT outbox.replay('sub.a');

-- the handlers of outbox.set_topic
SELECT outbox.set_topic('sub.s', on_confirmed => 'hears(outbox.message)');
SELECT outbox.set_topic('sub.s', on_failed => 'hears(outbox.message)');
SELECT outbox.set_topic('sub.s', 'sub.r', on_confirmed => 'handle(outbox.record)');
SELECT outbox.set_topic('sub.s', 'sub.r', on_failed => 'no_arguments()');
SELECT outbox.set_topic('sub.s', 'sub.r', on_dead => 'handle(outbox.record)');
SELECT outbox.set_topic('sub.s', 'sub.r', handler_attempts => 0);
SELECT outbox.set_topic('sub.s', 'sub.r', handler_attempts => NULL);
SELECT outbox.set_topic('sub.s', 'sub.r', handler_timeout => '-1 s');
SELECT outbox.set_topic('sub.s', 'sub.r', hold_key_when_dead => NULL);
SET ROLE regress_outbox_ann;
SELECT outbox.set_topic('sub.s', 'sub.r', on_confirmed => 'deaf(outbox.message)');
SELECT outbox.set_topic('sub.s', 'sub.r', on_failed => 'deaf(outbox.message)');
SELECT outbox.set_topic('sub.s', on_dead => 'deaf(outbox.message)');
SELECT outbox.set_topic('sub.s', 'sub.r', on_confirmed => 'hears(outbox.message)',
	on_failed => 'hears(outbox.message)', on_dead => 'hears(outbox.message)', handler_attempts => 3);
RESET ROLE;
SELECT topic, result_topic, on_confirmed, on_failed, on_dead, handler_attempts, handler_timeout, role
FROM outbox.topic_config WHERE topic = 'sub.s';

DELETE FROM outbox.topic_config WHERE topic = 'sub.s';
DELETE FROM outbox.former_result_topic WHERE topic = 'sub.s';
DELETE FROM outbox.topic_grant;
SELECT outbox.forget_grants();
REVOKE USAGE ON SCHEMA outbox FROM PUBLIC;
REVOKE USAGE ON TYPE outbox.record, outbox.message FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
REVOKE SELECT ON outbox.subscription FROM PUBLIC;
SET client_min_messages = warning;
DROP SCHEMA "regress Handlers", regress_hidden CASCADE;
DROP FUNCTION handle, refused, hears, deaf, no_arguments, two_arguments, returns_int, returns_set, returns_json;
DROP PROCEDURE a_procedure;
DROP ROLE regress_outbox_ann, regress_outbox_ben;
