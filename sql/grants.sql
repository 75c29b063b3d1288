-- Who may send to which topic.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
CREATE ROLE regress_outbox_owner;
CREATE ROLE regress_outbox_app;
CREATE ROLE regress_outbox_team;
CREATE ROLE "regress_outbox O'x";
CREATE ROLE regress_outbox_boss SUPERUSER;
GRANT USAGE ON SCHEMA outbox TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO PUBLIC;
RESET client_min_messages;

-- send: the caller
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;
SELECT outbox.grant_topic('grants.a', 'regress_outbox_app', 'send');
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb) IS NOT NULL AS sent;
SELECT outbox.send('grants.ab', '1'::jsonb);
SELECT outbox.send('grants', '1'::jsonb);
RESET ROLE;
SELECT outbox.revoke_topic('grants.a', 'regress_outbox_app', 'send');
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;
SET ROLE "regress_outbox O'x";
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;

-- subscribe is another right
SELECT outbox.grant_topic('grants.a', 'regress_outbox_app', 'subscribe');
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;

-- prefixes, through membership
SELECT outbox.grant_topic('grants.*', 'regress_outbox_team', 'send');
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;
GRANT regress_outbox_team TO regress_outbox_app;
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb) IS NOT NULL AS sent;
SELECT outbox.send('grants.', '1'::jsonb) IS NOT NULL AS sent;
SELECT outbox.send('grant.a', '1'::jsonb);
RESET ROLE;
REVOKE regress_outbox_team FROM regress_outbox_app;
SET ROLE regress_outbox_app;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;

-- what isn't committed is gone with it
BEGIN;
SELECT outbox.grant_topic('*', 'regress_outbox_app', 'send');
SET ROLE regress_outbox_app;
SELECT outbox.send('any', '1'::jsonb) IS NOT NULL AS sent;
ROLLBACK;
SET ROLE regress_outbox_app;
SELECT outbox.send('any', '1'::jsonb);
RESET ROLE;

-- superusers, and who becomes one
SET ROLE regress_outbox_boss;
SELECT outbox.send('grants.boss', '1'::jsonb) IS NOT NULL AS sent;
RESET ROLE;
ALTER ROLE regress_outbox_boss NOSUPERUSER;
SET ROLE regress_outbox_boss;
SELECT outbox.send('grants.boss', '1'::jsonb);
RESET ROLE;

-- a role stands in a grant by its name
SELECT outbox.grant_topic('grants.a', 'regress_outbox_boss', 'send');
ALTER ROLE regress_outbox_boss RENAME TO regress_outbox_chief;
SET ROLE regress_outbox_chief;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;
ALTER ROLE regress_outbox_chief RENAME TO regress_outbox_boss;
SET ROLE regress_outbox_boss;
SELECT outbox.send('grants.a', '1'::jsonb) IS NOT NULL AS sent;
RESET ROLE;

-- capture: the owner of the table, whoever changes it
CREATE TABLE granted (id int) PARTITION BY RANGE (id);
CREATE TABLE granted_1 PARTITION OF granted FOR VALUES FROM (0) TO (10);
CREATE TABLE granted_2 PARTITION OF granted FOR VALUES FROM (10) TO (20);
ALTER TABLE granted OWNER TO regress_outbox_owner;
ALTER TABLE granted_1 OWNER TO regress_outbox_owner;
GRANT INSERT ON granted TO regress_outbox_app;
SELECT outbox.attach('granted', 'capturing');
INSERT INTO granted VALUES (1);
SET ROLE regress_outbox_app;
INSERT INTO granted VALUES (1);
-- this partition is the superuser's
INSERT INTO granted VALUES (11);
RESET ROLE;
SELECT outbox.grant_topic('capturing', 'regress_outbox_owner', 'send');
SET ROLE regress_outbox_app;
INSERT INTO granted VALUES (2), (3);
RESET ROLE;
SELECT outbox.revoke_topic('capturing', 'regress_outbox_owner', 'send');
INSERT INTO granted VALUES (4);
ALTER TABLE granted_1 OWNER TO CURRENT_USER;
INSERT INTO granted VALUES (5);
SELECT payload FROM outbox.message WHERE topic = 'capturing' ORDER BY id;
-- nobody reads what was captured
SET ROLE regress_outbox_owner;
SELECT * FROM outbox.message;
SELECT * FROM outbox.topic_grant;
RESET ROLE;

-- many topics
SELECT outbox.grant_topic('many.*', 'regress_outbox_app', 'send');
SET ROLE regress_outbox_app;
SELECT count(outbox.send('many.' || n, '1'::jsonb)) FROM generate_series(1, 3000) AS n;
SELECT outbox.send('grants.a', '1'::jsonb);
RESET ROLE;

DROP TABLE granted;
DELETE FROM outbox.topic_grant;
SELECT outbox.forget_grants();
REVOKE USAGE ON SCHEMA outbox FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC;
DROP ROLE regress_outbox_owner, regress_outbox_app, regress_outbox_team, regress_outbox_boss, "regress_outbox O'x";
