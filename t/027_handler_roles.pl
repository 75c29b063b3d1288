# Handlers run as the role that subscribed, whatever they try; and what becomes
# of their subscription when the function, the role or a right is gone.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Handlers;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Handlers->new($node, $kafka);

foreach my $role (qw(alice bob carol))
{
	$test->query(<<"EOS");
CREATE ROLE $role;
CREATE SCHEMA $role AUTHORIZATION $role;
GRANT USAGE ON SCHEMA outbox TO $role;
GRANT USAGE ON TYPE outbox.record, outbox.message TO $role;
GRANT EXECUTE ON FUNCTION outbox.subscribe, outbox.set_topic, outbox.attach, outbox.detach,
	outbox.capture, outbox.send(text, text, text, jsonb, timestamptz) TO $role;
SELECT outbox.grant_topic('$role*', '$role', 'subscribe');
SELECT outbox.grant_topic('$role*', '$role', 'send');
EOS
}

# A handler that runs what the record says, and returns the result of a query.
my $run = <<'EOS';
DECLARE
	result text;
BEGIN
	PERFORM public.note(r, r.key);
	IF r.payload ~* '^SELECT' THEN EXECUTE r.payload INTO result; ELSE EXECUTE r.payload; END IF;
	RETURN result;
END
EOS

# Handles [name, SQL, what comes of it] in one go: SUCCESS, a result, or a SQLSTATE
# (of a record that is dead, in parentheses).
sub try_handlers
{
	my ($name, $role, $rest, @cases) = @_;
	my $topic = $test->new_topic("$role-$name");
	my $to = $test->new_topic("$role-$name-replies");
	my $dead = grep { $_->[2] =~ /^\(/ } @cases;
	my $failed = grep { $_->[2] =~ /^[0-9A-Z]{5}$/ } @cases;
	my $n = 0;
	my %replies;

	$kafka->produce($topic, map { { key => $_->[0], value => $_->[1], headers => [ [ id => $test->id($n++) ] ] } } @cases);
	$test->subscribe($topic, $run, name => "$role.\"$name\"", reply => $to, returns => 'text',
		role => $role, rest => ", max_attempts => 1$rest");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->counts_are($topic, { dead => $dead, failed => $failed, handled => @cases - $failed - $dead },
		'all are dealt with');

	foreach my $reply ($test->records($to, @cases - $dead))
	{
		$replies{ $reply->{key} } =
			$reply->{value} =~ /"(?:sqlstate|result)": "(.*)"}$/ ? $1 : $reply->{value};
	}
	foreach my $row (split /\n/, $test->query(
			"SELECT message_id, sqlstate FROM outbox.dead_record WHERE topic = '$topic'"))
	{
		my ($id, $state) = split /\|/, $row;
		$replies{$id} = "($state)";
	}
	$n = 0;
	is($replies{ $test->id($n++) }, $_->[2], $_->[0]) foreach (@cases);
	is( $test->query(
			"SELECT count(*), count(DISTINCT \"offset\"), string_agg(DISTINCT role, ' ') FROM notes WHERE topic = '$topic'"),
		join('|', (@cases - $failed - $dead) x 2, $role), 'those that succeeded have done so once');
	return $topic;
}

my $settings = q(SELECT concat_ws(' ', current_setting('work_mem'), current_setting('search_path'),
	current_setting('enable_seqscan'), current_setting('enable_sort'), current_setting('row_security'),
	current_setting('transaction_read_only')));

subtest 'what handlers do' => sub {
	$test->query(<<'EOS');
CREATE TABLE public.secret (owner name, what text);
INSERT INTO secret VALUES ('alice', 'a'), ('bob', 'b'), ('postgres', 'p');
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secret USING (owner = current_user);
GRANT SELECT ON secret TO PUBLIC;
SET ROLE alice;
CREATE TABLE alice.attached (id int);
CREATE TABLE alice.large (data text);
ALTER TABLE alice.large ALTER data SET STORAGE EXTERNAL;
SELECT outbox.attach('alice.attached', 'alice-out');
EOS
	$kafka->create_topic('alice-out');
	my $restarts = $test->query(q(SELECT restarts FROM outbox.worker WHERE kind = 'consumer'));
	my $topic = try_handlers('deeds', 'alice', ", handler_timeout => '1 s'",
		[ 'who', 'SELECT current_user', 'alice' ],
		[ 'SET ROLE', 'SET ROLE postgres', '42501' ],
		[ 'SET ROLE to another', 'SET ROLE bob', '42501' ],
		[ 'RESET ROLE', 'RESET ROLE', '42501' ],
		[ 'SET LOCAL ROLE', 'SET LOCAL ROLE NONE', '42501' ],
		[ 'SET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION postgres', '42501' ],
		[ 'RESET SESSION AUTHORIZATION', 'RESET SESSION AUTHORIZATION', '42501' ],
		[ 'set_config of role', q(SELECT set_config('role', 'postgres', false)), '42501' ],
		[ 'exit_on_error', 'SET exit_on_error = on', '42501' ],
		[ 'a program', q(COPY notes TO PROGRAM 'true'), '42501' ],
		[ 'a table of the extension', 'SELECT count(*) FROM outbox.inbox', '42501' ],
		[ 'ending the worker', 'SELECT pg_terminate_backend(pg_backend_pid())', '42501' ],
		[ 'row-level security', q(SELECT string_agg(what, ' ') FROM public.secret), 'a' ],
		[ 'looping', 'DO $$BEGIN LOOP END LOOP; END$$', '(57014)' ],
		[ 'sleeping', 'SELECT pg_sleep(1000)', '(57014)' ],
		[ 'sleeping without a timeout', 'SET statement_timeout = 0; SELECT pg_sleep(1000)', '(57014)' ],
		[ 'catching the cancellation', 'DO $$
			BEGIN
				LOOP
					BEGIN
						LOOP
							BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN NULL; END;
						END LOOP;
					EXCEPTION WHEN query_canceled OR OTHERS THEN
					END;
				END LOOP;
			END$$', '(57014)' ],
		[ 'raising', 'DO $$BEGIN RAISE unique_violation; END$$', '23505' ],
		[ 'NULL', 'SELECT NULL', 'SUCCESS' ],
		[ '200 subtransactions', 'DO $$
			BEGIN
				FOR i IN 1 .. 200 LOOP
					BEGIN
						INSERT INTO alice.attached VALUES (i);
						IF i > 1 THEN RAISE division_by_zero; END IF;
					EXCEPTION WHEN division_by_zero THEN NULL;
					END;
				END LOOP;
			END$$', 'SUCCESS' ],
		[ 'settings', "SET work_mem = '7MB'; SET LOCAL enable_sort = off; SET row_security = off;
			SELECT set_config('search_path', 'alice', false)", 'SUCCESS' ],
		[ 'what they leave', $settings, '4MB \\"$user\\", public on on on off' ],
		[ 'RESET ALL', 'RESET ALL', 'SUCCESS' ],
		[ 'read only', 'SET TRANSACTION READ ONLY', 'SUCCESS' ],
		[ 'after that', $settings, '4MB \\"$user\\", public on on on off' ],
		[ 'LISTEN', 'LISTEN x', '0A000' ],
		[ 'NOTIFY', q(NOTIFY x, 'hello'), 'SUCCESS' ],
		[ 'COMMIT', 'DO $$BEGIN COMMIT; END$$', '2D000' ],
		[ 'ROLLBACK', 'DO $$BEGIN ROLLBACK; END$$', '2D000' ],
		[ 'a temporary table', 'CREATE TEMP TABLE t AS SELECT 1 AS a', 'SUCCESS' ],
		[ 'the same again', 'CREATE TEMP TABLE t AS SELECT 2 AS b', 'SUCCESS' ],
		[ 'a prepared statement', 'PREPARE p AS SELECT 1', 'SUCCESS' ],
		[ 'the same again', 'PREPARE p AS SELECT 2', 'SUCCESS' ],
		[ 'a cursor', 'DECLARE c CURSOR WITH HOLD FOR SELECT * FROM notes', 'SUCCESS' ],
		[ 'the same again', 'DECLARE c CURSOR WITH HOLD FOR SELECT * FROM notes', 'SUCCESS' ],
		[ 'an advisory lock', 'SELECT pg_advisory_lock(42)', '' ],
		[ 'outbox.send', q(SELECT outbox.send('alice-out', 'sent'::text) IS NOT NULL), 'true' ],
		[ 'outbox.send without the grant', q(SELECT outbox.send('bob-out', 'sent'::text)), '42501' ],
		[ 'an attached table', 'INSERT INTO alice.attached VALUES (1000)', 'SUCCESS' ]);

	is( $test->query(
			q(SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
				(SELECT count(*) FROM pg_class WHERE relname = 't'),
				(SELECT string_agg(id::text, ' ' ORDER BY id) FROM alice.attached))),
		'0|0|1 1000', 'no lock and no temporary table stays, and what was done does');
	is_deeply([ sort map { $_->{value} } $test->records('alice-out', 3) ],
		[ 'sent', '{"id":1000}', '{"id":1}' ], 'what they sent is published');
	is($test->query(q(SELECT restarts FROM outbox.worker WHERE kind = 'consumer')), $restarts,
		'and the consumer has not ended');

	try_handlers('large', 'alice', '',
		[ 'writing 100 MB', q(INSERT INTO alice.large SELECT repeat('x', 1000000) FROM generate_series(1, 100)), 'SUCCESS' ],
		[ 'returning 100 MB', q(SELECT repeat('x', 100000000)), '54000' ],
		[ 'the next', 'SELECT 1', '1' ]);
	is($test->query('SELECT count(*) FROM alice.large'), 100, 'it is there');
};

subtest 'what deferred triggers do' => sub {
	$test->query(<<'EOS');
SET ROLE alice;
CREATE TABLE alice.job (sql text);
CREATE FUNCTION alice.do_job() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN EXECUTE NEW.sql; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER do_job AFTER INSERT ON alice.job DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION alice.do_job();
EOS
	my $job = sub { "INSERT INTO alice.job VALUES (\$job\$$_[0]\$job\$)" };
	my $note = sub { "INSERT INTO public.notes (topic, note) VALUES ('job', '$_[0]')" };
	my $later = $job->($note->('later')) =~ s/\$job\$/\$later\$/gr;
	my @good = (
		[ 'a deferred trigger', $job->($note->('note')), 'SUCCESS' ],
		[ 'one that defers another', $job->("SET CONSTRAINTS ALL DEFERRED; $later"), 'SUCCESS' ],
		[ 'with settings', $job->("SET work_mem = '7MB'; SET search_path = alice"), 'SUCCESS' ],
		[ 'what they leave', $settings, '4MB \\"$user\\", public on on on off' ]);

	try_handlers('jobs', 'alice', '', @good);
	is($test->query(q(SELECT string_agg(note || ' ' || role, ', ' ORDER BY note) FROM notes WHERE topic = 'job')),
		'later alice, note alice', 'they run as the role, too');
	try_handlers('attacks', 'alice', ", handler_timeout => '1 s'",
		@good,
		[ 'SET ROLE', $job->('SET ROLE postgres'), '42501' ],
		[ 'RESET ROLE', $job->('RESET ROLE'), '42501' ],
		[ 'SET SESSION AUTHORIZATION', $job->('SET SESSION AUTHORIZATION postgres'), '42501' ],
		[ 'a temporary table', 'CREATE TEMP TABLE t (sql text);
			CREATE CONSTRAINT TRIGGER t AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
				FOR EACH ROW EXECUTE FUNCTION alice.do_job();
			INSERT INTO t VALUES (\'SELECT 1\')', 'SUCCESS' ],
		[ 'sleeping', $job->('SELECT pg_sleep(1000)'), '(57014)' ],
		[ 'raising later', $job->("SET CONSTRAINTS ALL DEFERRED; "
			  . $job->('SELECT 1 / 0') =~ s/\$job\$/\$later\$/gr), '22012' ]);
	is($test->query(q(SELECT string_agg(note || ' ' || role, ', ' ORDER BY note) FROM notes WHERE topic = 'job')),
		'later alice, later alice, note alice, note alice', 'also when each is alone');
};

subtest 'names that hide others' => sub {
	my @topics = map { $test->new_topic($_) } qw(alice-evil bob-good);

	# What the worker's statements could be led to, if they looked there.
	$test->query(<<'EOS');
CREATE TABLE trap (what text, role name DEFAULT current_user);
GRANT INSERT, SELECT ON trap TO PUBLIC;
CREATE TABLE bob.target (a text);
ALTER TABLE bob.target OWNER TO bob;
CREATE SCHEMA evil AUTHORIZATION alice;
SET ROLE alice;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.trap VALUES ('clock_timestamp'); RETURN pg_catalog.now(); END $$;
CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.trap VALUES ('='); RETURN pg_catalog.texteq($1, $2); END $$;
CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
CREATE FUNCTION evil.same(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.trap VALUES ('uuid ='); RETURN pg_catalog.uuid_eq($1, $2); END $$;
CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = uuid, RIGHTARG = uuid);
CREATE FUNCTION evil.same(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.trap VALUES ('bigint ='); RETURN pg_catalog.int8eq($1, $2); END $$;
CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = bigint, RIGHTARG = bigint);
CREATE FUNCTION evil.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.trap VALUES ('unnest'); RETURN QUERY SELECT pg_catalog.unnest($1); END $$;
CREATE FUNCTION evil.unnest(uuid[], text[]) RETURNS TABLE (id uuid, topic text) LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.trap VALUES ('unnest'); RETURN; END $$;
RESET ROLE;
ALTER ROLE alice SET search_path = evil, pg_catalog, public;
EOS
	foreach my $round (1 .. 2)
	{
		$kafka->produce($topics[0],
			(map { { key => $_, value => 'v', headers => [ [ id => $test->id(700 + $_) ] ] } } 1 .. 3),
			{ key => 'dies', value => 'v' });
		$test->subscribe($topics[0], <<'EOS', name => 'alice.evil', role => 'alice') if $round == 1;
BEGIN
	PERFORM public.note(r, r.key), clock_timestamp(), r.key = 'x'::text;
	SET search_path = evil, pg_catalog;
	CREATE TEMP TABLE target (a text);
	CREATE TEMP TABLE consumer_offset (a text);
	CREATE TEMP TABLE inbox_0 (a text);
	IF r.key = 'dies' THEN RAISE 'no'; END IF;
END
EOS
		$test->counts_are($topics[0], { handled => 3, repeated => 3 * $round - 3, dead => $round },
			'the records are handled');
		$kafka->produce($topics[1], { key => $round, value => 'v' });
		$test->subscribe($topics[1], q(PERFORM public.note(r, r.key); INSERT INTO target VALUES (r.key)),
			name => 'bob.good', role => 'bob')
		  if $round == 1;
		$test->query('ALTER ROLE bob SET search_path = bob') if $round == 1;
		$test->counts_are($topics[1], { handled => $round }, "then another role's")
		  if $round == 2;
	}
	is($test->query('SELECT string_agg(DISTINCT what || $$ $$ || role, $$, $$) FROM trap'),
		'= alice, clock_timestamp alice', 'only the role itself walks into its traps');
	$test->query('ALTER ROLE alice RESET search_path');
	is($test->query("SELECT string_agg(a, ' ' ORDER BY a) FROM bob.target"), '1 2',
		q(a temporary table does not hide another role's));
};

subtest 'settings of a role' => sub {
	$test->query(<<'EOS');
ALTER ROLE bob SET work_mem = '9MB';
ALTER ROLE bob SET enable_sort = off;
ALTER ROLE bob IN DATABASE postgres SET work_mem = '10MB';
ALTER ROLE bob SET role = 'postgres';
ALTER ROLE bob SET exit_on_error = on;
EOS
	try_handlers('settings', 'bob', '',
		[ 'are applied', $settings, '10MB bob on off on off' ],
		[ 'but not this one', 'SELECT current_user', 'bob' ],
		[ 'nor this one', 'SELECT 1 / 0', '22012' ]);
	$test->query('ALTER ROLE bob RESET ALL; ALTER ROLE bob IN DATABASE postgres RESET ALL');
};

subtest 'who subscribes' => sub {
	my ($topic, $sent) = map { $test->new_topic("alice-$_") } qw(trick set);

	# The caller of the function is a superuser, its owner is not.
	$test->query(<<"EOS");
SET ROLE alice;
CREATE FUNCTION alice.handle(r outbox.record) RETURNS void LANGUAGE sql AS
'SELECT public.note(r, current_user)';
CREATE FUNCTION alice.dead(m outbox.message) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION alice.trick() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS \$\$
BEGIN
	PERFORM outbox.subscribe('$topic', 'alice.handle(outbox.record)');
	PERFORM outbox.set_topic('$sent', on_dead => 'alice.dead(outbox.message)');
END
\$\$;
RESET ROLE;
SELECT alice.trick();
EOS
	is($test->query("SELECT role FROM outbox.subscription WHERE topic = '$topic'"), 'alice',
		'is whose function it was');
	is($test->query("SELECT role FROM outbox.topic_config WHERE topic = '$sent'"), 'alice',
		'also with outbox.set_topic');
	$kafka->produce($topic, { value => 'v' });
	$test->counts_are($topic, { handled => 1 }, 'the record is handled');
	is($test->notes($topic), '0:0 alice', 'as that role, by a function in SQL');
	$kafka->produce($topic, { value => 'v' });
	$test->counts_are($topic, { handled => 2 }, 'and again in another batch');
};

subtest 'two roles' => sub {
	my ($alices, $bobs) = map { $test->new_topic("$_-many", 3) } qw(alice bob);
	my @records = map { { partition => $_ % 3, value => 'v' } } 1 .. 12;

	# The first record keeps the consumer busy until the others are there.
	$test->query('CREATE TABLE gate (is_open boolean); GRANT SELECT ON gate TO PUBLIC');
	$kafka->produce($_, { key => 'gate', value => 'v' }) foreach ($bobs, $alices);
	$test->subscribe($bobs, q(PERFORM public.note(r, 'many')), name => 'bob.many', role => 'bob');
	$test->counts_are($bobs, { handled => 1 }, 'the one is read');
	$test->subscribe($alices, <<'EOS', name => 'alice.many', role => 'alice');
BEGIN
	WHILE r.key = 'gate' AND NOT EXISTS (SELECT FROM gate) LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
	PERFORM public.note(r, 'many');
END
EOS
	$test->wait_for(q(SELECT count(*) > 0 FROM pg_stat_activity
		WHERE backend_type LIKE 'outbox consumer%' AND wait_event = 'PgSleep'), 't');
	$kafka->produce($_, @records) foreach ($alices, $bobs, $alices, $bobs);
	$test->query('INSERT INTO gate VALUES (true)');
	$test->counts_are($_, { handled => 25 }, 'both are read') foreach ($alices, $bobs);
	is( $test->query(
			q(SELECT count(*), count(DISTINCT (topic, partition, "offset")),
				count(*) FILTER (WHERE role::text <> split_part(topic, '-', 1)) FROM notes WHERE note = 'many')),
		'50|50|0', 'each record is handled once, and as its role');
	is($test->query('SELECT count(*) FROM (SELECT FROM notes GROUP BY batch HAVING count(DISTINCT role) > 1) AS b'),
		0, 'a batch is of one role');
};

subtest 'what becomes of a subscription' => sub {
	my $topic = $test->new_topic('carol-changes');
	my $to = $test->new_topic('carol-replies');
	my $function = sub { $test->function('common.f', "PERFORM public.note(r, r.key || ' $_[0]')") };
	my $allow = 'REVOKE EXECUTE ON FUNCTION common.f FROM PUBLIC; GRANT EXECUTE ON FUNCTION common.f TO carol;';
	my $n = 0;
	my $make_role = 'CREATE ROLE carol; GRANT USAGE ON SCHEMA common TO carol; GRANT EXECUTE ON FUNCTION common.f TO carol';
	my @expected = ('0:0 k 1', '0:1 k 2');

	$test->query('CREATE SCHEMA common; GRANT USAGE ON SCHEMA common TO carol;' . $function->(1) . $allow
		. "SET ROLE carol; SELECT outbox.subscribe('$topic', 'common.f(outbox.record)', '$to')");
	$kafka->produce($topic, { key => 'k', value => 'v' });
	$test->counts_are($topic, { handled => ++$n }, 'the first record');
	$test->query($function->(2));
	$kafka->produce($topic, { key => 'k', value => 'v' });
	$test->counts_are($topic, { handled => ++$n }, 'CREATE OR REPLACE takes effect at once');

	foreach my $case (
		[ 'DROP FUNCTION', 'DROP FUNCTION common.f', $function->(2) . $allow,
			'function common.f(outbox.record) does not exist' ],
		[ 'REVOKE EXECUTE', 'REVOKE EXECUTE ON FUNCTION common.f FROM carol', $allow,
			'role "carol" may not execute function common.f' ],
		[ 'REVOKE USAGE', 'REVOKE USAGE ON SCHEMA common FROM carol', 'GRANT USAGE ON SCHEMA common TO carol',
			'role "carol" may not use the schema of function common.f' ],
		[ 'another result', 'DROP FUNCTION common.f; CREATE FUNCTION common.f(r outbox.record) RETURNS int LANGUAGE sql AS $$SELECT 1$$',
			'DROP FUNCTION common.f;' . $function->(2) . $allow,
			'function common.f can\'t be called: it must return void, text, json or jsonb' ],
		[ 'revoke_topic, subscribe', q(SELECT outbox.revoke_topic('carol*', 'carol', 'subscribe')),
			q(SELECT outbox.grant_topic('carol*', 'carol', 'subscribe')),
			'role "carol" may not subscribe to the topic' ],
		[ 'revoke_topic, send', q(SELECT outbox.revoke_topic('carol*', 'carol', 'send')),
			q(SELECT outbox.grant_topic('carol*', 'carol', 'send')),
			"role \"carol\" may not send to topic \"$to\"" ],
		[ 'ALTER ROLE RENAME', 'ALTER ROLE carol RENAME TO caroline', 'ALTER ROLE caroline RENAME TO carol',
			'role "carol" does not exist' ],
		[ 'DROP ROLE', 'DROP OWNED BY carol CASCADE; DROP ROLE carol', $make_role,
			'role "carol" does not exist' ])
	{
		my ($what, $break, $repair, $reason) = @$case;
		my $before = -s $node->logfile;

		$test->query($break);
		is($test->query("SELECT state, reason FROM outbox.subscription WHERE topic = '$topic'"),
			"paused|$reason", "$what pauses it");
		$kafka->produce($topic, { key => $what, value => 'v' });
		ok( wait_until('the log says so', sub {
				slurp_file($node->logfile, $before) =~ /the subscription to topic "$topic" is paused: \Q$reason\E/;
			}), 'the log says so');
		$test->query($repair);
		$test->counts_are($topic, { handled => ++$n }, 'it goes on by itself');
		like(slurp_file($node->logfile, $before), qr/the subscription to topic "$topic" goes on/,
			'and the log says so');
		push @expected, '0:' . ($n - 1) . " $what 2";
	}
	is($test->notes($topic), join(', ', @expected), 'nothing was lost, and nothing handled twice');
};

$node->stop;
$kafka->stop;
done_testing();
