-- Payloads are UTF-8 whatever the database's encoding.
\set regression :DBNAME
CREATE DATABASE regress_outbox_latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_outbox_latin1
SET client_min_messages = warning;
CREATE EXTENSION outbox;
RESET client_min_messages;
SET client_encoding = 'UTF8';

CREATE TABLE "é" (id int, "à" text);
SELECT outbox.attach('"é"', 'latin1', '"à"');
INSERT INTO "é" VALUES (1, 'déjà');
SELECT outbox.send('latin1', 'été'::text, 'clé', '{"h": "é"}') IS NOT NULL AS sent;
SELECT outbox.send('latin1', '{"é": "ü"}'::jsonb) IS NOT NULL AS sent;
SELECT outbox.send('latin1', '\xe282ac'::bytea) IS NOT NULL AS sent;
SELECT key, payload, payload_bytes FROM outbox.message ORDER BY id;
SELECT convert_from(payload_bytes, 'UTF8') = payload AS same FROM outbox.message ORDER BY id LIMIT 3;
SELECT outbox.key_partition('clé', 7) AS of_7;

\c :regression
DROP DATABASE regress_outbox_latin1;
CREATE DATABASE regress_outbox_ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_outbox_ascii
SET client_min_messages = warning;
CREATE EXTENSION outbox;
RESET client_min_messages;
SELECT outbox.send('ascii', 'é'::text) IS NOT NULL AS sent;
SELECT outbox.send('ascii', E'\xff'::text);
CREATE TABLE t (id int, b text);
SELECT outbox.attach('t', 'ascii');
INSERT INTO t VALUES (1, 'é');
INSERT INTO t VALUES (2, E'\xff');
-- the width of a column is the client's idea of the encoding
\a
SELECT payload, payload_bytes FROM outbox.message ORDER BY id;
\a
\c :regression
DROP DATABASE regress_outbox_ascii;
