-- The JSON of a row: that of row_to_json, whatever the session's settings.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

CREATE TYPE mood AS ENUM ('sad', 'so "so"', 'happy');
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE TYPE address AS (street text, number posint, since timestamptz, dropped int);
CREATE DOMAIN home AS address;
CREATE TYPE person AS (name text, home address, phones text[]);

CREATE TABLE json_types (
	id int,
	gone int,
	b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric,
	t text, v varchar(20), c char(5), "na""me" name, ch "char",
	by bytea, u uuid, e mood, d date, ts timestamp, tstz timestamptz,
	tim time, timtz timetz, iv interval,
	j json, jb jsonb, x xml, o oid, ip inet, mac macaddr, bits bit varying,
	p point, r tstzrange, ir int4multirange, tsv tsvector,
	dom posint, addr address, h home, pers person,
	ia int[], ta text[], da timestamptz[], aa address[], ma int[][], ja jsonb[], doma posint[],
	g int GENERATED ALWAYS AS (i4 * 2) STORED
);
ALTER TABLE json_types DROP COLUMN gone;
ALTER TYPE address DROP ATTRIBUTE dropped;
SELECT outbox.attach('json_types', 'json.types', key => 'id');

-- settings that would show
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SET bytea_output = 'escape';
SET extra_float_digits = -5;

INSERT INTO json_types (id) VALUES (1);
INSERT INTO json_types VALUES (2,
	true, -32768, 1073741823, -9223372036854775808, 0.1, 1.0 / 3.0, 123456789012345678901234567890.10,
	E'tab\t line\n quote" back\\slash \b\f\r \x01 / é €', 'varchar', 'ab', 'name', 'x',
	'\x00ff5c', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'so "so"',
	'2026-01-02', '2026-01-02 03:04:05.678', '2026-01-02 03:04:05.678+00',
	'03:04:05.678', '03:04:05.678+05:30', '1 year 2 mons -3 days 04:05:06.7',
	'{"a" : [1,  2]}', '{"b": {"c": null}, "a": 1.50}', '<a>&amp;</a>', 42, '10.0.0.1/8', '08:00:2b:01:02:03', B'101',
	'(1.5,-2)', '[2026-01-02 03:04:05+00,2026-02-01 00:00:00+00)', '{[1,3), [5,7)}', 'fat:1 cat:2',
	7, ROW('Main "St"', 5, '2026-01-02 03:04:05+00'), ROW('Side', NULL, NULL),
	ROW('Ann', ROW('High', 9, '2026-01-02 03:04:05+00'), '{+1,NULL}'),
	'{1,NULL,3}', '{"a b","q\"q",NULL,""}', '{"2026-01-02 03:04:05+00"}',
	ARRAY[ROW('A', 1, NULL)::address, NULL], '{{1,2},{3,4}}', ARRAY['{"k": 1}'::jsonb, 'null'], '{1,2}');
INSERT INTO json_types (id, f4, f8, n, d, ts, tstz, ia, ma, ja, t)
	VALUES (3, 'NaN', '-Infinity', 'NaN', 'infinity', '-infinity', 'infinity', '{}', '[2:3]={1,2}', '{}', '');
INSERT INTO json_types (id, f4, f8, n, d, ts, tstz)
	VALUES (4, 1e20, 1e-300, 'Infinity', '0044-03-15 BC', '0044-03-15 12:00 BC', '20000-01-01 00:00+00');
INSERT INTO json_types (id, f8, iv) VALUES (5, 100000000000000000000, '-1 day'), (6, '-0', '0');

SHOW TimeZone;
SHOW IntervalStyle;
SHOW extra_float_digits;

-- the same as row_to_json under the fixed settings
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';
SET IntervalStyle = 'postgres';
SET bytea_output = 'hex';
SET extra_float_digits = 1;
SELECT rec.id, m.payload = row_to_json(rec)::text AS same
FROM json_types AS rec JOIN outbox.message AS m ON m.topic = 'json.types' AND m.key = rec.id::text
ORDER BY rec.id;
\pset format unaligned
SELECT payload FROM outbox.message WHERE topic = 'json.types' ORDER BY id;
\pset format aligned
RESET ALL;

-- long values: compressed, and out of line
CREATE TABLE json_long (id int, t text, j jsonb, a text[], b bytea);
ALTER TABLE json_long ALTER COLUMN t SET STORAGE EXTERNAL, ALTER COLUMN b SET STORAGE EXTERNAL;
SELECT outbox.attach('json_long', 'json.long', 'id', '{INSERT,UPDATE,DELETE}');
INSERT INTO json_long SELECT 1, repeat('a"', 10000), jsonb_build_object('k', repeat('b', 20000)),
	ARRAY[repeat('c', 10000), repeat('d', 10)], convert_to(repeat('e', 20000), 'UTF8');
UPDATE json_long SET id = 2;
DELETE FROM json_long;
SELECT m.headers->>'op' AS op, j->>'id' AS id, length(j->>'t') AS t, length(j->'j'->>'k') AS j,
	length(j->'a'->>0) AS a, j->>'b' = '\x' || repeat('65', 20000) AS b
FROM outbox.message AS m, LATERAL (SELECT m.payload::jsonb AS j) AS _
WHERE topic = 'json.long' ORDER BY m.id;

-- numbers as text, also inside
CREATE TYPE json_pair AS (big bigint, small int);
CREATE TABLE json_numbers (i4 int, i8 bigint, n numeric, f float8, a bigint[], p json_pair);
SELECT outbox.attach('json_numbers', 'json.numbers', numbers_as_text => true);
INSERT INTO json_numbers VALUES
	(1, 9007199254740993, 1.10, 0.5, '{1,2}', ROW(9007199254740993, 1)),
	(2, NULL, 'NaN', 'NaN', '{NULL}', NULL);
SELECT payload FROM outbox.message WHERE topic = 'json.numbers' ORDER BY id;

-- a type's cast to json, seen as soon as it is there
CREATE TYPE temperature AS (celsius float8);
CREATE DOMAIN warm AS temperature;
CREATE TYPE colour AS ENUM ('red');
CREATE FUNCTION colour_json(colour) RETURNS json LANGUAGE sql
	AS $$ SELECT json_build_object('colour', $1::text, 'zone', current_setting('TimeZone')) $$;
CREATE TABLE json_cast (id int, c colour, w warm);
SELECT outbox.attach('json_cast', 'json.cast');
INSERT INTO json_cast VALUES (1, 'red', ROW(30.5));
CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour);
INSERT INTO json_cast VALUES (2, 'red', ROW(30.5));
-- and so is a change of a composite type, or of the table
ALTER TYPE temperature ADD ATTRIBUTE felt float8;
INSERT INTO json_cast VALUES (3, NULL, ROW(30.5, 35));
ALTER TABLE json_cast ADD COLUMN added text DEFAULT 'new', DROP COLUMN c;
INSERT INTO json_cast VALUES (4);
ALTER TABLE json_cast RENAME COLUMN added TO renamed;
INSERT INTO json_cast VALUES (5);
SELECT payload FROM outbox.message WHERE topic = 'json.cast' ORDER BY id;

-- names
CREATE TABLE json_names ("a""b" int, "tab	" int, "ÿ" int, "UPPER" int, lower int);
SELECT outbox.attach('json_names', 'json.names',
	columns => ARRAY['"a""b"', '"tab	" as "x "', '"ÿ"', 'UPPER as two words', 'LOWER AS lower "q" \', 'lower as ""']);
INSERT INTO json_names VALUES (1, 2, 3, 4, 5);
SELECT payload, payload::json IS NOT NULL AS valid FROM outbox.message WHERE topic = 'json.names' ORDER BY id;

-- no columns at all
CREATE TABLE json_empty ();
SELECT outbox.attach('json_empty', 'json.empty');
INSERT INTO json_empty DEFAULT VALUES;
SELECT payload FROM outbox.message WHERE topic = 'json.empty';

-- an output function that fails restores the settings
CREATE FUNCTION colour_fails(colour) RETURNS json LANGUAGE plpgsql
	AS $$ BEGIN RAISE EXCEPTION 'no colour'; END $$;
DROP CAST (colour AS json);
CREATE CAST (colour AS json) WITH FUNCTION colour_fails(colour);
CREATE TABLE json_fails (c colour);
SELECT outbox.attach('json_fails', 'json.fails');
SET TimeZone = 'Asia/Kolkata';
SET DateStyle = 'SQL, DMY';
INSERT INTO json_fails VALUES ('red');
SELECT '2026-01-02 03:04:05+00'::timestamptz;
RESET ALL;
